/* test_rates.c - learning rate, EMA decay and bias corrections over the steps. */
#include "support.h"

#include "rates.h"
#include "step_rates.h"

#include <math.h>

static double rate_lr(const ddpm_train_config *c, int64_t step)
{
    const struct step_rates r = rates_of(c);
    return step_lr(&r, step);
}

static double rate_ema(double rate, bool warmup, int64_t updates)
{
    const ddpm_train_config c = {.ema = {.n = 1, .v = {rate}}, .ema_warmup = warmup};
    const struct step_rates r = rates_of(&c);
    return step_ema_decay(&r, 0, updates);
}

static void warmup_rises_from_one_part_to_the_whole(void **state)
{
    (void)state;
    const ddpm_train_config c = {.lr = 2e-4, .warmup = 5000, .steps = 800000};
    assert_near(rate_lr(&c, 0), 2e-4 / 5000, 1e-18);
    assert_near(rate_lr(&c, 2499), 1e-4, 1e-18);
    assert_near(rate_lr(&c, 4999), 2e-4, 1e-18);
    assert_near(rate_lr(&c, 799999), 2e-4, 1e-18);
    const ddpm_train_config none = {.lr = 2e-4, .steps = 10};
    assert_near(rate_lr(&none, 0), 2e-4, 1e-18);
}

static void decay_reaches_zero_at_the_end(void **state)
{
    (void)state;
    ddpm_train_config c = {.lr = 1.0, .warmup = 100, .steps = 1100, .lr_decay = DDPM_DECAY_LINEAR};
    assert_near(rate_lr(&c, 99), 1.0, 1e-15);
    assert_near(rate_lr(&c, 100), 1.0, 1e-15);
    assert_near(rate_lr(&c, 600), 0.5, 1e-15);
    assert_near(rate_lr(&c, 1099), 0.001, 1e-12);
    assert_near(rate_lr(&c, 1100), 0, 0);
    assert_near(rate_lr(&c, 5000), 0, 0);
    c.lr_decay = DDPM_DECAY_COSINE;
    assert_near(rate_lr(&c, 350), 0.5 * (1 + cos(acos(-1.0) / 4)), 1e-12);
    assert_near(rate_lr(&c, 600), 0.5, 1e-12);
    for (int64_t s = 100; s < 1099; s++)
        assert_true(rate_lr(&c, s) > rate_lr(&c, s + 1));
}

static void a_warmup_longer_than_the_training_only_rises(void **state)
{
    (void)state;
    const ddpm_train_config c = {.lr = 1.0, .warmup = 50, .steps = 10, .lr_decay = DDPM_DECAY_COSINE};
    for (int64_t s = 0; s < 9; s++)
        assert_true(rate_lr(&c, s) < rate_lr(&c, s + 1));
}

static void ema_follows_closely_at_first(void **state)
{
    (void)state;
    assert_near(rate_ema(0.9999, true, 0), 0.1, 1e-15);
    assert_near(rate_ema(0.9999, true, 90), 0.91, 1e-15);
    assert_near(rate_ema(0.9999, true, 1000000), 0.9999, 0);
    assert_near(rate_ema(0.9999, false, 0), 0.9999, 0);
}

static void state_counts_updates_not_steps_in_its_corrections(void **state)
{
    (void)state;
    const ddpm_train_config c = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .seed = 5, .steps = 10,
                                 .ema = {.n = 2, .v = {0.5, 0.99}}, .ema_warmup = true};
    struct step_rates r = rates_of(&c);
    struct step_state s = step_state_at(&r, 7, 4);
    assert_int_equal(s.seed, 5);
    assert_int_equal(s.step, 7);
    assert_float_equal(s.lr, 1e-3f, 0);
    assert_float_equal(s.bias1, 1 - pow(0.9, 5), 1e-7);
    assert_float_equal(s.bias2, 1 - pow(0.999, 5), 1e-9);
    assert_float_equal(s.ema_decay[0], 5.0 / 14, 1e-7);
    assert_float_equal(s.ema_decay[1], 5.0 / 14, 1e-7);
    r.is_key_fixed = true; /* overfitting: the noise of step 0, the rates of step 7 */
    s = step_state_at(&r, 7, 4);
    assert_int_equal(s.step, 0);
    assert_float_equal(s.lr, 1e-3f, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warmup_rises_from_one_part_to_the_whole),
        cmocka_unit_test(decay_reaches_zero_at_the_end),
        cmocka_unit_test(a_warmup_longer_than_the_training_only_rises),
        cmocka_unit_test(ema_follows_closely_at_first),
        cmocka_unit_test(state_counts_updates_not_steps_in_its_corrections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

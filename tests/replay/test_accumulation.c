/* test_accumulation.c - how a batch is cut into micro-batches does not change what is learnt. */
#include "train_support.h"

static void every_micro_batch_gives_the_same_weights(void **state)
{
    /* Sums over images in another order differ by about 1e-7 of a gradient. Adam divides by the gradient's size, so a
     * weight whose gradient is nearly nothing shows that as a part of the learning rate: hence an epsilon of 1e-4,
     * and 1e-5 for five steps of up to 2e-3. */
    static const char *const sizes[] = {"train.micro_batch=8", "train.micro_batch=4", "train.micro_batch=2",
                                        "train.micro_batch=1"};
    struct trained whole, cut;
    train_open(*state, 0, (const char *const[]){sizes[0], "train.adam_eps=1e-4"}, 2, &whole);
    const double loss = train_steps(&whole, 5);
    for (int i = 1; i < 4; i++) {
        train_open(*state, 0, (const char *const[]){sizes[i], "train.adam_eps=1e-4"}, 2, &cut);
        const double other = train_steps(&cut, 5);
        double worst = 0;
        for (int64_t j = 0; j < whole.t->count; j++)
            worst = fmax(worst, fabs((double)whole.t->p[j] - cut.t->p[j]));
        if (!(worst <= 1e-5)) fail_msg("%s: weights differ by %g", sizes[i], worst);
        assert_near(other, loss, 1e-5 * loss);
        train_close(&cut);
    }
    train_close(&whole);
}

static void the_last_micro_batch_may_be_smaller(void **state)
{
    /* ddpm_config_check asks for a divisor; the trainer itself does not depend on it. */
    struct trained whole, cut;
    train_open(*state, 0, (const char *const[]){"train.micro_batch=8", "train.adam_eps=1e-4"}, 2, &whole);
    train_open(*state, 0, (const char *const[]){"train.micro_batch=4", "train.adam_eps=1e-4"}, 2, &cut);
    cut.t->micro_batch = 3; /* 3 + 3 + 2, in the memory of 4 */
    train_steps(&whole, 3);
    train_steps(&cut, 3);
    double worst = 0;
    for (int64_t j = 0; j < whole.t->count; j++)
        worst = fmax(worst, fabs((double)whole.t->p[j] - cut.t->p[j]));
    if (!(worst <= 1e-5)) fail_msg("weights differ by %g", worst);
    train_close(&cut);
    train_close(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_micro_batch_gives_the_same_weights),
        cmocka_unit_test(the_last_micro_batch_may_be_smaller),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}

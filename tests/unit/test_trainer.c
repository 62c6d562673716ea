/* test_trainer.c - what a trainer does step by step: the loss falls, memory stands still, bad steps are skipped, and what
 * does not fit is refused. */
#include "train_support.h"

#include <malloc.h>

static void overfitting_brings_the_loss_to_almost_nothing(void **state)
{
    static const char *const set[] = {"model.dropout=0", "train.lr=5e-3"};
    struct trained x;
    train_open(*state, 0, set, 2, &x);
    ddpm_trainer_overfit(x.t, true);
    const double first = train_steps(&x, 1), last = train_steps(&x, 400);
    if (!(last < 0.05 * first)) fail_msg("loss %g at first, %g after 400 steps on one batch", first, last);
    train_close(&x);
}

static void a_step_reports_its_figures(void **state)
{
    struct trained x;
    ddpm_step_result r;
    train_open(*state, 0, NULL, 0, &x);
    assert_ok(ddpm_trainer_step(x.t, &r));
    /* eps-MSE of a network that answers nearly 0 */
    assert_true(r.loss > 0.5 && r.loss < 2);
    assert_true(r.grad_norm > 0 && isfinite(r.grad_norm));
    assert_near(r.lr, 2e-3 / 4, 1e-9);
    assert_false(r.skipped);
    assert_int_equal(ddpm_trainer_step_number(x.t), 1);
    double sum = 0;
    int64_t n = 0;
    for (int q = 0; q < 4; q++) {
        n += r.quartile_count[q];
        sum += r.quartile_sum[q];
    }
    assert_int_equal(n, 8);
    assert_near(sum / 8, r.loss, 1e-12);
    train_close(&x);
}

/* Queued and collected in groups of any size, also around the ring's end, steps are those taken one by one. */
static void figures_wait_until_they_are_collected(void **state)
{
    struct trained x, y;
    static ddpm_step_result many[DDPM_STEPS_PENDING];
    static const int groups[] = {3, 250, 6};
    int n;
    train_open(*state, 0, NULL, 0, &x);
    train_open(*state, 0, NULL, 0, &y);
    for (int g = 0; g < 3; g++) {
        for (int i = 0; i < groups[g]; i++)
            assert_ok(ddpm_trainer_queue(x.t));
        assert_int_equal(ddpm_trainer_pending(x.t), groups[g]);
        if (g == 0) assert_status(ddpm_trainer_step(x.t, many), DDPM_ARG);
        assert_ok(ddpm_trainer_collect(x.t, many, &n));
        assert_int_equal(n, groups[g]);
        for (int i = 0; i < n; i++) {
            ddpm_step_result one;
            assert_ok(ddpm_trainer_step(y.t, &one));
            assert_int_equal(many[i].step, one.step);
            assert_memory_equal(&many[i].loss, &one.loss, sizeof one.loss);
            assert_memory_equal(&many[i].grad_norm, &one.grad_norm, sizeof one.grad_norm);
            assert_memory_equal(many[i].quartile_sum, one.quartile_sum, sizeof one.quartile_sum);
        }
    }
    assert_ok(ddpm_trainer_collect(x.t, many, &n));
    assert_int_equal(n, 0);
    train_assert_same(&x, &y);
    for (int i = 0; i < DDPM_STEPS_PENDING; i++)
        assert_ok(ddpm_trainer_queue(x.t));
    assert_status(ddpm_trainer_queue(x.t), DDPM_ARG);
    assert_ok(ddpm_trainer_collect(x.t, many, &n));
    assert_int_equal(n, DDPM_STEPS_PENDING);
    train_close(&y);
    train_close(&x);
}

static void too_many_skipped_steps_show_when_they_are_collected(void **state)
{
    struct trained x;
    static ddpm_step_result many[DDPM_STEPS_PENDING];
    int n;
    train_open(*state, 0, (const char *const[]){"train.max_skipped=3"}, 1, &x);
    train_steps(&x, 1);
    const float good = x.t->p[0];
    x.t->p[0] = NAN;
    for (int i = 0; i < 2; i++)
        assert_ok(ddpm_trainer_queue(x.t));
    assert_ok(ddpm_trainer_collect(x.t, many, &n)); /* two are not three */
    for (int i = 0; i < 4; i++)
        assert_ok(ddpm_trainer_queue(x.t));
    assert_status(ddpm_trainer_collect(x.t, many, &n), DDPM_NUMERIC);
    assert_message("step 4: ");
    assert_message("3 steps in a row");
    assert_int_equal(n, 4);
    assert_int_equal(many[3].skipped_in_row, 6);
    x.t->p[0] = good; /* nothing else was touched: it can go on */
    assert_ok(ddpm_trainer_step(x.t, many));
    assert_int_equal(many[0].skipped_in_row, 0);
    train_close(&x);
}

static void nothing_is_allocated_after_step_2(void **state)
{
    struct trained x;
    train_open(*state, 1, NULL, 0, &x);
    train_steps(&x, 2);
    const size_t device = ddpm_backend_memory(x.be);
    const struct mallinfo2 before = mallinfo2();
    train_steps(&x, 10);
    const struct mallinfo2 after = mallinfo2();
    assert_int_equal(ddpm_backend_memory(x.be), device);
    assert_int_equal(after.uordblks, before.uordblks);
    assert_int_equal(after.hblkhd, before.hblkhd);
    train_close(&x);
}

static void emas_begin_as_the_weights_and_trail_them(void **state)
{
    struct trained x;
    train_open(*state, 0, (const char *const[]){"train.ema_warmup=false"}, 1, &x);
    assert_memory_equal(x.t->ema[0], x.t->p, (size_t)x.t->count * sizeof(float));
    assert_memory_equal(x.t->ema[1], x.t->p, (size_t)x.t->count * sizeof(float));
    train_steps(&x, 3);
    double near = 0, far = 0;
    for (int64_t i = 0; i < x.t->count; i++) {
        near += fabs((double)x.t->ema[0][i] - x.t->p[i]);
        far += fabs((double)x.t->ema[1][i] - x.t->p[i]);
    }
    assert_true(near > 0 && far > near); /* 0.9 follows faster than 0.99 */
    train_close(&x);
}

static void a_step_that_is_not_finite_changes_nothing(void **state)
{
    struct trained x;
    ddpm_step_result r;
    train_open(*state, 0, (const char *const[]){"train.max_skipped=2"}, 1, &x);
    train_steps(&x, 2);
    const size_t bytes = (size_t)x.t->count * sizeof(float);
    const float good = x.t->p[0];
    x.t->p[0] = NAN; /* a weight that spoils every answer; the others must stay */
    float *p = test_malloc(bytes), *m = test_malloc(bytes), *ema = test_malloc(bytes);
    memcpy(p, x.t->p, bytes);
    memcpy(m, x.t->m, bytes);
    memcpy(ema, x.t->ema[0], bytes);
    assert_ok(ddpm_trainer_step(x.t, &r));
    assert_true(r.skipped);
    assert_memory_equal(x.t->p, p, bytes);
    assert_memory_equal(x.t->m, m, bytes);
    assert_memory_equal(x.t->ema[0], ema, bytes);
    assert_int_equal(x.t->step, 3);
    assert_int_equal(x.t->updates, 2);

    char path[SUPPORT_PATH];
    support_join(path, *state, "bad.safetensors");
    assert_status(ddpm_trainer_save(x.t, path), DDPM_NUMERIC);
    assert_int_not_equal(access(path, F_OK), 0);

    x.t->p[0] = good; /* mended: the count begins anew */
    assert_ok(ddpm_trainer_step(x.t, &r));
    assert_false(r.skipped);
    assert_int_equal(x.t->skipped_in_row, 0);
    x.t->p[0] = NAN;
    assert_ok(ddpm_trainer_step(x.t, &r));
    assert_status(ddpm_trainer_step(x.t, &r), DDPM_NUMERIC);
    assert_message("2 steps in a row");
    test_free(p);
    test_free(m);
    test_free(ema);
    train_close(&x);
}

static void a_loss_that_overflows_is_skipped_though_its_gradient_is_finite(void **state)
{
    struct trained x;
    ddpm_step_result r;
    train_open(*state, 0, NULL, 0, &x);
    train_steps(&x, 2);
    /* The bias of the last convolution: the answer is 3e19 everywhere, its square is beyond float; the layers before
     * meet weights of about 1e-5, so that the gradient itself is not. */
    int bias = 0;
    while (strcmp(ddpm_model_parameter(x.t->model, bias)->name, "conv_out.bias") != 0)
        bias++;
    float *value = x.t->p + ddpm_model_parameter(x.t->model, bias)->offset;
    *value = 3e19f;
    const float before = *value;
    assert_ok(ddpm_trainer_step(x.t, &r));
    assert_false(isfinite(r.loss));
    assert_true(r.skipped);
    assert_float_equal(*value, before, 0);
    for (int64_t i = 0; i < x.t->count; i++)
        assert_true(x.t->g[i] == 0);
    train_close(&x);
}

static void validation_is_the_same_every_time_and_for_every_seed(void **state)
{
    struct trained x, y;
    double first, again, raw, other;
    train_open(*state, 0, NULL, 0, &x);
    train_open(*state, 0, (const char *const[]){"train.seed=8", "train.micro_batch=2"}, 2, &y);
    train_steps(&x, 3);
    assert_ok(ddpm_trainer_validate(x.t, 0, &first));
    assert_ok(ddpm_trainer_validate(x.t, -1, &raw));
    assert_ok(ddpm_trainer_validate(x.t, 0, &again));
    assert_true(first > 0 && first < 3);
    assert_true(first == again);
    assert_true(first != raw);
    memcpy(y.t->p, x.t->ema[0], (size_t)x.t->count * sizeof(float));
    assert_ok(ddpm_trainer_validate(y.t, -1, &other));
    assert_near(other, first, 1e-6 * first); /* another micro-batch: float sums in another order */
    assert_status(ddpm_trainer_validate(x.t, 2, &other), DDPM_ARG);
    train_close(&y);
    train_close(&x);
}

static void validation_does_not_disturb_training(void **state)
{
    struct trained x, y;
    double loss;
    train_open(*state, 0, NULL, 0, &x);
    train_open(*state, 0, NULL, 0, &y);
    for (int i = 0; i < 4; i++) {
        train_steps(&x, 1);
        train_steps(&y, 1);
        assert_ok(ddpm_trainer_validate(y.t, i % 2, &loss));
    }
    train_assert_same(&x, &y);
    train_close(&y);
    train_close(&x);
}

static void previews_do_not_disturb_training(void **state)
{
    struct trained x, y;
    struct preview *p;
    char path[SUPPORT_PATH], again[SUPPORT_PATH];
    train_open(*state, 0, NULL, 0, &x);
    train_open(*state, 0, NULL, 0, &y);
    assert_ok(preview_create(y.t, &p));
    train_steps(&x, 2);
    train_steps(&y, 2);
    support_join(path, *state, "a.png");
    support_join(again, *state, "b.png");
    const size_t memory = ddpm_backend_memory(y.be);
    assert_ok(preview_draw(p, y.t, path, NULL));
    assert_ok(preview_draw(p, y.t, again, NULL));
    assert_int_equal(ddpm_backend_memory(y.be), memory);
    train_assert_same_files(path, again);
    train_steps(&x, 3);
    train_steps(&y, 3);
    train_assert_same(&x, &y);
    preview_free(p);
    train_close(&y);
    train_close(&x);
}

static ddpm_status create_with(const char *dir, const char *const *set, int n)
{
    struct trained x = {0};
    train_config(dir, set, n, &x.cfg);
    assert_ok(ddpm_backend_create("cpu", 1, &x.be));
    const ddpm_status s = ddpm_trainer_create(x.be, &x.cfg, &x.t);
    train_close(&x);
    return s;
}

static void a_model_for_other_images_is_refused(void **state)
{
    assert_status(create_with(*state, (const char *const[]){"model.image_width=16"}, 1), DDPM_CONFIG);
    assert_message("8x16x1");
    assert_message("8x8x1");
    assert_status(create_with(*state, (const char *const[]){"model.image_channels=3"}, 1), DDPM_CONFIG);
    assert_status(create_with(*state, (const char *const[]){"model.num_classes=3"}, 1), DDPM_CONFIG);
    assert_message("2 classes");
    assert_ok(create_with(*state, (const char *const[]){"model.num_classes=2"}, 1));
    assert_status(create_with(*state, (const char *const[]){"data.pack=/nowhere/pack"}, 1), DDPM_NOINPUT);
    assert_status(create_with(*state, (const char *const[]){"train.precision=bf16"}, 1), DDPM_CONFIG);
}

static void what_does_not_fit_is_refused_with_a_size_that_does(void **state)
{
    static const char *const set[] = {"train.batch=65536", "train.micro_batch=0", "model.channels=512"};
    assert_status(create_with(*state, set, 3), DDPM_NOMEM);
    assert_message("needs");
    assert_message("available");
    assert_message("train.micro_batch=");
    long long fits = 0;
    assert_int_equal(sscanf(strstr(ddpm_last_error(), "micro_batch="), "micro_batch=%lld", &fits), 1);
    assert_true(fits >= 1 && fits < 65536 && 65536 % fits == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overfitting_brings_the_loss_to_almost_nothing),
        cmocka_unit_test(a_step_reports_its_figures),
        cmocka_unit_test(figures_wait_until_they_are_collected),
        cmocka_unit_test(too_many_skipped_steps_show_when_they_are_collected),
        cmocka_unit_test(nothing_is_allocated_after_step_2),
        cmocka_unit_test(emas_begin_as_the_weights_and_trail_them),
        cmocka_unit_test(a_step_that_is_not_finite_changes_nothing),
        cmocka_unit_test(a_loss_that_overflows_is_skipped_though_its_gradient_is_finite),
        cmocka_unit_test(validation_is_the_same_every_time_and_for_every_seed),
        cmocka_unit_test(validation_does_not_disturb_training),
        cmocka_unit_test(previews_do_not_disturb_training),
        cmocka_unit_test(a_model_for_other_images_is_refused),
        cmocka_unit_test(what_does_not_fit_is_refused_with_a_size_that_does),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}

/* test_cuda_steps.c - training and sampling as recorded steps: the bits of calls made one by one,
 * resuming, nothing allocated after step 2, no wait of the host inside a step. */
#include "device_support.h"
#include "train_support.h"

#include "ddpm/sample.h"

#include <malloc.h>

/* The test network again, smaller: the stand-in runs every thread of every kernel. */
static const char *const small[] = {"model.channel_mult=[1]", "model.attention_resolutions=[0]",
                                    "train.batch=4", "train.micro_batch=2"};
enum { SMALL = 4 };

static void open_with(void **state, const char *more, const ddpm_backend_options *options,
                      struct trained *x)
{
    const char *set[SMALL + 1] = {small[0], small[1], small[2], small[3], more};
    *x = (struct trained){0};
    train_config(*state, set, more ? SMALL + 1 : SMALL, &x->cfg);
    assert_ok(ddpm_backend_create("cuda", 0, &x->be));
    ddpm_backend_configure(x->be, options);
    assert_ok(ddpm_trainer_create(x->be, &x->cfg, &x->t));
}

/* Deterministic, for two backends may time the libraries' plans differently. */
static const ddpm_backend_options recorded = {.is_deterministic = true},
                                  apart = {.is_deterministic = true, .keeps_calls_apart = true};
static const char *const precisions[] = {"train.precision=fp32", "train.precision=bf16"};

static void save_as(void **state, struct trained *x, const char *name, char path[SUPPORT_PATH])
{
    support_join(path, *state, name);
    assert_ok(ddpm_trainer_save(x->t, path));
}

static void a_recorded_step_has_the_bits_of_its_calls(void **state)
{
    for (int p = 0; p < 2; p++) {
        struct trained x, y;
        char a[SUPPORT_PATH], b[SUPPORT_PATH];
        open_with(state, precisions[p], &recorded, &x);
        open_with(state, precisions[p], &apart, &y);
        for (int i = 0; i < 4; i++) {
            ddpm_step_result one, other;
            assert_ok(ddpm_trainer_step(x.t, &one));
            assert_ok(ddpm_trainer_step(y.t, &other));
            assert_memory_equal(&one.loss, &other.loss, sizeof one.loss);
            assert_memory_equal(&one.grad_norm, &other.grad_norm, sizeof one.grad_norm);
            assert_int_equal(one.step, i + 1);
        }
        assert_int_equal(ddpm_recording_launches(x.t->recording), 3);
        assert_int_equal(ddpm_recording_launches(y.t->recording), 0);
        assert_null(ddpm_backend_notice(x.be, 0));
        save_as(state, &x, "recorded.safetensors", a);
        save_as(state, &y, "apart.safetensors", b);
        train_assert_same_files(a, b);
        train_close(&y);
        train_close(&x);
    }
}

/* bf16 is close to f32: its losses differ by the roundings of the network's answer, 2^-9 of it
 * each, and of what goes in. */
static void bf16_losses_are_those_of_f32_but_for_rounding(void **state)
{
    struct trained x, y;
    open_with(state, precisions[0], &recorded, &x);
    open_with(state, precisions[1], &recorded, &y);
    for (int i = 0; i < 4; i++) {
        const double want = train_steps(&x, 1), got = train_steps(&y, 1);
        assert_near(got, want, 0.02 * want);
        if (i > 0) assert_true(got != want);
    }
    double one, other;
    assert_ok(ddpm_trainer_validate(x.t, 0, &one)); /* by an average, rounded for it */
    assert_ok(ddpm_trainer_validate(y.t, 0, &other));
    assert_near(other, one, 0.02 * one);
    train_close(&y);
    train_close(&x);
}

static void going_on_from_a_checkpoint_gives_the_same_bits(void **state)
{
    struct trained x, y;
    char whole[SUPPORT_PATH], half[SUPPORT_PATH], halves[SUPPORT_PATH];
    double loss;
    open_with(state, precisions[1], &recorded, &x);
    train_steps(&x, 3);
    save_as(state, &x, "half.safetensors", half);
    assert_ok(ddpm_trainer_validate(x.t, 0, &loss)); /* which disturbs nothing */
    train_steps(&x, 3);
    save_as(state, &x, "whole.safetensors", whole);
    train_close(&x);
    open_with(state, precisions[1], &recorded, &y);
    assert_ok(ddpm_trainer_load(y.t, half));
    train_steps(&y, 3);
    save_as(state, &y, "halves.safetensors", halves);
    train_assert_same_files(whole, halves);
    train_close(&y);
}

/* Batches gathered on the device from the whole pack there, and batches uploaded. */
static void where_the_images_lie_changes_nothing(void **state)
{
    char a[SUPPORT_PATH], b[SUPPORT_PATH];
    struct trained x, y;
    double loss;
    open_with(state, "model.num_classes=2", &recorded, &x);
    assert_non_null(x.t->pack);
    open_with(state, "model.num_classes=2", &recorded, &y);
    ddpm_backend_release(y.be, y.t->pack_block); /* as where there was no room for it */
    y.t->pack_block = y.t->pack = NULL;
    for (int i = 0; i < 4; i++) {
        train_steps(&x, 1);
        train_steps(&y, 1);
        if (i == 1)
            assert_ok(ddpm_trainer_validate(x.t, 0, &loss)); /* which uses the batch's place */
    }
    save_as(state, &x, "gathered.safetensors", a);
    save_as(state, &y, "uploaded.safetensors", b);
    train_assert_same_files(a, b);
    train_close(&y);
    train_close(&x);
}

/* Batches of steps that are queued cross to the device while none of these steps has begun, and each step still gets its own:
 * the same bits as with a wait after every step. */
static void batches_cross_while_steps_wait(void **state)
{
    enum { STEPS = 5 };
    struct trained x, y;
    char a[SUPPORT_PATH], b[SUPPORT_PATH];
    int n;
    open_with(state, "data.memory_mib=0", &recorded, &y);
    train_steps(&y, 3 + STEPS);
    save_as(state, &y, "waited.safetensors", b);
    train_close(&y);
    for (int order = 0; order < 3; order++) {
        cuda_on_cpu_schedule((enum cuda_on_cpu_order)order, 3);
        open_with(state, "data.memory_mib=0", &recorded, &x);
        assert_null(x.t->pack);
        train_steps(&x, 3);
        const long kernels = cuda_on_cpu_kernels();
        for (int i = 0; i < STEPS; i++)
            assert_ok(ddpm_trainer_queue(x.t));
        assert_int_equal(cudaStreamQuery(cuda_of(x.be)->copy), cudaErrorNotReady); /* something is on the way, */
        while (cudaStreamQuery(cuda_of(x.be)->copy))
            (void)cudaGetLastError();
        assert_int_equal(cuda_on_cpu_kernels(), kernels); /* and arrives before the first of the steps begins */
        assert_ok(ddpm_trainer_collect(x.t, x.t->results, &n));
        assert_int_equal(n, STEPS);
        assert_true(cuda_on_cpu_kernels() > kernels);
        save_as(state, &x, "queued.safetensors", a);
        train_assert_same_files(a, b);
        train_close(&x);
    }
    cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 1);
}

static void nothing_is_allocated_after_step_2(void **state)
{
    struct trained x;
    int n;
    open_with(state, NULL, &recorded, &x);
    train_steps(&x, 2);
    const size_t device = ddpm_backend_memory(x.be);
    const long live = cuda_on_cpu_live();
    for (int i = 0; i < 4; i++)
        assert_ok(ddpm_trainer_queue(x.t));
    assert_ok(ddpm_trainer_collect(x.t, x.t->results, &n));
    assert_int_equal(n, 4);
    assert_int_equal(ddpm_backend_memory(x.be), device);
    assert_int_equal(cuda_on_cpu_live(), live);
    train_close(&x);
}

/* ---- sampling ---- */

enum { IMAGES = 3, BYTES = IMAGES * PACK_SIDE * PACK_SIDE };

struct seen {
    int calls, pictures;
};

static void see(void *user, int step, const uint8_t *x0_hat)
{
    struct seen *s = user;
    (void)step;
    s->calls++;
    s->pictures += x0_hat != NULL;
}

/* A batch of three, one of two, one of three; gives the pictures of all. */
static void sample_with(struct trained *x, int wanted, uint8_t out[3 * BYTES], struct seen *seen)
{
    static const uint64_t index[] = {5, 6, 7};
    static const int steps[] = {20, 3};
    ddpm_sampler *s;
    ddpm_sample_config cfg = x->cfg.sample;
    char spacing[] = "20";
    cfg.spacing = spacing;
    memset(out, 0, 3 * BYTES);
    assert_ok(ddpm_sampler_create(x->be, x->t->model, &x->cfg.diffusion, &cfg, IMAGES, &s));
    assert_ok(ddpm_model_reserve(x->t->model, (int)x->t->micro_batch, true));
    ddpm_sampler_frames(s, steps, wanted);
    for (int i = 0; i < 3; i++)
        assert_ok(ddpm_sampler_run(s, 9, i == 1 ? 2 : 3, index, NULL, out + i * BYTES,
                                   seen ? see : NULL, seen, NULL));
    ddpm_sampler_free(s);
}

static void a_recorded_sampler_draws_the_same_pictures(void **state)
{
    struct trained x, y;
    uint8_t a[3 * BYTES], b[3 * BYTES];
    struct seen all = {0}, some = {0};
    open_with(state, "train.micro_batch=4", &recorded, &x);
    open_with(state, "train.micro_batch=4", &apart, &y);
    sample_with(&x, 0, a, NULL);
    sample_with(&y, 0, b, NULL);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_equal(a, a + 2 * BYTES, BYTES);     /* the same seeds again */
    assert_memory_equal(a, a + BYTES, BYTES / 3 * 2); /* and in a smaller batch */
    sample_with(&x, -1, a, &all);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(all.pictures, 60);
    sample_with(&x, 2, a, &some);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(some.pictures, 6);
    assert_true(some.calls > 6 && some.calls < 60); /* a GPU is not asked after every step */
    train_close(&y);
    train_close(&x);
}

static void an_answer_that_is_not_finite_is_found_and_named(void **state)
{
    struct trained x;
    ddpm_sampler *s;
    uint8_t out[BYTES];
    static const uint64_t index[] = {5, 6, 7};
    const float bad = INFINITY;
    open_with(state, "train.micro_batch=4", &recorded, &x);
    assert_ok(ddpm_sampler_create(x.be, x.t->model, &x.cfg.diffusion, &x.cfg.sample, IMAGES, &s));
    assert_ok(ddpm_model_reserve(x.t->model, 4, true));
    int bias = 0;
    while (strcmp(ddpm_model_parameter(x.t->model, bias)->name, "conv_out.bias") != 0)
        bias++;
    float *at = x.t->p + ddpm_model_parameter(x.t->model, bias)->offset;
    assert_ok(ddpm_backend_upload(x.be, at, &bad, sizeof bad));
    assert_status(ddpm_sampler_run(s, 9, 3, index, NULL, out, NULL, NULL, NULL), DDPM_NUMERIC);
    assert_message("sample 5: at step 50 of 50 (t = 50)");
    ddpm_sampler_free(s);
    train_close(&x);
}

static int begin(void **state)
{
    device_begin(state);
    return support_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_recorded_step_has_the_bits_of_its_calls),
        cmocka_unit_test(bf16_losses_are_those_of_f32_but_for_rounding),
        cmocka_unit_test(going_on_from_a_checkpoint_gives_the_same_bits),
        cmocka_unit_test(where_the_images_lie_changes_nothing),
        cmocka_unit_test(batches_cross_while_steps_wait),
        cmocka_unit_test(nothing_is_allocated_after_step_2),
        cmocka_unit_test(a_recorded_sampler_draws_the_same_pictures),
        cmocka_unit_test(an_answer_that_is_not_finite_is_found_and_named),
    };
    return cmocka_run_group_tests(tests, begin, support_teardown);
}

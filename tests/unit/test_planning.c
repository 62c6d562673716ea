/* test_planning.c - the backend that notes calls (planning.h), against counts made by hand. */
#include "tiny_run.h"

#include "ddpm/train.h"

#include "backend_internal.h"
#include "planning.h"

static ddpm_backend *device_of(size_t bytes)
{
    ddpm_backend *be;
    assert_ok(planning_create(&(struct planning_options){.name = "a test", .memory_bytes = bytes}, &be));
    return be;
}

static void test_memory(void **state)
{
    (void)state;
    ddpm_backend *be = device_of(1000000);
    size_t left;
    void *a, *b;
    char text[] = "as it was";
    assert_ok(ddpm_backend_alloc(be, 300000, &a));
    assert_ok(ddpm_backend_alloc(be, 100000, &b));
    assert_true((char *)b >= (char *)a + 300000 || (char *)a >= (char *)b + 100000);
    assert_int_equal(ddpm_backend_memory(be), 400000);
    assert_ok(ddpm_backend_memory_available(be, &left));
    assert_int_equal(left, 600000);
    assert_ok(ddpm_backend_upload(be, a, text, sizeof text));
    assert_ok(ddpm_backend_zero(be, a, 300000));
    assert_ok(ddpm_backend_download(be, text, a, sizeof text));
    assert_string_equal(text, "");
    ddpm_backend_release(be, a);
    assert_int_equal(ddpm_backend_memory(be), 100000);
    assert_int_equal(ddpm_backend_memory_peak(be), 400000);
    assert_ok(ddpm_backend_alloc(be, 2000000, &a)); /* noted, not had: who asks whether it fits is told */
    assert_ok(ddpm_backend_memory_available(be, &left));
    assert_int_equal(left, 0);
    ddpm_backend_release(be, a);
    ddpm_backend_release(be, b);
    ddpm_backend_free(be);

    be = device_of(0);
    assert_ok(ddpm_backend_memory_available(be, &left));
    assert_true(left == SIZE_MAX);
    ddpm_backend_free(be);
}

/* ---- single calls ---- */

static void run_conv(ddpm_backend *be, ddpm_tensor *y, const ddpm_tensor *x, const ddpm_tensor *w, const ddpm_tensor *bias,
                     const ddpm_tensor *residual)
{
    assert_ok(backend_ops(be)->conv2d(be, &(struct conv2d_args){.x = x, .w = w, .bias = bias, .residual = residual, .y = y,
                                                                .stride = 1, .pad_top = 1, .pad_left = 1,
                                                                .pad_bottom = 1, .pad_right = 1}));
}

/* Each tensor once, by its type; a call made again is the same call, one with another tensor is another. */
static void test_bytes_of_a_convolution(void **state)
{
    (void)state;
    static float data[512];
    ddpm_backend *be = device_of(0);
    ddpm_tensor x = ddpm_tensor_4d(data, 2, 4, 4, 3), w = ddpm_tensor_4d(data, 5, 3, 3, 3), bias = ddpm_tensor_1d(data, 5);
    ddpm_tensor y = ddpm_tensor_4d(data, 2, 4, 4, 5);
    run_conv(be, &y, &x, &w, &bias, NULL);
    run_conv(be, &y, &x, &w, &bias, NULL);
    run_conv(be, &y, &x, &w, &bias, &y);
    assert_int_equal(planning_call_count(be), 2);
    const struct planning_call *c = planning_call_at(be, 0);
    assert_int_equal(c->op, OP_conv2d);
    assert_int_equal(c->calls, 2);
    assert_near(c->bytes, 4.0 * (2 * 16 * 3 + 5 * 9 * 3 + 5 + 2 * 16 * 5), 0);
    assert_near(c->flops, 2.0 * (5 * 9 * 3) * (2 * 16), 0);
    assert_string_equal(c->shape, "2x4x4x3 > 2x4x4x5 3x3");
    assert_non_null(strstr(c->text, "x 2x4x4x3 w 5x3x3x3 bias 5 y 2x4x4x5 stride=1"));
    assert_null(c->args.conv2d.residual);
    assert_int_equal(c->args.conv2d.w->dim[1], 3);
    c = planning_call_at(be, 1);
    assert_int_equal(c->calls, 1);
    assert_near(c->bytes, 4.0 * (2 * 16 * 3 + 5 * 9 * 3 + 5 + 2 * 2 * 16 * 5), 0);

    planning_forget(be);
    assert_int_equal(planning_call_count(be), 0);
    x.dtype = w.dtype = y.dtype = DDPM_BF16;
    run_conv(be, &y, &x, &w, &bias, NULL);
    assert_near(planning_call_at(be, 0)->bytes, 2.0 * (2 * 16 * 3 + 5 * 9 * 3 + 2 * 16 * 5) + 4.0 * 5, 0);
    ddpm_backend_free(be);
}

/* What is added to is read and written. */
static void test_bytes_of_what_accumulates(void **state)
{
    (void)state;
    static float data[512];
    ddpm_backend *be = device_of(0);
    const struct ops *ops = backend_ops(be);
    ddpm_tensor x = ddpm_tensor_2d(data, 4, 3), w = ddpm_tensor_2d(data, 5, 3), dy = ddpm_tensor_2d(data, 4, 5);
    ddpm_tensor dx = ddpm_tensor_2d(data, 4, 3), dw = ddpm_tensor_2d(data, 5, 3), db = ddpm_tensor_1d(data, 5);
    struct linear_bwd_args a = {.x = &x, .w = &w, .dy = &dy, .dx = &dx, .dw = &dw, .db = &db};
    assert_ok(ops->linear_bwd(be, &a));
    a.accumulate = true;
    assert_ok(ops->linear_bwd(be, &a));
    assert_int_equal(planning_call_count(be), 2);
    const double once = 4.0 * (12 + 15 + 20 + 12 + 2 * 15 + 2 * 5);
    assert_near(planning_call_at(be, 0)->bytes, once, 0);
    assert_near(planning_call_at(be, 1)->bytes, once + 4.0 * 12, 0);
    assert_near(planning_call_at(be, 0)->flops, 2 * 2.0 * (4 * 3 * 5), 0);
    ddpm_backend_free(be);
}

static void test_measuring_notes_no_calls(void **state)
{
    (void)state;
    ddpm_backend *be = device_of(0);
    ddpm_tensor x = ddpm_tensor_2d(NULL, 4, 3);
    ddpm_backend_measure(be, true);
    assert_ok(backend_ops(be)->silu(be, &(struct silu_args){.x = &x, .y = &x}));
    ddpm_backend_measure(be, false);
    assert_int_equal(planning_call_count(be), 0);
    ddpm_tensor other = ddpm_tensor_2d(NULL, 4, 2); /* held against its contract, as by any backend */
    assert_status(backend_ops(be)->silu(be, &(struct silu_args){.x = &x, .y = &other}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

/* ---- a network ---- */

/* One level of 4x4 pixels and 4 channels: conv_in; a block down; block, attention, block in the middle; two blocks up, each with
 * a skip connection of 4 channels; conv_out. */
static ddpm_config small_network(void)
{
    static const char *const set[] = {"model.image_height=4", "model.image_width=4", "model.channel_mult=[1]",
                                      "model.attention_resolutions=[0]", "train.batch=2", "train.ema=[0.9]"};
    return tiny_config(sizeof set / sizeof *set, set);
}

static int64_t calls_of(const ddpm_backend *be, int op)
{
    int64_t n = 0;
    for (int i = 0; i < planning_call_count(be); i++)
        if (planning_call_at(be, i)->op == op) n += planning_call_at(be, i)->calls;
    return n;
}

static double flops_of(const ddpm_backend *be, int op)
{
    double n = 0;
    for (int i = 0; i < planning_call_count(be); i++)
        if (planning_call_at(be, i)->op == op)
            n += (double)planning_call_at(be, i)->calls * planning_call_at(be, i)->flops;
    return n;
}

static void test_calls_of_a_step(void **state)
{
    (void)state;
    ddpm_config cfg = small_network();
    ddpm_backend *be = device_of(0);
    assert_ok(ddpm_trainer_plan(be, &cfg));
    /* 5 blocks of two, two shortcuts of two products, conv_in, conv_out, qkv and proj */
    const int64_t convs = 5 * 2 + 2 * 2 + 4;
    assert_int_equal(calls_of(be, OP_conv2d), convs);
    assert_int_equal(calls_of(be, OP_conv2d_bwd_filter), convs);
    assert_int_equal(calls_of(be, OP_conv2d_bwd_data), convs - 1); /* nobody asks for the image's gradient */
    assert_int_equal(calls_of(be, OP_groupnorm), 5 * 2 + 2);
    assert_int_equal(calls_of(be, OP_groupnorm_bwd), 5 * 2 + 2);
    assert_int_equal(calls_of(be, OP_attention), 1);
    assert_int_equal(calls_of(be, OP_attention_bwd), 1);
    assert_int_equal(calls_of(be, OP_linear), 3); /* two of the time embedding, one for every block's projection */
    assert_int_equal(calls_of(be, OP_linear_bwd), 3);
    assert_int_equal(calls_of(be, OP_q_sample), 1);
    assert_int_equal(calls_of(be, OP_diffusion_loss), 1);
    assert_int_equal(calls_of(be, OP_adamw), 1);

    /* multiply-adds of an image: pixels times kernels */
    const double conv = 16.0 * (9 * 4 + 9 * 4             /* conv_in, conv_out: one channel to four and back */
                                + 3 * 2 * 9 * 16          /* the blocks without a skip connection */
                                + 2 * (9 * 32 + 9 * 16 + 32) /* with one, and their shortcuts */
                                + 4 * 16);                /* qkv and proj */
    assert_near(flops_of(be, OP_conv2d), 2 * 2 * conv, 0);
    assert_near(flops_of(be, OP_conv2d_bwd_filter), 2 * 2 * conv, 0);
    assert_near(flops_of(be, OP_conv2d_bwd_data), 2 * 2 * (conv - 16 * 9 * 4), 0);
    assert_near(flops_of(be, OP_attention), 2 * 2 * (2.0 * 16 * 16 * 4), 0);
    ddpm_backend_free(be);
    ddpm_config_free(&cfg);
}

static bool leaves_all(const void *from, const struct planning_call *c)
{
    (void)from;
    assert_true(c->op == OP_conv2d || c->op == OP_conv2d_bwd_data);
    return true;
}

static bool is_given_sums(const struct planning_call *c)
{
    return c->op == OP_groupnorm ? c->args.groupnorm.sum1 != NULL : c->op == OP_groupnorm_bwd && c->args.groupnorm_bwd.dy_sum != NULL;
}

/* Where every convolution leaves sums, every norm is called with them; backward those behind it without a skip connection, SiLU's
 * gradient in dy then. Where none does, no norm is. */
static void test_sums_of_a_step(void **state)
{
    (void)state;
    ddpm_config cfg = small_network();
    for (int all = 0; all < 2; all++) {
        ddpm_backend *be;
        assert_ok(planning_create(&(struct planning_options){.name = "a test", .leaves_sums = all ? leaves_all : NULL}, &be));
        assert_ok(ddpm_trainer_plan(be, &cfg));
        int64_t forward = 0, backward = 0;
        for (int i = 0; i < planning_call_count(be); i++) {
            const struct planning_call *c = planning_call_at(be, i);
            if (!is_given_sums(c)) continue;
            *(c->op == OP_groupnorm ? &forward : &backward) += c->calls;
            assert_true(c->op == OP_groupnorm || !c->args.groupnorm_bwd.silu);
        }
        assert_int_equal(forward, all ? 5 * 2 + 2 : 0);
        assert_int_equal(backward, all ? 5 + 3 : 0);
        assert_int_equal(calls_of(be, OP_groupnorm), 5 * 2 + 2);
        assert_int_equal(calls_of(be, OP_groupnorm_bwd), 5 * 2 + 2);
        ddpm_backend_free(be);
    }
    ddpm_config_free(&cfg);
}

/* Two slots of 4 MiB, or of the largest batch: nothing in a build without CUDA. */
static void test_memory_of_uploads(void **state)
{
    (void)state;
    ddpm_backend *be = device_of(0);
    const size_t least = planning_staging_bytes(be);
    assert_true(least == 0 || least == (size_t)8 << 20);
    assert_ok(ddpm_backend_reserve_uploads(be, 1000));
    assert_int_equal(planning_staging_bytes(be), least);
    assert_ok(ddpm_backend_reserve_uploads(be, ((size_t)5 << 20) + 1));
    assert_int_equal(planning_staging_bytes(be), least ? ((size_t)10 << 20) + 2 * 256 : 0);
    ddpm_backend_free(be);
}

/* Weights exactly; activations between what must be there when backward begins, and all there is. */
static void test_memory_of_a_step(void **state)
{
    (void)state;
    enum { BATCH = 2, IMAGE = 16 * 4 * 4 }; /* bytes of 4 channels */
    ddpm_config cfg = small_network();
    ddpm_backend *be = device_of(0);
    ddpm_model *m;
    ddpm_model_memory memory;
    assert_ok(ddpm_model_create(be, &cfg.model, &m));
    const int64_t plain = 8 + 148 + 8 + 148 + 68, with_skip = 16 + 292 + 8 + 148 + 36 + 68;
    assert_int_equal(ddpm_model_parameter_total(m), 40 + 80 + 272 + 3 * plain + 2 * with_skip + 88 + 45);
    assert_ok(ddpm_model_measure(m, BATCH, true, &memory));
    /* kept: act1, h1, act2, y of each block, act1 twice as wide behind a skip connection; act, qkv, o, y of attention; conv_in */
    const size_t kept = BATCH * IMAGE * (3 * 4 + 2 * 5 + 6 + 1);
    assert_in_range(memory.activation_bytes, kept, 2 * kept);

    const size_t block = ((size_t)ddpm_model_arena_count(m) + 15) / 16 * 16 * sizeof(float);
    ddpm_model_free(m);
    assert_ok(ddpm_trainer_plan(be, &cfg));
    /* weights, gradients, two moments, an average; the batch's block has the tables of 60 times and the ring of steps' figures */
    const size_t expected = 5 * block + memory.activation_bytes, batch = ddpm_backend_memory_peak(be) - expected;
    assert_in_range(batch, (2 + 2 + 1) * 61 * sizeof(float), 32768);
    assert_int_equal(ddpm_backend_memory(be), 0);

    cfg.train.precision = DDPM_PRECISION_BF16;
    ddpm_backend *half = device_of(0);
    assert_ok(ddpm_trainer_plan(half, &cfg)); /* activations of half the size, and the kernels once more */
    assert_true(ddpm_backend_memory_peak(half) < ddpm_backend_memory_peak(be) + block / 2 - kept / 3);
    ddpm_backend_free(half);
    ddpm_backend_free(be);
    ddpm_config_free(&cfg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_bytes_of_a_convolution),
        cmocka_unit_test(test_bytes_of_what_accumulates),
        cmocka_unit_test(test_measuring_notes_no_calls),
        cmocka_unit_test(test_calls_of_a_step), cmocka_unit_test(test_sums_of_a_step),
        cmocka_unit_test(test_memory_of_uploads),
        cmocka_unit_test(test_memory_of_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

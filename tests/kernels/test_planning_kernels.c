/* test_planning_kernels.c - the kernels that planning counts (planning_kernels.c) are those that run. */
#include "support.h"

#include "control.h"

#include "ddpm/config.h"
#include "ddpm/model.h"

#include "backend_internal.h"
#include "launch.h"
#include "planning.h"

enum { BATCH = 3 };

static const char yaml[] = "model:\n"
                           "  image_height: 8\n"
                           "  image_width: 8\n"
                           "  image_channels: 3\n"
                           "  channels: 16\n"
                           "  channel_mult: [1, 2]\n"
                           "  num_res_blocks: 1\n"
                           "  attention_resolutions: [4]\n"
                           "  norm_groups: 4\n";

static ddpm_model *network(ddpm_backend *be, int precision)
{
    ddpm_config cfg;
    ddpm_model *m;
    assert_ok(ddpm_config_parse(yaml, sizeof yaml - 1, "network", NULL, 0, &cfg));
    assert_ok(ddpm_model_create(be, &cfg.model, &m));
    assert_ok(ddpm_model_set_precision(m, precision, "precision"));
    assert_ok(ddpm_model_reserve(m, BATCH, true));
    ddpm_config_free(&cfg);
    return m;
}

static void *memory(ddpm_backend *be, size_t bytes)
{
    void *p;
    assert_ok(ddpm_backend_alloc(be, bytes, &p));
    return p;
}

/* Forward and backward on zeros. */
static void pass(ddpm_backend *be, int precision)
{
    ddpm_model *m = network(be, precision);
    const size_t n = (size_t)ddpm_model_arena_count(m);
    void *const block[] = {memory(be, n * 4), memory(be, n * 4), memory(be, n * 2), memory(be, BATCH * 8 * 8 * 3 * 4),
                           memory(be, BATCH * 8 * 8 * 3 * 4), memory(be, BATCH * 4)};
    ddpm_tensor x = ddpm_tensor_4d(block[3], BATCH, 8, 8, 3), out = ddpm_tensor_4d(block[4], BATCH, 8, 8, 3);
    x.dtype = out.dtype = ddpm_model_activation(m);
    ddpm_tensor t = ddpm_tensor_1d(block[5], BATCH);
    ddpm_model_bind(m, block[0], block[1]);
    ddpm_model_bind_half(m, block[2]);
    const ddpm_forward_args a = {.x = &x, .t = &t, .out = &out};
    assert_ok(ddpm_model_forward(m, &a));
    assert_ok(ddpm_model_backward(m, &a, &out, NULL));
    assert_ok(ddpm_backend_sync(be));
    ddpm_model_free(m);
    for (size_t i = 0; i < sizeof block / sizeof *block; i++)
        ddpm_backend_release(be, block[i]);
}

static int64_t planned(int precision, size_t *scratch)
{
    ddpm_backend *be;
    int64_t kernels = 0;
    assert_ok(planning_create(&(struct planning_options){.name = "a test"}, &be));
    pass(be, precision);
    for (int i = 0; i < planning_call_count(be); i++) {
        const struct planning_call *c = planning_call_at(be, i);
        struct planning_own own;
        planning_own_kernels(c, &own);
        assert_true(own.is_known);
        if (own.launches < 1) fail_msg("%s: no kernel", c->text);
        kernels += c->calls * own.launches;
    }
    *scratch = ddpm_backend_scratch_bytes(be);
    ddpm_backend_free(be);
    return kernels;
}

static void test_a_pass_has_as_many_kernels(void **state)
{
    (void)state;
    static const int precisions[] = {DDPM_PRECISION_FP32, DDPM_PRECISION_BF16};
    for (int i = 0; i < 2; i++) {
        size_t scratch;
        ddpm_backend *be;
        const int64_t expected = planned(precisions[i], &scratch);
        assert_ok(ddpm_backend_create("cuda", 1, &be));
        const long before = cuda_on_cpu_kernels();
        pass(be, precisions[i]);
        assert_int_equal(cuda_on_cpu_kernels() - before, expected);
        assert_int_equal(ddpm_backend_scratch_bytes(be), scratch);
        ddpm_backend_free(be);
    }
}

/* By hand: what a library's product leaves is one kernel for all that is added, and two for sums (of parts, then of those). */
static void test_what_a_product_leaves(void **state)
{
    (void)state;
    static float data[4096];
    ddpm_backend *be;
    struct planning_own own;
    ddpm_tensor x = ddpm_tensor_4d(data, 1, 4, 4, 8), w = ddpm_tensor_4d(data, 8, 1, 1, 8), bias = ddpm_tensor_1d(data, 8);
    ddpm_tensor dw = w, db = bias, y = x;
    assert_ok(planning_create(&(struct planning_options){.name = "a test"}, &be));
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->conv2d(be, &(struct conv2d_args){.x = &x, .w = &w, .stride = 1, .y = &y}));
    assert_ok(ops->conv2d(be, &(struct conv2d_args){.x = &x, .w = &w, .bias = &bias, .residual = &y, .stride = 1, .y = &y}));
    assert_ok(ops->conv2d_bwd_filter(be, &(struct conv2d_bwd_filter_args){.x = &x, .dy = &y, .dw = &dw, .stride = 1}));
    assert_ok(ops->conv2d_bwd_filter(be, &(struct conv2d_bwd_filter_args){.x = &x, .dy = &y, .dw = &dw, .db = &db, .stride = 1}));
    static const int left[] = {0, 1, 0, 2};
    for (int i = 0; i < 4; i++) {
        planning_own_kernels(planning_call_at(be, i), &own);
        assert_int_equal(own.left, left[i]);
    }
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pass_has_as_many_kernels),
        cmocka_unit_test(test_what_a_product_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

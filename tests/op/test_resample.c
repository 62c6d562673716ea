/* test_resample.c - upsample2, avgpool2 and their gradients, element by element. */
#include "op_support.h"

struct shape {
    int64_t n, h, w, c; /* of the smaller image */
};

static const struct shape shapes[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 4, 2, 33}, {3, 9, 6, 16}};

static int64_t large_at(struct shape s, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return ((n * 2 * s.h + h) * 2 * s.w + w) * s.c + c;
}

/* What both forward ops and both gradients do, by their definitions; exact but for the sum of four (1e-7). */
static void check(ddpm_backend *be, struct shape s, bool accumulate)
{
    const int64_t small = s.n * s.h * s.w * s.c;
    float *x = uniforms(small, 1, -1, 1), *z = uniforms(4 * small, 2, -1, 1);
    float *up = zeros(4 * small), *pooled = zeros(small);
    float *up_bwd = uniforms(small, 3, -1, 1), *pool_bwd = uniforms(4 * small, 4, -1, 1);
    double *want_up = zeros64(4 * small), *want_pooled = zeros64(small);
    double *want_up_bwd = zeros64(small), *want_pool_bwd = zeros64(4 * small);
    for (int64_t i = 0; i < small; i++) {
        const int64_t c = i % s.c, w = i / s.c % s.w, h = i / s.c / s.w % s.h, n = i / s.c / s.w / s.h;
        want_up_bwd[i] = accumulate ? (double)up_bwd[i] : 0;
        for (int k = 0; k < 4; k++) {
            const int64_t at = large_at(s, n, 2 * h + k / 2, 2 * w + k % 2, c);
            want_up[at] = (double)x[i];
            want_pool_bwd[at] = (double)x[i] / 4 + (accumulate ? (double)pool_bwd[at] : 0);
            want_pooled[i] += (double)z[at] / 4;
            want_up_bwd[i] += (double)z[at];
        }
    }
    ddpm_tensor tx = ddpm_tensor_4d(x, s.n, s.h, s.w, s.c), tz = ddpm_tensor_4d(z, s.n, 2 * s.h, 2 * s.w, s.c);
    ddpm_tensor tup = ddpm_tensor_4d(up, s.n, 2 * s.h, 2 * s.w, s.c);
    ddpm_tensor tpooled = ddpm_tensor_4d(pooled, s.n, s.h, s.w, s.c);
    ddpm_tensor tup_bwd = ddpm_tensor_4d(up_bwd, s.n, s.h, s.w, s.c);
    ddpm_tensor tpool_bwd = ddpm_tensor_4d(pool_bwd, s.n, 2 * s.h, 2 * s.w, s.c);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->upsample2(be, &(struct upsample2_args){.x = &tx, .y = &tup}));
    assert_ok(ops->upsample2_bwd(be, &(struct upsample2_bwd_args){&tz, accumulate, &tup_bwd}));
    assert_ok(ops->avgpool2(be, &(struct avgpool2_args){.x = &tz, .y = &tpooled}));
    assert_ok(ops->avgpool2_bwd(be, &(struct avgpool2_bwd_args){&tx, accumulate, &tpool_bwd}));
    assert_close(up, want_up, 4 * small, 0);
    assert_close(pooled, want_pooled, small, 2e-7);
    assert_close(up_bwd, want_up_bwd, small, 2e-7);
    assert_close(pool_bwd, want_pool_bwd, 4 * small, 1e-7);
}

static void test_values(void **state)
{
    (void)state;
    for (int t = 0; t < THREAD_COUNTS; t++) {
        ddpm_backend *be = cpu_with(thread_counts[t]);
        for (int k = 0; k < 4; k++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                check(be, shapes[k], accumulate);
        ddpm_backend_free(be);
    }
}

static void test_fails(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    float *x = zeros(400);
    ddpm_tensor odd = ddpm_tensor_4d(x, 1, 5, 4, 3), small = ddpm_tensor_4d(x, 1, 2, 2, 3);
    ddpm_tensor wrong = ddpm_tensor_4d(x, 1, 4, 4, 5);
    const struct ops *ops = backend_ops(be);
    assert_status(ops->avgpool2(be, &(struct avgpool2_args){.x = &odd, .y = &small}), DDPM_SHAPE);
    assert_message("avgpool2: x is 5 by 4, both must be even");
    assert_status(ops->avgpool2_bwd(be, &(struct avgpool2_bwd_args){&small, false, &wrong}), DDPM_SHAPE);
    assert_status(ops->upsample2(be, &(struct upsample2_args){.x = &small, .y = &odd}), DDPM_SHAPE);
    assert_status(ops->upsample2_bwd(be, &(struct upsample2_bwd_args){NULL, false, &small}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_values), OP_TEST(test_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

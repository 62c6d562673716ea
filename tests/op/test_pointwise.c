/* test_pointwise.c - silu, add, to_u8: values, gradient, allowed aliasing, threads, shapes. */
#include "op_support.h"

static double exact_silu(double x)
{
    return x / (1 + exp(-x));
}

/* 1e-6 of the largest: a few roundings. Sizes that leave a rest behind every vector and every run. */
static void test_silu(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 5, 16, 1023, 16384 * 2 + 3};
    ddpm_backend *be = cpu_with(2);
    for (int k = 0; k < 5; k++) {
        const int64_t n = sizes[k];
        float *x = uniforms(n, 1, -8, 8), *dy = uniforms(n, 2, -1, 1), *y = zeros(n), *dx = zeros(n);
        double *want = zeros64(n), *want_dx = zeros64(n);
        for (int64_t i = 0; i < n; i++) {
            const double v = (double)x[i], h = 1e-5;
            want[i] = exact_silu(v);
            want_dx[i] = (double)dy[i] * (exact_silu(v + h) - exact_silu(v - h)) / (2 * h);
        }
        ddpm_tensor tx = ddpm_tensor_1d(x, n), ty = ddpm_tensor_1d(y, n);
        ddpm_tensor tdy = ddpm_tensor_1d(dy, n), tdx = ddpm_tensor_1d(dx, n);
        assert_ok(backend_ops(be)->silu(be, &(struct silu_args){.x = &tx, .y = &ty}));
        assert_close(y, want, n, 1e-6);
        assert_ok(backend_ops(be)->silu_bwd(be, &(struct silu_bwd_args){.x = &tx, .dy = &tdy, .dx = &tdx}));
        assert_close(dx, want_dx, n, 1e-6);

        /* accumulate; dx = dy; y = x */
        const float *once = copy_of(dx, n);
        assert_ok(backend_ops(be)->silu_bwd(
            be, &(struct silu_bwd_args){.x = &tx, .dy = &tdy, .accumulate = true, .dx = &tdx}));
        for (int64_t i = 0; i < n; i++)
            want_dx[i] *= 2;
        assert_close(dx, want_dx, n, 1e-6);
        assert_ok(backend_ops(be)->silu_bwd(be, &(struct silu_bwd_args){.x = &tx, .dy = &tdy, .dx = &tdy}));
        assert_bits(dy, once, n);
        assert_ok(backend_ops(be)->silu(be, &(struct silu_args){.x = &tx, .y = &tx}));
        assert_bits(x, y, n);
    }
    ddpm_backend_free(be);
}

static void test_add(void **state)
{
    (void)state;
    const int64_t n = 40000;
    ddpm_backend *be = cpu_with(2);
    float *a = uniforms(n, 1, -8, 8), *b = uniforms(n, 2, -1, 1), *sum = zeros(n);
    for (int64_t i = 0; i < n; i++)
        sum[i] = a[i] + b[i];
    ddpm_tensor ta = ddpm_tensor_4d(a, 4, 10, 10, 100), tb = ddpm_tensor_4d(b, 4, 10, 10, 100);
    assert_ok(backend_ops(be)->add(be, &(struct add_args){.a = &ta, .b = &tb, .y = &tb}));
    assert_bits(b, sum, n);
    tb = ddpm_tensor_4d(b, 4, 10, 100, 10);
    assert_status(backend_ops(be)->add(be, &(struct add_args){.a = &ta, .b = &tb, .y = &tb}), DDPM_SHAPE);
    assert_message("add: b is [4,10,100,10], expected [4,10,10,100]");
    assert_status(backend_ops(be)->add(be, &(struct add_args){.a = &ta, .b = NULL, .y = &ta}), DDPM_SHAPE);
    ddpm_tensor part = ddpm_tensor_slice(&ta, 0, 50);
    assert_status(backend_ops(be)->silu(be, &(struct silu_args){.x = &part, .y = &part}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

/* (x + 1) * 127.5 clamped, then truncated: guided-diffusion's own line. */
static void test_to_u8(void **state)
{
    (void)state;
    const float x[] = {-1, 1, 0, -2, 2, NAN, INFINITY, -INFINITY, 0.00392157f, -0.999f, 0.9999f, -0.0f};
    const uint8_t want[] = {0, 255, 127, 0, 255, 0, 255, 0, 128, 0, 254, 127};
    uint8_t y[12];
    ddpm_backend *be = cpu_with(1);
    ddpm_tensor tx = ddpm_tensor_1d((float *)x, 12), ty = ddpm_tensor_1d(y, 12);
    assert_status(backend_ops(be)->to_u8(be, &(struct to_u8_args){.x = &tx, .y = &ty}), DDPM_SHAPE); /* f32 */
    ty.dtype = DDPM_U8;
    assert_ok(backend_ops(be)->to_u8(be, &(struct to_u8_args){.x = &tx, .y = &ty}));
    assert_memory_equal(y, want, 12);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_silu), OP_TEST(test_add), OP_TEST(test_to_u8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

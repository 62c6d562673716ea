/* test_sums.c - sums per image and channel that a convolution's engine leaves for the GroupNorm behind it: with cuDNN's stand-in
 * playing 9.26, which has such engines, and 9.19, which has none. */
#include "sums_support.h"

/* 82944 bytes of y an image: more than GroupNorm holds */
enum { N = 2, SIDE = 36, C = 8, K = 32, GROUPS = 4, PIXELS = SIDE * SIDE };

/* 3x3 from bf16, with bias, embedding or residual, and room for sums. */
struct call {
    ddpm_tensor x, w, bias, emb, residual, y, sum, square;
    bool has_sums;
    struct conv2d_args args;
};

static void make_call(ddpm_backend *be, struct call *c, bool has_emb)
{
    c->x = ddpm_tensor_4d(upload_half(be, N * PIXELS * C, 1), N, SIDE, SIDE, C);
    c->w = ddpm_tensor_4d(upload_half(be, K * 9 * C, 2), K, 3, 3, C);
    c->residual = ddpm_tensor_4d(upload_half(be, N * PIXELS * K, 3), N, SIDE, SIDE, K);
    c->y = ddpm_tensor_4d(taken(be, N * PIXELS * K * 2), N, SIDE, SIDE, K);
    c->x.dtype = c->w.dtype = c->residual.dtype = c->y.dtype = DDPM_BF16;
    float *bias = numbers(K, 4), *emb = numbers(N * K, 5);
    c->bias = ddpm_tensor_1d(upload(be, bias, K * sizeof *bias), K);
    c->emb = ddpm_tensor_2d(upload(be, emb, N * K * sizeof *emb), N, K);
    c->sum = ddpm_tensor_2d(upload_nan(be, N * K), N, K); /* what is in the room does not count */
    c->square = ddpm_tensor_2d(upload_nan(be, N * K), N, K);
    free(bias);
    free(emb);
    c->has_sums = false;
    c->args = (struct conv2d_args){.x = &c->x, .w = &c->w, .bias = &c->bias, .emb = has_emb ? &c->emb : NULL,
                                   .residual = has_emb ? NULL : &c->residual, .stride = 1, .pad_top = 1, .pad_left = 1,
                                   .pad_bottom = 1, .pad_right = 1, .y = &c->y, .sum = &c->sum, .square = &c->square,
                                   .has_sums = &c->has_sums};
}

static void release_call(ddpm_backend *be, struct call *c)
{
    ddpm_tensor *all[] = {&c->x, &c->w, &c->bias, &c->emb, &c->residual, &c->y, &c->sum, &c->square};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ddpm_backend_release(be, all[i]->data);
}

static void check_sums(ddpm_backend *be, const struct call *c)
{
    double *y = stored(be, &c->y);
    float *sum = fetch(be, c->sum.data, N * K), *square = fetch(be, c->square.data, N * K);
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            double s = 0, q = 0, size = 0;
            for (int64_t p = 0; p < PIXELS; p++) {
                const double v = y[(n * PIXELS + p) * K + k];
                s += v;
                q += v * v;
                size += fabs(v);
            }
            assert_near((double)sum[n * K + k], s, 1e-5 * size); /* f32 sums of 1296 terms one after another: 2e-6 as a rule */
            assert_near((double)square[n * K + k], q, 1e-5 * q);
        }
    free(y);
    free(sum);
    free(square);
}

/* GroupNorm of the call's y, with its sums or without; the statistics. */
static float *norm_stats(ddpm_backend *be, const struct call *c, bool from_sums, long *kernels)
{
    float ones[K];
    for (int i = 0; i < K; i++)
        ones[i] = 1;
    ddpm_tensor gamma = ddpm_tensor_1d(upload(be, ones, sizeof ones), K), beta = ddpm_tensor_1d(upload(be, ones, sizeof ones), K);
    ddpm_tensor stats = {.data = taken(be, N * GROUPS * 2 * sizeof(float)), .rank = 3, .dim = {N, GROUPS, 2}, .stride = {2 * GROUPS, 2, 1}};
    ddpm_tensor y = c->y;
    y.data = taken(be, N * PIXELS * K * 2);
    const long before = cuda_on_cpu_kernels();
    assert_ok(backend_ops(be)->groupnorm(be, &(struct groupnorm_args){.x1 = &c->y, .gamma = &gamma, .beta = &beta,
                                                                      .sum1 = from_sums ? &c->sum : NULL,
                                                                      .square1 = from_sums ? &c->square : NULL,
                                                                      .groups = GROUPS, .eps = 1e-6f, .stats = &stats, .y = &y}));
    float *out = fetch(be, stats.data, N * GROUPS * 2);
    *kernels = cuda_on_cpu_kernels() - before;
    void *all[] = {gamma.data, beta.data, stats.data, y.data};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ddpm_backend_release(be, all[i]);
    return out;
}

static void check_norm(ddpm_backend *be, const struct call *c)
{
    long own_kernels, kernels;
    float *own = norm_stats(be, c, false, &own_kernels), *given = norm_stats(be, c, true, &kernels);
    assert_int_equal(own_kernels, 3);
    assert_int_equal(kernels, 2); /* x is not read for its statistics */
    for (int i = 0; i < N * GROUPS * 2; i++)
        assert_near((double)given[i], (double)own[i], 1e-5 * (1 + fabs((double)own[i])));
    free(own);
    free(given);
}

/* Bias and embedding, or bias and residual. */
static void newer_engines_leave_sums(void **state)
{
    (void)state;
    for (int has_emb = 0; has_emb < 2; has_emb++) {
        ddpm_backend *be = backend_with(92600, false);
        struct call c;
        make_call(be, &c, has_emb);
        for (int again = 0; again < 2; again++) { /* what the room held does not count the second time either */
            c.has_sums = false;
            assert_ok(backend_ops(be)->conv2d(be, &c.args));
            assert_true(c.has_sums);
            check_sums(be, &c);
        }
        check_norm(be, &c);
        release_call(be, &c);
        ddpm_backend_free(be);
        assert_int_equal(cuda_on_cpu_live(), 0);
    }
}

/* The order of such sums varies, and older versions have no engine for them: the product alone, then. */
static void others_leave_none(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        ddpm_backend *be = backend_with(i ? 91900 : 92600, !i);
        struct call c;
        make_call(be, &c, true);
        assert_ok(backend_ops(be)->conv2d(be, &c.args));
        float *sum = fetch(be, c.sum.data, N * K);
        assert_false(c.has_sums);
        assert_true(isnan(sum[0])); /* untouched */
        free(sum);
        release_call(be, &c);
        ddpm_backend_free(be);
    }
}

int main(void)
{
    setenv("DDPM_CACHE", "", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(newer_engines_leave_sums, sums_begin),
        cmocka_unit_test_setup(others_leave_none, sums_begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

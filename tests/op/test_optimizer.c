/* test_optimizer.c - sum_squares, and AdamW with clip and EMAs over twenty steps against the rule in float64. */
#include "op_support.h"

static void test_sum_squares(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 17, 65536, 65537, 300001};
    for (int k = 0; k < 5; k++) {
        const int64_t n = sizes[k];
        float *x = uniforms(n, 1, -3, 3);
        double want = 0, first = 0;
        for (int64_t i = 0; i < n; i++)
            want += (double)x[i] * (double)x[i];
        for (int t = 0; t < THREAD_COUNTS; t++) {
            ddpm_backend *be = cpu_with(thread_counts[t]);
            ddpm_tensor tx = ddpm_tensor_1d(x, n);
            double sum = -1;
            assert_ok(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &tx, .sum = &sum}));
            assert_true(fabs(sum / want - 1) < 1e-12);
            if (t == 0) first = sum;
            assert_memory_equal(&sum, &first, sizeof sum);
            ddpm_backend_free(be);
        }
    }
    /* far from float's range: 1e30^2 does not overflow; NaN and infinity come through */
    float x[] = {1e30f, 1, INFINITY};
    double sum;
    ddpm_backend *be = cpu_with(1);
    ddpm_tensor two = ddpm_tensor_1d(x, 2), three = ddpm_tensor_1d(x, 3), table = ddpm_tensor_2d(x, 1, 3);
    assert_ok(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &two, .sum = &sum}));
    assert_true(fabs(sum / 1e60 - 1) < 1e-6);
    assert_ok(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &three, .sum = &sum}));
    assert_true(isinf(sum));
    x[2] = NAN;
    assert_ok(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &three, .sum = &sum}));
    assert_true(isnan(sum));
    assert_status(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &table, .sum = &sum}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

struct run {
    int64_t n;
    int n_ema;
    float weight_decay, clip_norm;
    float *p, *g, *m, *v, *ema[OPS_EMA_MAX];
    uint16_t *half; /* or NULL */
};

static const float decays[OPS_EMA_MAX] = {0.999f, 0.9f, 0.9999f, 0.5f};
static const float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;

static struct run make(int64_t n, int n_ema, float weight_decay, float clip_norm)
{
    struct run r = {.n = n, .n_ema = n_ema, .weight_decay = weight_decay, .clip_norm = clip_norm};
    r.p = uniforms(n, 1, -1, 1);
    r.g = zeros(n);
    r.m = zeros(n);
    r.v = zeros(n);
    for (int k = 0; k < OPS_EMA_MAX; k++)
        r.ema[k] = copy_of(r.p, n);
    return r;
}

static float gradient(int64_t i, int step)
{
    return 4 * philox_uniform(philox_draw(3, PHILOX_TEST, (uint32_t)step, 0, (uint32_t)i).v[0]) - 1;
}

static float rate(int step)
{
    return 1e-3f * (float)step;
}

/* One update; sum as the op gives it, or `forced` where that is not 0. */
static void update(ddpm_backend *be, const struct run *r, int step, double forced)
{
    struct step_state st = {.lr = rate(step),
                            .bias1 = (float)(1 - pow((double)beta1, step)),
                            .bias2 = (float)(1 - pow((double)beta2, step))};
    memcpy(st.ema_decay, decays, sizeof decays);
    ddpm_tensor p = ddpm_tensor_1d(r->p, r->n), g = ddpm_tensor_1d(r->g, r->n), m = ddpm_tensor_1d(r->m, r->n);
    ddpm_tensor v = ddpm_tensor_1d(r->v, r->n), half = ddpm_tensor_1d(r->half, r->n), ema[OPS_EMA_MAX];
    half.dtype = DDPM_BF16;
    struct adamw_args a = {.p = &p,
                           .g = &g,
                           .m = &m,
                           .v = &v,
                           .n_ema = r->n_ema,
                           .beta1 = beta1,
                           .beta2 = beta2,
                           .eps = eps,
                           .weight_decay = r->weight_decay,
                           .clip_norm = r->clip_norm,
                           .state = &st,
                           .half = r->half ? &half : NULL};
    for (int k = 0; k < r->n_ema; k++) {
        ema[k] = ddpm_tensor_1d(r->ema[k], r->n);
        a.ema[k] = &ema[k];
    }
    double sum;
    for (int64_t i = 0; i < r->n; i++)
        r->g[i] = gradient(i, step);
    assert_ok(backend_ops(be)->sum_squares(be, &(struct sum_squares_args){.x = &g, .sum = &sum}));
    if (forced != 0) sum = forced;
    a.sum = &sum;
    assert_ok(backend_ops(be)->adamw(be, &a));
}

/* PyTorch's rule in double: clip_grad_norm_, decoupled decay, bias-corrected moments, then the averages. */
struct reference {
    double *p, *m, *v, *ema[OPS_EMA_MAX];
};

static void reference_update(const struct run *r, struct reference *f, int step)
{
    double sum = 0;
    for (int64_t i = 0; i < r->n; i++)
        sum += pow((double)gradient(i, step), 2);
    const double norm = sqrt(sum), lr = (double)rate(step), b1 = (double)beta1, b2 = (double)beta2;
    const double clip = r->clip_norm > 0 ? fmin(1, (double)r->clip_norm / (norm + 1e-6)) : 1;
    for (int64_t i = 0; i < r->n; i++) {
        const double g = clip * (double)gradient(i, step);
        f->p[i] *= 1 - lr * (double)r->weight_decay;
        f->m[i] = b1 * f->m[i] + (1 - b1) * g;
        f->v[i] = b2 * f->v[i] + (1 - b2) * g * g;
        const double denominator = sqrt(f->v[i]) / sqrt(1 - pow(b2, step)) + (double)eps;
        f->p[i] -= lr / (1 - pow(b1, step)) * f->m[i] / denominator;
        for (int k = 0; k < r->n_ema; k++)
            f->ema[k][i] = (double)decays[k] * f->ema[k][i] + (1 - (double)decays[k]) * f->p[i];
    }
}

/* Twenty steps of float32 roundings: 2e-6 of the largest value. */
static void test_adamw(void **state)
{
    (void)state;
    for (int n_ema = 0; n_ema <= OPS_EMA_MAX; n_ema++) {
        const struct run r = make(20011, n_ema, n_ema % 2 ? 0.1f : 0, n_ema == 2 ? 0 : 50);
        struct reference f = {zeros64(r.n), zeros64(r.n), zeros64(r.n), {NULL}};
        for (int64_t i = 0; i < r.n; i++)
            f.p[i] = (double)r.p[i];
        for (int k = 0; k < n_ema; k++) {
            f.ema[k] = zeros64(r.n);
            memcpy(f.ema[k], f.p, (size_t)r.n * sizeof *f.p);
        }
        ddpm_backend *be = cpu_with(2);
        for (int step = 1; step <= 20; step++) {
            update(be, &r, step, 0);
            reference_update(&r, &f, step);
        }
        ddpm_backend_free(be);
        assert_close(r.p, f.p, r.n, 2e-6);
        assert_close(r.m, f.m, r.n, 2e-6);
        assert_close(r.v, f.v, r.n, 2e-6);
        for (int k = 0; k < n_ema; k++)
            assert_close(r.ema[k], f.ema[k], r.n, 2e-6);
        for (int64_t i = 0; i < r.n; i++)
            assert_true(r.g[i] == 0);
    }
}

/* A norm that is not finite skips the step: only the gradient is cleared. */
static void test_skip(void **state)
{
    (void)state;
    const double bad[] = {INFINITY, NAN};
    for (int k = 0; k < 2; k++) {
        const struct run r = make(20011, 2, 0.1f, 1), before = make(20011, 2, 0.1f, 1);
        ddpm_backend *be = cpu_with(2);
        update(be, &r, 1, bad[k]);
        ddpm_backend_free(be);
        assert_bits(r.p, before.p, r.n);
        assert_bits(r.m, before.m, r.n);
        assert_bits(r.v, before.v, r.n);
        assert_bits(r.ema[0], before.ema[0], r.n);
        assert_bits(r.ema[1], before.ema[1], r.n);
        assert_bits(r.g, before.g, r.n); /* zeros */
    }
}

static float of_half(uint32_t half)
{
    const uint32_t bits = half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearer of the two bf16 around x, the even one where both are as near. */
static uint32_t nearest_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t low = bits >> 16, high = low + 1;
    const double below = fabs((double)x - (double)of_half(low)), above = fabs((double)of_half(high) - (double)x);
    return below < above || (below == above && low % 2 == 0) ? low : high;
}

/* bf16 weights: p of the same step, rounded, with any number of threads. */
static void test_half(void **state)
{
    (void)state;
    for (int t = 0; t < THREAD_COUNTS; t++) {
        struct run r = make(20011, 1, 0.1f, 1);
        r.half = take((size_t)(r.n + 1) * sizeof *r.half);
        r.half[r.n] = 42;
        ddpm_backend *be = cpu_with(thread_counts[t]);
        update(be, &r, 1, 0);
        ddpm_backend_free(be);
        for (int64_t i = 0; i < r.n; i++)
            assert_int_equal(r.half[i], nearest_half(r.p[i]));
        assert_int_equal(r.half[r.n], 42);
    }
}

/* Ties, carries, the ends of the range, and what is no number, where the step is skipped: p as it is, rounded. */
static void test_half_values(void **state)
{
    (void)state;
    const uint32_t cases[][2] = {{0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80},
                                 {0xbfff8000, 0xc000}, {0x00008000, 0x0000}, {0x00018000, 0x0002}, {0x80000001, 0x8000},
                                 {0x007fffff, 0x0080}, {0x7f7f7fff, 0x7f7f}, {0x7f7fffff, 0x7f80}, {0xff800000, 0xff80},
                                 {0x7f800001, 0x7fff}, {0xffffffff, 0x7fff}, {0x7fc00000, 0x7fff}};
    enum { CASES = sizeof cases / sizeof *cases };
    struct run r = make(CASES, 0, 0.1f, 1);
    r.half = take(CASES * sizeof *r.half);
    for (int i = 0; i < CASES; i++)
        memcpy(&r.p[i], &cases[i][0], sizeof(float));
    ddpm_backend *be = cpu_with(1);
    update(be, &r, 1, INFINITY);
    ddpm_backend_free(be);
    for (int i = 0; i < CASES; i++) {
        assert_int_equal(r.half[i], cases[i][1]);
        assert_memory_equal(&r.p[i], &cases[i][0], sizeof(float));
    }
}

static void test_threads(void **state)
{
    (void)state;
    struct run one = make(50021, 4, 0.1f, 1);
    for (int t = 0; t < THREAD_COUNTS; t++) {
        const struct run r = make(50021, 4, 0.1f, 1);
        ddpm_backend *be = cpu_with(thread_counts[t]);
        for (int step = 1; step <= 3; step++)
            update(be, &r, step, 0);
        ddpm_backend_free(be);
        if (t == 0) one = r;
        assert_bits(r.p, one.p, r.n);
        assert_bits(r.v, one.v, r.n);
        assert_bits(r.ema[3], one.ema[3], r.n);
    }
}

static void test_fails(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    float x[40] = {0};
    double sum = 1;
    const struct step_state st = {.lr = 1, .bias1 = 1, .bias2 = 1};
    ddpm_tensor p = ddpm_tensor_1d(x, 10), g = ddpm_tensor_1d(x + 10, 10), m = ddpm_tensor_1d(x + 20, 10);
    ddpm_tensor v = ddpm_tensor_1d(x + 30, 9);
    struct adamw_args a = {.p = &p, .g = &g, .m = &m, .v = &v, .sum = &sum, .state = &st};
    assert_status(backend_ops(be)->adamw(be, &a), DDPM_SHAPE);
    assert_message("adamw: v is [9], expected [10]");
    v.dim[0] = 10;
    a.n_ema = 1;
    assert_status(backend_ops(be)->adamw(be, &a), DDPM_SHAPE);
    assert_message("adamw: ema is missing");
    a.n_ema = OPS_EMA_MAX + 1;
    assert_status(backend_ops(be)->adamw(be, &a), DDPM_SHAPE);
    a.n_ema = 0;
    a.half = &m; /* not bf16 */
    assert_status(backend_ops(be)->adamw(be, &a), DDPM_SHAPE);
    assert_message("adamw: half is f32, expected bf16");
    a.half = NULL;
    a.sum = NULL;
    assert_status(backend_ops(be)->adamw(be, &a), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_sum_squares), OP_TEST(test_adamw), OP_TEST(test_skip),
                                       OP_TEST(test_half), OP_TEST(test_half_values), OP_TEST(test_threads),
                                       OP_TEST(test_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

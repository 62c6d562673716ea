/* test_noise.c - gaussian and q_sample: the noise is the keyed function that philox.h and formulas.h define, whatever the
 * batch, the threads and the instruction set; and it is normal. */
#include "op_support.h"

#include "formulas.h"

static const uint64_t seed = 0x123456789abcdef0u;

static float normal_of(uint32_t purpose, uint32_t step, uint64_t index, int64_t element)
{
    return formula_normals(philox_draw(seed, purpose, step, index, (uint32_t)(element / 4))).v[element % 4];
}

static void draw(int threads, uint32_t purpose, uint32_t step, bool use_step, const uint64_t *index, int64_t n,
                 int64_t size, float *x)
{
    ddpm_backend *be = cpu_with(threads);
    const struct step_state st = {.seed = seed, .step = step};
    ddpm_tensor t = ddpm_tensor_2d(x, n, size);
    assert_ok(backend_ops(be)->gaussian(be, &(struct gaussian_args){.state = &st,
                                                                    .index = index,
                                                                    .purpose = purpose,
                                                                    .use_step = use_step,
                                                                    .x = &t}));
    ddpm_backend_free(be);
}

/* The op, vectorised, against one call per element compiled for plain x86-64: same bits. */
static void test_key(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 3, 7, 1027, 9001};
    const uint64_t index[] = {5, 0, ((uint64_t)1 << 40) + 3};
    for (int k = 0; k < 5; k++)
        for (int t = 0; t < THREAD_COUNTS; t++) {
            const int64_t size = sizes[k];
            float *x = zeros(3 * size + 1), *y = zeros(3 * size);
            x[3 * size] = 42; /* nothing is written behind the last element */
            draw(thread_counts[t], PHILOX_EPS, 77, true, index, 3, size, x);
            draw(thread_counts[t], PHILOX_PRIOR, 77, false, index, 3, size, y);
            assert_true(x[3 * size] == 42);
            for (int64_t i = 0; i < 3 * size; i++) {
                const float want = normal_of(PHILOX_EPS, 77, index[i / size], i % size);
                const float want_prior = normal_of(PHILOX_PRIOR, 0, index[i / size], i % size);
                assert_bits(x + i, &want, 1);
                assert_bits(y + i, &want_prior, 1);
            }
        }
}

static double correlation(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / (double)n;
}

/* 2^20 draws. The standard error of the k-th moment is sqrt((E z^2k - (E z^k)^2) / n); limits are five of them. Streams
 * that differ in purpose, step, index or by an element are uncorrelated, to five standard errors 1/sqrt(n). */
static void test_statistics(void **state)
{
    (void)state;
    const int64_t n = 1 << 20;
    const uint64_t one[] = {1}, two[] = {2};
    float *z = zeros(n), *other = zeros(n);
    draw(2, PHILOX_EPS, 1, true, one, 1, n, z);
    double m[5] = {0};
    int64_t beyond3 = 0, beyond4 = 0, below = 0;
    float largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const double v = (double)z[i];
        m[1] += v;
        m[2] += v * v;
        m[3] += v * v * v;
        m[4] += v * v * v * v;
        beyond3 += fabs(v) > 3;
        beyond4 += fabs(v) > 4;
        below += v < 0.5;
        largest = fmaxf(largest, fabsf(z[i]));
    }
    const double e = 5 / sqrt((double)n);
    assert_true(fabs(m[1] / (double)n) < e);
    assert_true(fabs(m[2] / (double)n - 1) < e * sqrt(2));
    assert_true(fabs(m[3] / (double)n) < e * sqrt(15));
    assert_true(fabs(m[4] / (double)n - 3) < e * sqrt(96));
    assert_true(llabs(beyond3 - 2831) < 5 * 54); /* 2 (1 - Phi(3)) = 0.0026998, and 6.334e-5 */
    assert_true(llabs(beyond4 - 66) < 5 * 9);
    assert_true(llabs(below - 725048) < 5 * 473); /* Phi(0.5) = 0.6914625 */
    assert_true(largest > 4 && largest < 5.8f);  /* u >= 2^-24 ends at sqrt(48 ln 2) = 5.77 */

    draw(2, PHILOX_PRIOR, 1, true, one, 1, n, other);
    assert_true(fabs(correlation(z, other, n)) < e);
    draw(2, PHILOX_EPS, 2, true, one, 1, n, other);
    assert_true(fabs(correlation(z, other, n)) < e);
    draw(2, PHILOX_EPS, 1, true, two, 1, n, other);
    assert_true(fabs(correlation(z, other, n)) < e);
    for (int lag = 1; lag <= 5; lag++)
        assert_true(fabs(correlation(z, z + lag, n - lag)) < e);
    for (int64_t i = 0; i < n; i++) /* and so are their squares: independent, not uncorrelated only */
        other[i] = z[i] * z[i] - 1;
    for (int lag = 1; lag <= 3; lag++)
        assert_true(fabs(correlation(other, other + lag, n - lag)) < 2 * e);
}

struct sample {
    int64_t n, h, w, c;
    float *x0;
    uint8_t *x0_u8, *flip;
    int32_t *t;
    float *coef, *xt;
    uint64_t *index;
};

static struct sample sample_of(int64_t n, int64_t h, int64_t w, int64_t c)
{
    const int64_t all = n * h * w * c;
    struct sample s = {n, h, w, c, uniforms(all, 1, -1, 1), take((size_t)all), take((size_t)n),
                       take((size_t)n * sizeof(int32_t)), uniforms(2 * 11, 2, 0.1f, 0.9f), zeros(all), indices(n, 9)};
    for (int64_t i = 0; i < all; i++)
        s.x0_u8[i] = (uint8_t)(i * 37 + 11);
    for (int64_t i = 0; i < n; i++) {
        s.flip[i] = i % 2 == 1;
        s.t[i] = (int32_t)(1 + 7 * i % 10);
    }
    return s;
}

static void run(int threads, const struct sample *s, bool u8, bool flip, const float *eps)
{
    ddpm_backend *be = cpu_with(threads);
    const struct step_state st = {.seed = seed, .step = 5};
    ddpm_tensor x0 = ddpm_tensor_4d(u8 ? (void *)s->x0_u8 : (void *)s->x0, s->n, s->h, s->w, s->c);
    ddpm_tensor e = ddpm_tensor_4d((float *)eps, s->n, s->h, s->w, s->c);
    ddpm_tensor xt = ddpm_tensor_4d(s->xt, s->n, s->h, s->w, s->c);
    if (u8) x0.dtype = DDPM_U8;
    assert_ok(backend_ops(be)->q_sample(be, &(struct q_sample_args){.x0 = &x0,
                                                                    .eps = eps ? &e : NULL,
                                                                    .flip = flip ? s->flip : NULL,
                                                                    .t = s->t,
                                                                    .coef = s->coef,
                                                                    .state = &st,
                                                                    .index = s->index,
                                                                    .purpose = PHILOX_EPS,
                                                                    .use_step = true,
                                                                    .xt = &xt}));
    ddpm_backend_free(be);
}

/* Every source of x0 and eps, mirrored or not, odd sizes, any number of threads: the bits of formula_mix. */
static void test_q_sample(void **state)
{
    (void)state;
    const int64_t shapes[][4] = {{3, 5, 3, 3}, {2, 1, 1, 1}, {2, 40, 33, 7}, {4, 3, 5, 1}};
    for (int k = 0; k < 4; k++)
        for (int variant = 0; variant < 8; variant++) {
            const bool u8 = variant & 1, flip = variant & 2, given = variant & 4;
            const struct sample s = sample_of(shapes[k][0], shapes[k][1], shapes[k][2], shapes[k][3]);
            const int64_t size = s.h * s.w * s.c;
            const float *eps = given ? uniforms(s.n * size, 3, -2, 2) : NULL;
            run(thread_counts[variant % THREAD_COUNTS], &s, u8, flip, eps);
            for (int64_t i = 0; i < s.n * size; i++) {
                const int64_t n = i / size, in = i % size, w = in / s.c % s.w;
                const int64_t from = flip && s.flip[n] ? i + (s.w - 1 - 2 * w) * s.c : i;
                const float x0 = u8 ? (float)(s.x0_u8[from] / 127.5 - 1) : s.x0[from];
                const float z = given ? eps[i] : normal_of(PHILOX_EPS, 5, s.index[n], in);
                const float want = formula_mix(s.coef[2 * s.t[n]], s.coef[2 * s.t[n] + 1], x0, z);
                assert_bits(s.xt + i, &want, 1);
            }
        }
}

/* x_t of a constant image: mean sqrt(abar) x0, variance 1 - abar; five standard errors. */
static void test_moments(void **state)
{
    (void)state;
    struct sample s = sample_of(1, 256, 256, 3);
    const int64_t n = 256 * 256 * 3;
    for (int64_t i = 0; i < n; i++)
        s.x0[i] = 0.5f;
    s.t[0] = 4;
    s.coef[8] = 0.8f;
    s.coef[9] = 0.6f;
    run(2, &s, false, false, NULL);
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
        mean += (double)s.xt[i];
        square += ((double)s.xt[i] - 0.4) * ((double)s.xt[i] - 0.4);
    }
    assert_true(fabs(mean / (double)n - 0.4) < 5 * 0.6 / sqrt((double)n));
    assert_true(fabs(square / (double)n - 0.36) < 5 * 0.36 * sqrt(2 / (double)n));
}

/* A batch of eight is two of four that carry their indices. */
static void test_batch_cut(void **state)
{
    (void)state;
    const struct sample all = sample_of(8, 5, 7, 3);
    const int64_t half = 4 * 5 * 7 * 3;
    run(2, &all, false, true, NULL);
    for (int k = 0; k < 2; k++) {
        struct sample s = sample_of(4, 5, 7, 3);
        s.x0 = all.x0 + k * half;
        s.t = all.t + k * 4;
        s.flip = all.flip + k * 4;
        s.index = all.index + k * 4;
        run(2, &s, false, true, NULL);
        assert_bits(s.xt, all.xt + k * half, half);
    }
}

static void test_fails(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct sample s = sample_of(2, 3, 4, 3);
    ddpm_tensor x0 = ddpm_tensor_4d(s.x0, 2, 3, 4, 3), xt = ddpm_tensor_4d(s.xt, 2, 3, 4, 3);
    const struct step_state st = {.seed = 1};
    struct q_sample_args a = {.x0 = &x0, .t = s.t, .coef = s.coef, .state = &st, .index = s.index, .xt = &xt};
    assert_ok(backend_ops(be)->q_sample(be, &a));
    a.index = NULL;
    assert_status(backend_ops(be)->q_sample(be, &a), DDPM_SHAPE);
    a.index = s.index;
    x0.dtype = DDPM_I32;
    assert_status(backend_ops(be)->q_sample(be, &a), DDPM_SHAPE);
    x0.dtype = DDPM_F32;
    xt.dim[2] = 3;
    assert_status(backend_ops(be)->q_sample(be, &a), DDPM_SHAPE);
    assert_message("q_sample: xt is [2,3,3,3], expected [2,3,4,3]");
    assert_status(backend_ops(be)->gaussian(be, &(struct gaussian_args){.state = &st, .x = &x0}), DDPM_SHAPE);
    assert_status(backend_ops(be)->gaussian(be, &(struct gaussian_args){.state = &st, .index = s.index}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_key),     OP_TEST(test_statistics), OP_TEST(test_q_sample),
                                       OP_TEST(test_moments), OP_TEST(test_batch_cut),  OP_TEST(test_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

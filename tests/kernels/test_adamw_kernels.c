/* test_adamw_kernels.c - adamw.cu where the tests of ops do not go: sizes around packs, parts and chunks, unaligned
 * arenas, bf16 weights, state that changes between two launches, and the CPU's numbers to the bit. */
#include "op_support.h"

#include "formulas.h"

static ddpm_backend *cpu, *cuda;

static int create_backends(void **state)
{
    (void)state;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    assert_ok(ddpm_backend_create("cuda", 1, &cuda));
    return 0;
}

static int free_backends(void **state)
{
    (void)state;
    ddpm_backend_free(cpu);
    ddpm_backend_free(cuda);
    return 0;
}

/* ---- sum_squares ---- */

static double sum_of(const float *x, int64_t n)
{
    const ddpm_tensor t = ddpm_tensor_1d((void *)x, n);
    double sum = -1;
    assert_ok(backend_ops(cuda)->sum_squares(cuda, &(struct sum_squares_args){.x = &t, .sum = &sum}));
    assert_ok(ddpm_backend_sync(cuda));
    return sum;
}

/* Around a pack, a block's part of 8192, a chunk of 65536; aligned or not. 1e-14: in float64 a thread adds at most 32
 * squares, then come trees, a few parts and chunks. The reference is wider, for one long sum is not as good. */
static void test_sum_squares(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 3, 4, 5, 1023, 8191, 8192, 8193, 65535, 65536, 65537, 200003};
    for (int s = 0; s < 12; s++)
        for (int shift = 0; shift < 3; shift++) { /* 2: a multiple of 8 bytes, not 16 */
            const int64_t n = sizes[s];
            const float *x = uniforms(n + 2, 1, -3, 3) + shift;
            long double want = 0;
            for (int64_t i = 0; i < n; i++)
                want += (long double)x[i] * (long double)x[i];
            const double sum = sum_of(x, n), again = sum_of(x, n);
            assert_near(sum, (double)want, 1e-14 * (double)want);
            assert_memory_equal(&sum, &again, sizeof sum);
        }
}

/* More chunks than the block that adds them has threads: ones, whose sum is exact, and a last element of its own. */
static void test_many_chunks(void **state)
{
    (void)state;
    const int64_t n = 257 * 65536 + 5;
    float *x = zeros(n);
    for (int64_t i = 0; i < n; i += 4096)
        x[i] = 1;
    x[n - 1] = 2;
    assert_true(sum_of(x, n) == (double)((n + 4095) / 4096 + 4));
}

/* ---- adamw ---- */

struct arena {
    int64_t n;
    int n_ema;
    float *p, *g, *m, *v, *ema[OPS_EMA_MAX];
    uint16_t *half;
};

/* `shift` elements away from 16-byte (bf16: 8-byte) addresses; the element behind the last is a guard. */
static struct arena arena_of(int64_t n, int n_ema, int shift)
{
    struct arena a = {.n = n, .n_ema = n_ema};
    a.p = uniforms(n + 4, 1, -1, 1) + shift;
    a.g = uniforms(n + 4, 2, -3, 3) + shift;
    a.m = uniforms(n + 4, 3, -1, 1) + shift;
    a.v = uniforms(n + 4, 4, 0, 1) + shift;
    for (int k = 0; k < n_ema; k++)
        a.ema[k] = uniforms(n + 4, 5 + (uint64_t)k, -1, 1) + shift;
    a.half = (uint16_t *)take((size_t)(n + 4) * sizeof(uint16_t)) + shift;
    a.p[n] = a.g[n] = a.m[n] = a.v[n] = 42;
    a.half[n] = 42;
    return a;
}

static void update(ddpm_backend *be, const struct arena *r, const struct step_state *st, double sum, bool half)
{
    ddpm_tensor p = ddpm_tensor_1d(r->p, r->n), g = ddpm_tensor_1d(r->g, r->n), m = ddpm_tensor_1d(r->m, r->n);
    ddpm_tensor v = ddpm_tensor_1d(r->v, r->n), h = ddpm_tensor_1d(r->half, r->n), ema[OPS_EMA_MAX];
    h.dtype = DDPM_BF16;
    struct adamw_args a = {.p = &p,
                           .g = &g,
                           .m = &m,
                           .v = &v,
                           .n_ema = r->n_ema,
                           .beta1 = 0.9f,
                           .beta2 = 0.999f,
                           .eps = 1e-8f,
                           .weight_decay = 0.1f,
                           .clip_norm = 1,
                           .sum = &sum,
                           .state = st,
                           .half = half ? &h : NULL};
    for (int k = 0; k < r->n_ema; k++) {
        ema[k] = ddpm_tensor_1d(r->ema[k], r->n);
        a.ema[k] = &ema[k];
    }
    assert_ok(backend_ops(be)->adamw(be, &a));
    assert_ok(ddpm_backend_sync(be));
}

static void assert_same(const struct arena *got, const struct arena *want)
{
    const int64_t n = got->n + 1; /* and the guard */
    assert_bits(got->p, want->p, n);
    assert_bits(got->g, want->g, n);
    assert_bits(got->m, want->m, n);
    assert_bits(got->v, want->v, n);
    for (int k = 0; k < got->n_ema; k++)
        assert_bits(got->ema[k], want->ema[k], n);
    assert_memory_equal(got->half, want->half, (size_t)n * sizeof(uint16_t));
}

/* Two steps with other rates and decays, then one that is skipped: the CPU's bits, for every number of averages. */
static void test_adamw(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 3, 4, 5, 1023, 1024, 1027, 4096, 4099, 20011};
    const struct step_state first = {.lr = 1e-3f, .bias1 = 0.1f, .bias2 = 0.001f, .ema_decay = {0.9f, 0.99f, 0.5f, 0}};
    const struct step_state second = {.lr = 2e-3f, .bias1 = 0.19f, .bias2 = 0.002f, .ema_decay = {0.8f, 0.9f, 0.6f, 1}};
    for (int s = 0; s < 10; s++)
        for (int n_ema = 0; n_ema <= OPS_EMA_MAX; n_ema++)
            for (int shift = 0; shift < 2; shift++) {
                const bool half = (n_ema + s) % 2;
                const struct arena got = arena_of(sizes[s], n_ema, shift), want = arena_of(sizes[s], n_ema, shift);
                update(cuda, &got, &first, 123, half);
                update(cpu, &want, &first, 123, half);
                assert_same(&got, &want);
                for (int64_t i = 0; i < sizes[s]; i++)
                    got.g[i] = want.g[i] = 0.25f - (float)(i % 7);
                update(cuda, &got, &second, 0.25, half);
                update(cpu, &want, &second, 0.25, half);
                assert_same(&got, &want);
                got.g[0] = want.g[0] = NAN;
                update(cuda, &got, &first, (double)NAN, half);
                update(cpu, &want, &first, (double)NAN, half);
                assert_same(&got, &want);
                assert_true(got.g[0] == 0);
            }
}

/* Enough parameters for several packs a thread, and the last one cut. */
static void test_many(void **state)
{
    (void)state;
    const struct step_state st = {.lr = 1e-3f, .bias1 = 0.1f, .bias2 = 0.001f, .ema_decay = {0.9f}};
    for (int shift = 0; shift < 2; shift++) {
        const struct arena got = arena_of(300003, 1, shift), want = arena_of(300003, 1, shift);
        update(cuda, &got, &st, 9, true);
        update(cpu, &want, &st, 9, true);
        assert_same(&got, &want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_sum_squares), OP_TEST(test_many_chunks), OP_TEST(test_adamw),
                                       OP_TEST(test_many)};
    return cmocka_run_group_tests(tests, create_backends, free_backends);
}

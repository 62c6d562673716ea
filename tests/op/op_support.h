/* op_support.h - what the tests of ops share: backends, memory that the teardown frees, test data
 * that is the same on every machine, and comparisons that print the worst element. */
#ifndef TESTS_OP_SUPPORT_H
#define TESTS_OP_SUPPORT_H

#include "op_device.h"
#include "support.h"

#include "ops.h"
#include "philox.h"

#include <math.h>

/* f32 sums of up to a few thousand products in another order, of the largest: 3e-7 is what PyTorch
 * reaches, Winograd's F(4x4,3x3) 5e-6; golden/README.md allows 1e-5. */
#define OP_TOLERANCE 1e-5

/* Threads that results must not depend on: one, all, a count that divides nothing. */
static const int thread_counts[] = {1, 2, 3, 7};
enum { THREAD_COUNTS = sizeof thread_counts / sizeof *thread_counts };

static void *kept[4096];
static int kept_count;

/* Zeroed, on a 64-byte boundary; freed by op_teardown. */
static inline void *take(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
    memset(p, 0, bytes);
    assert_true(kept_count < (int)(sizeof kept / sizeof *kept));
    kept[kept_count++] = p;
    return p;
}

static inline int op_teardown(void **state)
{
    (void)state;
    while (kept_count > 0)
        free(kept[--kept_count]);
    return 0;
}

#define OP_TEST(f) cmocka_unit_test_teardown(f, op_teardown)

static inline ddpm_backend *cpu_with(int threads)
{
    ddpm_backend *be = NULL;
    assert_ok(ddpm_backend_create(op_device(), threads, &be));
    ddpm_backend_configure(be, &(ddpm_backend_options){.is_deterministic = true}); /* else a GPU's engines are chosen by time */
    return be;
}

static inline float *zeros(int64_t n)
{
    return take((size_t)n * sizeof(float));
}

/* Uniform in [lo, hi), different for each `stream`. */
static inline float *uniforms(int64_t n, uint64_t stream, float lo, float hi)
{
    float *x = zeros(n);
    for (int64_t i = 0; i < n; i++)
        x[i] = lo +
               (hi - lo) * philox_uniform(philox_draw(7, PHILOX_TEST, 0, stream, (uint32_t)i).v[0]);
    return x;
}

static inline float *copy_of(const float *x, int64_t n)
{
    float *y = zeros(n);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

static inline double *zeros64(int64_t n)
{
    return take((size_t)n * sizeof(double));
}

static inline uint64_t *indices(int64_t n, uint64_t first)
{
    uint64_t *index = take((size_t)n * sizeof *index);
    for (int64_t i = 0; i < n; i++)
        index[i] = first + (uint64_t)i;
    return index;
}

static inline double dot_product(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* max|got - want| <= limit * max|want| */
#define assert_close(got, want, n, limit) close_at(__FILE__, __LINE__, #got, got, want, n, limit)
static inline void close_at(const char *file, int line, const char *what, const float *got,
                            const double *want, int64_t n, double limit)
{
    double largest = 0, worst = -1;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) {
            worst = d;
            at = i;
        }
        largest = fmax(largest, fabs(want[i]));
    }
    if (!(worst <= limit * largest))
        fail_msg("%s:%d: %s[%lld] = %.9g, expected %.9g; error %.3g of the largest, limit %.3g",
                 file, line, what, (long long)at, (double)got[at], want[at], worst / largest,
                 limit);
}

/* Same bits. */
#define assert_bits(a, b, n) bits_at(__FILE__, __LINE__, #a, a, b, n)
static inline void bits_at(const char *file, int line, const char *what, const float *a,
                           const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0)
            fail_msg("%s:%d: %s[%lld] = %.9g, expected the bits of %.9g", file, line, what,
                     (long long)i, (double)a[i], (double)b[i]);
}

#endif

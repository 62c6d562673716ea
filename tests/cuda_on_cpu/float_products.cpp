/* float_products.cpp - four rows by sixteen columns of the result at a time in registers; the rest element by element.
 *
 * No sanitizer looks into the innermost loops, which would be ten times slower: callers copy operands through checked
 * code. AVX2 where the CPU has it: no fused multiply-add, so the bits are the same. */
#include "float_products.h"

namespace cuda_on_cpu {

typedef float floats __attribute__((vector_size(32)));

enum { ROWS = 4, LANES = 8, COLUMNS = 2 * LANES };

#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))

UNCHECKED static inline __attribute__((always_inline)) void tile(int64_t k, const float *a, int64_t lda, const float *b,
                                                                 int64_t ldb, float *c, int64_t ldc)
{
    floats sum[ROWS][2];
    for (int i = 0; i < ROWS; i++)
        __builtin_memcpy(sum[i], c + i * ldc, sizeof sum[i]);
    for (int64_t l = 0; l < k; l++) {
        floats right[2];
        __builtin_memcpy(right, b + l * ldb, sizeof right);
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] += a[i * lda + l] * right[0];
            sum[i][1] += a[i * lda + l] * right[1];
        }
    }
    for (int i = 0; i < ROWS; i++)
        __builtin_memcpy(c + i * ldc, sum[i], sizeof sum[i]);
}

UNCHECKED __attribute__((target("avx2"))) static void tile_avx2(int64_t k, const float *a, int64_t lda, const float *b,
                                                                int64_t ldb, float *c, int64_t ldc)
{
    tile(k, a, lda, b, ldb, c, ldc);
}

UNCHECKED static void tile_plain(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                                 int64_t ldc)
{
    tile(k, a, lda, b, ldb, c, ldc);
}

UNCHECKED static void rest(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                           float *c, int64_t ldc)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++)
            for (int64_t j = 0; j < n; j++)
                c[i * ldc + j] += a[i * lda + l] * b[l * ldb + j];
}

void add_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                 int64_t ldc)
{
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    const int64_t whole_m = m / ROWS * ROWS, whole_n = n / COLUMNS * COLUMNS;
    for (int64_t j = 0; j < whole_n; j += COLUMNS)
        for (int64_t i = 0; i < whole_m; i += ROWS)
            (has_avx2 ? tile_avx2 : tile_plain)(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    rest(whole_m, n - whole_n, k, a, lda, b + whole_n, ldb, c + whole_n, ldc);
    rest(m - whole_m, n, k, a + whole_m * lda, lda, b, ldb, c + whole_m * ldc, ldc);
}

} // namespace cuda_on_cpu

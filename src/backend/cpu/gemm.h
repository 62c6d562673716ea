/* gemm.h - products of matrices on one thread: the core of linear, attention and most convolutions.
 *
 * One micro-kernel per instruction set (AVX-512, AVX2, plain C), chosen once at run time. oneDNN's and OpenBLAS' sgemm pack
 * their operands anew and allocate in every call; the products here are small, many, and share packed operands. */
#ifndef CPU_GEMM_H
#define CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* c[rows, cols] = (accumulate: +=) sum over k of a[i * a_row + k * a_col] * b[k * nr + j]; rows <= mr, cols <= nr; b is one
 * packed panel, zero behind its last column. */
struct gemm_kernel {
    int mr, nr;
    const char *name;
    void (*run)(int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b, float *c, int64_t c_row,
                int rows, int cols, bool accumulate);
};
const struct gemm_kernel *gemm_kernel(void);

/* c[i * c_row + j] = (accumulate: +=) sum over k of a[i * a_row + k * a_col] * b[k * b_row + j * b_col]
 * The order of the sum depends on k alone. packed_b: b is what gemm_pack_b wrote, and its strides are not read. */
struct gemm {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_col;
    const float *b;
    int64_t b_row, b_col;
    float *c;
    int64_t c_row;
    bool accumulate, packed_b;
};

/* Floats of work space one thread needs for any product; 64-byte aligned. */
size_t gemm_work_floats(void);
void gemm_run(const struct gemm *g, float *work);

/* Panels of nr columns, [ceil(n/nr)][k][nr]. */
size_t gemm_packed_floats(int64_t k, int64_t n);
void gemm_pack_b(int64_t k, int64_t n, const float *b, int64_t b_row, int64_t b_col, float *out);

/* The kernels of gemm_avx512.c, gemm_avx2.c and gemm_plain.c; the first two are NULL where this processor has no such
 * instructions. */
const struct gemm_kernel *gemm_kernel_avx512(void);
const struct gemm_kernel *gemm_kernel_avx2(void);
const struct gemm_kernel *gemm_kernel_plain(void);

#endif

/* gemm_plain.c - tiles of 4 x 16 in plain C, for processors without AVX2: the compiler vectorises the inner loop. */
#include "gemm.h"

#define MR 4
#define NR 16

static void tile_run(int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b, float *c, int64_t c_row,
                     int rows, int cols, bool accumulate)
{
    float sum[MR][NR] = {{0}};
    for (int64_t l = 0; l < k; l++)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < NR; j++)
                sum[i][j] += a[i * a_row + l * a_col] * b[l * NR + j];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * c_row + j] = accumulate ? c[i * c_row + j] + sum[i][j] : sum[i][j];
}

static const struct gemm_kernel kernel = {.mr = MR, .nr = NR, .name = "plain", .run = tile_run};

const struct gemm_kernel *gemm_kernel_plain(void)
{
    return &kernel;
}

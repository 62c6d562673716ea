/* gemm.c - a product of matrices as a loop over tiles, on the calling thread.
 *
 * k is cut into blocks of 256, so that a packed panel of b (256 x 32 floats, 32 KiB) lives in the first-level cache while
 * the rows of a pass by; n into blocks of 512, so that the packed block of b lives in the second level. a is read where it is when
 * its rows or columns are contiguous and fit the cache, and packed otherwise. The blocks depend on m, n, k alone. */
#include "gemm.h"


#define KC 256
#define NC 512
#define MC 96
#define READABLE_FLOATS 8192

const struct gemm_kernel *gemm_kernel(void)
{
    static const struct gemm_kernel *chosen; /* every thread computes the same value */
    const struct gemm_kernel *k = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (k) return k;
    k = gemm_kernel_avx512();
    if (!k) k = gemm_kernel_avx2();
    if (!k) k = gemm_kernel_plain();
    __atomic_store_n(&chosen, k, __ATOMIC_RELAXED);
    return k;
}

size_t gemm_work_floats(void)
{
    return (size_t)KC * (NC + 64) + (size_t)KC * (MC + 16);
}

size_t gemm_packed_floats(int64_t k, int64_t n)
{
    const int nr = gemm_kernel()->nr;
    return (size_t)((n + nr - 1) / nr * nr * k);
}

void gemm_pack_b(int64_t k, int64_t n, const float *b, int64_t b_row, int64_t b_col, float *out)
{
    const int nr = gemm_kernel()->nr;
    for (int64_t j0 = 0; j0 < n; j0 += nr) {
        const int64_t cols = n - j0 < nr ? n - j0 : nr;
        const float *from = b + j0 * b_col;
        if (b_col == 1) {
            for (int64_t i = 0; i < k; i++, out += nr) {
                for (int64_t j = 0; j < cols; j++)
                    out[j] = from[i * b_row + j];
                for (int64_t j = cols; j < nr; j++)
                    out[j] = 0;
            }
            continue;
        }
        /* columns of b are far apart: 8 rows at a time, so that a fetched line is used whole */
        for (int64_t i0 = 0; i0 < k; i0 += 8) {
            const int64_t rows = k - i0 < 8 ? k - i0 : 8;
            for (int64_t j = 0; j < nr; j++)
                for (int64_t i = 0; i < rows; i++)
                    out[i * nr + j] = j < cols ? from[(i0 + i) * b_row + j * b_col] : 0;
            out += rows * nr;
        }
    }
}

/* Slivers of mr rows, [ceil(m/mr)][k][mr]; what is behind the last row is not written and not read. */
static void pack_a(int64_t m, int64_t k, const float *a, int64_t a_row, int64_t a_col, int mr, float *out)
{
    for (int64_t i0 = 0; i0 < m; i0 += mr, out += k * mr) {
        const int64_t rows = m - i0 < mr ? m - i0 : mr;
        for (int64_t l = 0; l < k; l++)
            for (int64_t i = 0; i < rows; i++)
                out[l * mr + i] = a[(i0 + i) * a_row + l * a_col];
    }
}

/* Columns of a matrix that fits the first-level cache whole are read where they are. Else rows 4 KiB apart fall on the same
 * cache sets: those are packed; and so do columns a multiple of 128 bytes apart, of which a sliver takes hundreds. */
static bool rows_are_readable(const struct gemm *g, int64_t k)
{
    if (g->a_row == 1) return g->a_col % 32 != 0 || k * g->a_col <= READABLE_FLOATS;
    return g->a_col == 1 && (g->m <= 8 || g->a_row % 1024 != 0);
}

/* One block of at most MC x NC: a at its first row and k, b packed. `panel` is the distance of two panels of b. */
static void run_block(const struct gemm *g, int64_t m, int64_t n, int64_t k, const float *a, const float *b, int64_t panel,
                      float *c, bool accumulate, float *pack)
{
    const struct gemm_kernel *kernel = gemm_kernel();
    const int mr = kernel->mr, nr = kernel->nr;
    const bool direct = rows_are_readable(g, k);
    if (!direct) pack_a(m, k, a, g->a_row, g->a_col, mr, pack);
    for (int64_t j = 0; j < n; j += nr) {
        const int cols = n - j < nr ? (int)(n - j) : nr;
        for (int64_t i = 0; i < m; i += mr) {
            const int rows = m - i < mr ? (int)(m - i) : mr;
            const float *at = direct ? a + i * g->a_row : pack + i * k;
            kernel->run(k, at, direct ? g->a_row : 1, direct ? g->a_col : mr, b + j / nr * panel, c + i * g->c_row + j,
                        g->c_row, rows, cols, accumulate);
        }
    }
}

void gemm_run(const struct gemm *g, float *work)
{
    const int nr = gemm_kernel()->nr;
    float *pack = work + (size_t)KC * (NC + 64);
    for (int64_t k0 = 0; k0 < g->k; k0 += KC) {
        const int64_t k = g->k - k0 < KC ? g->k - k0 : KC;
        for (int64_t n0 = 0; n0 < g->n; n0 += NC) {
            const int64_t n = g->n - n0 < NC ? g->n - n0 : NC;
            const float *b = g->b + n0 * g->k + k0 * nr; /* NC is a multiple of nr */
            if (!g->packed_b) {
                gemm_pack_b(k, n, g->b + k0 * g->b_row + n0 * g->b_col, g->b_row, g->b_col, work);
                b = work;
            }
            for (int64_t m0 = 0; m0 < g->m; m0 += MC) {
                const int64_t m = g->m - m0 < MC ? g->m - m0 : MC;
                run_block(g, m, n, k, g->a + m0 * g->a_row + k0 * g->a_col, b, (g->packed_b ? g->k : k) * nr,
                          g->c + m0 * g->c_row + n0, g->accumulate || k0 > 0, pack);
            }
        }
    }
}

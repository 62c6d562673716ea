/* gemm_tile.h - the micro-kernel, written once for every vector width. The including file defines
 *   TILE_TARGET  the function attribute of its instruction set     VEC, WIDTH   a vector and its floats
 *   MR, NV       rows, and vectors per row, of a tile; MR * NV + NV + 1 vectors must fit in the registers
 *   LOAD STORE BROADCAST FMA ADD ZERO                              on VEC
 * A tile's sums stay in registers for the whole of k. The number of rows is a constant in each of the MR copies, so that
 * the ragged edge of a matrix costs no detour. */
#ifndef CPU_GEMM_TILE_H
#define CPU_GEMM_TILE_H

#include "gemm.h"

#define NR (NV * WIDTH)
#define TILE_INLINE static inline TILE_TARGET __attribute__((always_inline))

TILE_INLINE void tile(const int rows, int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b,
                      float *c, int64_t c_row, bool accumulate)
{
    VEC sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            sum[i][j] = ZERO();
    for (; k > 0; k--) {
        VEC right[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            right[j] = LOAD(b + j * WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const VEC left = BROADCAST(a + i * a_row);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++)
                sum[i][j] = FMA(left, right[j], sum[i][j]);
        }
        a += a_col;
        b += NR;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            float *at = c + i * c_row + j * WIDTH;
            STORE(at, accumulate ? ADD(LOAD(at), sum[i][j]) : sum[i][j]);
        }
}

/* Packed rows (a_row 1) and rows of a matrix (a_col 1) each get addresses the compiler can fold. */
TILE_INLINE void tile_by_layout(const int rows, int64_t k, const float *a, int64_t a_row, int64_t a_col,
                                const float *b, float *c, int64_t c_row, bool accumulate)
{
    if (a_row == 1)
        tile(rows, k, a, 1, a_col, b, c, c_row, accumulate);
    else
        tile(rows, k, a, a_row, a_col, b, c, c_row, accumulate);
}

#define TILE_CASE(n)                                                                               \
    case n:                                                                                        \
        if (n <= MR) tile_by_layout(n <= MR ? n : 1, k, a, a_row, a_col, b, c, c_row, accumulate); \
        break;

static TILE_TARGET void tile_full(int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b, float *c,
                                  int64_t c_row, int rows, bool accumulate)
{
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
        TILE_CASE(7)
        TILE_CASE(8)
        TILE_CASE(9)
        TILE_CASE(10)
        TILE_CASE(11)
        TILE_CASE(12)
    default: break;
    }
}

static TILE_TARGET void tile_run(int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b, float *c,
                                 int64_t c_row, int rows, int cols, bool accumulate)
{
    if (cols == NR) {
        tile_full(k, a, a_row, a_col, b, c, c_row, rows, accumulate);
        return;
    }
    float whole[MR * NR] __attribute__((aligned(64)));
    tile_full(k, a, a_row, a_col, b, whole, NR, rows, false);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * c_row + j] = accumulate ? c[i * c_row + j] + whole[i * NR + j] : whole[i * NR + j];
}

#endif

/* attention.cuh - what the passes of attention share: heads in memory, and the two products that they are made of, both
 * on product.cuh's tiles and both with every thread of the block calling. */
#ifndef KERNELS_ATTENTION_CUH
#define KERNELS_ATTENTION_CUH

#include "product.cuh"

struct attention_shape {
    int64_t t, heads, d;
    float scale;
};

/* q, k, v, o or a gradient: [N,T,heads,D], D side by side, the other strides free. */
template <class T> struct heads_of {
    T *data;
    int64_t image, token, head; /* strides */
};

/* Tokens of one head from some token on, `left` of them up to the end; those behind it count as zeros. */
template <class T> struct head_rows {
    T *at;
    int64_t token; /* stride */
    int64_t left;
};

/* What a block is to do: a tile of one head's tokens, and of the columns of its result those from column0 on. */
struct attention_block {
    int64_t n, h, token0, column0;
};

__device__ __forceinline__ attention_block attention_block_at(const attention_shape &s, int width)
{
    const int64_t slices = (s.d + width - 1) / width, tiles = (s.t + TILE - 1) / TILE;
    const int64_t head = blockIdx.x / slices / tiles;
    return {head / s.heads, head % s.heads, blockIdx.x / slices % tiles * TILE, blockIdx.x % slices * width};
}

template <class T>
__device__ __forceinline__ head_rows<T> rows_of(const attention_shape &s, const heads_of<T> &x,
                                                const attention_block &b, int64_t token0)
{
    return {x.data + b.n * x.image + b.h * x.head + token0 * x.token, x.token, s.t - token0};
}

/* ---- products ----
 *
 * Packs are on their way while the tile before is multiplied. Single elements are brought after it: 32 of them waiting
 * in registers, beside the sums, would spill. */

/* What a thread brings of 64 rows, columns k on; addresses by steps, for they would fill the registers. */
template <int VEC, class T>
__device__ __forceinline__ void load_along_k(const head_rows<T> &rows, int64_t k, int64_t d,
                                             pack<T, VEC> next[along_k<VEC>::PACKS])
{
    typedef along_k<VEC> fill;
    constexpr int STEP = PRODUCT_THREADS / fill::ACROSS;
    const T *p = rows.at + fill::row(0) * rows.token + k;
    const int64_t left = k < d ? rows.left - fill::row(0) : 0;
#pragma unroll
    for (int i = 0; i < fill::PACKS; i++) {
        next[i] = load_pack<VEC>(p, i * STEP < left);
        p += STEP * rows.token;
    }
}

/* What a thread brings of the 32 rows from row0 on, as k, and of 64 columns. */
template <int VEC, class T>
__device__ __forceinline__ void load_along_rows(const head_rows<T> &rows, int row0, int64_t column, int64_t d,
                                                pack<T, VEC> next[along_rows<VEC>::PACKS])
{
    typedef along_rows<VEC> fill;
    constexpr int STEP = PRODUCT_THREADS / fill::ACROSS;
    const T *p = rows.at + (row0 + fill::k(0)) * rows.token + column;
    const int64_t left = column < d ? rows.left - row0 - fill::k(0) : 0;
#pragma unroll
    for (int i = 0; i < fill::PACKS; i++) {
        next[i] = load_pack<VEC>(p, i * STEP < left);
        p += STEP * rows.token;
    }
}

/* sum[i][j] = row i of `rows` times row j of `columns`, over all of d. The tiles are free again on return. */
template <int VEC, class T>
__device__ __forceinline__ void multiply_rows(product_tile *a, product_tile *b, const head_rows<T> &rows,
                                              const head_rows<T> &columns, int64_t d, float sum[SUM_ROWS][SUM_COLUMNS])
{
    typedef along_k<VEC> fill;
    const int64_t steps = (d + DEPTH - 1) / DEPTH;
    pack<T, VEC> next_a[fill::PACKS], next_b[fill::PACKS];
    clear_sums(sum);
    for (int64_t step = 0; step <= steps; step++) {
        const int64_t k = step * DEPTH + fill::k();
        if (VEC > 1 && step < steps) {
            load_along_k<VEC>(rows, k, d, next_a);
            load_along_k<VEC>(columns, k, d, next_b);
        }
        if (step > 0) product_step(a[(step - 1) % 2], b[(step - 1) % 2], sum);
        if (VEC == 1 && step < steps) {
            load_along_k<VEC>(rows, k, d, next_a);
            load_along_k<VEC>(columns, k, d, next_b);
        }
        if (step < steps) {
            fill::put(a[step % 2], next_a);
            fill::put(b[step % 2], next_b);
        }
        __syncthreads();
    }
}

/* Writes a 64 x 64 result to the two tiles as the operand of the next product: its columns become k, 32 to a tile. */
__device__ __forceinline__ void put_sums(product_tile *tiles, const float sum[SUM_ROWS][SUM_COLUMNS])
{
    const int column = sum_column();
    float *at = tiles[column / DEPTH].at;
#pragma unroll
    for (int j = 0; j < SUM_COLUMNS; j++)
#pragma unroll
        for (int i = 0; i < SUM_ROWS; i += 4) {
            const float group[4] = {sum[i][j], sum[i + 1][j], sum[i + 2][j], sum[i + 3][j]};
            store_floats<4>(at + tile_at(column % DEPTH + j, sum_row(i)), group);
        }
}

/* What the thread itself put there. */
__device__ __forceinline__ void take_sums(const product_tile *tiles, float sum[SUM_ROWS][SUM_COLUMNS])
{
    const int column = sum_column();
    const float *at = tiles[column / DEPTH].at;
#pragma unroll
    for (int j = 0; j < SUM_COLUMNS; j++)
#pragma unroll
        for (int i = 0; i < SUM_ROWS; i += 4) {
            float group[4];
            load_floats<4>(at + tile_at(column % DEPTH + j, sum_row(i)), group);
#pragma unroll
            for (int e = 0; e < 4; e++)
                sum[i + e][j] = group[e];
        }
}

/* sum[slice] += a, as put_sums left it (no barrier is needed between), times 64 rows of `rows`, columns column0 + 64
 * slice on. The tiles are free again on return. */
template <int VEC, int SLICES, class T>
__device__ __forceinline__ void multiply_tiles(const product_tile *a, product_tile *b, const head_rows<T> &rows,
                                               int64_t column0, int64_t d, float sum[SLICES][SUM_ROWS][SUM_COLUMNS])
{
    typedef along_rows<VEC> fill;
    constexpr int STEPS = 2 * SLICES; /* the tile of k, then the slice */
    pack<T, VEC> next[fill::PACKS];
#pragma unroll
    for (int step = 0; step <= STEPS; step++) {
        const int64_t column = column0 + step % SLICES * TILE + fill::row();
        if (VEC > 1 && step < STEPS) load_along_rows<VEC>(rows, step / SLICES * DEPTH, column, d, next);
        if (step > 0) product_step(a[(step - 1) / SLICES], b[(step - 1) % 2], sum[(step - 1) % SLICES]);
        if (VEC == 1 && step < STEPS) load_along_rows<VEC>(rows, step / SLICES * DEPTH, column, d, next);
        if (step < STEPS) fill::put(b[step % 2], next);
        __syncthreads();
    }
}

/* Stores the sums, columns from column0 on, to `rows`. */
template <class T>
__device__ __forceinline__ void store_rows(const head_rows<T> &rows, int64_t column0, int64_t d, bool is_wide,
                                           const float sum[SUM_ROWS][SUM_COLUMNS])
{
    const int64_t column = column0 + sum_column();
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++)
        if (sum_row(i) < rows.left)
            store_columns(rows.at + sum_row(i) * rows.token + column, sum[i], d - column, is_wide);
}

/* ---- on the host ---- */

template <class T> static heads_of<T> heads_in(const ddpm_tensor *t)
{
    return {(T *)t->data, t->stride[0], t->stride[1], t->stride[2]};
}

static inline attention_shape attention_shape_of(const ddpm_tensor *q, float scale)
{
    return {q->dim[1], q->dim[2], q->dim[3], scale};
}

/* Blocks over images, heads, tiles of tokens and slices of `width` columns. */
static inline unsigned attention_blocks(const ddpm_tensor *q, int width)
{
    return grid_of_all(q->dim[0] * q->dim[2] * ceil_div(q->dim[1], TILE) * ceil_div(q->dim[3], width));
}

#endif

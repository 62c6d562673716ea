/* product.cuh - the core of every matrix product that is not a library's: tiles in shared memory, sums in registers.
 *
 * A block of 128 threads makes a 64 x 64 part of a result, sum[row][column] += a[k][row] * b[k][column], 32 steps of
 * the inner dimension k at a time. Operands are f32 in shared memory whatever they were outside, with k outermost, so
 * that a thread reads the 8 rows and 4 columns of its sums in three 16-byte loads and does 32 multiply-adds with them.
 *
 * Tiles are double: while one is multiplied the next is on its way, in registers, from memory. One barrier a step,
 *     for (i = 0; i <= steps; i++) { bring tile i; multiply tile i - 1; put tile i; __syncthreads(); }
 * This is the fallback: plain cores in f32, no tensor cores, which are the business of cuDNN and cuBLASLt where they
 * have an engine. Rejected: results of 128 x 128 a block, with fewer reads of shared memory a multiply-add, but a
 * quarter of the blocks, and small layers are the ones that come here. */
#ifndef KERNELS_PRODUCT_CUH
#define KERNELS_PRODUCT_CUH

#include "common.cuh"

static constexpr int TILE = 64;  /* rows, and columns, of a block's part */
static constexpr int DEPTH = 32; /* of k in a tile: one warp of threads across, and 2 x 2 tiles are 32 KiB */
static constexpr int PRODUCT_THREADS = 128;
static constexpr int SUM_ROWS = 8, SUM_COLUMNS = 4; /* of a thread */

struct alignas(16) product_tile {
    float at[DEPTH * TILE];
};

/* Rows lie in groups of 4, the groups of row k exchanged by k / 4: then a warp that brings rows along k and puts them
 * across does so without bank conflicts, and groups stay whole for 16-byte reads. */
__device__ __forceinline__ int tile_at(int k, int row)
{
    return k * TILE + (row ^ (k / 4 % 8 * 4));
}

/* ---- filling a tile: what of it a thread brings ---- */

/* From a source whose rows run along k: PACKS packs, of one k and several rows. */
template <int VEC> struct along_k {
    static constexpr int PACKS = TILE * DEPTH / VEC / PRODUCT_THREADS;
    static constexpr int ACROSS = DEPTH / VEC;

    static __device__ __forceinline__ int k()
    {
        return (int)threadIdx.x % ACROSS * VEC;
    }

    static __device__ __forceinline__ int row(int i)
    {
        return (int)threadIdx.x / ACROSS + i * (PRODUCT_THREADS / ACROSS);
    }

    template <class T> static __device__ __forceinline__ void put(product_tile &tile, const pack<T, VEC> x[PACKS])
    {
#pragma unroll
        for (int i = 0; i < PACKS; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++)
                tile.at[tile_at(k() + e, row(i))] = to_float(x[i].v[e]);
    }
};

/* From a source that has the tile's rows side by side, and k as its own rows: PACKS packs, of one row and several k. */
template <int VEC> struct along_rows {
    static constexpr int PACKS = TILE * DEPTH / VEC / PRODUCT_THREADS;
    static constexpr int ACROSS = TILE / VEC;
    static constexpr int GROUP = VEC < 4 ? VEC : 4;

    static __device__ __forceinline__ int row()
    {
        return (int)threadIdx.x % ACROSS * VEC;
    }

    static __device__ __forceinline__ int k(int i)
    {
        return (int)threadIdx.x / ACROSS + i * (PRODUCT_THREADS / ACROSS);
    }

    template <class T> static __device__ __forceinline__ void put(product_tile &tile, const pack<T, VEC> x[PACKS])
    {
#pragma unroll
        for (int i = 0; i < PACKS; i++)
#pragma unroll
            for (int g = 0; g < VEC; g += GROUP) {
                float group[GROUP];
#pragma unroll
                for (int e = 0; e < GROUP; e++)
                    group[e] = to_float(x[i].v[g + e]);
                store_floats<GROUP>(tile.at + tile_at(k(i), row() + g), group);
            }
    }
};

/* The pack at p where it is inside, else zeros; p is not looked at then. */
template <int VEC, class T> __device__ __forceinline__ pack<T, VEC> load_pack(const T *p, bool is_inside)
{
    pack<T, VEC> x;
    if (is_inside) {
        x = *reinterpret_cast<const pack<T, VEC> *>(p);
    } else {
#pragma unroll
        for (int e = 0; e < VEC; e++)
            x.v[e] = from_float<T>(0.0f);
    }
    return x;
}

/* ---- the product ---- */

/* The thread's columns are sum_column() and the 3 behind it, a whole warp's 32 in a row; its i-th row is sum_row(i), in
 * two groups of 4. A warp then reads 4 groups of a and 8 of b, each once. */
__device__ __forceinline__ int sum_column()
{
    return ((int)threadIdx.x / 32 % 2 * 8 + (int)threadIdx.x % 8) * 4;
}

__device__ __forceinline__ int sum_row(int i)
{
    return ((int)threadIdx.x / 64 * 4 + (int)threadIdx.x % 32 / 8) * 4 + i % 4 + i / 4 * 32;
}

__device__ __forceinline__ void product_step(const product_tile &a, const product_tile &b,
                                             float sum[SUM_ROWS][SUM_COLUMNS])
{
    const int row = sum_row(0), column = sum_column();
#pragma unroll 2
    for (int k4 = 0; k4 < DEPTH; k4 += 4)
#pragma unroll
        for (int k = k4; k < k4 + 4; k++) {
            float x[SUM_ROWS], y[SUM_COLUMNS];
            load_floats<4>(a.at + tile_at(k, row), x);
            load_floats<4>(a.at + tile_at(k, row) + 32, x + 4); /* rows from 32 on are exchanged like those below */
            load_floats<4>(b.at + tile_at(k, column), y);
#pragma unroll
            for (int i = 0; i < SUM_ROWS; i++)
#pragma unroll
                for (int j = 0; j < SUM_COLUMNS; j++)
                    sum[i][j] = multiply_add(x[i], y[j], sum[i][j]);
        }
}

__device__ __forceinline__ void clear_sums(float sum[SUM_ROWS][SUM_COLUMNS])
{
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++)
#pragma unroll
        for (int j = 0; j < SUM_COLUMNS; j++)
            sum[i][j] = 0.0f;
}

/* ---- results ---- */

/* x[j] += p[j] for the first `left` of 4 elements; at once where is_wide: the rows of p are aligned to 4 elements and
 * a multiple of 4 long. */
template <class T>
__device__ __forceinline__ void add_columns(const T *p, float x[SUM_COLUMNS], int64_t left, bool is_wide)
{
    if (is_wide) {
        float old[SUM_COLUMNS];
        if (left <= 0) return;
        load_floats<SUM_COLUMNS>(p, old);
#pragma unroll
        for (int j = 0; j < SUM_COLUMNS; j++)
            x[j] += old[j];
        return;
    }
#pragma unroll
    for (int j = 0; j < SUM_COLUMNS; j++)
        if (j < left) x[j] += to_float(p[j]);
}

template <class T>
__device__ __forceinline__ void store_columns(T *p, const float x[SUM_COLUMNS], int64_t left, bool is_wide)
{
    if (is_wide) {
        if (left > 0) store_floats<SUM_COLUMNS>(p, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < SUM_COLUMNS; j++)
        if (j < left) p[j] = from_float<T>(x[j]);
}

/* ---- on the host: how wide a tensor may be read ---- */

/* Do packs of `width` elements never straddle rows, nor lie at odd addresses? A stride that is not walked does not
 * matter. */
static inline bool rows_fit(const ddpm_tensor *t, int width)
{
    const int last = t->rank - 1;
    bool fits = t->dim[last] % width == 0 && is_aligned(t->data, (size_t)width * ddpm_dtype_size(t->dtype));
    for (int i = 0; i < last; i++)
        fits = fits && (t->dim[i] == 1 || t->stride[i] % width == 0);
    return fits;
}

#endif

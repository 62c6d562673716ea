/* attention.cu - o = softmax(scale q k^T) v, the softmax running over tiles of keys [Milakov 2018, Dao 2022].
 *
 * The fallback for what cuDNN has no engine for, or for its absence; CI runs it on the CPU.
 *
 * Mapping  a block takes 64 queries of one head and goes through the keys 64 at a time: scores by one product
 *   (product.cuh), their exponentials in shared memory in place of them, o += exponentials times values by a second.
 *   For the exponentials a thread has one query and 32 keys. Blocks of one head are neighbours in time, so that its
 *   keys and values are found in the L2 cache.
 * Any T and D  what is beyond them is zeros, and keys beyond T have no weight. The sums of o are in registers, 64
 *   columns a slice, at most two slices: for D > 128 another block takes the next 128 columns and computes the scores
 *   again, half as much work more at D = 256. Rejected: four slices, which do not fit in 255 registers; o in shared
 *   memory, two more passes over it for each tile.
 * Cost  4 N heads T^2 D operations on plain cores, up to D = 128; memory q, o and lse once, k and v once per head where
 *   the L2 cache holds them.
 * Numbers  the running maximum passes over NaN, and exp(NaN - max) spreads it over its row, as on the CPU. */
#include "attention.cuh"

#include <float.h>

/* Of one query and one of the two tiles of keys; `most` over both. */
struct row_state {
    float most, sum;
};

/* Exponentials in place of the scores of the thread's row, whose query is threadIdx.x % TILE and whose tile threadIdx.x
 * / TILE. Gives the factor by which the row's earlier sums shrink. `room` is PRODUCT_THREADS floats. */
__device__ __forceinline__ float soften(product_tile *scores, int64_t keys_left, row_state *row, float *room)
{
    const int query = (int)threadIdx.x % TILE, half = (int)threadIdx.x / TILE;
    float *x = scores[half].at;
    const int64_t left = keys_left - half * DEPTH;
    float most = row->most;
#pragma unroll 8
    for (int k = 0; k < DEPTH; k++) {
        const float score = x[tile_at(k, query)];
        most = k < left && score > most ? score : most;
    }
    room[threadIdx.x] = most;
    __syncthreads();
    const float other = room[threadIdx.x ^ TILE];
    most = other > most ? other : most;
    float sum = 0.0f;
#pragma unroll 8
    for (int k = 0; k < DEPTH; k++) {
        const float p = k < left ? formula_exp(x[tile_at(k, query)] - most) : 0.0f;
        x[tile_at(k, query)] = p;
        sum += p;
    }
    const float factor = formula_exp(row->most - most);
    row->most = most;
    row->sum = fmaf(row->sum, factor, sum);
    return factor;
}

template <int SLICES>
__device__ __forceinline__ void scale_sums(float sum[SLICES][SUM_ROWS][SUM_COLUMNS], const float *factor_of_row)
{
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++) {
        const float factor = factor_of_row[sum_row(i)];
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++)
#pragma unroll
            for (int j = 0; j < SUM_COLUMNS; j++)
                sum[slice][i][j] *= factor;
    }
}

template <class T, int VEC, int SLICES>
__global__ void __launch_bounds__(PRODUCT_THREADS, 4 - SLICES)
    attention_kernel(attention_shape s, heads_of<T> q, heads_of<T> k, heads_of<T> v, heads_of<T> o, bool o_is_wide,
                     float *lse)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(float, room, PRODUCT_THREADS);
    SHARED(float, factors, TILE);
    const attention_block at = attention_block_at(s, SLICES * TILE);
    const head_rows<T> queries = rows_of(s, q, at, at.token0);
    row_state row = {-FLT_MAX, 0.0f}; /* not minus infinity, from which minus infinity cannot be subtracted */
    float sum[SLICES][SUM_ROWS][SUM_COLUMNS];
#pragma unroll
    for (int slice = 0; slice < SLICES; slice++)
        clear_sums(sum[slice]);
    for (int64_t key0 = 0; key0 < s.t; key0 += TILE) {
        float scores[SUM_ROWS][SUM_COLUMNS];
        multiply_rows<VEC>(a, b, queries, rows_of(s, k, at, key0), s.d, scores);
#pragma unroll
        for (int i = 0; i < SUM_ROWS; i++)
#pragma unroll
            for (int j = 0; j < SUM_COLUMNS; j++)
                scores[i][j] *= s.scale;
        put_sums(a, scores);
        __syncthreads();
        const float factor = soften(a, s.t - key0, &row, room);
        if (threadIdx.x < TILE) factors[threadIdx.x] = factor;
        __syncthreads();
        scale_sums<SLICES>(sum, factors);
        multiply_tiles<VEC, SLICES>(a, b, rows_of(s, v, at, key0), at.column0, s.d, sum);
    }
    room[threadIdx.x] = row.sum;
    __syncthreads();
    if (threadIdx.x < TILE) {
        const float total = row.sum + room[threadIdx.x + TILE];
        factors[threadIdx.x] = 1.0f / total;
        if (lse && at.column0 == 0 && (int)threadIdx.x < queries.left)
            lse[(at.n * s.heads + at.h) * s.t + at.token0 + threadIdx.x] = row.most + logf(total);
    }
    __syncthreads();
    scale_sums<SLICES>(sum, factors);
#pragma unroll
    for (int slice = 0; slice < SLICES; slice++)
        store_rows(rows_of(s, o, at, at.token0), at.column0 + slice * TILE, s.d, o_is_wide, sum[slice]);
}

template <class T, int VEC, int SLICES>
static cudaError_t launch_slices(cudaStream_t stream, const struct attention_args *a)
{
    return launch_kernel(attention_kernel<T, VEC, SLICES>, attention_blocks(a->q, SLICES * TILE), PRODUCT_THREADS, 0,
                         stream, attention_shape_of(a->q, a->scale), heads_in<T>(a->q), heads_in<T>(a->k),
                         heads_in<T>(a->v), heads_in<T>(a->o), rows_fit(a->o, 4),
                         a->lse ? (float *)a->lse->data : NULL);
}

template <class T, int VEC> static cudaError_t launch_packs(cudaStream_t stream, const struct attention_args *a)
{
    return a->q->dim[3] <= TILE ? launch_slices<T, VEC, 1>(stream, a) : launch_slices<T, VEC, 2>(stream, a);
}

extern "C" size_t scratch_attention(const struct attention_args *)
{
    return 0;
}

extern "C" cudaError_t launch_attention(cudaStream_t stream, const struct attention_args *a, void *)
{
    WITH_TYPE(a->q->dtype, T, constexpr int WIDTH = pack_of<T>::width;
              const bool is_packed = rows_fit(a->q, WIDTH) && rows_fit(a->k, WIDTH) && rows_fit(a->v, WIDTH);
              return is_packed ? launch_packs<T, WIDTH>(stream, a) : launch_packs<T, 1>(stream, a));
}

/* attention_bwd.cu - dq, dk and dv of attention, with the probabilities computed again from lse [Dao 2022].
 *
 *   p = exp(scale q k^T - lse), delta = sum over D of do * o, ds = p * (do v^T - delta) * scale
 *   dv = p^T do, dk = ds^T q, dq = ds k
 *
 * The fallback for what cuDNN has no engine for, or for its absence; CI runs it on the CPU.
 *
 * Mapping  three kernels. delta: 8 threads a token, 128 bytes side by side. dk and dv: a block takes 64 keys of one
 *   head and goes through the queries 64 at a time; the products are laid so that keys are rows, for p and ds are then
 *   operands of the next product as they come. dq: a block takes 64 queries and goes through the keys. So no sum is
 *   shared between blocks and every order is fixed; p and do v^T are computed twice for that, 7 products in place of 5.
 *   Rejected: one kernel that adds to dq from every tile of keys, which needs atomics or T/64 copies of dq.
 * Any T and D  as in attention.cu. Here the block of keys has two sums, so it has one slice of 64 columns: up to
 *   D = 64, the usual one, nothing is computed again for that; at D = 256 the two inner products are, four times.
 * Cost  14 N heads T^2 D operations on plain cores up to D = 64; memory each of q, k, v, do once per 64 rows of the
 *   other side, from L2 for all but the first; dq, dk, dv once. */
#include "attention.cuh"

static constexpr int DELTA_THREADS = 256;
static constexpr int DELTA_LANES = 8; /* of a token: 8 packs are 128 bytes */

/* What all three kernels read; lse and delta are [N,heads,T]. */
template <class T> struct backward_inputs {
    heads_of<T> q, k, v, d_o;
    const float *lse, *delta;
};

template <class T, int VEC>
__global__ void __launch_bounds__(DELTA_THREADS)
    attention_delta_kernel(attention_shape s, int64_t tokens, heads_of<T> o, heads_of<T> d_o, float *__restrict__ delta)
{
    /* in the order of memory: heads within a token */
    const int64_t i = ((int64_t)blockIdx.x * DELTA_THREADS + threadIdx.x) / DELTA_LANES;
    const int64_t h = i % s.heads, t = i / s.heads % s.t, n = i / s.heads / s.t;
    float sum = 0.0f;
    if (i < tokens)
        for (int64_t j = threadIdx.x % DELTA_LANES * VEC; j < s.d; j += DELTA_LANES * VEC) {
            float x[VEC], y[VEC];
            load_floats<VEC>(o.data + n * o.image + t * o.token + h * o.head + j, x);
            load_floats<VEC>(d_o.data + n * d_o.image + t * d_o.token + h * d_o.head + j, y);
#pragma unroll
            for (int e = 0; e < VEC; e++)
                sum = fmaf(x[e], y[e], sum);
        }
#pragma unroll
    for (int step = DELTA_LANES / 2; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (i < tokens && threadIdx.x % DELTA_LANES == 0) delta[(n * s.heads + h) * s.t + t] = sum;
}

__device__ __forceinline__ float probability(float product, float scale, float lse)
{
    return formula_exp(fmaf(product, scale, -lse));
}

/* dp = do v^T */
__device__ __forceinline__ float score_gradient(float p, float dp, float delta, float scale)
{
    return p * (dp - delta) * scale;
}

/* dk and dv of 64 keys: rows are keys and columns queries. Queries beyond T add nothing: their q and do are zeros. */
template <class T, int VEC>
__global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    attention_bwd_keys_kernel(attention_shape s, backward_inputs<T> in, heads_of<T> dk, heads_of<T> dv, bool dk_is_wide,
                              bool dv_is_wide)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(product_tile, p_tiles, 2); /* p held in registers makes others spill */
    const attention_block at = attention_block_at(s, TILE);
    const int64_t head = (at.n * s.heads + at.h) * s.t;
    float dk_sum[1][SUM_ROWS][SUM_COLUMNS], dv_sum[1][SUM_ROWS][SUM_COLUMNS];
    clear_sums(dk_sum[0]);
    clear_sums(dv_sum[0]);
    for (int64_t query0 = 0; query0 < s.t; query0 += TILE) {
        const head_rows<T> queries = rows_of(s, in.q, at, query0), d_o = rows_of(s, in.d_o, at, query0);
        float x[SUM_ROWS][SUM_COLUMNS], p[SUM_ROWS][SUM_COLUMNS];
        multiply_rows<VEC>(a, b, rows_of(s, in.k, at, at.token0), queries, s.d, x);
#pragma unroll
        for (int j = 0; j < SUM_COLUMNS; j++) {
            const int column = sum_column() + j;
            const float lse = column < queries.left ? in.lse[head + query0 + column] : 0.0f;
#pragma unroll
            for (int i = 0; i < SUM_ROWS; i++)
                x[i][j] = probability(x[i][j], s.scale, lse);
        }
        put_sums(p_tiles, x);
        multiply_rows<VEC>(a, b, rows_of(s, in.v, at, at.token0), d_o, s.d, x);
        take_sums(p_tiles, p);
#pragma unroll
        for (int j = 0; j < SUM_COLUMNS; j++) {
            const int column = sum_column() + j;
            const float delta = column < queries.left ? in.delta[head + query0 + column] : 0.0f;
#pragma unroll
            for (int i = 0; i < SUM_ROWS; i++)
                x[i][j] = score_gradient(p[i][j], x[i][j], delta, s.scale);
        }
        put_sums(a, x);
        multiply_tiles<VEC, 1>(p_tiles, b, d_o, at.column0, s.d, dv_sum);
        multiply_tiles<VEC, 1>(a, b, queries, at.column0, s.d, dk_sum);
    }
    store_rows(rows_of(s, dk, at, at.token0), at.column0, s.d, dk_is_wide, dk_sum[0]);
    store_rows(rows_of(s, dv, at, at.token0), at.column0, s.d, dv_is_wide, dv_sum[0]);
}

/* dq of 64 queries: rows are queries and columns keys. Keys beyond T are zeros too, but exp(0 - lse) may overflow. */
template <class T, int VEC, int SLICES>
__global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    attention_bwd_queries_kernel(attention_shape s, backward_inputs<T> in, heads_of<T> dq, bool dq_is_wide)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(product_tile, p_tiles, 2); /* p held in registers makes others spill */
    const attention_block at = attention_block_at(s, SLICES * TILE);
    const int64_t head = (at.n * s.heads + at.h) * s.t;
    const head_rows<T> queries = rows_of(s, in.q, at, at.token0), d_o = rows_of(s, in.d_o, at, at.token0);
    float sum[SLICES][SUM_ROWS][SUM_COLUMNS];
#pragma unroll
    for (int slice = 0; slice < SLICES; slice++)
        clear_sums(sum[slice]);
    for (int64_t key0 = 0; key0 < s.t; key0 += TILE) {
        const head_rows<T> keys = rows_of(s, in.k, at, key0);
        float x[SUM_ROWS][SUM_COLUMNS], p[SUM_ROWS][SUM_COLUMNS];
        multiply_rows<VEC>(a, b, queries, keys, s.d, x);
#pragma unroll
        for (int i = 0; i < SUM_ROWS; i++) {
            const float lse = sum_row(i) < queries.left ? in.lse[head + at.token0 + sum_row(i)] : 0.0f;
#pragma unroll
            for (int j = 0; j < SUM_COLUMNS; j++)
                x[i][j] = probability(x[i][j], s.scale, lse);
        }
        put_sums(p_tiles, x);
        multiply_rows<VEC>(a, b, d_o, rows_of(s, in.v, at, key0), s.d, x);
        take_sums(p_tiles, p);
#pragma unroll
        for (int i = 0; i < SUM_ROWS; i++) {
            const float delta = sum_row(i) < queries.left ? in.delta[head + at.token0 + sum_row(i)] : 0.0f;
#pragma unroll
            for (int j = 0; j < SUM_COLUMNS; j++)
                x[i][j] = sum_column() + j < keys.left ? score_gradient(p[i][j], x[i][j], delta, s.scale) : 0.0f;
        }
        put_sums(a, x);
        multiply_tiles<VEC, SLICES>(a, b, keys, at.column0, s.d, sum);
    }
#pragma unroll
    for (int slice = 0; slice < SLICES; slice++)
        store_rows(rows_of(s, dq, at, at.token0), at.column0 + slice * TILE, s.d, dq_is_wide, sum[slice]);
}

/* ---- launches ---- */

template <class T, int VEC, int SLICES>
static cudaError_t launch_queries(cudaStream_t stream, const struct attention_bwd_args *a, const attention_shape &s,
                                  const backward_inputs<T> &in)
{
    return launch_kernel(attention_bwd_queries_kernel<T, VEC, SLICES>, attention_blocks(a->q, SLICES * TILE),
                         PRODUCT_THREADS, 0, stream, s, in, heads_in<T>(a->dq), rows_fit(a->dq, 4));
}

template <class T, int VEC>
static cudaError_t launch_packs(cudaStream_t stream, const struct attention_bwd_args *a, float *delta)
{
    const attention_shape s = attention_shape_of(a->q, a->scale);
    const backward_inputs<T> in = {heads_in<T>(a->q),   heads_in<T>(a->k),           heads_in<T>(a->v),
                                   heads_in<T>(a->d_o), (const float *)a->lse->data, delta};
    const int64_t tokens = a->q->dim[0] * s.heads * s.t;
    const unsigned blocks = grid_of_all(ceil_div(tokens * DELTA_LANES, DELTA_THREADS));
    cudaError_t e = launch_kernel(attention_delta_kernel<T, VEC>, blocks, DELTA_THREADS, 0, stream, s, tokens,
                                  heads_in<T>(a->o), heads_in<T>(a->d_o), delta);
    if (!e)
        e = launch_kernel(attention_bwd_keys_kernel<T, VEC>, attention_blocks(a->q, TILE), PRODUCT_THREADS, 0, stream,
                          s, in, heads_in<T>(a->dk), heads_in<T>(a->dv), rows_fit(a->dk, 4), rows_fit(a->dv, 4));
    if (e) return e;
    if constexpr (VEC > 1) /* two slices of single elements would spill */
        if (s.d > TILE) return launch_queries<T, VEC, 2>(stream, a, s, in);
    return launch_queries<T, VEC, 1>(stream, a, s, in);
}

extern "C" size_t scratch_attention_bwd(const struct attention_bwd_args *a)
{
    return (size_t)ddpm_tensor_count(a->lse) * sizeof(float); /* delta */
}

extern "C" cudaError_t launch_attention_bwd(cudaStream_t stream, const struct attention_bwd_args *a, void *scratch)
{
    float *const delta = (float *)scratch;
    WITH_TYPE(a->q->dtype, T, constexpr int WIDTH = pack_of<T>::width;
              const bool is_packed = rows_fit(a->q, WIDTH) && rows_fit(a->k, WIDTH) && rows_fit(a->v, WIDTH) &&
                                     rows_fit(a->o, WIDTH) && rows_fit(a->d_o, WIDTH);
              return is_packed ? launch_packs<T, WIDTH>(stream, a, delta) : launch_packs<T, 1>(stream, a, delta));
}

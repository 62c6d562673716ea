/* adamw.cu - the norm of the gradients, and clip + AdamW + every average + zeroed gradients + bf16 weights in one pass.
 *
 * Contracts  ops.h, sum_squares and adamw.   Equations  formulas.h.
 * State      sum, learning rate, bias corrections and decays are read from device memory, so that a captured graph of
 *            the step replays; whether the step is skipped is decided there too.
 * adamw      a thread takes packs of four parameters through a grid-stride loop; what is the same for all of them
 *            (formula_adamw_prepare) is computed once a block. 32 + 8 n_ema bytes a parameter, + 2 for bf16 weights,
 *            all necessary: with one average 42. One instantiation for each number of averages keeps them in registers.
 * sum_squares   a block takes a part of 8192 elements, each thread its eight packs in f64, threads by trees; a second
 *            kernel of one block adds the parts of each chunk of 65536, and the chunks in order, as ops.h defines the
 *            sum. 4 bytes an element. A chunk a block would leave the last wave of blocks nearly empty.
 * Rejected   Atomics: their order is not fixed. Stochastic rounding of the bf16 copy: the f32 weights stay. Averages in
 *            passes of their own: 12 bytes a parameter instead of 8. */
#include "common.cuh"

#include <float.h>

static constexpr int THREADS = 256;
static constexpr int WIDTH = 4; /* elements of a 16-byte pack */
static constexpr int PACKS = 4;  /* of a thread of adamw: they share the preparation of the step */
static constexpr int BLOCKS = 2; /* of adamw on a multiprocessor at least: without it ptxas spills to fit one more */

/* ---- sum_squares ---- */

static constexpr int64_t CHUNK = 65536;
static constexpr int64_t PART = 8192;
static constexpr int64_t PARTS = CHUNK / PART;

template <int VEC> __device__ __forceinline__ double squares_of(const float *x, double sum)
{
    float v[VEC];
    load_floats<VEC>(x, v);
#pragma unroll
    for (int i = 0; i < VEC; i++)
        sum = fma((double)v[i], (double)v[i], sum);
    return sum;
}

/* part[i] = sum of squares of elements i * PART .. (i+1) * PART - 1 */
template <int VEC>
__global__ void __launch_bounds__(THREADS) sum_squares_kernel(int64_t n, int64_t parts, const float *x, double *part)
{
    SHARED(double, room, THREADS / 32);
    for (int64_t p = blockIdx.x; p < parts; p += gridDim.x) {
        const int64_t left = n - p * PART < PART ? n - p * PART : PART;
        const float *from = x + p * PART;
        double sum = 0;
        int64_t at = (int64_t)threadIdx.x * VEC;
        if (left == PART) {
#pragma unroll 8
            for (int k = 0; k < PART / (THREADS * VEC); k++)
                sum = squares_of<VEC>(from + at + (int64_t)k * THREADS * VEC, sum);
        } else {
            for (; at + VEC <= left; at += THREADS * VEC)
                sum = squares_of<VEC>(from + at, sum);
            for (; at < left; at++) /* the one thread whose pack the end cuts */
                sum = squares_of<1>(from + at, sum);
        }
        __syncthreads(); /* the room of the part before has been read */
        sum = block_sum<THREADS>(sum, room);
        if (threadIdx.x == 0) part[p] = sum;
    }
}

/* One block: a thread adds the parts of a chunk, thread 0 the chunks, both in order. */
__global__ void __launch_bounds__(THREADS) sum_chunks_kernel(int64_t parts, const double *part, double *sum)
{
    SHARED(double, chunk, THREADS);
    double all = 0;
    for (int64_t first = 0; first < parts; first += THREADS * PARTS) {
        double mine = 0;
        for (int64_t p = first + threadIdx.x * PARTS, k = 0; k < PARTS && p + k < parts; k++)
            mine += part[p + k];
        __syncthreads(); /* the chunks before have been read */
        chunk[threadIdx.x] = mine;
        __syncthreads();
        if (threadIdx.x > 0) continue;
#pragma unroll 8
        for (int i = 0; i < THREADS; i++) /* those behind the end are zeros */
            all += chunk[i];
    }
    if (threadIdx.x == 0) *sum = all;
}

/* ---- adamw ---- */

struct adamw_call {
    int64_t n;
    float *p, *g, *m, *v, *ema[OPS_EMA_MAX];
    bf16 *half; /* or NULL */
    float beta1, beta2, eps, weight_decay, clip_norm;
    const double *sum;
    const step_state *state;
};

/* One step's numbers, the same for all parameters. */
struct adamw_step {
    formula_adamw_step update;
    float grow[OPS_EMA_MAX]; /* 1 - decay */
    int32_t is_skipped;
};

__device__ __forceinline__ void prepare_step(const adamw_call &a, adamw_step *s)
{
    const double sum = *a.sum;
    *s = adamw_step{}; /* all of it: threads copy it whole */
    s->is_skipped = !(fabs(sum) <= DBL_MAX); /* NaN too */
    if (s->is_skipped) return;
    s->update = formula_adamw_prepare(sum, a.clip_norm, a.beta1, a.beta2, a.eps, a.weight_decay, a.state->lr,
                                      a.state->bias1, a.state->bias2);
#pragma unroll
    for (int k = 0; k < OPS_EMA_MAX; k++)
        s->grow[k] = 1.0f - a.state->ema_decay[k];
}

template <int VEC> __device__ __forceinline__ void clear_pack(float *g)
{
    const float zeros[VEC] = {};
    store_floats<VEC>(g, zeros);
}

template <int VEC> __device__ __forceinline__ void skip_pack(const adamw_call &a, int64_t at)
{
    clear_pack<VEC>(a.g + at);
    if (!a.half) return;
    float p[VEC];
    load_floats<VEC>(a.p + at, p);
    store_floats<VEC>(a.half + at, p);
}

template <int N_EMA, int VEC>
__device__ __forceinline__ void update_pack(const adamw_call &a, const adamw_step &s, int64_t at)
{
    float p[VEC], g[VEC], m[VEC], v[VEC], ema[N_EMA + 1][VEC];
    load_floats<VEC>(a.p + at, p);
    load_floats<VEC>(a.g + at, g);
    load_floats<VEC>(a.m + at, m);
    load_floats<VEC>(a.v + at, v);
#pragma unroll
    for (int k = 0; k < N_EMA; k++)
        load_floats<VEC>(a.ema[k] + at, ema[k]);
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        p[i] = formula_adamw(s.update, p[i], g[i], &m[i], &v[i]);
#pragma unroll
        for (int k = 0; k < N_EMA; k++)
            ema[k][i] = formula_ema(ema[k][i], p[i], s.grow[k]);
    }
    clear_pack<VEC>(a.g + at);
    store_floats<VEC>(a.p + at, p);
    store_floats<VEC>(a.m + at, m);
    store_floats<VEC>(a.v + at, v);
#pragma unroll
    for (int k = 0; k < N_EMA; k++)
        store_floats<VEC>(a.ema[k] + at, ema[k]);
    if (a.half) store_floats<VEC>(a.half + at, p);
}

template <int N_EMA, int VEC> __global__ void __launch_bounds__(THREADS, BLOCKS) adamw_kernel(adamw_call a)
{
    SHARED(adamw_step, shared_step, 1);
    if (threadIdx.x == 0) prepare_step(a, shared_step);
    __syncthreads();
    const adamw_step s = shared_step[0];
    const int64_t stride = (int64_t)gridDim.x * THREADS * VEC;
    for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC; at < a.n; at += stride) {
        if (VEC == 1 || at + VEC <= a.n) {
            if (s.is_skipped)
                skip_pack<VEC>(a, at);
            else
                update_pack<N_EMA, VEC>(a, s, at);
        } else { /* the one pack that the end cuts */
            for (int64_t i = at; i < a.n; i++) {
                if (s.is_skipped)
                    skip_pack<1>(a, i);
                else
                    update_pack<N_EMA, 1>(a, s, i);
            }
        }
    }
}

/* ---- launches ---- */

extern "C" size_t scratch_sum_squares(const struct sum_squares_args *a)
{
    return (size_t)ceil_div(a->x->dim[0], PART) * sizeof(double);
}

extern "C" cudaError_t launch_sum_squares(cudaStream_t stream, const struct sum_squares_args *a, void *scratch)
{
    const int64_t n = a->x->dim[0], parts = ceil_div(n, PART);
    const float *x = static_cast<const float *>(a->x->data);
    double *part = static_cast<double *>(scratch);
    const bool aligned = is_aligned(x, WIDTH * sizeof(float));
    const cudaError_t e = launch_kernel(aligned ? sum_squares_kernel<WIDTH> : sum_squares_kernel<1>,
                                        dim3(grid_for(parts, 1)), dim3(THREADS), 0, stream, n, parts, x, part);
    if (e != cudaSuccess) return e;
    return launch_kernel(sum_chunks_kernel, dim3(1), dim3(THREADS), 0, stream, parts, part, a->sum);
}

extern "C" size_t scratch_adamw(const struct adamw_args *)
{
    return 0;
}

static bool packs_aligned(const adamw_call &c, int n_ema)
{
    bool aligned = is_aligned(c.half, WIDTH * sizeof(bf16));
    const float *const rest[] = {c.p, c.g, c.m, c.v};
    for (const float *x : rest)
        aligned = aligned && is_aligned(x, WIDTH * sizeof(float));
    for (int k = 0; k < n_ema; k++)
        aligned = aligned && is_aligned(c.ema[k], WIDTH * sizeof(float));
    return aligned;
}

template <int N_EMA> static cudaError_t run_adamw(cudaStream_t stream, const adamw_call &c)
{
    const bool aligned = packs_aligned(c, N_EMA);
    const int64_t per_block = (int64_t)THREADS * PACKS * (aligned ? WIDTH : 1);
    return launch_kernel(aligned ? adamw_kernel<N_EMA, WIDTH> : adamw_kernel<N_EMA, 1>, dim3(grid_for(c.n, per_block)),
                         dim3(THREADS), 0, stream, c);
}

extern "C" cudaError_t launch_adamw(cudaStream_t stream, const struct adamw_args *a, void *)
{
    adamw_call c = {};
    c.n = a->p->dim[0];
    c.p = static_cast<float *>(a->p->data);
    c.g = static_cast<float *>(a->g->data);
    c.m = static_cast<float *>(a->m->data);
    c.v = static_cast<float *>(a->v->data);
    for (int k = 0; k < a->n_ema; k++)
        c.ema[k] = static_cast<float *>(a->ema[k]->data);
    c.half = a->half ? static_cast<bf16 *>(a->half->data) : NULL;
    c.beta1 = a->beta1;
    c.beta2 = a->beta2;
    c.eps = a->eps;
    c.weight_decay = a->weight_decay;
    c.clip_norm = a->clip_norm;
    c.sum = a->sum;
    c.state = a->state;
    switch (a->n_ema) {
    case 0: return run_adamw<0>(stream, c);
    case 1: return run_adamw<1>(stream, c);
    case 2: return run_adamw<2>(stream, c);
    case 3: return run_adamw<3>(stream, c);
    default: return run_adamw<4>(stream, c);
    }
}

/* softmax.cu - softmax and log softmax over the rows of a matrix, and their gradients.
 *
 *   y = exp(x - max) / sum, or x - max - ln(sum);   dx = y (dy - sum y dy), or dy - exp(y) sum dy
 *
 * Mapping    a row belongs to LANES threads: a warp up to 1024 columns, where a shuffle ends every sum and no thread
 *            waits for another warp, else a block. Lanes read the row side by side, four bytes each, 128 bytes a
 *            warp: rows of odd lengths need no case of their own.
 * Cost       8 bytes per element forward, 12 backward, the minimum: a row is read again, for the sum and for the
 *            result, from the first-level cache, for it was read a moment ago by the same threads.
 * Numbers    the maximum passes over NaN, and exp(NaN - max) then spreads it over the row, as on the CPU. The
 *            exponentials are computed again for the result, to the same bits, instead of being kept in y.
 * Rejected   the running maximum that saves the first sweep: its rescaling costs more than a cached read. Rows in
 *            registers: a bound on the width, for an op that no network's inner loop has. */
#include "common.cuh"

static constexpr int THREADS = 256;
static constexpr int64_t WARP_COLUMNS = 1024; /* 32 elements a lane: a block would spend as long on its barriers */

/* ---- sums over the lanes of a row ---- */

/* In every lane; `room` is THREADS / 32 floats of the block, free again on return. */
template <int LANES> __device__ __forceinline__ float lanes_sum(float x, float *room)
{
    if constexpr (LANES == 32) {
        return warp_sum(x);
    } else {
        const float sum = block_sum<LANES>(x, room);
        __syncthreads();
        return sum;
    }
}

/* No lane has a NaN. */
template <int LANES> __device__ __forceinline__ float lanes_max(float x, float *room)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    if constexpr (LANES > 32) {
        if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
        __syncthreads();
#pragma unroll
        for (int w = 0; w < LANES / 32; w++)
            x = room[w] > x ? room[w] : x;
        __syncthreads();
    }
    return x;
}

/* ---- kernels ---- */

template <int LANES>
__global__ void __launch_bounds__(THREADS)
    softmax_kernel(int64_t rows, int64_t width, bool log_of, const float *__restrict__ x, float *__restrict__ y)
{
    SHARED(float, room, THREADS / 32);
    constexpr int ROWS = THREADS / LANES;
    const int lane = threadIdx.x % LANES;
    for (int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES; row < rows; row += (int64_t)gridDim.x * ROWS) {
        const float *in = x + row * width;
        float *out = y + row * width;
        float max = -INFINITY, sum = 0.0f;
        for (int64_t i = lane; i < width; i += LANES)
            max = in[i] > max ? in[i] : max;
        max = lanes_max<LANES>(max, room);
        for (int64_t i = lane; i < width; i += LANES)
            sum += formula_exp(in[i] - max);
        sum = lanes_sum<LANES>(sum, room);
        if (log_of) {
            const float log_sum = logf(sum);
            for (int64_t i = lane; i < width; i += LANES)
                out[i] = (in[i] - max) - log_sum;
        } else {
            for (int64_t i = lane; i < width; i += LANES)
                out[i] = formula_exp(in[i] - max) / sum;
        }
    }
}

/* dx may be dy: a lane writes what it alone has read, after the sum. */
template <int LANES>
__global__ void __launch_bounds__(THREADS) softmax_bwd_kernel(int64_t rows, int64_t width, bool log_of,
                                                              const float *__restrict__ y, const float *dy, float *dx)
{
    SHARED(float, room, THREADS / 32);
    constexpr int ROWS = THREADS / LANES;
    const int lane = threadIdx.x % LANES;
    for (int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES; row < rows; row += (int64_t)gridDim.x * ROWS) {
        const float *answer = y + row * width, *up = dy + row * width;
        float *down = dx + row * width;
        float sum = 0.0f;
        if (log_of) {
            for (int64_t i = lane; i < width; i += LANES)
                sum += up[i];
            sum = lanes_sum<LANES>(sum, room);
            for (int64_t i = lane; i < width; i += LANES)
                down[i] = fmaf(-sum, formula_exp(answer[i]), up[i]);
        } else {
            for (int64_t i = lane; i < width; i += LANES)
                sum = fmaf(answer[i], up[i], sum);
            sum = lanes_sum<LANES>(sum, room);
            for (int64_t i = lane; i < width; i += LANES)
                down[i] = answer[i] * (up[i] - sum);
        }
    }
}

/* ---- launchers ---- */

extern "C" size_t scratch_softmax(const struct softmax_args *)
{
    return 0;
}

extern "C" cudaError_t launch_softmax(cudaStream_t stream, const struct softmax_args *a, void *)
{
    const int64_t rows = a->x->dim[0], width = a->x->dim[1];
    const bool narrow = width <= WARP_COLUMNS;
    return launch_kernel(narrow ? softmax_kernel<32> : softmax_kernel<THREADS>,
                         grid_for(rows, narrow ? THREADS / 32 : 1), THREADS, 0, stream, rows, width, a->log,
                         static_cast<const float *>(a->x->data), static_cast<float *>(a->y->data));
}

extern "C" size_t scratch_softmax_bwd(const struct softmax_bwd_args *)
{
    return 0;
}

extern "C" cudaError_t launch_softmax_bwd(cudaStream_t stream, const struct softmax_bwd_args *a, void *)
{
    const int64_t rows = a->y->dim[0], width = a->y->dim[1];
    const bool narrow = width <= WARP_COLUMNS;
    return launch_kernel(narrow ? softmax_bwd_kernel<32> : softmax_bwd_kernel<THREADS>,
                         grid_for(rows, narrow ? THREADS / 32 : 1), THREADS, 0, stream, rows, width, a->log,
                         static_cast<const float *>(a->y->data), static_cast<const float *>(a->dy->data),
                         static_cast<float *>(a->dx->data));
}

/* mse_loss.cu - the loss of the answer, its gradient, and the loss by quarters of the schedule.
 *
 * Contract   ops.h, diffusion_loss.   Equations  formulas.h; dout has the CPU's bits (f32), loss its value to 1e-6.
 * Mapping    as q_sample: a thread takes one quad, draws the noise that q_sample drew, and from out computes
 *            difference, gradient and square; a block takes a run of one image. Then one warp an image adds the runs;
 *            one block adds the images by quarters.
 * Sums       four squares of a thread and those of a warp in f32, by a tree: at most 8 roundings, 5e-7 of a sum of
 *            non-negative numbers, 1e-8 as they come. Warps, runs and images in f64. Order by shapes alone; an image's
 *            loss does not depend on the batch around it.
 * Cost       bytes moved an element, all of them necessary: out and dout 2 or 4 each, x0 1 or 4 (and 4 for eps where it
 *            is given); 8 for a run of 1024 elements. Drawing the noise again is most of the arithmetic (noising.cu).
 * Rejected   Squares in f64 throughout, as on the CPU: one conversion and one fused multiply-add an element, which the
 *            smaller GPUs do at 1/64 of the pace of f32. The last block to finish adding up: it saves a launch and
 *            costs an atomic counter that must be reset. */
#include "noise.cuh"

static constexpr int WARP = 32;
static constexpr int SUM_THREADS = 256;
static constexpr int QUARTERS = 4;

struct loss_call {
    image_cut cut;
    image_source images;
    noise_source noise;
    const int32_t *t;
    const float *tcoef;  /* [T+1,2] */
    const float *weight; /* [N] or NULL */
    float scale;
    double *part; /* [N, runs] sums of squares */
};

__device__ __forceinline__ float weight_of(const float *weight, int64_t n)
{
    return weight ? weight[n] : 1.0f;
}

/* The sum over the block of each thread's x >= 0, in thread 0. room [NOISE_THREADS / 32] is free again after the next
 * __syncthreads. */
__device__ __forceinline__ double sum_of_block(float x, double *room)
{
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = (double)x;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < NOISE_THREADS / WARP; w++)
            sum += room[w];
    return sum;
}

/* d = out - target of one quad; the sum of its squares. */
template <int VEC, class P, class T>
__device__ __forceinline__ float difference_quad(const loss_call &a, const quad_place &q, const T *out, float d[QUAD])
{
    const float *c = a.tcoef + 2 * (int64_t)a.t[q.n];
    const float c0 = c[0], c1 = c[1];
    float x0[QUAD], eps[QUAD], sum = 0;
    load_quad<VEC>(out + q.element, q.left, d);
    pixel_quad<VEC, P>(a.images, q, x0);
    noise_quad<VEC>(a.noise, q, eps);
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        d[i] = VEC == QUAD || i < q.left ? d[i] - formula_mix(c0, c1, x0[i], eps[i]) : 0.0f;
        sum = fmaf(d[i], d[i], sum);
    }
    return sum;
}

/* dout may be out: a thread has read its quad before it writes there. */
template <int VEC, class P, class T>
__global__ void __launch_bounds__(NOISE_THREADS) diffusion_loss_kernel(loss_call a, const T *out, T *dout)
{
    SHARED(double, room, NOISE_THREADS / WARP);
    SHARED(float, slope, 1); /* of the gradient: a division in f64, which one thread does for all */
    for (int64_t task = blockIdx.x; task < a.cut.images * a.cut.runs; task += gridDim.x) {
        const quad_place q = quad_of(a.cut, task);
        float d[QUAD] = {}, sum = 0;
        __syncthreads(); /* room and slope of the task before have been read */
        if (threadIdx.x == 0)
            slope[0] = (float)(2.0 * (double)a.scale * (double)weight_of(a.weight, q.n) / (double)a.cut.size);
        if (q.left > 0) sum = difference_quad<VEC, P>(a, q, out, d);
        const double all = sum_of_block(sum, room); /* and behind its barrier slope is there */
        if (threadIdx.x == 0) a.part[task] = all;
        if (!dout || q.left <= 0) continue;
#pragma unroll
        for (int i = 0; i < QUAD; i++)
            d[i] = formula_loss_grad(slope[0], d[i]);
        store_quad<VEC>(dout + q.element, q.left, d);
    }
}

/* A warp an image: lane l adds runs l, l + 32, ..., a butterfly adds the lanes. */
__global__ void __launch_bounds__(SUM_THREADS) loss_sum_kernel(loss_call a, float *loss)
{
    const int64_t n = ((int64_t)blockIdx.x * SUM_THREADS + threadIdx.x) / WARP;
    if (n >= a.cut.images) return;
    double sum = 0;
    for (int64_t r = threadIdx.x % WARP; r < a.cut.runs; r += WARP)
        sum += a.part[n * a.cut.runs + r];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) loss[n] = (float)((double)weight_of(a.weight, n) * sum / (double)a.cut.size);
}

/* One block: 256 images at a time into shared memory, from where thread q < 4 adds those of its quarter in order. */
__global__ void __launch_bounds__(SUM_THREADS)
loss_quartiles_kernel(int64_t images, const int32_t *t, int32_t steps, const float *loss, float *quartiles)
{
    SHARED(float, losses, SUM_THREADS);
    SHARED(int32_t, quarters, SUM_THREADS);
    const int thread = (int)threadIdx.x;
    double sum = 0, count = 0;
    for (int64_t first = 0; first < images; first += SUM_THREADS) {
        const int64_t n = first + thread;
        __syncthreads(); /* the images before have been read */
        losses[thread] = n < images ? loss[n] : 0.0f;
        quarters[thread] = n < images ? (int32_t)(((int64_t)t[n] - 1) * QUARTERS / steps) : QUARTERS;
        __syncthreads();
        if (thread >= QUARTERS) continue;
#pragma unroll 8
        for (int i = 0; i < SUM_THREADS; i++) {
            sum += quarters[i] == thread ? (double)losses[i] : 0.0;
            count += quarters[i] == thread ? 1.0 : 0.0;
        }
    }
    if (thread >= QUARTERS) return;
    quartiles[2 * thread] = (float)((double)quartiles[2 * thread] + sum);
    quartiles[2 * thread + 1] = (float)((double)quartiles[2 * thread + 1] + count);
}

/* ---- launches ---- */

extern "C" size_t scratch_diffusion_loss(const struct diffusion_loss_args *a)
{
    const image_cut cut = cut_images(a->x0);
    return (size_t)(cut.images * cut.runs) * sizeof(double);
}

template <class P, class T>
static cudaError_t run_loss(cudaStream_t stream, const loss_call &c, bool fit, const T *out, T *dout)
{
    fit = fit && quads_fit(out, c.cut.size) && quads_fit(dout, c.cut.size);
    WITH_QUADS(fit, VEC,
               return launch_kernel(diffusion_loss_kernel<VEC, P, T>, grid_of(c.cut), dim3(NOISE_THREADS), 0, stream, c,
                                    out, dout));
}

static cudaError_t run_loss_of(cudaStream_t stream, const struct diffusion_loss_args *a, const loss_call &c)
{
    const bool fit = sources_fit(a->x0, c.noise, c.cut.size);
    void *dout = a->dout ? a->dout->data : NULL;
    WITH_TYPE(a->out->dtype, T,
              WITH_PIXELS(a->x0->dtype, P,
                          return run_loss<P>(stream, c, fit, static_cast<const T *>(a->out->data),
                                             static_cast<T *>(dout))));
}

extern "C" cudaError_t launch_diffusion_loss(cudaStream_t stream, const struct diffusion_loss_args *a, void *scratch)
{
    loss_call c;
    c.cut = cut_images(a->x0);
    c.images = images_of(a->x0, a->flip);
    c.noise = noise_of(a->eps, a->state, a->index, a->purpose, a->use_step);
    c.t = a->t;
    c.tcoef = a->tcoef;
    c.weight = a->weight;
    c.scale = a->scale;
    c.part = static_cast<double *>(scratch);
    float *loss = static_cast<float *>(a->loss->data);
    cudaError_t e = run_loss_of(stream, a, c);
    if (e != cudaSuccess) return e;
    const dim3 warps(grid_of_all(ceil_div(c.cut.images, SUM_THREADS / WARP)));
    e = launch_kernel(loss_sum_kernel, warps, dim3(SUM_THREADS), 0, stream, c, loss);
    if (e != cudaSuccess || !a->quartiles) return e;
    return launch_kernel(loss_quartiles_kernel, dim3(1), dim3(SUM_THREADS), 0, stream, c.cut.images, a->t, a->T, loss,
                         static_cast<float *>(a->quartiles->data));
}

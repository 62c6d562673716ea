/* step.cu - the ends of a step on the device, in training and sampling: what the host would compute, upload and read back
 * between steps.
 *
 * Contracts  ops.h, open_step, close_step and open_sample.   Equations  step_rates.h; losses in the CPU's order, so the CPU's bits.
 * Mapping    one block each. open_step: thread 0 makes the step's state, then a thread draws an image's time. close_step:
 *            256 losses at a time into shared memory, from where threads 0..3 add those of their quarter and thread 4 all.
 *            open_sample: a thread writes a number of a row; the counter moves when all have read it.
 * Cost       a launch: 8 bytes an image. The sums are serial, 256 additions in 3 us; a batch of 512 waits 6 us for
 *            its mean, beside a step of milliseconds.
 * Rejected   Sums by trees: they would not be the CPU's bits, and save microseconds. Counters moved by adamw's last
 *            block: it saves a launch and couples what a step is to one optimiser. */
#include "common.cuh"

#include "step_rates.h"

#include <float.h>

static constexpr int THREADS = 256;
static constexpr int QUARTERS = 4;
static constexpr int ROW = 8; /* numbers of reverse_step for an image */

__global__ void __launch_bounds__(THREADS) open_step_kernel(int64_t images, step_rates rates, int32_t T,
                                                            const step_counters *counters, const float *model_time,
                                                            const uint64_t *index, step_state *state, int32_t *t,
                                                            float *time)
{
    SHARED(step_state, shared_state, 1);
    if (threadIdx.x == 0) {
        shared_state[0] = step_state_at(&rates, counters->step, counters->updates);
        *state = shared_state[0];
    }
    __syncthreads();
    for (int64_t n = threadIdx.x; n < images; n += THREADS) {
        const int32_t drawn = step_time(&shared_state[0], index[n], T);
        t[n] = drawn;
        time[n] = model_time[drawn];
    }
}

/* Threads 0..3: sum and count of their quarter; thread 4: the sum of all. */
struct loss_sum {
    double sum;
    int64_t count;
};

/* What is left to do when the sums are there: thread 0. */
__device__ __forceinline__ void finish_step(const loss_sum *sums, int64_t images, int32_t slots, float lr, double *sum,
                                            step_counters *counters, step_figures *ring)
{
    step_figures *f = ring + counters->step % slots;
    const double mean = sums[QUARTERS].sum / (double)images;
    const bool is_sum_finite = fabs(*sum) <= DBL_MAX; /* nor NaN */
    const bool is_skipped = !is_sum_finite || !(fabs(mean) <= DBL_MAX);
    if (is_skipped && is_sum_finite) *sum = (double)NAN;
    counters->step++;
    counters->updates += !is_skipped;
    counters->skipped_in_row = is_skipped ? counters->skipped_in_row + 1 : 0;
    f->after = *counters;
    f->loss = mean;
    for (int q = 0; q < QUARTERS; q++) {
        f->quartile_sum[q] = sums[q].sum;
        f->quartile_count[q] = sums[q].count;
    }
    f->sum = *sum;
    f->lr = lr;
    f->is_skipped = is_skipped;
}

__global__ void __launch_bounds__(THREADS) close_step_kernel(int64_t images, const float *loss, const int32_t *t, int32_t T,
                                                             int32_t slots, const step_state *state, double *sum,
                                                             step_counters *counters, step_figures *ring)
{
    SHARED(float, losses, THREADS);
    SHARED(int32_t, quarters, THREADS);
    SHARED(loss_sum, sums, QUARTERS + 1);
    const int thread = (int)threadIdx.x;
    double own = 0;
    int64_t count = 0;
    for (int64_t first = 0; first < images; first += THREADS) {
        const int64_t n = first + thread, left = images - first < THREADS ? images - first : THREADS;
        __syncthreads(); /* the images before have been read */
        losses[thread] = n < images ? loss[n] : 0.0f;
        quarters[thread] = n < images ? step_quarter(t[n], T) : 0;
        __syncthreads();
        if (thread > QUARTERS) continue;
        for (int i = 0; i < (int)left; i++) {
            const bool is_own = thread == QUARTERS || quarters[i] == thread;
            own += is_own ? (double)losses[i] : 0.0;
            count += is_own;
        }
    }
    if (thread <= QUARTERS) sums[thread] = loss_sum{own, count};
    __syncthreads();
    if (thread == 0) finish_step(sums, images, slots, state->lr, sum, counters, ring);
}

__global__ void __launch_bounds__(THREADS) open_sample_kernel(int64_t images, const float *table, const float *times,
                                                              step_state *state, float *rows, float *time)
{
    const uint32_t step = state->step > 1 ? state->step - 1 : 1;
    __syncthreads();
    if (threadIdx.x == 0) state->step = step;
    for (int64_t i = threadIdx.x; i < images * ROW; i += THREADS)
        rows[i] = table[(int64_t)step * ROW + i % ROW];
    for (int64_t n = threadIdx.x; n < images; n += THREADS)
        time[n] = times[step];
}

/* ---- launches ---- */

extern "C" size_t scratch_open_step(const struct open_step_args *)
{
    return 0;
}

extern "C" cudaError_t launch_open_step(cudaStream_t stream, const struct open_step_args *a, void *)
{
    return launch_kernel(open_step_kernel, dim3(1), dim3(THREADS), 0, stream, a->time->dim[0], a->rates, a->T, a->counters,
                         a->model_time, a->index, a->state, a->t, static_cast<float *>(a->time->data));
}

extern "C" size_t scratch_close_step(const struct close_step_args *)
{
    return 0;
}

extern "C" cudaError_t launch_close_step(cudaStream_t stream, const struct close_step_args *a, void *)
{
    return launch_kernel(close_step_kernel, dim3(1), dim3(THREADS), 0, stream, a->loss->dim[0],
                         static_cast<const float *>(a->loss->data), a->t, a->T, a->slots, a->state, a->sum, a->counters,
                         a->ring);
}

extern "C" size_t scratch_open_sample(const struct open_sample_args *)
{
    return 0;
}

extern "C" cudaError_t launch_open_sample(cudaStream_t stream, const struct open_sample_args *a, void *)
{
    return launch_kernel(open_sample_kernel, dim3(1), dim3(THREADS), 0, stream, a->time->dim[0], a->table, a->times,
                         a->state, a->rows, static_cast<float *>(a->time->data));
}

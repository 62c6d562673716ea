/* embedding.cu - numbers to vectors: the sinusoids of the time step, and rows of a table for class labels.
 *
 * These are the smallest tensors of the network, N rows of a few hundred f32 values: what counts is one launch and no
 * long chain of dependent reads, and that gradients are added in the order of n.
 *
 *   time_embedding   a thread computes the sine and cosine of one (n, frequency), in double: N * D / 2 values, so
 *                    that even a GPU with few double units spends microseconds; writes 4 bytes a value
 *   embedding        a thread adds one pack of 16 bytes of one row; 12 bytes moved per value, the minimum
 *   embedding_bwd    the first image of a label owns that label's row: its threads, one a pack, walk through all
 *                    labels and add every row of the label in order, starting from the table's value; a later image's
 *                    threads meet the first and leave. Same sums in the same order as a loop over n, without atomics;
 *                    4 bytes per value of dy, 8 per value of the rows named; labels come from the cache
 *
 * Rejected   embedding_bwd by columns alone, as on the CPU: each of N steps would wait for a read and a write of the
 *            table. An owner per row of the table: the same loop for V rows, of which N at most are named. */
#include "common.cuh"

static constexpr int THREADS = 128;            /* small blocks: a few thousand threads are to reach many processors */
static constexpr int VEC = pack_of<float>::width;

/* ---- kernels ---- */

__global__ void __launch_bounds__(THREADS)
    time_embedding_kernel(int64_t n_rows, int64_t width, bool sin_cos, float shift, const float *__restrict__ t,
                          float *__restrict__ y)
{
    const int64_t half = width / 2, columns = width - half; /* one more when the width is odd: the zero */
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < n_rows * columns; at += step) {
        const int64_t n = at / columns, i = at - n * columns;
        float *row = y + n * width;
        if (i == half) {
            row[width - 1] = 0.0f;
            continue;
        }
        const float f = formula_time_frequency(i, half, shift);
        row[sin_cos ? i : half + i] = formula_time_sin(t[n], f);
        row[sin_cos ? half + i : i] = formula_time_cos(t[n], f);
    }
}

template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
    embedding_kernel(int64_t n_rows, int64_t packs, const float *__restrict__ table, const int32_t *__restrict__ label,
                     float *__restrict__ y)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < n_rows * packs; at += step) {
        const int64_t n = at / packs, i = at - n * packs;
        float sum[WIDTH], entry[WIDTH];
        load_floats<WIDTH>(y + at * WIDTH, sum);
        load_floats<WIDTH>(table + (label[n] * packs + i) * WIDTH, entry);
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            sum[j] += entry[j];
        store_floats<WIDTH>(y + at * WIDTH, sum);
    }
}

/* Pack i of all rows of image n's label, unless an earlier image has the label. */
template <int WIDTH>
__device__ __forceinline__ void add_rows_of_label(int64_t n, int64_t i, int64_t n_rows, int64_t packs, const float *dy,
                                                  const int32_t *label, float *dtable)
{
    const int32_t own = label[n];
    for (int64_t m = 0; m < n; m++)
        if (label[m] == own) return;
    float *entry = dtable + (own * packs + i) * WIDTH;
    float sum[WIDTH], row[WIDTH];
    load_floats<WIDTH>(entry, sum);
    for (int64_t m = n; m < n_rows; m++) {
        if (label[m] != own) continue;
        load_floats<WIDTH>(dy + (m * packs + i) * WIDTH, row);
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            sum[j] += row[j];
    }
    store_floats<WIDTH>(entry, sum);
}

template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
    embedding_bwd_kernel(int64_t n_rows, int64_t packs, const float *__restrict__ dy, const int32_t *__restrict__ label,
                         float *__restrict__ dtable)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < n_rows * packs; at += step) {
        const int64_t n = at / packs;
        add_rows_of_label<WIDTH>(n, at - n * packs, n_rows, packs, dy, label, dtable);
    }
}

/* ---- launchers ---- */

extern "C" size_t scratch_time_embedding(const struct time_embedding_args *)
{
    return 0;
}

extern "C" cudaError_t launch_time_embedding(cudaStream_t stream, const struct time_embedding_args *a, void *)
{
    const int64_t n = a->y->dim[0], width = a->y->dim[1];
    return launch_kernel(time_embedding_kernel, grid_for(n * (width - width / 2), THREADS), THREADS, 0, stream, n,
                         width, a->sin_cos, a->shift, static_cast<const float *>(a->t->data),
                         static_cast<float *>(a->y->data));
}

extern "C" size_t scratch_embedding(const struct embedding_args *)
{
    return 0;
}

extern "C" cudaError_t launch_embedding(cudaStream_t stream, const struct embedding_args *a, void *)
{
    const int64_t n = a->y->dim[0], width = a->y->dim[1];
    const float *table = static_cast<const float *>(a->table->data);
    float *y = static_cast<float *>(a->y->data);
    const bool fits = packs_fit<float>(table, width) && packs_fit<float>(y, width);
    const int64_t packs = fits ? width / VEC : width;
    return launch_kernel(fits ? embedding_kernel<VEC> : embedding_kernel<1>, grid_for(n * packs, THREADS), THREADS, 0,
                         stream, n, packs, table, a->label, y);
}

extern "C" size_t scratch_embedding_bwd(const struct embedding_bwd_args *)
{
    return 0;
}

extern "C" cudaError_t launch_embedding_bwd(cudaStream_t stream, const struct embedding_bwd_args *a, void *)
{
    const int64_t n = a->dy->dim[0], width = a->dy->dim[1];
    const float *dy = static_cast<const float *>(a->dy->data);
    float *dtable = static_cast<float *>(a->dtable->data);
    const bool fits = packs_fit<float>(dy, width) && packs_fit<float>(dtable, width);
    const int64_t packs = fits ? width / VEC : width;
    return launch_kernel(fits ? embedding_bwd_kernel<VEC> : embedding_bwd_kernel<1>, grid_for(n * packs, THREADS),
                         THREADS, 0, stream, n, packs, dy, a->label, dtable);
}

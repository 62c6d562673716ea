/* gather.cu - a batch out of a data set that lies on the device.
 *
 * Contract   ops.h, gather.
 * Mapping    a block takes a run of one image, a thread 16 bytes of it where images are multiples of 16, else one.
 * Cost       2 bytes a pixel's byte, the minimum; a batch of 128 CIFAR images is 393 KB: 2 us, most of it the launch.
 * Rejected   reading the images where they lie, by their numbers, inside q_sample and the loss: two kernels would know
 *            where data comes from, to save 1% of the traffic of noising. */
#include "common.cuh"

static constexpr int THREADS = 128;

template <class V>
__global__ void __launch_bounds__(THREADS)
    gather_images_kernel(int64_t images, int64_t units, int64_t runs, const V *__restrict__ x, const int32_t *__restrict__ number,
                  const int32_t *labels, V *__restrict__ y, int32_t *label)
{
    for (int64_t task = blockIdx.x; task < images * runs; task += gridDim.x) {
        const int64_t n = task / runs, run = task % runs, from = number[n], at = run * THREADS + threadIdx.x;
        if (at < units) y[n * units + at] = x[from * units + at];
        if (label && at == 0) label[n] = labels[from];
    }
}

/* ---- launches ---- */

extern "C" size_t scratch_gather(const struct gather_args *)
{
    return 0;
}

template <class V> static cudaError_t run_gather(cudaStream_t stream, const struct gather_args *a, int64_t units)
{
    const int64_t images = a->y->dim[0], runs = ceil_div(units, THREADS);
    return launch_kernel(gather_images_kernel<V>, dim3(grid_for(images * runs, 1)), dim3(THREADS), 0, stream, images, units, runs,
                         static_cast<const V *>(a->x->data), a->number, a->labels, static_cast<V *>(a->y->data), a->label);
}

extern "C" cudaError_t launch_gather(cudaStream_t stream, const struct gather_args *a, void *)
{
    const int64_t bytes = a->y->dim[1] * a->y->dim[2] * a->y->dim[3], wide = (int64_t)sizeof(uint4);
    const bool fit = bytes % wide == 0 && is_aligned(a->x->data, sizeof(uint4)) && is_aligned(a->y->data, sizeof(uint4));
    return fit ? run_gather<uint4>(stream, a, bytes / wide) : run_gather<uint8_t>(stream, a, bytes);
}

/* resample.cu - twice and half the size: nearest-neighbour upsampling, 2x2 mean, and their gradients.
 *
 * Two maps serve four ops:
 *   spread     each small pixel to four large ones, times 1 (upsample2) or 1/4 (avgpool2_bwd), stored or added
 *   gather     four large pixels to one small one, summed times 1 (upsample2_bwd) or 1/4 (avgpool2), stored or added
 *
 * Mapping    a thread takes one pack of channels of one small pixel, and so the four packs of the large image under
 *            it; consecutive threads take consecutive packs, so both images are read and written in runs of C
 *            channels.
 * Cost       per small element 10 bytes in bf16, 20 in f32: each image is touched once, the minimum; adding reads the
 *            target as well, 18 (36) in spread and 12 (24) in gather.
 * Rejected   a thread per large element, as in most nearest-neighbour kernels: four threads would read the same pack,
 *            and gather could not be written so. */
#include "common.cuh"

static constexpr int THREADS = 256;

/* The smaller image, in packs. */
struct small_image {
    int64_t packs;   /* of all */
    int64_t w;       /* pixels of a row */
    int64_t c;       /* packs of a pixel */
};

/* The pack of the large image that lies over the top left quarter of small pack i. With p the small pixel's number over
 * all rows and images, and `row` the small row's, the large pixel is 2 row * 2w + 2 (p - row w) = 2 (p + row w). */
__device__ __forceinline__ int64_t large_pack(const struct small_image &s, int64_t i)
{
    const int64_t p = i / s.c, row = p / s.w;
    return 2 * (p + row * s.w) * s.c + (i - p * s.c);
}

/* ---- kernels ---- */

template <class T, int VEC>
__global__ void __launch_bounds__(THREADS)
    spread_kernel(struct small_image s, float factor, bool accumulate, const T *__restrict__ from, T *__restrict__ to)
{
    const int64_t step = (int64_t)gridDim.x * THREADS, below = 2 * s.w * s.c;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < s.packs; i += step) {
        const int64_t first = large_pack(s, i);
        float x[VEC], y[4][VEC] = {};
        load_floats<VEC>(from + i * VEC, x);
        if (accumulate) {
#pragma unroll
            for (int corner = 0; corner < 4; corner++)
                load_floats<VEC>(to + (first + (corner / 2) * below + (corner % 2) * s.c) * VEC, y[corner]);
        }
#pragma unroll
        for (int corner = 0; corner < 4; corner++) {
#pragma unroll
            for (int j = 0; j < VEC; j++)
                y[corner][j] = accumulate ? fmaf(factor, x[j], y[corner][j]) : factor * x[j];
            store_floats<VEC>(to + (first + (corner / 2) * below + (corner % 2) * s.c) * VEC, y[corner]);
        }
    }
}

template <class T, int VEC>
__global__ void __launch_bounds__(THREADS)
    gather_kernel(struct small_image s, float factor, bool accumulate, const T *__restrict__ from, T *__restrict__ to)
{
    const int64_t step = (int64_t)gridDim.x * THREADS, below = 2 * s.w * s.c;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < s.packs; i += step) {
        const int64_t first = large_pack(s, i);
        float x[4][VEC], y[VEC];
#pragma unroll
        for (int corner = 0; corner < 4; corner++)
            load_floats<VEC>(from + (first + (corner / 2) * below + (corner % 2) * s.c) * VEC, x[corner]);
        if (accumulate) {
            load_floats<VEC>(to + i * VEC, y);
#pragma unroll
            for (int j = 0; j < VEC; j++)
                y[j] = fmaf(factor, (x[0][j] + x[1][j]) + (x[2][j] + x[3][j]), y[j]);
        } else {
#pragma unroll
            for (int j = 0; j < VEC; j++)
                y[j] = factor * ((x[0][j] + x[1][j]) + (x[2][j] + x[3][j]));
        }
        store_floats<VEC>(to + i * VEC, y);
    }
}

/* ---- launchers ---- */

static struct small_image in_packs(const ddpm_tensor *small, int vec)
{
    const int64_t *dim = small->dim, c = dim[3] / vec;
    return {dim[0] * dim[1] * dim[2] * c, dim[2], c};
}

template <class T>
static cudaError_t spread(cudaStream_t stream, const ddpm_tensor *small, const ddpm_tensor *large, float factor,
                          bool accumulate)
{
    constexpr int VEC = pack_of<T>::width;
    const T *from = static_cast<const T *>(small->data);
    T *to = static_cast<T *>(large->data);
    const bool fits = packs_fit<T>(from, small->dim[3]) && packs_fit<T>(to, small->dim[3]);
    const struct small_image s = in_packs(small, fits ? VEC : 1);
    return launch_kernel(fits ? spread_kernel<T, VEC> : spread_kernel<T, 1>, grid_for(s.packs, THREADS), THREADS, 0,
                         stream, s, factor, accumulate, from, to);
}

template <class T>
static cudaError_t gather(cudaStream_t stream, const ddpm_tensor *large, const ddpm_tensor *small, float factor,
                          bool accumulate)
{
    constexpr int VEC = pack_of<T>::width;
    const T *from = static_cast<const T *>(large->data);
    T *to = static_cast<T *>(small->data);
    const bool fits = packs_fit<T>(from, small->dim[3]) && packs_fit<T>(to, small->dim[3]);
    const struct small_image s = in_packs(small, fits ? VEC : 1);
    return launch_kernel(fits ? gather_kernel<T, VEC> : gather_kernel<T, 1>, grid_for(s.packs, THREADS), THREADS, 0,
                         stream, s, factor, accumulate, from, to);
}

extern "C" size_t scratch_upsample2(const struct upsample2_args *)
{
    return 0;
}

extern "C" cudaError_t launch_upsample2(cudaStream_t stream, const struct upsample2_args *a, void *)
{
    WITH_TYPE(a->x->dtype, T, return spread<T>(stream, a->x, a->y, 1.0f, false));
}

extern "C" size_t scratch_upsample2_bwd(const struct upsample2_bwd_args *)
{
    return 0;
}

extern "C" cudaError_t launch_upsample2_bwd(cudaStream_t stream, const struct upsample2_bwd_args *a, void *)
{
    WITH_TYPE(a->dx->dtype, T, return gather<T>(stream, a->dy, a->dx, 1.0f, a->accumulate));
}

extern "C" size_t scratch_avgpool2(const struct avgpool2_args *)
{
    return 0;
}

extern "C" cudaError_t launch_avgpool2(cudaStream_t stream, const struct avgpool2_args *a, void *)
{
    WITH_TYPE(a->x->dtype, T, return gather<T>(stream, a->x, a->y, 0.25f, false));
}

extern "C" size_t scratch_avgpool2_bwd(const struct avgpool2_bwd_args *)
{
    return 0;
}

extern "C" cudaError_t launch_avgpool2_bwd(cudaStream_t stream, const struct avgpool2_bwd_args *a, void *)
{
    WITH_TYPE(a->dx->dtype, T, return spread<T>(stream, a->dy, a->dx, 0.25f, a->accumulate));
}

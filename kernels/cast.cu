/* cast.cu - f32 to bf16 and back.
 *
 * Contract   ops.h, cast.
 * Mapping    a thread takes four elements, 16 bytes on the f32 side and 8 on the other, consecutive threads consecutive
 *            ones; one element where the count is no multiple of four or a pointer lies askew.
 * Cost       6 bytes an element, the minimum. Weights change type inside adamw; this is for averages that are sampled
 *            or validated, once each time, and for samples on their way into the network. */
#include "common.cuh"

static constexpr int THREADS = 256;
static constexpr int WIDTH = 4;

template <int VEC, class From, class To>
__global__ void __launch_bounds__(THREADS) cast_kernel(int64_t packs, const From *__restrict__ x, To *__restrict__ y)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        float v[VEC];
        load_floats<VEC>(x + i * VEC, v);
        store_floats<VEC>(y + i * VEC, v);
    }
}

/* ---- launches ---- */

extern "C" size_t scratch_cast(const struct cast_args *)
{
    return 0;
}

template <class From, class To> static cudaError_t run_cast(cudaStream_t stream, int64_t n, const void *from, void *to)
{
    const From *x = static_cast<const From *>(from);
    To *y = static_cast<To *>(to);
    const bool fit = n % WIDTH == 0 && is_aligned(x, WIDTH * sizeof(From)) && is_aligned(y, WIDTH * sizeof(To));
    const int64_t packs = fit ? n / WIDTH : n;
    return launch_kernel(fit ? cast_kernel<WIDTH, From, To> : cast_kernel<1, From, To>, dim3(grid_for(packs, THREADS)),
                         dim3(THREADS), 0, stream, packs, x, y);
}

extern "C" cudaError_t launch_cast(cudaStream_t stream, const struct cast_args *a, void *)
{
    int64_t n = 1;
    for (int i = 0; i < a->x->rank; i++)
        n *= a->x->dim[i];
    if (a->x->dtype == DDPM_F32) return run_cast<float, bf16>(stream, n, a->x->data, a->y->data);
    return run_cast<bf16, float>(stream, n, a->x->data, a->y->data);
}

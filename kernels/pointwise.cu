/* pointwise.cu - add, silu and the gradient of silu: one element at a time, whatever the shape.
 *
 * Mapping    a thread takes a pack of 16 bytes of every operand, consecutive threads consecutive packs; where the
 *            count of elements is no multiple of a pack, or a pointer lies askew, packs of one element.
 * Cost       bytes per bf16 (f32) element, all of it the minimum: silu 4 (8), add and silu_bwd 6 (12), silu_bwd that
 *            accumulates 8 (16). silu and its gradient add an exponential and a division, exact to the host's bits.
 * Aliasing   y may be an input and dx may be dy: those pointers are not __restrict__, and a thread has read its pack
 *            of each operand before it writes.
 * Rejected   several packs a thread with all loads first: 16 bytes a thread from 2048 threads already keep 32 KB an
 *            operand in flight per multiprocessor, more than bandwidth times latency asks for. A scalar tail behind
 *            full packs: activations are multiples of a pack. */
#include "common.cuh"

static constexpr int THREADS = 256;

static int64_t element_count(const ddpm_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    return n;
}

/* ---- kernels ---- */

template <class T, int VEC>
__global__ void __launch_bounds__(THREADS) add_kernel(int64_t packs, const T *a, const T *b, T *y)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        float x[VEC], z[VEC];
        load_floats<VEC>(a + i * VEC, x);
        load_floats<VEC>(b + i * VEC, z);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            x[j] += z[j];
        store_floats<VEC>(y + i * VEC, x);
    }
}

template <class T, int VEC> __global__ void __launch_bounds__(THREADS) silu_kernel(int64_t packs, const T *x, T *y)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        float v[VEC];
        load_floats<VEC>(x + i * VEC, v);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            v[j] = formula_silu(v[j]);
        store_floats<VEC>(y + i * VEC, v);
    }
}

template <class T, int VEC>
__global__ void __launch_bounds__(THREADS)
    silu_bwd_kernel(int64_t packs, bool accumulate, const T *__restrict__ x, const T *dy, T *dx)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        float v[VEC], g[VEC], sum[VEC];
        load_floats<VEC>(x + i * VEC, v);
        load_floats<VEC>(dy + i * VEC, g);
        if (accumulate) {
            load_floats<VEC>(dx + i * VEC, sum);
#pragma unroll
            for (int j = 0; j < VEC; j++)
                g[j] = fmaf(g[j], formula_silu_grad(v[j]), sum[j]);
        } else {
#pragma unroll
            for (int j = 0; j < VEC; j++)
                g[j] *= formula_silu_grad(v[j]);
        }
        store_floats<VEC>(dx + i * VEC, g);
    }
}

/* ---- launchers ---- */

template <class T> static cudaError_t add(cudaStream_t stream, const struct add_args *args)
{
    constexpr int VEC = pack_of<T>::width;
    const int64_t n = element_count(args->a);
    const T *a = static_cast<const T *>(args->a->data), *b = static_cast<const T *>(args->b->data);
    T *y = static_cast<T *>(args->y->data);
    if (packs_fit<T>(a, n) && packs_fit<T>(b, n) && packs_fit<T>(y, n))
        return launch_kernel(add_kernel<T, VEC>, grid_for(n / VEC, THREADS), THREADS, 0, stream, n / VEC, a, b, y);
    return launch_kernel(add_kernel<T, 1>, grid_for(n, THREADS), THREADS, 0, stream, n, a, b, y);
}

template <class T> static cudaError_t silu(cudaStream_t stream, const struct silu_args *args)
{
    constexpr int VEC = pack_of<T>::width;
    const int64_t n = element_count(args->x);
    const T *x = static_cast<const T *>(args->x->data);
    T *y = static_cast<T *>(args->y->data);
    if (packs_fit<T>(x, n) && packs_fit<T>(y, n))
        return launch_kernel(silu_kernel<T, VEC>, grid_for(n / VEC, THREADS), THREADS, 0, stream, n / VEC, x, y);
    return launch_kernel(silu_kernel<T, 1>, grid_for(n, THREADS), THREADS, 0, stream, n, x, y);
}

template <class T> static cudaError_t silu_bwd(cudaStream_t stream, const struct silu_bwd_args *args)
{
    constexpr int VEC = pack_of<T>::width;
    const int64_t n = element_count(args->x);
    const T *x = static_cast<const T *>(args->x->data), *dy = static_cast<const T *>(args->dy->data);
    T *dx = static_cast<T *>(args->dx->data);
    if (packs_fit<T>(x, n) && packs_fit<T>(dy, n) && packs_fit<T>(dx, n))
        return launch_kernel(silu_bwd_kernel<T, VEC>, grid_for(n / VEC, THREADS), THREADS, 0, stream, n / VEC,
                             args->accumulate, x, dy, dx);
    return launch_kernel(silu_bwd_kernel<T, 1>, grid_for(n, THREADS), THREADS, 0, stream, n, args->accumulate, x, dy,
                         dx);
}

extern "C" size_t scratch_add(const struct add_args *)
{
    return 0;
}

extern "C" cudaError_t launch_add(cudaStream_t stream, const struct add_args *a, void *)
{
    WITH_TYPE(a->a->dtype, T, return add<T>(stream, a));
}

extern "C" size_t scratch_silu(const struct silu_args *)
{
    return 0;
}

extern "C" cudaError_t launch_silu(cudaStream_t stream, const struct silu_args *a, void *)
{
    WITH_TYPE(a->x->dtype, T, return silu<T>(stream, a));
}

extern "C" size_t scratch_silu_bwd(const struct silu_bwd_args *)
{
    return 0;
}

extern "C" cudaError_t launch_silu_bwd(cudaStream_t stream, const struct silu_bwd_args *a, void *)
{
    WITH_TYPE(a->x->dtype, T, return silu_bwd<T>(stream, a));
}

/* common.cuh - what kernels share: element types, 16-byte packs, sums over a block, and grids.
 *
 * A pack holds 16 bytes: 4 f32 or 8 bf16. Kernels are written over packs of VEC elements with VEC a template parameter: the
 * full pack where channels (or the image) are a multiple of it and pointers are aligned, 1 elsewhere. Arithmetic is f32. */
#ifndef KERNELS_COMMON_CUH
#define KERNELS_COMMON_CUH

#include "device.cuh"

#include "formulas.h"
#include "launch.h"

typedef __nv_bfloat16 bf16;

/* ---- element types ---- */

__device__ __forceinline__ float to_float(float x)
{
    return x;
}

__device__ __forceinline__ float to_float(bf16 x)
{
    return __bfloat162float(x);
}

template <class T> __device__ __forceinline__ T from_float(float x);

template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}

template <> __device__ __forceinline__ bf16 from_float<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}

template <class T> struct pack_of {
    static constexpr int width = 16 / (int)sizeof(T);
};

template <class T, int VEC> struct alignas(sizeof(T) * VEC) pack {
    T v[VEC];
};

/* VEC elements at p, which is aligned to all of them; p is read, not written, by the kernel. */
template <int VEC, class T> __device__ __forceinline__ void load_floats(const T *p, float x[VEC])
{
    const pack<T, VEC> in = *reinterpret_cast<const pack<T, VEC> *>(p);
#pragma unroll
    for (int i = 0; i < VEC; i++)
        x[i] = to_float(in.v[i]);
}

template <int VEC, class T> __device__ __forceinline__ void store_floats(T *p, const float x[VEC])
{
    pack<T, VEC> out;
#pragma unroll
    for (int i = 0; i < VEC; i++)
        out.v[i] = from_float<T>(x[i]);
    *reinterpret_cast<pack<T, VEC> *>(p) = out;
}

/* a b + c for the inside of matrix products: one rounding on the device (which contracts nothing by itself: -fmad=false); on
 * the CPU, where fmaf may be a call, two. */
__device__ __forceinline__ float multiply_add(float a, float b, float c)
{
#ifdef __CUDACC__
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* ---- sums ---- */

/* The sum over a warp, in every lane: a butterfly, the same order every time. */
template <class T> __device__ __forceinline__ T warp_sum(T x)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The sum over a one-dimensional block of THREADS (a multiple of 32, all of them calling), in every thread. `room` is a
 * shared array of THREADS / 32; it may be used again after the next __syncthreads of the caller. */
template <int THREADS, class T> __device__ __forceinline__ T block_sum(T x, T *room)
{
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = room[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++)
        sum += room[w];
    return sum;
}

/* ---- launches ---- */

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Blocks in x for `work` items of `per_block` each, at most `most`: kernels stride over the rest. By shapes alone; tests may
 * ask for fewer, so that blocks have rests. */
static inline unsigned grid_for(int64_t work, int64_t per_block, int64_t most = 65535)
{
    const int64_t blocks = ceil_div(work, per_block), wanted = launch_most_blocks(), limit = wanted < most ? wanted : most;
    return (unsigned)(blocks < 1 ? 1 : blocks < limit ? blocks : limit);
}

/* A grid that must have exactly so many blocks; beyond what CUDA takes it is 0, and the launch is refused. */
static inline unsigned grid_of_all(int64_t blocks)
{
    return blocks <= INT32_MAX ? (unsigned)blocks : 0;
}

/* NULL of NULL. */
static inline const float *floats_of(const ddpm_tensor *t)
{
    return t ? static_cast<const float *>(t->data) : nullptr;
}

static inline bool is_aligned(const void *p, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/* VEC of a tensor's packs: the full one where `extent` (the contiguous run that packs must not cross) and the base allow
 * it, else 1. NULL is aligned. */
template <class T> static inline bool packs_fit(const void *p, int64_t extent)
{
    return extent % pack_of<T>::width == 0 && is_aligned(p, 16);
}

/* Runs `statement` with T as the C++ type of a ddpm_dtype that is DDPM_F32 or DDPM_BF16. */
#define WITH_TYPE(dtype, T, ...)                                                                                          \
    do {                                                                                                                  \
        if ((dtype) == DDPM_BF16) {                                                                                       \
            typedef bf16 T;                                                                                               \
            __VA_ARGS__;                                                                                                  \
        } else {                                                                                                          \
            typedef float T;                                                                                              \
            __VA_ARGS__;                                                                                                  \
        }                                                                                                                 \
    } while (0)

#endif

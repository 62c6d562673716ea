/* cuda_on_cpu.h - what a kernel source sees under g++ instead of nvcc's built-ins; device.cuh includes it.
 *
 * Types, error codes and bf16 are the toolkit's own headers, which compile as C++ and need no library. Keywords of
 * functions vanish. A shared array is a function's static array, for one block runs at a time: it has its own
 * address, so ASan finds overruns and the race checker knows it by name; it is filled with NaN when a block enters it
 * first. */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#ifdef __CUDACC__
#error "nvcc needs no cuda_on_cpu.h"
#endif

#define CUDA_NO_HALF /* no type named `half`: kernels have variables of that name */
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cuda_bf16.h>

#include "block.h"
#include "device_functions.h"

#include <tuple>
#include <type_traits>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ shared_arrays_are_declared_by_SHARED
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))

#define threadIdx (::cuda_on_cpu::now.thread)
#define blockIdx (::cuda_on_cpu::now.block)
#define blockDim (::cuda_on_cpu::now.block_size)
#define gridDim (::cuda_on_cpu::now.grid_size)
#define warpSize 32

#define SHARED(type, name, count)                                                                                      \
    static ::cuda_on_cpu::shared_storage<type[count]> name##_array_;                                                   \
    ::cuda_on_cpu::shared_enter_once(&name##_array_, #name);                                                           \
    type(&name)[count] = ::cuda_on_cpu::shared_as<type[count]>(name##_array_.bytes)
#define SHARED_DYNAMIC(type, name) type *const name = reinterpret_cast<type *>(::cuda_on_cpu::now.dynamic)

namespace cuda_on_cpu {

/* An array of the block, without a constructor, and aligned to its elements and no better, as ptxas may place it. */
template <class A> struct shared_storage {
    uint64_t block_serial; /* of the block that entered last */
    alignas(256) unsigned char before[alignof(A)];
    unsigned char bytes[sizeof(A)];
};

template <class A> static inline void shared_enter_once(shared_storage<A> *s, const char *name)
{
    if (s->block_serial == now.block_serial) return;
    s->block_serial = now.block_serial;
    const unsigned char *end = reinterpret_cast<unsigned char *>(s + 1);
    shared_enter(s->bytes, sizeof s->bytes, (size_t)(end - s->bytes) - sizeof s->bytes, name);
}

template <class A> static inline A &shared_as(unsigned char *bytes)
{
    return *reinterpret_cast<A *>(bytes);
}

/* A kernel and its arguments, each of the kernel's own type. */
template <class... P> struct kernel_code {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;

    static void thread(const void *code)
    {
        const kernel_code *k = static_cast<const kernel_code *>(code);
        std::apply(k->kernel, k->arguments);
    }
    static void destroy(const void *code)
    {
        delete static_cast<const kernel_code *>(code);
    }
};

} // namespace cuda_on_cpu

/* CUDA_ON_CPU_MOST_BLOCKS, for kernels whose blocks stride over their work. */
static inline int64_t launch_most_blocks(void)
{
    return cuda_on_cpu::most_blocks();
}

/* As in device.cuh: the launch's own status. The kernel runs when something waits for `stream`. */
template <class... P, class... A>
static inline cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                                        cudaStream_t stream, A... arguments)
{
    if (launch_is_counted(1)) return cudaSuccess;
    typedef cuda_on_cpu::kernel_code<P...> code;
    const code *k = new code{kernel, std::tuple<std::decay_t<P>...>(static_cast<P>(arguments)...)};
    return cuda_on_cpu::launch({reinterpret_cast<const void *>(kernel), grid, block, shared_bytes, 0, code::thread, k},
                               stream, code::destroy);
}

/* C++ forms that take a kernel by its name, as in the toolkit's cuda_runtime.h. */
template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), enum cudaFuncAttribute attribute, int value)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

template <class... P>
static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, void (*kernel)(P...))
{
    return cudaFuncGetAttributes(attributes, reinterpret_cast<const void *>(kernel));
}

#endif

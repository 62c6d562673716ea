/* device.cuh - what every kernel file includes first: CUDA under nvcc; under a C++ compiler tests/cuda_on_cpu, which runs
 * the same source on the CPU. Sources keep to these rules, and nothing else differs:
 *
 *   launch           launch_kernel(kernel, grid, block, dynamic shared bytes, stream, arguments...), never <<<>>>
 *   shared memory    SHARED(type, name, count) declares an array of the block; SHARED_DYNAMIC(type, name) names the
 *                    launch's dynamic part
 *   not used         cooperative groups, CUB, inline PTX, clusters, waiting of one block for another */
#ifndef KERNELS_DEVICE_CUH
#define KERNELS_DEVICE_CUH

#include "launch_count.h"

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define SHARED(type, name, count) __shared__ type name[count]
#define SHARED_DYNAMIC(type, name)                                                                                        \
    extern __shared__ __align__(16) unsigned char shared_dynamic_[];                                                      \
    type *const name = reinterpret_cast<type *>(shared_dynamic_)

static inline int64_t launch_most_blocks(void)
{
    return INT64_MAX;
}

/* The launch's own status; faults inside the kernel arrive later, at a synchronisation. */
template <class... P, class... A>
static inline cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                                        cudaStream_t stream, A... arguments)
{
    if (launch_is_counted(1)) return cudaSuccess;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

#else

#include "cuda_on_cpu.h"

#endif

#include <stddef.h>
#include <stdint.h>

#endif

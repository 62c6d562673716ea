/* launch.cpp - what a device would refuse at a launch is refused here, with CUDA's codes; the rest is queued. */
#include "block.h"
#include "runtime.h"

#include <map>
#include <memory>
#include <string.h>

namespace cuda_on_cpu {

static constexpr size_t SHARED_BYTES = 48 << 10, SHARED_BYTES_OPTIN = 227 << 10;

/* Largest dynamic shared memory by cudaFuncSetAttribute, of kernels that have been given one. */
static std::map<const void *, size_t> &dynamic_bytes_of = *new std::map<const void *, size_t>;
static long kernels_run;

static size_t shared_bytes_max(const void *kernel)
{
    const auto found = dynamic_bytes_of.find(kernel);
    return found == dynamic_bytes_of.end() ? SHARED_BYTES : found->second + shared_static_bytes(kernel);
}

static bool fits(dim3 size, uint64_t x, uint64_t y, uint64_t z)
{
    return size.x && size.y && size.z && size.x <= x && size.y <= y && size.z <= z;
}

/* Static shared memory is known once a block has run; before, the block runner aborts where it is too much. */
static cudaError_t check(const kernel_call &call)
{
    if (!call.kernel) return cudaErrorInvalidDeviceFunction;
    if (!fits(call.grid, INT32_MAX, 65535, 65535) || !fits(call.block, MAX_THREADS, MAX_THREADS, 64))
        return cudaErrorInvalidConfiguration;
    if ((uint64_t)call.block.x * call.block.y * call.block.z > MAX_THREADS) return cudaErrorInvalidConfiguration;
    if (shared_static_bytes(call.kernel) + call.dynamic_bytes > shared_bytes_max(call.kernel)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

static void run_call(const kernel_call &call)
{
    kernels_run++;
    charge_kernel();
    kernel_call with_limit = call;
    const auto found = dynamic_bytes_of.find(call.kernel);
    with_limit.static_bytes_max = found == dynamic_bytes_of.end() ? SHARED_BYTES - call.dynamic_bytes : SHARED_BYTES;
    if (with_limit.static_bytes_max > SHARED_BYTES_OPTIN - call.dynamic_bytes)
        with_limit.static_bytes_max = SHARED_BYTES_OPTIN - call.dynamic_bytes;
    run_grid(with_limit);
}

int64_t most_blocks()
{
    static const int n = number_from_environment("CUDA_ON_CPU_MOST_BLOCKS", 0);
    return n > 0 ? n : INT64_MAX;
}

cudaError_t launch(const kernel_call &call, cudaStream_t stream, void (*destroy)(const void *code))
{
    const std::shared_ptr<const void> code(call.code, destroy);
    return enter(ORDINARY, [&] {
        const cudaError_t e = check(call);
        return e ? e : stream_submit(stream, WORK_KERNEL, [call, code] { run_call(call); });
    });
}

static cudaError_t set_attribute(const void *kernel, enum cudaFuncAttribute name, int value)
{
    if (!kernel) return cudaErrorInvalidDeviceFunction;
    if (name == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (name != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0) return cudaErrorInvalidValue;
    if ((size_t)value + shared_static_bytes(kernel) > SHARED_BYTES_OPTIN) return cudaErrorInvalidValue;
    dynamic_bytes_of[kernel] = (size_t)value;
    return cudaSuccess;
}

static cudaError_t attributes(struct cudaFuncAttributes *a, const void *kernel)
{
    if (!kernel || !a) return cudaErrorInvalidDeviceFunction;
    memset(a, 0, sizeof *a);
    a->sharedSizeBytes = shared_static_bytes(kernel);
    a->maxThreadsPerBlock = MAX_THREADS;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = (int)(shared_bytes_max(kernel) - a->sharedSizeBytes);
    return cudaSuccess;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute name, int value)
{
    return enter(ORDINARY, [&] { return set_attribute(kernel, name, value); });
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *kernel)
{
    return enter(ORDINARY, [&] { return attributes(a, kernel); });
}

long cuda_on_cpu_kernels(void)
{
    return kernels_run;
}

} /* extern "C" */

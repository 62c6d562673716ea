/* runtime.cpp - the way into every call: the lock, the count, failures on demand, the last error; and the device that
 * is pretended, an H200 by its numbers, so that code which asks for limits takes the paths it will take on one. */
#include "runtime.h"

#include <algorithm>
#include <mutex>
#include <stdlib.h>
#include <string.h>

namespace cuda_on_cpu {

int number_from_environment(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

static std::recursive_mutex lock;
static long calls, calls_to_failure = number_from_environment("CUDA_ON_CPU_FAIL_CALL", 0);
static cudaError_t failure = (cudaError_t)number_from_environment("CUDA_ON_CPU_FAIL_CODE", cudaErrorUnknown), stuck = cudaSuccess;
static bool failure_sticks = number_from_environment("CUDA_ON_CPU_FAIL_STICKS", 0) != 0;
static void (*before_calls)(void);

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int device = 0;

static int devices = number_from_environment("CUDA_ON_CPU_DEVICES", 1);

int current_device()
{
    return device;
}

int device_count()
{
    return devices;
}

/* ---- libraries ---- */

static std::vector<size_t (*)()> &live_counts()
{
    static std::vector<size_t (*)()> counts;
    return counts;
}

bool count_live(size_t (*count)())
{
    live_counts().push_back(count);
    return true;
}

static bool libraries_have_engines = true;

bool engines_exist()
{
    return libraries_have_engines;
}

/* Counts this call; the error it has to give. */
static cudaError_t asked_failure(entry_kind kind)
{
    calls++;
    if (calls_to_failure > 0 && --calls_to_failure == 0) {
        if (failure_sticks) stuck = failure;
        return failure;
    }
    if (kind == NEEDS_NO_GPU) return cudaSuccess;
    if (!devices) return cudaErrorNoDevice;
    return stuck;
}

cudaError_t enter(entry_kind kind, const std::function<cudaError_t()> &body)
{
    if (before_calls && !streams_running()) before_calls();
    std::lock_guard<std::recursive_mutex> holding(lock);
    cudaError_t e;
    if (streams_running()) {
        e = cudaErrorNotPermitted; /* a host function that calls CUDA */
    } else {
        e = asked_failure(kind);
        if (!e) e = body();
        else if (kind == FREES) body();
    }
    if (e) last_error = e;
    return e;
}

/* ---- names of errors ---- */

#define ERROR_LIST(X)                                                                                                  \
    X(cudaSuccess, "no error")                                                                                         \
    X(cudaErrorInvalidValue, "invalid argument")                                                                       \
    X(cudaErrorMemoryAllocation, "out of memory")                                                                      \
    X(cudaErrorInitializationError, "initialization error")                                                            \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                 \
    X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                                            \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                     \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                                       \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                                         \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                                                \
    X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")                     \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                                \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                       \
    X(cudaErrorNotReady, "device not ready")                                                                           \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                             \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                                        \
    X(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                               \
    X(cudaErrorMisalignedAddress, "misaligned address")                                                                \
    X(cudaErrorHardwareStackError, "hardware stack error")                                                             \
    X(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                                           \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                                            \
    X(cudaErrorNotPermitted, "operation not permitted")                                                                \
    X(cudaErrorNotSupported, "operation not supported")                                                                \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                           \
    X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")                    \
    X(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences")                  \
    X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")                         \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                                            \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")                      \
    X(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream")  \
    X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream")               \
    X(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread")   \
    X(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable")                                \
    X(cudaErrorUnknown, "unknown error")

struct error_text {
    cudaError_t code;
    const char *name, *sentence;
};

#define X(code, sentence) {code, #code, sentence},
static const error_text error_texts[] = {ERROR_LIST(X)};
#undef X

static const error_text *text_of(cudaError_t e)
{
    static const error_text unknown = {cudaErrorUnknown, "unrecognized error code", "unrecognized error code"};
    for (const error_text &t : error_texts)
        if (t.code == e) return &t;
    return &unknown;
}

/* ---- the device ---- */

static constexpr int RUNTIME_VERSION = CUDART_VERSION;

static cudaDeviceProp properties()
{
    cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    strcpy(p.name, "CPU stand-in");
    p.totalGlobalMem = memory_info().total_bytes;
    p.sharedMemPerBlock = 48 << 10;
    p.sharedMemPerBlockOptin = 227 << 10;
    p.sharedMemPerMultiprocessor = 228 << 10;
    p.reservedSharedMemPerBlock = 1 << 10;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.memPitch = INT32_MAX;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiProcessor = 2048;
    p.maxBlocksPerMultiProcessor = 32;
    const int sizes[] = {1024, 1024, 64}, grids[] = {INT32_MAX, 65535, 65535};
    std::copy(sizes, sizes + 3, p.maxThreadsDim);
    std::copy(grids, grids + 3, p.maxGridSize);
    p.totalConstMem = 64 << 10;
    p.major = 9;
    p.minor = 0;
    p.textureAlignment = 512;
    p.multiProcessorCount = 132;
    p.l2CacheSize = 60 << 20;
    p.memoryBusWidth = 6144;
    p.asyncEngineCount = 3;
    p.unifiedAddressing = p.managedMemory = p.concurrentKernels = p.canMapHostMemory = 1;
    p.ECCEnabled = p.streamPrioritiesSupported = p.globalL1CacheSupported = p.localL1CacheSupported = 1;
    p.pciBusID = 1;
    return p;
}

static cudaError_t attribute(enum cudaDeviceAttr name, int *value)
{
    const cudaDeviceProp p = properties();
    switch (name) {
#define CASE(attribute, x)                                                                                             \
    case attribute:                                                                                                    \
        *value = (int)(x);                                                                                             \
        return cudaSuccess;
        CASE(cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock)
        CASE(cudaDevAttrMaxBlockDimX, p.maxThreadsDim[0])
        CASE(cudaDevAttrMaxBlockDimY, p.maxThreadsDim[1])
        CASE(cudaDevAttrMaxBlockDimZ, p.maxThreadsDim[2])
        CASE(cudaDevAttrMaxGridDimX, p.maxGridSize[0])
        CASE(cudaDevAttrMaxGridDimY, p.maxGridSize[1])
        CASE(cudaDevAttrMaxGridDimZ, p.maxGridSize[2])
        CASE(cudaDevAttrMaxSharedMemoryPerBlock, p.sharedMemPerBlock)
        CASE(cudaDevAttrMaxSharedMemoryPerBlockOptin, p.sharedMemPerBlockOptin)
        CASE(cudaDevAttrMaxSharedMemoryPerMultiprocessor, p.sharedMemPerMultiprocessor)
        CASE(cudaDevAttrWarpSize, p.warpSize)
        CASE(cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock)
        CASE(cudaDevAttrMultiProcessorCount, p.multiProcessorCount)
        CASE(cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor)
        CASE(cudaDevAttrL2CacheSize, p.l2CacheSize)
        CASE(cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth)
        CASE(cudaDevAttrClockRate, 1980000)
        CASE(cudaDevAttrMemoryClockRate, 3201000)
        CASE(cudaDevAttrComputeCapabilityMajor, p.major)
        CASE(cudaDevAttrComputeCapabilityMinor, p.minor)
        CASE(cudaDevAttrConcurrentKernels, p.concurrentKernels)
        CASE(cudaDevAttrUnifiedAddressing, p.unifiedAddressing)
        CASE(cudaDevAttrManagedMemory, p.managedMemory)
        CASE(cudaDevAttrIntegrated, p.integrated)
        CASE(cudaDevAttrAsyncEngineCount, p.asyncEngineCount)
        CASE(cudaDevAttrMemoryPoolsSupported, 0)
        CASE(cudaDevAttrCooperativeLaunch, 0)
#undef CASE
    default:
        return cudaErrorInvalidValue;
    }
}

static cudaError_t reset()
{
    if (!stuck) streams_finish(); /* else what was queued died with the context */
    stuck = last_error = cudaSuccess;
    streams_reset();
    graphs_reset();
    memory_reset();
    return cudaSuccess;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

/* ---- errors ---- */

cudaError_t cudaPeekAtLastError(void)
{
    return stuck ? stuck : last_error;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return e;
}

const char *cudaGetErrorName(cudaError_t e)
{
    return text_of(e)->name;
}

const char *cudaGetErrorString(cudaError_t e)
{
    return text_of(e)->sentence;
}

/* ---- device ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    return enter(NEEDS_NO_GPU, [&] {
        *count = devices;
        return devices ? cudaSuccess : cudaErrorNoDevice;
    });
}

cudaError_t cudaSetDevice(int ordinal)
{
    return enter(ORDINARY, [&] {
        if (ordinal < 0 || ordinal >= devices) return cudaErrorInvalidDevice;
        device = ordinal;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDevice(int *ordinal)
{
    return enter(ORDINARY, [&] {
        *ordinal = device;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int ordinal)
{
    return enter(ORDINARY, [&] {
        if (ordinal < 0 || ordinal >= devices) return cudaErrorInvalidDevice;
        *p = properties();
        p->pciDeviceID = ordinal;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int ordinal)
{
    return enter(ORDINARY, [&] {
        return ordinal < 0 || ordinal >= devices ? cudaErrorInvalidDevice : attribute(name, value);
    });
}

cudaError_t cudaDriverGetVersion(int *version)
{
    return enter(NEEDS_NO_GPU, [&] {
        *version = devices ? RUNTIME_VERSION : 0; /* 0: no driver */
        return cudaSuccess;
    });
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return enter(NEEDS_NO_GPU, [&] {
        *version = RUNTIME_VERSION;
        return cudaSuccess;
    });
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    return enter(ORDINARY, [&] {
        const memory_sizes sizes = memory_info();
        *free_bytes = sizes.free_bytes;
        *total_bytes = sizes.total_bytes;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceSynchronize(void)
{
    return enter(ORDINARY, [&] {
        const cudaError_t e = capture_forbids();
        if (e) return e;
        streams_finish();
        memory_check();
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceReset(void)
{
    return enter(NEEDS_NO_GPU, [&] { return reset(); });
}

/* ---- control.h ---- */

void cuda_on_cpu_fail_call(long n, cudaError_t error, bool sticky)
{
    std::lock_guard<std::recursive_mutex> holding(lock);
    calls_to_failure = n;
    failure = error;
    failure_sticks = sticky;
}

long cuda_on_cpu_calls(void)
{
    return calls;
}

void cuda_on_cpu_before_calls(void (*hook)(void))
{
    before_calls = hook;
}

void cuda_on_cpu_devices(int count)
{
    devices = count;
}

size_t cuda_on_cpu_live(void)
{
    size_t live = memory_live() + streams_live() + graphs_live();
    for (size_t (*count)() : live_counts())
        live += count();
    return live;
}

void cuda_on_cpu_engines(bool exist)
{
    libraries_have_engines = exist;
}

} /* extern "C" */

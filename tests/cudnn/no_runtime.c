/* no_runtime.c - the calls of the CUDA runtime that running a plan makes, where plans are made and never run: a build without
 * the CUDA backend links no runtime. */
#include <cuda_runtime_api.h>

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)to, (void)value, (void)bytes, (void)stream;
    return cudaErrorNoDevice;
}

const char *cudaGetErrorName(cudaError_t e)
{
    (void)e;
    return "cudaErrorNoDevice";
}

const char *cudaGetErrorString(cudaError_t e)
{
    (void)e;
    return "plans are not run here";
}

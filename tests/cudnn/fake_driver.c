/* fake_driver.c - a libcuda.so.1 that loads any machine code and runs none, for tests alone.
 *
 * cuDNN compiles its fused engines at run time and, to finish a plan, hands the result to the driver. On a machine
 * without one such engines vanish from its lists. With this library in LD_LIBRARY_PATH they are planned: code is accepted
 * unseen, no device is reported, and every call that would touch one fails. It shows which plans cuDNN makes, not that a
 * driver would accept their code. */
#include <cuda.h>

/* Any non-null address does for a handle: it is only passed back. */
static int handle;

CUresult cuInit(unsigned flags)
{
    (void)flags;
    return CUDA_ERROR_NO_DEVICE;
}

CUresult cuDeviceGetCount(int *count)
{
    *count = 0;
    return CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult e, const char **name)
{
    (void)e;
    *name = "no driver";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult e, const char **text)
{
    (void)e;
    *text = "this is the tests' stand-in for a driver";
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit, void **jit_values, unsigned n_jit,
                           CUlibraryOption *options, void **values, unsigned n)
{
    (void)code, (void)jit, (void)jit_values, (void)n_jit, (void)options, (void)values, (void)n;
    *library = (CUlibrary)&handle;
    return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary library)
{
    (void)library;
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    (void)library, (void)name;
    *kernel = (CUkernel)&handle;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    (void)kernel;
    *function = (CUfunction)&handle;
    return CUDA_SUCCESS;
}

/* What cuDNN looks up at load and calls on a device alone: it has to be there. Other signatures than cuda.h's, hence by
 * name: arguments are not looked at. */
#define ABSENT(name) __asm__(".globl " #name "\n.type " #name ", @function\n.set " #name ", refused");
__attribute__((used)) static int refused(void)
{
    return CUDA_ERROR_STUB_LIBRARY;
}
ABSENT(cuCtxGetCurrent)
ABSENT(cuCtxGetDevice)
ABSENT(cuCtxGetLimit)
ABSENT(cuCtxPopCurrent)
ABSENT(cuCtxPushCurrent)
ABSENT(cuDeviceGet)
ABSENT(cuDeviceGetAttribute)
ABSENT(cuDevicePrimaryCtxRelease)
ABSENT(cuDevicePrimaryCtxReset)
ABSENT(cuDevicePrimaryCtxRetain)
ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetAttribute)
ABSENT(cuKernelGetAttribute)
ABSENT(cuKernelSetAttribute)
ABSENT(cuLaunchCooperativeKernel)
ABSENT(cuLaunchKernel)
ABSENT(cuLaunchKernelEx)
ABSENT(cuLibraryLoadFromFile)
ABSENT(cuLinkAddData)
ABSENT(cuLinkAddData_v2)
ABSENT(cuLinkAddFile_v2)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate)
ABSENT(cuLinkCreate_v2)
ABSENT(cuLinkDestroy)
ABSENT(cuMemcpyDtoH_v2)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleGetGlobal_v2)
ABSENT(cuModuleLoadData)
ABSENT(cuModuleLoadDataEx)
ABSENT(cuModuleLoadFatBinary)
ABSENT(cuModuleUnload)
ABSENT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
ABSENT(cuOccupancyMaxPotentialClusterSize)
ABSENT(cuStreamGetCtx)
ABSENT(cuStreamSynchronize)
ABSENT(cuTensorMapEncodeIm2col)
ABSENT(cuTensorMapEncodeTiled)

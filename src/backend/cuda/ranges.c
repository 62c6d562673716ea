/* ranges.c - each op as a named range in Nsight's timelines.
 *
 * NVTX is headers alone: where no tool has injected its library a range costs one test of a pointer. Without the
 * headers (they come with the toolkit, not with every runtime package) ranges are nothing. */
#include "cuda_backend.h"

#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAS_NVTX 1
#endif
#endif

#ifdef HAS_NVTX

void cuda_range_begin(const char *name)
{
    nvtxRangePushA(name);
}

void cuda_range_end(void)
{
    nvtxRangePop();
}

#else

void cuda_range_begin(const char *name)
{
    (void)name;
}

void cuda_range_end(void)
{
}

#endif

/* winograd_avx2.c - 8 channels at a time. */
#include "winograd.h"

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2")))
#define LANES  8
#include "winograd_lanes.h"

const struct winograd *winograd_avx2(void)
{
    return __builtin_cpu_supports("avx2") ? &transforms : NULL;
}
#else
const struct winograd *winograd_avx2(void)
{
    return NULL;
}
#endif

/* winograd_avx512.c - 16 channels at a time. */
#include "winograd.h"

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx512f")))
#define LANES  16
#include "winograd_lanes.h"

const struct winograd *winograd_avx512(void)
{
    return __builtin_cpu_supports("avx512f") ? &transforms : NULL;
}
#else
const struct winograd *winograd_avx512(void)
{
    return NULL;
}
#endif

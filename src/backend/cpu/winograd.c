/* winograd.c - which instruction set's transforms this processor can run. */
#include "winograd.h"

const struct winograd *winograd(void)
{
    static const struct winograd *chosen; /* every thread computes the same value */
    const struct winograd *w = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (w) return w;
    w = winograd_avx512();
    if (!w) w = winograd_avx2();
    if (!w) w = winograd_plain();
    __atomic_store_n(&chosen, w, __ATOMIC_RELAXED);
    return w;
}

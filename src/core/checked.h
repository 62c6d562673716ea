/* checked.h - sizes that cannot wrap. Each returns false, and leaves *out alone, on overflow. */
#ifndef CORE_CHECKED_H
#define CORE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline bool checked_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

/* The product of n non-negative extents times `unit`; false on overflow or a negative extent. */
static inline bool checked_product(const int64_t *dim, int n, size_t unit, size_t *out)
{
    size_t r = unit;
    for (int i = 0; i < n; i++)
        if (dim[i] < 0 || __builtin_mul_overflow(r, (uint64_t)dim[i], &r)) return false;
    *out = r;
    return true;
}

#endif

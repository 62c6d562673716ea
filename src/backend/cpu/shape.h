/* shape.h - checks for ops that take any shape, or the shape of another of their tensors. */
#ifndef BACKEND_CPU_SHAPE_H
#define BACKEND_CPU_SHAPE_H

#include "cpu.h"

/* Contiguous, of any rank and extents. */
static inline ddpm_status cpu_expect_any(const ddpm_backend *be, const char *op, const char *what,
                                         const ddpm_tensor *t, ddpm_dtype dtype)
{
    return cpu_expect(be, op, what, t, dtype, CPU_DENSE, t ? t->rank : 1, (int64_t[]){-1, -1, -1, -1});
}

/* Contiguous, with the extents of `like`, which has been checked. */
static inline ddpm_status cpu_expect_like(const ddpm_backend *be, const char *op, const char *what,
                                          const ddpm_tensor *t, ddpm_dtype dtype, const ddpm_tensor *like)
{
    return cpu_expect(be, op, what, t, dtype, CPU_DENSE, like->rank, like->dim);
}

#endif

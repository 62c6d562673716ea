/* cpu.h - what the CPU backend's ops share: the table's functions, scratch and tasks. */
#ifndef BACKEND_CPU_H
#define BACKEND_CPU_H

#include "backend_internal.h"
#include "fail.h"
#include "pool.h"
#include "vector.h"

#define CPU_ALIGN 64 /* bytes: a cache line, and the widest vector */

/* Called with arguments that fit the op's contract (contracts.h). */
#define X(op) ddpm_status cpu_##op(ddpm_backend *be, const struct op##_args *a);
OP_LIST(X)
#undef X
extern const struct ops cpu_ops;

/* Ops return right after their cpu_scratch() call while this holds. */
static inline bool cpu_is_measuring(const ddpm_backend *be)
{
    return be->is_measuring;
}

static inline int cpu_threads(const ddpm_backend *be)
{
    return be->threads;
}

/* Scratch of one op's call, 64-byte aligned, contents undefined; the next op's call overwrites it, so an op takes
 * all it needs in one call. While measuring it only notes the size and gives NULL. Grows when the measured size was
 * less; NOMEM when it cannot. bytes == 0 gives NULL. */
ddpm_status cpu_scratch(ddpm_backend *be, size_t bytes, void **out);

/* Runs task(context, i, thread) for i = 0 .. n-1, each once, on the backend's threads, in any order; 0 <= thread <
 * cpu_threads(). The caller cuts the work by shapes alone, never by the number of threads, and each task writes only what is
 * its own: then the bits do not depend on the threads. Inside a task OpenMP and oneDNN see one thread. */
typedef pool_task cpu_task;
void cpu_run(ddpm_backend *be, int64_t n, cpu_task task, void *context);

/* sum[i] += x[i], i < n, on the calling thread; the two do not overlap (pointwise.c). */
void cpu_add_to(float *restrict sum, const float *restrict x, int64_t n);

#endif

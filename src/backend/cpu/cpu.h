/* cpu.h - what the CPU backend's ops share: the table's functions, scratch, tasks and checks. */
#ifndef BACKEND_CPU_H
#define BACKEND_CPU_H

#include "backend_internal.h"
#include "fail.h"

/* A loop compiled for three instruction sets, chosen when the program is loaded. Not under a sanitizer, whose runtime is
 * not there yet when the choice is made. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&                  \
    !defined(__SANITIZE_THREAD__)
#define CPU_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CPU_CLONES
#endif

#define CPU_ALIGN 64 /* bytes: a cache line, and the widest vector */

#define X(op) ddpm_status cpu_##op(ddpm_backend *be, const struct op##_args *a);
OP_LIST(X)
#undef X
extern const struct ops cpu_ops;

/* Ops return right after their checks and their cpu_scratch() call while this holds. */
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
typedef void (*cpu_task)(void *context, int64_t i, int thread);
void cpu_run(ddpm_backend *be, int64_t n, cpu_task task, void *context);

/* How the strides of a tensor may look. */
enum cpu_layout {
    CPU_DENSE,   /* contiguous */
    CPU_VIEW,    /* a slice of channels: stride of the last dimension 1, the others at least the extent they step over */
    CPU_STRIDED, /* stride of the last dimension 1, the others free */
};
/* SHAPE unless t is there and has this dtype, rank, extents (-1: any) and layout; the message begins "op: what". data
 * may be NULL while measuring or when the tensor is empty. */
ddpm_status cpu_expect(const ddpm_backend *be, const char *op, const char *what, const ddpm_tensor *t, ddpm_dtype dtype,
                       enum cpu_layout layout, int rank, const int64_t dim[]);
/* The usual cases: f32, with the extents as arguments. */
#define CPU_EXPECT(be, op, t, layout, ...)                                                         \
    TRY(cpu_expect(be, op, #t, t, DDPM_F32, layout,                                                \
                   (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                      \
                   (int64_t[]){__VA_ARGS__}))
#define CPU_EXPECT_OR_NULL(be, op, t, layout, ...)                                                 \
    do {                                                                                           \
        if (t) CPU_EXPECT(be, op, t, layout, __VA_ARGS__);                                         \
    } while (0)

#endif

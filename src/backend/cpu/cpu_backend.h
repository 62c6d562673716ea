/* cpu_backend.h - the CPU's backend object: what device.c makes and conv.c keeps packed weights in. */
#ifndef CPU_BACKEND_H
#define CPU_BACKEND_H

#include "cpu.h"
#include "onednn.h"
#include "pool.h"

/* In front of every block of memory; a line wide, so that data stays aligned. */
struct cpu_block {
    void *raw;
    size_t bytes;
};

#define PACKED_MAX 512

/* Weights in the layout of one algorithm, kept while they are frozen. */
struct cpu_packed {
    const void *weights;
    int form; /* enum conv_form */
    size_t bytes;
    void *data;
};

struct cpu_backend {
    ddpm_backend base; /* first: callers hold a pointer to it */
    struct pool *pool;
    struct onednn *onednn;
    void *scratch;
    size_t scratch_have;
    struct cpu_packed packed[PACKED_MAX];
    int n_packed;
};

ddpm_status cpu_alloc(ddpm_backend *be, size_t bytes, void **out);
void cpu_release(ddpm_backend *be, void *block);

/* The place for `bytes` of packed weights of this form: kept memory while weights are frozen (*is_ready: written by an
 * earlier call), else `transient` as given. */
ddpm_status packed_place(ddpm_backend *be, const void *weights, int form, size_t bytes, void *transient, void **out,
                         bool *is_ready);
void packed_clear(ddpm_backend *be);

#endif

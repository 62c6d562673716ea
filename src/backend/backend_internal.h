/* backend_internal.h - what every backend object holds, and the calls each kind of device brings.
 *
 * backend.c answers for all devices: it parses the name, counts memory, times ops. A device brings one
 * `struct backend_device` of functions and one `struct ops`; its own object starts with a ddpm_backend. */
#ifndef BACKEND_INTERNAL_H
#define BACKEND_INTERNAL_H

#include "ops.h"

/* One op's row of the time table. */
struct profile_row {
    uint64_t calls;
    double seconds, flops;
};

enum {
#define X(op) OP_##op,
    OP_LIST(X)
#undef X
        OP_COUNT
};

/* What a call computes: 2 per multiply-add of the op's definition; 0 for ops without a product. args: struct <op>_args. */
double profile_flops(int op, const void *args);

/* Each function may rely on arguments that backend.c has checked (no NULL object, sizes that do not wrap).
 * alloc returns zeroed, 64-byte aligned memory; backend.c does the counting of blocks. */
struct backend_device {
    void (*free)(ddpm_backend *be);
    ddpm_status (*alloc)(ddpm_backend *be, size_t bytes, void **out);
    void (*release)(ddpm_backend *be, void *block);
    ddpm_status (*reserve_uploads)(ddpm_backend *be, size_t bytes); /* NULL: uploads take effect at once */
    ddpm_status (*upload)(ddpm_backend *be, void *device, const void *host, size_t bytes);
    ddpm_status (*download)(ddpm_backend *be, void *host, const void *device, size_t bytes);
    ddpm_status (*zero)(ddpm_backend *be, void *device, size_t bytes);
    ddpm_status (*sync)(ddpm_backend *be);
    ddpm_status (*available)(ddpm_backend *be, size_t *out);
    /* Weights may have changed, or will not change until the next call. */
    void (*freeze_weights)(ddpm_backend *be, bool on);
    double (*rated_flops)(const ddpm_backend *be); /* or NULL: no rating */
    /* Recordings (recording.c); all NULL where calls are always made one by one. Between begin and
     * end, which always ends it and gives the graph where nothing failed, calls are noted instead of
     * made. */
    bool (*can_record)(const ddpm_backend *be);
    ddpm_status (*record_begin)(ddpm_backend *be);
    ddpm_status (*record_end)(ddpm_backend *be, void **graph);
    ddpm_status (*record_launch)(ddpm_backend *be, void *graph);
    void (*record_free)(ddpm_backend *be, void *graph);
};

enum { BACKEND_NOTICES = 16 };

struct ddpm_backend {
    const struct backend_device *device;
    const struct ops *table; /* the device's own ops */
    char name[192];
    bool is_cpu, is_measuring, is_frozen, is_profiling;
    bool takes_bf16; /* for activations: "dtype" in ops.h */
    ddpm_backend_options options;
    int threads;
    int n_notices;
    char notices[BACKEND_NOTICES][256];
    size_t scratch_bytes; /* the largest scratch any op has asked for */
    uint64_t releases;    /* of blocks and scratch, kept by devices that record: a recording from before may point there */
    size_t memory, memory_peak;
    struct profile_row profile[OP_COUNT];
};

/* Keeps memory and memory_peak; every allocation of a device goes through these two. */
void backend_count(ddpm_backend *be, size_t bytes);
void backend_uncount(ddpm_backend *be, size_t bytes);

/* One line for ddpm_backend_notice; those beyond BACKEND_NOTICES are dropped. */
void backend_note(ddpm_backend *be, const char *format, ...) __attribute__((format(printf, 2, 3)));

ddpm_status cpu_backend_create(int threads, ddpm_backend **out);
/* Where the build has CUDA (DDPM_CUDA). Whether there is a device 0 that the kernels can run on: */
bool cuda_is_available(void);
ddpm_status cuda_backend_create(int ordinal, int threads, ddpm_backend **out);

#endif

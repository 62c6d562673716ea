/* cuda_backend.h - the CUDA device object, and what its files share.
 *
 * context.c   which device, its streams, its name; create and free
 * memory.c    device blocks, scratch, copies through pinned staging
 * errors.c    every CUDA code becomes one status here, with the op's name
 * ops.c       the table: scratch, launch, status, one line an op
 * rating.c    what the device's maker says it can do
 * ranges.c    NVTX ranges by op, where the library is there
 * graphs.c    recordings: capture, instantiation, launch
 *
 * Order. All ops go to `stream`. Uploads and downloads run on `copy`, ordered against `stream` by events;
 * ddpm_backend_sync waits for both. The environment variable DDPM_SYNC=1 waits after every op, so that a fault names
 * the op it came from. */
#ifndef BACKEND_CUDA_BACKEND_H
#define BACKEND_CUDA_BACKEND_H

#include "backend_internal.h"
#include "fail.h"

#include <cuda_runtime_api.h>

struct cuda_block;   /* memory.c */
struct cuda_staging; /* memory.c */

struct cuda_backend {
    ddpm_backend base; /* first: a ddpm_backend * of this device is a struct cuda_backend * */
    int ordinal;
    struct cudaDeviceProp properties;
    cudaStream_t stream, copy;
    struct cuda_block *blocks; /* given by cuda_alloc and not yet taken back */
    struct cuda_staging *staging;
    void *scratch; /* one block, the largest that any op has asked for */
    size_t scratch_size;
    bool syncs_each_op; /* DDPM_SYNC=1 */
    bool is_recording;  /* the main stream is being captured */
    bool is_sick;       /* a sticky fault: nothing that lies on this device can be trusted any more */
    char first_fault[512];
};

static inline struct cuda_backend *cuda_of(ddpm_backend *be)
{
    return (struct cuda_backend *)be;
}

/* ---- errors.c ---- */
/* OK, or one status: NOMEM for cudaErrorMemoryAllocation, BACKEND for the rest; the message has `what` (an op's name or
 * a call's), CUDA's name and sentence for the code, and the device. A sticky code marks the backend sick. */
ddpm_status cuda_check(struct cuda_backend *be, const char *what, cudaError_t e);
/* The same for calls that cannot report: only sickness is noted, no message is written. */
void cuda_note(struct cuda_backend *be, const char *what, cudaError_t e);
/* NOMEM for `bytes` that the device would not give, with what is free and what there is in all. */
ddpm_status cuda_no_memory(struct cuda_backend *be, const char *what, size_t bytes);
/* What every call begins with: the first fault's message again where the device is sick; else the device is made this
 * thread's current one. */
ddpm_status cuda_enter(struct cuda_backend *be);

/* ---- memory.c ---- */
ddpm_status cuda_staging_create(struct cuda_backend *be);
void cuda_staging_free(struct cuda_backend *be);
ddpm_status cuda_alloc(ddpm_backend *be, size_t bytes, void **out);
void cuda_release(ddpm_backend *be, void *block);
ddpm_status cuda_upload(ddpm_backend *be, void *device, const void *host, size_t bytes);
ddpm_status cuda_download(ddpm_backend *be, void *host, const void *device, size_t bytes);
ddpm_status cuda_zero(ddpm_backend *be, void *device, size_t bytes);
ddpm_status cuda_sync(ddpm_backend *be);
ddpm_status cuda_available(ddpm_backend *be, size_t *out);
/* Scratch of one op's call; NULL for 0 bytes and while measuring. All ops share the block, one after another. */
ddpm_status cuda_scratch(struct cuda_backend *be, size_t bytes, void **out);
void cuda_scratch_free(struct cuda_backend *be);

/* ---- rating.c ---- */
/* FLOP/s of dense bf16 products with f32 sums; 0 for a device that the table does not know. */
double cuda_rated_flops(const ddpm_backend *be);

/* ---- ops.c ---- */
extern const struct ops cuda_ops;

/* ---- ranges.c ---- */
void cuda_range_begin(const char *name);
void cuda_range_end(void);

/* ---- graphs.c: struct backend_device's part of recordings ---- */
bool cuda_can_record(const ddpm_backend *base);
ddpm_status cuda_record_begin(ddpm_backend *base);
ddpm_status cuda_record_end(ddpm_backend *base, void **out);
ddpm_status cuda_record_launch(ddpm_backend *base, void *graph);
void cuda_record_free(ddpm_backend *base, void *graph);
/* BUG while a recording is being made: for calls that wait, allocate or copy. */
ddpm_status cuda_recording_forbids(const struct cuda_backend *be, const char *what);

#endif

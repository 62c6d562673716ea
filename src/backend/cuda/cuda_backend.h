/* cuda_backend.h - the CUDA device object, and what its files share.
 *
 * context.c   which device, its streams, its name; create and free
 * memory.c    device blocks, scratch
 * staging.c   copies to and from the host, beside the work that is queued
 * errors.c    every CUDA code becomes one status here, with the op's name
 * ops.c       the table: scratch, launch, status, one line an op
 * rating.c    what the device's maker says it can do
 * side.c      a second stream, for gradients of weights
 * ranges.c    NVTX ranges by op, where the library is there
 * graphs.c    recordings: capture, instantiation, launch
 * products.h  convolutions, dense layers and attention by cuDNN and cuBLASLt, where the build has them
 *
 * Order. All ops go to `stream`. Uploads and downloads cross on `copy`, ordered against `stream` by events;
 * ddpm_backend_sync waits for both. The environment variable DDPM_SYNC=1 waits after every op, so that a fault names
 * the op it came from. */
#ifndef BACKEND_CUDA_BACKEND_H
#define BACKEND_CUDA_BACKEND_H

#include "backend_internal.h"
#include "fail.h"

#include <cuda_runtime_api.h>

struct cuda_block;   /* memory.c */
struct cuda_staging; /* staging.c */
struct products;     /* products.h */
struct cuda_side;    /* side.c */

struct cuda_backend {
    ddpm_backend base; /* first: a ddpm_backend * of this device is a struct cuda_backend * */
    int ordinal;
    struct cudaDeviceProp properties;
    cudaStream_t stream, copy;
    struct cuda_block *blocks; /* given by cuda_alloc and not yet taken back */
    struct cuda_staging *staging;
    void *scratch; /* one block, the largest that any op has asked for */
    size_t scratch_size;
    size_t scratch_wanted, side_wanted; /* the most that was asked for: of `scratch`, and on the side */
    size_t scratch_spare, side_spare;   /* what tuning may still add to each */
    struct cuda_side *side;    /* NULL: all on one stream */
    bool passes_side;          /* the op under way need not wait for the side */
    struct products *products; /* NULL: all products by kernels/ */
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
/* OK, or one status: NOMEM for cudaErrorMemoryAllocation, BUG for codes that only a wrong call gives, BACKEND for the rest;
 * the message has `what` (an op's name or a call's), CUDA's name and sentence for the code, and the device. A sticky code
 * marks the backend sick. */
ddpm_status cuda_check(struct cuda_backend *be, const char *what, cudaError_t e);
/* The same for calls that cannot report: only sickness is noted, no message is written. */
void cuda_note(struct cuda_backend *be, const char *what, cudaError_t e);
/* Whether the thread's context is gone, so that every later call fails alike. */
bool cuda_is_lost(void);
/* What a library's call gave; its failure may be the device's, which is then noted. */
ddpm_status cuda_fault(struct cuda_backend *be, ddpm_status s);
/* NOMEM for `bytes` that the device would not give, with what is free and what there is in all. */
ddpm_status cuda_no_memory(struct cuda_backend *be, const char *what, size_t bytes);
/* What every call begins with: the first fault's message again where the device is sick; else the device is made this
 * thread's current one, and the main stream waits for the side. */
ddpm_status cuda_enter(struct cuda_backend *be);

/* ---- memory.c ---- */
ddpm_status cuda_alloc(ddpm_backend *be, size_t bytes, void **out);
void cuda_release(ddpm_backend *be, void *block);
ddpm_status cuda_zero(ddpm_backend *be, void *device, size_t bytes);
ddpm_status cuda_sync(ddpm_backend *be);
ddpm_status cuda_available(ddpm_backend *be, size_t *out);
/* Scratch of one op's call; NULL for 0 bytes and while measuring. All ops share the block, one after another. */
ddpm_status cuda_scratch(struct cuda_backend *be, size_t bytes, void **out);
void cuda_scratch_free(struct cuda_backend *be);

/* ---- staging.c ---- */
ddpm_status cuda_staging_create(struct cuda_backend *be);
void cuda_staging_free(struct cuda_backend *be);
ddpm_status cuda_reserve_uploads(ddpm_backend *be, size_t bytes);
size_t cuda_staging_bytes(size_t largest); /* of the ring, where so much is reserved at most */
ddpm_status cuda_upload(ddpm_backend *be, void *device, const void *host, size_t bytes);
ddpm_status cuda_download(ddpm_backend *be, void *host, const void *device, size_t bytes);

/* ---- rating.c ---- */
/* FLOP/s of dense bf16 products with f32 sums; 0 for a device that the table does not know. */
double cuda_rated_flops(const ddpm_backend *be);

/* ---- ops.c ---- */
extern const struct ops cuda_ops;

/* Memory of the device, not zeroed, counted; and back, NULL too, once what is queued has ended. */
ddpm_status cuda_take(struct cuda_backend *be, const char *what, size_t bytes, void **out);
void cuda_give_back(struct cuda_backend *be, void *data, size_t bytes);
/* scratch_bytes of the backend, from what was asked for. */
void cuda_count_scratch(struct cuda_backend *be);

/* ---- side.c ---- */
ddpm_status cuda_side_create(struct cuda_backend *be);
void cuda_side_free(struct cuda_backend *be);
/* As cuda_scratch, for the call that runs on the side. */
ddpm_status cuda_side_scratch(struct cuda_backend *be, size_t bytes, void **out);
/* The side's stream, behind all that is queued on the main one; what is queued there then, by its tensors. */
ddpm_status cuda_side_fork(struct cuda_backend *be, cudaStream_t *out);
void cuda_side_keeps(struct cuda_backend *be, const struct conv2d_bwd_filter_args *a);
/* What is queued on the main stream from now on runs after the side. */
ddpm_status cuda_side_join(struct cuda_backend *be);
/* Whether the call neither reads nor writes what the side writes, nor writes what it reads. */
bool cuda_side_lets_pass(const struct cuda_backend *be, const struct conv2d_bwd_data_args *a);

/* ---- products.c ---- */
#ifdef DDPM_CUDNN
ddpm_status products_create(struct cuda_backend *be);
void products_free(struct cuda_backend *be);
/* Takes over a call whose arguments have passed expect_<op>, if it can: *is_done. While measuring only what it needs is
 * noted, and *is_done stays false. */
ddpm_status products_try(struct cuda_backend *be, int op, const void *args, bool *is_done);
#else
static inline ddpm_status products_create(struct cuda_backend *be)
{
    (void)be;
    return DDPM_OK;
}
static inline void products_free(struct cuda_backend *be)
{
    (void)be;
}
static inline ddpm_status products_try(struct cuda_backend *be, int op, const void *args, bool *is_done)
{
    (void)be;
    (void)op;
    (void)args;
    *is_done = false;
    return DDPM_OK;
}
#endif

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

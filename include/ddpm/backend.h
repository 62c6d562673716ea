/* backend.h - a device, its memory, and the tensors that live there. */
#ifndef DDPM_BACKEND_H
#define DDPM_BACKEND_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ddpm_backend ddpm_backend;

typedef enum { DDPM_F32, DDPM_BF16, DDPM_U8, DDPM_I32, DDPM_I64 } ddpm_dtype;

/* A view: `data` is borrowed memory of the backend. Strides count elements. Images are [N,H,W,C]
 * with stride[3] = 1; a view of some of the channels keeps the strides of the whole. */
typedef struct ddpm_tensor {
    void *data;
    ddpm_dtype dtype;
    int rank; /* 1 .. 4 */
    int64_t dim[4], stride[4];
} ddpm_tensor;

/* Contiguous f32 tensors over `data`. */
ddpm_tensor ddpm_tensor_1d(void *data, int64_t n);
ddpm_tensor ddpm_tensor_2d(void *data, int64_t rows, int64_t columns);
ddpm_tensor ddpm_tensor_4d(void *data, int64_t n, int64_t h, int64_t w, int64_t c);
/* Elements begin .. begin+count of the last dimension, as a view. */
ddpm_tensor ddpm_tensor_slice(const ddpm_tensor *t, int64_t begin, int64_t count);
int64_t ddpm_tensor_count(const ddpm_tensor *t);
size_t ddpm_dtype_size(ddpm_dtype d);

/* device: "cpu", "cuda", "cuda:1" or NULL (the GPU where there is one, else the CPU). threads: CPU
 * threads, 0 = all this process may run on. ARG for a name that is none of these, BACKEND where the
 * device is missing or this build has no support for it. */
ddpm_status ddpm_backend_create(const char *device, int threads, ddpm_backend **out);
void ddpm_backend_free(ddpm_backend *be); /* accepts NULL */
/* "cpu: AMD EPYC 9R14, 2 threads, oneDNN 2.6.3". Borrowed. */
const char *ddpm_backend_name(const ddpm_backend *be);
bool ddpm_backend_is_cpu(const ddpm_backend *be);
/* Whether networks can compute in bf16 on it. */
bool ddpm_backend_takes_bf16(const ddpm_backend *be);
int ddpm_backend_threads(const ddpm_backend *be);
/* FLOP/s of dense bf16 products by the maker's rating, from the device's properties; 0 where none is known. */
double ddpm_backend_rated_flops(const ddpm_backend *be);

/* How the device may compute. All false at creation; set before the first op, for plans are chosen by it. The CPU computes the
 * same whatever is set here. */
typedef struct {
    bool is_deterministic; /* the same bits on every run on the same device and versions, at some cost in speed */
    bool uses_tf32;        /* f32 products may round their inputs to TF32 */
    bool keeps_calls_apart; /* no recorded graphs: every call is enqueued by itself, with the same result */
} ddpm_backend_options;
void ddpm_backend_configure(ddpm_backend *be, const ddpm_backend_options *options);
ddpm_backend_options ddpm_backend_configuration(const ddpm_backend *be);

/* Lines a user should see once, such as a cache that could not be read: line i of those noted so far, NULL behind the last.
 * Borrowed until the backend is freed. */
const char *ddpm_backend_notice(const ddpm_backend *be, int i);

/* Memory of the device, 64-byte aligned, zeroed. NOMEM gives the bytes asked for and those there
 * are. */
ddpm_status ddpm_backend_alloc(ddpm_backend *be, size_t bytes, void **out);
void ddpm_backend_release(ddpm_backend *be, void *block); /* accepts NULL */
/* `host` may change when it returns. Takes effect in the order of calls; a GPU fetches the bytes meanwhile, beside what is
 * queued before. */
ddpm_status ddpm_backend_upload(ddpm_backend *be, void *device, const void *host, size_t bytes);
/* Uploads of so many bytes in all, each rounded up to 256, will be made again and again: so many, twice, get room on a GPU
 * (and in the host's locked memory) to travel beside what is queued. Less than a few MiB have room as it is. NOMEM. */
ddpm_status ddpm_backend_reserve_uploads(ddpm_backend *be, size_t bytes);
ddpm_status ddpm_backend_download(ddpm_backend *be, void *host, const void *device, size_t bytes);
ddpm_status ddpm_backend_zero(ddpm_backend *be, void *device, size_t bytes);
/* Waits for all that is queued; reports faults that arrived late. */
ddpm_status ddpm_backend_sync(ddpm_backend *be);

/* Calls that are made again and again, with the same shapes at the same addresses: a training step, a
 * sampling step. A GPU records them into a graph once and launches it as one; elsewhere, and where
 * options.keeps_calls_apart is set, the same calls are made one by one, with the same bits. */
typedef struct ddpm_recording ddpm_recording;
/* Ops, and ddpm_backend_zero, of one backend: nothing that waits, allocates or copies to or from the
 * host. */
typedef ddpm_status (*ddpm_calls)(void *user);
/* `user` is borrowed. NOMEM. Freed before the backend. */
ddpm_status ddpm_recording_create(ddpm_backend *be, ddpm_calls calls, void *user, ddpm_recording **out);
void ddpm_recording_free(ddpm_recording *r); /* accepts NULL */
/* The first run makes the calls (they may still choose plans and take scratch), the second records
 * and launches them, later ones launch what is recorded. It begins anew by itself when a block has
 * been released since, which the calls may have used. Where calls cannot be recorded a notice
 * says so, and they are made one by one. */
ddpm_status ddpm_recording_run(ddpm_recording *r);
/* Shapes or addresses of the calls have changed: begin anew. */
void ddpm_recording_reset(ddpm_recording *r);
/* How often the recording has been launched. */
int64_t ddpm_recording_launches(const ddpm_recording *r);

/* While measuring, ops check their arguments, build what they will need (primitives, plans) and add
 * up their scratch, and touch no tensor data (which may be NULL). Scratch is allocated at the first
 * real call and stays. */
void ddpm_backend_measure(ddpm_backend *be, bool on);
size_t ddpm_backend_scratch_bytes(const ddpm_backend *be);
/* A promise that weights do not change until it is taken back: the backend may keep packed copies.
 */
void ddpm_backend_freeze_weights(ddpm_backend *be, bool on);
/* Bytes that the device can still give now; SIZE_MAX for the CPU, whose memory is the process's. */
ddpm_status ddpm_backend_memory_available(ddpm_backend *be, size_t *out);
/* Bytes the backend has allocated now and at most, blocks and scratch together. */
size_t ddpm_backend_memory(const ddpm_backend *be);
size_t ddpm_backend_memory_peak(const ddpm_backend *be);

#ifdef __cplusplus
}
#endif
#endif

/* memory.c - the device's memory: blocks, and the scratch that ops share.
 *
 * Blocks are few (weights, batch, step) and live long, so each is one cudaMalloc: 256-byte aligned, zeroed on the main
 * stream. A list of them gives release() the size, for it is told the pointer only.
 *
 * Rejected: cudaMallocAsync (pools hide what is free, and nothing here is allocated twice). */
#include "cuda_backend.h"

#include <stdlib.h>

struct cuda_block {
    void *data;
    size_t bytes;
    struct cuda_block *next;
};

/* ---- blocks ---- */

ddpm_status cuda_take(struct cuda_backend *be, const char *what, size_t bytes, void **out)
{
    void *data = NULL;
    const cudaError_t e = cudaMalloc(&data, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return cuda_no_memory(be, what, bytes);
    }
    TRY(cuda_check(be, what, e));
    backend_count(&be->base, bytes);
    *out = data;
    return DDPM_OK;
}

/* cudaFree need not wait for what is queued, so this does. Late faults are noted for the next call. */
void cuda_give_back(struct cuda_backend *be, void *data, size_t bytes)
{
    if (!data) return;
    be->base.releases++;
    cuda_note(be, "release", cudaSetDevice(be->ordinal));
    (void)cuda_side_join(be); /* what went wrong there is noted */
    cuda_note(be, "release", cudaStreamSynchronize(be->copy));
    cuda_note(be, "release", cudaStreamSynchronize(be->stream));
    cuda_note(be, "release", cudaFree(data));
    backend_uncount(&be->base, bytes);
}

ddpm_status cuda_alloc(ddpm_backend *base, size_t bytes, void **out)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_recording_forbids(be, "memory"));
    struct cuda_block *b = malloc(sizeof *b);
    REQUIRE(b, NOMEM, "memory: %zu bytes to note a block", sizeof *b);
    void *data = NULL;
    ddpm_status s = cuda_take(be, "memory", bytes, &data);
    if (s) {
        free(b);
        return s;
    }
    s = cuda_check(be, "memory", cudaMemsetAsync(data, 0, bytes, be->stream));
    if (s) {
        cuda_give_back(be, data, bytes);
        free(b);
        return s;
    }
    *b = (struct cuda_block){.data = data, .bytes = bytes, .next = be->blocks};
    be->blocks = b;
    *out = data;
    return DDPM_OK;
}

void cuda_release(ddpm_backend *base, void *data)
{
    struct cuda_backend *be = cuda_of(base);
    for (struct cuda_block **at = &be->blocks; *at; at = &(*at)->next) {
        struct cuda_block *b = *at;
        if (b->data != data) continue;
        *at = b->next;
        cuda_give_back(be, data, b->bytes);
        free(b);
        return;
    }
}

ddpm_status cuda_zero(ddpm_backend *base, void *device, size_t bytes)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    return cuda_check(be, "zero", cudaMemsetAsync(device, 0, bytes, be->stream));
}

ddpm_status cuda_sync(ddpm_backend *base)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_recording_forbids(be, "sync"));
    TRY(cuda_check(be, "sync", cudaStreamSynchronize(be->stream)));
    return cuda_check(be, "sync", cudaStreamSynchronize(be->copy));
}

ddpm_status cuda_available(ddpm_backend *base, size_t *out)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    size_t available, total;
    TRY(cuda_check(be, "free memory", cudaMemGetInfo(&available, &total)));
    *out = available;
    return DDPM_OK;
}

/* ---- scratch ---- */

void cuda_scratch_free(struct cuda_backend *be)
{
    cuda_give_back(be, be->scratch, be->scratch_size);
    be->scratch = NULL;
    be->scratch_size = 0;
}

void cuda_count_scratch(struct cuda_backend *be)
{
    be->base.scratch_bytes = be->scratch_wanted + be->scratch_spare + be->side_wanted + be->side_spare;
}

ddpm_status cuda_scratch(struct cuda_backend *be, size_t bytes, void **out)
{
    *out = NULL;
    TRY(cuda_enter(be));
    if (bytes > be->scratch_wanted) be->scratch_wanted = bytes;
    cuda_count_scratch(be);
    if (be->base.is_measuring || bytes == 0) return DDPM_OK;
    if (be->scratch_size < bytes) {
        TRY(cuda_recording_forbids(be, "scratch"));
        cuda_scratch_free(be); /* waits for the ops that use it */
        TRY(cuda_take(be, "scratch", be->scratch_wanted, &be->scratch));
        be->scratch_size = be->scratch_wanted;
    }
    *out = be->scratch;
    return DDPM_OK;
}

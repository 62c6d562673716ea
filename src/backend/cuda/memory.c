/* memory.c - the device's memory: blocks, the scratch that ops share, and copies to and from the host.
 *
 * Blocks are few (weights, batch, step) and live long, so each is one cudaMalloc: 256-byte aligned, zeroed on the main
 * stream. A list of them gives release() the size, for it is told the pointer only.
 *
 * Copies go through page-locked memory, a ring of two slots, on a stream of their own:
 *
 *   upload     the copy stream waits for what is queued on the main stream (it may still read what is overwritten), the
 *              main stream waits for the copy, the host waits for neither: it has left its bytes in a slot. Small
 *              uploads share a slot; the host waits only when a slot comes round whose copies are still under way.
 *   download   waits for the main stream; while one slot is copied out to the caller the device fills the other.
 *
 * A fault that arrives while a copy waits makes the call fail before anything of that slot is given to the caller;
 * after a failed call what the caller's buffer holds is not to be used.
 *
 * Rejected: a copy straight from the caller's memory (where it is pageable the driver stages it itself and the host
 * waits; where it is not, the caller could change it before it is read), registering the caller's memory for each call
 * (pins and unpins every page), cudaMallocAsync (pools hide what is free, and nothing here is allocated twice). */
#include "cuda_backend.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2, SLOT_ALIGN = 256 };
static const size_t SLOT_BYTES = (size_t)4 << 20; /* 80 us at 50 GB/s: long beside the queueing of a copy */

struct cuda_staging {
    unsigned char *pinned;   /* SLOTS * SLOT_BYTES */
    cudaEvent_t idle[SLOTS]; /* the last copy into or out of that slot */
    cudaEvent_t main_reached, copy_reached;
    int slot;    /* the one that uploads fill */
    size_t used; /* of it; <= SLOT_BYTES */
};

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
    be->base.scratch_bytes = be->scratch_wanted + be->side_wanted;
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

/* ---- copies ---- */

ddpm_status cuda_staging_create(struct cuda_backend *be)
{
    struct cuda_staging *st = be->staging = calloc(1, sizeof *st);
    REQUIRE(st, NOMEM, "staging: %zu bytes", sizeof *st);
    const cudaError_t e = cudaMallocHost((void **)&st->pinned, SLOTS * SLOT_BYTES);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return FAIL(NOMEM, "staging for cuda:%d: no %zu bytes of page-locked host memory (see ulimit -l)", be->ordinal,
                    SLOTS * SLOT_BYTES);
    }
    TRY(cuda_check(be, "staging", e));
    for (int i = 0; i < SLOTS; i++)
        TRY(cuda_check(be, "staging", cudaEventCreateWithFlags(&st->idle[i], cudaEventDisableTiming)));
    TRY(cuda_check(be, "staging", cudaEventCreateWithFlags(&st->main_reached, cudaEventDisableTiming)));
    return cuda_check(be, "staging", cudaEventCreateWithFlags(&st->copy_reached, cudaEventDisableTiming));
}

void cuda_staging_free(struct cuda_backend *be)
{
    struct cuda_staging *st = be->staging;
    if (!st) return;
    for (int i = 0; i < SLOTS; i++)
        if (st->idle[i]) (void)cudaEventDestroy(st->idle[i]);
    if (st->main_reached) (void)cudaEventDestroy(st->main_reached);
    if (st->copy_reached) (void)cudaEventDestroy(st->copy_reached);
    if (st->pinned) (void)cudaFreeHost(st->pinned);
    free(st);
    be->staging = NULL;
}

static unsigned char *slot_data(const struct cuda_staging *st, int slot)
{
    return st->pinned + (size_t)slot * SLOT_BYTES;
}

/* What is queued on `later` from now on runs after what is queued on `earlier` by now. */
static ddpm_status queue_after(struct cuda_backend *be, const char *what, cudaStream_t earlier, cudaEvent_t reached,
                               cudaStream_t later)
{
    TRY(cuda_check(be, what, cudaEventRecord(reached, earlier)));
    return cuda_check(be, what, cudaStreamWaitEvent(later, reached, 0));
}

/* Nothing is under way on the copy stream any more: the ring starts anew. */
static void ring_reset(struct cuda_staging *st)
{
    st->slot = 0;
    st->used = 0;
}

/* After a failed copy: the slots must not be written while older copies read them. The message is that of `s`. */
static ddpm_status abandon(struct cuda_backend *be, ddpm_status s)
{
    cuda_note(be, "copy", cudaStreamSynchronize(be->copy));
    ring_reset(be->staging);
    return s;
}

static ddpm_status next_slot(struct cuda_backend *be)
{
    struct cuda_staging *st = be->staging;
    const int next = (st->slot + 1) % SLOTS;
    TRY(cuda_check(be, "upload", cudaEventSynchronize(st->idle[next])));
    st->slot = next;
    st->used = 0;
    return DDPM_OK;
}

static ddpm_status upload(struct cuda_backend *be, unsigned char *to, const unsigned char *from, size_t bytes)
{
    struct cuda_staging *st = be->staging;
    TRY(queue_after(be, "upload", be->stream, st->main_reached, be->copy));
    while (bytes > 0) {
        if (st->used == SLOT_BYTES) TRY(next_slot(be));
        const size_t room = SLOT_BYTES - st->used, n = bytes < room ? bytes : room;
        unsigned char *place = slot_data(st, st->slot) + st->used;
        memcpy(place, from, n);
        TRY(cuda_check(be, "upload", cudaMemcpyAsync(to, place, n, cudaMemcpyHostToDevice, be->copy)));
        TRY(cuda_check(be, "upload", cudaEventRecord(st->idle[st->slot], be->copy)));
        st->used += (n + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN; /* SLOT_BYTES is a multiple of it */
        to += n;
        from += n;
        bytes -= n;
    }
    return queue_after(be, "upload", be->copy, st->copy_reached, be->stream);
}

ddpm_status cuda_upload(ddpm_backend *base, void *device, const void *host, size_t bytes)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_recording_forbids(be, "upload"));
    const ddpm_status s = upload(be, device, host, bytes);
    return s ? abandon(be, s) : DDPM_OK;
}

/* Queues the copy of the i-th piece into its slot; earlier uploads from that slot come before it on the same stream. */
static ddpm_status fetch(struct cuda_backend *be, const unsigned char *from, size_t bytes, size_t i)
{
    struct cuda_staging *st = be->staging;
    const size_t at = i * SLOT_BYTES, n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
    const int slot = (int)(i % SLOTS);
    TRY(cuda_check(be, "download",
                   cudaMemcpyAsync(slot_data(st, slot), from + at, n, cudaMemcpyDeviceToHost, be->copy)));
    return cuda_check(be, "download", cudaEventRecord(st->idle[slot], be->copy));
}

static ddpm_status download(struct cuda_backend *be, unsigned char *to, const unsigned char *from, size_t bytes)
{
    struct cuda_staging *st = be->staging;
    const size_t pieces = (bytes + SLOT_BYTES - 1) / SLOT_BYTES;
    TRY(queue_after(be, "download", be->stream, st->main_reached, be->copy));
    TRY(fetch(be, from, bytes, 0));
    for (size_t i = 0; i < pieces; i++) {
        const size_t at = i * SLOT_BYTES;
        if (i + 1 < pieces) TRY(fetch(be, from, bytes, i + 1));
        TRY(cuda_check(be, "download", cudaEventSynchronize(st->idle[i % SLOTS])));
        memcpy(to + at, slot_data(st, (int)(i % SLOTS)), bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES);
    }
    ring_reset(st);
    return DDPM_OK;
}

ddpm_status cuda_download(ddpm_backend *base, void *host, const void *device, size_t bytes)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_recording_forbids(be, "download"));
    const ddpm_status s = download(be, host, device, bytes);
    return s ? abandon(be, s) : DDPM_OK;
}

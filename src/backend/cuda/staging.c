/* staging.c - copies to and from the host, beside the work that is queued.
 *
 * They go through page-locked memory, a ring of two slots, on a stream of their own. Each slot has one of its size on the
 * device:
 *
 *   upload     the host leaves its bytes in a slot. The copy stream brings them to the slot on the device as soon as that is
 *              free, whatever the main stream is at; the main stream, in its turn, puts them where they belong. So the next
 *              step's batch crosses the bus while a step runs, and yet takes effect in the order of calls. The host waits
 *              for neither: only where a slot comes round whose bytes have not left it.
 *   download   waits for the main stream; while one slot is copied out to the caller the device fills the other.
 *
 * A fault that arrives while a copy waits makes the call fail before anything of that slot is given to the caller;
 * after a failed call what the caller's buffer holds is not to be used.
 *
 * Cost of an upload: its bytes are written and read once more on the device, 0.2 us for a batch of CIFAR-10.
 *
 * Rejected: a copy straight from the caller's memory (where it is pageable the driver stages it itself and the host
 * waits; where it is not, the caller could change it before it is read), registering the caller's memory for each call
 * (pins and unpins every page), a copy straight to its place (it must wait for all that is queued before it, which may
 * read there), a recorded step that reads slots by turns (two recordings, or an index on the device, for the same gain). */
#include "cuda_backend.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2, SLOT_ALIGN = 256 };
static const size_t SLOT_LEAST = (size_t)4 << 20; /* 80 us at 50 GB/s: long beside the queueing of a copy */

struct cuda_staging {
    unsigned char *pinned, *device; /* SLOTS * slot_bytes each */
    size_t slot_bytes;              /* a multiple of SLOT_ALIGN */
    cudaEvent_t left[SLOTS];        /* copy stream: the last copy out of, or into, the host's slot */
    cudaEvent_t taken[SLOTS];       /* main stream: what was in the device's slot is where it belongs */
    cudaEvent_t main_reached;
    int slot;    /* the one that uploads fill */
    size_t used; /* of it; 0: not begun */
};

/* ---- life ---- */

static size_t align_up(size_t n)
{
    return (n + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

size_t cuda_staging_bytes(size_t largest)
{
    const size_t slot = align_up(largest);
    return SLOTS * (slot > SLOT_LEAST ? slot : SLOT_LEAST);
}

static void give_ring_back(struct cuda_backend *be, unsigned char *pinned, unsigned char *device)
{
    if (pinned) cuda_note(be, "staging", cudaFreeHost(pinned));
    if (device) cuda_note(be, "staging", cudaFree(device));
}

/* Nothing is under way: new slots instead of the old ones, which stay where there is no memory. */
static ddpm_status take_ring(struct cuda_backend *be, size_t slot_bytes)
{
    struct cuda_staging *st = be->staging;
    const size_t bytes = SLOTS * slot_bytes;
    unsigned char *pinned = NULL, *device = NULL;
    const cudaError_t e = cudaMallocHost((void **)&pinned, bytes);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return FAIL(NOMEM, "staging: cuda:%d cannot lock %zu bytes (%.2f GiB) of the host's memory", be->ordinal, bytes,
                    (double)bytes / 0x1p30);
    }
    TRY(cuda_check(be, "staging", e));
    const cudaError_t d = cudaMalloc((void **)&device, bytes);
    if (d) {
        give_ring_back(be, pinned, NULL);
        if (d != cudaErrorMemoryAllocation) return cuda_check(be, "staging", d);
        (void)cudaGetLastError();
        return cuda_no_memory(be, "staging", bytes);
    }
    give_ring_back(be, st->pinned, st->device);
    st->pinned = pinned;
    st->device = device;
    st->slot_bytes = slot_bytes;
    st->slot = 0;
    st->used = 0;
    return DDPM_OK;
}

ddpm_status cuda_staging_create(struct cuda_backend *be)
{
    struct cuda_staging *st = be->staging = calloc(1, sizeof *st);
    REQUIRE(st, NOMEM, "staging: %zu bytes", sizeof *st);
    TRY(take_ring(be, SLOT_LEAST));
    cudaEvent_t *const events[] = {&st->left[0], &st->left[1], &st->taken[0], &st->taken[1], &st->main_reached};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        TRY(cuda_check(be, "staging", cudaEventCreateWithFlags(events[i], cudaEventDisableTiming)));
    return DDPM_OK;
}

void cuda_staging_free(struct cuda_backend *be)
{
    struct cuda_staging *st = be->staging;
    if (!st) return;
    for (int i = 0; i < SLOTS; i++) {
        if (st->left[i]) (void)cudaEventDestroy(st->left[i]);
        if (st->taken[i]) (void)cudaEventDestroy(st->taken[i]);
    }
    if (st->main_reached) (void)cudaEventDestroy(st->main_reached);
    give_ring_back(be, st->pinned, st->device);
    free(st);
    be->staging = NULL;
}

ddpm_status cuda_reserve_uploads(ddpm_backend *base, size_t bytes)
{
    struct cuda_backend *be = cuda_of(base);
    if (align_up(bytes) <= be->staging->slot_bytes) return DDPM_OK;
    TRY(cuda_sync(base));
    return take_ring(be, align_up(bytes));
}

static unsigned char *slot_data(const struct cuda_staging *st, int slot)
{
    return st->pinned + (size_t)slot * st->slot_bytes;
}

/* After a failed copy: the slots must not be written while older copies read them. The message is that of `s`. */
static ddpm_status abandon(struct cuda_backend *be, ddpm_status s)
{
    cuda_note(be, "copy", cudaStreamSynchronize(be->copy));
    be->staging->slot = 0;
    be->staging->used = 0;
    return s;
}

/* ---- upload ---- */

/* The bytes of its last turn have left the slot, and before others come in on the device they have been taken there. */
static ddpm_status begin_slot(struct cuda_backend *be)
{
    const struct cuda_staging *st = be->staging;
    TRY(cuda_check(be, "upload", cudaEventSynchronize(st->left[st->slot])));
    return cuda_check(be, "upload", cudaStreamWaitEvent(be->copy, st->taken[st->slot], 0));
}

/* What lies n bytes long at `used` of the slot goes to its place on the device. */
static ddpm_status send(struct cuda_backend *be, unsigned char *to, size_t n)
{
    const struct cuda_staging *st = be->staging;
    const int slot = st->slot;
    unsigned char *host = slot_data(st, slot) + st->used, *device = st->device + (host - st->pinned);
    TRY(cuda_check(be, "upload", cudaMemcpyAsync(device, host, n, cudaMemcpyHostToDevice, be->copy)));
    TRY(cuda_check(be, "upload", cudaEventRecord(st->left[slot], be->copy)));
    TRY(cuda_check(be, "upload", cudaStreamWaitEvent(be->stream, st->left[slot], 0)));
    TRY(cuda_check(be, "upload", cudaMemcpyAsync(to, device, n, cudaMemcpyDeviceToDevice, be->stream)));
    return cuda_check(be, "upload", cudaEventRecord(st->taken[slot], be->stream));
}

static ddpm_status upload(struct cuda_backend *be, unsigned char *to, const unsigned char *from, size_t bytes)
{
    struct cuda_staging *st = be->staging;
    while (bytes > 0) {
        if (st->used == st->slot_bytes) {
            st->slot = (st->slot + 1) % SLOTS;
            st->used = 0;
        }
        if (st->used == 0) TRY(begin_slot(be));
        const size_t room = st->slot_bytes - st->used, n = bytes < room ? bytes : room;
        memcpy(slot_data(st, st->slot) + st->used, from, n);
        TRY(send(be, to, n));
        st->used += align_up(n);
        to += n;
        from += n;
        bytes -= n;
    }
    return DDPM_OK;
}

ddpm_status cuda_upload(ddpm_backend *base, void *device, const void *host, size_t bytes)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_recording_forbids(be, "upload"));
    const ddpm_status s = upload(be, device, host, bytes);
    return s ? abandon(be, s) : DDPM_OK;
}

/* ---- download ---- */

/* Queues the copy of the i-th piece into its slot; earlier uploads from that slot come before it on the same stream. */
static ddpm_status fetch(struct cuda_backend *be, const unsigned char *from, size_t bytes, size_t i)
{
    struct cuda_staging *st = be->staging;
    const size_t at = i * st->slot_bytes, n = bytes - at < st->slot_bytes ? bytes - at : st->slot_bytes;
    const int slot = (int)(i % SLOTS);
    TRY(cuda_check(be, "download",
                   cudaMemcpyAsync(slot_data(st, slot), from + at, n, cudaMemcpyDeviceToHost, be->copy)));
    return cuda_check(be, "download", cudaEventRecord(st->left[slot], be->copy));
}

static ddpm_status download(struct cuda_backend *be, unsigned char *to, const unsigned char *from, size_t bytes)
{
    struct cuda_staging *st = be->staging;
    const size_t size = st->slot_bytes, pieces = (bytes + size - 1) / size;
    TRY(cuda_check(be, "download", cudaEventRecord(st->main_reached, be->stream)));
    TRY(cuda_check(be, "download", cudaStreamWaitEvent(be->copy, st->main_reached, 0)));
    TRY(fetch(be, from, bytes, 0));
    for (size_t i = 0; i < pieces; i++) {
        const size_t at = i * size;
        if (i + 1 < pieces) TRY(fetch(be, from, bytes, i + 1));
        TRY(cuda_check(be, "download", cudaEventSynchronize(st->left[i % SLOTS])));
        memcpy(to + at, slot_data(st, (int)(i % SLOTS)), bytes - at < size ? bytes - at : size);
    }
    st->slot = 0; /* nothing is under way any more: the ring starts anew */
    st->used = 0;
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

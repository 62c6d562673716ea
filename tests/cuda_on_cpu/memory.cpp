/* memory.cpp - blocks of device, managed and pinned memory, and what is copied and filled between them.
 *
 * A block lies in a mapping of its own between two red zones of a known pattern, 256-byte aligned and no better, as
 * cudaMalloc gives. Zones are checked when the block is freed and when the device is synchronised; under ASan they are
 * poisoned as well, so that the overrun itself is named. New memory is 0xFF: NaN in every float type, -1 in integers.
 * Guarded blocks (cuda_on_cpu_guard) have no access rights except while queued work runs. */
#include "poison.h"
#include "runtime.h"

#include <algorithm>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <vector>

namespace cuda_on_cpu {

static constexpr size_t ZONE = 256, PAGE = 4096;
static constexpr size_t LARGE = 4 << 20;
static constexpr unsigned char ZONE_BYTE = 0xC5;

enum block_kind { DEVICE, MANAGED, PINNED, PAGEABLE };
static const char *const kind_names[] = {"device", "managed", "pinned"};

struct block {
    unsigned char *mapping, *data;
    size_t mapped_bytes, bytes;
    block_kind kind;
    int device;
    bool is_guarded;
};

static std::map<const unsigned char *, block> blocks; /* by data */

static size_t total_from_environment()
{
    const char *mib = getenv("CUDA_ON_CPU_MEMORY_MIB");
    return (mib && *mib ? strtoull(mib, nullptr, 10) : 4096) << 20;
}

static size_t total_bytes = total_from_environment();
static bool guards_new_blocks = getenv("CUDA_ON_CPU_GUARD") && atoi(getenv("CUDA_ON_CPU_GUARD"));

static size_t used_bytes(int device)
{
    size_t used = 0;
    for (const auto &entry : blocks)
        if (entry.second.kind != PINNED && entry.second.device == device) used += entry.second.bytes;
    return used;
}

memory_sizes memory_info()
{
    const size_t used = used_bytes(current_device());
    return {used < total_bytes ? total_bytes - used : 0, total_bytes};
}

size_t memory_live()
{
    return blocks.size();
}

/* ---- red zones ---- */

static void zones_set(const block &b)
{
    unsigned char *const end = b.data + b.bytes, *const mapping_end = b.mapping + b.mapped_bytes;
    memset(b.mapping, ZONE_BYTE, (size_t)(b.data - b.mapping));
    memset(end, ZONE_BYTE, (size_t)(mapping_end - end));
}

static void zones_poison(const block &b)
{
    ASAN_POISON_MEMORY_REGION(b.mapping, b.data - b.mapping);
    ASAN_POISON_MEMORY_REGION(b.data + b.bytes, b.mapping + b.mapped_bytes - (b.data + b.bytes));
}

static void zone_check(const block &b, const unsigned char *from, const unsigned char *to)
{
    const unsigned char *wrong = std::find_if(from, to, [](unsigned char byte) { return byte != ZONE_BYTE; });
    if (wrong == to) return;
    fprintf(stderr, "cuda_on_cpu: a %s block of %zu bytes was overrun: its byte %td was written\n", kind_names[b.kind],
            b.bytes, wrong - b.data);
    abort();
}

static void block_check(const block &b)
{
    ASAN_UNPOISON_MEMORY_REGION(b.mapping, b.mapped_bytes);
    zone_check(b, b.mapping, b.data);
    zone_check(b, b.data + b.bytes, b.mapping + b.mapped_bytes);
    zones_poison(b);
}

void memory_check()
{
    memory_open();
    for (const auto &entry : blocks)
        block_check(entry.second);
    memory_close();
}

/* ---- guards ---- */

static void protect(int rights)
{
    for (const auto &entry : blocks)
        if (entry.second.is_guarded) mprotect(entry.second.mapping, entry.second.mapped_bytes, rights);
}

static int times_open;

void memory_open()
{
    if (times_open++ == 0) protect(PROT_READ | PROT_WRITE);
}

void memory_close()
{
    if (--times_open == 0) protect(PROT_NONE);
}

/* ---- allocate, free ---- */

static cudaError_t allocate(void **out, size_t bytes, block_kind kind)
{
    if (!out) return cudaErrorInvalidValue;
    const cudaError_t forbidden = capture_forbids();
    if (forbidden) return forbidden;
    *out = nullptr;
    if (!bytes) return cudaSuccess;
    if (kind != PINNED && bytes > memory_info().free_bytes) return cudaErrorMemoryAllocation;
    if (bytes > SIZE_MAX / 2) return cudaErrorMemoryAllocation;
    block b = {};
    b.bytes = bytes;
    b.mapped_bytes = (ZONE + bytes + ZONE + PAGE - 1) / PAGE * PAGE;
    void *mapping = mmap(nullptr, b.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return cudaErrorMemoryAllocation;
    if (bytes >= LARGE) (void)madvise(mapping, b.mapped_bytes, MADV_HUGEPAGE); /* quicker to fill and to fork */
    b.mapping = static_cast<unsigned char *>(mapping);
    b.data = b.mapping + ZONE;
    b.kind = kind;
    b.device = current_device();
    b.is_guarded = kind == DEVICE && guards_new_blocks;
    memset(b.data, 0xFF, bytes);
    zones_set(b);
    zones_poison(b);
    if (b.is_guarded) mprotect(b.mapping, b.mapped_bytes, PROT_NONE);
    blocks[b.data] = b;
    *out = b.data;
    return cudaSuccess;
}

static void unmap(const block &b)
{
    memory_open();
    block_check(b);
    memory_close();
    ASAN_UNPOISON_MEMORY_REGION(b.mapping, b.mapped_bytes);
    munmap(b.mapping, b.mapped_bytes);
}

/* Waits for all queued work first, as cudaFree does. */
static cudaError_t release(void *p, bool is_pinned)
{
    if (!p) return cudaSuccess;
    const cudaError_t forbidden = capture_forbids();
    if (forbidden) return forbidden;
    const auto found = blocks.find(static_cast<unsigned char *>(p));
    if (found == blocks.end() || (found->second.kind == PINNED) != is_pinned) return cudaErrorInvalidValue;
    streams_finish();
    const block b = found->second;
    unmap(b);
    blocks.erase(found);
    return cudaSuccess;
}

void memory_reset()
{
    for (const auto &entry : blocks)
        unmap(entry.second);
    blocks.clear();
}

/* ---- copies and fills ---- */

/* The kind of memory at p; an error where [p, p + bytes) leaves the block it begins in. */
static cudaError_t locate(const void *p, size_t bytes, block_kind *kind)
{
    *kind = PAGEABLE;
    const unsigned char *at = static_cast<const unsigned char *>(p);
    auto next = blocks.upper_bound(at);
    if (next == blocks.begin()) return cudaSuccess;
    const block &b = std::prev(next)->second;
    if (at >= b.mapping + b.mapped_bytes) return cudaSuccess;
    *kind = b.kind;
    return at < b.data + b.bytes && bytes <= (size_t)(b.data + b.bytes - at) ? cudaSuccess : cudaErrorInvalidValue;
}

static bool is_host(block_kind kind)
{
    return kind == PINNED || kind == PAGEABLE;
}

/* Whether memory of that kind may be the host's (or the device's) side of a copy. */
static bool may_be(block_kind kind, bool host)
{
    return kind == MANAGED || is_host(kind) == host;
}

static cudaError_t check_copy(const void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, block_kind *to_kind,
                              block_kind *from_kind)
{
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (!to || !from) return cudaErrorInvalidValue;
    cudaError_t e = locate(to, bytes, to_kind);
    if (!e) e = locate(from, bytes, from_kind);
    if (e || kind == cudaMemcpyDefault) return e;
    const bool to_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost;
    const bool from_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice;
    return may_be(*to_kind, to_host) && may_be(*from_kind, from_host) ? cudaSuccess : cudaErrorInvalidValue;
}

/* Queues the copy. Pageable memory is read at the call; into pageable memory the call returns when all is there. */
static cudaError_t copy_async(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    block_kind to_kind, from_kind;
    if (!bytes) return cudaSuccess;
    const cudaError_t e = check_copy(to, from, bytes, kind, &to_kind, &from_kind);
    if (e) return e;
    if (stream_is_captured(stream) || from_kind != PAGEABLE) {
        const cudaError_t submitted = stream_submit(stream, WORK_COPY, [=] { memmove(to, from, bytes); });
        const bool waits = to_kind == PAGEABLE && !stream_is_captured(stream);
        return submitted || !waits ? submitted : stream_finish(stream);
    }
    const unsigned char *first = static_cast<const unsigned char *>(from);
    auto staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    const cudaError_t submitted = stream_submit(stream, WORK_COPY, [=] { memcpy(to, staged->data(), bytes); });
    return submitted || !is_host(to_kind) ? submitted : stream_finish(stream);
}

/* Between device blocks not even this waits for the copy. */
static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    block_kind to_kind, from_kind;
    cudaError_t e = capture_forbids();
    if (!e && bytes) e = check_copy(to, from, bytes, kind, &to_kind, &from_kind);
    if (e || !bytes) return e;
    e = stream_submit(nullptr, WORK_COPY, [=] { memmove(to, from, bytes); });
    return e || (to_kind == DEVICE && from_kind == DEVICE) ? e : stream_finish(nullptr);
}

static cudaError_t fill(void *p, int value, size_t bytes, cudaStream_t stream)
{
    block_kind kind;
    if (!bytes) return cudaSuccess;
    const cudaError_t e = locate(p, bytes, &kind);
    if (e) return e;
    if (!p || kind == PAGEABLE) return cudaErrorInvalidValue;
    return stream_submit(stream, WORK_FILL, [=] { memset(p, value, bytes); });
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    return enter(ORDINARY, [&] { return allocate(p, bytes, DEVICE); });
}

cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned int)
{
    return enter(ORDINARY, [&] { return allocate(p, bytes, MANAGED); });
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return enter(ORDINARY, [&] { return allocate(p, bytes, PINNED); });
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int)
{
    return enter(ORDINARY, [&] { return allocate(p, bytes, PINNED); });
}

cudaError_t cudaFree(void *p)
{
    return enter(FREES, [&] { return release(p, false); });
}

cudaError_t cudaFreeHost(void *p)
{
    return enter(FREES, [&] { return release(p, true); });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return enter(ORDINARY, [&] { return copy(to, from, bytes, kind); });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return enter(ORDINARY, [&] { return copy_async(to, from, bytes, kind, stream); });
}

cudaError_t cudaMemset(void *p, int value, size_t bytes)
{
    return enter(ORDINARY, [&] {
        const cudaError_t e = capture_forbids();
        return e ? e : fill(p, value, bytes, nullptr);
    });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    return enter(ORDINARY, [&] { return fill(p, value, bytes, stream); });
}

void cuda_on_cpu_memory(size_t bytes)
{
    total_bytes = bytes;
}

void cuda_on_cpu_guard(bool on)
{
    guards_new_blocks = on;
}

} /* extern "C" */

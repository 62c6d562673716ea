/* races.cpp - finds shared memory that two threads use without a barrier between them, and reads of what nobody wrote.
 *
 * Kernels are compiled with -fsanitize=thread, which puts a call before each load and store; the calls are answered
 * here instead of by libtsan, which is not linked. Of each byte of the block's shared arrays is kept who wrote it
 * last and who read it since, and when. Time is counted in barriers of the block; within a warp, in calls of
 * __syncwarp, and for each pair of lanes which call has last ordered them. Two accesses, one of them a write (not
 * both atomic), by different threads, after the same barrier and not ordered by a __syncwarp, are a race in every
 * schedule, whether or not this one showed it.
 *
 * Bytes, not words: neighbours in a row of bf16 may be written by two threads. Readers are kept exactly for one warp;
 * of other warps one is kept, which is enough to convict any writer. Shuffles and votes order nothing, as in CUDA's
 * memory model.
 *
 * This file itself must not be compiled with -fsanitize=thread. Where no kernel is, nothing here runs. */
#include "races.h"
#include "block.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include <dlfcn.h>

namespace cuda_on_cpu {

bool races_checked;

enum access_kind { READ, WRITE, ATOMIC };
static const char *const verbs[] = {"reads", "writes", "updates"};

struct byte_state {
    uint64_t epoch;         /* of what follows up to `written`; stale where it is not the current one */
    uint16_t writer;        /* since the last barrier, none: NOBODY */
    uint16_t other_reader;  /* one of a warp that is not reader_warp, or NOBODY */
    uint32_t writer_clock;  /* of the writer's warp */
    uint32_t reader_lanes;  /* since the last write; 0: no reader */
    uint32_t reader_clock;  /* of the last of them */
    uint8_t reader_warp;
    bool is_atomic;         /* the write was */
    uint64_t written_epoch; /* of the last write of all, 0: none */
};

static constexpr uint16_t NOBODY = UINT16_MAX;

struct shared_array {
    const unsigned char *first, *end;
    const char *name;
    size_t state; /* of its first byte, in states */
};

static std::vector<byte_state> &states = *new std::vector<byte_state>;
static std::vector<shared_array> &arrays = *new std::vector<shared_array>; /* of this block */
static const unsigned char *lowest, *highest;                             /* all of them lie between */

static uint64_t epoch, first_epoch; /* barriers so far, ever; at the start of the block */

/* clock: calls of __syncwarp in this block. ordered[a][b]: what lane b did before call number ordered[a][b] has been
 * seen by lane a. */
static struct warp_clock {
    uint32_t clock;
    uint32_t ordered[WARP][WARP];
} warps[MAX_THREADS / WARP];

static bool aborts = true;
static long races_found, unwritten_found;

/* ---- reports ---- */

static constexpr long PRINTED_MAX = 20;

/* Counts a finding; prints it, with what another thread did before if there is one, and aborts unless told not to. */
static void report(long *found, const shared_array &a, size_t byte, const void *code, const char *verb, const char *before)
{
    Dl_info in = {};
    if (++*found > PRINTED_MAX && !aborts) return;
    fprintf(stderr, "cuda_on_cpu: shared memory, block (%u,%u,%u): thread %u %s byte %zu (4-byte word %zu) of %s, %s", now.block.x,
            now.block.y, now.block.z, now.linear, verb, byte, byte / 4, a.name, before);
    if (code && dladdr(const_cast<void *>(code), &in))
        fprintf(stderr, "; at %s+0x%tx", in.dli_fname, static_cast<const char *>(code) - static_cast<char *>(in.dli_fbase));
    fputc('\n', stderr);
    if (aborts) abort();
}

static void report_race(const shared_array &a, size_t byte, const void *code, access_kind kind, unsigned other,
                        const char *participle)
{
    char before[80];
    snprintf(before, sizeof before, "which thread %u has %s, with no barrier between them", other, participle);
    report(&races_found, a, byte, code, verbs[kind], before);
}

static void report_unwritten(const shared_array &a, size_t byte, const void *code, access_kind kind)
{
    report(&unwritten_found, a, byte, code, verbs[kind], "which nobody has written in this block");
}

/* ---- who came before whom ---- */

/* Whether what thread `other` did at `clock` of its warp, since the last barrier, has been ordered before the running
 * one. */
static bool is_ordered(unsigned other, uint32_t clock)
{
    if (other == now.linear) return true;
    if (other / WARP != now.linear / WARP) return false;
    return warps[now.linear / WARP].ordered[now.linear % WARP][other % WARP] > clock;
}

static unsigned unordered_reader(const byte_state &b)
{
    if (b.other_reader != NOBODY && b.other_reader / WARP != now.linear / WARP) return b.other_reader;
    for (uint32_t left = b.reader_lanes; left; left &= left - 1) {
        const unsigned t = b.reader_warp * WARP + (unsigned)__builtin_ctz(left);
        if (!is_ordered(t, b.reader_clock)) return t;
    }
    return NOBODY;
}

static void note_read(byte_state *b)
{
    const unsigned warp = now.linear / WARP, lane = now.linear % WARP;
    if (b->reader_lanes && b->reader_warp != warp) {
        b->other_reader = (uint16_t)now.linear;
        return;
    }
    for (uint32_t left = b->reader_lanes; left; left &= left - 1) { /* those before this one answer for nothing any more */
        const unsigned other = (unsigned)__builtin_ctz(left);
        if (is_ordered(warp * WARP + other, b->reader_clock)) b->reader_lanes &= ~(1u << other);
    }
    b->reader_warp = (uint8_t)warp;
    b->reader_lanes |= 1u << lane;
    b->reader_clock = warps[warp].clock;
}

static void note_write(byte_state *b, access_kind kind)
{
    b->writer = (uint16_t)now.linear;
    b->writer_clock = warps[now.linear / WARP].clock;
    b->is_atomic = kind == ATOMIC;
    b->written_epoch = epoch;
    b->reader_lanes = 0;
    b->other_reader = NOBODY;
}

/* The state of a byte brought up to the running access; true where there is nothing to report. */
static bool access_byte(byte_state *b, const shared_array &a, size_t byte, access_kind kind, const void *code)
{
    if (b->epoch != epoch) {
        b->epoch = epoch;
        b->writer = b->other_reader = NOBODY;
        b->reader_lanes = 0;
    }
    const unsigned writer = b->writer;
    const bool both_atomic = kind == ATOMIC && b->is_atomic;
    const bool after_write = writer != NOBODY && !both_atomic && !is_ordered(writer, b->writer_clock);
    const unsigned reader = kind == READ ? NOBODY : unordered_reader(*b);
    const bool was_written = kind == WRITE || b->written_epoch >= first_epoch;
    if (kind == READ) note_read(b);
    else note_write(b, kind);
    if (!was_written) {
        b->written_epoch = epoch; /* once is enough */
        report_unwritten(a, byte, code, kind);
    }
    if (after_write) report_race(a, byte, code, kind, writer, "written");
    else if (reader != NOBODY) report_race(a, byte, code, kind, reader, "read");
    return was_written && !after_write && reader == NOBODY;
}

static void access(const volatile void *p, size_t bytes, access_kind kind, const void *code)
{
    const unsigned char *at = const_cast<const unsigned char *>(static_cast<const volatile unsigned char *>(p));
    if (at >= highest || at + bytes <= lowest) return;
    for (const shared_array &a : arrays) {
        if (at >= a.end || at + bytes <= a.first) continue;
        const size_t from = (size_t)(std::max(at, a.first) - a.first);
        const size_t to = (size_t)(std::min(at + bytes, a.end) - a.first);
        for (size_t byte = from; byte < to; byte++)
            if (!access_byte(&states[a.state + byte], a, byte, kind, code)) return;
    }
}

/* ---- what the block runner tells ---- */

void races_begin_block()
{
    if (!races_checked) return;
    first_epoch = ++epoch;
    arrays.clear();
    for (warp_clock &w : warps)
        if (w.clock) memset(&w, 0, sizeof w);
}

void races_shared(void *array, size_t bytes, const char *name)
{
    if (!races_checked) return;
    const unsigned char *first = static_cast<unsigned char *>(array);
    const size_t state = arrays.empty() ? 0 : arrays.back().state + (size_t)(arrays.back().end - arrays.back().first);
    if (states.size() < state + bytes) states.resize(state + bytes);
    lowest = arrays.empty() ? first : std::min(lowest, first);
    highest = arrays.empty() ? first + bytes : std::max(highest, first + bytes);
    arrays.push_back({first, first + bytes, name, state});
}

void races_barrier()
{
    epoch++;
}

void races_syncwarp(unsigned warp, unsigned lanes)
{
    warp_clock *w = &warps[warp];
    uint32_t joined[WARP] = {};
    w->clock++;
    for (unsigned a = 0; a < WARP; a++) {
        if (!(lanes >> a & 1)) continue;
        for (unsigned b = 0; b < WARP; b++)
            joined[b] = std::max(joined[b], w->ordered[a][b]);
    }
    for (unsigned a = 0; a < WARP; a++) {
        if (!(lanes >> a & 1)) continue;
        for (unsigned b = 0; b < WARP; b++)
            w->ordered[a][b] = lanes >> b & 1 ? w->clock : joined[b];
    }
}

void races_end_block()
{
    lowest = highest = nullptr;
}

void races_atomic(const volatile void *p, size_t bytes)
{
    access(p, bytes, ATOMIC, __builtin_return_address(0));
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

/* ---- what gcc's instrumentation calls ---- */

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_vptr_update(void **p, void *value);
void __tsan_read_range(void *p, long bytes);
void __tsan_write_range(void *p, long bytes);

void __tsan_init(void)
{
    races_checked = true;
}

void __tsan_func_entry(void *)
{
}

void __tsan_func_exit(void)
{
}

void __tsan_vptr_update(void **, void *)
{
}

void __tsan_read_range(void *p, long bytes)
{
    access(p, (size_t)bytes, READ, __builtin_return_address(0));
}

void __tsan_write_range(void *p, long bytes)
{
    access(p, (size_t)bytes, WRITE, __builtin_return_address(0));
}

#define DEFINE_ACCESS(name, bytes, kind)                                                                               \
    void name(void *p);                                                                                                \
    void name(void *p)                                                                                                 \
    {                                                                                                                  \
        access(p, bytes, kind, __builtin_return_address(0));                                                           \
    }
#define DEFINE_ACCESSES(prefix, bytes)                                                                                 \
    DEFINE_ACCESS(prefix##read##bytes, bytes, READ)                                                                    \
    DEFINE_ACCESS(prefix##write##bytes, bytes, WRITE)
#define DEFINE_SIZES(prefix)                                                                                           \
    DEFINE_ACCESSES(prefix, 1)                                                                                         \
    DEFINE_ACCESSES(prefix, 2)                                                                                         \
    DEFINE_ACCESSES(prefix, 4)                                                                                         \
    DEFINE_ACCESSES(prefix, 8)                                                                                         \
    DEFINE_ACCESSES(prefix, 16)
DEFINE_SIZES(__tsan_)
DEFINE_SIZES(__tsan_unaligned_)
DEFINE_SIZES(__tsan_volatile_)
DEFINE_SIZES(__tsan_unaligned_volatile_)

/* ---- control.h ---- */

bool cuda_on_cpu_races_checked(void)
{
    return races_checked;
}

void cuda_on_cpu_races_abort(bool abort_at_once)
{
    aborts = abort_at_once;
}

long cuda_on_cpu_races(void)
{
    return races_found;
}

long cuda_on_cpu_unwritten_reads(void)
{
    return unwritten_found;
}

} /* extern "C" */

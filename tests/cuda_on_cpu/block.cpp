/* block.cpp - runs the blocks of a grid one after the other, each thread of a block on a fiber of its own.
 *
 * A thread gives up the processor only where it waits: at a barrier of the block or of its warp. It then switches
 * straight to the fiber that goes on next. A thread that ends hands its fiber to a thread that has not started, so a
 * kernel without barriers runs all of its threads on one stack without a switch, some nanoseconds each. Threads that
 * have ended count as arrived, as on devices since Volta.
 *
 * The one that arrives last waits its turn like the others: after a barrier the order is the schedule's again, which
 * makes a missing barrier more likely to show. Rejected: threads of the system (a barrier costs microseconds, and
 * orders cannot be chosen), compiling kernels into loops over threads (needs a compiler of our own). */
#include "block.h"
#include "fibers.h"
#include "poison.h"
#include "races.h"
#include "schedule.h"

#include <pthread.h>
#include <algorithm>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

namespace cuda_on_cpu {

thread_view now;

enum place { NOT_STARTED, ABLE, AT_BARRIER, AT_WARP, ENDED };

struct thread_state {
    place where;
    fiber *on;        /* while it waits or is able to go on */
    const char *what; /* it waits in */
};

struct warp_state {
    uint32_t alive, waiting; /* lanes */
    uint32_t mask[WARP];     /* below: of lanes that wait */
    const char *what[WARP];
    uint64_t value[WARP];
    unsigned source[WARP];
    uint64_t result[WARP];
};

struct barrier_state {
    unsigned waiting;
    int yes;
    const char *what;
    tally result;
};

static struct {
    const kernel_call *call;
    unsigned threads, unended;
    uint16_t order[MAX_THREADS]; /* in which threads start */
    unsigned started;
    uint3 index[MAX_THREADS];
    thread_state thread[MAX_THREADS];
    warp_state warp[MAX_THREADS / WARP];
    barrier_state barrier;
    uint16_t able[MAX_THREADS]; /* a ring of those that may go on */
    unsigned able_first, able_count;
    fiber *self, home;    /* the fiber that runs; the stack that called run_grid */
    unsigned to_start;    /* for a fiber that is switched to without a thread */
    uint64_t last_serial; /* of blocks */
    size_t static_bytes;  /* shared, entered in this block */
} run;

/* Reachable for ever, for LeakSanitizer: fibers are kept. */
static std::vector<fiber *> &idle_fibers = *new std::vector<fiber *>;

/* Stacks do not go along into a forked process, whose making would take many times as long; it has new ones where it needs them. */
static const int is_told_of_forks = pthread_atfork(nullptr, nullptr, [] {
    for (const fiber *f : idle_fibers)
        delete f;
    idle_fibers.clear();
    fibers_after_fork();
});
static std::map<const void *, size_t> &static_bytes_of = *new std::map<const void *, size_t>;

/* ---- whose turn it is ---- */

static void make_able(unsigned t)
{
    run.thread[t].where = ABLE;
    run.able[(run.able_first + run.able_count++) % MAX_THREADS] = (uint16_t)t;
}

static unsigned take_able()
{
    if (schedule_order() == CUDA_ON_CPU_RANDOM) {
        const unsigned any = (run.able_first + (unsigned)schedule_draw(run.able_count)) % MAX_THREADS;
        std::swap(run.able[any], run.able[run.able_first]);
    }
    const unsigned t = run.able[run.able_first];
    run.able_first = (run.able_first + 1) % MAX_THREADS;
    run.able_count--;
    return t;
}

/* Whether the next turn goes to a thread that has not started. */
static bool turn_starts_thread()
{
    const unsigned unstarted = run.threads - run.started;
    if (!unstarted || !run.able_count) return unstarted > 0;
    switch (schedule_order()) {
    case CUDA_ON_CPU_FORWARD:
        return false;
    case CUDA_ON_CPU_REVERSE:
        return true;
    default:
        return schedule_draw(unstarted + run.able_count) < unstarted;
    }
}

static void print_waiting(unsigned t)
{
    const uint3 i = run.index[t];
    fprintf(stderr, "  thread %u (%u,%u,%u) waits in %s", t, i.x, i.y, i.z, run.thread[t].what);
    if (run.thread[t].where == AT_WARP) fprintf(stderr, ", mask 0x%08x", run.warp[t / WARP].mask[t % WARP]);
    fputc('\n', stderr);
}

/* Nobody is able and nobody is left to start. Of a run of threads that wait in the same place, the first is named. */
[[noreturn]] static void die_of_deadlock()
{
    fprintf(stderr, "cuda_on_cpu: deadlock in block (%u,%u,%u); %u of %u threads have ended\n", now.block.x, now.block.y,
            now.block.z, run.threads - run.unended, run.threads);
    const thread_state *last = nullptr;
    for (unsigned t = 0; t < run.threads; t++) {
        const thread_state *s = &run.thread[t];
        const bool is_same = last && last->where == s->where && last->what == s->what && t % WARP;
        if (s->where != ENDED && !is_same) print_waiting(t);
        last = s;
    }
    abort();
}

[[noreturn]] static void die(const char *sentence, const char *a, const char *b)
{
    fprintf(stderr, "cuda_on_cpu: block (%u,%u,%u), thread %u: %s %s %s\n", now.block.x, now.block.y, now.block.z, now.linear,
            sentence, a, b);
    abort();
}

static constexpr unsigned NOBODY = ~0u;

/* Goes on with a thread that is able, or leaves the block when all have ended. Returns when this fiber has the turn
 * again: at once where that thread is `t`, its own. */
static void go_on(unsigned t)
{
    fiber *const self = run.self;
    if (run.able_count) {
        const unsigned next = take_able();
        if (next != t) fiber_switch(self, run.self = run.thread[next].on);
    } else {
        if (run.unended) die_of_deadlock();
        fiber_switch(self, &run.home);
    }
}

/* ---- life of a thread ---- */

static void become(unsigned t)
{
    now.thread = run.index[t];
    now.linear = t;
}

static void complete_barrier();
static void complete_warp(unsigned warp, uint32_t mask);

static void end_thread(unsigned t)
{
    run.thread[t].where = ENDED;
    run.unended--;
    warp_state *w = &run.warp[t / WARP];
    w->alive &= ~(1u << t % WARP);
    for (uint32_t left = w->waiting; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const bool still_waits = w->waiting >> lane & 1;
        if (still_waits && !(w->mask[lane] & w->alive & ~w->waiting)) complete_warp(t / WARP, w->mask[lane]);
    }
    if (run.barrier.waiting && run.barrier.waiting == run.unended) complete_barrier();
}

static void fiber_main()
{
    fiber_begin();
    for (;;) {
        const unsigned t = run.to_start;
        run.thread[t].where = ABLE;
        become(t);
        run.call->thread(run.call->code);
        end_thread(t);
        if (turn_starts_thread()) {
            run.to_start = run.order[run.started++];
            continue;
        }
        idle_fibers.push_back(run.self);
        go_on(NOBODY);
    }
}

static fiber *idle_fiber()
{
    if (idle_fibers.empty()) return fiber_create(fiber_main);
    fiber *f = idle_fibers.back();
    idle_fibers.pop_back();
    return f;
}

static void begin_wait(place where, const char *what)
{
    run.thread[now.linear] = {where, run.self, what};
}

static void end_wait()
{
    const unsigned t = now.linear;
    if (turn_starts_thread()) {
        fiber *const self = run.self;
        run.to_start = run.order[run.started++];
        fiber_switch(self, run.self = idle_fiber());
    } else {
        go_on(t);
    }
    become(t);
}

/* ---- barriers ---- */

/* Calls make_able for each t < n with is_waiting(t), in the schedule's direction. */
template <class F> static void wake(unsigned first, unsigned n, F is_waiting)
{
    const bool down = schedule_order() == CUDA_ON_CPU_REVERSE;
    for (unsigned i = 0; i < n; i++) {
        const unsigned t = first + (down ? n - 1 - i : i);
        if (is_waiting(t)) make_able(t);
    }
}

static void complete_barrier()
{
    barrier_state *b = &run.barrier;
    b->result = {b->yes, (int)b->waiting};
    b->waiting = 0;
    b->yes = 0;
    races_barrier();
    wake(0, run.threads, [](unsigned t) { return run.thread[t].where == AT_BARRIER; });
}

tally meet_block(const char *what, int predicate)
{
    barrier_state *b = &run.barrier;
    if (b->waiting && b->what != what && strcmp(b->what, what)) die("threads of a block meet in", b->what, what);
    b->what = what;
    b->waiting++;
    b->yes += predicate != 0;
    begin_wait(AT_BARRIER, what);
    if (b->waiting == run.unended) complete_barrier();
    end_wait();
    return b->result;
}

static uint64_t warp_result(const warp_state *w, uint32_t lanes, unsigned source)
{
    if (source < WARP) return lanes >> source & 1 ? w->value[source] : ~(uint64_t)0;
    uint64_t votes = 0;
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (w->value[lane]) votes |= 1u << lane;
    }
    return votes;
}

static void complete_warp(unsigned warp, uint32_t mask)
{
    warp_state *w = &run.warp[warp];
    const uint32_t lanes = mask & w->waiting;
    const int first = __builtin_ctz(lanes);
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (w->mask[lane] != mask) die("lanes of a warp meet with different masks in", w->what[first], w->what[lane]);
        if (w->what[lane] != w->what[first] && strcmp(w->what[lane], w->what[first]))
            die("lanes of a warp meet in", w->what[first], w->what[lane]);
        w->result[lane] = warp_result(w, lanes, w->source[lane]);
    }
    if (races_checked && !strcmp(w->what[first], "__syncwarp")) races_syncwarp(warp, lanes);
    w->waiting &= ~lanes;
    wake(warp * WARP, WARP, [lanes](unsigned t) { return (lanes >> t % WARP & 1) != 0; });
}

uint64_t meet_warp(const char *what, unsigned mask, uint64_t value, unsigned source)
{
    const unsigned lane = now.linear % WARP, warp = now.linear / WARP;
    warp_state *w = &run.warp[warp];
    if (!(mask >> lane & 1)) die("the lane is not in the mask it gives to", what, "");
    w->waiting |= 1u << lane;
    w->mask[lane] = mask;
    w->what[lane] = what;
    w->value[lane] = value;
    w->source[lane] = source;
    begin_wait(AT_WARP, what);
    if (!(mask & w->alive & ~w->waiting)) complete_warp(warp, mask);
    end_wait();
    return w->result[lane];
}

/* ---- shared memory ---- */

void shared_enter(void *array, size_t bytes, size_t padding, const char *name)
{
    run.static_bytes += bytes;
    if (run.static_bytes > run.call->static_bytes_max) die("more shared memory than the launch may have, with", name, "");
    memset(array, 0xFF, bytes);
    ASAN_POISON_MEMORY_REGION(static_cast<unsigned char *>(array) + bytes, padding);
    races_shared(array, bytes, name);
}

size_t shared_static_bytes(const void *kernel)
{
    const auto found = static_bytes_of.find(kernel);
    return found == static_bytes_of.end() ? 0 : found->second;
}

/* ---- blocks ---- */

static void index_threads(dim3 size)
{
    unsigned t = 0;
    for (unsigned z = 0; z < size.z; z++)
        for (unsigned y = 0; y < size.y; y++)
            for (unsigned x = 0; x < size.x; x++)
                run.index[t++] = {x, y, z};
    run.threads = t;
    for (unsigned i = 0; i < t; i++)
        run.order[i] = (uint16_t)(schedule_order() == CUDA_ON_CPU_REVERSE ? t - 1 - i : i);
}

static void reset_block()
{
    if (schedule_order() == CUDA_ON_CPU_RANDOM) {
        for (unsigned i = run.threads; i > 1; i--)
            std::swap(run.order[i - 1], run.order[schedule_draw(i)]);
    }
    for (unsigned t = 0; t < run.threads; t++)
        run.thread[t].where = NOT_STARTED;
    for (unsigned first = 0; first < run.threads; first += WARP) {
        warp_state *w = &run.warp[first / WARP];
        w->alive = run.threads - first >= WARP ? ~0u : (1u << (run.threads - first)) - 1;
        w->waiting = 0;
    }
    run.barrier = barrier_state();
    run.started = 0;
    run.unended = run.threads;
    run.able_first = run.able_count = 0;
    run.static_bytes = 0;
}

static void run_block(uint3 block)
{
    reset_block();
    now.block = block;
    now.block_serial = ++run.last_serial;
    races_begin_block();
    if (now.dynamic_bytes) {
        memset(now.dynamic, 0xFF, now.dynamic_bytes);
        races_shared(now.dynamic, now.dynamic_bytes, "dynamic shared memory");
    }
    run.to_start = run.order[run.started++];
    fiber_switch(&run.home, run.self = idle_fiber());
    races_end_block();
}

static uint64_t end_blocks; /* at either end of a grid; 0: all blocks run */

void run_grid(const kernel_call &call)
{
    run.call = &call;
    run.home = fiber();
    index_threads(call.block);
    now.block_size = call.block;
    now.grid_size = call.grid;
    now.dynamic_bytes = call.dynamic_bytes;
    now.dynamic = static_cast<unsigned char *>(call.dynamic_bytes ? malloc(call.dynamic_bytes) : nullptr);
    if (call.dynamic_bytes && !now.dynamic) die("no memory for", "dynamic shared memory", "");
    size_t most_static = 0;
    const uint64_t plane = (uint64_t)call.grid.x * call.grid.y;
    const uint64_t all = plane * call.grid.z, ends = end_blocks && 2 * end_blocks < all ? end_blocks : 0;
    const permutation order(ends ? 2 * ends : all);
    for (uint64_t i = 0; i < (ends ? 2 * ends : all); i++) {
        const uint64_t k = order.at(i), b = ends && k >= ends ? all - 2 * ends + k : k, in_plane = b % plane;
        run_block({(unsigned)(in_plane % call.grid.x), (unsigned)(in_plane / call.grid.x), (unsigned)(b / plane)});
        most_static = std::max(most_static, run.static_bytes);
    }
    size_t *known = &static_bytes_of[call.kernel];
    *known = std::max(*known, most_static);
    free(now.dynamic);
    now = thread_view();
}

} // namespace cuda_on_cpu

extern "C" void cuda_on_cpu_only_ends(unsigned blocks)
{
    cuda_on_cpu::end_blocks = blocks;
}

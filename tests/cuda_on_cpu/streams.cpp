/* streams.cpp - streams are queues, run as late as CUDA allows: a call only appends, and work runs when something
 * waits for it. Code that forgets to wait therefore sees old data, every time. Waiting runs what it must and no more:
 * the stream itself, the records it waits for in others, and what the legacy stream's rule puts before.
 * cudaDeviceSynchronize runs all, stream by stream in the schedule's order, so work of two streams without an event
 * between them changes places.
 *
 * The legacy stream's rule, for streams made without cudaStreamNonBlocking: its work comes after all that was queued
 * on them before, and theirs after all that was queued on it before. Polling would never end if nothing ran, so a
 * query that finds the work not ready runs one piece. */
#include "streams.h"
#include "schedule.h"

#include <algorithm>
#include <chrono>

namespace cuda_on_cpu {

static CUstream_st legacy = {{}, true, false, nullptr, {}};
static std::vector<cudaStream_t> streams = {&legacy};
static std::vector<cudaEvent_t> events;
static uint64_t last_serial;
static bool is_running;

const std::vector<cudaStream_t> &all_streams()
{
    return streams;
}

bool streams_running()
{
    return is_running;
}

size_t streams_live()
{
    const auto is_live = [](cudaStream_t s) { return !s->is_destroyed; };
    return (size_t)std::count_if(streams.begin() + 1, streams.end(), is_live) + events.size();
}

cudaStream_t stream_of(cudaStream_t handle)
{
    if (!handle || handle == cudaStreamLegacy) return &legacy;
    const auto found = std::find(streams.begin(), streams.end(), handle);
    return found == streams.end() || handle->is_destroyed ? nullptr : handle;
}

static bool is_event(cudaEvent_t event)
{
    return std::find(events.begin(), events.end(), event) != events.end();
}

/* ---- running ---- */

static void step(cudaStream_t stream);

static void run_before(cudaStream_t stream, uint64_t serial)
{
    while (!stream->queue.empty() && stream->queue.front().serial < serial)
        step(stream);
}

/* What has to be done before the first piece of the stream: all of it has a smaller serial, so this ends. */
static void run_prerequisites(cudaStream_t stream)
{
    const uint64_t serial = stream->queue.front().serial;
    const std::shared_ptr<record> awaited = stream->queue.front().waits_for;
    while (awaited && !awaited->is_done)
        step(awaited->stream);
    if (stream == &legacy) {
        for (cudaStream_t other : std::vector<cudaStream_t>(streams))
            if (other != &legacy && other->is_blocking) run_before(other, serial);
    } else if (stream->is_blocking) {
        run_before(&legacy, serial);
    }
}

static double kernel_charge, library_charge, charged; /* milliseconds */

void charge_kernel()
{
    charged += kernel_charge;
}

void charge_library()
{
    charged += library_charge;
}

static double milliseconds_now()
{
    return charged + std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* Runs the first piece of a queue that is not empty. */
static void step(cudaStream_t stream)
{
    run_prerequisites(stream);
    const task t = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (t.work) {
        memory_open();
        is_running = true;
        t.work();
        is_running = false;
        memory_close();
    }
    if (t.completes) {
        t.completes->is_done = true;
        t.completes->milliseconds = milliseconds_now();
    }
}

static void bury_destroyed()
{
    for (size_t i = streams.size(); i-- > 1;) {
        if (!streams[i]->is_destroyed || !streams[i]->queue.empty()) continue;
        delete streams[i];
        streams.erase(streams.begin() + (ptrdiff_t)i);
    }
}

static void finish(cudaStream_t stream)
{
    while (!stream->queue.empty())
        step(stream);
}

static void finish_at_random()
{
    for (;;) {
        std::vector<cudaStream_t> busy;
        for (cudaStream_t s : streams)
            if (!s->queue.empty()) busy.push_back(s);
        if (busy.empty()) return;
        step(busy[schedule_draw(busy.size())]);
    }
}

void streams_finish()
{
    if (schedule_order() == CUDA_ON_CPU_RANDOM) finish_at_random();
    const permutation order(streams.size());
    for (size_t i = 0; i < streams.size(); i++)
        finish(streams[order.at(i)]);
    bury_destroyed();
}

void streams_reset()
{
    legacy.queue.clear();
    for (cudaStream_t s : streams)
        if (s != &legacy) delete s;
    streams = {&legacy};
    for (cudaEvent_t e : events)
        delete e;
    events.clear();
}

/* ---- queueing ---- */

static task &append(cudaStream_t stream)
{
    stream->queue.push_back({++last_serial, {}, nullptr, nullptr});
    return stream->queue.back();
}

void stream_push(cudaStream_t stream, std::function<void()> work)
{
    append(stream).work = std::move(work);
}

cudaError_t stream_submit(cudaStream_t handle, work_kind kind, std::function<void()> work)
{
    const cudaStream_t stream = stream_of(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    const cudaError_t e = capture_check(stream);
    if (e) return e;
    if (stream->captured_by) return capture_submit(stream, kind, std::move(work));
    stream_push(stream, std::move(work));
    return cudaSuccess;
}

bool stream_is_captured(cudaStream_t handle)
{
    const cudaStream_t stream = stream_of(handle);
    return stream && stream->captured_by;
}

cudaError_t stream_finish(cudaStream_t handle)
{
    const cudaStream_t stream = stream_of(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    const cudaError_t e = capture_forbids();
    if (e) return e;
    if (stream->captured_by) {
        capture_lose(stream);
        return cudaErrorStreamCaptureUnsupported;
    }
    if (stream == &legacy) stream_push(stream, {}); /* so that blocking streams come before */
    finish(stream);
    return cudaSuccess;
}

/* ---- events ---- */

static cudaError_t event_record(cudaEvent_t event, cudaStream_t handle)
{
    const cudaStream_t stream = stream_of(handle);
    if (!is_event(event) || !stream) return cudaErrorInvalidResourceHandle;
    const cudaError_t e = capture_check(stream);
    if (e) return e;
    if (stream->captured_by) return capture_record(stream, event);
    event->captured_by = nullptr;
    event->tail.clear();
    event->last = std::make_shared<record>(record{stream, false, 0});
    append(stream).completes = event->last;
    return cudaSuccess;
}

static cudaError_t event_wait(cudaStream_t handle, cudaEvent_t event)
{
    const cudaStream_t stream = stream_of(handle);
    if (!is_event(event) || !stream) return cudaErrorInvalidResourceHandle;
    const cudaError_t e = capture_check(stream);
    if (e) return e;
    if (stream->captured_by || event->captured_by) return capture_wait(stream, event);
    if (event->last && !event->last->is_done) append(stream).waits_for = event->last;
    return cudaSuccess;
}

/* For calls of the host that ask for or wait for an event. */
static cudaError_t event_check(cudaEvent_t event)
{
    if (!is_event(event)) return cudaErrorInvalidResourceHandle;
    const cudaError_t e = capture_forbids();
    if (e) return e;
    return event->captured_by ? cudaErrorCapturedEvent : cudaSuccess;
}

static bool times_are_even;

static cudaError_t event_elapsed(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    if (!is_event(start) || !is_event(end)) return cudaErrorInvalidResourceHandle;
    if (!start->has_time || !end->has_time || !start->last || !end->last) return cudaErrorInvalidResourceHandle;
    if (!start->last->is_done || !end->last->is_done) return cudaErrorNotReady;
    *milliseconds = times_are_even ? 1 : (float)(end->last->milliseconds - start->last->milliseconds);
    return cudaSuccess;
}

static cudaError_t event_create(cudaEvent_t *event, unsigned flags)
{
    if (!event) return cudaErrorInvalidValue;
    *event = new CUevent_st{!(flags & cudaEventDisableTiming), nullptr, nullptr, {}};
    events.push_back(*event);
    return cudaSuccess;
}

static cudaError_t stream_create(cudaStream_t *stream, unsigned flags)
{
    if (!stream || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st{{}, flags != cudaStreamNonBlocking, false, nullptr, {}};
    streams.push_back(*stream);
    return cudaSuccess;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

void cuda_on_cpu_charge(double kernel_milliseconds, double library_milliseconds)
{
    kernel_charge = kernel_milliseconds;
    library_charge = library_milliseconds;
}

/* ---- streams ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return enter(ORDINARY, [&] { return stream_create(stream, cudaStreamDefault); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    return enter(ORDINARY, [&] { return stream_create(stream, flags); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int)
{
    return enter(ORDINARY, [&] { return stream_create(stream, flags); });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    return enter(ORDINARY, [&] {
        *least = 0;
        *greatest = -5;
        return cudaSuccess;
    });
}

/* Does not wait: what is queued still runs. */
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    return enter(FREES, [&] {
        const cudaStream_t stream = stream_of(handle);
        if (!stream || stream == &legacy) return cudaErrorInvalidResourceHandle;
        if (stream->captured_by) capture_lose(stream);
        stream->captured_by = nullptr;
        stream->is_destroyed = true;
        bury_destroyed();
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return enter(ORDINARY, [&] { return stream_finish(stream); });
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    return enter(ORDINARY, [&] {
        const cudaStream_t stream = stream_of(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        const cudaError_t e = capture_forbids();
        if (e) return e;
        if (stream->queue.empty()) return cudaSuccess;
        step(stream);
        return cudaErrorNotReady;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int)
{
    return enter(ORDINARY, [&] { return event_wait(stream, event); });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    return enter(ORDINARY, [&] {
        if (!function) return cudaErrorInvalidValue;
        return stream_submit(stream, WORK_HOST, [=] { function(data); });
    });
}

/* ---- events ---- */

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return enter(ORDINARY, [&] { return event_create(event, cudaEventDefault); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    return enter(ORDINARY, [&] { return event_create(event, flags); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return enter(ORDINARY, [&] { return event_record(event, stream); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return enter(ORDINARY, [&] {
        const cudaError_t e = event_check(event);
        while (!e && event->last && !event->last->is_done)
            step(event->last->stream);
        return e;
    });
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return enter(ORDINARY, [&] {
        const cudaError_t e = event_check(event);
        if (e || !event->last || event->last->is_done) return e;
        step(event->last->stream);
        return cudaErrorNotReady;
    });
}

void cuda_on_cpu_even_times(bool on)
{
    times_are_even = on;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    return enter(ORDINARY, [&] { return event_elapsed(milliseconds, start, end); });
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    return enter(FREES, [&] {
        if (!is_event(event)) return cudaErrorInvalidResourceHandle;
        events.erase(std::find(events.begin(), events.end(), event));
        delete event;
        return cudaSuccess;
    });
}

} /* extern "C" */

/* graphs.cpp - capture of streams into graphs, and their replay.
 *
 * A captured stream runs nothing; each piece becomes a node that comes after the stream's tail. An event recorded
 * there keeps the tail of that moment; a stream that waits for it joins the capture behind those nodes. The edges are
 * all a replay knows, as on a device: it takes any node whose predecessors are done, by the schedule, so that a
 * missing edge gives wrong data under some schedule. A replay is one piece of work on its stream.
 *
 * What CUDA forbids during capture is refused with CUDA's code and loses the capture; see capture_forbids. */
#include "schedule.h"
#include "streams.h"

#include <algorithm>
#include <set>

/* The toolkit's handles point to these. */
struct CUgraph_st {
    cuda_on_cpu::node_list nodes;
};

struct CUgraphExec_st {
    cuda_on_cpu::node_list nodes;
};

namespace cuda_on_cpu {

static std::vector<cudaGraph_t> graphs;
static std::vector<cudaGraphExec_t> executables;

template <class T> static bool is_one_of(const std::vector<T> &all, T one)
{
    return std::find(all.begin(), all.end(), one) != all.end();
}

template <class T> static cudaError_t destroy(std::vector<T> *all, T one)
{
    if (!is_one_of(*all, one)) return cudaErrorInvalidValue;
    all->erase(std::find(all->begin(), all->end(), one));
    delete one;
    return cudaSuccess;
}

size_t graphs_live()
{
    return graphs.size() + executables.size();
}

void graphs_reset()
{
    while (!graphs.empty())
        destroy(&graphs, graphs.back());
    while (!executables.empty())
        destroy(&executables, executables.back());
}

/* ---- what a capture forbids ---- */

void capture_lose(cudaStream_t stream)
{
    stream->captured_by->is_lost = true;
}

cudaError_t capture_forbids()
{
    cudaError_t e = cudaSuccess;
    for (cudaStream_t s : all_streams()) {
        const capture *c = s->captured_by.get();
        if (!c || c->mode == cudaStreamCaptureModeRelaxed) continue;
        if (c->mode == cudaStreamCaptureModeThreadLocal && c->thread != std::this_thread::get_id()) continue;
        capture_lose(s);
        e = cudaErrorStreamCaptureUnsupported;
    }
    return e;
}

cudaError_t capture_check(cudaStream_t stream)
{
    if (stream->captured_by) return stream->captured_by->is_lost ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    if (stream != stream_of(nullptr)) return cudaSuccess;
    cudaError_t e = cudaSuccess;
    for (cudaStream_t s : all_streams()) {
        if (!s->captured_by || !s->is_blocking) continue;
        capture_lose(s);
        e = cudaErrorStreamCaptureImplicit;
    }
    return e;
}

/* ---- capturing ---- */

cudaError_t capture_submit(cudaStream_t stream, work_kind kind, std::function<void()> work)
{
    const node n = std::make_shared<CUgraphNode_st>(CUgraphNode_st{kind, std::move(work), stream->tail});
    stream->captured_by->nodes.push_back(n);
    stream->tail = {n};
    return cudaSuccess;
}

cudaError_t capture_record(cudaStream_t stream, cudaEvent_t event)
{
    event->last = nullptr;
    event->captured_by = stream->captured_by;
    event->tail = stream->tail;
    return cudaSuccess;
}

static void add_to_tail(cudaStream_t stream, const node_list &nodes)
{
    for (const node &n : nodes)
        if (!is_one_of(stream->tail, n)) stream->tail.push_back(n);
}

cudaError_t capture_wait(cudaStream_t stream, cudaEvent_t event)
{
    if (!event->captured_by) {
        if (!event->last) return cudaSuccess; /* never recorded: nothing to wait for */
        capture_lose(stream);
        return cudaErrorStreamCaptureIsolation;
    }
    if (event->captured_by->is_lost) return cudaErrorStreamCaptureInvalidated;
    if (!event->captured_by->origin) return cudaErrorCapturedEvent; /* of a capture that has ended */
    if (stream->captured_by && stream->captured_by != event->captured_by) {
        capture_lose(stream);
        event->captured_by->is_lost = true;
        return cudaErrorStreamCaptureMerge;
    }
    if (stream == stream_of(nullptr)) return cudaErrorStreamCaptureUnsupported;
    stream->captured_by = event->captured_by;
    add_to_tail(stream, event->tail);
    return cudaSuccess;
}

static cudaError_t begin_capture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    const cudaStream_t stream = stream_of(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream == stream_of(nullptr)) return cudaErrorStreamCaptureUnsupported;
    if (stream->captured_by) {
        capture_lose(stream);
        return cudaErrorIllegalState;
    }
    stream->captured_by = std::make_shared<capture>(capture{stream, mode, std::this_thread::get_id(), false, {}});
    stream->tail.clear();
    return cudaSuccess;
}

/* All nodes that have to be done for those in `tail`, itself included. */
static std::set<node> with_predecessors(const node_list &tail)
{
    std::set<node> reached;
    node_list to_visit = tail;
    while (!to_visit.empty()) {
        const node n = to_visit.back();
        to_visit.pop_back();
        if (reached.insert(n).second) to_visit.insert(to_visit.end(), n->after.begin(), n->after.end());
    }
    return reached;
}

static cudaError_t end_capture(cudaStream_t handle, cudaGraph_t *graph)
{
    const cudaStream_t stream = stream_of(handle);
    if (!stream || !graph) return stream ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
    *graph = nullptr;
    const std::shared_ptr<capture> c = stream->captured_by;
    if (!c) return cudaErrorIllegalState;
    if (c->origin != stream) {
        c->is_lost = true;
        return cudaErrorStreamCaptureUnmatched;
    }
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
        return cudaErrorStreamCaptureWrongThread;
    const bool is_joined = with_predecessors(stream->tail).size() == c->nodes.size();
    for (cudaStream_t s : all_streams()) {
        if (s->captured_by != c) continue;
        s->captured_by = nullptr;
        s->tail.clear();
    }
    c->origin = nullptr;
    if (c->is_lost) return cudaErrorStreamCaptureInvalidated;
    if (!is_joined) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st{c->nodes};
    graphs.push_back(*graph);
    return cudaSuccess;
}

/* ---- replay ---- */

static size_t choose(size_t n)
{
    if (schedule_order() == CUDA_ON_CPU_RANDOM) return schedule_draw(n);
    return schedule_order() == CUDA_ON_CPU_REVERSE ? n - 1 : 0;
}

static void replay(const node_list &nodes)
{
    std::set<node> done;
    node_list left = nodes;
    while (!left.empty()) {
        std::vector<size_t> free_nodes;
        for (size_t i = 0; i < left.size(); i++) {
            const node_list &after = left[i]->after;
            if (std::all_of(after.begin(), after.end(), [&](const node &n) { return done.count(n) > 0; }))
                free_nodes.push_back(i);
        }
        const size_t i = free_nodes[choose(free_nodes.size())];
        left[i]->work();
        done.insert(left[i]);
        left.erase(left.begin() + (ptrdiff_t)i);
    }
}

static cudaError_t launch_graph(cudaGraphExec_t executable, cudaStream_t handle)
{
    const cudaStream_t stream = stream_of(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (!is_one_of(executables, executable)) return cudaErrorInvalidValue;
    if (stream->captured_by) { /* a device makes a child graph of it; not needed here */
        capture_lose(stream);
        return cudaErrorStreamCaptureUnsupported;
    }
    const cudaError_t e = capture_check(stream);
    if (e) return e;
    const node_list nodes = executable->nodes; /* outlives the executable */
    stream_push(stream, [nodes] { replay(nodes); });
    return cudaSuccess;
}

static cudaError_t instantiate(cudaGraphExec_t *executable, cudaGraph_t graph)
{
    if (!executable || !is_one_of(graphs, graph)) return cudaErrorInvalidValue;
    *executable = new CUgraphExec_st{graph->nodes};
    executables.push_back(*executable);
    return cudaSuccess;
}

static cudaError_t list_nodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    if (!is_one_of(graphs, graph) || !count) return cudaErrorInvalidValue;
    const size_t room = nodes ? *count : 0;
    for (size_t i = 0; i < room; i++)
        nodes[i] = i < graph->nodes.size() ? graph->nodes[i].get() : nullptr;
    *count = nodes ? std::min(room, graph->nodes.size()) : graph->nodes.size();
    return cudaSuccess;
}

static enum cudaGraphNodeType type_of(work_kind kind)
{
    switch (kind) {
    case WORK_KERNEL:
        return cudaGraphNodeTypeKernel;
    case WORK_COPY:
        return cudaGraphNodeTypeMemcpy;
    case WORK_FILL:
        return cudaGraphNodeTypeMemset;
    default:
        return cudaGraphNodeTypeHost;
    }
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    return enter(ORDINARY, [&] { return begin_capture(stream, mode); });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    return enter(FREES, [&] { return end_capture(stream, graph); }); /* a capture ends, whatever it returns */
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    return enter(ORDINARY, [&] {
        const cudaStream_t stream = stream_of(handle);
        if (!stream || !status) return stream ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
        const capture *c = stream->captured_by.get();
        *status = !c           ? cudaStreamCaptureStatusNone
                  : c->is_lost ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    return enter(ORDINARY, [&] { return instantiate(executable, graph); });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    return enter(ORDINARY, [&] { return instantiate(executable, graph); });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    return enter(ORDINARY, [&] { return launch_graph(executable, stream); });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return enter(FREES, [&] { return destroy(&graphs, graph); });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    return enter(FREES, [&] { return destroy(&executables, executable); });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    return enter(ORDINARY, [&] { return list_nodes(graph, nodes, count); });
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t n, enum cudaGraphNodeType *type)
{
    return enter(ORDINARY, [&] {
        *type = type_of(n->kind);
        return cudaSuccess;
    });
}

} /* extern "C" */

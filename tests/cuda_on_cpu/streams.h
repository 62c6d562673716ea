/* streams.h - streams, events, captures and graphs as streams.cpp and graphs.cpp see them. */
#ifndef CUDA_ON_CPU_STREAMS_H
#define CUDA_ON_CPU_STREAMS_H

#include "runtime.h"

#include <deque>
#include <memory>
#include <thread>
#include <vector>

namespace cuda_on_cpu {

/* One cudaEventRecord: done when the stream comes to it. Waits hold on to the record, not to the event, which may be
 * recorded anew or destroyed meanwhile. */
struct record {
    cudaStream_t stream;
    bool is_done;
    double milliseconds; /* when it was done */
};

/* A piece of queued work: runs `work`, or waits for another stream's record, or completes a record. */
struct task {
    uint64_t serial; /* over all streams, in the order of calls */
    std::function<void()> work;
    std::shared_ptr<record> waits_for, completes;
};

/* A node of a graph: its work and the nodes it comes after. */
typedef std::shared_ptr<CUgraphNode_st> node;
typedef std::vector<node> node_list;

/* What is being captured: begun on one stream, joined by those that wait for its events. */
struct capture {
    cudaStream_t origin;
    enum cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool is_lost; /* after a forbidden call: only cudaStreamEndCapture gets out of it */
    node_list nodes;
};

} // namespace cuda_on_cpu

/* The toolkit's handles point to these. */
struct CUstream_st {
    std::deque<cuda_on_cpu::task> queue;
    bool is_blocking;  /* orders itself with the legacy stream */
    bool is_destroyed; /* goes when its queue is empty */
    std::shared_ptr<cuda_on_cpu::capture> captured_by;
    cuda_on_cpu::node_list tail; /* while captured: what the next node comes after */
};

struct CUevent_st {
    bool has_time;
    std::shared_ptr<cuda_on_cpu::record> last;      /* none before the first cudaEventRecord */
    std::shared_ptr<cuda_on_cpu::capture> captured_by; /* where it was last recorded in a capture */
    cuda_on_cpu::node_list tail;
};

struct CUgraphNode_st {
    cuda_on_cpu::work_kind kind;
    std::function<void()> work;
    cuda_on_cpu::node_list after;
};

namespace cuda_on_cpu {

/* The stream of a handle, none for a bad one. NULL and cudaStreamLegacy are the legacy stream. */
cudaStream_t stream_of(cudaStream_t handle);
const std::vector<cudaStream_t> &all_streams();
/* Queues without a look at captures. */
void stream_push(cudaStream_t stream, std::function<void()> work);

/* For a call that works on `stream`: an error where a capture stands against it. */
cudaError_t capture_check(cudaStream_t stream);
void capture_lose(cudaStream_t stream);
cudaError_t capture_submit(cudaStream_t stream, work_kind kind, std::function<void()> work);
cudaError_t capture_record(cudaStream_t stream, cudaEvent_t event);
/* The event was recorded in a capture, or the stream is captured. */
cudaError_t capture_wait(cudaStream_t stream, cudaEvent_t event);

} // namespace cuda_on_cpu

#endif

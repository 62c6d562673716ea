/* runtime.h - what the files of the runtime's stand-in share. One lock holds for all of it; queued work runs under it.
 *
 * runtime.cpp   errors, failures on demand, the device and its properties
 * memory.cpp    blocks with red zones, copies, fills
 * streams.cpp   queues, events, what runs when
 * graphs.cpp    capture, graphs, replay
 * launch.cpp    checks and attributes of kernels
 * cudnn_*.cpp, cublaslt.cpp   the libraries, on top of these */
#ifndef CUDA_ON_CPU_RUNTIME_H
#define CUDA_ON_CPU_RUNTIME_H

#include "control.h"

#include <functional>
#include <memory>
#include <stddef.h>
#include <stdint.h>
#include <vector>

#include <cuda_runtime_api.h>

namespace cuda_on_cpu {

/* ---- entry of every call ---- */

enum entry_kind {
    ORDINARY,
    FREES,       /* does its work although the call is made to fail */
    NEEDS_NO_GPU /* works without a device and after a sticky error */
};

/* Takes the lock, counts, fails where a test asked for it; else the result of `body`. An error becomes the thread's
 * last. */
cudaError_t enter(entry_kind kind, const std::function<cudaError_t()> &body);
int number_from_environment(const char *name, int otherwise);
/* Without the lock or a count, for the few calls that only look. */
int current_device();
int device_count();
/* A library's stand-in: how many of its objects live. Whether it has engines to offer, as control.h asks. */
bool count_live(size_t (*count)());
bool engines_exist();
int number_from_environment(const char *name, int otherwise);

/* ---- memory ---- */

struct memory_sizes {
    size_t free_bytes, total_bytes;
};
memory_sizes memory_info();
size_t memory_live();
/* Aborts, naming the block, where a red zone was written to. */
void memory_check();
/* Everything is given back; what was overrun aborts first. */
void memory_reset();
/* While queued work runs, guarded blocks may be touched. */
void memory_open();
void memory_close();

/* ---- queues ---- */

enum work_kind { WORK_KERNEL, WORK_COPY, WORK_FILL, WORK_HOST };

/* Appends to the stream, or to the graph it is being captured into. */
cudaError_t stream_submit(cudaStream_t stream, work_kind kind, std::function<void()> work);
/* Runs the stream up to here; for calls that wait by their nature. Refused while it is captured. */
cudaError_t stream_finish(cudaStream_t stream);
bool stream_is_captured(cudaStream_t stream);
/* Runs all there is. */
void streams_finish();
void streams_reset();
size_t streams_live();
bool streams_running(); /* queued work is being run */
/* As cuda_on_cpu_charge asks: one of them has run. */
void charge_kernel();
void charge_library();

/* ---- capture ---- */

struct capture;

/* An error where some capture forbids calls that wait or allocate; that capture is then lost, as on a device. */
cudaError_t capture_forbids();
size_t graphs_live();
void graphs_reset();

} // namespace cuda_on_cpu

#endif

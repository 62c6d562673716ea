/* control.h - what a test asks of the stand-in: the order of threads, failures, the size of the device, counts. C and
 * C++.
 *
 * The environment sets the same before the first call: CUDA_ON_CPU_SCHEDULE=forward|reverse|random, CUDA_ON_CPU_SEED=n,
 * CUDA_ON_CPU_MEMORY_MIB=n, CUDA_ON_CPU_DEVICES=n, CUDA_ON_CPU_GUARD=1, CUDA_ON_CPU_CUDNN=n; CUDA_ON_CPU_FAIL_CALL=n with
 * CUDA_ON_CPU_FAIL_CODE=cudaError_t and, for a lasting one, CUDA_ON_CPU_FAIL_STICKS=1. CUDA_ON_CPU_MOST_BLOCKS=n makes grids
 * of kernels whose blocks stride over their work so small that blocks go round several times. */
#ifndef CUDA_ON_CPU_CONTROL_H
#define CUDA_ON_CPU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order threads of a block start and go on after they waited, blocks of a grid run, and streams and the free
 * nodes of a graph are drained. Correct code gives the same result under each.
 *   FORWARD  ascending; a thread that may go on goes before a new one starts (one warp after another)
 *   REVERSE  descending; all threads start before any goes on
 *   RANDOM   by `seed`, drawn anew at each choice */
enum cuda_on_cpu_order { CUDA_ON_CPU_FORWARD, CUDA_ON_CPU_REVERSE, CUDA_ON_CPU_RANDOM };
void cuda_on_cpu_schedule(enum cuda_on_cpu_order order, uint64_t seed);

/* Launches run only the first and the last `blocks` of their grid from now on, 0: all. For offsets at the far end of
 * tensors that are never there as a whole. */
void cuda_on_cpu_only_ends(unsigned blocks);

/* The n-th call of the runtime from now (1 = the next; 0 or less: none) gives `error` and does nothing else; a call
 * that frees does free, and one that ends a capture ends it. With `sticky` every later call gives it too, as after an illegal address, until
 * cudaDeviceReset. Not counted, and never failing: cudaGetLastError, cudaPeekAtLastError, cudaGetErrorName,
 * cudaGetErrorString. */
void cuda_on_cpu_fail_call(long n, cudaError_t error, bool sticky);
/* Calls counted so far. */
long cuda_on_cpu_calls(void);
/* Called in front of every call that is counted, by its thread, with no lock held: it may fork. NULL: none. */
void cuda_on_cpu_before_calls(void (*hook)(void));

/* Bytes of device memory from now on. What is allocated stays. */
void cuda_on_cpu_memory(size_t total_bytes);
/* Devices from now on; 0 gives cudaErrorNoDevice. */
void cuda_on_cpu_devices(int count);
/* Device memory may be touched by queued work only: the host faults on it (SIGSEGV), as with a real device. Holds for
 * blocks allocated after the call; managed memory is exempt. Off at first: tests of single kernels read results in
 * place. */
void cuda_on_cpu_guard(bool on);

/* Blocks (device, managed, pinned), streams, events, graphs, executable graphs, and the libraries' handles and
 * descriptors that were made and not yet freed. */
size_t cuda_on_cpu_live(void);
/* Kernels run so far, replays included. */
long cuda_on_cpu_kernels(void);

/* Runs of cuDNN's graphs and of cuBLASLt's products so far, replays included. */
long cuda_on_cpu_graph_runs(void);
long cuda_on_cpu_matmul_runs(void);
/* Added to the time that events tell, for each run of a kernel and of a library: which is faster is then not left to chance.
 * 0 at first. */
void cuda_on_cpu_charge(double kernel_milliseconds, double library_milliseconds);
/* Whether the libraries' stand-ins offer any engine at all; true at first. */
void cuda_on_cpu_engines(bool exist);
/* The version that cuDNN's stand-in plays from now on, 91900 or 92600; at first CUDA_ON_CPU_CUDNN, else its headers' own. Only
 * between uses: graphs and plans of one version are not for another. */
void cuda_on_cpu_cudnn_version(int version);

/* Events lie a millisecond apart, whatever ran between them, until this is false again: whoever chooses by time takes the first. */
void cuda_on_cpu_even_times(bool on);

/* Whether some kernels of this program are compiled with -fsanitize=thread, so that shared memory is checked. */
bool cuda_on_cpu_races_checked(void);
/* A finding is printed and aborts; with `abort_at_once` false it is printed and counted. */
void cuda_on_cpu_races_abort(bool abort_at_once);
/* Findings so far: two threads without a barrier between them, and reads of bytes that nobody wrote. */
long cuda_on_cpu_races(void);
long cuda_on_cpu_unwritten_reads(void);

#ifdef __cplusplus
}
#endif
#endif

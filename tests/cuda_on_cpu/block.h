/* block.h - one block at a time: what kernels (through cuda_on_cpu.h), launches and the race checker share with the
 * runner. */
#ifndef CUDA_ON_CPU_BLOCK_H
#define CUDA_ON_CPU_BLOCK_H

#include "control.h"

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

namespace cuda_on_cpu {

static constexpr unsigned WARP = 32, MAX_THREADS = 1024;

/* The running thread, as kernels see it. */
struct thread_view {
    uint3 thread, block;
    dim3 block_size, grid_size;
    unsigned linear;        /* the thread's number in its block */
    uint64_t block_serial;  /* of this block among all that ever ran; 0 while none runs */
    unsigned char *dynamic; /* the launch's dynamic shared memory */
    size_t dynamic_bytes;
};
extern thread_view now;

/* A kernel with its arguments, ready to run any number of times. */
struct kernel_call {
    const void *kernel;
    dim3 grid, block;
    size_t dynamic_bytes, static_bytes_max; /* shared memory; the latter is the runner's to keep */
    void (*thread)(const void *code); /* runs one thread */
    const void *code;                 /* the kernel and its arguments, of a type that `thread` knows */
};

/* Runs every block of the grid, one after the other; returns when all threads have ended. Aborts on a deadlock, naming
 * threads and what they wait for. The call has passed the checks of launch.cpp. */
void run_grid(const kernel_call &call);

/* ---- waiting ---- */

struct tally {
    int yes, of; /* threads whose predicate was not 0, of those that came */
};
/* Until all threads of the block that have not ended are here. */
tally meet_block(const char *what, int predicate);

static constexpr unsigned VOTE = WARP; /* for `source`: the lanes whose value is not 0, as bits */
/* Until all lanes of `mask` that have not ended are here with the same mask and `what`; gives the value of lane
 * `source`, all ones where that lane did not come. */
uint64_t meet_warp(const char *what, unsigned mask, uint64_t value, unsigned source);

/* ---- shared memory ---- */

/* An array of a SHARED is entered by the first thread that comes to it in this block: every byte becomes 0xFF, a NaN.
 * Nobody has business in the padding behind it. */
void shared_enter(void *array, size_t bytes, size_t padding, const char *name);
/* Static shared bytes of a block of this kernel, as far as it has run; 0 before. */
size_t shared_static_bytes(const void *kernel);

/* ---- launches (launch.cpp) ---- */

/* Of a grid whose blocks stride over their work. */
int64_t most_blocks();
/* Checks the launch and queues it on `stream`; `destroy` is called with call.code once nobody can run it any more,
 * after a refusal too. */
cudaError_t launch(const kernel_call &call, cudaStream_t stream, void (*destroy)(const void *code));

} // namespace cuda_on_cpu

#endif

/* pool.h - the CPU backend's threads: a job is n tasks, and no thread waits for one that has taken
 * none. */
#ifndef BACKEND_CPU_POOL_H
#define BACKEND_CPU_POOL_H

#include "ddpm/status.h"

#include <stdint.h>

struct pool;

typedef void (*pool_task)(void *context, int64_t i, int thread);

/* threads - 1 threads, beside the one that calls pool_run; they block every signal. NOMEM, or
 * BACKEND where the system gives no more threads. */
ddpm_status pool_create(int threads, struct pool **out);
void pool_free(struct pool *p); /* accepts NULL; no job may be running */

/* task(context, i, thread) for i = 0 .. n-1, each once, in any order; returns when all have ended.
 * 0 <= thread < threads, and no two tasks run as the same thread at once. One job at a time: not to
 * be called from two threads, nor from a task. n < 2^32. */
void pool_run(struct pool *p, int64_t n, pool_task task, void *context);

#endif

/* pool.c - threads that take tasks as they come.
 *
 * A training step is some hundred jobs of a millisecond, one behind the other. OpenMP's parallel
 * regions wait at their end for every thread, also for one that the system has not let run since
 * the region began; on a machine that does other work as well, each of those waits costs a time
 * slice, and two threads trained up to six times slower than one. Here whoever runs takes the next
 * task, and the end of a job waits only for tasks that somebody has begun.
 *
 * The ticket is one 64-bit word: the job's number in the upper half, its next task in the lower. A
 * thread reads ticket, then job, then advances the ticket by compare-and-swap. A swap that succeeds
 * proves that the job it read is the ticket's and still has that task to do, for a job's fields
 * change only after all its tasks have ended, and the number with them.
 *
 * Waiting spins for some microseconds, for the next job is mostly that near, and then sleeps.
 * Whoever sleeps says so before it looks a last time, and whoever publishes looks for sleepers
 * afterwards; both orders are sequentially consistent, so one of the two sees the other. */
#include "pool.h"

#include "fail.h"

#include <assert.h>
#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { SPINS = 4000 }; /* 20 to 100 microseconds */

struct worker {
    struct pool *pool;
    pthread_t id;
    int thread;
};

struct pool {
    _Alignas(64) _Atomic uint64_t ticket; /* job << 32 | next task */
    _Alignas(64) _Atomic int64_t ended;   /* tasks of this job */
    /* the job; atomic because a late thread may read them while the next job is written, and then
     * drops what it read */
    _Alignas(64) _Atomic(pool_task) task;
    _Atomic(void *) context;
    _Atomic int64_t n;
    atomic_bool stops;
    atomic_int sleeping; /* workers that wait for a job */
    atomic_bool caller_sleeps;
    pthread_mutex_t mutex;
    pthread_cond_t job, end;
    int n_workers;
    struct worker worker[];
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes the next task of the current job and runs it. False where there is none left. */
static bool run_one(struct pool *p, int thread)
{
    uint64_t ticket = atomic_load(&p->ticket);
    for (;;) {
        const int64_t i = (int64_t)(ticket & UINT32_MAX), n = atomic_load(&p->n);
        const pool_task task = atomic_load(&p->task);
        void *const context = atomic_load(&p->context);
        if (i >= n) return false;
        if (!atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1)) continue;
        task(context, i, thread);
        /* Once it counts as ended the caller may return: nothing of the job is touched after this.
         */
        if (atomic_fetch_add(&p->ended, 1) + 1 == n && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_signal(&p->end);
            pthread_mutex_unlock(&p->mutex);
        }
        return true;
    }
}

static bool has_task(struct pool *p)
{
    const uint64_t ticket = atomic_load(&p->ticket);
    return (int64_t)(ticket & UINT32_MAX) < atomic_load(&p->n);
}

static void wait_for_job(struct pool *p)
{
    for (int i = 0; i < SPINS; i++) {
        if (has_task(p) || atomic_load(&p->stops)) return;
        pause_briefly();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add(&p->sleeping, 1);
    while (!has_task(p) && !atomic_load(&p->stops))
        pthread_cond_wait(&p->job, &p->mutex);
    atomic_fetch_sub(&p->sleeping, 1);
    pthread_mutex_unlock(&p->mutex);
}

static void *worker_main(void *argument)
{
    const struct worker *w = argument;
    struct pool *p = w->pool;
    omp_set_num_threads(
        1); /* of this thread: a library called by a task has no threads of its own */
    while (!atomic_load(&p->stops)) {
        if (!run_one(p, w->thread)) wait_for_job(p);
    }
    return NULL;
}

static void wait_for_end(struct pool *p, int64_t n)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&p->ended) == n) return;
        pause_briefly();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->ended) != n)
        pthread_cond_wait(&p->end, &p->mutex);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

static void publish(struct pool *p, int64_t n, pool_task task, void *context)
{
    const uint64_t job = (atomic_load(&p->ticket) >> 32) + 1;
    /* n = 0 first: a late thread with the old ticket must not meet the new n. */
    atomic_store(&p->n, 0);
    atomic_store(&p->ticket, job << 32);
    atomic_store(&p->task, task);
    atomic_store(&p->context, context);
    atomic_store(&p->ended, 0);
    atomic_store(&p->n, n);
    if (atomic_load(&p->sleeping) == 0) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->job);
    pthread_mutex_unlock(&p->mutex);
}

void pool_run(struct pool *p, int64_t n, pool_task task, void *context)
{
    assert(n < UINT32_MAX);
    if (n <= 0) return;
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    if (p->n_workers == 0 || n == 1) {
        for (int64_t i = 0; i < n; i++)
            task(context, i, 0);
    } else {
        publish(p, n, task, context);
        while (run_one(p, 0))
            ;
        wait_for_end(p, n);
    }
    omp_set_num_threads(before);
}

/* Signals are for the thread that runs the program's loop. */
static int start(struct worker *w)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int e = pthread_create(&w->id, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return e;
}

ddpm_status pool_create(int threads, struct pool **out)
{
    *out = NULL;
    const size_t bytes = sizeof(struct pool) + (size_t)(threads - 1) * sizeof(struct worker);
    struct pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    REQUIRE(p, NOMEM, "thread pool: %zu bytes", bytes);
    memset(p, 0, bytes);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->job, NULL);
    pthread_cond_init(&p->end, NULL);
    for (int i = 0; i < threads - 1; i++) {
        p->worker[i] = (struct worker){.pool = p, .thread = i + 1};
        const int e = start(&p->worker[i]);
        if (e) {
            pool_free(p);
            return FAIL(BACKEND,
                        "thread %d of %d could not be started (%s): use fewer by --threads", i + 2,
                        threads, strerror(e));
        }
        p->n_workers++;
    }
    *out = p;
    return DDPM_OK;
}

void pool_free(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->stops, true);
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->job);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->n_workers; i++)
        pthread_join(p->worker[i].id, NULL);
    pthread_cond_destroy(&p->end);
    pthread_cond_destroy(&p->job);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

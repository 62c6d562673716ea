/* The CPU backend's threads: every task once, by the thread it is told, whatever the sizes and
 * however jobs follow. */
#include "support.h"

#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 4, TASKS = 1000 };

struct tally {
    int64_t n;
    unsigned char done[TASKS];
    atomic_int busy[THREADS], faults;
    useconds_t wait;
};

static void count_task(void *context, int64_t i, int thread)
{
    struct tally *t = context;
    const bool is_wrong = i < 0 || i >= t->n || thread < 0 || thread >= THREADS;
    if (is_wrong || atomic_fetch_add(&t->busy[thread], 1) != 0) {
        atomic_fetch_add(&t->faults, 1);
        return;
    }
    t->done[i]++; /* not atomic: ThreadSanitizer must agree that nobody else writes it */
    if (t->wait) usleep(t->wait);
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void run_and_check(struct pool *p, int64_t n, useconds_t wait)
{
    struct tally t;
    memset(&t, 0, sizeof t);
    t.n = n;
    t.wait = wait;
    pool_run(p, n, count_task, &t);
    assert_int_equal(t.faults, 0);
    for (int64_t i = 0; i < TASKS; i++)
        if (t.done[i] != (i < n)) fail_msg("task %d of %d ran %d times", (int)i, (int)n, t.done[i]);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        struct pool *p;
        assert_int_equal(pool_create(threads, &p), DDPM_OK);
        for (int64_t n = 0; n <= 9; n++)
            run_and_check(p, n, 0);
        run_and_check(p, TASKS, 0);
        pool_free(p);
    }
}

/* Jobs on the heels of each other: a thread that comes late to one must not run it with the next
 * one's fields. */
static void jobs_follow_each_other(void **state)
{
    (void)state;
    struct pool *p;
    assert_int_equal(pool_create(THREADS, &p), DDPM_OK);
    for (int job = 0; job < 5000; job++)
        run_and_check(p, 1 + job % 7, 0);
    pool_free(p);
}

/* Pauses longer than any thread spins, before jobs and inside them: sleepers are woken. */
static void sleepers_are_woken(void **state)
{
    (void)state;
    struct pool *p;
    assert_int_equal(pool_create(THREADS, &p), DDPM_OK);
    for (int job = 0; job < 20; job++) {
        usleep(2000);
        run_and_check(p, THREADS, job % 2 ? 2000 : 0);
    }
    pool_free(p);
}

struct meeting {
    atomic_int here, missed;
};

/* Waits until the other task has begun as well, ten seconds at most. */
static void meet_task(void *context, int64_t i, int thread)
{
    struct meeting *m = context;
    (void)i;
    (void)thread;
    atomic_fetch_add(&m->here, 1);
    for (int ms = 0; atomic_load(&m->here) < 2; ms++) {
        if (ms == 10000) {
            atomic_fetch_add(&m->missed, 1);
            return;
        }
        usleep(1000);
    }
}

static void tasks_run_side_by_side(void **state)
{
    (void)state;
    struct pool *p;
    assert_int_equal(pool_create(2, &p), DDPM_OK);
    struct meeting m = {0};
    pool_run(p, 2, meet_task, &m);
    assert_int_equal(m.missed, 0);
    pool_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(jobs_follow_each_other),
        cmocka_unit_test(sleepers_are_woken),
        cmocka_unit_test(tasks_run_side_by_side),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

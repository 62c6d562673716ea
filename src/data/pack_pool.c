/* pack_pool.c - many files at once, in order.
 *
 * Job        keep every core decoding, and put each image where its number says.
 * Method     threads take the next few numbers of the block in turn, read the files, and hand them
 *            to their child together (large ones singly). Numbers are taken in order and what is
 *            taken is finished, so a stop leaves a whole beginning.
 * Cost       a lock for every sixteen images; the last images of a block may leave a core idle.
 * Rejected   OpenMP: each thread owns a process, and must live as long as it does. */
#include "pack_pool.h"

#include "fail.h"
#include "image_checks.h"
#include "image_child.h"
#include "source.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TURN = IMAGE_TURN, TURN_BYTES = 1 << 20, TURN_PIXELS = 4 << 20, MAX_THREADS = 256 };

struct pack_pool {
    const pack_input *in; /* borrowed */
    int fit;
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    pthread_t *threads;
    int n_threads, n_ready; /* started; those whose child runs */
    bool is_confined, is_quitting;
    /* the block */
    int64_t first, count, next, finished;
    bool is_stopped;
    uint8_t *images;
    char **reasons;
    ddpm_status status; /* the first fault that is not an image's */
    char message[1024];
};

static void pool_fault(pack_pool *p, ddpm_status s)
{
    pthread_mutex_lock(&p->lock);
    if (!p->status) {
        p->status = s;
        status_copy_message(p->message, sizeof p->message);
    }
    p->is_stopped = true;
    pthread_cond_broadcast(&p->idle);
    pthread_mutex_unlock(&p->lock);
}

/* A thread, its child, and the files that are read for the child's next turn. */
typedef struct {
    pack_pool *pool;
    image_child *child;
    uint8_t *files;
    size_t used, room;
    image_job jobs[IMAGE_TURN];
    size_t at[IMAGE_TURN];     /* of each file in `files` */
    int64_t image[IMAGE_TURN]; /* in the block */
    int n;
} worker;

/* Appends a file to the turn. One that cannot be read is rejected like one that cannot be decoded.
 */
static ddpm_status file_read(worker *w, const char *path, size_t *bytes)
{
    int fd = -1;
    int64_t size = 0;
    TRY(source_open_file(path, &fd, &size));
    ddpm_status s = DDPM_OK;
    if (size > IMAGE_MAX_FILE)
        FAIL_GOTO(done, FORMAT, "has %" PRId64 " bytes, at most %d are read", size, IMAGE_MAX_FILE);
    if (size == 0) FAIL_GOTO(done, FORMAT, "is empty");
    const size_t need = w->used + (size_t)size;
    if (need > w->room) {
        uint8_t *p = realloc(w->files, need + TURN_BYTES);
        if (!p) FAIL_GOTO(done, NOMEM, "%s: %" PRId64 " bytes", path, size);
        w->files = p;
        w->room = need + TURN_BYTES;
    }
    *bytes = (size_t)size;
    s = source_read_at(fd, path, 0, w->files + w->used, *bytes);
done:
    close(fd);
    return s;
}

/* The reason alone: the path stands beside it in the list. */
static const char *without_path(const char *message, const char *path)
{
    const size_t n = strlen(path);
    return !strncmp(message, path, n) && !strncmp(message + n, ": ", 2) ? message + n + 2 : message;
}

static ddpm_status reject(pack_pool *p, int64_t i, const char *reason)
{
    p->reasons[i] = strdup(reason);
    REQUIRE(p->reasons[i], NOMEM, "the reason of a rejection");
    return DDPM_OK;
}

/* The child's turn at what has been read. */
static ddpm_status turn_decode(worker *w)
{
    pack_pool *p = w->pool;
    const pack_input *in = p->in;
    if (w->n == 0) return DDPM_OK;
    for (int k = 0; k < w->n; k++)
        w->jobs[k].file = w->files + w->at[k];
    TRY(image_child_decode_turn(w->child, w->jobs, w->n, in->height, in->width, in->channels,
                                p->fit));
    for (int k = 0; k < w->n; k++)
        if (w->jobs[k].status) TRY(reject(p, w->image[k], w->jobs[k].reason));
    w->n = 0;
    w->used = 0;
    return DDPM_OK;
}

/* Reads image i for the next turn; has the turn taken when it is full or large. */
static ddpm_status image_add(worker *w, int64_t i)
{
    pack_pool *p = w->pool;
    const pack_input *in = p->in;
    const size_t out = (size_t)in->height * (size_t)in->width * (size_t)in->channels;
    const char *path = pack_input_path(in, p->first + i);
    if (in->has_labels && pack_input_label(in, p->first + i) < 0)
        return reject(p, i, "has no label");
    size_t bytes = 0;
    const ddpm_status s = file_read(w, path, &bytes);
    if (s == DDPM_NOMEM) return s;
    if (s) return reject(p, i, without_path(ddpm_last_error(), path));
    if (w->n && w->used + bytes > TURN_BYTES) {
        /* what was read before goes first, and this file to the front */
        const size_t before = w->used;
        TRY(turn_decode(w));
        memmove(w->files, w->files + before, bytes);
    }
    w->at[w->n] = w->used;
    w->image[w->n] = i;
    w->jobs[w->n++] = (image_job){.bytes = bytes, .dst = p->images + (size_t)i * out};
    w->used += bytes;
    const bool is_full =
        w->n == IMAGE_TURN || w->used > TURN_BYTES || (size_t)w->n * out > TURN_PIXELS;
    return is_full ? turn_decode(w) : DDPM_OK;
}

static void turn_run(worker *w, int64_t from, int64_t to)
{
    ddpm_status s = DDPM_OK;
    for (int64_t i = from; !s && i < to; i++)
        s = image_add(w, i);
    if (!s) s = turn_decode(w);
    if (s) pool_fault(w->pool, s);
}

static void *worker_main(void *user)
{
    worker w = {.pool = user};
    pack_pool *p = user;
    const ddpm_status s = image_child_start(&w.child);
    if (s) pool_fault(p, s);
    pthread_mutex_lock(&p->lock);
    p->n_ready++;
    if (!s && !image_child_is_confined(w.child)) p->is_confined = false;
    pthread_cond_broadcast(&p->idle);
    while (!p->is_quitting) {
        if (s || p->is_stopped || p->next >= p->count) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        const int64_t from = p->next, to = from + TURN < p->count ? from + TURN : p->count;
        p->next = to;
        pthread_mutex_unlock(&p->lock);
        turn_run(&w, from, to);
        pthread_mutex_lock(&p->lock);
        p->finished += to - from;
        if (p->finished == p->next && (p->is_stopped || p->next == p->count))
            pthread_cond_broadcast(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    image_child_stop(w.child);
    free(w.files);
    return NULL;
}

static ddpm_status threads_start(pack_pool *p, int threads)
{
    p->threads = calloc((size_t)threads, sizeof *p->threads);
    REQUIRE(p->threads, NOMEM, "%d threads", threads);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old); /* signals are the calling thread's */
    int error = 0;
    while (!error && p->n_threads < threads) {
        error = pthread_create(&p->threads[p->n_threads], NULL, worker_main, p);
        if (!error) p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    REQUIRE(!error, NOMEM, "thread %d of %d: %s", p->n_threads + 1, threads, strerror(error));
    pthread_mutex_lock(&p->lock);
    while (p->n_ready < p->n_threads)
        pthread_cond_wait(&p->idle, &p->lock);
    const ddpm_status s = p->status;
    if (s) status_set_message(p->message);
    pthread_mutex_unlock(&p->lock);
    return s;
}

static int cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

ddpm_status pack_pool_create(const pack_input *in, int threads, int fit, pack_pool **out)
{
    *out = NULL;
    REQUIRE(threads >= 0 && threads <= MAX_THREADS, ARG, "%d threads; 0 .. %d", threads,
            MAX_THREADS);
    pack_pool *p = calloc(1, sizeof *p);
    REQUIRE(p, NOMEM, "%zu bytes", sizeof *p);
    p->in = in;
    p->fit = fit;
    p->is_confined = true;
    pthread_condattr_t clock; /* waits are timed, and must not follow a clock that is set */
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, &clock);
    pthread_condattr_destroy(&clock);
    const ddpm_status s = threads_start(p, threads ? threads : cores());
    if (s) {
        pack_pool_free(p);
        return s;
    }
    *out = p;
    return DDPM_OK;
}

void pack_pool_free(pack_pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->is_quitting = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->idle);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

bool pack_pool_is_confined(const pack_pool *p)
{
    return p->is_confined;
}

ddpm_status pack_pool_run(pack_pool *p, int64_t first, int64_t count, uint8_t *images,
                          char **reasons, const volatile int *stop, progress *bar, int64_t *done)
{
    pthread_mutex_lock(&p->lock);
    p->first = first;
    p->images = images;
    p->reasons = reasons;
    p->count = count;
    p->next = p->finished = 0;
    p->is_stopped = false;
    pthread_cond_broadcast(&p->work);
    while (p->finished < p->next || (p->next < p->count && !p->is_stopped)) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&p->idle, &p->lock, &until);
        if (stop && *stop) p->is_stopped = true;
        progress_update(bar, first + p->finished, NULL);
    }
    *done = p->next;
    p->count = 0; /* nothing is left to take */
    p->next = 0;
    const ddpm_status s = p->status;
    if (s) status_set_message(p->message);
    pthread_mutex_unlock(&p->lock);
    return s;
}

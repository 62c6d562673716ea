/* image_child.c - the decoder as a process of its own.
 *
 * Job        image_decode_fit for files nobody has looked at: whatever one of them does to the
 *            decoder, the packing goes on and the file is named.
 * Method     a forked child, no exec, that shares one block of memory with its parent: a page of
 *            words, room for the files, room for the pixels. A byte through a socket says
 *            "decode", a byte comes back when done; several small files go in one turn; a file
 *            larger than the room makes a larger block and a new child. The parent watches the
 *            child's CPU clock; a child that dies or overstays is buried, and the files of its
 *            turn are tried one by one, each in a new child if need be, to know which it was.
 * Cost       two context switches a turn and one copy of each file; a fork of about a millisecond
 *            each child.
 * Rejected   a pipe for files and pixels: twice the copying; one child for each image: 20 times
 *            the time for small ones; threads: they share what is to be protected.
 *
 * The child is forked from a program with threads. That is safe here: glibc's malloc is put in
 * order by fork, and the child takes no other lock. */
#include "image.h"

#include "fail.h"
#include "image_checks.h"
#include "image_child.h"
#include "sandbox.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 8192, MIN_ROOM = 1 << 20 };
static const uint64_t MEMORY_BYTES = UINT64_C(1) << 30;
static const double TURN_SECONDS = 20;     /* of CPU for one turn */
static const double CHILD_SECONDS = 300;   /* after which the next image gets a new child */
static const unsigned LIMIT_SECONDS = 600; /* the kernel's own limit, should the parent hang */

/* What both sides see. The parent reads status and reason as from a stranger. */
typedef struct {
    uint64_t at, bytes; /* of the file in its room */
    int32_t status;
    char reason[IMAGE_REASON];
} request_item;

typedef struct {
    int32_t n, height, width, channels, fit;
    request_item item[IMAGE_TURN];
} request;

_Static_assert(sizeof(request) <= WORDS, "the request fits its page");

struct image_child {
    pid_t pid; /* 0: none */
    int fd;    /* the parent's end */
    bool is_confined;
    unsigned char *shared; /* WORDS for the request, then file_room, then pixel_room */
    size_t file_room, pixel_room;
};

/* ---- the child's side ---- */

static void child_serve(unsigned char *shared, size_t file_room)
{
    request *r = (request *)(void *)shared;
    char word = 0;
    while (read(0, &word, 1) == 1) {
        const size_t pixels = (size_t)r->height * (size_t)r->width * (size_t)r->channels;
        unsigned char *dst = shared + WORDS + file_room;
        for (int i = 0; i < r->n; i++, dst += pixels) {
            request_item *item = &r->item[i];
            const ddpm_status s = image_decode_fit(shared + WORDS + item->at, item->bytes,
                                                   r->height, r->width, r->channels, r->fit, dst);
            item->status = (int32_t)s;
            if (s) status_copy_message(item->reason, sizeof item->reason);
        }
        if (write(0, &word, 1) != 1) break;
    }
}

static void child_main(int fd, int parent, unsigned char *shared, size_t file_room)
{
    if (dup2(fd, 0) != 0) _exit(1);
    const char word = sandbox_enter(parent, MEMORY_BYTES, LIMIT_SECONDS) ? 'c' : 'u';
    if (write(0, &word, 1) == 1) child_serve(shared, file_room);
    _exit(0);
}

/* ---- the parent's side ---- */

static double cpu_seconds(pid_t pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t)) return 0;
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Ends the child and tells how it had ended by itself: "" when it had not. */
static void child_bury(image_child *c, char *how, size_t bytes)
{
    if (bytes) how[0] = 0;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->pid <= 0) return;
    int status = 0;
    pid_t got = waitpid(c->pid, &status, WNOHANG);
    if (got == 0) {
        kill(c->pid, SIGKILL);
        while ((got = waitpid(c->pid, &status, 0)) < 0 && errno == EINTR)
            ;
    }
    if (bytes && got == c->pid && WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
        snprintf(how, bytes, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    c->pid = 0;
}

/* Waits for the child's byte: 1 it came, 0 the child is gone, -1 its time is over. */
static int child_wait(const image_child *c, char *word)
{
    const double start = cpu_seconds(c->pid);
    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        const int ready = poll(&p, 1, 500);
        if (ready > 0) {
            const ssize_t n = recv(c->fd, word, 1, 0);
            if (n == 1) return 1;
            if (n < 0 && errno == EINTR) continue;
            return 0;
        }
        if (cpu_seconds(c->pid) - start > TURN_SECONDS) return -1;
    }
}

static ddpm_status child_fork(image_child *c)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return FAIL_ERRNO("decoder: %s", strerror(errno));
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) child_main(ends[1], parent, c->shared, c->file_room);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return FAIL(NOMEM, "decoder: no new process: %s", strerror(errno));
    }
    c->pid = pid;
    c->fd = ends[0];
    char word = 0, how[64];
    if (child_wait(c, &word) != 1) {
        child_bury(c, how, sizeof how);
        return FAIL(NOMEM, "decoder: its process ended at the start %s", how);
    }
    c->is_confined = word == 'c';
    return DDPM_OK;
}

/* A child with room for so much; the one there is if it has it. */
static ddpm_status child_ready(image_child *c, size_t file_bytes, size_t pixel_bytes)
{
    if (c->pid && cpu_seconds(c->pid) > CHILD_SECONDS) child_bury(c, NULL, 0);
    if (file_bytes > c->file_room || pixel_bytes > c->pixel_room) {
        child_bury(c, NULL, 0);
        size_t file = c->file_room > MIN_ROOM ? c->file_room : MIN_ROOM;
        size_t pixel = c->pixel_room > MIN_ROOM ? c->pixel_room : MIN_ROOM;
        while (file < file_bytes)
            file *= 2;
        while (pixel < pixel_bytes)
            pixel *= 2;
        void *p = mmap(NULL, WORDS + file + pixel, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return FAIL(NOMEM, "decoder: %zu bytes shared", WORDS + file + pixel);
        if (c->shared) munmap(c->shared, WORDS + c->file_room + c->pixel_room);
        c->shared = p;
        c->file_room = file;
        c->pixel_room = pixel;
    }
    return c->pid ? DDPM_OK : child_fork(c);
}

ddpm_status image_child_start(image_child **out)
{
    *out = NULL;
    image_child *c = calloc(1, sizeof *c);
    REQUIRE(c, NOMEM, "decoder: %zu bytes", sizeof *c);
    c->fd = -1;
    const ddpm_status s = child_ready(c, MIN_ROOM, MIN_ROOM);
    if (s) {
        image_child_stop(c);
        return s;
    }
    *out = c;
    return DDPM_OK;
}

void image_child_stop(image_child *c)
{
    if (!c) return;
    child_bury(c, NULL, 0);
    if (c->shared) munmap(c->shared, WORDS + c->file_room + c->pixel_room);
    free(c);
}

bool image_child_is_confined(const image_child *c)
{
    return c->is_confined;
}

/* The child's own verdict, as far as it can be believed. */
static void verdict(const request_item *item, image_job *job)
{
    const int32_t status = item->status;
    char reason[IMAGE_REASON];
    memcpy(reason, item->reason, sizeof reason);
    reason[sizeof reason - 1] = 0;
    job->status = status == DDPM_OK ? DDPM_OK : DDPM_FORMAT;
    if (status == DDPM_NOMEM)
        snprintf(job->reason, sizeof job->reason,
                 "needs more than the decoder's %" PRIu64 " MiB: %.180s", MEMORY_BYTES >> 20,
                 reason);
    else if (status)
        memcpy(job->reason, reason, sizeof reason);
}

/* One turn: 1 all have their verdict, 0 the child died, -1 it overstayed; then `how` tells. */
static int turn_run(image_child *c, image_job *jobs, int n, int height, int width, int channels,
                    int fit, char how[64])
{
    request *r = (request *)(void *)c->shared;
    const size_t pixels = (size_t)height * (size_t)width * (size_t)channels;
    *r = (request){.n = n, .height = height, .width = width, .channels = channels, .fit = fit};
    uint64_t at = 0;
    for (int i = 0; i < n; i++) {
        r->item[i].at = at;
        r->item[i].bytes = jobs[i].bytes;
        memcpy(c->shared + WORDS + at, jobs[i].file, jobs[i].bytes);
        at += jobs[i].bytes;
    }
    char word = 'd';
    const int came = send(c->fd, &word, 1, MSG_NOSIGNAL) == 1 ? child_wait(c, &word) : 0;
    if (came != 1) {
        child_bury(c, how, 64);
        return came;
    }
    for (int i = 0; i < n; i++) {
        verdict(&r->item[i], &jobs[i]);
        if (!jobs[i].status)
            memcpy(jobs[i].dst, c->shared + WORDS + c->file_room + (size_t)i * pixels, pixels);
    }
    return 1;
}

ddpm_status image_child_decode_turn(image_child *c, image_job *jobs, int n, int height, int width,
                                    int channels, int fit)
{
    REQUIRE(height >= 1 && width >= 1 && height <= IMAGE_MAX_SIDE && width <= IMAGE_MAX_SIDE &&
                (channels == 1 || channels == 3) && n >= 1 && n <= IMAGE_TURN,
            ARG, "decoder: %d images of %d x %d x %d", n, height, width, channels);
    const size_t pixels = (size_t)height * (size_t)width * (size_t)channels;
    size_t bytes = 0;
    for (int i = 0; i < n; i++)
        bytes += jobs[i].bytes;
    REQUIRE(bytes <= IMAGE_MAX_FILE, ARG, "decoder: %zu bytes in one turn", bytes);
    TRY(child_ready(c, bytes, (size_t)n * pixels));
    char how[64];
    const int came = turn_run(c, jobs, n, height, width, channels, fit, how);
    if (came == 1) return DDPM_OK;
    if (n > 1) {
        for (int i = 0; i < n; i++)
            TRY(image_child_decode_turn(c, &jobs[i], 1, height, width, channels, fit));
        return DDPM_OK;
    }
    jobs->status = DDPM_FORMAT;
    if (came < 0)
        snprintf(jobs->reason, sizeof jobs->reason, "the decoder spent more than %.0f s on it",
                 TURN_SECONDS);
    else
        snprintf(jobs->reason, sizeof jobs->reason, "the decoder died on it: %s",
                 how[0] ? how : "ended");
    return DDPM_OK;
}

ddpm_status image_child_decode(image_child *c, const void *file, size_t bytes, int height,
                               int width, int channels, int fit, uint8_t *dst)
{
    REQUIRE(bytes >= 1 && bytes <= IMAGE_MAX_FILE, FORMAT, "has %zu bytes; 1 .. %d are read", bytes,
            IMAGE_MAX_FILE);
    image_job job = {.file = file, .bytes = bytes, .dst = dst};
    TRY(image_child_decode_turn(c, &job, 1, height, width, channels, fit));
    REQUIRE(!job.status, FORMAT, "%s", job.reason);
    return DDPM_OK;
}

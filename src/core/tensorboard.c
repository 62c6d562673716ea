/* tensorboard.c - event records: u64 length, masked CRC-32C of it, the protobuf, masked CRC-32C of
 * that.
 *
 * A record is packed into a buffer of the object (protobuf-c packs without memory) and written in
 * one call; a write that ends early is cut off again, since a torn record ends the file for every
 * reader. */
#include "tensorboard.h"

#include "fail.h"

#include <stddef.h>

#ifdef DDPM_HAVE_TENSORBOARD

#include "tensorboard.pb-c.h"

#include <isa-l/crc.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_SIZE = 16 << 10, HEAD = 12, TAIL = 4 };

struct tensorboard {
    int fd;
    uint64_t bytes; /* of whole records in the file */
    uint8_t record[RECORD_SIZE];
};

/* CRC-32C (Castagnoli), inverted before and after, as ISA-L leaves to its caller; then rotated and
 * moved, so that a CRC of data holding CRCs stays strong. */
static uint32_t masked_crc(const uint8_t *data, size_t bytes)
{
    const uint32_t crc = ~crc32_iscsi((unsigned char *)data, (int)bytes, ~0u);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static int write_event(tensorboard *t, Tensorboard__Event *event)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    event->wall_time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    const uint64_t length = tensorboard__event__get_packed_size(event);
    if (length > RECORD_SIZE - HEAD - TAIL) return EMSGSIZE;

    memcpy(t->record, &length, sizeof length);
    uint32_t crc = masked_crc(t->record, sizeof length);
    memcpy(t->record + 8, &crc, sizeof crc);
    tensorboard__event__pack(event, t->record + HEAD);
    crc = masked_crc(t->record + HEAD, length);
    memcpy(t->record + HEAD + length, &crc, sizeof crc);

    const size_t bytes = HEAD + length + TAIL;
    ssize_t n;
    do
        n = pwrite(t->fd, t->record, bytes, (off_t)t->bytes);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)bytes) {
        t->bytes += bytes;
        return 0;
    }
    const int err = n < 0 ? errno : ENOSPC;
    (void)!ftruncate(t->fd, (off_t)t->bytes);
    return err;
}

static ddpm_status write_start(tensorboard *t, const char *path, int64_t first_step)
{
    Tensorboard__Event version = TENSORBOARD__EVENT__INIT;
    version.what_case = TENSORBOARD__EVENT__WHAT_FILE_VERSION;
    version.file_version = (char *)"brain.Event:2";
    Tensorboard__SessionLog log = TENSORBOARD__SESSION_LOG__INIT;
    log.status = TENSORBOARD__SESSION_LOG__STATUS__START;
    Tensorboard__Event start = TENSORBOARD__EVENT__INIT;
    start.step = first_step;
    start.what_case = TENSORBOARD__EVENT__WHAT_SESSION_LOG;
    start.session_log = &log;
    errno = write_event(t, &version);
    if (errno == 0) errno = write_event(t, &start);
    return errno == 0 ? DDPM_OK : FAIL_ERRNO("%s: cannot write: %m", path);
}

ddpm_status tensorboard_open(const char *dir, int64_t first_step, tensorboard **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    char host[65] = "localhost";
    gethostname(host, sizeof host - 1);
    const size_t size = strlen(dir) + 160;
    char *path = malloc(size);
    tensorboard *t = calloc(1, sizeof *t);
    if (t) t->fd = -1;
    if (!path || !t)
        FAIL_GOTO(fail, NOMEM, "%s: %zu bytes for TensorBoard's events", dir, sizeof *t);

    /* TensorBoard orders files by name: the time comes first. */
    snprintf(path, size, "%s/events.out.tfevents.%010lld.%s.%ld", dir, (long long)time(NULL), host,
             (long)getpid());
    t->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (t->fd < 0) {
        s = FAIL_ERRNO("%s: cannot create: %m", path);
        goto fail;
    }
    TRY_GOTO(fail, write_start(t, path, first_step));
    free(path);
    *out = t;
    return DDPM_OK;
fail:
    free(path);
    tensorboard_close(t);
    return s;
}

void tensorboard_close(tensorboard *t)
{
    if (!t) return;
    if (t->fd >= 0) close(t->fd);
    free(t);
}

int tensorboard_write(tensorboard *t, int64_t step, const char *const *names, const double *values,
                      int n)
{
    if (!t) return 0;
    Tensorboard__Summary__Value value[TENSORBOARD_MAX_SCALARS], *list[TENSORBOARD_MAX_SCALARS];
    Tensorboard__Summary summary = TENSORBOARD__SUMMARY__INIT;
    summary.value = list;
    for (int i = 0; i < n && i < TENSORBOARD_MAX_SCALARS; i++) {
        value[i] = (Tensorboard__Summary__Value)TENSORBOARD__SUMMARY__VALUE__INIT;
        value[i].tag = (char *)names[i];
        value[i].simple_value = (float)values[i];
        list[summary.n_value++] = &value[i];
    }
    Tensorboard__Event event = TENSORBOARD__EVENT__INIT;
    event.step = step;
    event.what_case = TENSORBOARD__EVENT__WHAT_SUMMARY;
    event.summary = &summary;
    return write_event(t, &event);
}

#else

ddpm_status tensorboard_open(const char *dir, int64_t first_step, tensorboard **out)
{
    (void)dir;
    (void)first_step;
    *out = NULL;
    return DDPM_OK;
}

void tensorboard_close(tensorboard *t)
{
    (void)t;
}

int tensorboard_write(tensorboard *t, int64_t step, const char *const *names, const double *values,
                      int n)
{
    (void)t;
    (void)step;
    (void)names;
    (void)values;
    (void)n;
    return 0;
}

#endif

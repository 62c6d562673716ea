/* cifar.c - the binary batches of CIFAR-10 and CIFAR-100 as a source.
 *
 * Job        records of one label byte (CIFAR-100: a coarse and a fine one, the fine is used) and
 *            3072 bytes of 32 x 32 red, green and blue planes, to images with the channels last.
 * Method     the record's length is told by the file's size, which must be a multiple of exactly
 *            one of the two. Class names come from batches.meta.txt or fine_label_names.txt beside
 *            the file.
 * Cost       labels in memory; images are read in the pieces that are asked for. */
#include "pack.h"

#include "fail.h"
#include "source.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SIDE = 32,
    PLANE = SIDE * SIDE,
    PIXELS = 3 * PLANE,
    RECORD_10 = 1 + PIXELS,
    RECORD_100 = 2 + PIXELS
};

typedef struct {
    int fd, record;
    char path[PATH_MAX];
} cifar_state;

static ddpm_status cifar_read(pack_source *s, int64_t first, int64_t count, uint8_t *images)
{
    const cifar_state *st = s->state;
    uint8_t planes[PIXELS];
    for (int64_t i = 0; i < count; i++, images += PIXELS) {
        const int64_t at = (first + i + 1) * st->record - PIXELS;
        TRY(source_read_at(st->fd, st->path, at, planes, sizeof planes));
        for (int p = 0; p < PLANE; p++)
            for (int c = 0; c < 3; c++)
                images[3 * p + c] = planes[c * PLANE + p];
    }
    return DDPM_OK;
}

static ddpm_status labels_read(pack_source *src)
{
    const cifar_state *st = src->state;
    src->labels = calloc((size_t)src->n, sizeof *src->labels);
    REQUIRE(src->labels, NOMEM, "%s: %" PRId64 " labels", st->path, src->n);
    const int classes = st->record == RECORD_10 ? 10 : 100;
    for (int64_t i = 0; i < src->n; i++) {
        uint8_t label = 0;
        TRY(source_read_at(st->fd, st->path, (i + 1) * st->record - PIXELS - 1, &label, 1));
        REQUIRE(label < classes, FORMAT, "%s: image %" PRId64 " has label %d of %d classes",
                st->path, i, label, classes);
        src->labels[i] = label;
    }
    char names[PATH_MAX + 32];
    const char *slash = strrchr(st->path, '/');
    snprintf(names, sizeof names, "%.*s%s", slash ? (int)(slash + 1 - st->path) : 0, st->path,
             classes == 10 ? "batches.meta.txt" : "fine_label_names.txt");
    TRY(source_named_classes(src, names, classes));
    return src->classes ? DDPM_OK : source_number_classes(src, classes);
}

static void cifar_close(pack_source *s)
{
    cifar_state *st = s->state;
    if (st && st->fd >= 0) close(st->fd);
    free(st);
    source_release(s);
}

ddpm_status source_open_cifar(const char *path, const pack_options *o, pack_source *out)
{
    (void)o;
    ddpm_status s = DDPM_OK;
    REQUIRE(strlen(path) < PATH_MAX, ARG, "path of %zu bytes", strlen(path));
    pack_source src = {
        .height = SIDE, .width = SIDE, .channels = 3, .read = cifar_read, .close = cifar_close};
    cifar_state *st = calloc(1, sizeof *st);
    REQUIRE(st, NOMEM, "%s: %zu bytes", path, sizeof *st);
    src.state = st;
    strcpy(st->path, path);
    st->fd = -1;
    int64_t bytes = 0;
    TRY_GOTO(fail, source_open_file(path, &st->fd, &bytes));
    const bool is_10 = bytes > 0 && bytes % RECORD_10 == 0,
               is_100 = bytes > 0 && bytes % RECORD_100 == 0;
    if (is_10 == is_100)
        FAIL_GOTO(fail, FORMAT,
                  "%s: no CIFAR batch: %" PRId64
                  " bytes are %s records of %d (CIFAR-10) %s %d (CIFAR-100)",
                  path, bytes, is_10 ? "both whole" : "neither whole", RECORD_10,
                  is_10 ? "and" : "nor", RECORD_100);
    st->record = is_10 ? RECORD_10 : RECORD_100;
    src.n = bytes / st->record;
    TRY_GOTO(fail, labels_read(&src));
    *out = src;
    return DDPM_OK;
fail:
    cifar_close(&src);
    return s;
}

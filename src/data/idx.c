/* idx.c - idx files (MNIST and its kin), plain or gzipped, as a source.
 *
 * Job        images-idx3-ubyte to grey images, and the labels-idx1-ubyte file beside it to their
 *            labels.
 * Method     16 bytes of header, then pixels; zlib's gz reader takes both forms and checks gzip's
 *            CRC at the end, which is always read. Sizes in the header must be what the file can
 *            hold.
 * Cost       labels in memory; images are read forward in the pieces that are asked for. */
#include "pack.h"

#include "checked.h"
#include "fail.h"
#include "source.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { MIN_CLASSES = 10 };
static const uint64_t GZIP_BEST = 1032; /* bytes out of one byte in */

typedef struct {
    gzFile file;
    char path[PATH_MAX];
    uint64_t held; /* most bytes the file can hold when inflated */
} idx_file;

typedef struct {
    idx_file images;
    int64_t next; /* the image that is read next */
} idx_state;

static ddpm_status idx_open(idx_file *f, const char *path)
{
    int fd = -1;
    int64_t bytes = 0;
    REQUIRE(strlen(path) < sizeof f->path, ARG, "path of %zu bytes", strlen(path));
    strcpy(f->path, path);
    TRY(source_open_file(path, &fd, &bytes));
    f->file = gzdopen(fd, "rb");
    if (!f->file) {
        close(fd);
        return FAIL(NOMEM, "%s: its reader", path);
    }
    gzbuffer(f->file, 1 << 17);
    f->held = (uint64_t)bytes * GZIP_BEST;
    return DDPM_OK;
}

static ddpm_status idx_bytes(idx_file *f, void *dst, uint64_t bytes)
{
    uint8_t *p = dst;
    while (bytes) {
        const unsigned n = bytes < 1 << 30 ? (unsigned)bytes : 1 << 30;
        const int got = gzread(f->file, p, n);
        int code = Z_OK;
        if (got < 0) {
            const char *why = gzerror(f->file, &code);
            if (code == Z_MEM_ERROR) return FAIL(NOMEM, "%s: %s", f->path, why);
            if (code == Z_ERRNO) return FAIL(IO, "%s: %s", f->path, why);
            return FAIL(FORMAT, "%s: damaged: %s", f->path, why);
        }
        REQUIRE(got > 0, FORMAT, "%s: cut short: %" PRIu64 " bytes are missing", f->path, bytes);
        p += got;
        bytes -= (unsigned)got;
    }
    return DDPM_OK;
}

/* Nothing may follow; reading on is also what makes zlib compare gzip's CRC. */
static ddpm_status idx_end(idx_file *f)
{
    uint8_t extra;
    int code = Z_OK;
    const int got = gzread(f->file, &extra, 1);
    REQUIRE(got <= 0, FORMAT, "%s: bytes after the last item", f->path);
    const char *why = gzerror(f->file, &code);
    REQUIRE(got == 0 && code == Z_OK, FORMAT, "%s: damaged: %s", f->path, why);
    return DDPM_OK;
}

/* Magic 0 0 8 rank, then `rank` extents, big-endian. */
static ddpm_status idx_header(idx_file *f, int rank, int64_t *shape)
{
    uint8_t p[4];
    TRY(idx_bytes(f, p, 4));
    REQUIRE(p[0] == 0 && p[1] == 0 && p[2] == 8 && p[3] == rank, FORMAT,
            "%s: not an idx file of bytes with %d dimensions", f->path, rank);
    for (int i = 0; i < rank; i++) {
        TRY(idx_bytes(f, p, 4));
        shape[i] = (int64_t)p[0] << 24 | (int64_t)p[1] << 16 | (int64_t)p[2] << 8 | p[3];
    }
    size_t bytes = 0;
    REQUIRE(checked_product(shape, rank, 1, &bytes) && bytes <= f->held, FORMAT,
            "%s: its header asks for more than the file can hold", f->path);
    return DDPM_OK;
}

/* ---- labels ---- */

/* The labels file's name: "images-idx3" becomes "labels-idx1", with the same ending, with .gz or
 * without. */
static bool labels_path(const char *images, char dst[PATH_MAX])
{
    const char *folder = strrchr(images, '/');
    const char *at = strstr(folder ? folder : images, "images-idx3");
    if (!at || strlen(images) + 4 > PATH_MAX) return false;
    snprintf(dst, PATH_MAX, "%.*slabels-idx1%s", (int)(at - images), images,
             at + strlen("images-idx3"));
    if (access(dst, F_OK) == 0) return true;
    char *end = dst + strlen(dst);
    if (end - dst > 3 && !strcmp(end - 3, ".gz"))
        end[-3] = 0;
    else
        strcpy(end, ".gz");
    return access(dst, F_OK) == 0;
}

static ddpm_status labels_take(idx_file *f, int64_t n, int64_t *labels, int *classes)
{
    int64_t have = 0;
    TRY(idx_header(f, 1, &have));
    REQUIRE(have == n, FORMAT, "%s: %" PRId64 " labels for %" PRId64 " images", f->path, have, n);
    uint8_t piece[4096];
    for (int64_t i = 0; i < n;) {
        const int64_t take = n - i < (int64_t)sizeof piece ? n - i : (int64_t)sizeof piece;
        TRY(idx_bytes(f, piece, (uint64_t)take));
        for (int64_t k = 0; k < take; k++, i++) {
            labels[i] = piece[k];
            if (piece[k] >= *classes) *classes = piece[k] + 1;
        }
    }
    return idx_end(f);
}

static ddpm_status labels_read(const char *images, pack_source *src)
{
    idx_file *f = calloc(1, sizeof *f);
    REQUIRE(f, NOMEM, "%s: %zu bytes", images, sizeof *f);
    ddpm_status s = DDPM_OK;
    char path[PATH_MAX];
    if (!labels_path(images, path)) goto done;
    TRY_GOTO(done, idx_open(f, path));
    src->labels = calloc((size_t)src->n, sizeof *src->labels);
    if (!src->labels) FAIL_GOTO(done, NOMEM, "%s: %" PRId64 " labels", path, src->n);
    int classes = MIN_CLASSES;
    TRY_GOTO(done, labels_take(f, src->n, src->labels, &classes));
    s = source_number_classes(src, classes);
done:
    if (f->file) gzclose(f->file);
    free(f);
    return s;
}

/* ---- the source ---- */

static ddpm_status idx_read(pack_source *s, int64_t first, int64_t count, uint8_t *images)
{
    idx_state *st = s->state;
    const int64_t size = (int64_t)s->height * s->width;
    if (first != st->next) {
        const z_off_t at = (z_off_t)(16 + first * size);
        REQUIRE(gzseek(st->images.file, at, SEEK_SET) == at, FORMAT,
                "%s: damaged or cut short before image %" PRId64, st->images.path, first);
    }
    st->next = -1;
    TRY(idx_bytes(&st->images, images, (uint64_t)(count * size)));
    st->next = first + count;
    return st->next == s->n ? idx_end(&st->images) : DDPM_OK;
}

static void idx_close(pack_source *s)
{
    idx_state *st = s->state;
    if (st && st->images.file) gzclose(st->images.file);
    free(st);
    source_release(s);
}

ddpm_status source_open_idx(const char *path, const pack_options *o, pack_source *out)
{
    (void)o;
    ddpm_status s = DDPM_OK;
    pack_source src = {.channels = 1, .read = idx_read, .close = idx_close};
    idx_state *st = calloc(1, sizeof *st);
    REQUIRE(st, NOMEM, "%s: %zu bytes", path, sizeof *st);
    src.state = st;
    int64_t shape[3];
    TRY_GOTO(fail, idx_open(&st->images, path));
    TRY_GOTO(fail, idx_header(&st->images, 3, shape));
    if (shape[0] < 1 || shape[1] < 1 || shape[2] < 1 || shape[1] > SOURCE_MAX_SIDE ||
        shape[2] > SOURCE_MAX_SIDE)
        FAIL_GOTO(fail, FORMAT,
                  "%s: %" PRId64 " images of %" PRId64 " x %" PRId64 "; sides are 1 .. %d", path,
                  shape[0], shape[1], shape[2], SOURCE_MAX_SIDE);
    src.n = shape[0];
    src.height = (int)shape[1];
    src.width = (int)shape[2];
    TRY_GOTO(fail, labels_read(path, &src));
    *out = src;
    return DDPM_OK;
fail:
    idx_close(&src);
    return s;
}

/* npz_write.c - npz archives written as their images come.
 *
 * Job        arrays of known shape to an archive that NumPy reads, in bounded memory.
 * Method     stored entries: the sizes are known beforehand, the CRC-32 is patched into the
 *            entry's header at the end. zip64 fields stand only where a size or an offset needs
 *            them. The archive is read back, CRCs included, before it gets its name.
 * Cost       one CRC pass and one read-back; a few hundred bytes of memory.
 * Rejected   libzip: keeps what it writes, or its source, until the archive is closed;
 *            compression: samples hardly shrink; the present date: the bytes must depend on the
 *            contents alone. */
#include "npz.h"

#include "commit.h"
#include "fail.h"
#include "npy.h"
#include "zip_read.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { MAX_ARRAYS = 16, MAX_NAME = 64, DATE = 0x0021 /* 1980-01-01, the first there is */ };

typedef struct {
    char name[MAX_NAME + 8]; /* with ".npy" */
    uint64_t at, bytes;      /* of the local header; header and data of the array */
    uint32_t crc;
} written;

struct npz_writer {
    commit *file;
    uint64_t at;   /* bytes written */
    uint64_t left; /* of the current array */
    written arrays[MAX_ARRAYS];
    int n;
};

static uint8_t *put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    return p + 2;
}

static uint8_t *put32(uint8_t *p, uint64_t v)
{
    return put16(put16(p, (uint32_t)v & 0xFFFF), (uint32_t)(v >> 16) & 0xFFFF);
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
    return put32(put32(p, v & 0xFFFFFFFF), v >> 32);
}

static uint64_t low32(uint64_t v)
{
    return v < 0xFFFFFFFF ? v : 0xFFFFFFFF;
}

static ddpm_status emit(npz_writer *w, const void *data, uint64_t bytes)
{
    TRY(commit_write(w->file, data, bytes));
    w->at += bytes;
    return DDPM_OK;
}

ddpm_status npz_create(const char *path, npz_writer **out)
{
    *out = NULL;
    npz_writer *w = calloc(1, sizeof *w);
    REQUIRE(w, NOMEM, "%s: %zu bytes", path, sizeof *w);
    const ddpm_status s = commit_begin(path, 0, &w->file);
    if (s) {
        npz_abandon(w);
        return s;
    }
    *out = w;
    return DDPM_OK;
}

ddpm_status npz_begin(npz_writer *w, const char *name, const char *dtype, int rank,
                      const int64_t *shape)
{
    const size_t n = strlen(name);
    REQUIRE(w->left == 0, ARG, "npz: %s begun with %" PRIu64 " bytes of %s to come", name, w->left,
            w->arrays[w->n - 1].name);
    REQUIRE(w->n < MAX_ARRAYS && n >= 1 && n <= MAX_NAME, ARG,
            "npz: array \"%s\": at most %d arrays, names of 1 .. %d bytes", name, MAX_ARRAYS,
            MAX_NAME);
    char header[512];
    size_t header_bytes = 0;
    TRY(npy_format(dtype, rank, shape, header, &header_bytes));
    uint64_t data = npy_dtype_bytes(dtype);
    for (int i = 0; i < rank; i++)
        data *= (uint64_t)shape[i]; /* npy_format saw that it does not overflow */

    written *a = &w->arrays[w->n];
    memcpy(a->name, name, n);
    memcpy(a->name + n, ".npy", 5);
    a->at = w->at;
    a->bytes = header_bytes + data;
    a->crc = (uint32_t)crc32(0, (const Bytef *)header, (uInt)header_bytes);
    const bool is_wide = a->bytes >= 0xFFFFFFFF;
    uint8_t local[64], *p = local;
    p = put16(put32(p, 0x04034b50), is_wide ? 45 : 20);
    p = put32(put16(put16(p, 0), 0), (uint64_t)DATE << 16); /* flags, stored; time and date */
    p = put32(p, 0);                                        /* CRC-32: npz_finish */
    p = put32(put32(p, low32(a->bytes)), low32(a->bytes));
    p = put16(put16(p, (uint32_t)n + 4), is_wide ? 20 : 0);
    TRY(emit(w, local, (uint64_t)(p - local)));
    TRY(emit(w, a->name, n + 4));
    if (is_wide) {
        p = put16(put16(local, 1), 16);
        p = put64(put64(p, a->bytes), a->bytes);
        TRY(emit(w, local, (uint64_t)(p - local)));
    }
    TRY(emit(w, header, header_bytes));
    w->n++;
    w->left = data;
    return DDPM_OK;
}

ddpm_status npz_put(npz_writer *w, const void *data, uint64_t bytes)
{
    REQUIRE(w->n > 0 && bytes <= w->left, ARG,
            "npz: %" PRIu64 " bytes put where %" PRIu64 " are to come", bytes, w->left);
    written *a = &w->arrays[w->n - 1];
    TRY(emit(w, data, bytes));
    const uint8_t *p = data;
    for (uint64_t left = bytes; left;) {
        const uInt n = left < 1 << 30 ? (uInt)left : 1 << 30;
        a->crc = (uint32_t)crc32(a->crc, p, n);
        p += n;
        left -= n;
    }
    w->left -= bytes;
    return DDPM_OK;
}

/* One record of the directory. */
static ddpm_status central_emit(npz_writer *w, const written *a)
{
    uint8_t wide[32], *x = wide + 4;
    if (a->bytes >= 0xFFFFFFFF) x = put64(put64(x, a->bytes), a->bytes);
    if (a->at >= 0xFFFFFFFF) x = put64(x, a->at);
    const uint32_t extra = x > wide + 4 ? (uint32_t)(x - wide) : 0;
    put16(put16(wide, 1), extra ? extra - 4 : 0);
    const uint32_t version = extra ? 45 : 20, name = (uint32_t)strlen(a->name);
    uint8_t record[46], *p = record;
    p = put16(put16(put32(p, 0x02014b50), version | 3 << 8), version); /* made by Unix, needed */
    p = put32(put16(put16(p, 0), 0), (uint64_t)DATE << 16);
    p = put32(put32(put32(p, a->crc), low32(a->bytes)), low32(a->bytes));
    p = put16(put16(put16(p, name), extra), 0); /* no comment */
    p = put16(put16(p, 0), 0);                  /* disk, internal attributes */
    p = put32(p, (uint64_t)0100644 << 16);      /* a plain file */
    p = put32(p, low32(a->at));
    TRY(emit(w, record, (uint64_t)(p - record)));
    TRY(emit(w, a->name, name));
    return emit(w, wide, extra);
}

static ddpm_status directory_emit(npz_writer *w)
{
    const uint64_t at = w->at;
    for (int i = 0; i < w->n; i++)
        TRY(central_emit(w, &w->arrays[i]));
    const uint64_t bytes = w->at - at, end = w->at;
    uint8_t tail[128], *p = tail;
    if (at >= 0xFFFFFFFF) {
        p = put64(put32(p, 0x06064b50), 44);
        p = put32(put32(put16(put16(p, 45 | 3 << 8), 45), 0), 0);
        p = put64(put64(p, (uint64_t)w->n), (uint64_t)w->n);
        p = put64(put64(p, bytes), at);
        p = put32(put64(put32(put32(p, 0x07064b50), 0), end), 1);
    }
    p = put16(put16(put32(p, 0x06054b50), 0), 0);
    p = put16(put16(p, (uint32_t)w->n), (uint32_t)w->n);
    p = put16(put32(put32(p, bytes), low32(at)), 0);
    return emit(w, tail, (uint64_t)(p - tail));
}

/* The archive as the disk holds it: every entry, every CRC-32. */
static ddpm_status read_back(const char *path, void *user)
{
    (void)user;
    zip_file *z = NULL;
    enum { PIECE = 1 << 16 };
    TRY(zip_open(path, &z));
    ddpm_status s = DDPM_OK;
    uint8_t *piece = malloc(PIECE);
    if (!piece) s = FAIL(NOMEM, "npz: %d bytes to read it back", PIECE);
    for (int i = 0; !s && i < zip_count(z); i++) {
        const uint64_t bytes = zip_at(z, i)->bytes;
        for (uint64_t at = 0; !s && at < bytes; at += PIECE)
            s = zip_read(z, i, at, piece, bytes - at < PIECE ? bytes - at : PIECE);
    }
    free(piece);
    zip_close(z);
    return s;
}

ddpm_status npz_finish(npz_writer *w)
{
    ddpm_status s = DDPM_OK;
    if (w->left)
        FAIL_GOTO(fail, ARG, "npz: finished with %" PRIu64 " bytes of %s to come", w->left,
                  w->arrays[w->n - 1].name);
    for (int i = 0; i < w->n; i++) {
        uint8_t crc[4];
        put32(crc, w->arrays[i].crc);
        TRY_GOTO(fail, commit_write_at(w->file, w->arrays[i].at + 14, crc, sizeof crc));
    }
    TRY_GOTO(fail, directory_emit(w));
    s = commit_finish(w->file, read_back, NULL);
    free(w);
    return s;
fail:
    npz_abandon(w);
    return s;
}

void npz_abandon(npz_writer *w)
{
    if (!w) return;
    commit_abandon(w->file);
    free(w);
}

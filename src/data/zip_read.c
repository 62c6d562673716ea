/* zip_read.c - reading zip archives that strangers made.
 *
 * Job        find the entries of an archive and hand out their bytes, or say why not.
 * Method     the directory at the end of the file is read and checked in one piece: counts,
 *            ranges, names, and that no two entries share a byte (the trick of the 42 kB archive
 *            that holds petabytes). Each local header must repeat what the directory says. One
 *            cursor inflates one entry at a time.
 * Cost       the directory in memory (at most 16 MiB) and a 64 KiB buffer.
 * Rejected   libzip: what it lets through (overlaps, odd names) is its own choice, and it would be
 *            one more library for one small part of it. */
#include "zip_read.h"

#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    MAX_ENTRIES = 4096,
    MAX_NAME = 512,
    MAX_DIRECTORY = 16 << 20,
    MAX_COMMENT = 65535,
    BUFFER = 1 << 16
};
static const uint64_t DEFLATE_BEST = 1032; /* bytes out of one byte in, the format's own limit */

typedef struct {
    zip_entry pub;
    uint64_t local, data, stored; /* offsets of header and data, bytes in the file */
    uint32_t crc;
    bool is_deflated;
} entry;

struct zip_file {
    int fd;
    char *path;
    uint64_t bytes;
    entry *entries;
    int n;
    /* the cursor */
    int current;      /* entry, -1: none */
    uint64_t out, in; /* bytes handed out, bytes read of `stored` */
    uint32_t crc;     /* of what was handed out */
    bool has_stream, is_ended;
    z_stream stream;
    uint8_t buffer[BUFFER];
};

static uint32_t u16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const uint8_t *p)
{
    return u16(p) | u16(p + 2) << 16;
}

static uint64_t u64(const uint8_t *p)
{
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static ddpm_status read_at(const zip_file *z, uint64_t at, void *dst, uint64_t bytes)
{
    uint8_t *p = dst;
    REQUIRE(at <= z->bytes && bytes <= z->bytes - at, FORMAT,
            "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond the file's end", z->path, bytes, at);
    while (bytes) {
        const ssize_t got = pread(z->fd, p, bytes > 1 << 30 ? 1 << 30 : bytes, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return FAIL_ERRNO("%s: read at %" PRIu64 ": %s", z->path, at, strerror(errno));
        REQUIRE(got > 0, FORMAT, "%s: was cut short while it was read", z->path);
        p += got;
        at += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return DDPM_OK;
}

/* ---- the directory ---- */

typedef struct {
    uint64_t n, bytes, at,
        end; /* entries, size and place of the directory, first byte after all of it */
} directory;

/* The end record is the last thing in the file but for a comment whose length it tells. */
static ddpm_status end_find(const zip_file *z, directory *d)
{
    REQUIRE(z->bytes >= END_BYTES, FORMAT, "%s: %" PRIu64 " bytes are no zip archive", z->path,
            z->bytes);
    const uint64_t tail = z->bytes < END_BYTES + MAX_COMMENT ? z->bytes : END_BYTES + MAX_COMMENT;
    uint8_t *p = malloc(tail);
    REQUIRE(p, NOMEM, "%s: %" PRIu64 " bytes", z->path, tail);
    ddpm_status s = read_at(z, z->bytes - tail, p, tail);
    if (s) goto done;
    uint64_t i = tail - END_BYTES + 1;
    while (i > 0) {
        i--;
        if (u32(p + i) == 0x06054b50 && u16(p + i + 20) == tail - END_BYTES - i) break;
        if (i == 0)
            FAIL_GOTO(done, FORMAT, "%s: no zip archive, or cut short: no end record", z->path);
    }
    const uint8_t *e = p + i;
    if (u16(e + 4) != u16(e + 6) || u16(e + 8) != u16(e + 10))
        FAIL_GOTO(done, FORMAT, "%s: an archive over several disks", z->path);
    d->end = z->bytes - tail + i;
    d->n = u16(e + 10);
    d->bytes = u32(e + 12);
    d->at = u32(e + 16);
done:
    free(p);
    return s;
}

static ddpm_status end64_read(const zip_file *z, directory *d)
{
    if (d->n != 0xFFFF && d->bytes != 0xFFFFFFFF && d->at != 0xFFFFFFFF) return DDPM_OK;
    uint8_t p[END64_BYTES];
    REQUIRE(d->end >= LOCATOR_BYTES, FORMAT, "%s: zip64 without its locator", z->path);
    TRY(read_at(z, d->end - LOCATOR_BYTES, p, LOCATOR_BYTES));
    if (u32(p) != 0x07064b50) return DDPM_OK; /* plain values that happen to be all ones */
    const uint64_t at = u64(p + 8);
    TRY(read_at(z, at, p, END64_BYTES));
    REQUIRE(u32(p) == 0x06064b50 && at <= d->end - LOCATOR_BYTES, FORMAT,
            "%s: no zip64 end record at %" PRIu64, z->path, at);
    REQUIRE(u64(p + 24) == u64(p + 32), FORMAT, "%s: an archive over several disks", z->path);
    *d = (directory){.n = u64(p + 32), .bytes = u64(p + 40), .at = u64(p + 48), .end = at};
    return DDPM_OK;
}

static ddpm_status name_check(const zip_file *z, const uint8_t *name, uint32_t bytes)
{
    REQUIRE(bytes >= 1 && bytes <= MAX_NAME, FORMAT, "%s: a name of %u bytes", z->path, bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        REQUIRE(name[i] >= 32 && name[i] != 127 && name[i] != '/' && name[i] != '\\', FORMAT,
                "%s: entry \"%.*s\": not a plain name", z->path, (int)bytes, (const char *)name);
        REQUIRE(i == 0 || name[i] != '.' || name[i - 1] != '.', FORMAT,
                "%s: entry \"%.*s\": not a plain name", z->path, (int)bytes, (const char *)name);
    }
    return DDPM_OK;
}

/* Values of 32 ones stand in the zip64 extra field, in this order. */
static ddpm_status extra64(const zip_file *z, const uint8_t *x, uint32_t bytes, entry *e)
{
    uint64_t *const wide[3] = {&e->pub.bytes, &e->stored, &e->local};
    if (*wide[0] != 0xFFFFFFFF && *wide[1] != 0xFFFFFFFF && *wide[2] != 0xFFFFFFFF) return DDPM_OK;
    while (bytes >= 4) {
        const uint32_t id = u16(x), size = u16(x + 2);
        REQUIRE(size <= bytes - 4, FORMAT, "%s: entry %s: extra field cut short", z->path,
                e->pub.name);
        if (id == 1) {
            uint32_t at = 0;
            for (int i = 0; i < 3; i++) {
                if (*wide[i] != 0xFFFFFFFF) continue;
                REQUIRE(size - at >= 8, FORMAT, "%s: entry %s: zip64 field cut short", z->path,
                        e->pub.name);
                *wide[i] = u64(x + 4 + at);
                at += 8;
            }
            return DDPM_OK;
        }
        x += 4 + size;
        bytes -= 4 + size;
    }
    return DDPM_OK;
}

static ddpm_status local_check(const zip_file *z, const directory *d, entry *e, uint32_t method)
{
    uint8_t p[LOCAL_BYTES + MAX_NAME];
    const uint32_t name = (uint32_t)strlen(e->pub.name);
    TRY(read_at(z, e->local, p, LOCAL_BYTES));
    REQUIRE(u32(p) == 0x04034b50 && u16(p + 8) == method && u16(p + 26) == name, FORMAT,
            "%s: entry %s: header at %" PRIu64 " differs from the directory", z->path, e->pub.name,
            e->local);
    TRY(read_at(z, e->local + LOCAL_BYTES, p + LOCAL_BYTES, name));
    REQUIRE(!memcmp(p + LOCAL_BYTES, e->pub.name, name), FORMAT,
            "%s: entry %s has another name in its own header", z->path, e->pub.name);
    e->data = e->local + LOCAL_BYTES + name + u16(p + 28);
    REQUIRE(e->data <= d->at && e->stored <= d->at - e->data, FORMAT,
            "%s: entry %s: %" PRIu64 " bytes at %" PRIu64 " reach into the directory", z->path,
            e->pub.name, e->stored, e->data);
    return DDPM_OK;
}

/* One record of the directory at p, with `left` bytes from there; tells its length. */
static ddpm_status entry_read(zip_file *z, const directory *d, const uint8_t *p, uint64_t left,
                              entry *e, uint64_t *length)
{
    REQUIRE(left >= CENTRAL_BYTES && u32(p) == 0x02014b50, FORMAT, "%s: damaged directory",
            z->path);
    const uint32_t flags = u16(p + 8), method = u16(p + 10), name = u16(p + 28),
                   extra = u16(p + 30);
    *length = CENTRAL_BYTES + (uint64_t)name + extra + u16(p + 32);
    REQUIRE(*length <= left, FORMAT, "%s: damaged directory", z->path);
    TRY(name_check(z, p + CENTRAL_BYTES, name));
    e->pub.name = calloc(1, (size_t)name + 1);
    REQUIRE(e->pub.name, NOMEM, "%s: an entry's name", z->path);
    memcpy(e->pub.name, p + CENTRAL_BYTES, name);
    REQUIRE(!(flags & 0x2041), FORMAT, "%s: entry %s is encrypted", z->path, e->pub.name);
    REQUIRE(method == 0 || method == 8, FORMAT,
            "%s: entry %s: compression method %u; stored and deflated are read", z->path,
            e->pub.name, method);
    e->is_deflated = method == 8;
    e->crc = u32(p + 16);
    e->stored = u32(p + 20);
    e->pub.bytes = u32(p + 24);
    e->local = u32(p + 42);
    TRY(extra64(z, p + CENTRAL_BYTES + name, extra, e));
    REQUIRE(e->is_deflated || e->stored == e->pub.bytes, FORMAT,
            "%s: entry %s is stored, but its two sizes differ", z->path, e->pub.name);
    REQUIRE(e->pub.bytes / DEFLATE_BEST <= e->stored, FORMAT,
            "%s: entry %s: %" PRIu64 " bytes cannot inflate to %" PRIu64, z->path, e->pub.name,
            e->stored, e->pub.bytes);
    REQUIRE(e->local <= d->at, FORMAT, "%s: entry %s lies beyond the directory", z->path,
            e->pub.name);
    return local_check(z, d, e, method);
}

static int by_place(const void *a, const void *b)
{
    const uint64_t x = ((const entry *)a)->local, y = ((const entry *)b)->local;
    return (x > y) - (x < y);
}

static ddpm_status directory_read(zip_file *z)
{
    directory d = {0};
    TRY(end_find(z, &d));
    TRY(end64_read(z, &d));
    REQUIRE(d.n <= MAX_ENTRIES && d.bytes <= MAX_DIRECTORY, FORMAT,
            "%s: %" PRIu64 " entries, at most %d are read", z->path, d.n, MAX_ENTRIES);
    REQUIRE(d.at <= d.end && d.bytes <= d.end - d.at && d.n <= d.bytes / CENTRAL_BYTES, FORMAT,
            "%s: the directory does not fit the file", z->path);
    uint8_t *p = malloc(d.bytes + 1); /* an empty archive has none */
    REQUIRE(p, NOMEM, "%s: directory of %" PRIu64 " bytes", z->path, d.bytes);
    ddpm_status s = read_at(z, d.at, p, d.bytes);
    if (s) goto done;
    z->entries = calloc(d.n + 1, sizeof *z->entries);
    if (!z->entries) FAIL_GOTO(done, NOMEM, "%s: %" PRIu64 " entries", z->path, d.n);
    uint64_t at = 0;
    for (uint64_t i = 0; i < d.n; i++) {
        uint64_t length = 0;
        z->n++;
        TRY_GOTO(done, entry_read(z, &d, p + at, d.bytes - at, &z->entries[i], &length));
        at += length;
    }
    qsort(z->entries, (size_t)z->n, sizeof *z->entries, by_place);
    for (int i = 1; i < z->n; i++) {
        const entry *a = &z->entries[i - 1], *b = &z->entries[i];
        if (a->data + a->stored > b->local)
            FAIL_GOTO(done, FORMAT, "%s: entries %s and %s overlap", z->path, a->pub.name,
                      b->pub.name);
    }
    for (int i = 0; i < z->n; i++)
        for (int k = i + 1; k < z->n; k++)
            if (!strcmp(z->entries[i].pub.name, z->entries[k].pub.name))
                FAIL_GOTO(done, FORMAT, "%s: two entries %s", z->path, z->entries[i].pub.name);
done:
    free(p);
    return s;
}

ddpm_status zip_open(const char *path, zip_file **out)
{
    *out = NULL;
    ddpm_status s = DDPM_OK;
    zip_file *z = calloc(1, sizeof *z);
    REQUIRE(z, NOMEM, "%s: %zu bytes", path, sizeof *z);
    z->fd = -1;
    z->current = -1;
    z->path = strdup(path);
    if (!z->path) FAIL_GOTO(fail, NOMEM, "%s: its name", path);
    struct stat st;
    z->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (z->fd < 0 || fstat(z->fd, &st)) {
        s = FAIL_ERRNO("%s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) FAIL_GOTO(fail, FORMAT, "%s: not a regular file", path);
    z->bytes = (uint64_t)st.st_size;
    TRY_GOTO(fail, directory_read(z));
    *out = z;
    return DDPM_OK;
fail:
    zip_close(z);
    return s;
}

void zip_close(zip_file *z)
{
    if (!z) return;
    if (z->has_stream) inflateEnd(&z->stream);
    for (int i = 0; i < z->n; i++)
        free(z->entries[i].pub.name);
    free(z->entries);
    free(z->path);
    if (z->fd >= 0) close(z->fd);
    free(z);
}

int zip_count(const zip_file *z)
{
    return z->n;
}

const zip_entry *zip_at(const zip_file *z, int i)
{
    return &z->entries[i].pub;
}

/* ---- the cursor ---- */

static ddpm_status cursor_start(zip_file *z, int i)
{
    if (z->has_stream) inflateEnd(&z->stream);
    z->has_stream = false;
    z->current = -1;
    memset(&z->stream, 0, sizeof z->stream);
    if (z->entries[i].is_deflated) {
        REQUIRE(inflateInit2(&z->stream, -15) == Z_OK, NOMEM, "%s: inflate", z->path);
        z->has_stream = true;
    }
    z->current = i;
    z->out = z->in = 0;
    z->crc = 0;
    z->is_ended = false;
    return DDPM_OK;
}

static ddpm_status cursor_refill(zip_file *z, const entry *e)
{
    if (z->stream.avail_in || z->in >= e->stored) return DDPM_OK;
    const uint64_t left = e->stored - z->in;
    const uint32_t take = left < BUFFER ? (uint32_t)left : BUFFER;
    TRY(read_at(z, e->data + z->in, z->buffer, take));
    z->in += take;
    z->stream.next_in = z->buffer;
    z->stream.avail_in = take;
    return DDPM_OK;
}

static ddpm_status cursor_inflate(zip_file *z, const entry *e, uint8_t *dst, uint32_t bytes)
{
    z->stream.next_out = dst;
    z->stream.avail_out = bytes;
    while (z->stream.avail_out && !z->is_ended) {
        TRY(cursor_refill(z, e));
        const int code = inflate(&z->stream, Z_NO_FLUSH);
        REQUIRE(code != Z_MEM_ERROR, NOMEM, "%s: inflate", z->path);
        z->is_ended = code == Z_STREAM_END;
        REQUIRE(code == Z_OK || z->is_ended, FORMAT, "%s: entry %s does not inflate: %s", z->path,
                e->pub.name, z->stream.msg ? z->stream.msg : "data cut short");
    }
    REQUIRE(z->stream.avail_out == 0, FORMAT,
            "%s: entry %s inflates to less than %" PRIu64 " bytes", z->path, e->pub.name,
            e->pub.bytes);
    return DDPM_OK;
}

/* After the last byte: the stream must end there too, with nothing left over. */
static ddpm_status cursor_finish(zip_file *z, const entry *e)
{
    if (e->is_deflated && !z->is_ended) {
        uint8_t extra;
        z->stream.next_out = &extra;
        z->stream.avail_out = 1;
        while (!z->is_ended && z->stream.avail_out) {
            TRY(cursor_refill(z, e));
            const int code = inflate(&z->stream, Z_NO_FLUSH);
            z->is_ended = code == Z_STREAM_END;
            if (code != Z_OK && !z->is_ended) break;
        }
        REQUIRE(z->is_ended && z->stream.avail_out == 1, FORMAT,
                "%s: entry %s inflates to more than %" PRIu64 " bytes", z->path, e->pub.name,
                e->pub.bytes);
    }
    REQUIRE(!e->is_deflated || (z->in == e->stored && z->stream.avail_in == 0), FORMAT,
            "%s: entry %s: bytes after its data", z->path, e->pub.name);
    REQUIRE(z->crc == e->crc, FORMAT, "%s: entry %s is damaged: CRC-32 %08x, expected %08x",
            z->path, e->pub.name, z->crc, e->crc);
    return DDPM_OK;
}

static ddpm_status cursor_take(zip_file *z, uint8_t *dst, uint64_t bytes)
{
    const entry *e = &z->entries[z->current];
    while (bytes) {
        const uint32_t n = bytes < 1 << 24 ? (uint32_t)bytes : 1 << 24;
        if (e->is_deflated)
            TRY(cursor_inflate(z, e, dst, n));
        else
            TRY(read_at(z, e->data + z->out, dst, n));
        z->crc = (uint32_t)crc32(z->crc, dst, n);
        z->out += n;
        dst += n;
        bytes -= n;
    }
    return DDPM_OK;
}

ddpm_status zip_read(zip_file *z, int i, uint64_t first, void *dst, uint64_t bytes)
{
    const entry *e = &z->entries[i];
    REQUIRE(first <= e->pub.bytes && bytes <= e->pub.bytes - first, ARG,
            "%s: entry %s has %" PRIu64 " bytes, %" PRIu64 " asked for at %" PRIu64, z->path,
            e->pub.name, e->pub.bytes, bytes, first);
    if (z->current != i || first < z->out) TRY(cursor_start(z, i));
    ddpm_status s = DDPM_OK;
    uint8_t skip[4096];
    while (!s && z->out < first)
        s = cursor_take(z, skip, first - z->out < sizeof skip ? first - z->out : sizeof skip);
    if (!s) s = cursor_take(z, dst, bytes);
    if (!s && z->out == e->pub.bytes) s = cursor_finish(z, e);
    if (s) z->current = -1; /* whoever tries again starts anew */
    return s;
}

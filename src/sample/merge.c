/* merge.c - the shards of a folder to one npz.
 *
 * Job      `samples-K-of-S.npz`, K = 0 .. S-1, to arr_0, arr_1 (where there are labels) and seeds of all samples in order.
 * Method   two passes. The first opens every shard: none missing, none of another job, the samples the right ones, every
 *          checksum. The second copies piece by piece, array after array. Sharding leaves no trace in the bytes.
 * Safe     the output gets its name when it is whole; shards are never removed. */
#include "ddpm/sample.h"

#include "fail.h"
#include "progress.h"
#include "shards.h"
#include "text.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE_BYTES = 1 << 20, LISTED_MAX = 8, HASH_DIGITS = 32 };

typedef struct {
    const char *dir, *output;
    const log_sink *sink;
    int shards;
    uint8_t *is_there; /* [shards] owned */
    shard_shape shape;
    int64_t n;
    void *piece; /* owned */
} merge_job;

/* Notes shard k of `shards`; two different totals cannot be of one job. */
static ddpm_status note_shard(merge_job *m, int k, int shards)
{
    if (!m->is_there) {
        m->is_there = calloc((size_t)shards, 1);
        REQUIRE(m->is_there, NOMEM, "%s: no memory for a list of %d shards", m->dir, shards);
        m->shards = shards;
    }
    REQUIRE(shards == m->shards, FORMAT, "%s: has shards of %d and shards of %d (samples-%05d-of-%05d.npz): two jobs in one "
            "folder", m->dir, m->shards < shards ? m->shards : shards, m->shards < shards ? shards : m->shards, k, shards);
    m->is_there[k] = 1;
    return DDPM_OK;
}

static ddpm_status list_shards(merge_job *m)
{
    DIR *d = opendir(m->dir);
    if (!d) return FAIL_ERRNO("%s: cannot be listed: %s", m->dir, strerror(errno));
    ddpm_status s = DDPM_OK;
    const struct dirent *e;
    int k, shards;
    while (!s && (errno = 0, e = readdir(d)))
        if (shard_of_name(e->d_name, &k, &shards)) s = note_shard(m, k, shards);
    if (!s && errno) s = FAIL_ERRNO("%s: cannot be listed: %s", m->dir, strerror(errno));
    closedir(d);
    return s;
}

static ddpm_status check_missing(const merge_job *m)
{
    text_buffer t = {0};
    int missing = 0;
    REQUIRE(m->is_there, NOINPUT, "%s: no shards in it (samples-00000-of-00001.npz and the like)", m->dir);
    for (int k = 0; k < m->shards; k++) {
        if (m->is_there[k] || missing++ >= LISTED_MAX) continue;
        char name[SHARD_NAME_BYTES];
        shard_name(k, m->shards, name);
        text_add(&t, "%s%s", missing > 1 ? ", " : "", name);
    }
    ddpm_status s = DDPM_OK;
    if (t.failed)
        s = FAIL(NOMEM, "%s: no memory for the list of missing shards", m->dir);
    else if (missing)
        s = FAIL(NOINPUT, "%s: %d of %d shards missing: %s%s; draw each with --shard K/%d", m->dir, missing, m->shards, t.data,
                 missing > LISTED_MAX ? ", ..." : "", m->shards);
    text_release(&t);
    return s;
}

static ddpm_status open_shard(const merge_job *m, int k, char **path, npz_file **f, shard_shape *shape, int64_t *n)
{
    char name[SHARD_NAME_BYTES];
    shard_name(k, m->shards, name);
    const size_t size = strlen(m->dir) + strlen(name) + 2;
    *path = malloc(size);
    REQUIRE(*path, NOMEM, "%s: no memory for a path", m->dir);
    snprintf(*path, size, "%s/%s", m->dir, name);
    const ddpm_status s = shard_open(*path, f, shape, n);
    if (s) {
        free(*path);
        *path = NULL;
    }
    return s;
}

/* Do all shards have one shape, in all n samples, and each the share of them that is its own? */
static ddpm_status check_shard(merge_job *m, int k, bool *has_seed, int64_t *seed)
{
    char *path;
    npz_file *f;
    shard_shape shape;
    int64_t n;
    TRY(open_shard(m, k, &path, &f, &shape, &n));
    ddpm_status s = DDPM_OK;
    if (k == 0) m->shape = shape;
    if (shape.h != m->shape.h || shape.w != m->shape.w || shape.c != m->shape.c ||
        shape.has_labels != m->shape.has_labels)
        s = FAIL(FORMAT, "%s: images %" PRId64 "x%" PRId64 "x%" PRId64 "%s, the first shard has %" PRId64 "x%" PRId64
                 "x%" PRId64 "%s: it is of another job", path, shape.h, shape.w, shape.c,
                 shape.has_labels ? " with labels" : "", m->shape.h, m->shape.w, m->shape.c,
                 m->shape.has_labels ? " with labels" : "");
    if (!s) s = shard_check(f, path, &shape, n, m->n, has_seed, seed);
    m->n += n;
    npz_close(f);
    free(path);
    return s;
}

/* A shard's share follows from the total, which only the sum tells. */
static ddpm_status check_shares(const merge_job *m)
{
    for (int k = 0; k < m->shards; k++) {
        char *path;
        npz_file *f;
        shard_shape shape;
        int64_t n;
        TRY(open_shard(m, k, &path, &f, &shape, &n));
        npz_close(f);
        const int64_t share = shard_first(m->n, k + 1, m->shards) - shard_first(m->n, k, m->shards);
        const ddpm_status s = n == share ? DDPM_OK
                                         : FAIL(FORMAT, "%s: holds %" PRId64 " samples, of %" PRId64 " in %d shards its "
                                                "share is %" PRId64 ": it is of another job", path, n, m->n, m->shards, share);
        free(path);
        TRY(s);
    }
    return DDPM_OK;
}

static ddpm_status check_shards(merge_job *m)
{
    bool has_seed = false;
    int64_t seed = 0;
    TRY(check_missing(m));
    for (int k = 0; k < m->shards; k++)
        TRY(check_shard(m, k, &has_seed, &seed));
    return check_shares(m);
}

static ddpm_status copy_array(const merge_job *m, npz_writer *w, npz_file *f, int which, int64_t n)
{
    uint64_t row;
    const char *name = shard_array(which, &m->shape, &row);
    const uint64_t bytes = row * (uint64_t)n;
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        const uint64_t take = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        TRY(npz_read(f, name, at, m->piece, take));
        TRY(npz_put(w, m->piece, take));
    }
    return DDPM_OK;
}

static ddpm_status copy_all(const merge_job *m, npz_writer *w)
{
    for (int which = 0; which < 3; which++) {
        if (which == 1 && !m->shape.has_labels) continue;
        TRY(shard_begin_array(w, which, &m->shape, m->n));
        for (int k = 0; k < m->shards; k++) {
            char *path;
            npz_file *f;
            shard_shape shape;
            int64_t n;
            TRY(open_shard(m, k, &path, &f, &shape, &n));
            const ddpm_status s = copy_array(m, w, f, which, n);
            npz_close(f);
            free(path);
            TRY(s);
        }
    }
    return DDPM_OK;
}

static ddpm_status hash_stream(const merge_job *m, int fd, XXH3_state_t *state)
{
    XXH3_128bits_reset(state);
    for (;;) {
        const ssize_t n = read(fd, m->piece, PIECE_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return FAIL_ERRNO("%s: cannot be read back: %s", m->output, strerror(errno));
        if (n == 0) return DDPM_OK;
        XXH3_128bits_update(state, m->piece, (size_t)n);
    }
}

/* XXH3-128 of the file as the disk holds it, as `xxhsum -H2` prints it. */
static ddpm_status hash_file(const merge_job *m, char hex[HASH_DIGITS + 1])
{
    XXH3_state_t *state = XXH3_createState();
    REQUIRE(state, NOMEM, "%s: no memory to hash it", m->output);
    const int fd = open(m->output, O_RDONLY | O_CLOEXEC);
    ddpm_status s = fd < 0 ? FAIL_ERRNO("%s: %s", m->output, strerror(errno)) : hash_stream(m, fd, state);
    if (fd >= 0) close(fd);
    if (!s) {
        XXH128_canonical_t c;
        XXH128_canonicalFromHash(&c, XXH3_128bits_digest(state));
        for (int i = 0; i < HASH_DIGITS / 2; i++)
            snprintf(hex + 2 * i, 3, "%02x", c.digest[i]);
    }
    XXH3_freeState(state);
    return s;
}

static ddpm_status merge(merge_job *m)
{
    npz_writer *w;
    char hex[HASH_DIGITS + 1];
    TRY(list_shards(m));
    TRY(check_shards(m));
    m->piece = malloc(PIECE_BYTES);
    REQUIRE(m->piece, NOMEM, "merge: %d bytes", PIECE_BYTES);
    TRY(npz_create(m->output, &w));
    const ddpm_status s = copy_all(m, w);
    if (s) {
        npz_abandon(w);
        return s;
    }
    TRY(npz_finish(w));
    TRY(hash_file(m, hex));
    log_line(m->sink, "%s: %" PRId64 " samples of %d shard%s, XXH3-128 %s", m->output, m->n, m->shards,
             m->shards > 1 ? "s" : "", hex);
    return DDPM_OK;
}

ddpm_status ddpm_merge(const char *dir, const char *output, const struct log_sink *sink)
{
    merge_job m = {.dir = dir, .output = output, .sink = sink};
    const ddpm_status s = merge(&m);
    free(m.is_there);
    free(m.piece);
    return s;
}

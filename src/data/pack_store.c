/* pack_store.c - from decoded images to a pack, so that no decoding is lost.
 *
 * Job        hold what is decoded; put it on disk every 64 MiB or ten seconds, so that a run that
 *            is stopped or killed is taken up where it was; and write the pack when all is there.
 * Method     parts are safetensors files with hashes, named by the first image they decide, and
 *            carry the identity of the input; a run takes up those that follow each other without
 *            a gap and verify. The pack is written from the parts and from memory, under a
 *            temporary name until it is whole.
 * Cost       64 MiB of memory. A short job writes nothing twice: what no part was needed for goes
 *            from memory straight into the pack.
 * Rejected   appending to one file: a torn write would have to be found and cut off. */
#include "pack_store.h"

#include "commit.h"
#include "fail.h"
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MEMORY_BYTES = 64 << 20, PIECE_BYTES = 4 << 20, PART_REASONS = 20000 };
static const double PART_SECONDS = 10;
static const uint64_t DEFAULT_SHARD = UINT64_C(2) << 30;

typedef struct {
    int64_t first, n; /* number of the input's first image that it decides, images in it */
} part;

typedef struct {
    int64_t image;
    char *reason; /* owned */
} rejection;

struct pack_store {
    const pack_input *in; /* borrowed */
    char output[PATH_MAX], folder[PATH_MAX];
    run_lock *lock;
    size_t image_bytes;
    part *parts;
    int n_parts, parts_room;
    int64_t decided, flushed; /* images of the input decided; those of them in parts */
    uint8_t *images;          /* the taken ones since the last part: [n_memory] of room */
    int64_t n_memory, room;
    int64_t *labels; /* [taken], of parts and memory; NULL without labels */
    int64_t taken;
    rejection *rejected;
    int64_t n_rejected, rejected_room, rejected_flushed;
    double flushed_at;
};

/* ---- small growing arrays ---- */

static ddpm_status part_add(pack_store *st, int64_t first, int64_t n)
{
    if (st->n_parts == st->parts_room) {
        const int room = st->parts_room ? 2 * st->parts_room : 16;
        part *p = realloc(st->parts, (size_t)room * sizeof *p);
        REQUIRE(p, NOMEM, "%d parts", room);
        st->parts = p;
        st->parts_room = room;
    }
    st->parts[st->n_parts++] = (part){.first = first, .n = n};
    return DDPM_OK;
}

/* Takes `reason`, also where it fails. */
static ddpm_status rejection_add(pack_store *st, int64_t image, char *reason)
{
    if (st->n_rejected == st->rejected_room) {
        const int64_t room = st->rejected_room ? 2 * st->rejected_room : 64;
        rejection *r = realloc(st->rejected, (size_t)room * sizeof *r);
        if (!r) {
            free(reason);
            return FAIL(NOMEM, "%" PRId64 " rejections", room);
        }
        st->rejected = r;
        st->rejected_room = room;
    }
    st->rejected[st->n_rejected++] = (rejection){.image = image, .reason = reason};
    return DDPM_OK;
}

/* ---- parts ---- */

static void part_path(const pack_store *st, int64_t first, char dst[PATH_MAX + 64])
{
    snprintf(dst, PATH_MAX + 64, "%s/part-%012" PRId64 ".safetensors", st->folder, first);
}

static json_t *rejections_json(const pack_store *st)
{
    json_t *list = json_array();
    for (int64_t i = st->rejected_flushed; list && i < st->n_rejected; i++) {
        json_t *row =
            json_pack("[I, s]", (json_int_t)st->rejected[i].image, st->rejected[i].reason);
        if (!row || json_array_append_new(list, row)) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static ddpm_status add_number(st_writer *w, const char *key, int64_t v)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, v);
    return st_add_metadata(w, key, text);
}

static ddpm_status part_write(const pack_store *st, const char *rejections)
{
    const pack_input *in = st->in;
    const int64_t shape[4] = {st->n_memory, in->height, in->width, in->channels};
    char path[PATH_MAX + 64];
    part_path(st, st->flushed, path);
    st_writer *w = NULL;
    ddpm_status s = DDPM_OK;
    TRY(st_writer_create(&w));
    TRY_GOTO(fail, st_add_metadata(w, "ddpm.kind", "pack-part"));
    TRY_GOTO(fail, st_add_metadata(w, "ddpm.identity", in->identity));
    TRY_GOTO(fail, add_number(w, "ddpm.first", st->flushed));
    TRY_GOTO(fail, add_number(w, "ddpm.decided", st->decided - st->flushed));
    TRY_GOTO(fail, st_add_metadata(w, "ddpm.rejected", rejections));
    TRY_GOTO(fail, st_add(w, "images", ST_U8, 4, shape));
    if (st->labels) TRY_GOTO(fail, st_add(w, "labels", ST_I64, 1, shape));
    TRY_GOTO(fail, st_begin(w, path));
    TRY_GOTO(fail, st_put(w, st->images, (uint64_t)st->n_memory * st->image_bytes));
    if (st->labels)
        TRY_GOTO(fail,
                 st_put(w, st->labels + st->taken - st->n_memory, (uint64_t)st->n_memory * 8));
    return st_finish(w);
fail:
    st_writer_abandon(w);
    return s;
}

ddpm_status pack_store_flush(pack_store *st, bool now)
{
    const bool is_full =
        st->n_memory == st->room || st->n_rejected - st->rejected_flushed > PART_REASONS;
    const bool is_old = monotonic_seconds() - st->flushed_at > PART_SECONDS;
    if (st->n_memory == 0 || !(now || is_full || is_old)) return DDPM_OK;
    json_t *list = rejections_json(st);
    char *text = list ? json_dumps(list, JSON_COMPACT) : NULL;
    json_decref(list);
    REQUIRE(text, NOMEM, "the list of rejections");
    ddpm_status s = part_write(st, text);
    free(text);
    if (!s) s = part_add(st, st->flushed, st->n_memory);
    TRY(s);
    st->flushed = st->decided;
    st->rejected_flushed = st->n_rejected;
    st->n_memory = 0;
    st->flushed_at = monotonic_seconds();
    return DDPM_OK;
}

/* ---- taking up an earlier run ---- */

static bool number_of(const st_file *f, const char *key, int64_t low, int64_t high, int64_t *out)
{
    const char *text = st_metadata(f, key);
    char *end = NULL;
    errno = 0;
    const long long v = text ? strtoll(text, &end, 10) : -1;
    if (!text || end == text || *end || errno || v < low || v > high) return false;
    *out = v;
    return true;
}

/* NOMEM, or FORMAT where the list is not one. Reasons are cut back by the caller where the part is
 * not used. */
static ddpm_status rejections_load(pack_store *st, const char *text)
{
    json_t *list = text ? json_loads(text, 0, NULL) : NULL;
    ddpm_status s = list ? DDPM_OK : FAIL(FORMAT, "rejections");
    size_t i;
    json_t *row;
    json_array_foreach(list, i, row)
    {
        json_int_t image = 0;
        const char *reason = NULL;
        if (s || json_unpack(row, "[I, s]", &image, &reason)) {
            s = s ? s : FAIL(FORMAT, "rejections");
            break;
        }
        char *copy = strdup(reason);
        s = copy ? rejection_add(st, image, copy) : FAIL(NOMEM, "a reason");
    }
    json_decref(list);
    return s;
}

static ddpm_status part_load(pack_store *st, const char *path)
{
    const pack_input *in = st->in;
    st_file *f = NULL;
    TRY(st_open(path, &f));
    ddpm_status s = DDPM_OK;
    int64_t first = 0, decided = 0;
    const char *identity = st_metadata(f, "ddpm.identity");
    const st_tensor *images = st_find(f, "images"), *labels = st_find(f, "labels");
    if (!identity || strcmp(identity, in->identity) ||
        !number_of(f, "ddpm.first", 0, in->n, &first) || first != st->decided ||
        !number_of(f, "ddpm.decided", 1, in->n - first, &decided) || !st_has_hashes(f) || !images ||
        images->dtype != ST_U8 || images->rank != 4 || images->shape[0] < 1 ||
        images->shape[0] > decided || images->shape[1] != in->height ||
        images->shape[2] != in->width || images->shape[3] != in->channels ||
        (labels != NULL) != in->has_labels)
        FAIL_GOTO(done, FORMAT, "%s: of another run", path);
    const int64_t n = images->shape[0];
    if (labels && (labels->dtype != ST_I64 || labels->rank != 1 || labels->shape[0] != n))
        FAIL_GOTO(done, FORMAT, "%s: of another run", path);
    TRY_GOTO(done, st_verify(f));
    if (labels) TRY_GOTO(done, st_read_i64(f, labels, st->labels + st->taken));
    TRY_GOTO(done, rejections_load(st, st_metadata(f, "ddpm.rejected")));
    TRY_GOTO(done, part_add(st, first, n));
    st->decided = st->flushed = first + decided;
    st->taken += n;
    st->rejected_flushed = st->n_rejected;
done:
    while (s && st->n_rejected > st->rejected_flushed)
        free(st->rejected[--st->n_rejected].reason);
    st_close(f);
    return s;
}

/* Removes every file of a folder but the lock and, of the parts, those that are in use. */
static void folder_clean(const pack_store *st, const char *path, bool is_pack)
{
    DIR *dir = opendir(path);
    if (!dir) return;
    for (struct dirent *e; (e = readdir(dir));) {
        char child[2 * PATH_MAX];
        snprintf(child, sizeof child, "%s/%s", path, e->d_name);
        long long first = -1;
        bool is_used = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
                       (!is_pack && (!strcmp(e->d_name, "lock") || !strcmp(e->d_name, "pack")));
        if (!is_pack && sscanf(e->d_name, "part-%lld.safetensors", &first) == 1)
            for (int i = 0; i < st->n_parts; i++)
                is_used |= st->parts[i].first == first;
        if (!is_used) unlink(child);
    }
    closedir(dir);
}

static ddpm_status parts_take_up(pack_store *st)
{
    char path[2 * PATH_MAX];
    for (;;) {
        part_path(st, st->decided, path);
        if (st->decided >= st->in->n || access(path, F_OK)) break;
        const ddpm_status s = part_load(st, path);
        if (s == DDPM_NOMEM) return s;
        if (s) break; /* damaged, or of another input: decoded anew */
    }
    folder_clean(st, st->folder, false);
    snprintf(path, sizeof path, "%s/pack", st->folder);
    folder_clean(st, path, true);
    return DDPM_OK;
}

static ddpm_status store_init(pack_store *st, const char *output)
{
    const pack_input *in = st->in;
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    REQUIRE(n > 0 && n + 64 < PATH_MAX, ARG, "output path of %zu bytes", n);
    snprintf(st->output, sizeof st->output, "%.*s", (int)n, output);
    snprintf(st->folder, sizeof st->folder, "%.*s.part", (int)n, output);
    struct stat found;
    REQUIRE(lstat(st->output, &found) || S_ISREG(found.st_mode), CANTCREAT,
            "%s: exists and is not a file; remove it or name another output", st->output);
    st->image_bytes = (size_t)in->height * (size_t)in->width * (size_t)in->channels;
    st->room = MEMORY_BYTES / (int64_t)st->image_bytes;
    if (st->room < 1) st->room = 1;
    if (st->room > in->n) st->room = in->n;
    st->images = malloc((size_t)st->room * st->image_bytes);
    if (in->has_labels) st->labels = calloc((size_t)in->n, sizeof *st->labels);
    REQUIRE(st->images && (st->labels || !in->has_labels), NOMEM, "%" PRId64 " images of %zu bytes",
            st->room, st->image_bytes);
    if (mkdir(st->folder, 0777) && errno != EEXIST)
        return errno == ENOENT
                   ? FAIL(CANTCREAT, "%s: its folder does not exist; create it first", st->output)
                   : FAIL_ERRNO("%s: %s", st->folder, strerror(errno));
    TRY(lock_acquire(st->folder, &st->lock));
    st->flushed_at = monotonic_seconds();
    return parts_take_up(st);
}

ddpm_status pack_store_open(const pack_input *in, const char *output, pack_store **out)
{
    *out = NULL;
    pack_store *st = calloc(1, sizeof *st);
    REQUIRE(st, NOMEM, "%zu bytes", sizeof *st);
    st->in = in;
    const ddpm_status s = store_init(st, output);
    if (s) {
        pack_store_close(st, false);
        return s;
    }
    *out = st;
    return DDPM_OK;
}

void pack_store_close(pack_store *st, bool is_done)
{
    if (!st) return;
    if (st->lock) {
        char path[PATH_MAX + 64];
        if (is_done) st->n_parts = 0;
        folder_clean(st, st->folder, false);
        snprintf(path, sizeof path, "%s/pack", st->folder);
        folder_clean(st, path, true);
        rmdir(path);
        const bool is_empty = st->n_parts == 0;
        lock_release(st->lock);
        snprintf(path, sizeof path, "%s/lock", st->folder);
        if (is_empty && (unlink(path) == 0 || errno == ENOENT)) rmdir(st->folder);
    }
    for (int64_t i = 0; i < st->n_rejected; i++)
        free(st->rejected[i].reason);
    free(st->rejected);
    free(st->parts);
    free(st->labels);
    free(st->images);
    free(st);
}

/* ---- what is in it ---- */

int64_t pack_store_decided(const pack_store *st)
{
    return st->decided;
}

int64_t pack_store_taken(const pack_store *st)
{
    return st->taken;
}

int64_t pack_store_rejected(const pack_store *st)
{
    return st->n_rejected;
}

const char *pack_store_reason(const pack_store *st, int64_t i, int64_t *image)
{
    *image = st->rejected[i].image;
    return st->rejected[i].reason;
}

uint8_t *pack_store_room(pack_store *st, int64_t *count)
{
    *count = st->room - st->n_memory;
    return st->images + (size_t)st->n_memory * st->image_bytes;
}

ddpm_status pack_store_take(pack_store *st, int64_t count, char **reasons)
{
    const uint8_t *from = st->images + (size_t)st->n_memory * st->image_bytes;
    ddpm_status s = DDPM_OK;
    for (int64_t i = 0; i < count; i++, from += st->image_bytes) {
        const int64_t image = st->decided + i;
        if (reasons[i]) {
            const ddpm_status added = rejection_add(st, image, reasons[i]);
            reasons[i] = NULL;
            if (!s) s = added;
            continue;
        }
        uint8_t *to = st->images + (size_t)st->n_memory * st->image_bytes;
        if (to != from) memcpy(to, from, st->image_bytes);
        if (st->labels) st->labels[st->taken] = pack_input_label(st->in, image);
        st->n_memory++;
        st->taken++;
    }
    st->decided += count;
    return s;
}

/* ---- the pack ---- */

/* Reads taken images front to back, from the parts and then from memory. */
typedef struct {
    pack_store *st;
    int part;
    st_file *file;
    int64_t at; /* in the part, then in memory */
} cursor;

static ddpm_status cursor_read(cursor *c, int64_t want, uint8_t *piece, const uint8_t **images,
                               int64_t *n)
{
    pack_store *st = c->st;
    if (c->part == st->n_parts) {
        *images = st->images + (size_t)c->at * st->image_bytes;
        *n = want;
        c->at += want;
        return DDPM_OK;
    }
    const part *p = &st->parts[c->part];
    if (!c->file) {
        char path[PATH_MAX + 64];
        part_path(st, p->first, path);
        TRY(st_open(path, &c->file));
        c->at = 0;
    }
    const st_tensor *t = st_find(c->file, "images");
    REQUIRE(t && t->bytes == (uint64_t)p->n * st->image_bytes, FORMAT, "%s: changed while in use",
            st_path(c->file));
    const int64_t left = p->n - c->at, fits = PIECE_BYTES / (int64_t)st->image_bytes;
    *n = want < left ? want : left;
    if (*n > fits) *n = fits > 1 ? fits : 1;
    TRY(st_read(c->file, t, (uint64_t)c->at * st->image_bytes, piece,
                (uint64_t)*n * st->image_bytes));
    *images = piece;
    c->at += *n;
    if (c->at == p->n) {
        st_close(c->file);
        c->file = NULL;
        c->part++;
        c->at = 0;
    }
    return DDPM_OK;
}

static ddpm_status classes_add(st_writer *w, const pack_input *in)
{
    if (!in->has_labels) return DDPM_OK;
    json_t *list = json_array();
    for (int i = 0; list && i < in->n_classes; i++) {
        json_t *name = json_string(in->classes[i]);
        if (!name) {
            json_decref(list);
            return FAIL(FORMAT, "class name \"%s\" is not UTF-8", in->classes[i]);
        }
        if (json_array_append_new(list, name)) {
            json_decref(list);
            list = NULL;
        }
    }
    char *text = list ? json_dumps(list, JSON_COMPACT) : NULL;
    json_decref(list);
    REQUIRE(text, NOMEM, "%d class names", in->n_classes);
    const ddpm_status s = st_add_metadata(w, "ddpm.classes", text);
    free(text);
    return s;
}

static ddpm_status shard_declare(st_writer *w, const pack_store *st, int64_t n, int k, int of)
{
    const pack_input *in = st->in;
    const int64_t shape[4] = {n, in->height, in->width, in->channels};
    char text[48];
    snprintf(text, sizeof text, "%d/%d", k, of);
    TRY(st_add_metadata(w, "ddpm.kind", "pack"));
    TRY(st_add_metadata(w, "ddpm.shard", text));
    TRY(st_add_metadata(w, "ddpm.source", in->source));
    TRY(add_number(w, "ddpm.total", st->taken));
    TRY(classes_add(w, in));
    TRY(st_add(w, "images", ST_U8, 4, shape));
    return st->labels ? st_add(w, "labels", ST_I64, 1, shape) : DDPM_OK;
}

static ddpm_status shard_write(cursor *c, const char *path, int64_t first, int64_t n, int k, int of,
                               uint8_t *piece, const volatile int *stop)
{
    pack_store *st = c->st;
    st_writer *w = NULL;
    ddpm_status s = DDPM_OK;
    TRY(st_writer_create(&w));
    TRY_GOTO(fail, shard_declare(w, st, n, k, of));
    TRY_GOTO(fail, st_begin(w, path));
    for (int64_t left = n, got = 0; left > 0; left -= got) {
        const uint8_t *images = NULL;
        if (stop && *stop) FAIL_GOTO(fail, STOPPED, "stopped while writing; run again to go on");
        TRY_GOTO(fail, cursor_read(c, left, piece, &images, &got));
        TRY_GOTO(fail, st_put(w, images, (uint64_t)got * st->image_bytes));
    }
    if (st->labels) TRY_GOTO(fail, st_put(w, st->labels + first, (uint64_t)n * 8));
    return st_finish(w);
fail:
    st_writer_abandon(w);
    return s;
}

static ddpm_status folder_commit(const char *from, const char *to)
{
    REQUIRE(rename(from, to) == 0, CANTCREAT, "%s: %s", to, strerror(errno));
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", to);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = 0;
    const int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool is_synced = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    REQUIRE(is_synced, IO, "%s: its folder does not sync: %s", to, strerror(errno));
    return DDPM_OK;
}

static ddpm_status shards_write(cursor *c, int64_t per_shard, int of, uint8_t *piece,
                                const volatile int *stop)
{
    pack_store *st = c->st;
    if (of == 1) return shard_write(c, st->output, 0, st->taken, 0, 1, piece, stop);
    struct stat found;
    REQUIRE(
        lstat(st->output, &found), CANTCREAT,
        "%s: exists, and the pack needs a folder of %d shards; remove it or name another output",
        st->output, of);
    char folder[PATH_MAX + 16], path[PATH_MAX + 96];
    snprintf(folder, sizeof folder, "%s/pack", st->folder);
    TRY(make_folder(folder));
    for (int k = 0; k < of; k++) {
        const int64_t first = k * per_shard, left = st->taken - first;
        snprintf(path, sizeof path, "%s/pack-%05d-of-%05d.safetensors", folder, k, of);
        TRY(shard_write(c, path, first, left < per_shard ? left : per_shard, k, of, piece, stop));
    }
    return folder_commit(folder, st->output);
}

ddpm_status pack_store_write(pack_store *st, uint64_t shard_bytes, const volatile int *stop,
                             uint64_t *bytes)
{
    const uint64_t each = st->image_bytes + (st->labels ? 8 : 0);
    const uint64_t per = (shard_bytes ? shard_bytes : DEFAULT_SHARD) / each;
    const int64_t per_shard = per < 1 ? 1 : per > (uint64_t)st->taken ? st->taken : (int64_t)per;
    const int64_t of = (st->taken - 1) / per_shard + 1;
    REQUIRE(of <= 99999, ARG, "%" PRId64 " shards of %" PRIu64 " bytes; choose larger ones", of,
            shard_bytes);
    uint8_t *piece = malloc(st->image_bytes > PIECE_BYTES ? st->image_bytes : PIECE_BYTES);
    REQUIRE(piece, NOMEM, "%d bytes", PIECE_BYTES);
    cursor c = {.st = st};
    const ddpm_status s = shards_write(&c, per_shard, (int)of, piece, stop);
    st_close(c.file);
    free(piece);
    TRY(s);
    *bytes = (uint64_t)st->taken * each;
    return DDPM_OK;
}

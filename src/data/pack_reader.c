/* pack_reader.c - opening a pack and reading its images.
 *
 * Job        find the shards of a pack, prove that they belong together and are complete, and read
 *            any image by its number.
 * Method     a file is a pack of one shard; a folder must hold pack-00000-of-N .. pack-(N-1)-of-N.
 *            Shapes, source hash and total of every shard must agree. Images are read by pread.
 * Cost       a header read per shard, 8 bytes of memory an image for the labels.
 * Rejected   mmap: a file cut short by another process would end the training run with SIGBUS. */
#include "pack_reader.h"

#include "checked.h"
#include "fail.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_SHARDS = 100000, MAX_CLASSES = 1 << 20 };

static ddpm_status text_number(const st_file *f, const char *key, int64_t low, int64_t high,
                               int64_t *out)
{
    const char *text = st_metadata(f, key);
    REQUIRE(text && *text, FORMAT, "%s: not a pack: no metadata %s", st_path(f), key);
    char *end = NULL;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    REQUIRE(errno == 0 && *end == 0 && v >= low && v <= high, FORMAT,
            "%s: metadata %s is \"%s\", not a number of %lld .. %lld", st_path(f), key, text,
            (long long)low, (long long)high);
    *out = v;
    return DDPM_OK;
}

static ddpm_status shard_number(const st_file *f, int *k, int *n)
{
    const char *text = st_metadata(f, "ddpm.shard");
    char tail = 0;
    REQUIRE(text && sscanf(text, "%9d/%9d%c", k, n, &tail) == 2 && *k >= 0 && *n > *k &&
                *n <= MAX_SHARDS,
            FORMAT, "%s: metadata ddpm.shard is \"%s\", not k/n", st_path(f), text ? text : "");
    return DDPM_OK;
}

static ddpm_status classes_read(pack_reader *r, const st_file *f)
{
    const char *text = st_metadata(f, "ddpm.classes");
    if (!text) return DDPM_OK;
    ddpm_status s = DDPM_OK;
    json_error_t where;
    json_t *list = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    const size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0 || n > MAX_CLASSES)
        FAIL_GOTO(done, FORMAT, "%s: metadata ddpm.classes is not a list of 1 .. %d names",
                  st_path(f), MAX_CLASSES);
    r->classes = calloc(n, sizeof *r->classes);
    if (!r->classes) FAIL_GOTO(done, NOMEM, "%s: %zu class names", st_path(f), n);
    r->n_names = r->n_classes = (int)n;
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name) FAIL_GOTO(done, FORMAT, "%s: class %zu has no name", st_path(f), i);
        r->classes[i] = strdup(name);
        if (!r->classes[i]) FAIL_GOTO(done, NOMEM, "%s: class names", st_path(f));
    }
done:
    json_decref(list);
    return s;
}

/* Opens one shard and compares it with what is known; the first one tells what all must be. */
static ddpm_status shard_open(pack_reader *r, const char *path, int k, int n, int64_t *total)
{
    pack_shard *shard = &r->shards[k];
    TRY(st_open(path, &shard->file));
    const st_file *f = shard->file;
    const char *kind = st_metadata(f, "ddpm.kind"), *source = st_metadata(f, "ddpm.source");
    REQUIRE(kind && !strcmp(kind, "pack"), FORMAT,
            "%s: not a pack but %s; make one with `ddpm pack`", path, kind ? kind : "another file");
    REQUIRE(source && strlen(source) == 32 && strspn(source, "0123456789abcdef") == 32, FORMAT,
            "%s: metadata ddpm.source is not 32 hexadecimal digits", path);
    int at = 0, of = 0;
    TRY(shard_number(f, &at, &of));
    REQUIRE(at == k && of == n, FORMAT, "%s: says shard %d of %d, expected %d of %d", path, at, of,
            k, n);
    shard->images = st_find(f, "images");
    const st_tensor *t = shard->images;
    REQUIRE(t && t->dtype == ST_U8 && t->rank == 4, FORMAT,
            "%s: not a pack: no images U8 [N,H,W,C]", path);
    REQUIRE(t->shape[0] >= 1 && t->shape[1] >= 1 && t->shape[1] <= PACK_MAX_SIDE &&
                t->shape[2] >= 1 && t->shape[2] <= PACK_MAX_SIDE &&
                (t->shape[3] == 1 || t->shape[3] == 3),
            FORMAT, "%s: images [%lld,%lld,%lld,%lld]: sides are 1 .. %d, channels 1 or 3", path,
            (long long)t->shape[0], (long long)t->shape[1], (long long)t->shape[2],
            (long long)t->shape[3], PACK_MAX_SIDE);
    int64_t all = 0;
    TRY(text_number(f, "ddpm.total", 1, INT64_MAX / 8, &all));
    if (k == 0) {
        r->height = t->shape[1], r->width = t->shape[2], r->channels = t->shape[3];
        r->image_bytes = (size_t)(r->height * r->width * r->channels);
        memcpy(r->source, source, 33);
        *total = all;
    }
    REQUIRE(t->shape[1] == r->height && t->shape[2] == r->width && t->shape[3] == r->channels &&
                !strcmp(source, r->source) && all == *total,
            FORMAT, "%s: belongs to another pack than shard 0", path);
    shard->first = r->n;
    shard->n = t->shape[0];
    REQUIRE(shard->n <= *total - r->n, FORMAT, "%s: more images than the %lld of the pack", path,
            (long long)*total);
    r->n += shard->n;
    return DDPM_OK;
}

static ddpm_status labels_read(pack_reader *r)
{
    const st_tensor *t = st_find(r->shards[0].file, "labels");
    if (!t) {
        r->n_classes = 0;
        return DDPM_OK;
    }
    size_t bytes = 0;
    REQUIRE(checked_mul((size_t)r->n, sizeof *r->labels, &bytes), FORMAT, "%lld labels",
            (long long)r->n);
    r->labels = malloc(bytes);
    REQUIRE(r->labels, NOMEM, "labels of %lld images", (long long)r->n);
    const int limit = r->classes ? r->n_classes : MAX_CLASSES;
    for (int k = 0; k < r->n_shards; k++) {
        pack_shard *shard = &r->shards[k];
        const char *path = st_path(shard->file);
        t = st_find(shard->file, "labels");
        REQUIRE(t && t->dtype == ST_I64 && t->rank == 1 && t->shape[0] == shard->n, FORMAT,
                "%s: labels must be I64 [%lld]", path, (long long)shard->n);
        TRY(st_read_i64(shard->file, t, r->labels + shard->first));
        for (int64_t i = shard->first; i < shard->first + shard->n; i++) {
            REQUIRE(r->labels[i] >= 0 && r->labels[i] < limit, FORMAT,
                    "%s: image %lld has label %lld, the pack has %d classes", path, (long long)i,
                    (long long)r->labels[i], limit);
            if (!r->classes && r->labels[i] >= r->n_classes) r->n_classes = (int)r->labels[i] + 1;
        }
    }
    return DDPM_OK;
}

/* How many shards the folder's names speak of. */
static ddpm_status folder_count(const char *path, int *out)
{
    DIR *dir = opendir(path);
    if (!dir) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    int n = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        int k = 0, of = 0, end = 0;
        if (sscanf(e->d_name, "pack-%9d-of-%9d.safetensors%n", &k, &of, &end) == 2 && end &&
            !e->d_name[end] && of > n)
            n = of;
    }
    closedir(dir);
    REQUIRE(n > 0, FORMAT,
            "%s: a folder without pack-00000-of-N.safetensors; images are made into a "
            "pack with `ddpm pack`",
            path);
    REQUIRE(n <= MAX_SHARDS, FORMAT, "%s: %d shards, at most %d are read", path, n, MAX_SHARDS);
    *out = n;
    return DDPM_OK;
}

static ddpm_status open_all(pack_reader *r, const char *path)
{
    struct stat st;
    if (stat(path, &st)) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    const bool is_folder = S_ISDIR(st.st_mode);
    int n = 1;
    if (is_folder) TRY(folder_count(path, &n));
    r->shards = calloc((size_t)n, sizeof *r->shards);
    REQUIRE(r->shards, NOMEM, "%s: %d shards", path, n);
    r->n_shards = n;
    int64_t total = 0;
    for (int k = 0; k < n; k++) {
        char name[PATH_MAX];
        const int len =
            is_folder ? snprintf(name, sizeof name, "%s/pack-%05d-of-%05d.safetensors", path, k, n)
                      : snprintf(name, sizeof name, "%s", path);
        REQUIRE(len < (int)sizeof name, ARG, "path of %d bytes is too long", len);
        TRY(shard_open(r, name, k, n, &total));
    }
    REQUIRE(r->n == total, FORMAT, "%s: %lld images, its metadata says %lld", path, (long long)r->n,
            (long long)total);
    TRY(classes_read(r, r->shards[0].file));
    return labels_read(r);
}

ddpm_status pack_reader_open(const char *path, pack_reader **out)
{
    *out = NULL;
    pack_reader *r = calloc(1, sizeof *r);
    REQUIRE(r, NOMEM, "pack reader: %zu bytes", sizeof *r);
    const ddpm_status s = open_all(r, path);
    if (s) {
        pack_reader_close(r);
        return s;
    }
    *out = r;
    return DDPM_OK;
}

void pack_reader_close(pack_reader *r)
{
    if (!r) return;
    for (int k = 0; k < r->n_shards; k++)
        st_close(r->shards[k].file);
    for (int i = 0; r->classes && i < r->n_names; i++)
        free(r->classes[i]);
    free(r->classes);
    free(r->labels);
    free(r->shards);
    free(r);
}

ddpm_status pack_reader_image(const pack_reader *r, int64_t index, uint8_t *dst)
{
    int low = 0, high = r->n_shards - 1;
    while (low < high) {
        const int mid = (low + high + 1) / 2;
        if (r->shards[mid].first <= index)
            low = mid;
        else
            high = mid - 1;
    }
    const pack_shard *shard = &r->shards[low];
    return st_read(shard->file, shard->images, (uint64_t)(index - shard->first) * r->image_bytes,
                   dst, r->image_bytes);
}

ddpm_status pack_reader_all(const pack_reader *r, uint8_t *dst)
{
    for (int k = 0; k < r->n_shards; k++) {
        const pack_shard *shard = &r->shards[k];
        if (st_has_hashes(shard->file)) TRY(st_verify(shard->file));
        TRY(st_read(shard->file, shard->images, 0, dst + (uint64_t)shard->first * r->image_bytes,
                    shard->images->bytes));
    }
    return DDPM_OK;
}

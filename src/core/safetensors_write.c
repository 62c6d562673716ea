/* safetensors_write.c - the strict subset of the container that we write.
 *
 * Everything is declared first, so the header's length and the layout are known before data flows,
 * and the data passes through once: it is hashed on its way to the disk, and the hashes are patched
 * into places of fixed width at the end. Keys are sorted at every level, so equal contents give
 * equal files. Then the temporary file is opened like any other and every hash compared with what
 * the disk gives back, before it gets its name. */
#include "safetensors.h"

#include "checked.h"
#include "commit.h"
#include "fail.h"
#include "safetensors_header.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *key, *value; /* owned; value NULL: the digits of a hash, patched at the end */
    int tensor;        /* whose hash; -1: the header's own */
    size_t digits_at;  /* in the header's text */
} write_pair;

struct st_writer {
    st_tensor *tensors; /* owned, and their names; sorted from st_begin on */
    write_pair *pairs;  /* owned; sorted from st_begin on */
    int n_tensors, tensor_room, n_pairs, pair_room;
    text_buffer header;
    commit *file; /* NULL before st_begin */
    XXH3_state_t *state;
    int current;                        /* tensor that data goes to */
    uint64_t done;                      /* its bytes so far */
    char (*hashes)[ST_HASH_DIGITS + 1]; /* one a tensor */
    char self_hash[ST_HASH_DIGITS + 1];
};

static const char zeros[] = "00000000000000000000000000000000";

ddpm_status st_writer_create(st_writer **out)
{
    *out = calloc(1, sizeof **out);
    REQUIRE(*out, NOMEM, "safetensors writer: %zu bytes", sizeof **out);
    return DDPM_OK;
}

void st_writer_abandon(st_writer *w)
{
    if (!w) return;
    commit_abandon(w->file);
    for (int i = 0; i < w->n_tensors; i++)
        free((char *)w->tensors[i].name);
    for (int i = 0; i < w->n_pairs; i++) {
        free(w->pairs[i].key);
        free(w->pairs[i].value);
    }
    free(w->tensors);
    free(w->pairs);
    free(w->hashes);
    text_release(&w->header);
    if (w->state) XXH3_freeState(w->state);
    free(w);
}

/* ---- declaring ---- */

static ddpm_status room_for_one(void **array, int n, int *room, size_t unit)
{
    if (n < *room) return DDPM_OK;
    const int wanted = *room ? *room * 2 : 64;
    void *bigger = realloc(*array, (size_t)wanted * unit);
    REQUIRE(bigger, NOMEM, "safetensors writer: %zu bytes", (size_t)wanted * unit);
    *array = bigger;
    *room = wanted;
    return DDPM_OK;
}

ddpm_status st_add(st_writer *w, const char *name, st_dtype dtype, int rank, const int64_t *shape)
{
    const size_t length = strlen(name);
    REQUIRE(!w->file, BUG, "tensor '%s' is declared after st_begin", name);
    REQUIRE(length >= 1 && length <= ST_MAX_NAME && utf8_valid(name, length) &&
                strcmp(name, ST_METADATA) != 0,
            ARG, "'%s' cannot be the name of a tensor: 1 to %d bytes of UTF-8 other than %s", name,
            ST_MAX_NAME, ST_METADATA);
    REQUIRE(rank >= 0 && rank <= ST_MAX_RANK, ARG, "tensor '%s': rank %d, at most %d", name, rank,
            ST_MAX_RANK);
    REQUIRE(w->n_tensors < ST_MAX_TENSORS, ARG, "more than %d tensors", ST_MAX_TENSORS);
    size_t bytes;
    REQUIRE(checked_product(shape, rank, st_dtype_size(dtype), &bytes) && bytes <= INT64_MAX, ARG,
            "tensor '%s': its size overflows", name);

    void *array = w->tensors;
    TRY(room_for_one(&array, w->n_tensors, &w->tensor_room, sizeof *w->tensors));
    w->tensors = array;
    char *copy = strdup(name);
    REQUIRE(copy, NOMEM, "tensor '%s': no memory for the name", name);
    st_tensor *t = &w->tensors[w->n_tensors++];
    *t = (st_tensor){.name = copy, .dtype = dtype, .rank = rank, .bytes = bytes};
    for (int i = 0; i < rank; i++)
        t->shape[i] = shape[i];
    return DDPM_OK;
}

/* `value` NULL: the hash of tensor number `tensor`, or of the header. */
static ddpm_status add_pair(st_writer *w, const char *prefix, const char *key, const char *value,
                            int tensor)
{
    void *array = w->pairs;
    TRY(room_for_one(&array, w->n_pairs, &w->pair_room, sizeof *w->pairs));
    w->pairs = array;
    const size_t size = strlen(prefix) + strlen(key) + 1;
    write_pair p = {.key = malloc(size), .value = value ? strdup(value) : NULL, .tensor = tensor};
    if (!p.key || (value && !p.value)) {
        free(p.key);
        free(p.value);
        return FAIL(NOMEM, "metadata '%s': no memory", key);
    }
    strcpy(p.key, prefix);
    strcat(p.key, key);
    w->pairs[w->n_pairs++] = p;
    return DDPM_OK;
}

ddpm_status st_add_metadata(st_writer *w, const char *key, const char *value)
{
    const size_t length = strlen(key);
    REQUIRE(!w->file, BUG, "metadata '%s' is declared after st_begin", key);
    REQUIRE(length <= ST_MAX_KEY && utf8_valid(key, length), ARG,
            "'%s' cannot be a metadata key: at most %d bytes of UTF-8", key, ST_MAX_KEY);
    REQUIRE(strncmp(key, ST_HASH_PREFIX, sizeof ST_HASH_PREFIX - 1) != 0 &&
                strcmp(key, ST_SELF_HASH) != 0,
            ARG, "metadata '%s': this key is the writer's own", key);
    REQUIRE(utf8_valid(value, strlen(value)), ARG, "metadata '%s': the value is not valid UTF-8",
            key);
    REQUIRE(w->n_pairs < ST_MAX_PAIRS - ST_MAX_TENSORS - 1, ARG, "too many metadata keys");
    return add_pair(w, "", key, value, -1);
}

/* ---- the header ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const write_pair *)a)->key, ((const write_pair *)b)->key);
}

static void add_string(text_buffer *t, const char *s)
{
    text_add_bytes(t, "\"", 1);
    while (*s) {
        size_t plain = 0;
        while ((unsigned char)s[plain] >= 0x20 && s[plain] != '"' && s[plain] != '\\')
            plain++;
        text_add_bytes(t, s, plain);
        s += plain;
        if (*s == '"' || *s == '\\')
            text_add(t, "\\%c", *s++);
        else if (*s)
            text_add(t, "\\u%04x", (unsigned)*s++);
    }
    text_add_bytes(t, "\"", 1);
}

static void add_metadata_object(st_writer *w)
{
    text_buffer *t = &w->header;
    text_add(t, "\"%s\":{", ST_METADATA);
    for (int i = 0; i < w->n_pairs; i++) {
        write_pair *p = &w->pairs[i];
        if (i) text_add_bytes(t, ",", 1);
        add_string(t, p->key);
        text_add_bytes(t, ":", 1);
        p->digits_at = t->used + 1;
        add_string(t, p->value ? p->value : zeros);
    }
    text_add_bytes(t, "}", 1);
}

static void add_tensor_object(text_buffer *t, const st_tensor *x)
{
    add_string(t, x->name);
    text_add(t, ":{\"data_offsets\":[%llu,%llu],\"dtype\":\"%s\",\"shape\":[",
             (unsigned long long)x->offset, (unsigned long long)(x->offset + x->bytes),
             st_dtype_name(x->dtype));
    for (int k = 0; k < x->rank; k++)
        text_add(t, "%s%lld", k ? "," : "", (long long)x->shape[k]);
    text_add(t, "]}");
}

/* The whole header with zeros for hashes. Tensors' offsets count from the data's start here. */
static ddpm_status build_header(st_writer *w)
{
    text_buffer *t = &w->header;
    bool has_metadata = false;
    text_add_bytes(t, "{", 1);
    for (int i = 0; i <= w->n_tensors; i++) {
        if (!has_metadata && (i == w->n_tensors || strcmp(ST_METADATA, w->tensors[i].name) < 0)) {
            if (i) text_add_bytes(t, ",", 1);
            add_metadata_object(w);
            has_metadata = true;
            if (i < w->n_tensors) text_add_bytes(t, ",", 1);
        } else if (i && i < w->n_tensors) {
            text_add_bytes(t, ",", 1);
        }
        if (i < w->n_tensors) add_tensor_object(t, &w->tensors[i]);
    }
    text_add_bytes(t, "}", 1);
    while (t->used % 8 && !t->failed)
        text_add_bytes(t, " ", 1);
    REQUIRE(!t->failed, NOMEM, "safetensors writer: no memory for the header");
    REQUIRE(t->used <= ST_MAX_HEADER, ARG,
            "the header would have %zu bytes, at most %d are allowed", t->used, ST_MAX_HEADER);
    return DDPM_OK;
}

static ddpm_status lay_out(st_writer *w, uint64_t *data_bytes)
{
    if (w->n_tensors > 1) qsort(w->tensors, (size_t)w->n_tensors, sizeof *w->tensors, by_name);
    uint64_t at = 0;
    for (int i = 0; i < w->n_tensors; i++) {
        st_tensor *t = &w->tensors[i];
        REQUIRE(i == 0 || strcmp(t[-1].name, t->name) != 0, ARG, "tensor '%s' is declared twice",
                t->name);
        t->offset = at;
        REQUIRE(!__builtin_add_overflow(at, t->bytes, &at) && at <= INT64_MAX - ST_MAX_HEADER - 8,
                ARG, "tensor '%s': the file's size overflows", t->name);
        TRY(add_pair(w, ST_HASH_PREFIX, t->name, NULL, i));
    }
    TRY(add_pair(w, ST_SELF_HASH, "", NULL, -1));
    qsort(w->pairs, (size_t)w->n_pairs, sizeof *w->pairs, by_key);
    for (int i = 1; i < w->n_pairs; i++)
        REQUIRE(strcmp(w->pairs[i - 1].key, w->pairs[i].key) != 0, ARG,
                "metadata '%s' is declared twice", w->pairs[i].key);
    *data_bytes = at;
    return DDPM_OK;
}

/* ---- data ---- */

/* Closes the books of every tensor that is complete, empty ones included. */
static void settle(st_writer *w)
{
    while (w->current < w->n_tensors && w->done == w->tensors[w->current].bytes) {
        st_hash_print(XXH3_128bits_digest(w->state), w->hashes[w->current]);
        XXH3_128bits_reset(w->state);
        w->current++;
        w->done = 0;
    }
}

ddpm_status st_begin(st_writer *w, const char *path)
{
    REQUIRE(!w->file, BUG, "%s: st_begin a second time", path);
    uint64_t data_bytes = 0;
    TRY(lay_out(w, &data_bytes));
    TRY(build_header(w));
    for (int i = 0; i < w->n_tensors; i++)
        w->tensors[i].offset += 8 + w->header.used;
    w->hashes = calloc((size_t)w->n_tensors + 1, sizeof *w->hashes);
    w->state = XXH3_createState();
    REQUIRE(w->hashes && w->state, NOMEM, "%s: no memory for hashes", path);
    XXH3_128bits_reset(w->state);

    const uint64_t length = w->header.used;
    TRY(commit_begin(path, 8 + length + data_bytes, &w->file));
    TRY(commit_write(w->file, &length, sizeof length));
    TRY(commit_write(w->file, w->header.data, w->header.used));
    settle(w);
    return DDPM_OK;
}

const st_tensor *st_writer_at(const st_writer *w, int i)
{
    return i >= 0 && i < w->n_tensors ? &w->tensors[i] : NULL;
}

int st_writer_count(const st_writer *w)
{
    return w->n_tensors;
}

ddpm_status st_put(st_writer *w, const void *data, uint64_t bytes)
{
    REQUIRE(w->file, BUG, "st_put before st_begin");
    if (bytes == 0) return DDPM_OK;
    REQUIRE(w->current < w->n_tensors, BUG, "%llu bytes beyond the last tensor",
            (unsigned long long)bytes);
    const st_tensor *t = &w->tensors[w->current];
    REQUIRE(bytes <= t->bytes - w->done, BUG, "tensor '%s' has %llu bytes; %llu came after %llu",
            t->name, (unsigned long long)t->bytes, (unsigned long long)bytes,
            (unsigned long long)w->done);
    TRY(commit_write(w->file, data, (size_t)bytes));
    XXH3_128bits_update(w->state, data, (size_t)bytes);
    w->done += bytes;
    settle(w);
    return DDPM_OK;
}

/* ---- the end ---- */

static void patch_hashes(st_writer *w)
{
    size_t self_at = 0;
    for (int i = 0; i < w->n_pairs; i++) {
        const write_pair *p = &w->pairs[i];
        if (p->value) continue;
        if (p->tensor < 0)
            self_at = p->digits_at;
        else
            memcpy(w->header.data + p->digits_at, w->hashes[p->tensor], ST_HASH_DIGITS);
    }
    st_hash_print(XXH3_128bits(w->header.data, w->header.used), w->self_hash);
    memcpy(w->header.data + self_at, w->self_hash, ST_HASH_DIGITS);
}

/* The disk must give back a container with the header's hash that we computed, and every hash in it
 * must hold. */
static ddpm_status verify_temp(const char *temp_path, void *user)
{
    const st_writer *w = user;
    st_file *f;
    TRY(st_open(temp_path, &f));
    const char *self = st_metadata(f, ST_SELF_HASH);
    ddpm_status s =
        self && strcmp(self, w->self_hash) == 0
            ? st_verify(f)
            : FAIL(IO, "%s: the disk gave back another header than was written", temp_path);
    st_close(f);
    return s;
}

ddpm_status st_finish(st_writer *w)
{
    ddpm_status s = DDPM_OK;
    if (!w->file) FAIL_GOTO(end, BUG, "st_finish before st_begin");
    if (w->current < w->n_tensors)
        FAIL_GOTO(end, BUG, "tensor '%s' has %llu of %llu bytes", w->tensors[w->current].name,
                  (unsigned long long)w->done, (unsigned long long)w->tensors[w->current].bytes);
    patch_hashes(w);
    TRY_GOTO(end, commit_write_at(w->file, 8, w->header.data, w->header.used));
    commit *file = w->file;
    w->file = NULL; /* commit_finish frees it in every case */
    s = commit_finish(file, verify_temp, w);
    /* A file that does not read back as written is the disk's fault, whatever the parser found in
     * it. */
    if (s == DDPM_FORMAT)
        s = status_context(DDPM_IO, "the new file does not read back as it was written");
end:
    st_writer_abandon(w);
    return s;
}

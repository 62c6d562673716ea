/* safetensors_json.c - the header of a container: JSON text from outside -> checked records.
 *
 * The header's grammar has three levels and no freedom, so each level is one loop and nothing
 * recurses: depth cannot be exhausted, and a value of the wrong kind ends the parse where it
 * begins. One pass, then sorts by name and by offset: O(bytes + n log n). Strings are unescaped in
 * place, which never lengthens them. A general JSON library was rejected: it takes duplicate keys,
 * floats for integers and unbounded depth, and each of these has to be refused here with its place.
 */
#include "safetensors_header.h"

#include "checked.h"
#include "fail.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *text;
    size_t at, bytes;
    st_header *out;
    bool has_metadata;
    uint64_t data_at, data_bytes;
} cursor;

/* Bytes are told from the start of the file, as a hex dump shows them. */
#define BAD(c, ...) bad_header((c)->at, __VA_ARGS__)

static ddpm_status bad_header(size_t at, const char *what)
{
    return FAIL(FORMAT, "header, byte %zu: %s", at + 8, what);
}

static void skip_space(cursor *c)
{
    for (; c->at < c->bytes; c->at++) {
        const char byte = c->text[c->at];
        if (byte != ' ' && byte != '\t' && byte != '\r' && byte != '\n') return;
    }
}

static bool accept(cursor *c, char wanted)
{
    skip_space(c);
    if (c->at >= c->bytes || c->text[c->at] != wanted) return false;
    c->at++;
    return true;
}

/* Four hex digits at p, or -1. */
static int32_t hex4(const char *p)
{
    int32_t v = 0;
    for (int i = 0; i < 4; i++) {
        const char d = p[i];
        if (d >= '0' && d <= '9')
            v = v << 4 | (d - '0');
        else if ((d | 32) >= 'a' && (d | 32) <= 'f')
            v = v << 4 | ((d | 32) - 'a' + 10);
        else
            return -1;
    }
    return v;
}

static size_t put_utf8(char *dst, uint32_t code)
{
    if (code < 0x80) {
        dst[0] = (char)code;
        return 1;
    }
    const size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6)
        dst[i] = (char)(0x80 | (code & 0x3F));
    dst[0] = (char)((0xF00 >> n & 0xFF) | code);
    return n;
}

/* "\uXXXX", or a surrogate pair of two; c->at stands behind the 'u'. */
static ddpm_status read_unicode(cursor *c, char *dst, size_t *used)
{
    const int32_t high = c->bytes - c->at >= 4 ? hex4(c->text + c->at) : -1;
    if (high < 0) return BAD(c, "\\u needs four hex digits");
    uint32_t code = (uint32_t)high;
    if (code == 0) return BAD(c, "a NUL inside a string");
    c->at += 4;
    if (code >= 0xDC00 && code <= 0xDFFF) return BAD(c, "a lone low surrogate");
    if (code >= 0xD800 && code <= 0xDBFF) {
        const char *p = c->text + c->at;
        const int32_t low = c->bytes - c->at >= 6 && p[0] == '\\' && p[1] == 'u' ? hex4(p + 2) : -1;
        if (low < 0xDC00 || low > 0xDFFF) return BAD(c, "a lone high surrogate");
        c->at += 6;
        code = 0x10000 + ((code - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
    }
    *used += put_utf8(dst + *used, code);
    return DDPM_OK;
}

static ddpm_status read_escape(cursor *c, char *dst, size_t *used)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (++c->at >= c->bytes) return BAD(c, "the string does not end");
    const char e = c->text[c->at++];
    if (e == 'u') return read_unicode(c, dst, used);
    const char *known = e ? strchr(from, e) : NULL;
    if (!known) return BAD(c, "an escape that JSON does not have");
    dst[(*used)++] = to[known - from];
    return DDPM_OK;
}

/* How many bytes from c->at on stand for themselves: printable ASCII but for quote and backslash. */
static size_t plain_run(const cursor *c)
{
    size_t at = c->at;
    while (at < c->bytes && (unsigned char)(c->text[at] - ' ') < 0x5F && c->text[at] != '"' && c->text[at] != '\\')
        at++;
    return at - c->at;
}

/* A string of at most `limit` bytes; *out points into the text, NUL-terminated. */
static ddpm_status read_string(cursor *c, size_t limit, char **out)
{
    if (!accept(c, '"')) return BAD(c, "a string is expected");
    char *dst = c->text + c->at;
    size_t used = 0;
    while (c->at < c->bytes && c->text[c->at] != '"') {
        const unsigned char byte = (unsigned char)c->text[c->at];
        if (byte == '\\') {
            TRY(read_escape(c, dst, &used));
            continue;
        }
        if (byte < 0x20) return BAD(c, "a control character inside a string");
        size_t n = plain_run(c);
        if (n == 0) n = utf8_step(c->text + c->at, c->bytes - c->at);
        if (n == 0) return BAD(c, "not valid UTF-8");
        if (dst + used != c->text + c->at) memmove(dst + used, c->text + c->at, n);
        used += n;
        c->at += n;
    }
    if (c->at >= c->bytes) return BAD(c, "the string does not end");
    if (used > limit) return BAD(c, "a name or key that is too long");
    c->at++;
    dst[used] = '\0'; /* at the closing quote or before it */
    *out = dst;
    return DDPM_OK;
}

/* A plain non-negative integer below 2^63: no sign, fraction, exponent or leading zero. */
static ddpm_status read_size(cursor *c, int64_t *out)
{
    skip_space(c);
    uint64_t v = 0;
    const size_t begin = c->at;
    for (; c->at < c->bytes && c->text[c->at] >= '0' && c->text[c->at] <= '9'; c->at++) {
        if (__builtin_mul_overflow(v, 10u, &v) ||
            __builtin_add_overflow(v, (uint64_t)(c->text[c->at] - '0'), &v) || v > INT64_MAX)
            return BAD(c, "a number beyond 2^63");
    }
    if (c->at == begin) return BAD(c, "a non-negative integer is expected");
    if (c->text[begin] == '0' && c->at - begin > 1) return BAD(c, "a number with a leading zero");
    if (c->at < c->bytes && strchr(".eE", c->text[c->at]) && c->text[c->at])
        return BAD(c, "an integer is expected, not a fraction");
    *out = (int64_t)v;
    return DDPM_OK;
}

/* [n, n, ...], at most `room` of them. */
static ddpm_status read_sizes(cursor *c, int room, int64_t *out, int *n)
{
    *n = 0;
    if (!accept(c, '[')) return BAD(c, "a list of integers is expected");
    if (accept(c, ']')) return DDPM_OK;
    do {
        if (*n == room) return BAD(c, "too many numbers in a list");
        TRY(read_size(c, &out[(*n)++]));
    } while (accept(c, ','));
    if (!accept(c, ']')) return BAD(c, "',' or ']' is expected");
    return DDPM_OK;
}

static ddpm_status read_dtype(cursor *c, st_dtype *out)
{
    char *name;
    TRY(read_string(c, ST_MAX_NAME, &name));
    for (st_dtype d = ST_BOOL; d <= ST_U64; d++) {
        if (strcmp(name, st_dtype_name(d)) != 0) continue;
        *out = d;
        return DDPM_OK;
    }
    return FAIL(FORMAT, "header, byte %zu: unknown dtype '%.20s'", (size_t)(name - c->text) + 8,
                name);
}

/* One more place at the end of an array that grows by doubling up to `limit`. */
static ddpm_status grow(void *array, int n, int *room, int limit, size_t unit, const char *what)
{
    REQUIRE(n < limit, FORMAT, "header: more than %d %s", limit, what);
    if (n < *room) return DDPM_OK;
    const int wanted = *room == 0 ? 64 : *room * 2;
    void *old;
    memcpy(&old, array, sizeof old);
    void *new = realloc(old, (size_t)wanted * unit);
    REQUIRE(new, NOMEM, "header: %zu bytes for %s", (size_t)wanted * unit, what);
    memcpy(array, &new, sizeof new);
    *room = wanted;
    return DDPM_OK;
}

/* The three fields of a tensor, each once, in any order; c->at stands behind the name. */
static ddpm_status read_fields(cursor *c, st_tensor *t)
{
    enum { DTYPE = 1, SHAPE = 2, RANGE = 4 };
    unsigned seen = 0;
    int64_t range[2] = {0};
    if (!accept(c, '{')) return BAD(c, "'{' is expected");
    do {
        char *field;
        TRY(read_string(c, ST_MAX_NAME, &field));
        const unsigned bit = strcmp(field, "dtype") == 0          ? DTYPE
                             : strcmp(field, "shape") == 0        ? SHAPE
                             : strcmp(field, "data_offsets") == 0 ? RANGE
                                                                  : 0;
        if (bit == 0) return BAD(c, "a field other than dtype, shape and data_offsets");
        if (seen & bit) return BAD(c, "a field that stands twice");
        seen |= bit;
        if (!accept(c, ':')) return BAD(c, "':' is expected");
        if (bit == DTYPE) TRY(read_dtype(c, &t->dtype));
        if (bit == SHAPE) TRY(read_sizes(c, ST_MAX_RANK, t->shape, &t->rank));
        if (bit == RANGE) {
            int n;
            TRY(read_sizes(c, 2, range, &n));
            if (n != 2) return BAD(c, "data_offsets needs two numbers");
        }
    } while (accept(c, ','));
    if (!accept(c, '}')) return BAD(c, "',' or '}' is expected");
    if (seen != (DTYPE | SHAPE | RANGE))
        return BAD(c, "a tensor without dtype, shape or data_offsets");

    size_t bytes;
    if (!checked_product(t->shape, t->rank, st_dtype_size(t->dtype), &bytes))
        return BAD(c, "a shape whose size overflows");
    if (range[0] > range[1] || (uint64_t)range[1] > c->data_bytes)
        return BAD(c, "data_offsets that lie outside the file");
    if ((uint64_t)(range[1] - range[0]) != bytes)
        return BAD(c, "data_offsets that disagree with the shape");
    t->offset = c->data_at + (uint64_t)range[0];
    t->bytes = bytes;
    return DDPM_OK;
}

static ddpm_status read_tensor(cursor *c, const char *name)
{
    st_header *h = c->out;
    if (!*name) return BAD(c, "a tensor without a name");
    if (strlen(name) > ST_MAX_NAME) return BAD(c, "a name of more than 512 bytes");
    TRY(grow(&h->tensors, h->n_tensors, &h->tensor_room, ST_MAX_TENSORS, sizeof *h->tensors,
             "tensors"));
    st_tensor t = {.name = name};
    TRY(read_fields(c, &t));
    h->tensors[h->n_tensors++] = t;
    return DDPM_OK;
}

static ddpm_status read_metadata(cursor *c)
{
    st_header *h = c->out;
    if (c->has_metadata) return BAD(c, "__metadata__ stands twice");
    c->has_metadata = true;
    if (!accept(c, '{')) return BAD(c, "__metadata__ must be an object of strings");
    if (accept(c, '}')) return DDPM_OK;
    do {
        char *key, *value;
        TRY(grow(&h->pairs, h->n_pairs, &h->pair_room, ST_MAX_PAIRS, sizeof *h->pairs,
                 "metadata keys"));
        TRY(read_string(c, ST_MAX_KEY, &key));
        if (!accept(c, ':')) return BAD(c, "':' is expected");
        skip_space(c);
        const size_t begin = c->at + 1;
        TRY(read_string(c, ST_MAX_HEADER, &value));
        /* The digits must stand there as they are, since the hash is taken with zeros in their
         * place. */
        if (strcmp(key, ST_SELF_HASH) == 0) {
            if (c->at - 1 - begin != ST_HASH_DIGITS || strlen(value) != ST_HASH_DIGITS)
                return BAD(c, "ddpm.header must be 32 hex digits");
            h->self_hash_at = begin;
        }
        h->pairs[h->n_pairs++] = (st_pair){.key = key, .value = value};
    } while (accept(c, ','));
    if (!accept(c, '}')) return BAD(c, "',' or '}' is expected");
    return DDPM_OK;
}

static ddpm_status read_header(cursor *c)
{
    if (c->bytes == 0 || c->text[0] != '{') return BAD(c, "'{' is expected");
    c->at = 1;
    if (!accept(c, '}')) {
        do {
            char *name;
            TRY(read_string(c, ST_MAX_KEY, &name));
            if (!accept(c, ':')) return BAD(c, "':' is expected");
            TRY(strcmp(name, ST_METADATA) == 0 ? read_metadata(c) : read_tensor(c, name));
        } while (accept(c, ','));
        if (!accept(c, '}')) return BAD(c, "',' or '}' is expected");
    }
    for (; c->at < c->bytes; c->at++)
        if (c->text[c->at] != ' ') return BAD(c, "only spaces may follow the header's '}'");
    return DDPM_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const st_pair *)a)->key, ((const st_pair *)b)->key);
}

static int by_offset(const void *a, const void *b)
{
    const st_tensor *x = *(const st_tensor *const *)a, *y = *(const st_tensor *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes
               ? -1
               : x->bytes > y->bytes; /* empty ones before the one that begins there */
}

static ddpm_status check_names(const cursor *c)
{
    const st_header *h = c->out;
    for (int i = 1; i < h->n_tensors; i++)
        if (strcmp(h->tensors[i - 1].name, h->tensors[i].name) == 0)
            return FAIL(FORMAT, "header, byte %zu: tensor '%s' stands twice",
                        (size_t)(h->tensors[i].name - c->text) + 8, h->tensors[i].name);
    for (int i = 1; i < h->n_pairs; i++)
        if (strcmp(h->pairs[i - 1].key, h->pairs[i].key) == 0)
            return FAIL(FORMAT, "header, byte %zu: metadata key '%s' stands twice",
                        (size_t)(h->pairs[i].key - c->text) + 8, h->pairs[i].key);
    return DDPM_OK;
}

/* The tensors must tile the data: no overlap, no hole, nothing behind the last. */
static ddpm_status check_layout(const cursor *c)
{
    const st_header *h = c->out;
    const st_tensor **order = malloc((size_t)(h->n_tensors + 1) * sizeof *order);
    REQUIRE(order, NOMEM, "header: %zu bytes", (size_t)(h->n_tensors + 1) * sizeof *order);
    for (int i = 0; i < h->n_tensors; i++)
        order[i] = &h->tensors[i];
    qsort(order, (size_t)h->n_tensors, sizeof *order, by_offset);

    ddpm_status s = DDPM_OK;
    uint64_t end = c->data_at;
    for (int i = 0; i < h->n_tensors && !s; i++) {
        const st_tensor *t = order[i];
        if (t->offset != end)
            s = FAIL(FORMAT,
                     "header: %s before tensor '%s': it begins at byte %llu, the one before ends "
                     "at %llu",
                     t->offset < end ? "an overlap" : "a hole", t->name,
                     (unsigned long long)t->offset, (unsigned long long)end);
        end = t->offset + t->bytes;
    }
    const uint64_t file_end = c->data_at + c->data_bytes;
    if (!s && end != file_end)
        s = FAIL(FORMAT, "%llu bytes follow the last tensor, which ends at byte %llu",
                 (unsigned long long)(file_end - end), (unsigned long long)end);
    free(order);
    return s;
}

static bool is_hash(const char *value)
{
    return value && strlen(value) == ST_HASH_DIGITS &&
           strspn(value, "0123456789abcdef") == ST_HASH_DIGITS;
}

/* All hashes or none: with one key renamed by a flipped bit, the rest still tells that it is
 * missing. */
static ddpm_status check_hashes(st_header *h)
{
    int n_hashes = 0;
    for (int i = 0; i < h->n_pairs; i++)
        n_hashes += strncmp(h->pairs[i].key, ST_HASH_PREFIX, sizeof ST_HASH_PREFIX - 1) == 0;
    const char *self = st_header_find(h, ST_SELF_HASH);
    if (n_hashes == 0 && !self) return DDPM_OK;

    REQUIRE(is_hash(self), FORMAT,
            "header: metadata has hashes, but '%s' is missing or not 32 hex digits", ST_SELF_HASH);
    REQUIRE(n_hashes == h->n_tensors, FORMAT, "header: %d hashes for %d tensors", n_hashes,
            h->n_tensors);
    for (int i = 0; i < h->n_tensors; i++) {
        char key[ST_MAX_KEY] = ST_HASH_PREFIX;
        strcat(key, h->tensors[i].name);
        REQUIRE(is_hash(st_header_find(h, key)), FORMAT,
                "header: the hash of tensor '%s' is missing or not "
                "32 hex digits",
                h->tensors[i].name);
    }
    h->has_hashes = true;
    return DDPM_OK;
}

ddpm_status st_header_parse(char *text, size_t bytes, uint64_t data_bytes, st_header *out)
{
    ddpm_status s = DDPM_OK;
    *out = (st_header){.text = text};
    cursor c = {
        .text = text, .bytes = bytes, .out = out, .data_at = 8 + bytes, .data_bytes = data_bytes};

    TRY_GOTO(fail, read_header(&c));
    if (out->n_tensors > 1)
        qsort(out->tensors, (size_t)out->n_tensors, sizeof *out->tensors, by_name);
    if (out->n_pairs > 1) qsort(out->pairs, (size_t)out->n_pairs, sizeof *out->pairs, by_key);
    TRY_GOTO(fail, check_names(&c));
    TRY_GOTO(fail, check_layout(&c));
    TRY_GOTO(fail, check_hashes(out));
    return DDPM_OK;
fail:
    st_header_release(out);
    return s;
}

void st_header_release(st_header *h)
{
    free(h->text);
    free(h->tensors);
    free(h->pairs);
    *h = (st_header){0};
}

const char *st_header_find(const st_header *h, const char *key)
{
    if (h->n_pairs == 0) return NULL;
    const st_pair wanted = {.key = key};
    const st_pair *p = bsearch(&wanted, h->pairs, (size_t)h->n_pairs, sizeof *h->pairs, by_key);
    return p ? p->value : NULL;
}

/* safetensors_read.c - opening, reading and verifying a container.
 *
 * The header is read and checked whole before a tensor can be named; data is read by pread, so that
 * a file cut short by another process is an error and not SIGBUS. Conversion goes through a 16 KiB
 * buffer on the stack. What is not a container is named by its first bytes: those who bring a
 * PyTorch file learn what to do with it. */
#include "safetensors.h"

#include "fail.h"
#include "safetensors_header.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the format is little-endian and so are we");

enum { VERIFY_CHUNK = 1 << 20, CONVERT_CHUNK = 16 << 10 };

struct st_file {
    int fd;
    char *path;
    size_t header_bytes; /* behind the 8 bytes that hold this number */
    uint64_t file_bytes;
    st_header header;
};

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},   [ST_I8] = {"I8", 1},     [ST_I16] = {"I16", 2},
    [ST_U16] = {"U16", 2},   [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2}, [ST_I32] = {"I32", 4},
    [ST_U32] = {"U32", 4},   [ST_F32] = {"F32", 4}, [ST_F64] = {"F64", 8},   [ST_I64] = {"I64", 8},
    [ST_U64] = {"U64", 8},
};

size_t st_dtype_size(st_dtype d)
{
    return dtypes[d].size;
}

const char *st_dtype_name(st_dtype d)
{
    return dtypes[d].name;
}

static ddpm_status read_at(const st_file *f, uint64_t offset, void *dst, size_t bytes)
{
    char *p = dst;
    while (bytes > 0) {
        const ssize_t n = pread(f->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return FAIL(IO, "%s: cannot read at byte %llu: %m", f->path,
                        (unsigned long long)offset);
        if (n == 0)
            return FAIL(FORMAT, "%s: ends at byte %llu; it was cut short while being read", f->path,
                        (unsigned long long)offset);
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return DDPM_OK;
}

/* What a file that is no container is, by its first bytes; NULL when unknown. `length` is what a
 * container would have as its header's size: a pickle's second byte could also belong to a small
 * one. */
static const char *foreign_kind(const unsigned char *b, size_t n, uint64_t length)
{
    if (n >= 4 && memcmp(b, "PK\3\4", 4) == 0)
        return "a zip archive, such as PyTorch's .pt, .pth and .bin or numpy's .npz";
    if (n >= 2 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5 && (n < 8 || length > ST_MAX_HEADER))
        return "a Python pickle, such as PyTorch's older .pt, .pth and .ckpt";
    if (n >= 8 && memcmp(b, "\x89HDF\r\n\x1a\n", 8) == 0) return "an HDF5 file";
    if (n >= 6 && memcmp(b, "\x93NUMPY", 6) == 0) return "a numpy array";
    if (n >= 8 && memcmp(b, "\x89PNG\r\n\x1a\n", 8) == 0) return "a PNG image";
    return NULL;
}

/* Opens without waiting (a FIFO would block) and without believing that it is a file. */
static ddpm_status open_regular(st_file *f)
{
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0 && (errno == ENAMETOOLONG || errno == ENOTDIR))
        return FAIL(NOINPUT, "%s: cannot open: %m", f->path);
    if (f->fd < 0) return FAIL_ERRNO("%s: cannot open: %m", f->path);
    struct stat st;
    if (fstat(f->fd, &st) != 0) return FAIL(IO, "%s: cannot look at the file: %m", f->path);
    REQUIRE(S_ISREG(st.st_mode), FORMAT, "%s: not a regular file", f->path);
    f->file_bytes = (uint64_t)st.st_size;
    return DDPM_OK;
}

static ddpm_status read_header(st_file *f)
{
    unsigned char start[8] = {0};
    const size_t n = f->file_bytes < sizeof start ? (size_t)f->file_bytes : sizeof start;
    TRY(read_at(f, 0, start, n));
    uint64_t length;
    memcpy(&length, start, sizeof length);
    const char *kind = foreign_kind(start, n, length);
    REQUIRE(!kind, FORMAT,
            "%s: this is %s, not safetensors; only safetensors is read: convert it with Python's "
            "safetensors package (save_file)",
            f->path, kind);
    REQUIRE(n == sizeof start, FORMAT, "%s: %zu bytes are too few for a safetensors file", f->path,
            n);
    REQUIRE(length <= ST_MAX_HEADER, FORMAT,
            "%s: a header of %llu bytes is announced, %d are allowed; not a "
            "safetensors file",
            f->path, (unsigned long long)length, ST_MAX_HEADER);
    REQUIRE(length <= f->file_bytes - 8, FORMAT,
            "%s: a header of %llu bytes is announced, but only %llu follow; "
            "the file was cut short, or is not safetensors",
            f->path, (unsigned long long)length, (unsigned long long)(f->file_bytes - 8));

    f->header_bytes = (size_t)length;
    char *text = malloc(f->header_bytes + 1);
    REQUIRE(text, NOMEM, "%s: %zu bytes for the header", f->path, f->header_bytes + 1);
    const ddpm_status s = read_at(f, 8, text, f->header_bytes);
    if (s) {
        free(text);
        return s;
    }
    text[f->header_bytes] = '\0';
    const ddpm_status parsed =
        st_header_parse(text, f->header_bytes, f->file_bytes - 8 - length, &f->header);
    return parsed ? status_context(parsed, "%s", f->path) : DDPM_OK;
}

ddpm_status st_open(const char *path, st_file **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    st_file *f = calloc(1, sizeof *f);
    REQUIRE(f, NOMEM, "%s: %zu bytes", path, sizeof *f);
    f->fd = -1;
    f->path = strdup(path);
    if (!f->path) FAIL_GOTO(fail, NOMEM, "%s: no memory for the name", path);

    TRY_GOTO(fail, open_regular(f));
    TRY_GOTO(fail, read_header(f));
    *out = f;
    return DDPM_OK;
fail:
    st_close(f);
    return s;
}

void st_close(st_file *f)
{
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    st_header_release(&f->header);
    free(f->path);
    free(f);
}

const char *st_path(const st_file *f)
{
    return f->path;
}

int st_count(const st_file *f)
{
    return f->header.n_tensors;
}

const st_tensor *st_at(const st_file *f, int i)
{
    return i >= 0 && i < f->header.n_tensors ? &f->header.tensors[i] : NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

const st_tensor *st_find(const st_file *f, const char *name)
{
    const st_tensor wanted = {.name = name};
    if (f->header.n_tensors == 0) return NULL;
    return bsearch(&wanted, f->header.tensors, (size_t)f->header.n_tensors, sizeof wanted, by_name);
}

const char *st_metadata(const st_file *f, const char *key)
{
    return st_header_find(&f->header, key);
}

int st_metadata_count(const st_file *f)
{
    return f->header.n_pairs;
}

void st_metadata_at(const st_file *f, int i, const char **key, const char **value)
{
    *key = f->header.pairs[i].key;
    *value = f->header.pairs[i].value;
}

bool st_has_hashes(const st_file *f)
{
    return f->header.has_hashes;
}

ddpm_status st_read(st_file *f, const st_tensor *t, uint64_t begin, void *dst, uint64_t bytes)
{
    REQUIRE(begin <= t->bytes && bytes <= t->bytes - begin, BUG,
            "%s: tensor '%s' has %llu bytes, %llu from %llu on "
            "were asked for",
            f->path, t->name, (unsigned long long)t->bytes, (unsigned long long)bytes,
            (unsigned long long)begin);
    return read_at(f, t->offset + begin, dst, (size_t)bytes);
}

/* ---- conversion ---- */

static double widen_f16(uint16_t h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    if (exponent == 31) return fraction ? __builtin_nan("") : sign * __builtin_inf();
    if (exponent == 0) return sign * fraction * 0x1p-24;
    /* 2^(exponent - 15), built as a double's bits. */
    const uint64_t bits = (uint64_t)(exponent - 15 + 1023) << 52 | (uint64_t)fraction << 42;
    double v;
    memcpy(&v, &bits, sizeof v);
    return sign * v;
}

static float widen_bf16(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Value i of a block of one kind. Each of these is exact in a double. */
static double as_double(st_dtype d, const void *p, size_t i)
{
    switch (d) {
    case ST_U8:
        return ((const uint8_t *)p)[i];
    case ST_I8:
        return ((const int8_t *)p)[i];
    case ST_I16:
        return ((const int16_t *)p)[i];
    case ST_U16:
        return ((const uint16_t *)p)[i];
    case ST_I32:
        return ((const int32_t *)p)[i];
    case ST_U32:
        return ((const uint32_t *)p)[i];
    case ST_F16:
        return widen_f16(((const uint16_t *)p)[i]);
    case ST_BF16:
        return widen_bf16(((const uint16_t *)p)[i]);
    case ST_F32:
        return ((const float *)p)[i];
    default:
        return ((const double *)p)[i];
    }
}

static int64_t as_i64(st_dtype d, const void *p, size_t i)
{
    return d == ST_BOOL  ? ((const uint8_t *)p)[i] != 0
           : d == ST_I64 ? ((const int64_t *)p)[i]
                         : (int64_t)as_double(d, p, i);
}

typedef union {
    unsigned char bytes[CONVERT_CHUNK];
    double align;
} chunk;

/* `kinds` has a bit for each dtype that fits into the target without loss. */
static ddpm_status check_kind(const st_file *f, const st_tensor *t, unsigned kinds,
                              const char *target)
{
    REQUIRE(kinds >> t->dtype & 1, FORMAT,
            "%s: tensor '%s' is %s, which does not fit into %s without loss", f->path, t->name,
            st_dtype_name(t->dtype), target);
    return DDPM_OK;
}

/* Reads the tensor chunk by chunk and leaves each to STATEMENT, with `i` the value's number in the
 * tensor, `k` its number in the chunk. */
#define CONVERT(f, t, statement)                                                                   \
    do {                                                                                           \
        chunk raw;                                                                                 \
        const size_t unit = st_dtype_size((t)->dtype);                                             \
        size_t i = 0;                                                                              \
        for (uint64_t at = 0; at < (t)->bytes;) {                                                  \
            const uint64_t left = (t)->bytes - at;                                                 \
            const size_t take = left < sizeof raw ? (size_t)left : sizeof raw;                     \
            TRY(st_read(f, t, at, raw.bytes, take));                                               \
            for (size_t k = 0; k < take / unit; k++, i++)                                          \
                statement;                                                                         \
            at += take;                                                                            \
        }                                                                                          \
    } while (0)

enum {
    SMALL_INTS = 1u << ST_U8 | 1u << ST_I8 | 1u << ST_I16 | 1u << ST_U16,
    INTS_32 = SMALL_INTS | 1u << ST_I32 | 1u << ST_U32,
    FLOATS_32 = 1u << ST_F16 | 1u << ST_BF16 | 1u << ST_F32
};

ddpm_status st_read_f32(st_file *f, const st_tensor *t, float *dst)
{
    TRY(check_kind(f, t, FLOATS_32 | SMALL_INTS, "F32"));
    if (t->dtype == ST_F32) return st_read(f, t, 0, dst, t->bytes);
    CONVERT(f, t, dst[i] = (float)as_double(t->dtype, raw.bytes, k));
    return DDPM_OK;
}

ddpm_status st_read_f64(st_file *f, const st_tensor *t, double *dst)
{
    TRY(check_kind(f, t, FLOATS_32 | INTS_32 | 1u << ST_F64, "F64"));
    if (t->dtype == ST_F64) return st_read(f, t, 0, dst, t->bytes);
    CONVERT(f, t, dst[i] = as_double(t->dtype, raw.bytes, k));
    return DDPM_OK;
}

ddpm_status st_read_i64(st_file *f, const st_tensor *t, int64_t *dst)
{
    TRY(check_kind(f, t, INTS_32 | 1u << ST_BOOL | 1u << ST_I64, "I64"));
    if (t->dtype == ST_I64) return st_read(f, t, 0, dst, t->bytes);
    CONVERT(f, t, dst[i] = as_i64(t->dtype, raw.bytes, k));
    return DDPM_OK;
}

/* ---- verification ---- */

void st_hash_print(XXH128_hash_t hash, char hex[ST_HASH_DIGITS + 1])
{
    static const char digits[] = "0123456789abcdef";
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, hash);
    for (int i = 0; i < ST_HASH_DIGITS / 2; i++) {
        hex[2 * i] = digits[c.digest[i] >> 4];
        hex[2 * i + 1] = digits[c.digest[i] & 15];
    }
    hex[ST_HASH_DIGITS] = '\0';
}

/* XXH3-128 of a range of the file as 32 hex digits and a NUL. */
static ddpm_status hash_range(const st_file *f, XXH3_state_t *state, void *buffer, uint64_t begin,
                              uint64_t bytes, char hex[ST_HASH_DIGITS + 1])
{
    XXH3_128bits_reset(state);
    while (bytes > 0) {
        const size_t take = bytes < VERIFY_CHUNK ? (size_t)bytes : VERIFY_CHUNK;
        TRY(read_at(f, begin, buffer, take));
        XXH3_128bits_update(state, buffer, take);
        begin += take;
        bytes -= take;
    }
    st_hash_print(XXH3_128bits_digest(state), hex);
    return DDPM_OK;
}

/* The header as it stands on disk, its own hash's digits taken as zeros. */
static ddpm_status verify_header(const st_file *f)
{
    char *text = malloc(f->header_bytes);
    REQUIRE(text, NOMEM, "%s: %zu bytes to verify the header", f->path, f->header_bytes);
    const ddpm_status s = read_at(f, 8, text, f->header_bytes);
    char hex[ST_HASH_DIGITS + 1] = "";
    if (!s) {
        memset(text + f->header.self_hash_at, '0', ST_HASH_DIGITS);
        st_hash_print(XXH3_128bits(text, f->header_bytes), hex);
    }
    free(text);
    if (s) return s;
    REQUIRE(strcmp(hex, st_header_find(&f->header, ST_SELF_HASH)) == 0, FORMAT,
            "%s: the header does not have the "
            "hash it states: damaged, or rewritten by another program",
            f->path);
    return DDPM_OK;
}

static ddpm_status verify_tensors(const st_file *f, XXH3_state_t *state, void *buffer)
{
    for (int i = 0; i < f->header.n_tensors; i++) {
        const st_tensor *t = &f->header.tensors[i];
        char key[ST_MAX_KEY] = ST_HASH_PREFIX, hex[ST_HASH_DIGITS + 1];
        strcat(key, t->name);
        TRY(hash_range(f, state, buffer, t->offset, t->bytes, hex));
        REQUIRE(strcmp(hex, st_header_find(&f->header, key)) == 0, FORMAT,
                "%s: tensor '%s' (bytes %llu to %llu) does "
                "not have the hash the header states: the file is damaged",
                f->path, t->name, (unsigned long long)t->offset,
                (unsigned long long)(t->offset + t->bytes));
    }
    return DDPM_OK;
}

ddpm_status st_verify(st_file *f)
{
    if (!f->header.has_hashes) return DDPM_OK;
    TRY(verify_header(f));
    size_t chunk_bytes = 1;
    for (int i = 0; i < f->header.n_tensors; i++)
        if (f->header.tensors[i].bytes > chunk_bytes)
            chunk_bytes = (size_t)f->header.tensors[i].bytes;
    if (chunk_bytes > VERIFY_CHUNK) chunk_bytes = VERIFY_CHUNK;
    XXH3_state_t *state = XXH3_createState();
    void *buffer = malloc(chunk_bytes);
    const ddpm_status s = state && buffer
                              ? verify_tensors(f, state, buffer)
                              : FAIL(NOMEM, "%s: %zu bytes to verify", f->path, chunk_bytes);
    free(buffer);
    XXH3_freeState(state);
    return s;
}

/* npy.c - the small fixed grammar of .npy headers.
 *
 * Job        {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } to and from a struct.
 * Method     the text looks like Python, and is read here by a grammar of three keys; nothing is
 *            evaluated.
 * Rejected   accepting whatever Python's literal syntax allows: object arrays (pickles) hide
 *            there. */
#include "npy.h"

#include "checked.h"
#include "fail.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const DTYPES[] = {"u1", "i1", "i2", "i4", "i8", "u2", "u4", "f4", "f8"};

size_t npy_dtype_bytes(const char *dtype)
{
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (!strcmp(dtype, DTYPES[i])) return (size_t)(dtype[1] - '0');
    return 0;
}

ddpm_status npy_header_bytes(const char *name, const uint8_t *p, size_t bytes, size_t *header)
{
    REQUIRE(bytes >= NPY_PREFIX && !memcmp(p, "\x93NUMPY", 6), FORMAT, "%s: not a .npy array",
            name);
    REQUIRE(p[6] >= 1 && p[6] <= 3 && p[7] == 0, FORMAT, "%s: .npy version %d.%d is unknown", name,
            p[6], p[7]);
    const size_t text = p[6] == 1
                            ? p[8] | (size_t)p[9] << 8
                            : p[8] | (size_t)p[9] << 8 | (size_t)p[10] << 16 | (size_t)p[11] << 24;
    *header = text + (p[6] == 1 ? 10 : 12);
    REQUIRE(*header >= NPY_PREFIX && *header <= NPY_MAX_HEADER, FORMAT,
            "%s: a .npy header of %zu bytes", name, *header);
    return DDPM_OK;
}

/* ---- reading ---- */

typedef struct {
    const char *name;
    const uint8_t *p, *end;
} scanner;

static void skip_spaces(scanner *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n'))
        s->p++;
}

static bool take(scanner *s, const char *word)
{
    skip_spaces(s);
    const size_t n = strlen(word);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n)) return false;
    s->p += n;
    return true;
}

static ddpm_status take_descr(scanner *s, npz_array *out)
{
    skip_spaces(s);
    REQUIRE(s->end - s->p >= 5 && s->p[0] == '\'' && s->p[4] == '\'', FORMAT,
            "%s: only plain number arrays are read, not this dtype", s->name);
    const char order = (char)s->p[1], dtype[3] = {(char)s->p[2], (char)s->p[3], 0};
    const size_t bytes = npy_dtype_bytes(dtype);
    REQUIRE(bytes, FORMAT, "%s: dtype \"%c%s\" is not read (u1 i1 i2 i4 i8 u2 u4 f4 f8 are)",
            s->name, order, dtype);
    REQUIRE(order == '<' || (order == '|' && bytes == 1), FORMAT,
            "%s: dtype \"%c%s\": only little-endian arrays are read", s->name, order, dtype);
    memcpy(out->dtype, dtype, sizeof dtype);
    s->p += 5;
    return DDPM_OK;
}

static ddpm_status take_shape(scanner *s, npz_array *out)
{
    REQUIRE(take(s, "("), FORMAT, "%s: damaged .npy header: no shape", s->name);
    while (!take(s, ")")) {
        REQUIRE(out->rank < 8, FORMAT, "%s: more than 8 dimensions", s->name);
        skip_spaces(s);
        int64_t v = 0;
        int digits = 0;
        while (s->p < s->end && *s->p >= '0' && *s->p <= '9' && digits < 18) {
            v = v * 10 + (*s->p++ - '0');
            digits++;
        }
        REQUIRE(digits, FORMAT, "%s: damaged .npy header: an extent is not a number", s->name);
        out->shape[out->rank++] = v;
        if (!take(s, ",")) {
            REQUIRE(out->rank > 1 && take(s, ")"), FORMAT, "%s: damaged .npy header: shape",
                    s->name);
            break;
        }
    }
    return DDPM_OK;
}

static ddpm_status take_pairs(scanner *s, npz_array *out)
{
    unsigned seen = 0;
    REQUIRE(take(s, "{"), FORMAT, "%s: damaged .npy header", s->name);
    while (!take(s, "}")) {
        unsigned key = 0;
        if (take(s, "'descr':")) {
            key = 1;
            TRY(take_descr(s, out));
        } else if (take(s, "'fortran_order':")) {
            key = 2;
            REQUIRE(!take(s, "True"), FORMAT,
                    "%s: Fortran order; save it with np.ascontiguousarray", s->name);
            REQUIRE(take(s, "False"), FORMAT, "%s: damaged .npy header: fortran_order", s->name);
        } else if (take(s, "'shape':")) {
            key = 4;
            out->rank = 0;
            TRY(take_shape(s, out));
        }
        REQUIRE(key && !(seen & key), FORMAT, "%s: damaged .npy header: keys", s->name);
        seen |= key;
        if (!take(s, ",")) {
            REQUIRE(take(s, "}"), FORMAT, "%s: damaged .npy header", s->name);
            break;
        }
    }
    skip_spaces(s);
    REQUIRE(seen == 7 && s->p == s->end, FORMAT, "%s: damaged .npy header", s->name);
    return DDPM_OK;
}

ddpm_status npy_parse(const char *name, const uint8_t *p, size_t header, npz_array *out)
{
    npz_array a = {.rank = 0};
    scanner s = {.name = name, .p = p + (p[6] == 1 ? 10 : 12), .end = p + header};
    TRY(take_pairs(&s, &a));
    size_t bytes = 0;
    REQUIRE(checked_product(a.shape, a.rank, npy_dtype_bytes(a.dtype), &bytes) &&
                bytes <= INT64_MAX,
            FORMAT, "%s: its extents overflow", name);
    a.bytes = bytes;
    *out = a;
    return DDPM_OK;
}

/* ---- writing ---- */

ddpm_status npy_format(const char *dtype, int rank, const int64_t *shape, char dst[512],
                       size_t *bytes)
{
    const size_t item = npy_dtype_bytes(dtype);
    size_t data = 0;
    REQUIRE(item && rank >= 0 && rank <= 8 && checked_product(shape, rank, item, &data), ARG,
            "npy: dtype %s, rank %d", dtype, rank);
    char *text = dst + 10;
    int n = sprintf(text, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                    item == 1 ? '|' : '<', dtype);
    for (int i = 0; i < rank; i++)
        n += sprintf(text + n, "%s%" PRId64, i ? ", " : "", shape[i]);
    n += sprintf(text + n, "%s), }", rank == 1 ? "," : "");
    const size_t total = ((size_t)n + 10 + 1 + 63) / 64 * 64;
    memset(text + n, ' ', total - 10 - (size_t)n);
    dst[total - 1] = '\n';
    memcpy(dst, "\x93NUMPY\x01\x00", 8);
    dst[8] = (char)((total - 10) & 255);
    dst[9] = (char)((total - 10) >> 8);
    *bytes = total;
    return DDPM_OK;
}

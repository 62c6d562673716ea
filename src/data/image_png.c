/* image_png.c - every byte of a PNG file, proved before the decoder sees it.
 *
 * Job        accept exactly the undamaged PNG files, and say of every other where it is wrong.
 * Method     a walk over the chunks (length, CRC-32, order, count), zlib's inflate of all IDAT
 *            data into exactly the size that the header asks for (zlib compares the Adler-32),
 *            then each row's filter number and, in palette images, each index after undoing the
 *            filters. The decoder is given a plain PNG that is written here from the proved bytes.
 * Cost       one inflate, which the decoder then need not do; the raw rows and the plain file in
 *            memory.
 * Rejected   handing the file on as it came: the decoder ignores CRC and Adler-32, takes stack
 *            memory for a colour where an index is beyond the palette, and has trouble with an
 *            empty IDAT. */
#include "image_checks.h"

#include "fail.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { SIGNATURE = 8, CHUNK = 12, HEADER = 13, STORED_MAX = 65535 };
enum { GREY = 0, RGB = 2, PALETTE = 3, GREY_ALPHA = 4, RGBA = 6 };
#define TYPE(a, b, c, d)                                                                           \
    ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))

typedef struct {
    const uint8_t *file;
    size_t bytes;
    uint32_t width, height;
    int depth, color, samples; /* samples a pixel in the rows */
    bool is_interlaced;
    size_t palette_at, trans_at; /* offsets of the chunks' data; 0: none */
    uint32_t palette, trans;     /* bytes */
    size_t data_at, data_end;    /* from the first IDAT chunk to the end of the last */
    uint8_t *raw;                /* inflated rows, filter numbers included */
    size_t raw_bytes;
} png;

typedef struct {
    uint32_t width, rows;
    size_t row_bytes; /* without the filter number */
} pass;

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* ---- chunks ---- */

static ddpm_status header_check(png *f, size_t at, uint32_t length)
{
    REQUIRE(length == HEADER, FORMAT, "PNG: header of %u bytes at %zu", length, at);
    const uint8_t *p = f->file + at;
    f->width = be32(p);
    f->height = be32(p + 4);
    f->depth = p[8];
    f->color = p[9];
    REQUIRE(f->width && f->height && f->width <= IMAGE_MAX_SIDE && f->height <= IMAGE_MAX_SIDE &&
                (uint64_t)f->width * f->height <= IMAGE_MAX_AREA,
            FORMAT, "PNG: %u x %u pixels; sides are 1 .. %d, the area at most %d", f->height,
            f->width, IMAGE_MAX_SIDE, IMAGE_MAX_AREA);
    const int d = f->depth, c = f->color;
    const bool is_power = d == 1 || d == 2 || d == 4 || d == 8 || d == 16;
    REQUIRE((c == GREY && is_power) || (c == PALETTE && is_power && d <= 8) ||
                ((c == RGB || c == GREY_ALPHA || c == RGBA) && (d == 8 || d == 16)),
            FORMAT, "PNG: color type %d with %d bits", c, d);
    REQUIRE(p[10] == 0 && p[11] == 0 && p[12] <= 1, FORMAT,
            "PNG: compression %d, filter %d, interlace %d are unknown", p[10], p[11], p[12]);
    f->is_interlaced = p[12];
    f->samples = c == RGB ? 3 : c == RGBA ? 4 : c == GREY_ALPHA ? 2 : 1;
    return DDPM_OK;
}

static ddpm_status palette_check(png *f, size_t at, uint32_t length)
{
    REQUIRE(!f->palette_at && !f->trans_at && !f->data_at, FORMAT,
            "PNG: palette out of place at %zu", at);
    REQUIRE(f->color != GREY && f->color != GREY_ALPHA, FORMAT, "PNG: grey image with a palette");
    REQUIRE(length >= 3 && length <= 768 && length % 3 == 0, FORMAT,
            "PNG: palette of %u bytes at %zu", length, at);
    f->palette_at = at;
    f->palette = length;
    return DDPM_OK;
}

static ddpm_status trans_check(png *f, size_t at, uint32_t length)
{
    REQUIRE(!f->trans_at && !f->data_at && (f->color != PALETTE || f->palette_at), FORMAT,
            "PNG: tRNS out of place at %zu", at);
    const bool fits = f->color == PALETTE ? length >= 1 && length <= f->palette / 3
                      : f->color == GREY  ? length == 2
                                          : f->color == RGB && length == 6;
    REQUIRE(fits, FORMAT, "PNG: tRNS of %u bytes at %zu for color type %d", length, at, f->color);
    f->trans_at = at;
    f->trans = length;
    return DDPM_OK;
}

static ddpm_status chunk_check(png *f, uint32_t type, size_t at, uint32_t length)
{
    const bool is_first = at == SIGNATURE + 8;
    REQUIRE(is_first == (type == TYPE('I', 'H', 'D', 'R')), FORMAT,
            "PNG: header out of place at %zu", at - 8);
    switch (type) {
    case TYPE('I', 'H', 'D', 'R'):
        return header_check(f, at, length);
    case TYPE('P', 'L', 'T', 'E'):
        return palette_check(f, at, length);
    case TYPE('t', 'R', 'N', 'S'):
        return trans_check(f, at, length);
    case TYPE('I', 'D', 'A', 'T'):
        REQUIRE(!f->data_at || f->data_end == at - 8, FORMAT, "PNG: data in two places, at %zu",
                at - 8);
        REQUIRE(f->color != PALETTE || f->palette_at, FORMAT, "PNG: palette image without palette");
        if (!f->data_at) f->data_at = at - 8;
        f->data_end = at + length + 4;
        return DDPM_OK;
    case TYPE('I', 'E', 'N', 'D'):
        REQUIRE(length == 0 && at + 4 == f->bytes, FORMAT,
                "PNG: %zu bytes after the end mark at %zu", f->bytes - at - 4, at - 8);
        REQUIRE(f->data_at, FORMAT, "PNG: no image data");
        return DDPM_OK;
    default:
        REQUIRE(type >> 24 & 0x20, FORMAT, "PNG: unknown critical chunk at %zu", at - 8);
        return DDPM_OK;
    }
}

static ddpm_status chunks_walk(png *f)
{
    size_t at = SIGNATURE;
    uint32_t type = 0;
    while (type != TYPE('I', 'E', 'N', 'D')) {
        REQUIRE(f->bytes - at >= CHUNK, FORMAT, "PNG: cut short at %zu: no end mark", f->bytes);
        const uint32_t length = be32(f->file + at);
        type = be32(f->file + at + 4);
        REQUIRE(length <= f->bytes - at - CHUNK, FORMAT,
                "PNG: cut short: chunk of %u bytes at %zu, the file has %zu", length, at, f->bytes);
        for (int i = 0; i < 4; i++) {
            const uint8_t letter = f->file[at + 4 + (size_t)i] & 0xDF;
            REQUIRE(letter >= 'A' && letter <= 'Z', FORMAT, "PNG: damaged chunk type at %zu", at);
        }
        const uint32_t crc = be32(f->file + at + 8 + length);
        REQUIRE(crc32(0, f->file + at + 4, length + 4) == crc, FORMAT,
                "PNG: damaged: CRC of the chunk at %zu is wrong", at);
        TRY(chunk_check(f, type, at + 8, length));
        at += CHUNK + (size_t)length;
    }
    return DDPM_OK;
}

/* ---- rows ---- */

/* The image as up to seven smaller ones; returns how many. */
static int passes_plan(const png *f, pass out[7])
{
    static const uint8_t x0[7] = {0, 4, 0, 2, 0, 1, 0}, dx[7] = {8, 8, 4, 4, 2, 2, 1};
    static const uint8_t y0[7] = {0, 0, 4, 0, 2, 0, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
    const size_t bits = (size_t)f->samples * (size_t)f->depth;
    int n = 0;
    for (int i = 0; i < (f->is_interlaced ? 7 : 1); i++) {
        pass p = {.width = f->width, .rows = f->height};
        if (f->is_interlaced) {
            p.width = f->width > x0[i] ? (f->width - x0[i] + dx[i] - 1) / dx[i] : 0;
            p.rows = f->height > y0[i] ? (f->height - y0[i] + dy[i] - 1) / dy[i] : 0;
        }
        p.row_bytes = (p.width * bits + 7) / 8;
        if (p.width && p.rows) out[n++] = p;
    }
    return n;
}

static ddpm_status inflate_chunks(png *f, z_stream *z)
{
    int code = Z_OK;
    uint8_t beyond; /* where a byte too many would go */
    z->next_out = f->raw;
    z->avail_out = (uInt)f->raw_bytes;
    bool is_full = false;
    for (size_t at = f->data_at; at < f->data_end; at += CHUNK + (size_t)be32(f->file + at)) {
        z->next_in = (Bytef *)(uintptr_t)(f->file + at + 8);
        z->avail_in = be32(f->file + at);
        while (code == Z_OK && z->avail_in) {
            if (!z->avail_out && !is_full) {
                z->next_out = &beyond;
                z->avail_out = 1;
                is_full = true;
            }
            code = inflate(z, Z_NO_FLUSH);
            REQUIRE(code != Z_MEM_ERROR, NOMEM, "PNG: inflate");
            REQUIRE(code == Z_OK || code == Z_STREAM_END, FORMAT, "PNG: damaged data near %zu: %s",
                    at + 8 + be32(f->file + at) - z->avail_in,
                    z->msg ? z->msg : "more than its size");
            REQUIRE(!is_full || z->avail_out, FORMAT, "PNG: data inflates to more than %zu bytes",
                    f->raw_bytes);
        }
        REQUIRE(z->avail_in == 0, FORMAT, "PNG: bytes after the compressed data, near %zu", at);
    }
    REQUIRE(code == Z_STREAM_END && z->total_out == f->raw_bytes, FORMAT,
            "PNG: data inflates to %lu of %zu bytes", z->total_out, f->raw_bytes);
    return DDPM_OK;
}

static ddpm_status rows_inflate(png *f, const pass *passes, int n)
{
    size_t raw = 0;
    for (int i = 0; i < n; i++)
        raw +=
            passes[i].rows * (passes[i].row_bytes + 1); /* below 2^30: area and depth are bounded */
    REQUIRE(raw / 1032 <= f->data_end - f->data_at, FORMAT,
            "PNG: %zu bytes of data cannot inflate to %zu", f->data_end - f->data_at, raw);
    f->raw_bytes = raw;
    f->raw = malloc(raw);
    REQUIRE(f->raw, NOMEM, "PNG: %zu bytes of rows", raw);
    z_stream z;
    memset(&z, 0, sizeof z);
    REQUIRE(inflateInit(&z) == Z_OK, NOMEM, "PNG: inflate");
    const ddpm_status s = inflate_chunks(f, &z);
    inflateEnd(&z);
    return s;
}

/* Undoes one row's filter for samples of at most a byte; `above` is the row before, or zeros. */
static void row_restore(uint8_t *dst, const uint8_t *row, const uint8_t *above, size_t bytes,
                        int filter)
{
    for (size_t i = 0; i < bytes; i++) {
        const int a = i ? dst[i - 1] : 0, b = above[i], c = i ? above[i - 1] : 0;
        int guess = 0;
        if (filter == 1) guess = a;
        if (filter == 2) guess = b;
        if (filter == 3) guess = (a + b) / 2;
        if (filter == 4) {
            const int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);
            guess = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
        }
        dst[i] = (uint8_t)(row[i] + guess);
    }
}

static ddpm_status indices_check(const png *f, const uint8_t *row, uint32_t width)
{
    const unsigned colors = f->palette / 3, depth = (unsigned)f->depth;
    if (colors >> depth) return DDPM_OK; /* every index of that many bits has its color */
    for (uint32_t x = 0; x < width; x++) {
        const uint32_t bit = x * depth;
        const unsigned index =
            (unsigned)row[bit / 8] >> (8 - depth - bit % 8) & ((1u << depth) - 1);
        REQUIRE(index < colors, FORMAT, "PNG: color %u in a palette of %u", index, colors);
    }
    return DDPM_OK;
}

static ddpm_status rows_check(const png *f, const pass *passes, int n)
{
    const bool has_indices = f->color == PALETTE;
    uint8_t *rows = has_indices ? calloc(2, IMAGE_MAX_SIDE) : NULL;
    REQUIRE(rows || !has_indices, NOMEM, "PNG: two rows");
    ddpm_status s = DDPM_OK;
    const uint8_t *p = f->raw;
    for (int i = 0; i < n; i++) {
        uint8_t *row = rows, *above = rows ? rows + IMAGE_MAX_SIDE : NULL;
        if (rows) memset(above, 0, IMAGE_MAX_SIDE);
        for (uint32_t y = 0; y < passes[i].rows; y++, p += passes[i].row_bytes + 1) {
            if (p[0] > 4) FAIL_GOTO(done, FORMAT, "PNG: filter %d in row %u", p[0], y);
            if (!has_indices) continue;
            row_restore(row, p + 1, above, passes[i].row_bytes, p[0]);
            TRY_GOTO(done, indices_check(f, row, passes[i].width));
            uint8_t *const swap = row;
            row = above;
            above = swap;
        }
    }
done:
    free(rows);
    return s;
}

/* ---- the plain file ---- */

static uint8_t *put_head(uint8_t *p, const char *type, size_t bytes)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(bytes >> (24 - 8 * i));
    memcpy(p + 4, type, 4);
    return p + 8;
}

/* A chunk; its CRC stays zero, which the decoder does not read. */
static uint8_t *put_chunk(uint8_t *p, const char *type, const uint8_t *data, size_t bytes)
{
    p = put_head(p, type, bytes);
    if (bytes) memcpy(p, data, bytes);
    memset(p + bytes, 0, 4);
    return p + bytes + 4;
}

static ddpm_status plain_write(const png *f, uint8_t **plain, size_t *plain_bytes)
{
    const size_t blocks = (f->raw_bytes + STORED_MAX - 1) / STORED_MAX;
    const size_t data = 2 + blocks * 5 + f->raw_bytes + 4;
    const size_t total = SIGNATURE + 5 * CHUNK + HEADER + f->palette + f->trans + data;
    uint8_t *out = malloc(total);
    REQUIRE(out, NOMEM, "PNG: %zu bytes of rows", total);
    uint8_t *p = out;
    memcpy(p, f->file, SIGNATURE);
    p = put_chunk(p + SIGNATURE, "IHDR", f->file + SIGNATURE + 8, HEADER);
    if (f->color == PALETTE) p = put_chunk(p, "PLTE", f->file + f->palette_at, f->palette);
    if (f->trans_at) p = put_chunk(p, "tRNS", f->file + f->trans_at, f->trans);
    p = put_head(p, "IDAT", data);
    *p++ = 0x78;
    *p++ = 0x01;
    for (size_t at = 0; at < f->raw_bytes; at += STORED_MAX) {
        const size_t left = f->raw_bytes - at, n = left < STORED_MAX ? left : STORED_MAX;
        *p++ = n == left;
        *p++ = (uint8_t)n;
        *p++ = (uint8_t)(n >> 8);
        *p++ = (uint8_t)~n;
        *p++ = (uint8_t)(~n >> 8);
        memcpy(p, f->raw + at, n);
        p += n;
    }
    memset(p, 0, 8); /* Adler-32 and CRC, which the decoder does not read */
    p = put_chunk(p + 8, "IEND", NULL, 0);
    *plain = out;
    *plain_bytes = (size_t)(p - out);
    return DDPM_OK;
}

ddpm_status png_check(const uint8_t *file, size_t bytes, image_info *info, uint8_t **plain,
                      size_t *plain_bytes)
{
    png f = {.file = file, .bytes = bytes};
    pass passes[7];
    TRY(chunks_walk(&f));
    const int n = passes_plan(&f, passes);
    ddpm_status s = rows_inflate(&f, passes, n);
    if (!s) s = rows_check(&f, passes, n);
    if (!s && plain) s = plain_write(&f, plain, plain_bytes);
    free(f.raw);
    if (s) return s;
    const bool has_color = f.color == PALETTE || f.color & 2;
    const bool has_alpha = f.color == GREY_ALPHA || f.color == RGBA || f.trans_at;
    *info = (image_info){.height = (int)f.height,
                         .width = (int)f.width,
                         .channels = (has_color ? 3 : 1) + (has_alpha ? 1 : 0)};
    return DDPM_OK;
}

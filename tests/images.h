/* images.h - image files and sources for the tests of packing: PNG files of any kind, packs, idx
 * files. */
#ifndef TESTS_IMAGES_H
#define TESTS_IMAGES_H

#include "support.h"

#include <zlib.h>

typedef struct {
    unsigned width, height, depth, color, interlace;
    const uint8_t *palette, *trans;
    size_t palette_bytes, trans_bytes;
    int surplus;    /* bytes added to (or, below 0, cut from) the rows before they are compressed */
    int idat_parts; /* 0: one IDAT chunk; else so many, the first one empty */
} png_spec;

static inline uint8_t *png_put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
    return p + 4;
}

static inline uint8_t *png_chunk(uint8_t *p, const char *type, const void *data, size_t bytes)
{
    p = png_put32(p, (uint32_t)bytes);
    memcpy(p, type, 4);
    if (bytes) memcpy(p + 4, data, bytes);
    return png_put32(p + 4 + bytes, (uint32_t)crc32(0, p, (uInt)bytes + 4));
}

/* Bytes of the rows of an image, filter bytes included. */
static inline size_t png_row_bytes(const png_spec *s)
{
    static const unsigned x0[7] = {0, 4, 0, 2, 0, 1, 0}, dx[7] = {8, 8, 4, 4, 2, 2, 1};
    static const unsigned y0[7] = {0, 0, 4, 0, 2, 0, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
    const unsigned samples = s->color == 2 ? 3 : s->color == 6 ? 4 : s->color == 4 ? 2 : 1;
    size_t total = 0;
    for (int i = 0; i < (s->interlace ? 7 : 1); i++) {
        size_t w = s->width, h = s->height;
        if (s->interlace) {
            w = s->width > x0[i] ? (s->width - x0[i] + dx[i] - 1) / dx[i] : 0;
            h = s->height > y0[i] ? (s->height - y0[i] + dy[i] - 1) / dy[i] : 0;
        }
        if (w && h) total += h * (1 + (w * samples * s->depth + 7) / 8);
    }
    return total;
}

/* A PNG file around `rows` (png_row_bytes of them, filter bytes included; NULL: zeros). Freed by
 * the caller. */
static inline uint8_t *png_build(const png_spec *s, const uint8_t *rows, size_t *bytes)
{
    const size_t raw = png_row_bytes(s), used = (size_t)((long)raw + s->surplus);
    uint8_t *data = calloc(1, raw + 64), *file = malloc(2 * raw + 4096);
    uLongf packed = compressBound(used);
    uint8_t *z = malloc(packed);
    assert_true(data && file && z);
    if (rows) memcpy(data, rows, raw);
    assert_int_equal(compress2(z, &packed, data, used, 6), Z_OK);
    uint8_t header[13], *p = file;
    png_put32(png_put32(header, s->width), s->height);
    header[8] = (uint8_t)s->depth;
    header[9] = (uint8_t)s->color;
    header[10] = header[11] = 0;
    header[12] = (uint8_t)s->interlace;
    memcpy(p, "\x89PNG\r\n\x1a\n", 8);
    p = png_chunk(p + 8, "IHDR", header, 13);
    if (s->palette_bytes) p = png_chunk(p, "PLTE", s->palette, s->palette_bytes);
    if (s->trans_bytes) p = png_chunk(p, "tRNS", s->trans, s->trans_bytes);
    if (s->idat_parts) {
        p = png_chunk(p, "IDAT", NULL, 0);
        const size_t each = packed / (size_t)s->idat_parts;
        for (int i = 0; i < s->idat_parts; i++)
            p = png_chunk(p, "IDAT", z + (size_t)i * each,
                          i + 1 < s->idat_parts ? each : packed - (size_t)i * each);
    } else {
        p = png_chunk(p, "IDAT", z, packed);
    }
    p = png_chunk(p, "IEND", NULL, 0);
    free(data);
    free(z);
    *bytes = (size_t)(p - file);
    return file;
}

/* Writes a PNG of one colour into dir/name, its folders made before. */
static inline void png_write_file(const char *dir, const char *name, unsigned width,
                                  unsigned height, const uint8_t rgb[3])
{
    const png_spec s = {.width = width, .height = height, .depth = 8, .color = 2};
    uint8_t *rows = calloc(1, png_row_bytes(&s));
    assert_non_null(rows);
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x++)
            memcpy(rows + y * (1 + 3 * width) + 1 + 3 * x, rgb, 3);
    size_t bytes = 0;
    uint8_t *file = png_build(&s, rows, &bytes);
    char path[SUPPORT_PATH];
    support_join(path, dir, name);
    mkdir(dir, 0777);
    for (char *slash = path + strlen(dir) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    support_write_file(path, file, bytes);
    free(file);
    free(rows);
}

/* idx3 of n images h x w whose bytes are all their number, and (labels) idx1 of number % 10. */
static inline void idx_write_files(const char *images, const char *labels, int n, int h, int w)
{
    const size_t size = (size_t)(h * w);
    uint8_t *p = calloc(1, 16 + (size_t)n * size);
    assert_non_null(p);
    p[2] = 8;
    p[3] = 3;
    png_put32(png_put32(png_put32(p + 4, (uint32_t)n), (uint32_t)h), (uint32_t)w);
    for (int i = 0; i < n; i++)
        memset(p + 16 + (size_t)i * size, i & 255, size);
    support_write_file(images, p, 16 + (size_t)n * size);
    if (labels) {
        p[3] = 1;
        for (int i = 0; i < n; i++)
            p[8 + i] = (uint8_t)(i % 10);
        support_write_file(labels, p, 8 + (size_t)n);
    }
    free(p);
}

#endif

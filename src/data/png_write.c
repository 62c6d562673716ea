/* png_write.c - a PNG file in memory.
 *
 * Job        previews and grids for people to look at.
 * Method     each row is filtered by "sub" or "up", whichever leaves the smaller sum of
 *            differences (enlarged rows repeat, and "up" makes them zeros); one zlib stream in one
 *            IDAT chunk.
 * Cost       the filtered rows and zlib's bound of them in memory.
 * Rejected   stb_image_write: computes its sizes in int, which overflow, and packs worse than
 *            zlib. */
#include "png_write.h"

#include "fail.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { SIGNATURE = 8, CHUNK = 12, HEADER = 13, LEVEL = 6 };
static const int64_t MAX_PIXELS = INT64_C(1) << 28, MAX_SIDE = INT64_C(1) << 24;

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
    return p + 4;
}

/* Length, type and CRC around `bytes` of data that already stand at p + 8. */
static uint8_t *chunk_close(uint8_t *p, const char *type, uint32_t bytes)
{
    put32(p, bytes);
    memcpy(p + 4, type, 4);
    return put32(p + 8 + bytes, (uint32_t)crc32(0, p + 4, bytes + 4));
}

/* One row, its filter's number first. */
static void row_filter(uint8_t *dst, const uint8_t *row, const uint8_t *above, size_t bytes,
                       size_t c)
{
    uint64_t sub = 0, up = 0;
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t s = (uint8_t)(row[i] - (i >= c ? row[i - c] : 0));
        const uint8_t u = (uint8_t)(row[i] - (above ? above[i] : 0));
        sub += s < 128 ? s : 256u - s;
        up += u < 128 ? u : 256u - u;
    }
    dst[0] = up < sub ? 2 : 1;
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t before = up < sub ? (above ? above[i] : 0) : (i >= c ? row[i - c] : 0);
        dst[1 + i] = (uint8_t)(row[i] - before);
    }
}

ddpm_status png_encode(const uint8_t *pixels, int h, int w, int c, uint8_t **png, size_t *bytes)
{
    REQUIRE(h >= 1 && w >= 1 && h <= MAX_SIDE && w <= MAX_SIDE && (c == 1 || c == 3) &&
                (int64_t)h * w <= MAX_PIXELS,
            SHAPE, "a PNG of %d x %d x %d: at most 2^28 pixels of 1 or 3 channels", h, w, c);
    const size_t row = (size_t)w * (size_t)c, raw = (row + 1) * (size_t)h;
    uLongf packed = compressBound(raw);
    uint8_t *filtered = malloc(raw);
    uint8_t *file = malloc(SIGNATURE + 3 * CHUNK + HEADER + packed);
    ddpm_status s = DDPM_OK;
    if (!filtered || !file) FAIL_GOTO(fail, NOMEM, "a PNG of %d x %d x %d", h, w, c);
    for (size_t y = 0; y < (size_t)h; y++)
        row_filter(filtered + y * (row + 1), pixels + y * row, y ? pixels + (y - 1) * row : NULL,
                   row, (size_t)c);
    uint8_t *p = file;
    memcpy(p, "\x89PNG\r\n\x1a\n", SIGNATURE);
    p += SIGNATURE;
    put32(put32(p + 8, (uint32_t)w), (uint32_t)h);
    memcpy(p + 16, (const uint8_t[5]){8, c == 3 ? 2 : 0, 0, 0, 0}, 5);
    p = chunk_close(p, "IHDR", HEADER);
    if (compress2(p + 8, &packed, filtered, raw, LEVEL) != Z_OK || packed > INT32_MAX)
        FAIL_GOTO(fail, NOMEM, "a PNG of %d x %d x %d: zlib", h, w, c);
    p = chunk_close(p, "IDAT", (uint32_t)packed);
    p = chunk_close(p, "IEND", 0);
    free(filtered);
    *png = file;
    *bytes = (size_t)(p - file);
    return DDPM_OK;
fail:
    free(filtered);
    free(file);
    return s;
}

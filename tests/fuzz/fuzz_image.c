/* fuzz_image.c - any bytes as an image file, through the checks and, where they pass, through the
 * decoder.
 *
 * A fuzzer does not guess CRC-32 values, so the bytes are also tried with the CRCs of a PNG put
 * right; and, where they begin with 'R', as size, kind, palette and rows of a PNG that is put
 * together here, which reaches every branch behind the checksums. What comes out must be the same
 * twice: no pixel may depend on memory left from before. */
#include "fuzz_source.h"

#include "image.h"
#include "pack.h"

#include <string.h>
#include <zlib.h>

enum { MAX_AREA = 1 << 18, FIT_SIDE = 7 };

static void try_one(const uint8_t *file, size_t size)
{
    image_info info, again;
    uint8_t *a = NULL, *b = NULL, fitted[FIT_SIDE * FIT_SIDE * 3];
    if (image_check(file, size, &info) || (int64_t)info.height * info.width > MAX_AREA) return;
    const int channels = size % 2 ? 3 : 1;
    const ddpm_status s = image_decode(file, size, channels, &info, &a);
    if (s != image_decode(file, size, channels, &again, &b)) abort();
    if (!s && memcmp(a, b, (size_t)info.height * (size_t)info.width * (size_t)channels)) abort();
    free(a);
    free(b);
    image_decode_fit(file, size, FIT_SIDE, FIT_SIDE, channels,
                     size % 4 < 2 ? PACK_FIT_CROP : PACK_FIT_PAD, fitted);
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
    return p + 4;
}

static void try_repaired(const uint8_t *data, size_t size)
{
    uint8_t *file = malloc(size + 1);
    if (!file) return;
    memcpy(file, data, size);
    for (size_t at = 8; at + 12 <= size;) {
        const size_t n = (size_t)file[at] << 24 | (size_t)file[at + 1] << 16 |
                         (size_t)file[at + 2] << 8 | file[at + 3];
        if (n > size - at - 12) break;
        put32(file + at + 8 + n, (uint32_t)crc32(0, file + at + 4, (uInt)n + 4));
        at += 12 + n;
    }
    try_one(file, size);
    free(file);
}

static uint8_t *put_chunk(uint8_t *p, const char *type, const void *data, size_t n)
{
    p = put32(p, (uint32_t)n);
    memcpy(p, type, 4);
    if (n) memcpy(p + 4, data, n);
    return put32(p + 4 + n, (uint32_t)crc32(0, p, (uInt)n + 4));
}

/* 'R', width, height, depth, color, interlace, palette colors, transparency bytes, then these, then
 * rows. */
static void try_built(const uint8_t *data, size_t size)
{
    if (size < 8) return;
    const size_t palette = 3u * data[6], trans = data[7];
    if (size < 8 + palette + trans) return;
    const uint8_t *rows = data + 8 + palette + trans;
    const size_t raw = size - 8 - palette - trans;
    uLongf packed = compressBound(raw);
    uint8_t *z = malloc(packed), *file = malloc(size + packed + 256), *p = file;
    if (z && file && compress2(z, &packed, rows, raw, 1) == Z_OK) {
        uint8_t head[13] = {0};
        put32(put32(head, data[1]), data[2]);
        memcpy(head + 8, data + 3, 2);
        head[12] = data[5];
        memcpy(p, "\x89PNG\r\n\x1a\n", 8);
        p = put_chunk(p + 8, "IHDR", head, 13);
        if (palette) p = put_chunk(p, "PLTE", data + 8, palette);
        if (trans) p = put_chunk(p, "tRNS", data + 8 + palette, trans);
        p = put_chunk(p, "IDAT", z, packed);
        p = put_chunk(p, "IEND", NULL, 0);
        try_one(file, (size_t)(p - file));
    }
    free(z);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_one(data, size);
    if (size > 8 && data[0] == 0x89) try_repaired(data, size);
    if (size && data[0] == 'R') try_built(data, size);
    return 0;
}

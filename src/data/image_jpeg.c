/* image_jpeg.c - every marker of a JPEG file, proved before the decoder sees it.
 *
 * Job        accept exactly the whole files of the kinds that are trained on (8-bit Huffman,
 *            sequential or progressive, grey or three components), and say of every other where it
 *            is wrong.
 * Method     a walk over the segments: lengths, tables, frame, scans; each table is defined before
 *            it is used, each component comes exactly once (progressive: every bit of every
 *            coefficient), the entropy-coded data is walked by jpeg_scan.c, and EOI ends it. Bytes
 *            after EOI are not the image's (cameras put previews there) and are left alone.
 * Cost       that of the scans' walk.
 * Rejected   CMYK: four inks need a colour profile to become RGB, and a wrong guess trains on
 *            wrong colours. EXIF rotation is ignored, here as in the decoder. */
#include "image_checks.h"

#include "fail.h"
#include "jpeg_scan.h"

#include <stdlib.h>
#include <string.h>

static int be16(const uint8_t *p)
{
    return p[0] << 8 | p[1];
}

/* ---- tables ---- */

static ddpm_status huffman_build(jpeg_huffman *h, const uint8_t counts[16], const uint8_t *values,
                                 int n)
{
    memset(h, 0, sizeof *h);
    memcpy(h->values, values, (size_t)n);
    int32_t code = 0, at = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        const int32_t count = counts[length - 1];
        h->first[length] = code;
        h->count[length] = count;
        h->offset[length] = at;
        REQUIRE(code + count <= 1 << length, FORMAT, "JPEG: damaged Huffman table: too many codes");
        for (int32_t i = 0; length <= JPEG_FAST_BITS && i < count; i++) {
            const int shift = JPEG_FAST_BITS - length;
            for (int32_t k = 0; k < 1 << shift; k++)
                h->fast[((code + i) << shift) + k] = (uint16_t)(length << 8 | values[at + i]);
        }
        code += count;
        at += count;
    }
    h->is_defined = true;
    return DDPM_OK;
}

static ddpm_status huffman_segment(jpeg *j, const uint8_t *p, int bytes)
{
    while (bytes > 0) {
        REQUIRE(bytes >= 17, FORMAT, "JPEG: Huffman table cut short at %zu", j->at);
        const int kind = p[0] >> 4, slot = p[0] & 15;
        int n = 0;
        for (int i = 1; i <= 16; i++)
            n += p[i];
        REQUIRE(kind <= 1 && slot <= 3 && n >= 1 && n <= 256 && bytes >= 17 + n, FORMAT,
                "JPEG: damaged Huffman table at %zu", j->at);
        for (int i = 0; kind == 0 && i < n; i++)
            REQUIRE(p[17 + i] <= 15, FORMAT, "JPEG: damaged Huffman table at %zu", j->at);
        TRY(huffman_build(kind ? &j->ac[slot] : &j->dc[slot], p + 1, p + 17, n));
        p += 17 + n;
        bytes -= 17 + n;
    }
    return DDPM_OK;
}

static ddpm_status quant_segment(jpeg *j, const uint8_t *p, int bytes)
{
    for (; bytes > 0; p += 65, bytes -= 65) {
        /* 16-bit tables belong to 12-bit samples (T.81, B.2.4.1) and overflow the decoder's
         * products */
        REQUIRE(bytes >= 65 && p[0] <= 3, FORMAT,
                "JPEG: damaged or 16-bit quantisation table at %zu", j->at);
        j->has_quant[p[0]] = true;
    }
    return DDPM_OK;
}

/* ---- frame ---- */

static ddpm_status component_plan(jpeg *j, jpeg_component *c)
{
    REQUIRE(j->h_max % c->h == 0 && j->v_max % c->v == 0, FORMAT,
            "JPEG: sampling %dx%d of %dx%d is not a whole ratio", c->h, c->v, j->h_max, j->v_max);
    const int w = (j->width * c->h + j->h_max - 1) / j->h_max;
    const int h = (j->height * c->v + j->v_max - 1) / j->v_max;
    c->blocks_w = (w + 7) / 8;
    c->blocks_h = (h + 7) / 8;
    c->stride = j->units_w * c->h;
    c->rows = j->units_h * c->v;
    memset(c->low, -1, sizeof c->low);
    if (!j->is_progressive) return DDPM_OK;
    c->nonzero = calloc((size_t)c->stride * (size_t)c->rows, sizeof *c->nonzero);
    REQUIRE(c->nonzero, NOMEM, "JPEG: %d x %d blocks", c->rows, c->stride);
    return DDPM_OK;
}

static ddpm_status frame_segment(jpeg *j, int marker, const uint8_t *p, int bytes)
{
    REQUIRE(!j->has_frame, FORMAT, "JPEG: a second frame at %zu", j->at);
    REQUIRE(marker <= 0xC2, FORMAT,
            "JPEG: kind SOF%d (lossless, arithmetic or hierarchical) is not read", marker - 0xC0);
    REQUIRE(bytes >= 6 && bytes == 6 + 3 * p[5], FORMAT, "JPEG: damaged frame header at %zu",
            j->at);
    REQUIRE(p[0] == 8, FORMAT, "JPEG: %d bits a sample; 8 are read", p[0]);
    j->height = be16(p + 1);
    j->width = be16(p + 3);
    j->n_components = p[5];
    j->is_progressive = marker == 0xC2;
    REQUIRE(j->height >= 1 && j->width >= 1 && j->height <= IMAGE_MAX_SIDE &&
                j->width <= IMAGE_MAX_SIDE && (int64_t)j->height * j->width <= IMAGE_MAX_AREA,
            FORMAT, "JPEG: %d x %d pixels; sides are 1 .. %d, the area at most %d", j->height,
            j->width, IMAGE_MAX_SIDE, IMAGE_MAX_AREA);
    REQUIRE(j->n_components == 1 || j->n_components == 3, FORMAT,
            "JPEG: %d components%s; grey and RGB are read", j->n_components,
            j->n_components == 4 ? " (CMYK): convert it to RGB" : "");
    for (int i = 0; i < j->n_components; i++) {
        jpeg_component *c = &j->component[i];
        const uint8_t *q = p + 6 + 3 * i;
        *c = (jpeg_component){.id = q[0], .h = q[1] >> 4, .v = q[1] & 15, .quant = q[2]};
        REQUIRE(c->h >= 1 && c->h <= 4 && c->v >= 1 && c->v <= 4 && c->quant <= 3, FORMAT,
                "JPEG: damaged frame header at %zu", j->at);
        for (int k = 0; k < i; k++)
            REQUIRE(j->component[k].id != c->id, FORMAT, "JPEG: two components %d", c->id);
        if (c->h > j->h_max) j->h_max = c->h;
        if (c->v > j->v_max) j->v_max = c->v;
    }
    j->units_w = (j->width + 8 * j->h_max - 1) / (8 * j->h_max);
    j->units_h = (j->height + 8 * j->v_max - 1) / (8 * j->v_max);
    for (int i = 0; i < j->n_components; i++)
        TRY(component_plan(j, &j->component[i]));
    j->has_frame = true;
    return DDPM_OK;
}

/* ---- scans ---- */

/* What the scan brings of each coefficient must follow what has come before. */
static ddpm_status progress_check(jpeg *j, jpeg_component *c)
{
    const bool is_dc = j->start == 0;
    REQUIRE(is_dc || c->low[0] >= 0, FORMAT, "JPEG: scan %d comes before the DC scan", j->n_scans);
    for (int k = j->start; k <= j->end; k++) {
        const bool follows = j->high ? c->low[k] == j->high : c->low[k] < 0;
        REQUIRE(follows, FORMAT, "JPEG: scan %d repeats or skips bits of coefficient %d",
                j->n_scans, k);
        c->low[k] = (int8_t)j->low;
    }
    return DDPM_OK;
}

static ddpm_status scan_tables(jpeg *j, const jpeg_component *c)
{
    const bool needs_dc = !j->is_progressive || (j->start == 0 && j->high == 0);
    const bool needs_ac = !j->is_progressive || j->start > 0;
    REQUIRE((!needs_dc || j->dc[c->dc_table].is_defined) &&
                (!needs_ac || j->ac[c->ac_table].is_defined) && j->has_quant[c->quant],
            FORMAT, "JPEG: scan %d at %zu uses a table that was not defined", j->n_scans, j->at);
    return DDPM_OK;
}

static ddpm_status scan_header(jpeg *j, const uint8_t *p, int bytes)
{
    REQUIRE(j->has_frame && bytes >= 1 && p[0] >= 1 && p[0] <= j->n_components &&
                bytes == 4 + 2 * p[0],
            FORMAT, "JPEG: damaged scan header at %zu", j->at);
    j->n_order = p[0];
    const uint8_t *tail = p + 1 + 2 * p[0];
    j->start = tail[0];
    j->end = tail[1];
    j->high = tail[2] >> 4;
    j->low = tail[2] & 15;
    const bool is_whole = j->start == 0 && j->end == 63 && j->high == 0 && j->low == 0;
    const bool is_band =
        j->start == 0 ? j->end == 0 : j->start <= j->end && j->end <= 63 && j->n_order == 1;
    const bool is_step = j->high == 0 ? j->low <= 13 : j->high == j->low + 1 && j->high <= 13;
    REQUIRE(j->is_progressive ? is_band && is_step : is_whole, FORMAT,
            "JPEG: scan of coefficients %d .. %d, bits %d .. %d at %zu", j->start, j->end, j->high,
            j->low, j->at);
    int area = 0, last = -1;
    for (int i = 0; i < j->n_order; i++) {
        int k = 0;
        while (k < j->n_components && j->component[k].id != p[1 + 2 * i])
            k++;
        const int tables = p[2 + 2 * i];
        REQUIRE(k < j->n_components && k > last && tables >> 4 <= 3 && (tables & 15) <= 3, FORMAT,
                "JPEG: damaged scan header at %zu", j->at);
        j->order[i] = last = k;
        jpeg_component *c = &j->component[k];
        c->dc_table = tables >> 4;
        c->ac_table = tables & 15;
        area += c->h * c->v;
        TRY(scan_tables(j, c));
        TRY(progress_check(j, c));
    }
    REQUIRE(j->n_order == 1 || area <= 10, FORMAT, "JPEG: units of %d blocks, at most 10", area);
    return DDPM_OK;
}

static ddpm_status scan_segment(jpeg *j, const uint8_t *p, int bytes)
{
    REQUIRE(++j->n_scans <= IMAGE_MAX_SCANS, FORMAT, "JPEG: more than %d scans", IMAGE_MAX_SCANS);
    TRY(scan_header(j, p, bytes));
    j->at = (size_t)(p + bytes - j->file);
    return jpeg_scan_walk(j);
}

/* ---- the file ---- */

static ddpm_status end_check(const jpeg *j)
{
    REQUIRE(j->n_scans, FORMAT, "JPEG: no image data");
    for (int i = 0; i < j->n_components; i++)
        for (int k = 0; k < 64; k++)
            REQUIRE(j->component[i].low[k] == 0, FORMAT, "JPEG: ends before all scans have come");
    return DDPM_OK;
}

static ddpm_status segments_walk(jpeg *j)
{
    j->at = 2;
    for (;;) {
        REQUIRE(j->bytes - j->at >= 2, FORMAT, "JPEG: cut short at %zu: no end mark", j->bytes);
        REQUIRE(j->file[j->at] == 0xFF, FORMAT, "JPEG: damaged: no marker at %zu", j->at);
        const int marker = j->file[j->at + 1];
        if (marker == 0xFF) { /* a fill byte */
            j->at++;
            continue;
        }
        if (marker == 0xD9) return end_check(j);
        REQUIRE(j->bytes - j->at >= 4, FORMAT, "JPEG: cut short at %zu: no end mark", j->bytes);
        const uint8_t *p = j->file + j->at + 4;
        const int length = be16(p - 2), bytes = length - 2;
        const bool has_length =
            marker >= 0xC0 && (marker < 0xD0 || marker > 0xD7) && marker != 0xD8;
        REQUIRE(has_length, FORMAT, "JPEG: damaged: marker %02X at %zu", marker, j->at);
        REQUIRE(length >= 2 && (size_t)length <= j->bytes - j->at - 2, FORMAT,
                "JPEG: cut short: segment of %d bytes at %zu, the file has %zu", length, j->at,
                j->bytes);
        if (marker == 0xDA) {
            TRY(scan_segment(j, p, bytes));
            continue;
        }
        if (marker == 0xC4) {
            TRY(huffman_segment(j, p, bytes));
        } else if (marker == 0xDB) {
            TRY(quant_segment(j, p, bytes));
        } else if (marker == 0xDD) {
            REQUIRE(bytes == 2, FORMAT, "JPEG: damaged restart interval at %zu", j->at);
            j->restart = be16(p);
        } else if (marker < 0xD0 && marker != 0xC8 && marker != 0xCC) {
            TRY(frame_segment(j, marker, p, bytes));
        } else {
            REQUIRE(marker >= 0xE0 && (marker <= 0xEF || marker == 0xFE), FORMAT,
                    "JPEG: marker %02X at %zu is not read", marker, j->at);
        }
        j->at += 2 + (size_t)length;
    }
}

ddpm_status jpeg_check(const uint8_t *file, size_t bytes, image_info *info)
{
    jpeg *j = calloc(1, sizeof *j);
    REQUIRE(j, NOMEM, "JPEG: %zu bytes", sizeof *j);
    j->file = file;
    j->bytes = bytes;
    j->h_max = j->v_max = 1;
    const ddpm_status s = segments_walk(j);
    if (!s)
        *info = (image_info){.height = j->height, .width = j->width, .channels = j->n_components};
    for (int i = 0; i < 3; i++)
        free(j->component[i].nonzero);
    free(j);
    return s;
}

/* jpeg_scan.c - the entropy-coded data of a JPEG scan, read to its last bit without making pixels.
 *
 * Job        know that a scan holds exactly its units: a file that was cut and closed with an end
 *            mark, or whose bits were turned over, runs out early, runs on, or meets an impossible
 *            code.
 * Method     the Huffman decoding of T.81 (annexes F.2 and G.2) for baseline and progressive
 *            scans; of the coefficients only the DC prediction is kept, and for progressive files
 *            which are not zero, because the length of refinement scans depends on it.
 * Cost       about a third of a full decode; 8 bytes a block for progressive files.
 * Rejected   trusting the decoder: it fills up missing data with zeros and calls the picture
 *            whole. */
#include "jpeg_scan.h"

#include "fail.h"

#include <stdlib.h>

/* Limits of 8-bit samples: a DC difference has at most 11 bits, an AC value 10 (T.81, table F.1,
 * F.2). */
enum { DC_BITS = 11, AC_BITS = 10, DC_LIMIT = 1 << 15 };

typedef struct {
    const uint8_t *p, *end;
    uint64_t bits; /* the next bit is the highest */
    int n;
    int eob_run;
    bool is_short; /* more bits were asked for than there are */
} reader;

static void refill(reader *r)
{
    while (r->n <= 56 && r->p < r->end) {
        if (r->p[0] == 0xFF) {
            if (r->end - r->p < 2 || r->p[1] != 0) return; /* a marker */
            r->p++;
            r->bits |= UINT64_C(0xFF) << (56 - r->n);
        } else {
            r->bits |= (uint64_t)r->p[0] << (56 - r->n);
        }
        r->p++;
        r->n += 8;
    }
}

static void drop(reader *r, int n)
{
    if (n > r->n) {
        r->is_short = true;
        n = r->n;
    }
    if (n) r->bits <<= n;
    r->n -= n;
}

static int take(reader *r, int n)
{
    if (n == 0) return 0;
    if (r->n < n) refill(r);
    const int v = (int)(r->bits >> (64 - n));
    drop(r, n);
    return v;
}

/* The next symbol; -1 when no code begins like this. */
static int symbol(reader *r, const jpeg_huffman *h)
{
    if (r->n < 16) refill(r);
    const uint16_t fast = h->fast[r->bits >> (64 - JPEG_FAST_BITS)];
    if (fast) {
        drop(r, fast >> 8);
        return fast & 255;
    }
    for (int length = JPEG_FAST_BITS + 1; length <= 16; length++) {
        const int32_t code = (int32_t)(r->bits >> (64 - length)) - h->first[length];
        if (code >= 0 && code < h->count[length]) {
            drop(r, length);
            return h->values[h->offset[length] + code];
        }
    }
    return -1;
}

/* ---- one block; each returns false where the data cannot be right ---- */

static bool dc_first(jpeg *j, reader *r, jpeg_component *c)
{
    const int bits = symbol(r, &j->dc[c->dc_table]);
    if (bits < 0 || bits > DC_BITS) return false;
    const int v = take(r, bits);
    c->dc += bits && v < 1 << (bits - 1) ? v - (1 << bits) + 1 : v;
    return c->dc > -DC_LIMIT && c->dc < DC_LIMIT;
}

static bool sequential(jpeg *j, reader *r, jpeg_component *c)
{
    if (!dc_first(j, r, c)) return false;
    const jpeg_huffman *ac = &j->ac[c->ac_table];
    for (int k = 1; k < 64; k++) {
        const int rs = symbol(r, ac);
        if (rs == 0) return true;
        if (rs < 0 || (rs & 15) > AC_BITS || ((rs & 15) == 0 && rs != 0xF0)) return false;
        k += rs >> 4;
        if (k > 63) return false;
        take(r, rs & 15);
    }
    return true;
}

static bool ac_first(jpeg *j, reader *r, const jpeg_component *c, uint64_t *nonzero)
{
    if (r->eob_run) {
        r->eob_run--;
        return true;
    }
    for (int k = j->start; k <= j->end; k++) {
        const int rs = symbol(r, &j->ac[c->ac_table]), run = rs >> 4, bits = rs & 15;
        if (rs < 0 || bits > AC_BITS) return false;
        if (bits == 0 && run < 15) {
            r->eob_run = (1 << run) + take(r, run) - 1;
            return true;
        }
        k += run;
        if (k > j->end) return false;
        if (bits) {
            take(r, bits);
            *nonzero |= UINT64_C(1) << k;
        }
    }
    return true;
}

static bool ac_refine(jpeg *j, reader *r, const jpeg_component *c, uint64_t *nonzero)
{
    int k = j->start;
    while (!r->eob_run && k <= j->end) {
        const int rs = symbol(r, &j->ac[c->ac_table]), bits = rs & 15;
        int run = rs >> 4;
        if (rs < 0 || bits > 1) return false;
        if (bits == 0 && run < 15) {
            r->eob_run = (1 << run) + take(r, run);
            break;
        }
        take(r, bits);
        while (k <= j->end) {
            if (*nonzero >> k & 1)
                take(r, 1);
            else if (run-- == 0)
                break;
            k++;
        }
        if (k > j->end) return false; /* the run ends beyond the band */
        if (bits) *nonzero |= UINT64_C(1) << k;
        k++;
    }
    if (!r->eob_run) return true;
    for (; k <= j->end; k++)
        if (*nonzero >> k & 1) take(r, 1);
    r->eob_run--;
    return true;
}

static bool block(jpeg *j, reader *r, jpeg_component *c, int y, int x)
{
    if (!j->is_progressive) return sequential(j, r, c);
    uint64_t *nonzero = &c->nonzero[(size_t)y * (size_t)c->stride + (size_t)x];
    if (j->start == 0) {
        if (j->high == 0) return dc_first(j, r, c);
        take(r, 1);
        return true;
    }
    return j->high ? ac_refine(j, r, c, nonzero) : ac_first(j, r, c, nonzero);
}

/* ---- the scan ---- */

static bool unit(jpeg *j, reader *r, int y, int x)
{
    if (j->n_order == 1) return block(j, r, &j->component[j->order[0]], y, x);
    for (int i = 0; i < j->n_order; i++) {
        jpeg_component *c = &j->component[j->order[i]];
        for (int by = 0; by < c->v; by++)
            for (int bx = 0; bx < c->h; bx++)
                if (!block(j, r, c, y * c->v + by, x * c->h + bx)) return false;
    }
    return true;
}

/* To the marker that must follow the last bits: fewer than 8 are left over. */
static ddpm_status align(jpeg *j, reader *r)
{
    refill(r);
    j->at = (size_t)(r->p - j->file);
    REQUIRE(!r->is_short, FORMAT, "JPEG: image data ends early at %zu", j->at);
    REQUIRE(r->n < 8 && r->eob_run == 0, FORMAT, "JPEG: damaged: image data goes on before %zu",
            j->at);
    REQUIRE(r->end - r->p >= 2, FORMAT, "JPEG: cut short at %zu", j->bytes);
    return DDPM_OK;
}

static void restart(jpeg *j, reader *r, const uint8_t *p)
{
    *r = (reader){.p = p, .end = j->file + j->bytes};
    for (int i = 0; i < j->n_components; i++)
        j->component[i].dc = 0;
}

ddpm_status jpeg_scan_walk(jpeg *j)
{
    const jpeg_component *only = &j->component[j->order[0]];
    const int w = j->n_order == 1 ? only->blocks_w : j->units_w;
    const int h = j->n_order == 1 ? only->blocks_h : j->units_h;
    reader r;
    restart(j, &r, j->file + j->at);
    int left = j->restart, mark = 0;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            if (j->restart && left-- == 0) {
                TRY(align(j, &r));
                REQUIRE(r.p[1] == 0xD0 + mark, FORMAT, "JPEG: restart mark %d is missing at %zu",
                        mark, j->at);
                restart(j, &r, r.p + 2);
                mark = (mark + 1) % 8;
                left = j->restart - 1;
            }
            const bool is_possible = unit(j, &r, y, x);
            REQUIRE(!r.is_short, FORMAT, "JPEG: image data ends early at %zu (row %d of %d)",
                    (size_t)(r.p - j->file), y, h);
            REQUIRE(is_possible, FORMAT, "JPEG: damaged image data near %zu (row %d of %d)",
                    (size_t)(r.p - j->file), y, h);
        }
    return align(j, &r);
}

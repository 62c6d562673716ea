/* fit.c - images of any size to the one size of a pack.
 *
 * Job        CROP as guided-diffusion trains on: halve by box while both sides are at least twice
 *            the target, bicubic until it just covers, cut the middle. PAD: shrink until it fits,
 *            centre on black.
 * Method     separable resampling, rows then columns, each in 8 bits; the bicubic kernel has a =
 *            -0.5 and is stretched by the reduction; weights are rounded to 22 bits. So the values
 *            equal Pillow's, which the published models' data went through.
 * Cost       one pass over the source and one over the columns; weights for one row and one column
 *            in memory.
 * Rejected   stb_image_resize: other kernels and edge rules, differs by several levels at edges. */
#include "fit.h"

#include "fail.h"
#include "pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHT_BITS = 22, MAX_AREA = 1 << 28 };

/* For each output position: source positions first .. first+count-1 and a weight for each. */
typedef struct {
    int *first, *count; /* [out] */
    int32_t *weight;    /* [out, taps] */
    int taps;
} weights;

static double kernel(enum fit_filter filter, double x)
{
    if (filter == FIT_BOX) return x > -0.5 && x <= 0.5 ? 1 : 0;
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void weights_free(weights *w)
{
    free(w->first);
    free(w->count);
    free(w->weight);
}

static ddpm_status weights_make(weights *w, int in, int out, enum fit_filter filter)
{
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale;
    const double reach = (filter == FIT_BOX ? 0.5 : 2) * stretch;
    w->taps = (int)ceil(reach) * 2 + 1;
    w->first = calloc((size_t)out, sizeof *w->first);
    w->count = calloc((size_t)out, sizeof *w->count);
    w->weight = calloc((size_t)out * (size_t)w->taps, sizeof *w->weight);
    double *exact = calloc((size_t)w->taps, sizeof *exact);
    if (!w->first || !w->count || !w->weight || !exact) {
        free(exact);
        return FAIL(NOMEM, "weights to resize %d to %d", in, out);
    }
    for (int i = 0; i < out; i++) {
        const double center = (i + 0.5) * scale;
        int low = (int)(center - reach + 0.5), high = (int)(center + reach + 0.5);
        if (low < 0) low = 0;
        if (high > in) high = in;
        double sum = 0;
        for (int k = 0; k < high - low; k++) {
            exact[k] = kernel(filter, (low + k - center + 0.5) * (1.0 / stretch));
            sum += exact[k];
        }
        w->first[i] = low;
        w->count[i] = high - low;
        for (int k = 0; k < high - low; k++) {
            const double v = (sum != 0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
            w->weight[(size_t)i * (size_t)w->taps + (size_t)k] =
                (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
    }
    free(exact);
    return DDPM_OK;
}

/* One output value: `count` source bytes, `step` apart. */
static uint8_t weigh(const uint8_t *src, size_t step, const int32_t *weight, int count)
{
    int32_t sum = 1 << (WEIGHT_BITS - 1); /* the weights' sizes add up to less than 1.5 * 2^22 */
    for (int k = 0; k < count; k++)
        sum += src[(size_t)k * step] * weight[k];
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void resize_rows(const uint8_t *src, int rows, int sw, int c, uint8_t *dst, int w,
                        const weights *k)
{
    for (int y = 0; y < rows; y++) {
        const uint8_t *in = src + (size_t)y * (size_t)sw * (size_t)c;
        uint8_t *out = dst + (size_t)y * (size_t)w * (size_t)c;
        for (int x = 0; x < w; x++)
            for (int i = 0; i < c; i++)
                out[x * c + i] = weigh(in + (size_t)k->first[x] * (size_t)c + i, (size_t)c,
                                       k->weight + (size_t)x * (size_t)k->taps, k->count[x]);
    }
}

static void resize_columns(const uint8_t *src, int stride, uint8_t *dst, int h, const weights *k)
{
    for (int y = 0; y < h; y++)
        for (int x = 0; x < stride; x++)
            dst[(size_t)y * (size_t)stride + (size_t)x] =
                weigh(src + (size_t)k->first[y] * (size_t)stride + x, (size_t)stride,
                      k->weight + (size_t)y * (size_t)k->taps, k->count[y]);
}

ddpm_status fit_resize(const uint8_t *src, int sh, int sw, int c, uint8_t *dst, int h, int w,
                       enum fit_filter filter)
{
    ddpm_status s = DDPM_OK;
    weights across = {0}, down = {0};
    uint8_t *middle = NULL;
    const uint8_t *rows = src;
    if (w != sw) {
        middle = malloc((size_t)sh * (size_t)w * (size_t)c);
        if (!middle) FAIL_GOTO(done, NOMEM, "to resize %d x %d to %d x %d", sh, sw, h, w);
        TRY_GOTO(done, weights_make(&across, sw, w, filter));
        resize_rows(src, sh, sw, c, middle, w, &across);
        rows = middle;
    }
    if (h != sh) {
        TRY_GOTO(done, weights_make(&down, sh, h, filter));
        resize_columns(rows, w * c, dst, h, &down);
    } else {
        memcpy(dst, rows, (size_t)h * (size_t)w * (size_t)c);
    }
done:
    weights_free(&across);
    weights_free(&down);
    free(middle);
    return s;
}

/* ---- fitting ---- */

typedef struct {
    const uint8_t *p; /* owned or the caller's */
    uint8_t *owned;
    int h, w;
} picture;

static ddpm_status picture_resize(picture *a, int c, int h, int w, enum fit_filter filter)
{
    if (a->h == h && a->w == w) return DDPM_OK;
    uint8_t *next = malloc((size_t)h * (size_t)w * (size_t)c);
    REQUIRE(next, NOMEM, "an image of %d x %d", h, w);
    const ddpm_status s = fit_resize(a->p, a->h, a->w, c, next, h, w, filter);
    free(a->owned);
    *a = (picture){.p = next, .owned = next, .h = h, .w = w};
    return s;
}

/* Copies a onto dst, middle on middle; what lies outside is cut, what is missing stays black. */
static void place(const picture *a, int c, uint8_t *dst, int h, int w)
{
    const int top = (a->h - h) / 2, left = (a->w - w) / 2;
    memset(dst, 0, (size_t)h * (size_t)w * (size_t)c);
    const int x0 = left < 0 ? -left : 0, n = a->w < w ? a->w : w;
    for (int y = 0; y < h; y++) {
        const int from = y + top;
        if (from < 0 || from >= a->h) continue;
        memcpy(dst + ((size_t)y * (size_t)w + (size_t)x0) * (size_t)c,
               a->p + ((size_t)from * (size_t)a->w + (size_t)(x0 + left)) * (size_t)c,
               (size_t)n * (size_t)c);
    }
}

static int scaled(int side, double by)
{
    const double v = rint(side * by); /* halves go to the even neighbour, as in Python */
    return v < 1 ? 1 : (int)v;
}

ddpm_status fit_image(const uint8_t *src, int sh, int sw, int c, uint8_t *dst, int h, int w,
                      int fit)
{
    if (sh == h && sw == w) {
        memcpy(dst, src, (size_t)h * (size_t)w * (size_t)c);
        return DDPM_OK;
    }
    REQUIRE(fit == PACK_FIT_CROP || fit == PACK_FIT_PAD, FORMAT,
            "is %d x %d pixels, the pack is %d x %d (--fit crop or --fit pad takes it)", sh, sw, h,
            w);
    picture a = {.p = src, .h = sh, .w = sw};
    ddpm_status s = DDPM_OK;
    int th = h, tw = w;
    if (fit == PACK_FIT_PAD) {
        const double by = fmin(fmin((double)h / sh, (double)w / sw), 1);
        th = scaled(sh, by);
        tw = scaled(sw, by);
    }
    while (!s && a.h >= 2 * th && a.w >= 2 * tw)
        s = picture_resize(&a, c, a.h / 2, a.w / 2, FIT_BOX);
    if (!s && fit == PACK_FIT_CROP) {
        const double by = fmax((double)h / a.h, (double)w / a.w);
        th = scaled(a.h, by) < h ? h : scaled(a.h, by);
        tw = scaled(a.w, by) < w ? w : scaled(a.w, by);
    }
    if (!s && (int64_t)th * tw > MAX_AREA)
        s = FAIL(FORMAT, "is %d x %d pixels: to cover %d x %d it would grow to %d x %d", sh, sw, h,
                 w, th, tw);
    if (!s) s = picture_resize(&a, c, th, tw, FIT_BICUBIC);
    if (!s) place(&a, c, dst, h, w);
    free(a.owned);
    return s;
}

void fit_channels(const uint8_t *src, int from, uint8_t *dst, int to, int64_t n)
{
    for (int64_t i = 0; i < n; i++, src += from, dst += to) {
        const int color = from < 3 ? 1 : 3;
        unsigned v[3] = {src[0], src[color == 3 ? 1 : 0], src[color == 3 ? 2 : 0]};
        if (color != from)
            for (int k = 0; k < 3; k++)
                v[k] = (v[k] * src[color] + 127) / 255;
        if (to == 1 && color == 3) v[0] = (19595 * v[0] + 38470 * v[1] + 7471 * v[2] + 32768) >> 16;
        for (int k = 0; k < to; k++)
            dst[k] = (uint8_t)v[k];
    }
}

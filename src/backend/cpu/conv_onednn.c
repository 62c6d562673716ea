/* conv_onednn.c - forward and data of any convolution, through oneDNN's direct algorithm on NHWC.
 *
 *   forward   a task is a band of rows of one image: a convolution of its own with the padding its place asks for. bias and emb
 *             become one bias per image, the residual is what oneDNN adds to.
 *   data      a task is one image.
 *
 * Every task is a convolution of one image, so an image's result does not depend on its batch. oneDNN's third pass,
 * the gradient of the filter, is not used: for small images a dw per task and adding them up costs four times the product (see
 * conv_patches.c). A view is copied to dense scratch first: oneDNN has fast
 * kernels for dense images alone, and no network here convolves a view with 3x3. */
#include "conv.h"

#include <stdatomic.h>
#include <string.h>

#define BAND_ROWS 4 /* of the result, at least */

struct call {
    const struct conv *s;
    struct onednn *o;
    struct onednn_conv *conv; /* data */
    const struct conv2d_args *fwd;
    float *x, *y, *packed, *offsets;
    float *add_into; /* data: where dx is added to, or NULL */
    int64_t x_image, y_image; /* floats of an image */
    int64_t bands;
    unsigned char *scratch;
    size_t scratch_bytes;
    atomic_bool failed;
};

static struct onednn_key key_of(const struct conv *s, enum onednn_pass pass)
{
    return (struct onednn_key){.pass = (int32_t)pass, .n = 1, .h = (int32_t)s->h, .w = (int32_t)s->w, .c = (int32_t)s->c,
                               .k = (int32_t)s->k, .kh = (int32_t)s->kernel, .kw = (int32_t)s->kernel,
                               .stride = (int32_t)s->stride, .pad_top = (int32_t)s->pad_top,
                               .pad_left = (int32_t)s->pad_left, .pad_bottom = (int32_t)s->pad_bottom,
                               .pad_right = (int32_t)s->pad_right};
}

static struct onednn *library(ddpm_backend *be)
{
    return ((struct cpu_backend *)be)->onednn;
}

static bool is_dense(const ddpm_tensor *t)
{
    for (int i = t->rank - 2; i >= 0; i--)
        if (t->dim[i] != 1 && t->stride[i] != t->dim[i + 1] * t->stride[i + 1]) return false;
    return true;
}

/* Between a view and dense memory; `add` when scattering into what is there. */
static void copy_view(const ddpm_tensor *view, float *dense, bool gather, bool add)
{
    const int64_t c = view->dim[3];
    for (int64_t n = 0; n < view->dim[0]; n++)
        for (int64_t h = 0; h < view->dim[1]; h++)
            for (int64_t w = 0; w < view->dim[2]; w++, dense += c) {
                float *at = (float *)view->data + n * view->stride[0] + h * view->stride[1] + w * view->stride[2];
                if (gather)
                    memcpy(dense, at, (size_t)c * sizeof *at);
                else
                    for (int64_t i = 0; i < c; i++)
                        at[i] = add ? at[i] + dense[i] : dense[i];
            }
}

/* --- forward --- */

struct band {
    int64_t ho, rows;         /* of y */
    int64_t h, h_rows;        /* of x */
    int64_t pad_top, pad_bottom;
};

static struct band band_of(const struct conv *s, int64_t bands, int64_t i)
{
    struct band b = {.ho = s->ho * i / bands};
    b.rows = s->ho * (i + 1) / bands - b.ho;
    const int64_t begin = b.ho * s->stride - s->pad_top;
    const int64_t end = (b.ho + b.rows - 1) * s->stride - s->pad_top + s->kernel;
    b.pad_top = begin < 0 ? -begin : 0;
    b.pad_bottom = end > s->h ? end - s->h : 0;
    b.h = begin + b.pad_top;
    b.h_rows = end - b.pad_bottom - b.h;
    return b;
}

static struct onednn_key band_key(const struct conv *s, const struct band *b, bool has_bias, bool adds)
{
    struct onednn_key key = key_of(s, ONEDNN_FORWARD);
    key.h = (int32_t)b->h_rows;
    key.pad_top = (int32_t)b->pad_top;
    key.pad_bottom = (int32_t)b->pad_bottom;
    key.has_bias = has_bias;
    key.adds = adds;
    return key;
}

static void forward_task(void *context, int64_t i, int thread)
{
    struct call *c = context;
    const struct conv *s = c->s;
    const struct conv2d_args *a = c->fwd;
    const int64_t n = i / c->bands;
    const struct band b = band_of(s, c->bands, i % c->bands);
    const struct onednn_key key = band_key(s, &b, a->bias || a->emb, a->residual);
    struct onednn_conv *conv;
    float *y = c->y + n * c->y_image + b.ho * s->wo * s->k;
    if (a->residual && a->residual->data != a->y->data)
        memcpy(y, conv_f32(a->residual) + (y - c->y), (size_t)(b.rows * s->wo * s->k) * sizeof *y);
    const struct onednn_run run = {.x = c->x + n * c->x_image + b.h * s->w * s->c, .w = c->packed, .y = y,
                                   .bias = a->emb ? c->offsets + n * s->k : a->bias ? conv_f32(a->bias) : NULL,
                                   .scratch = c->scratch + (size_t)thread * c->scratch_bytes};
    /* found, not made: every band's kind was made by conv_onednn */
    if (onednn_conv(c->o, &key, &conv) || !onednn_run(c->o, conv, thread, &run)) atomic_store(&c->failed, true);
}

/* Makes every band's convolution; *out is one of them. Where they would not share packed weights, images stay whole. */
static ddpm_status make_bands(struct call *c, struct onednn_conv **out)
{
    for (int64_t i = 0; i < c->bands; i++) {
        const struct band b = band_of(c->s, c->bands, i);
        const struct onednn_key key = band_key(c->s, &b, c->fwd->bias || c->fwd->emb, c->fwd->residual);
        struct onednn_conv *conv;
        TRY(onednn_conv(c->o, &key, &conv));
        if (onednn_scratch_bytes(conv) > c->scratch_bytes) c->scratch_bytes = onednn_scratch_bytes(conv);
        if (i == 0) *out = conv;
        if (!onednn_same_weights(*out, conv)) {
            c->bands = 1;
            return make_bands(c, out);
        }
    }
    return DDPM_OK;
}

/* A 1x1 kernel may be a view: it is gathered in `plain` first. */
static bool w_is_view(const struct conv *s)
{
    return s->w_row != s->kernel * s->kernel * s->c;
}

static ddpm_status pack_weights(struct call *c, struct onednn_conv *conv, const ddpm_tensor *w, void *packed, float *plain)
{
    const struct conv *s = c->s;
    if (!w_is_view(s)) return onednn_pack(c->o, conv, w->data, packed);
    for (int64_t k = 0; k < s->k; k++)
        memcpy(plain + k * s->c, conv_f32(w) + k * s->w_row, (size_t)s->c * sizeof(float));
    return onednn_pack(c->o, conv, plain, packed);
}

static ddpm_status library_failed(const char *op)
{
    return FAIL(BACKEND, "%s: oneDNN %s could not run a convolution", op, onednn_version());
}

ddpm_status conv_onednn(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a)
{
    struct call c = {.s = s, .o = library(be), .fwd = a, .x_image = s->h * s->w * s->c, .y_image = s->ho * s->wo * s->k};
    const bool copy_x = !is_dense(a->x);
    struct onednn_conv *conv;
    c.bands = s->kernel == 1 || s->ho < 2 * BAND_ROWS ? 1 : s->ho / BAND_ROWS;
    TRY(make_bands(&c, &conv));
    const size_t x_bytes = copy_x ? conv_line((size_t)(s->n * c.x_image) * sizeof(float)) : 0;
    const size_t offsets = conv_line((size_t)(s->n * s->k) * sizeof(float));
    const size_t w_bytes = onednn_packed_bytes(conv), plain = w_is_view(s) ? conv_line((size_t)(s->k * s->c) * sizeof(float)) : 0;
    void *scratch, *packed;
    bool is_ready;
    TRY(cpu_scratch(be, x_bytes + offsets + w_bytes + plain + (size_t)cpu_threads(be) * c.scratch_bytes, &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    unsigned char *at = scratch;
    c.x = copy_x ? (float *)at : a->x->data;
    c.offsets = (float *)(at + x_bytes);
    at += x_bytes + offsets;
    TRY(packed_place(be, a->w->data, FORM_ONEDNN, w_bytes, at, &packed, &is_ready));
    if (!is_ready) TRY(pack_weights(&c, conv, a->w, packed, (float *)(at + w_bytes)));
    c.packed = packed;
    c.scratch = at + w_bytes + plain;
    c.y = a->y->data;
    if (copy_x) copy_view(a->x, c.x, true, false);
    for (int64_t n = 0; a->emb && n < s->n; n++)
        conv_offsets(s, a->bias, a->emb, n, c.offsets + n * s->k);
    cpu_run(be, s->n * c.bands, forward_task, &c);
    return atomic_load(&c.failed) ? library_failed("conv2d") : DDPM_OK;
}

/* --- data --- */

static void data_task(void *context, int64_t n, int thread)
{
    struct call *c = context;
    const struct onednn_run run = {.x = c->x + n * c->x_image, .w = c->packed, .y = c->y + n * c->y_image,
                                   .scratch = c->scratch + (size_t)thread * c->scratch_bytes};
    if (!onednn_run(c->o, c->conv, thread, &run)) atomic_store(&c->failed, true);
    if (c->add_into) cpu_add_to(c->add_into + n * c->x_image, run.x, c->x_image);
}

ddpm_status conv_onednn_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a)
{
    struct call c = {.s = s, .o = library(be), .x_image = s->h * s->w * s->c, .y_image = s->ho * s->wo * s->k};
    const struct onednn_key key = key_of(s, ONEDNN_DATA);
    const bool dense = is_dense(a->dx), aside = !dense || a->accumulate;
    TRY(onednn_conv(c.o, &key, &c.conv));
    c.scratch_bytes = onednn_scratch_bytes(c.conv);
    const size_t x_bytes = aside ? conv_line((size_t)(s->n * c.x_image) * sizeof(float)) : 0;
    const size_t w_bytes = onednn_packed_bytes(c.conv), plain = w_is_view(s) ? conv_line((size_t)(s->k * s->c) * sizeof(float)) : 0;
    void *scratch, *packed;
    bool is_ready;
    TRY(cpu_scratch(be, x_bytes + w_bytes + plain + (size_t)cpu_threads(be) * c.scratch_bytes, &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    unsigned char *at = (unsigned char *)scratch + x_bytes;
    TRY(packed_place(be, a->w->data, FORM_ONEDNN_DATA, w_bytes, at, &packed, &is_ready));
    if (!is_ready) TRY(pack_weights(&c, c.conv, a->w, packed, (float *)(at + w_bytes)));
    c.packed = packed;
    c.scratch = at + w_bytes + plain;
    c.x = aside ? scratch : a->dx->data;
    c.y = a->dy->data;
    c.add_into = dense && a->accumulate ? a->dx->data : NULL;
    cpu_run(be, s->n, data_task, &c);
    if (!dense) copy_view(a->dx, c.x, false, a->accumulate);
    return atomic_load(&c.failed) ? library_failed("conv2d_bwd_data") : DDPM_OK;
}

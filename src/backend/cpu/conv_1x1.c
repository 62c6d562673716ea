/* conv_1x1.c - a 1x1 convolution is a product: pixels by channels.
 *
 *   forward   y[P,K]  = x[P,C] w^T          started from bias + emb + residual, so that the epilogue costs one write
 *   data      dx[P,C] = dy[P,K] w
 *   filter    dw[K,C] += dy^T x             few channels: by groups of pixels (tall.h); many: a task owns a tile of dw and goes
 *                                           through the images in order
 *
 * Pixels of an image whose rows follow each other are one long column of rows; with stride 2, or in a view that leaves gaps,
 * each row of the result is its own product. */
#include "conv.h"
#include "gemm.h"
#include "tall.h"

#include <string.h>

#define PIXELS      192 /* of a forward or data task */
#define TILE_ROWS   64  /* of a filter task */
#define TILE_COLUMNS 128

struct call {
    const struct conv *s;
    const struct conv2d_args *fwd;
    const struct conv2d_bwd_data_args *data;
    const struct conv2d_bwd_filter_args *filter;
    const ddpm_tensor *x; /* or dx */
    int64_t span, n_spans; /* pixels that one product covers, products per image */
    int64_t span_blocks;
    float *packed, *work;
};

bool conv_1x1_fits(const struct conv *s)
{
    return s->kernel == 1 && !s->pad_top && !s->pad_left && !s->pad_bottom && !s->pad_right;
}

static void set_spans(struct call *c)
{
    const struct conv *s = c->s;
    const bool whole = s->stride == 1 && (c->x->stride[1] == s->w * c->x->stride[2] || s->h == 1);
    c->span = whole ? s->ho * s->wo : s->wo;
    c->n_spans = whole ? 1 : s->ho;
    c->span_blocks = conv_blocks(c->span, PIXELS);
}

/* The pixel of x under output pixel p of the i-th span of image n. */
static float *x_at(const struct call *c, int64_t n, int64_t i, int64_t p)
{
    return (float *)c->x->data + n * c->x->stride[0] + i * c->s->stride * c->x->stride[1] +
           p * c->s->stride * c->x->stride[2];
}

struct place {
    int64_t n, span, p0, pixels;
};

static struct place place_of(const struct call *c, int64_t i)
{
    struct place at = {.p0 = i % c->span_blocks * PIXELS};
    i /= c->span_blocks;
    at.span = i % c->n_spans;
    at.n = i / c->n_spans;
    at.pixels = c->span - at.p0 < PIXELS ? c->span - at.p0 : PIXELS;
    return at;
}

static float *work_of(const struct call *c, int thread)
{
    return c->work + (size_t)thread * gemm_work_floats();
}

static CPU_CLONES void start_row(float *y, const float *residual, const float *bias, const float *emb, int64_t k)
{
    if (residual && residual != y)
        for (int64_t i = 0; i < k; i++)
            y[i] = residual[i];
    if (!residual)
        for (int64_t i = 0; i < k; i++)
            y[i] = 0;
    if (bias)
        for (int64_t i = 0; i < k; i++)
            y[i] += bias[i];
    if (emb)
        for (int64_t i = 0; i < k; i++)
            y[i] += emb[i];
}

static void forward_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const struct conv *s = c->s;
    const struct conv2d_args *a = c->fwd;
    const struct place at = place_of(c, i);
    const int64_t first = ((at.n * c->n_spans + at.span) * c->span + at.p0) * s->k;
    float *y = (float *)a->y->data + first;
    const float *residual = a->residual ? conv_f32(a->residual) + first : NULL;
    const float *emb = a->emb ? conv_f32(a->emb) + at.n * a->emb->stride[0] : NULL;
    for (int64_t p = 0; p < at.pixels; p++)
        start_row(y + p * s->k, residual ? residual + p * s->k : NULL, a->bias ? conv_f32(a->bias) : NULL, emb, s->k);
    gemm_run(&(struct gemm){.m = at.pixels, .n = s->k, .k = s->c, .a = x_at(c, at.n, at.span, at.p0),
                            .a_row = s->stride * c->x->stride[2], .a_col = 1, .b = c->packed, .packed_b = true, .c = y,
                            .c_row = s->k, .accumulate = true},
             work_of(c, thread));
}

/* Scratch: the packed weights, then the threads' work. */
static ddpm_status prepare(ddpm_backend *be, struct call *c, const ddpm_tensor *w, bool forward)
{
    const struct conv *s = c->s;
    const int64_t k = forward ? s->c : s->k, n = forward ? s->k : s->c;
    const size_t bytes = conv_line(gemm_packed_floats(k, n) * sizeof(float));
    void *scratch, *packed;
    bool is_ready;
    set_spans(c);
    TRY(cpu_scratch(be, bytes + (size_t)cpu_threads(be) * gemm_work_floats() * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    TRY(packed_place(be, w->data, forward ? FORM_GEMM_FORWARD : FORM_GEMM_DATA, bytes, scratch, &packed, &is_ready));
    c->packed = packed;
    c->work = (float *)scratch + bytes / sizeof(float);
    if (!is_ready) gemm_pack_b(k, n, w->data, forward ? 1 : s->w_row, forward ? s->w_row : 1, c->packed);
    return DDPM_OK;
}

ddpm_status conv_1x1(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a)
{
    struct call c = {.s = s, .fwd = a, .x = a->x};
    TRY(prepare(be, &c, a->w, true));
    if (!cpu_is_measuring(be)) cpu_run(be, s->n * c.n_spans * c.span_blocks, forward_task, &c);
    return DDPM_OK;
}

static void data_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const struct conv *s = c->s;
    const struct place at = place_of(c, i);
    const float *dy = conv_f32(c->data->dy) + ((at.n * c->n_spans + at.span) * c->span + at.p0) * s->k;
    gemm_run(&(struct gemm){.m = at.pixels, .n = s->c, .k = s->k, .a = dy, .a_row = s->k, .a_col = 1, .b = c->packed,
                            .packed_b = true, .c = x_at(c, at.n, at.span, at.p0),
                            .c_row = s->stride * c->x->stride[2], .accumulate = c->data->accumulate},
             work_of(c, thread));
}

/* With stride 2 three pixels of four get nothing. */
static void zero_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    float *row = (float *)c->x->data + i / c->s->h * c->x->stride[0] + i % c->s->h * c->x->stride[1];
    for (int64_t w = 0; w < c->s->w; w++)
        memset(row + w * c->x->stride[2], 0, (size_t)c->s->c * sizeof(float));
}

ddpm_status conv_1x1_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a)
{
    struct call c = {.s = s, .data = a, .x = a->dx};
    TRY(prepare(be, &c, a->w, false));
    if (cpu_is_measuring(be)) return DDPM_OK;
    if (s->stride == 2 && !a->accumulate) cpu_run(be, s->n * s->h, zero_task, &c);
    cpu_run(be, s->n * c.n_spans * c.span_blocks, data_task, &c);
    return DDPM_OK;
}

static void filter_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const struct conv *s = c->s;
    const int64_t columns = conv_blocks(s->c, TILE_COLUMNS), k0 = i / columns * TILE_ROWS, c0 = i % columns * TILE_COLUMNS;
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t span = 0; span < c->n_spans; span++)
            gemm_run(&(struct gemm){.m = s->k - k0 < TILE_ROWS ? s->k - k0 : TILE_ROWS,
                                    .n = s->c - c0 < TILE_COLUMNS ? s->c - c0 : TILE_COLUMNS, .k = c->span,
                                    .a = conv_f32(c->filter->dy) + (n * c->n_spans + span) * c->span * s->k + k0,
                                    .a_row = 1, .a_col = s->k, .b = x_at(c, n, span, 0) + c0,
                                    .b_row = s->stride * c->x->stride[2], .b_col = 1,
                                    .c = (float *)c->filter->dw->data + k0 * s->w_row + c0, .c_row = s->w_row,
                                    .accumulate = true},
                     work_of(c, thread));
}

static struct tall_piece filter_piece(const void *context, int64_t i, float *room)
{
    (void)room;
    const struct call *c = context;
    const struct conv *s = c->s;
    const int64_t blocks = conv_blocks(c->span, TALL_ROWS), p0 = i % blocks * TALL_ROWS, span = i / blocks;
    return (struct tall_piece){.rows = c->span - p0 < TALL_ROWS ? c->span - p0 : TALL_ROWS,
                               .a = conv_f32(c->filter->dy) + (span * c->span + p0) * s->k, .a_row = s->k,
                               .b = x_at(c, span / c->n_spans, span % c->n_spans, p0), .b_row = s->stride * c->x->stride[2]};
}

ddpm_status conv_1x1_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a)
{
    struct call c = {.s = s, .filter = a, .x = a->x};
    const size_t sums = conv_line((size_t)(s->n * s->k) * sizeof(float));
    const bool is_tall = tall_fits(s->k, s->c);
    void *scratch;
    set_spans(&c);
    const struct tall tall = {.m = s->k, .n = s->c, .pieces = s->n * c.n_spans * conv_blocks(c.span, TALL_ROWS),
                              .piece = filter_piece, .context = &c, .c = a->dw->data, .c_row = s->w_row};
    const size_t work = is_tall ? tall_floats(be, &tall) : (size_t)cpu_threads(be) * gemm_work_floats();
    TRY(cpu_scratch(be, sums + work * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.work = (float *)scratch + sums / sizeof(float);
    if (is_tall)
        tall_run(be, &tall, c.work);
    else
        cpu_run(be, conv_blocks(s->k, TILE_ROWS) * conv_blocks(s->c, TILE_COLUMNS), filter_task, &c);
    conv_sums(be, s, a->dy, a->db, a->demb, scratch);
    return DDPM_OK;
}

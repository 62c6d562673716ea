/* conv_winograd.c - 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): a quarter of the multiplications.
 *
 * The images' tiles are one long list, worked off in chunks: transform the chunk's pixels (V), multiply 36 matrices
 * [tiles, C] x [C, K] (M), transform back with bias, embedding and residual added on the way. Each of the three is a round of
 * tasks; a chunk is small enough for V and M to stay in the caches. Data is the same with the kernel turned round and its
 * channels exchanged. Filter adds up S[p] = W[p]^T V[p] over the chunks, in their order, and transforms once at the end.
 *
 * Cost: 36/144 of the direct multiplications, and 2.25 times the activations written and read twice, in the caches. Fusing
 * the three rounds for a small block of tiles per thread was not taken: U (9 MiB for 256 x 256) would be read anew
 * for every block, and few tiles would leave threads idle. */
#include "conv.h"
#include "gemm.h"
#include "winograd.h"

#define POINTS      WINOGRAD_POINTS
#define CHUNK       192 /* tiles: 16 rows of micro-tiles */
#define TILES_LEAST 4   /* of an image; fewer, and transforming the weights costs more than it saves */
#define TASK_TILES  8   /* of a transform task */
#define COLUMNS     128 /* of a product task; a multiple of every panel's width */
#define FILTER_ROWS 96

struct call {
    const struct conv *s;
    int64_t in, out;          /* channels of the pixels that V and M are made of */
    int64_t in_h, in_w, out_h, out_w, pad_top, pad_left;
    int64_t tiles_x, tiles_image, tiles;
    int64_t first, count;     /* the chunk */
    const ddpm_tensor *from, *to, *add;
    const float *offsets;     /* [n, out] or [out] */
    int64_t offset_image;     /* from one image's offsets to the next's */
    const float *w;
    bool turned;
    float *u, *v, *m, *work;  /* packed U [36][panels]; V [36][CHUNK][in]; M [36][CHUNK][out] */
    size_t u_point;
    float *dw;                /* filter: M is W */
    int64_t dw_row;
};

/* Of an image, not of the batch: an image's result must not depend on how many are computed with it. */
bool conv_winograd_fits(const struct conv *s)
{
    const int64_t tiles = conv_blocks(s->ho, WINOGRAD_TILE) * conv_blocks(s->wo, WINOGRAD_TILE);
    return s->kernel == 3 && s->stride == 1 && s->c % 16 == 0 && s->k % 16 == 0 && tiles >= TILES_LEAST;
}

struct tile {
    int64_t n, h, w; /* image and first pixel of the 4x4 result */
};

static struct tile tile_of(const struct call *c, int64_t i)
{
    const int64_t in_image = i % c->tiles_image;
    return (struct tile){.n = i / c->tiles_image,
                         .h = in_image / c->tiles_x * WINOGRAD_TILE,
                         .w = in_image % c->tiles_x * WINOGRAD_TILE};
}

static int clip(int64_t x, int64_t most)
{
    return (int)(x < 0 ? 0 : x > most ? most : x);
}

/* The size x size patch of t whose first pixel is (h, w) of image n. */
static float *patch_of(const ddpm_tensor *t, int64_t n, int64_t h, int64_t w, int64_t size, struct winograd_patch *out)
{
    *out = (struct winograd_patch){.row = t->stride[1], .column = t->stride[2],
                                   .row_begin = clip(-h, size), .row_end = clip(t->dim[1] - h, size),
                                   .column_begin = clip(-w, size), .column_end = clip(t->dim[2] - w, size)};
    return (float *)t->data + n * t->stride[0] + h * t->stride[1] + w * t->stride[2];
}

static int64_t task_end(const struct call *c, int64_t i)
{
    return (i + 1) * TASK_TILES < c->count ? (i + 1) * TASK_TILES : c->count;
}

static void input_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    for (int64_t j = i * TASK_TILES; j < task_end(c, i); j++) {
        const struct tile t = tile_of(c, c->first + j);
        struct winograd_patch at;
        const float *x = patch_of(c->from, t.n, t.h - c->pad_top, t.w - c->pad_left, 6, &at);
        winograd_input(x, &at, c->in, c->v + j * c->in, CHUNK * c->in);
    }
}

static void product_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const int64_t columns = conv_blocks(c->out, COLUMNS), p = i / columns, j0 = i % columns * COLUMNS;
    gemm_run(&(struct gemm){.m = c->count, .n = c->out - j0 < COLUMNS ? c->out - j0 : COLUMNS, .k = c->in,
                            .a = c->v + p * CHUNK * c->in, .a_row = c->in, .a_col = 1,
                            .b = c->u + (size_t)p * c->u_point + (size_t)(j0 * c->in), .packed_b = true,
                            .c = c->m + p * CHUNK * c->out + j0, .c_row = c->out},
             c->work + (size_t)thread * gemm_work_floats());
}

static void output_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    for (int64_t j = i * TASK_TILES; j < task_end(c, i); j++) {
        const struct tile t = tile_of(c, c->first + j);
        struct winograd_patch at;
        float *y = patch_of(c->to, t.n, t.h, t.w, WINOGRAD_TILE, &at);
        const float *add = c->add ? conv_f32(c->add) + (y - conv_f32(c->to)) : NULL;
        winograd_output(c->m + j * c->out, CHUNK * c->out, c->out, c->offsets ? c->offsets + t.n * c->offset_image : NULL,
                        add, &at, y);
    }
}

/* U of 16 output channels, packed as gemm_pack_b does; zero behind the last channel. */
static void weights_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    const struct conv *s = c->s;
    const int64_t nr = gemm_kernel()->nr, o = i * 16;
    float *u = c->u + o / nr * nr * c->in + o % nr;
    for (int64_t k = 0; k < c->in; k++, u += nr) {
        if (o < c->out) {
            const float *w = c->turned ? c->w + k * s->w_row + o : c->w + o * s->w_row + k;
            winograd_weights(w, c->turned ? 1 : s->w_row, s->c, c->turned, u, (int64_t)c->u_point);
            continue;
        }
        for (int p = 0; p < POINTS; p++)
            for (int j = 0; j < 16; j++)
                u[(size_t)p * c->u_point + (size_t)j] = 0;
    }
}

static void set_tiles(struct call *c)
{
    c->tiles_x = conv_blocks(c->out_w, WINOGRAD_TILE);
    c->tiles_image = c->tiles_x * conv_blocks(c->out_h, WINOGRAD_TILE);
    c->tiles = c->s->n * c->tiles_image;
}

/* Forward and data: everything but what the caller has put into c. `offsets`: floats of scratch wanted in front. */
static ddpm_status run(ddpm_backend *be, struct call *c, const ddpm_tensor *w, int form, size_t offsets, float **front)
{
    c->u_point = gemm_packed_floats(c->in, c->out);
    set_tiles(c);
    const size_t u = conv_line(POINTS * c->u_point * sizeof(float)) / sizeof(float);
    const size_t v = (size_t)(POINTS * CHUNK * c->in), m = (size_t)(POINTS * CHUNK * c->out);
    const size_t work = (size_t)cpu_threads(be) * gemm_work_floats();
    void *scratch, *packed;
    bool is_ready;
    offsets = conv_line(offsets * sizeof(float)) / sizeof(float);
    TRY(cpu_scratch(be, (offsets + u + v + m + work) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    *front = scratch;
    c->v = (float *)scratch + offsets + u;
    c->m = c->v + v;
    c->work = c->m + m;
    TRY(packed_place(be, w->data, form, u * sizeof(float), (float *)scratch + offsets, &packed, &is_ready));
    c->u = packed;
    c->w = w->data;
    if (!is_ready) cpu_run(be, conv_blocks(c->out, gemm_kernel()->nr) * (gemm_kernel()->nr / 16), weights_task, c);
    return DDPM_OK;
}

static void run_chunks(ddpm_backend *be, struct call *c)
{
    for (c->first = 0; c->first < c->tiles; c->first += CHUNK) {
        c->count = c->tiles - c->first < CHUNK ? c->tiles - c->first : CHUNK;
        cpu_run(be, conv_blocks(c->count, TASK_TILES), input_task, c);
        cpu_run(be, POINTS * conv_blocks(c->out, COLUMNS), product_task, c);
        cpu_run(be, conv_blocks(c->count, TASK_TILES), output_task, c);
    }
}

ddpm_status conv_winograd(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a)
{
    struct call c = {.s = s, .in = s->c, .out = s->k, .in_h = s->h, .in_w = s->w, .out_h = s->ho, .out_w = s->wo,
                     .pad_top = s->pad_top, .pad_left = s->pad_left, .from = a->x, .to = a->y, .add = a->residual};
    float *offsets = NULL;
    TRY(run(be, &c, a->w, FORM_WINOGRAD_FORWARD, a->emb ? (size_t)(s->n * s->k) : 0, &offsets));
    if (cpu_is_measuring(be)) return DDPM_OK;
    for (int64_t n = 0; a->emb && n < s->n; n++)
        conv_offsets(s, a->bias, a->emb, n, offsets + n * s->k);
    c.offsets = a->emb ? offsets : a->bias ? conv_f32(a->bias) : NULL;
    c.offset_image = a->emb ? s->k : 0;
    run_chunks(be, &c);
    return DDPM_OK;
}

ddpm_status conv_winograd_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a)
{
    struct call c = {.s = s, .in = s->k, .out = s->c, .in_h = s->ho, .in_w = s->wo, .out_h = s->h, .out_w = s->w,
                     .pad_top = 2 - s->pad_top, .pad_left = 2 - s->pad_left, .from = a->dy, .to = a->dx,
                     .add = a->accumulate ? a->dx : NULL, .turned = true};
    float *front;
    TRY(run(be, &c, a->w, FORM_WINOGRAD_DATA, 0, &front));
    if (!cpu_is_measuring(be)) run_chunks(be, &c);
    return DDPM_OK;
}

/* --- filter: `to` is dy, m its transform, u the sums S[p] [K, C] --- */

static void gradient_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    for (int64_t j = i * TASK_TILES; j < task_end(c, i); j++) {
        const struct tile t = tile_of(c, c->first + j);
        struct winograd_patch at;
        const float *dy = patch_of(c->to, t.n, t.h, t.w, WINOGRAD_TILE, &at);
        winograd_gradient(dy, &at, c->out, c->m + j * c->out, CHUNK * c->out);
    }
}

static void sum_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const int64_t rows = conv_blocks(c->out, FILTER_ROWS), p = i / rows, k0 = i % rows * FILTER_ROWS;
    gemm_run(&(struct gemm){.m = c->out - k0 < FILTER_ROWS ? c->out - k0 : FILTER_ROWS, .n = c->in, .k = c->count,
                            .a = c->m + p * CHUNK * c->out + k0, .a_row = 1, .a_col = c->out,
                            .b = c->v + p * CHUNK * c->in, .b_row = c->in, .b_col = 1,
                            .c = c->u + (p * c->out + k0) * c->in, .c_row = c->in, .accumulate = c->first > 0},
             c->work + (size_t)thread * gemm_work_floats());
}

static void weight_gradient_task(void *context, int64_t k, int thread)
{
    (void)thread;
    const struct call *c = context;
    winograd_weight_gradient(c->u + k * c->in, c->out * c->in, c->in, c->dw + k * c->dw_row, c->in);
}

ddpm_status conv_winograd_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a)
{
    struct call c = {.s = s, .in = s->c, .out = s->k, .out_h = s->ho, .out_w = s->wo, .pad_top = s->pad_top,
                     .pad_left = s->pad_left, .from = a->x};
    ddpm_tensor dy = *a->dy;
    const size_t sums = conv_line((size_t)(s->n * s->k) * sizeof(float)) / sizeof(float);
    const size_t u = (size_t)(POINTS * s->k * s->c);
    const size_t v = (size_t)(POINTS * CHUNK * s->c), m = (size_t)(POINTS * CHUNK * s->k);
    void *scratch;
    set_tiles(&c);
    TRY(cpu_scratch(be, (sums + u + v + m + (size_t)cpu_threads(be) * gemm_work_floats()) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.to = &dy;
    c.u = (float *)scratch + sums;
    c.v = c.u + u;
    c.m = c.v + v;
    c.work = c.m + m;
    c.dw = a->dw->data;
    c.dw_row = s->w_row;
    for (; c.first < c.tiles; c.first += CHUNK) {
        c.count = c.tiles - c.first < CHUNK ? c.tiles - c.first : CHUNK;
        cpu_run(be, conv_blocks(c.count, TASK_TILES), input_task, &c);
        cpu_run(be, conv_blocks(c.count, TASK_TILES), gradient_task, &c);
        cpu_run(be, POINTS * conv_blocks(c.out, FILTER_ROWS), sum_task, &c);
    }
    cpu_run(be, s->k, weight_gradient_task, &c);
    conv_sums(be, s, a->dy, a->db, a->demb, scratch);
    return DDPM_OK;
}

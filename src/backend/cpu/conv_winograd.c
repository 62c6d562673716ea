/* conv_winograd.c - 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): a quarter of the multiplications.
 *
 * The images' tiles are one long list. Forward, a task takes some of them all the way: it transforms their pixels (V), and for 32
 * output channels at a time multiplies 36 matrices [tiles, C] x [C, 32] (M) and transforms back with bias, embedding and
 * residual added on the way. V and M stay in the thread's own cache; U, the transformed weights, is read once per task, which 24 tiles
 * pay for. Data is the same with the kernel turned round and its channels exchanged. Rounds of tasks that share V and M of larger
 * chunks were half as fast for 32 and 64 channels: every number went through the cache that the cores share.
 *
 * Filter adds up S[p] = W[p]^T V[p] over chunks of tiles, in their order, and transforms once at the end. Its sums need long
 * chunks, so there each step is a round of tasks. V is written in the panels that a product reads, and W with rows that do not
 * fall on the same cache sets, so nothing is packed. */
#include "conv.h"
#include "gemm.h"
#include "winograd.h"

#include <string.h>

#define POINTS      WINOGRAD_POINTS
#define TILES_MOST  24  /* of a forward task; whole micro-tiles, as is the least */
#define TILES_LOW   12
#define CHUNK       192 /* tiles of filter's rounds */
#define TILES_LEAST 4   /* of an image; fewer, and transforming the weights costs more than it saves */
#define TASK_TILES  8   /* of a transform task of filter */
#define COLUMNS     32  /* of a product forward; a multiple of every panel's width */
#define APART       16  /* floats between the matrices of two points, so that a tile's 36 numbers are not all in one cache set */
#define FILTER_ROWS 96

struct call {
    const struct conv *s;
    int64_t in, out;          /* channels of the pixels that V and M are made of */
    int64_t out_h, out_w, pad_top, pad_left;
    int64_t tiles_x, tiles_image, tiles;
    int64_t first, count;     /* filter: the chunk */
    int64_t task_tiles;       /* forward */
    const ddpm_tensor *from, *to, *add;
    const float *offsets;     /* [n, out] or [out] */
    int64_t offset_image;     /* from one image's offsets to the next's */
    const float *w;
    bool turned;
    float *u;                 /* forward: packed [36][panels] */
    size_t u_point;
    float *work;              /* forward: each thread's V [36][task_tiles][in], M [36][task_tiles][COLUMNS] and gemm's */
    size_t work_floats;
    float *v, *m;             /* filter: V [36][panels], W [36][CHUNK][m_row] */
    int64_t v_point, m_point; /* from one point's matrix to the next's */
    int64_t m_row;
    float *dw;
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

/* --- forward and data --- */

static void transform_input(const struct call *c, int64_t first, int64_t count, float *v)
{
    for (int64_t j = 0; j < count; j++) {
        const struct tile t = tile_of(c, first + j);
        struct winograd_patch at;
        const float *x = patch_of(c->from, t.n, t.h - c->pad_top, t.w - c->pad_left, 6, &at);
        winograd()->input(x, &at, c->in, v + j * c->in, c->v_point, c->in, 0);
    }
}

static void transform_output(const struct call *c, int64_t first, int64_t count, const float *m, int64_t k0,
                             int64_t columns)
{
    for (int64_t j = 0; j < count; j++) {
        const struct tile t = tile_of(c, first + j);
        struct winograd_patch at;
        float *y = patch_of(c->to, t.n, t.h, t.w, WINOGRAD_TILE, &at) + k0;
        const float *add = c->add ? conv_f32(c->add) + (y - conv_f32(c->to)) : NULL;
        winograd()->output(m + j * COLUMNS, c->m_point, columns,
                        c->offsets ? c->offsets + t.n * c->offset_image + k0 : NULL, add, &at, y);
    }
}

static void tiles_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const int64_t first = i * c->task_tiles, left = c->tiles - first, count = left < c->task_tiles ? left : c->task_tiles;
    float *v = c->work + (size_t)thread * c->work_floats, *m = v + POINTS * c->v_point;
    float *work = m + POINTS * c->m_point;
    transform_input(c, first, count, v);
    for (int64_t k0 = 0; k0 < c->out; k0 += COLUMNS) {
        const int64_t columns = c->out - k0 < COLUMNS ? c->out - k0 : COLUMNS;
        for (int64_t p = 0; p < POINTS; p++)
            gemm_run(&(struct gemm){.m = count, .n = columns, .k = c->in,
                                    .a = v + p * c->v_point, .a_row = c->in, .a_col = 1,
                                    .b = c->u + (size_t)p * c->u_point + (size_t)(k0 * c->in), .packed_b = true,
                                    .c = m + p * c->m_point, .c_row = COLUMNS},
                     work);
        transform_output(c, first, count, m, k0, columns);
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
            winograd()->weights(w, c->turned ? 1 : s->w_row, s->c, c->turned, u, (int64_t)c->u_point);
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

/* Fewer tiles a task where there would be too few tasks for the threads: a result depends on its own tile alone. */
static int64_t tiles_of_task(int64_t tiles, int threads)
{
    return tiles >= 2 * (int64_t)threads * TILES_MOST ? TILES_MOST : TILES_LOW;
}

/* Forward and data: everything but what the caller has put into c. `offsets`: floats of scratch wanted in front. */
static ddpm_status prepare(ddpm_backend *be, struct call *c, const ddpm_tensor *w, int form, size_t offsets, float **front)
{
    c->u_point = gemm_packed_floats(c->in, c->out);
    set_tiles(c);
    c->task_tiles = tiles_of_task(c->tiles, cpu_threads(be));
    const size_t u = conv_line(POINTS * c->u_point * sizeof(float)) / sizeof(float);
    c->v_point = c->task_tiles * c->in + APART;
    c->m_point = c->task_tiles * COLUMNS + APART;
    c->work_floats = (size_t)(POINTS * (c->v_point + c->m_point)) + gemm_work_floats();
    const size_t work = (size_t)cpu_threads(be) * c->work_floats;
    void *scratch, *packed;
    bool is_ready;
    offsets = conv_line(offsets * sizeof(float)) / sizeof(float);
    TRY(cpu_scratch(be, (offsets + u + work) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    *front = scratch;
    c->work = (float *)scratch + offsets + u;
    TRY(packed_place(be, w->data, form, u * sizeof(float), (float *)scratch + offsets, &packed, &is_ready));
    c->u = packed;
    c->w = w->data;
    if (!is_ready) cpu_run(be, conv_blocks(c->out, gemm_kernel()->nr) * (gemm_kernel()->nr / 16), weights_task, c);
    return DDPM_OK;
}

static void run(ddpm_backend *be, struct call *c)
{
    cpu_run(be, conv_blocks(c->tiles, c->task_tiles), tiles_task, c);
}

ddpm_status conv_winograd(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a)
{
    struct call c = {.s = s, .in = s->c, .out = s->k, .out_h = s->ho, .out_w = s->wo,
                     .pad_top = s->pad_top, .pad_left = s->pad_left, .from = a->x, .to = a->y, .add = a->residual};
    float *offsets = NULL;
    TRY(prepare(be, &c, a->w, FORM_WINOGRAD_FORWARD, a->emb ? (size_t)(s->n * s->k) : 0, &offsets));
    if (cpu_is_measuring(be)) return DDPM_OK;
    for (int64_t n = 0; a->emb && n < s->n; n++)
        conv_offsets(s, a->bias, a->emb, n, offsets + n * s->k);
    c.offsets = a->emb ? offsets : a->bias ? conv_f32(a->bias) : NULL;
    c.offset_image = a->emb ? s->k : 0;
    run(be, &c);
    return DDPM_OK;
}

ddpm_status conv_winograd_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a)
{
    struct call c = {.s = s, .in = s->k, .out = s->c, .out_h = s->h, .out_w = s->w,
                     .pad_top = 2 - s->pad_top, .pad_left = 2 - s->pad_left, .from = a->dy, .to = a->dx,
                     .add = a->accumulate ? a->dx : NULL, .turned = true};
    float *front;
    TRY(prepare(be, &c, a->w, FORM_WINOGRAD_DATA, 0, &front));
    if (!cpu_is_measuring(be)) run(be, &c);
    return DDPM_OK;
}

/* --- filter: `to` is dy, m its transform, u the sums S[p] [K, C] --- */

static int64_t task_end(const struct call *c, int64_t i)
{
    return (i + 1) * TASK_TILES < c->count ? (i + 1) * TASK_TILES : c->count;
}

static void input_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    const int nr = gemm_kernel()->nr;
    for (int64_t j = i * TASK_TILES; j < task_end(c, i); j++) {
        const struct tile t = tile_of(c, c->first + j);
        struct winograd_patch at;
        const float *x = patch_of(c->from, t.n, t.h - c->pad_top, t.w - c->pad_left, 6, &at);
        winograd()->input(x, &at, c->in, c->v + j * nr, c->v_point, nr, c->count * nr);
    }
}

static void gradient_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    for (int64_t j = i * TASK_TILES; j < task_end(c, i); j++) {
        const struct tile t = tile_of(c, c->first + j);
        struct winograd_patch at;
        const float *dy = patch_of(c->to, t.n, t.h, t.w, WINOGRAD_TILE, &at);
        winograd()->gradient(dy, &at, c->out, c->m + j * c->m_row, c->m_point);
    }
}

static void sum_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const int64_t rows = conv_blocks(c->out, FILTER_ROWS), p = i / rows, k0 = i % rows * FILTER_ROWS;
    gemm_run(&(struct gemm){.m = c->out - k0 < FILTER_ROWS ? c->out - k0 : FILTER_ROWS, .n = c->in, .k = c->count,
                            .a = c->m + p * c->m_point + k0, .a_row = 1, .a_col = c->m_row,
                            .b = c->v + p * c->v_point, .packed_b = true,
                            .c = c->u + (p * c->out + k0) * c->in, .c_row = c->in, .accumulate = c->first > 0},
             c->work + (size_t)thread * gemm_work_floats());
}

static void weight_gradient_task(void *context, int64_t k, int thread)
{
    (void)thread;
    const struct call *c = context;
    winograd()->weight_gradient(c->u + k * c->in, c->out * c->in, c->in, c->dw + k * c->dw_row, c->in);
}

ddpm_status conv_winograd_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a)
{
    struct call c = {.s = s, .in = s->c, .out = s->k, .out_h = s->ho, .out_w = s->wo, .pad_top = s->pad_top,
                     .pad_left = s->pad_left, .from = a->x, .to = a->dy};
    c.v_point = (int64_t)gemm_packed_floats(CHUNK, s->c) + APART;
    c.m_row = s->k % 32 ? s->k : s->k + 16;
    c.m_point = CHUNK * c.m_row + APART;
    const size_t sums = conv_line((size_t)(s->n * s->k) * sizeof(float)) / sizeof(float);
    const size_t u = (size_t)(POINTS * s->k * s->c), v = (size_t)(POINTS * c.v_point);
    const size_t m = (size_t)(POINTS * c.m_point);
    void *scratch;
    set_tiles(&c);
    TRY(cpu_scratch(be, (sums + u + v + m + (size_t)cpu_threads(be) * gemm_work_floats()) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.u = (float *)scratch + sums;
    c.v = c.u + u;
    c.m = c.v + v;
    c.work = c.m + m;
    c.dw = a->dw->data;
    c.dw_row = s->w_row;
    /* columns behind the last channel, where it does not fill a panel */
    if (s->c % gemm_kernel()->nr) memset(c.v, 0, v * sizeof *c.v);
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

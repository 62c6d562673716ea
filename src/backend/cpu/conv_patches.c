/* conv_patches.c - the gradient of any filter, as a product of dy with the patches of x.
 *
 *     dw[K, taps * C] += dy[P, K]^T patches[P, taps * C]
 *
 * Few weights: by groups of pixels (tall.h), whose patches a task lays out as it goes. Many: pixels are worked off in chunks: a round of tasks lays out the patches of a chunk, a round adds their product to tiles of dw, each
 * tile by one task. No partial dw exists, so nothing is added up afterwards, and the order of the sum is that of the
 * pixels. This is for what Winograd does not take: strides of 2, 4x4 images, odd channels. */
#include "conv.h"
#include "gemm.h"
#include "tall.h"

#include <string.h>

#define PATCH_FLOATS ((int64_t)1 << 20) /* of a chunk, at most */
#define CHUNK_LEAST  64                 /* pixels */
#define CHUNK_MOST   512
#define TASK_PIXELS  16
#define TILE_ROWS    96
#define TILE_COLUMNS 256

struct call {
    const struct conv *s;
    const struct conv2d_bwd_filter_args *a;
    int64_t row, pixels, chunk; /* floats of a patch; all pixels of dy; pixels of a chunk */
    int64_t first, count;
    float *patches, *work;
};

static void lay_out(const struct call *c, int64_t first, int64_t count, float *to)
{
    const struct conv *s = c->s;
    const ddpm_tensor *x = c->a->x;
    for (int64_t p = first; p < first + count; p++) {
        const int64_t n = p / (s->ho * s->wo), ho = p / s->wo % s->ho, wo = p % s->wo;
        for (int64_t tap = 0; tap < s->kernel * s->kernel; tap++, to += s->c) {
            const int64_t h = ho * s->stride - s->pad_top + tap / s->kernel, w = wo * s->stride - s->pad_left + tap % s->kernel;
            if (h >= 0 && h < s->h && w >= 0 && w < s->w)
                memcpy(to, conv_f32(x) + n * x->stride[0] + h * x->stride[1] + w * x->stride[2], (size_t)s->c * sizeof *to);
            else
                memset(to, 0, (size_t)s->c * sizeof *to);
        }
    }
}

static struct tall_piece piece(const void *context, int64_t i, float *room)
{
    const struct call *c = context;
    const int64_t first = i * c->chunk, count = c->pixels - first < c->chunk ? c->pixels - first : c->chunk;
    lay_out(c, first, count, room);
    return (struct tall_piece){.rows = count, .a = conv_f32(c->a->dy) + first * c->s->k, .a_row = c->s->k, .b = room, .b_row = c->row};
}

static void patch_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    const int64_t first = i * TASK_PIXELS, left = c->count - first, count = left < TASK_PIXELS ? left : TASK_PIXELS;
    lay_out(c, c->first + first, count, c->patches + first * c->row);
}

static void tile_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const struct conv *s = c->s;
    const int64_t columns = conv_blocks(c->row, TILE_COLUMNS), k0 = i / columns * TILE_ROWS, c0 = i % columns * TILE_COLUMNS;
    gemm_run(&(struct gemm){.m = s->k - k0 < TILE_ROWS ? s->k - k0 : TILE_ROWS,
                            .n = c->row - c0 < TILE_COLUMNS ? c->row - c0 : TILE_COLUMNS, .k = c->count,
                            .a = conv_f32(c->a->dy) + c->first * s->k + k0, .a_row = 1, .a_col = s->k,
                            .b = c->patches + c0, .b_row = c->row, .b_col = 1,
                            .c = (float *)c->a->dw->data + k0 * s->w_row + c0, .c_row = s->w_row, .accumulate = true},
             c->work + (size_t)thread * gemm_work_floats());
}

static ddpm_status by_groups(ddpm_backend *be, struct call *c)
{
    const struct conv *s = c->s;
    const size_t sums = conv_line((size_t)(s->n * s->k) * sizeof(float)) / sizeof(float);
    c->chunk = TALL_ROWS;
    const struct tall tall = {.m = s->k, .n = c->row, .pieces = conv_blocks(c->pixels, c->chunk), .piece = piece, .context = c,
                              .room_floats = (size_t)(c->chunk * c->row), .c = c->a->dw->data, .c_row = s->w_row};
    void *scratch;
    TRY(cpu_scratch(be, (sums + tall_floats(be, &tall)) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    tall_run(be, &tall, (float *)scratch + sums);
    conv_sums(be, s, c->a->dy, c->a->db, c->a->demb, scratch);
    return DDPM_OK;
}

ddpm_status conv_patches_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a)
{
    struct call c = {.s = s, .a = a, .row = s->kernel * s->kernel * s->c, .pixels = s->n * s->ho * s->wo};
    if (tall_fits(s->k, c.row)) return by_groups(be, &c);
    const size_t sums = conv_line((size_t)(s->n * s->k) * sizeof(float)) / sizeof(float);
    c.chunk = PATCH_FLOATS / c.row / TASK_PIXELS * TASK_PIXELS;
    if (c.chunk < CHUNK_LEAST) c.chunk = CHUNK_LEAST;
    if (c.chunk > CHUNK_MOST) c.chunk = CHUNK_MOST;
    if (c.chunk > c.pixels) c.chunk = c.pixels;
    const size_t patches = conv_line((size_t)(c.chunk * c.row) * sizeof(float)) / sizeof(float);
    void *scratch;
    TRY(cpu_scratch(be, (sums + patches + (size_t)cpu_threads(be) * gemm_work_floats()) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.patches = (float *)scratch + sums;
    c.work = c.patches + patches;
    for (; c.first < c.pixels; c.first += c.chunk) {
        c.count = c.pixels - c.first < c.chunk ? c.pixels - c.first : c.chunk;
        cpu_run(be, conv_blocks(c.count, TASK_PIXELS), patch_task, &c);
        cpu_run(be, conv_blocks(s->k, TILE_ROWS) * conv_blocks(c.row, TILE_COLUMNS), tile_task, &c);
    }
    conv_sums(be, s, a->dy, a->db, a->demb, scratch);
    return DDPM_OK;
}

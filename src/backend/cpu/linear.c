/* linear.c - dense layers, as products cut into blocks of rows and columns of the result.
 *
 * Each block is one task and one sum over the whole inner dimension, so no partial results exist and the bits depend
 * neither on the threads nor, for a row, on how many rows come with it: a sample does not change with its batch. For that reason a
 * batch of a few rows is a product too, though packing w costs it more than the product; sampling, where rows are
 * fewest, keeps the packed weights. */
#include "conv.h"
#include "gemm.h"
#include "tall.h"

#define ROWS    192 /* of a block, a multiple of every tile's height */
#define COLUMNS 128 /* a multiple of every panel's width */

enum { SUM_COLUMNS = 16 }; /* of a task of db */

struct linear_call {
    const struct linear_args *fwd;
    const struct linear_bwd_args *bwd;
    int64_t m, in, out;
    int64_t n_columns; /* blocks */
    float *packed, *work;
};

static int64_t blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

static const float *f32(const ddpm_tensor *t)
{
    return t->data;
}

static float *work_of(const struct linear_call *c, int thread)
{
    return c->work + (size_t)thread * gemm_work_floats();
}

static void pack_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct linear_call *c = context;
    const int64_t o0 = i * COLUMNS, n = c->out - o0 < COLUMNS ? c->out - o0 : COLUMNS;
    gemm_pack_b(c->in, n, f32(c->fwd->w) + o0 * c->in, 1, c->in, c->packed + o0 * c->in);
}

static void forward_task(void *context, int64_t i, int thread)
{
    const struct linear_call *c = context;
    const struct linear_args *a = c->fwd;
    const int64_t m0 = i / c->n_columns * ROWS, o0 = i % c->n_columns * COLUMNS;
    const int64_t m = c->m - m0 < ROWS ? c->m - m0 : ROWS;
    const int64_t n = c->out - o0 < COLUMNS ? c->out - o0 : COLUMNS;
    float *y = (float *)a->y->data + m0 * a->y->stride[0] + o0;
    for (int64_t r = 0; r < m; r++)
        for (int64_t o = 0; o < n; o++)
            y[r * a->y->stride[0] + o] = a->bias ? f32(a->bias)[o0 + o] : 0;
    gemm_run(&(struct gemm){.m = m, .n = n, .k = c->in,
                            .a = f32(a->x) + m0 * a->x->stride[0], .a_row = a->x->stride[0], .a_col = 1,
                            .b = c->packed + o0 * c->in, .packed_b = true,
                            .c = y, .c_row = a->y->stride[0], .accumulate = true},
             work_of(c, thread));
}

ddpm_status cpu_linear(ddpm_backend *be, const struct linear_args *a)
{
    const int64_t m = a->x->dim[0], in = a->x->dim[1], out = a->w->dim[0];
    struct linear_call c = {.fwd = a, .m = m, .in = in, .out = out, .n_columns = blocks(out, COLUMNS)};
    const size_t bytes = conv_line(gemm_packed_floats(in, out) * sizeof(float));
    void *scratch, *packed;
    bool is_ready;
    TRY(cpu_scratch(be, bytes + (size_t)cpu_threads(be) * gemm_work_floats() * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    TRY(packed_place(be, a->w->data, FORM_GEMM_FORWARD, bytes, scratch, &packed, &is_ready));
    c.packed = packed;
    c.work = (float *)((unsigned char *)scratch + bytes);
    if (!is_ready) cpu_run(be, c.n_columns, pack_task, &c);
    cpu_run(be, blocks(m, ROWS) * c.n_columns, forward_task, &c);
    return DDPM_OK;
}

static void dx_task(void *context, int64_t i, int thread)
{
    const struct linear_call *c = context;
    const struct linear_bwd_args *a = c->bwd;
    const int64_t m0 = i / c->n_columns * ROWS, i0 = i % c->n_columns * COLUMNS;
    gemm_run(&(struct gemm){.m = c->m - m0 < ROWS ? c->m - m0 : ROWS,
                            .n = c->in - i0 < COLUMNS ? c->in - i0 : COLUMNS, .k = c->out,
                            .a = f32(a->dy) + m0 * a->dy->stride[0], .a_row = a->dy->stride[0], .a_col = 1,
                            .b = f32(a->w) + i0, .b_row = c->in, .b_col = 1,
                            .c = (float *)a->dx->data + m0 * a->dx->stride[0] + i0, .c_row = a->dx->stride[0],
                            .accumulate = a->accumulate},
             work_of(c, thread));
}

static void dw_task(void *context, int64_t i, int thread)
{
    const struct linear_call *c = context;
    const struct linear_bwd_args *a = c->bwd;
    const int64_t o0 = i / c->n_columns * ROWS, i0 = i % c->n_columns * COLUMNS;
    gemm_run(&(struct gemm){.m = c->out - o0 < ROWS ? c->out - o0 : ROWS,
                            .n = c->in - i0 < COLUMNS ? c->in - i0 : COLUMNS, .k = c->m,
                            .a = f32(a->dy) + o0, .a_row = 1, .a_col = a->dy->stride[0],
                            .b = f32(a->x) + i0, .b_row = a->x->stride[0], .b_col = 1,
                            .c = (float *)a->dw->data + o0 * c->in + i0, .c_row = c->in, .accumulate = true},
             work_of(c, thread));
}

static struct tall_piece dw_piece(const void *context, int64_t i, float *room)
{
    (void)room;
    const struct linear_call *c = context;
    const struct linear_bwd_args *a = c->bwd;
    const int64_t first = i * TALL_ROWS;
    return (struct tall_piece){.rows = c->m - first < TALL_ROWS ? c->m - first : TALL_ROWS,
                               .a = f32(a->dy) + first * a->dy->stride[0], .a_row = a->dy->stride[0],
                               .b = f32(a->x) + first * a->x->stride[0], .b_row = a->x->stride[0]};
}

/* 16 columns of db, summed in two levels like a convolution's. */
static void db_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct linear_call *c = context;
    const struct linear_bwd_args *a = c->bwd;
    const int64_t o0 = i * SUM_COLUMNS, columns = c->out - o0 < SUM_COLUMNS ? c->out - o0 : SUM_COLUMNS;
    float sum[SUM_COLUMNS] = {0};
    for (int64_t m0 = 0; m0 < c->m; m0 += ROWS) {
        const int64_t end = m0 + ROWS < c->m ? m0 + ROWS : c->m;
        float part[SUM_COLUMNS] = {0};
        for (int64_t m = m0; m < end; m++)
            for (int64_t o = 0; o < columns; o++)
                part[o] += f32(a->dy)[m * a->dy->stride[0] + o0 + o];
        for (int64_t o = 0; o < columns; o++)
            sum[o] += part[o];
    }
    for (int64_t o = 0; o < columns; o++)
        ((float *)a->db->data)[o0 + o] += sum[o];
}

ddpm_status cpu_linear_bwd(ddpm_backend *be, const struct linear_bwd_args *a)
{
    const int64_t m = a->x->dim[0], in = a->x->dim[1], out = a->dy->dim[1];
    struct linear_call c = {.bwd = a, .m = m, .in = in, .out = out, .n_columns = blocks(in, COLUMNS)};
    const struct tall tall = {.m = out, .n = in, .pieces = blocks(m, TALL_ROWS), .piece = dw_piece, .context = &c,
                              .c = a->dw->data, .c_row = in};
    const bool is_tall = tall.pieces > 1 && tall_fits(out, in);
    const size_t rows_work = (size_t)cpu_threads(be) * gemm_work_floats(), tall_work = is_tall ? tall_floats(be, &tall) : 0;
    void *scratch;
    TRY(cpu_scratch(be, (rows_work > tall_work ? rows_work : tall_work) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.work = scratch;
    if (a->dx) cpu_run(be, blocks(m, ROWS) * c.n_columns, dx_task, &c);
    if (is_tall)
        tall_run(be, &tall, scratch);
    else
        cpu_run(be, blocks(out, ROWS) * c.n_columns, dw_task, &c);
    if (a->db) cpu_run(be, blocks(out, SUM_COLUMNS), db_task, &c);
    return DDPM_OK;
}

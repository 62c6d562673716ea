/* attention.c - scaled dot-product attention by blocks of query rows.
 *
 * Forward: a task is one block of queries of one head of one image: scores [block, T] by one product, softmax over whole rows,
 * o by a second product. Backward: a task is one head of one image; it goes through the blocks of queries in order, computes the
 * probabilities again from lse and adds to dk and dv, so the order of every sum is fixed. Memory is a block of rows per
 * thread, never T x T. An online softmax over blocks of keys was not taken: on a CPU a block of rows of T = 4096 is 1 MiB
 * and stays in the second-level cache, and the plain form needs no rescaling. */
#include "cpu.h"
#include "formulas.h"
#include "gemm.h"

#include <math.h>

#define ROWS 96 /* queries of a block: a multiple of every tile's height; fewer when T is long */
#define LONG_T 2048

struct attention_call {
    const struct attention_args *fwd;
    const struct attention_bwd_args *bwd;
    int64_t heads, t, d;
    int64_t rows, n_blocks;
    float *work; /* per thread: a product's work, then blocks [rows, t] */
    size_t work_floats;
};

static int64_t block_rows(int64_t t)
{
    const int64_t most = t > LONG_T ? ROWS / 2 : ROWS;
    return t < most ? t : most;
}

/* The first element of head h of image n. */
static float *head_of(const ddpm_tensor *x, int64_t n, int64_t h)
{
    return (float *)x->data + n * x->stride[0] + h * x->stride[2];
}

/* x[i] = exp(scale * x[i] - shift), returning their sum in 16 lanes, added pairwise */
static CPU_CLONES float exp_row(float *x, int64_t n, float scale, float shift)
{
    float sum[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) {
            x[i + j] = formula_exp(scale * x[i + j] - shift);
            sum[j] += x[i + j];
        }
    for (int j = 0; i < n; i++, j++) {
        x[i] = formula_exp(scale * x[i] - shift);
        sum[j] += x[i];
    }
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sum[j] += sum[j + half];
    return sum[0];
}

static CPU_CLONES float max_row(const float *x, int64_t n)
{
    float most[16];
    for (int j = 0; j < 16; j++)
        most[j] = x[0];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++)
            most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (; i < n; i++)
        most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int j = 1; j < 16; j++)
        most[0] = most[j] > most[0] ? most[j] : most[0];
    return most[0];
}

static CPU_CLONES void scale_row(float *x, int64_t n, float by)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= by;
}

/* s = (p * (ds - delta)) * scale in place of ds */
static CPU_CLONES void score_gradient(const float *p, float *ds, int64_t n, float delta, float scale)
{
    for (int64_t i = 0; i < n; i++)
        ds[i] = p[i] * (ds[i] - delta) * scale;
}

static void forward_task(void *context, int64_t i, int thread)
{
    const struct attention_call *c = context;
    const struct attention_args *a = c->fwd;
    const int64_t n = i / c->n_blocks / c->heads, h = i / c->n_blocks % c->heads;
    const int64_t t0 = i % c->n_blocks * c->rows, rows = c->t - t0 < c->rows ? c->t - t0 : c->rows;
    float *work = c->work + (size_t)thread * c->work_floats, *p = work + gemm_work_floats();
    float *o = head_of(a->o, n, h) + t0 * a->o->stride[1];
    gemm_run(&(struct gemm){.m = rows, .n = c->t, .k = c->d,
                            .a = head_of(a->q, n, h) + t0 * a->q->stride[1], .a_row = a->q->stride[1], .a_col = 1,
                            .b = head_of(a->k, n, h), .b_row = 1, .b_col = a->k->stride[1],
                            .c = p, .c_row = c->t},
             work);
    for (int64_t r = 0; r < rows; r++) {
        float *row = p + r * c->t;
        /* a negative scale turns the order round */
        float most = a->scale * max_row(row, c->t);
        if (a->scale < 0) {
            scale_row(row, c->t, -1);
            most = -a->scale * max_row(row, c->t);
        }
        const float sum = exp_row(row, c->t, fabsf(a->scale), most);
        scale_row(row, c->t, 1 / sum);
        if (a->lse) ((float *)a->lse->data)[(n * c->heads + h) * c->t + t0 + r] = most + logf(sum);
    }
    gemm_run(&(struct gemm){.m = rows, .n = c->d, .k = c->t, .a = p, .a_row = c->t, .a_col = 1,
                            .b = head_of(a->v, n, h), .b_row = a->v->stride[1], .b_col = 1,
                            .c = o, .c_row = a->o->stride[1]},
             work);
}

ddpm_status cpu_attention(ddpm_backend *be, const struct attention_args *a)
{
    const int64_t n = a->q->dim[0], t = a->q->dim[1], heads = a->q->dim[2], d = a->q->dim[3];
    struct attention_call c = {.fwd = a, .heads = heads, .t = t, .d = d, .rows = block_rows(t)};
    c.n_blocks = (t + c.rows - 1) / c.rows;
    c.work_floats = gemm_work_floats() + (size_t)(c.rows * t + 15) / 16 * 16;
    void *scratch;
    TRY(cpu_scratch(be, (size_t)cpu_threads(be) * c.work_floats * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.work = scratch;
    cpu_run(be, n * heads * c.n_blocks, forward_task, &c);
    return DDPM_OK;
}

/* One block of queries: p and ds [rows, T], then dq written, dk and dv added to. */
static void backward_block(const struct attention_call *c, int64_t n, int64_t h, int64_t t0, float *work)
{
    const struct attention_bwd_args *a = c->bwd;
    const int64_t rows = c->t - t0 < c->rows ? c->t - t0 : c->rows, t = c->t, d = c->d;
    float *p = work + gemm_work_floats(), *ds = p + c->rows * t;
    const float *q = head_of(a->q, n, h) + t0 * a->q->stride[1];
    const float *o = head_of(a->o, n, h) + t0 * a->o->stride[1];
    const float *d_o = head_of(a->d_o, n, h) + t0 * a->d_o->stride[1];
    const float *lse = (const float *)a->lse->data + (n * c->heads + h) * t + t0;
    gemm_run(&(struct gemm){.m = rows, .n = t, .k = d, .a = q, .a_row = a->q->stride[1], .a_col = 1,
                            .b = head_of(a->k, n, h), .b_row = 1, .b_col = a->k->stride[1], .c = p, .c_row = t},
             work);
    gemm_run(&(struct gemm){.m = rows, .n = t, .k = d, .a = d_o, .a_row = a->d_o->stride[1], .a_col = 1,
                            .b = head_of(a->v, n, h), .b_row = 1, .b_col = a->v->stride[1], .c = ds, .c_row = t},
             work);
    for (int64_t r = 0; r < rows; r++) {
        float delta = 0;
        for (int64_t j = 0; j < d; j++)
            delta += d_o[r * a->d_o->stride[1] + j] * o[r * a->o->stride[1] + j];
        exp_row(p + r * t, t, a->scale, lse[r]);
        score_gradient(p + r * t, ds + r * t, t, delta, a->scale);
    }
    gemm_run(&(struct gemm){.m = rows, .n = d, .k = t, .a = ds, .a_row = t, .a_col = 1,
                            .b = head_of(a->k, n, h), .b_row = a->k->stride[1], .b_col = 1,
                            .c = head_of(a->dq, n, h) + t0 * a->dq->stride[1], .c_row = a->dq->stride[1]},
             work);
    gemm_run(&(struct gemm){.m = t, .n = d, .k = rows, .a = ds, .a_row = 1, .a_col = t,
                            .b = q, .b_row = a->q->stride[1], .b_col = 1,
                            .c = head_of(a->dk, n, h), .c_row = a->dk->stride[1], .accumulate = t0 > 0},
             work);
    gemm_run(&(struct gemm){.m = t, .n = d, .k = rows, .a = p, .a_row = 1, .a_col = t,
                            .b = d_o, .b_row = a->d_o->stride[1], .b_col = 1,
                            .c = head_of(a->dv, n, h), .c_row = a->dv->stride[1], .accumulate = t0 > 0},
             work);
}

static void backward_task(void *context, int64_t i, int thread)
{
    const struct attention_call *c = context;
    for (int64_t t0 = 0; t0 < c->t; t0 += c->rows)
        backward_block(c, i / c->heads, i % c->heads, t0, c->work + (size_t)thread * c->work_floats);
}

ddpm_status cpu_attention_bwd(ddpm_backend *be, const struct attention_bwd_args *a)
{
    const int64_t n = a->q->dim[0], t = a->q->dim[1], heads = a->q->dim[2], d = a->q->dim[3];
    struct attention_call c = {.bwd = a, .heads = heads, .t = t, .d = d, .rows = block_rows(t)};
    c.work_floats = gemm_work_floats() + (size_t)(2 * c.rows * t + 15) / 16 * 16;
    void *scratch;
    TRY(cpu_scratch(be, (size_t)cpu_threads(be) * c.work_floats * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    c.work = scratch;
    cpu_run(be, n * heads, backward_task, &c);
    return DDPM_OK;
}

/* embedding.c - numbers to vectors: the sinusoids of the time step, and rows of a table for class labels.
 *
 * These are the smallest tensors of the network (N rows of a few hundred values), so they are computed plainly: the
 * sinusoids by libm in double, the rows by one loop each. embedding_bwd adds rows in the order of n, for two
 * images may carry the same label; it is cut by columns, where nothing is shared. */
#include "cpu.h"
#include "formulas.h"
#include "vector.h"

#define COLUMNS 256

struct time_embedding {
    const float *t;
    float *y;
    int64_t width;
    bool sin_cos;
    float shift;
};

static void time_task(void *context, int64_t n, int thread)
{
    const struct time_embedding *e = context;
    const int64_t half = e->width / 2;
    float *y = e->y + n * e->width;
    float *sines = e->sin_cos ? y : y + half, *cosines = e->sin_cos ? y + half : y;
    (void)thread;
    for (int64_t i = 0; i < half; i++) {
        const float f = formula_time_frequency(i, half, e->shift);
        sines[i] = formula_time_sin(e->t[n], f);
        cosines[i] = formula_time_cos(e->t[n], f);
    }
    if (e->width % 2) y[e->width - 1] = 0.0f;
}

ddpm_status cpu_time_embedding(ddpm_backend *be, const struct time_embedding_args *a)
{
    struct time_embedding e = {.t = a->t->data,
                               .y = a->y->data,
                               .width = a->y->dim[1],
                               .sin_cos = a->sin_cos,
                               .shift = a->shift};
    if (!cpu_is_measuring(be)) cpu_run(be, a->t->dim[0], time_task, &e);
    return DDPM_OK;
}

struct rows {
    const int32_t *label;
    float *rows;  /* [N,D], y or dy */
    float *table; /* [V,D], table or dtable */
    int64_t n, width;
    bool into_table;
};

CPU_CLONES static void add_row(int64_t n, const float *restrict from, float *restrict to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] += from[i];
}

static void rows_task(void *context, int64_t task, int thread)
{
    const struct rows *r = context;
    const int64_t at = task * COLUMNS, count = cpu_min(COLUMNS, r->width - at);
    (void)thread;
    for (int64_t n = 0; n < r->n; n++) {
        float *row = r->rows + n * r->width + at;
        float *entry = r->table + r->label[n] * r->width + at;
        if (r->into_table)
            add_row(count, row, entry);
        else
            add_row(count, entry, row);
    }
}

static ddpm_status run_rows(ddpm_backend *be, const ddpm_tensor *rows, const ddpm_tensor *table,
                            const int32_t *label, bool into_table)
{
    struct rows r = {.label = label,
                     .rows = rows->data,
                     .table = table->data,
                     .n = rows->dim[0],
                     .width = table->dim[1],
                     .into_table = into_table};
    if (!cpu_is_measuring(be)) cpu_run(be, cpu_ceil_div(r.width, COLUMNS), rows_task, &r);
    return DDPM_OK;
}

ddpm_status cpu_embedding(ddpm_backend *be, const struct embedding_args *a)
{
    return run_rows(be, a->y, a->table, a->label, false);
}

ddpm_status cpu_embedding_bwd(ddpm_backend *be, const struct embedding_bwd_args *a)
{
    return run_rows(be, a->dy, a->dtable, a->label, true);
}

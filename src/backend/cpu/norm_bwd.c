/* norm_bwd.c - the gradient of GroupNorm, scale-shift, SiLU and dropout, in two sweeps.
 *
 * With u = (x - mean) slope + offset, slope = rstd gamma (1 + scale), and du = dy * mask * silu'(u):
 *   sweep 1   per image and channel A = sum du, B = sum du (x - mean) rstd
 *             dshift = A, dscale = gamma B + beta A, dgamma += (1 + scale) B, dbeta += (1 + scale) A
 *   between   per group m1 = mean of gamma (1 + scale) A, m2 = mean of gamma (1 + scale) B
 *   sweep 2   dx = du slope - rstd m1 - (x - mean) rstd^2 m2 (+ add)
 *
 * Sums of a run in float, over runs and images in double and in order. Sweep 1 leaves du in dx, so that sweep 2 needs
 * neither SiLU's exponential nor dropout's words again; only where dx is the tensor to be added is du computed twice.
 * A resampled dy is brought to x's size a run at a time.
 * Cost: 12 bytes moved per value in sweep 1, 12 (16 with add) in sweep 2. */
#include "norm.h"

#include "formulas.h"
#include "resample.h"

struct groupnorm_bwd {
    struct norm_shape shape;
    struct norm_affine affine;
    struct norm_dropout dropout;
    bool silu;
    enum norm_resample resample;
    int64_t w; /* pixels of a row of x */
    const float *dy, *stats, *add[2];
    float *dx[2];
    const ddpm_tensor *dscale, *dshift; /* or NULL */
    float *dgamma, *dbeta;
    float *coef;   /* [N,5,C] mean, slope, offset; rstd m1, rstd^2 m2 */
    float *part;   /* [N,runs,2,C] sums of du and of du (x - mean) */
    double *sum;   /* [N,2,C] A, B */
    float *ready;  /* [threads,rows,C] with dropout: dy * mask of a run; where dy is resampled: it at x's size */
};

/* sum_du[i] += du, sum_dux[i] += du * (x - mean). dy has rows of dy_step values; du, rows of c, is NULL or written, and
 * may be dy. silu and keep are constants where this is inlined. */
CPU_INLINE void sum_rows_of(bool silu, bool keep, int64_t rows, int64_t c, const float *x, const float *dy,
                            int64_t dy_step, const float *restrict coef, int64_t coef_step, float *restrict sum_du,
                            float *restrict sum_dux, float *du)
{
    const float *mean = coef, *slope = mean + coef_step, *offset = slope + coef_step;
    for (int64_t r = 0; r < rows; r++, x += c, dy += dy_step) {
        float *to = keep ? du + r * c : NULL;
#pragma GCC ivdep
        for (int64_t i = 0; i < c; i++) {
            const float u = formula_norm(x[i], mean[i], slope[i], offset[i]);
            const float d = silu ? dy[i] * formula_silu_grad(u) : dy[i];
            sum_du[i] += d;
            sum_dux[i] = fmaf(d, x[i] - mean[i], sum_dux[i]);
            if (keep) to[i] = d;
        }
    }
}

CPU_CLONES static void sum_rows(bool silu, int64_t rows, int64_t c, const float *x, const float *dy, int64_t dy_step,
                                const float *coef, int64_t coef_step, float *sum_du, float *sum_dux, float *du)
{
    if (silu && du)
        sum_rows_of(true, true, rows, c, x, dy, dy_step, coef, coef_step, sum_du, sum_dux, du);
    else if (silu)
        sum_rows_of(true, false, rows, c, x, dy, dy_step, coef, coef_step, sum_du, sum_dux, du);
    else if (du)
        sum_rows_of(false, true, rows, c, x, dy, dy_step, coef, coef_step, sum_du, sum_dux, du);
    else
        sum_rows_of(false, false, rows, c, x, dy, dy_step, coef, coef_step, sum_du, sum_dux, du);
}

/* dx may be dy or add. silu and adds are constants where this is inlined. */
CPU_INLINE void dx_rows_of(bool silu, bool adds, int64_t rows, int64_t c, const float *x, const float *dy,
                           int64_t dy_step, const float *restrict coef, int64_t coef_step, const float *add, float *dx)
{
    const float *mean = coef, *slope = mean + coef_step, *offset = slope + coef_step;
    const float *m1 = offset + coef_step, *m2 = m1 + coef_step;
    for (int64_t r = 0; r < rows; r++, x += c, dy += dy_step, dx += c) {
        const float *more = adds ? add + r * c : NULL;
#pragma GCC ivdep
        for (int64_t i = 0; i < c; i++) {
            const float u = formula_norm(x[i], mean[i], slope[i], offset[i]);
            const float du = silu ? dy[i] * formula_silu_grad(u) : dy[i];
            const float d = formula_norm_bwd(du, x[i], mean[i], slope[i], m1[i], m2[i]);
            dx[i] = adds ? d + more[i] : d;
        }
    }
}

CPU_CLONES static void dx_rows(bool silu, int64_t rows, int64_t c, const float *x, const float *dy, int64_t dy_step,
                               const float *coef, int64_t coef_step, const float *add, float *dx)
{
    if (silu && add)
        dx_rows_of(true, true, rows, c, x, dy, dy_step, coef, coef_step, add, dx);
    else if (silu)
        dx_rows_of(true, false, rows, c, x, dy, dy_step, coef, coef_step, add, dx);
    else if (add)
        dx_rows_of(false, true, rows, c, x, dy, dy_step, coef, coef_step, add, dx);
    else
        dx_rows_of(false, false, rows, c, x, dy, dy_step, coef, coef_step, add, dx);
}

/* Does sweep 1 leave du in the k-th source's dx? */
static bool keeps_du(const struct groupnorm_bwd *g, int k)
{
    return (g->silu || g->dropout.p > 0 || g->resample != NORM_SAME) && g->dx[k] != g->add[k];
}

/* Pixels of x that rows of a resampled dy cover together. */
static int64_t resample_unit(enum norm_resample resample, int64_t w)
{
    return resample == NORM_MEAN2 ? 2 * w : w;
}

/* A run of dy at x's size; runs are made of whole units. */
static void resample_dy(const struct groupnorm_bwd *g, struct norm_run r, float *to)
{
    const int64_t c = g->shape.c, unit = resample_unit(g->resample, g->w);
    const int64_t first = r.n * g->shape.pixels + r.begin;
    for (int64_t at = 0; at < r.count; at += unit) {
        if (g->resample == NORM_UP2)
            gather_row(g->w, c, 1.0f, false, g->dy + (first + at) * 4 * c, to + at * c);
        else
            spread_row(g->w / 2, c, 0.25f, false, g->dy + (first + at) / 4 * c, to + at * c);
    }
}

/* dy of a run: at x's size, masked where there is dropout */
static const float *run_dy(const struct groupnorm_bwd *g, struct norm_run r, int thread)
{
    const struct norm_shape *s = &g->shape;
    float *ready = g->ready + thread * s->rows * s->c;
    if (g->resample != NORM_SAME) {
        resample_dy(g, r, ready);
        return ready;
    }
    const float *dy = g->dy + (r.n * s->pixels + r.begin) * s->c;
    if (g->dropout.p <= 0) return dy;
    norm_drop(s, &g->dropout, r, dy, ready);
    return ready;
}

static void run_sums(const struct groupnorm_bwd *g, int64_t n, int64_t run, int thread)
{
    const struct norm_shape *s = &g->shape;
    const struct norm_run r = norm_run_at(s, n, run);
    struct norm_part part[2];
    const int parts = norm_parts(s, r, part);
    const float *dy = run_dy(g, r, thread);
    float *sum = g->part + (n * s->runs + run) * 2 * s->c;
    memset(sum, 0, (size_t)(2 * s->c) * sizeof *sum);
    for (int k = 0; k < parts; k++) {
        const int64_t first = part[k].first;
        sum_rows(g->silu, r.count, part[k].c, part[k].x, dy + first, s->c, g->coef + n * 5 * s->c + first, s->c,
                 sum + first, sum + s->c + first, keeps_du(g, k) ? g->dx[k] + part[k].at : NULL);
    }
}

/* Runs of image n into A and B, and those into dscale, dshift and the two means of each group. */
static void merge_sums(const struct groupnorm_bwd *g, int64_t n)
{
    const struct norm_shape *s = &g->shape;
    const float *scale = g->affine.scale ? (const float *)g->affine.scale->data + n * g->affine.scale->stride[0] : NULL;
    float *dscale = g->dscale ? (float *)g->dscale->data + n * g->dscale->stride[0] : NULL;
    float *dshift = g->dshift ? (float *)g->dshift->data + n * g->dshift->stride[0] : NULL;
    float *coef = g->coef + n * 5 * s->c;
    double *a = g->sum + n * 2 * s->c, *b = a + s->c;
    memset(a, 0, (size_t)(2 * s->c) * sizeof *a);
    for (int64_t run = 0; run < s->runs; run++) {
        const float *part = g->part + (n * s->runs + run) * 2 * s->c;
        for (int64_t i = 0; i < 2 * s->c; i++)
            a[i] += (double)part[i];
    }
    for (int64_t group = 0, i = 0; group < s->groups; group++) {
        const double rstd = (double)g->stats[2 * (n * s->groups + group) + 1];
        const double all = (double)(s->pixels * s->group);
        double m1 = 0, m2 = 0;
        for (int64_t end = i + s->group; i < end; i++) {
            const double gamma = (double)g->affine.gamma[i], more = scale ? 1.0 + (double)scale[i] : 1.0;
            b[i] *= rstd;
            m1 += gamma * more * a[i];
            m2 += gamma * more * b[i];
            if (dscale) dscale[i] = (float)(gamma * b[i] + (double)g->affine.beta[i] * a[i]);
            if (dshift) dshift[i] = (float)a[i];
            a[i] *= more;
            b[i] *= more;
        }
        for (int64_t k = i - s->group; k < i; k++) {
            coef[3 * s->c + k] = (float)(rstd * m1 / all);
            coef[4 * s->c + k] = (float)(rstd * rstd * m2 / all);
        }
    }
}

static void run_dx(const struct groupnorm_bwd *g, int64_t n, int64_t run, int thread)
{
    const struct norm_shape *s = &g->shape;
    const struct norm_run r = norm_run_at(s, n, run);
    struct norm_part part[2];
    const int parts = norm_parts(s, r, part);
    const bool again = !keeps_du(g, 0) || (parts > 1 && !keeps_du(g, 1));
    const float *dy = again ? run_dy(g, r, thread) : NULL;
    for (int k = 0; k < parts; k++) {
        const float *coef = g->coef + n * 5 * s->c + part[k].first;
        const float *add = g->add[k] ? g->add[k] + part[k].at : NULL;
        float *dx = g->dx[k] + part[k].at;
        if (keeps_du(g, k))
            dx_rows(false, r.count, part[k].c, part[k].x, dx, part[k].c, coef, s->c, add, dx);
        else
            dx_rows(g->silu, r.count, part[k].c, part[k].x, dy + part[k].first, s->c, coef, s->c, add, dx);
    }
}

static void image_task(void *context, int64_t n, int thread)
{
    const struct groupnorm_bwd *g = context;
    norm_coefficients(&g->shape, &g->affine, g->stats, n, g->coef + n * 5 * g->shape.c);
    for (int64_t run = 0; run < g->shape.runs; run++)
        run_sums(g, n, run, thread);
    merge_sums(g, n);
    for (int64_t run = 0; run < g->shape.runs; run++)
        run_dx(g, n, run, thread);
}

static void coefficients_task(void *context, int64_t n, int thread)
{
    const struct groupnorm_bwd *g = context;
    (void)thread;
    norm_coefficients(&g->shape, &g->affine, g->stats, n, g->coef + n * 5 * g->shape.c);
}

static void sums_task(void *context, int64_t task, int thread)
{
    const struct groupnorm_bwd *g = context;
    run_sums(g, task / g->shape.runs, task % g->shape.runs, thread);
}

static void merge_task(void *context, int64_t n, int thread)
{
    (void)thread;
    merge_sums(context, n);
}

static void dx_task(void *context, int64_t task, int thread)
{
    const struct groupnorm_bwd *g = context;
    run_dx(g, task / g->shape.runs, task % g->shape.runs, thread);
}

/* dgamma and dbeta: images in order */
static void add_parameters(const struct groupnorm_bwd *g)
{
    const int64_t c = g->shape.c;
    for (int64_t i = 0; i < c; i++) {
        double dbeta = 0, dgamma = 0;
        for (int64_t n = 0; n < g->shape.n; n++) {
            dbeta += g->sum[n * 2 * c + i];
            dgamma += g->sum[(n * 2 + 1) * c + i];
        }
        g->dbeta[i] += (float)dbeta;
        g->dgamma[i] += (float)dgamma;
    }
}

static void run_all(ddpm_backend *be, struct groupnorm_bwd *g)
{
    const struct norm_shape *s = &g->shape;
    if (norm_by_image(be, s)) {
        cpu_run(be, s->n, image_task, g);
    } else {
        cpu_run(be, s->n, coefficients_task, g);
        cpu_run(be, s->n * s->runs, sums_task, g);
        cpu_run(be, s->n, merge_task, g);
        cpu_run(be, s->n * s->runs, dx_task, g);
    }
    add_parameters(g);
}

ddpm_status cpu_groupnorm_bwd(ddpm_backend *be, const struct groupnorm_bwd_args *a)
{
    struct groupnorm_bwd g = {
        .shape = norm_shape_of(a->x1, a->x2, a->groups),
        .affine = {.scale = a->scale, .shift = a->shift},
        .dropout = {.p = a->dropout, .layer = a->layer, .state = a->state, .index = a->index},
        .silu = a->silu,
        .resample = a->resample,
        .w = a->x1->dim[2]};
    struct norm_shape *s = &g.shape;
    if (a->resample != NORM_SAME) {
        const int64_t unit = resample_unit(a->resample, g.w);
        s->rows = cpu_ceil_div(s->rows, unit) * unit;
        s->runs = cpu_ceil_div(s->pixels, s->rows);
    }
    const size_t sum = (size_t)(s->n * 2 * s->c) * sizeof(double);
    const size_t coef = (size_t)(s->n * 5 * s->c), part = (size_t)(s->n * s->runs * 2 * s->c);
    const bool readies = a->dropout > 0 || a->resample != NORM_SAME;
    const size_t ready = readies ? (size_t)(cpu_threads(be) * s->rows * s->c) : 0;
    void *scratch;
    TRY(cpu_scratch(be, sum + (coef + part + ready) * sizeof(float), &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    g.affine.gamma = a->gamma->data;
    g.affine.beta = a->beta->data;
    g.dy = a->dy->data;
    g.stats = a->stats->data;
    g.dx[0] = a->dx1->data;
    g.dx[1] = a->x2 ? a->dx2->data : NULL;
    g.add[0] = a->add1 ? a->add1->data : NULL;
    g.add[1] = a->x2 && a->add2 ? a->add2->data : NULL;
    g.dscale = a->scale ? a->dscale : NULL;
    g.dshift = a->shift ? a->dshift : NULL;
    g.dgamma = a->dgamma->data;
    g.dbeta = a->dbeta->data;
    g.sum = scratch;
    g.coef = (float *)(void *)((unsigned char *)scratch + sum);
    g.part = g.coef + coef;
    g.ready = g.part + part;
    run_all(be, &g);
    return DDPM_OK;
}

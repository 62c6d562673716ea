/* norm.c - GroupNorm over one or two sources, with scale-shift, SiLU and dropout.
 *
 * An image is cut into runs of pixels. Statistics: in each run one sweep gives every channel's sum of (x - the
 * run's first pixel), from which the group's mean over the run; a second sweep, over values still in cache, gives the sum
 * of squared distances from it. Runs are merged in double by Chan's rule. So nothing cancels, whatever the mean, and memory
 * is read once. Then one sweep applies one multiply-add per value (formulas.h), SiLU, and dropout.
 *
 * Threads take whole images while there are enough, else runs; see norm.h. Cost: 4 bytes read for the statistics and 8
 * moved to apply, per value; SiLU costs about as much time as that, dropout's ten Philox rounds twice as much. Where y is
 * resampled, a row of x or two are applied at a time, and wait in cache for it.
 * Rejected: E[x^2] - E[x]^2 (useless at mean 1000), Welford per value (a division each). */
#include "norm.h"

#include "formulas.h"
#include "noise.h"
#include "resample.h"

struct norm_shape norm_shape_of(const ddpm_tensor *x1, const ddpm_tensor *x2, int groups)
{
    const int64_t c1 = x1->dim[3], c2 = x2 ? x2->dim[3] : 0, c = c1 + c2;
    const int64_t pixels = x1->dim[1] * x1->dim[2];
    const int64_t rows = cpu_min(pixels, cpu_ceil_div(NORM_RUN, c));
    return (struct norm_shape){.n = x1->dim[0],
                               .pixels = pixels,
                               .c1 = c1,
                               .c2 = c2,
                               .c = c,
                               .groups = groups,
                               .group = c / groups,
                               .rows = rows,
                               .runs = cpu_ceil_div(pixels, rows),
                               .x1 = x1->data,
                               .x2 = x2 ? x2->data : NULL};
}

void norm_coefficients(const struct norm_shape *s, const struct norm_affine *a, const float *stats, int64_t n,
                       float *coef)
{
    const float *scale = a->scale ? (const float *)a->scale->data + n * a->scale->stride[0] : NULL;
    const float *shift = a->shift ? (const float *)a->shift->data + n * a->shift->stride[0] : NULL;
    for (int64_t i = 0; i < s->c; i++) {
        const float *group = stats + 2 * (n * s->groups + i / s->group);
        const float more = scale ? 1.0f + scale[i] : 1.0f;
        coef[i] = group[0];
        coef[s->c + i] = group[1] * a->gamma[i] * more;
        coef[2 * s->c + i] = fmaf(a->beta[i], more, shift ? shift[i] : 0.0f);
    }
}

CPU_CLONES static void drop_row(int64_t n, float p, float inverse_keep, const uint32_t *restrict words,
                                const float *from, float *to)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++)
        to[i] = from[i] * formula_dropout(words[i], p, inverse_keep);
}

void norm_drop(const struct norm_shape *s, const struct norm_dropout *d, struct norm_run r, const float *from,
               float *to)
{
    const struct noise_key key = {.seed = d->state->seed,
                                  .index = (uint64_t)d->layer << 32 | d->index[r.n],
                                  .purpose = PHILOX_DROPOUT,
                                  .step = d->state->step};
    const float inverse_keep = 1.0f / (1.0f - d->p);
    const int64_t first = r.begin * s->c, all = r.count * s->c;
    uint32_t room[NOISE_ROOM];
    for (int64_t at = 0; at < all; at += NOISE_PIECE) {
        const int64_t count = cpu_min(NOISE_PIECE, all - at);
        drop_row(count, d->p, inverse_keep, noise_words(&key, first + at, count, room), from + at, to + at);
    }
}

/* ---- statistics ---- */

/* sum[i] += sum over rows of x[row][i] - x[0][i], four rows at a time */
CPU_CLONES static void sum_rows(int64_t rows, int64_t c, const float *restrict x, float *restrict sum)
{
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *restrict p = x + r * c, *restrict q = p + c, *restrict u = q + c, *restrict v = u + c;
        for (int64_t i = 0; i < c; i++)
            sum[i] += ((p[i] - x[i]) + (q[i] - x[i])) + ((u[i] - x[i]) + (v[i] - x[i]));
    }
    for (; r < rows; r++)
        for (int64_t i = 0; i < c; i++)
            sum[i] += x[r * c + i] - x[i];
}

/* square[i] += sum over rows of (x[row][i] - mean[i])^2 */
CPU_CLONES static void square_rows(int64_t rows, int64_t c, const float *restrict x, const float *restrict mean,
                                   float *restrict square)
{
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *restrict p = x + r * c, *restrict q = p + c, *restrict u = q + c, *restrict v = u + c;
        for (int64_t i = 0; i < c; i++) {
            const float a = p[i] - mean[i], b = q[i] - mean[i], d = u[i] - mean[i], e = v[i] - mean[i];
            square[i] += fmaf(a, a, b * b) + fmaf(d, d, e * e);
        }
    }
    for (; r < rows; r++)
        for (int64_t i = 0; i < c; i++) {
            const float d = x[r * c + i] - mean[i];
            square[i] = fmaf(d, d, square[i]);
        }
}

struct groupnorm {
    struct norm_shape shape;
    struct norm_affine affine;
    struct norm_dropout dropout;
    float eps;
    bool silu;
    enum norm_resample resample;
    int64_t w; /* pixels of a row of x */
    float *stats, *y;
    double *moments; /* [N,runs,groups,2] mean, sum of squared distances from it */
    float *coef;     /* [N,3,C] */
    float *work;     /* [threads,2,C] */
    float *rows;     /* where y is resampled: [threads,2,w,C] */
};

static void run_moments(const struct groupnorm *g, int64_t n, int64_t run, int thread)
{
    const struct norm_shape *s = &g->shape;
    const struct norm_run r = norm_run_at(s, n, run);
    struct norm_part part[2];
    const int parts = norm_parts(s, r, part);
    float *sum = g->work + thread * 2 * s->c, *mean = sum + s->c;
    double *moments = g->moments + (n * s->runs + run) * s->groups * 2;
    const double count = (double)(r.count * s->group);

    memset(sum, 0, (size_t)s->c * sizeof *sum);
    for (int k = 0; k < parts; k++)
        sum_rows(r.count, part[k].c, part[k].x, sum + part[k].first);
    for (int64_t group = 0, i = 0; group < s->groups; group++) {
        double total = 0;
        for (int64_t end = i + s->group; i < end; i++) {
            const float first = i < s->c1 ? part[0].x[i] : part[1].x[i - s->c1];
            total += (double)r.count * (double)first + (double)sum[i];
        }
        moments[2 * group] = total / count;
        for (int64_t k = i - s->group; k < i; k++)
            mean[k] = (float)moments[2 * group];
    }

    memset(sum, 0, (size_t)s->c * sizeof *sum);
    for (int k = 0; k < parts; k++)
        square_rows(r.count, part[k].c, part[k].x, mean + part[k].first, sum + part[k].first);
    for (int64_t group = 0, i = 0; group < s->groups; group++) {
        const double rounding = moments[2 * group] - (double)mean[i];
        double total = -count * rounding * rounding;
        for (int64_t end = i + s->group; i < end; i++)
            total += (double)sum[i];
        moments[2 * group + 1] = total > 0 ? total : 0;
    }
}

/* Runs of image n into its statistics, and those into a line for each channel. */
static void merge_moments(const struct groupnorm *g, int64_t n)
{
    const struct norm_shape *s = &g->shape;
    const double all = (double)(s->pixels * s->group);
    for (int64_t group = 0; group < s->groups; group++) {
        const double *moments = g->moments + (n * s->runs * s->groups + group) * 2;
        double mean = 0, square = 0;
        for (int64_t run = 0; run < s->runs; run++)
            mean += (double)norm_run_at(s, n, run).count * moments[run * s->groups * 2];
        mean /= (double)s->pixels;
        for (int64_t run = 0; run < s->runs; run++) {
            const double d = moments[run * s->groups * 2] - mean;
            square += moments[run * s->groups * 2 + 1] +
                      (double)(norm_run_at(s, n, run).count * s->group) * d * d;
        }
        float *out = g->stats + (n * s->groups + group) * 2;
        out[0] = (float)mean;
        out[1] = (float)(1.0 / sqrt(square / all + (double)g->eps));
    }
    norm_coefficients(s, &g->affine, g->stats, n, g->coef + n * 3 * s->c);
}

/* ---- apply ---- */

/* y has rows of y_step values; y may be x. */
CPU_CLONES static void apply_rows(int64_t rows, int64_t c, bool silu, const float *x, const float *restrict mean,
                                  const float *restrict slope, const float *restrict offset, float *y, int64_t y_step)
{
    for (int64_t r = 0; r < rows; r++, x += c, y += y_step) {
        if (silu) {
#pragma GCC ivdep
            for (int64_t i = 0; i < c; i++)
                y[i] = formula_silu(formula_norm(x[i], mean[i], slope[i], offset[i]));
        } else {
#pragma GCC ivdep
            for (int64_t i = 0; i < c; i++)
                y[i] = formula_norm(x[i], mean[i], slope[i], offset[i]);
        }
    }
}

/* A run's values into rows of C at y. */
static void apply_run(const struct groupnorm *g, struct norm_run r, float *y)
{
    const struct norm_shape *s = &g->shape;
    struct norm_part part[2];
    const int parts = norm_parts(s, r, part);
    const float *coef = g->coef + r.n * 3 * s->c;
    for (int k = 0; k < parts; k++) {
        const float *mean = coef + part[k].first;
        apply_rows(r.count, part[k].c, g->silu, part[k].x, mean, mean + s->c, mean + 2 * s->c, y + part[k].first,
                   s->c);
    }
    if (g->dropout.p > 0) norm_drop(s, &g->dropout, r, y, y);
}

/* Pieces of an image that are applied one by one: runs, or rows of the smaller of x and a resampled y. */
static int64_t apply_pieces(const struct groupnorm *g)
{
    if (g->resample == NORM_SAME) return g->shape.runs;
    return g->shape.pixels / (g->resample == NORM_UP2 ? g->w : 2 * g->w);
}

static void apply_piece(const struct groupnorm *g, int64_t n, int64_t piece, int thread)
{
    const struct norm_shape *s = &g->shape;
    if (g->resample == NORM_SAME) {
        const struct norm_run r = norm_run_at(s, n, piece);
        apply_run(g, r, g->y + (n * s->pixels + r.begin) * s->c);
        return;
    }
    const bool up = g->resample == NORM_UP2;
    const int64_t count = up ? g->w : 2 * g->w;
    const struct norm_run r = {.n = n, .begin = piece * count, .count = count};
    float *values = g->rows + thread * 2 * g->w * s->c, *y = g->y;
    apply_run(g, r, values);
    if (up)
        spread_row(g->w, s->c, 1.0f, false, values, y + (n * s->pixels + r.begin) * 4 * s->c);
    else
        gather_row(g->w / 2, s->c, 0.25f, false, values, y + (n * s->pixels + r.begin) / 4 * s->c);
}

static void image_task(void *context, int64_t n, int thread)
{
    const struct groupnorm *g = context;
    for (int64_t run = 0; run < g->shape.runs; run++)
        run_moments(g, n, run, thread);
    merge_moments(g, n);
    for (int64_t piece = 0; piece < apply_pieces(g); piece++)
        apply_piece(g, n, piece, thread);
}

static void moments_task(void *context, int64_t task, int thread)
{
    const struct groupnorm *g = context;
    run_moments(g, task / g->shape.runs, task % g->shape.runs, thread);
}

static void merge_task(void *context, int64_t n, int thread)
{
    (void)thread;
    merge_moments(context, n);
}

static void apply_task(void *context, int64_t task, int thread)
{
    const struct groupnorm *g = context;
    apply_piece(g, task / apply_pieces(g), task % apply_pieces(g), thread);
}

ddpm_status cpu_groupnorm(ddpm_backend *be, const struct groupnorm_args *a)
{
    struct groupnorm g = {
        .shape = norm_shape_of(a->x1, a->x2, a->groups),
        .affine = {.scale = a->scale, .shift = a->shift},
        .dropout = {.p = a->dropout, .layer = a->layer, .state = a->state, .index = a->index},
        .eps = a->eps,
        .silu = a->silu,
        .resample = a->resample,
        .w = a->x1->dim[2]};
    const struct norm_shape *s = &g.shape;
    const size_t moments = (size_t)(s->n * s->runs * s->groups * 2) * sizeof(double);
    const size_t coef = (size_t)(s->n * 3 * s->c) * sizeof(float);
    const size_t work = (size_t)(cpu_threads(be) * 2 * s->c) * sizeof(float);
    const size_t rows = a->resample == NORM_SAME ? 0 : work * (size_t)g.w;
    void *scratch;
    TRY(cpu_scratch(be, moments + coef + work + rows, &scratch));
    if (cpu_is_measuring(be)) return DDPM_OK;
    g.affine.gamma = a->gamma->data;
    g.affine.beta = a->beta->data;
    g.stats = a->stats->data;
    g.y = a->y->data;
    g.moments = scratch;
    g.coef = (float *)(void *)((unsigned char *)scratch + moments);
    g.work = g.coef + coef / sizeof(float);
    g.rows = g.work + work / sizeof(float);
    if (norm_by_image(be, s)) {
        cpu_run(be, s->n, image_task, &g);
    } else {
        cpu_run(be, s->n * s->runs, moments_task, &g);
        cpu_run(be, s->n, merge_task, &g);
        cpu_run(be, s->n * apply_pieces(&g), apply_task, &g);
    }
    return DDPM_OK;
}

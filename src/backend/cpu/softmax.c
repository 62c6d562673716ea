/* softmax.c - softmax and log softmax over the rows of a matrix, and their gradients.
 *
 *   y = exp(x - max) / sum, or x - max - ln(sum);   dx = y (dy - sum y dy), or dy - exp(y) sum dy
 *
 * Three sweeps over a row that stays in the first-level cache. Maxima and sums run over CPU_LANES lanes, so that they
 * vectorise and the bits do not depend on the vector. A task is a run of rows of about 16384 elements. The pointers of
 * backward are not restrict: dx may be dy. */
#include "cpu.h"
#include "formulas.h"
#include "vector.h"

struct softmax {
    const float *in, *dy;
    float *out;
    int64_t rows, width, rows_per_task;
    bool log;
};

CPU_INLINE float row_max(int64_t n, const float *x)
{
    float lane[CPU_LANES];
    for (int l = 0; l < CPU_LANES; l++)
        lane[l] = -INFINITY;
    int64_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int l = 0; l < CPU_LANES; l++)
            lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 0; i + l < n; l++)
        lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 1; l < CPU_LANES; l++)
        lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

CPU_INLINE float row_sum(int64_t n, const float *x)
{
    float lane[CPU_LANES] = {0};
    int64_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int l = 0; l < CPU_LANES; l++)
            lane[l] += x[i + l];
    for (int l = 0; i + l < n; l++)
        lane[l] += x[i + l];
    return cpu_lanes_sum(lane);
}

CPU_INLINE float row_dot(int64_t n, const float *x, const float *y)
{
    float lane[CPU_LANES] = {0};
    int64_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int l = 0; l < CPU_LANES; l++)
            lane[l] = fmaf(x[i + l], y[i + l], lane[l]);
    for (int l = 0; i + l < n; l++)
        lane[l] = fmaf(x[i + l], y[i + l], lane[l]);
    return cpu_lanes_sum(lane);
}

CPU_CLONES static void softmax_row(int64_t n, bool log_of, const float *restrict x, float *restrict y)
{
    const float max = row_max(n, x);
    for (int64_t i = 0; i < n; i++)
        y[i] = formula_exp(x[i] - max);
    const float sum = row_sum(n, y);
    if (log_of) {
        const float log_sum = logf(sum);
        for (int64_t i = 0; i < n; i++)
            y[i] = (x[i] - max) - log_sum;
    } else {
        for (int64_t i = 0; i < n; i++)
            y[i] = y[i] / sum;
    }
}

CPU_CLONES static void softmax_bwd_row(int64_t n, bool log_of, const float *y, const float *dy, float *dx)
{
    if (log_of) {
        const float sum = row_sum(n, dy);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; i++)
            dx[i] = fmaf(-sum, formula_exp(y[i]), dy[i]);
    } else {
        const float dot = row_dot(n, y, dy);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; i++)
            dx[i] = y[i] * (dy[i] - dot);
    }
}

static void softmax_task(void *context, int64_t task, int thread)
{
    const struct softmax *s = context;
    const int64_t begin = task * s->rows_per_task, end = cpu_min(s->rows, begin + s->rows_per_task);
    (void)thread;
    for (int64_t at = begin * s->width; at < end * s->width; at += s->width) {
        if (s->dy)
            softmax_bwd_row(s->width, s->log, s->in + at, s->dy + at, s->out + at);
        else
            softmax_row(s->width, s->log, s->in + at, s->out + at);
    }
}

static void run(ddpm_backend *be, struct softmax s)
{
    s.rows_per_task = cpu_ceil_div(16384, s.width);
    cpu_run(be, cpu_ceil_div(s.rows, s.rows_per_task), softmax_task, &s);
}

ddpm_status cpu_softmax(ddpm_backend *be, const struct softmax_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    run(be, (struct softmax){.in = a->x->data,
                             .out = a->y->data,
                             .rows = a->x->dim[0],
                             .width = a->x->dim[1],
                             .log = a->log});
    return DDPM_OK;
}

ddpm_status cpu_softmax_bwd(ddpm_backend *be, const struct softmax_bwd_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    run(be, (struct softmax){.in = a->y->data,
                             .dy = a->dy->data,
                             .out = a->dx->data,
                             .rows = a->y->dim[0],
                             .width = a->y->dim[1],
                             .log = a->log});
    return DDPM_OK;
}

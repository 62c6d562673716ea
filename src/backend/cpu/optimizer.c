/* optimizer.c - the norm of the gradients, and clip + AdamW + every EMA + zeroed gradients in one pass.
 *
 * Cost of adamw: reads and writes of p, g, m, v and each EMA, 32 + 8 n_ema bytes a parameter, and 2 for bf16 weights
 * where they are asked for; the square root and two divisions stay hidden behind them, so it runs at the memory's pace.
 * One loop per number of EMAs: a loop over a variable number of tensors inside the element loop would not vectorise,
 * one pass per EMA would read p again. sum_squares: 4 bytes an element; each run of 65536 is summed in double over
 * fixed lanes, the runs in order. */
#include "cast.h"
#include "cpu.h"
#include "formulas.h"
#include "vector.h"

#define SUM_RUN 65536
#define ADAMW_RUN 8192

struct sum_squares {
    const float *x;
    double *part;
    int64_t n;
};

CPU_CLONES static double sum_squares_run(int64_t n, const float *restrict x)
{
    double lane[CPU_LANES] = {0};
    int64_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int l = 0; l < CPU_LANES; l++)
            lane[l] = fma((double)x[i + l], (double)x[i + l], lane[l]);
    for (int l = 0; i + l < n; l++)
        lane[l] = fma((double)x[i + l], (double)x[i + l], lane[l]);
    return cpu_lanes_sum64(lane);
}

static void sum_squares_task(void *context, int64_t task, int thread)
{
    const struct sum_squares *s = context;
    const int64_t at = task * SUM_RUN;
    (void)thread;
    s->part[task] = sum_squares_run(cpu_min(SUM_RUN, s->n - at), s->x + at);
}

ddpm_status cpu_sum_squares(ddpm_backend *be, const struct sum_squares_args *a)
{
    const int64_t n = a->x->dim[0], runs = cpu_ceil_div(n, SUM_RUN);
    void *part;
    TRY(cpu_scratch(be, (size_t)runs * sizeof(double), &part));
    if (cpu_is_measuring(be)) return DDPM_OK;
    struct sum_squares s = {.x = a->x->data, .part = part, .n = n};
    cpu_run(be, runs, sum_squares_task, &s);
    double sum = 0;
    for (int64_t i = 0; i < runs; i++)
        sum += s.part[i];
    *a->sum = sum;
    return DDPM_OK;
}

struct adamw {
    formula_adamw_step step;
    float *p, *g, *m, *v, *ema[OPS_EMA_MAX];
    float grow[OPS_EMA_MAX]; /* 1 - decay */
    uint16_t *half;          /* bf16, or NULL */
    int64_t n;
    int n_ema;
    bool skip;
};

/* n_ema is a constant where this is inlined */
CPU_INLINE void adamw_elements(const struct adamw *a, int64_t at, int64_t n, int n_ema)
{
    const formula_adamw_step step = a->step;
    float *restrict p = a->p + at, *restrict g = a->g + at, *restrict m = a->m + at, *restrict v = a->v + at;
    float *restrict e0 = n_ema > 0 ? a->ema[0] + at : NULL, *restrict e1 = n_ema > 1 ? a->ema[1] + at : NULL;
    float *restrict e2 = n_ema > 2 ? a->ema[2] + at : NULL, *restrict e3 = n_ema > 3 ? a->ema[3] + at : NULL;
    const float d0 = a->grow[0], d1 = a->grow[1], d2 = a->grow[2], d3 = a->grow[3];
    for (int64_t i = 0; i < n; i++) {
        const float updated = formula_adamw(step, p[i], g[i], &m[i], &v[i]);
        p[i] = updated;
        g[i] = 0.0f;
        if (n_ema > 0) e0[i] = formula_ema(e0[i], updated, d0);
        if (n_ema > 1) e1[i] = formula_ema(e1[i], updated, d1);
        if (n_ema > 2) e2[i] = formula_ema(e2[i], updated, d2);
        if (n_ema > 3) e3[i] = formula_ema(e3[i], updated, d3);
    }
}

CPU_CLONES static void adamw_run0(const struct adamw *a, int64_t at, int64_t n)
{
    adamw_elements(a, at, n, 0);
}

CPU_CLONES static void adamw_run1(const struct adamw *a, int64_t at, int64_t n)
{
    adamw_elements(a, at, n, 1);
}

CPU_CLONES static void adamw_run2(const struct adamw *a, int64_t at, int64_t n)
{
    adamw_elements(a, at, n, 2);
}

CPU_CLONES static void adamw_run3(const struct adamw *a, int64_t at, int64_t n)
{
    adamw_elements(a, at, n, 3);
}

CPU_CLONES static void adamw_run4(const struct adamw *a, int64_t at, int64_t n)
{
    adamw_elements(a, at, n, 4);
}

static void update_run(const struct adamw *a, int64_t at, int64_t n)
{
    switch (a->n_ema) {
    case 0: adamw_run0(a, at, n); break;
    case 1: adamw_run1(a, at, n); break;
    case 2: adamw_run2(a, at, n); break;
    case 3: adamw_run3(a, at, n); break;
    default: adamw_run4(a, at, n); break;
    }
}

static void adamw_task(void *context, int64_t task, int thread)
{
    const struct adamw *a = context;
    const int64_t at = task * ADAMW_RUN, n = cpu_min(ADAMW_RUN, a->n - at);
    (void)thread;
    if (a->skip)
        memset(a->g + at, 0, (size_t)n * sizeof(float));
    else
        update_run(a, at, n);
    if (a->half) cast_to_half(n, a->p + at, a->half + at); /* p is still in the cache */
}

ddpm_status cpu_adamw(ddpm_backend *be, const struct adamw_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    struct adamw w = {.p = a->p->data,
                      .g = a->g->data,
                      .m = a->m->data,
                      .v = a->v->data,
                      .half = a->half ? a->half->data : NULL,
                      .n = a->p->dim[0],
                      .n_ema = a->n_ema,
                      .skip = !isfinite(*a->sum)};
    if (!w.skip)
        w.step = formula_adamw_prepare(*a->sum, a->clip_norm, a->beta1, a->beta2, a->eps, a->weight_decay,
                                       a->state->lr, a->state->bias1, a->state->bias2);
    for (int k = 0; k < a->n_ema; k++) {
        w.ema[k] = a->ema[k]->data;
        w.grow[k] = 1.0f - a->state->ema_decay[k];
    }
    cpu_run(be, cpu_ceil_div(w.n, ADAMW_RUN), adamw_task, &w);
    return DDPM_OK;
}

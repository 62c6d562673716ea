/* pointwise.c - ops on one element at a time: silu, add, to_u8.
 *
 * Cost: 8 to 12 bytes moved per element; silu adds an exponential and a division, about as much time as the memory takes.
 * Tasks are runs of 16384 elements, 64 KiB a tensor: inside the second-level cache, and long enough to hide the hand-out. */
#include "cpu.h"
#include "formulas.h"
#include "vector.h"

CPU_CLONES void cpu_add_to(float *restrict sum, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += x[i];
}

#define RUN 16384

struct pointwise {
    const float *a, *b;
    void *y;
    int64_t n;
    bool accumulate;
};

static int64_t run_length(const struct pointwise *p, int64_t task)
{
    return cpu_min(RUN, p->n - task * RUN);
}

/* y may be x: no restrict, the loop carries nothing from one element to another. */
CPU_CLONES static void silu_row(int64_t n, const float *x, float *y)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++)
        y[i] = formula_silu(x[i]);
}

CPU_CLONES static void silu_bwd_row(int64_t n, const float *x, const float *dy, float *dx)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++)
        dx[i] = dy[i] * formula_silu_grad(x[i]);
}

CPU_CLONES static void silu_bwd_add_row(int64_t n, const float *x, const float *dy, float *dx)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++)
        dx[i] = fmaf(dy[i], formula_silu_grad(x[i]), dx[i]);
}

CPU_CLONES static void add_row(int64_t n, const float *a, const float *b, float *y)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

CPU_CLONES static void to_u8_row(int64_t n, const float *restrict x, uint8_t *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = formula_to_u8(x[i]);
}

static void silu_task(void *context, int64_t task, int thread)
{
    const struct pointwise *p = context;
    (void)thread;
    silu_row(run_length(p, task), p->a + task * RUN, (float *)p->y + task * RUN);
}

static void silu_bwd_task(void *context, int64_t task, int thread)
{
    const struct pointwise *p = context;
    const int64_t at = task * RUN;
    (void)thread;
    (p->accumulate ? silu_bwd_add_row : silu_bwd_row)(run_length(p, task), p->a + at, p->b + at,
                                                      (float *)p->y + at);
}

static void add_task(void *context, int64_t task, int thread)
{
    const struct pointwise *p = context;
    const int64_t at = task * RUN;
    (void)thread;
    add_row(run_length(p, task), p->a + at, p->b + at, (float *)p->y + at);
}

static void to_u8_task(void *context, int64_t task, int thread)
{
    const struct pointwise *p = context;
    (void)thread;
    to_u8_row(run_length(p, task), p->a + task * RUN, (uint8_t *)p->y + task * RUN);
}

static ddpm_status run(ddpm_backend *be, struct pointwise *p, cpu_task task)
{
    if (!cpu_is_measuring(be)) cpu_run(be, cpu_ceil_div(p->n, RUN), task, p);
    return DDPM_OK;
}

ddpm_status cpu_silu(ddpm_backend *be, const struct silu_args *a)
{
    return run(be, &(struct pointwise){.a = a->x->data, .y = a->y->data, .n = ddpm_tensor_count(a->x)}, silu_task);
}

ddpm_status cpu_silu_bwd(ddpm_backend *be, const struct silu_bwd_args *a)
{
    return run(be,
               &(struct pointwise){.a = a->x->data,
                                   .b = a->dy->data,
                                   .y = a->dx->data,
                                   .n = ddpm_tensor_count(a->x),
                                   .accumulate = a->accumulate},
               silu_bwd_task);
}

ddpm_status cpu_add(ddpm_backend *be, const struct add_args *a)
{
    return run(be,
               &(struct pointwise){
                   .a = a->a->data, .b = a->b->data, .y = a->y->data, .n = ddpm_tensor_count(a->a)},
               add_task);
}

ddpm_status cpu_to_u8(ddpm_backend *be, const struct to_u8_args *a)
{
    return run(be, &(struct pointwise){.a = a->x->data, .y = a->y->data, .n = ddpm_tensor_count(a->x)}, to_u8_task);
}

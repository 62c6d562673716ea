/* resample.c - twice and half the size: nearest-neighbour upsampling, 2x2 mean, and their gradients.
 *
 * Two maps serve four ops, each on rows of the smaller image:
 *   spread   each small pixel to four large ones, times 1 (upsample2) or 1/4 (avgpool2_bwd), stored or added
 *   gather   four large pixels to one small one, summed times 1 (upsample2_bwd) or 1/4 (avgpool2), stored or added
 * Cost: 20 bytes per small element. A task is one row of the smaller image. */
#include "resample.h"

#include "cpu.h"
#include "vector.h"

#include <math.h>

struct resample {
    const float *from;
    float *to;
    int64_t w, c; /* of the smaller image */
    float factor;
    bool accumulate;
};

CPU_CLONES static void spread_pixel(int64_t c, float factor, bool accumulate, const float *restrict from,
                                    float *restrict to, int64_t row)
{
    for (int corner = 0; corner < 4; corner++) {
        float *restrict at = to + (corner >> 1) * row + (corner & 1) * c;
        if (accumulate)
            for (int64_t i = 0; i < c; i++)
                at[i] = fmaf(factor, from[i], at[i]);
        else
            for (int64_t i = 0; i < c; i++)
                at[i] = factor * from[i];
    }
}

CPU_CLONES static void gather_pixel(int64_t c, float factor, bool accumulate, const float *restrict from,
                                    float *restrict to, int64_t row)
{
    const float *restrict a = from, *restrict b = from + c, *restrict d = from + row, *restrict e = from + row + c;
    if (accumulate)
        for (int64_t i = 0; i < c; i++)
            to[i] = fmaf(factor, (a[i] + b[i]) + (d[i] + e[i]), to[i]);
    else
        for (int64_t i = 0; i < c; i++)
            to[i] = factor * ((a[i] + b[i]) + (d[i] + e[i]));
}

void spread_row(int64_t w, int64_t c, float factor, bool accumulate, const float *from, float *to)
{
    for (int64_t x = 0; x < w; x++)
        spread_pixel(c, factor, accumulate, from + x * c, to + 2 * x * c, 2 * w * c);
}

void gather_row(int64_t w, int64_t c, float factor, bool accumulate, const float *from, float *to)
{
    for (int64_t x = 0; x < w; x++)
        gather_pixel(c, factor, accumulate, from + 2 * x * c, to + x * c, 2 * w * c);
}

static void spread_task(void *context, int64_t task, int thread)
{
    const struct resample *r = context;
    const int64_t small = r->w * r->c;
    (void)thread;
    spread_row(r->w, r->c, r->factor, r->accumulate, r->from + task * small, r->to + 4 * task * small);
}

static void gather_task(void *context, int64_t task, int thread)
{
    const struct resample *r = context;
    const int64_t small = r->w * r->c;
    (void)thread;
    gather_row(r->w, r->c, r->factor, r->accumulate, r->from + 4 * task * small, r->to + task * small);
}

static ddpm_status run(ddpm_backend *be, cpu_task task, const ddpm_tensor *small, const ddpm_tensor *from,
                       const ddpm_tensor *to, float factor, bool accumulate)
{
    struct resample r = {.from = from->data,
                         .to = to->data,
                         .w = small->dim[2],
                         .c = small->dim[3],
                         .factor = factor,
                         .accumulate = accumulate};
    if (!cpu_is_measuring(be)) cpu_run(be, small->dim[0] * small->dim[1], task, &r);
    return DDPM_OK;
}

ddpm_status cpu_upsample2(ddpm_backend *be, const struct upsample2_args *a)
{
    return run(be, spread_task, a->x, a->x, a->y, 1.0f, false);
}

ddpm_status cpu_upsample2_bwd(ddpm_backend *be, const struct upsample2_bwd_args *a)
{
    return run(be, gather_task, a->dx, a->dy, a->dx, 1.0f, a->accumulate);
}

ddpm_status cpu_avgpool2(ddpm_backend *be, const struct avgpool2_args *a)
{
    return run(be, gather_task, a->y, a->x, a->y, 0.25f, false);
}

ddpm_status cpu_avgpool2_bwd(ddpm_backend *be, const struct avgpool2_bwd_args *a)
{
    return run(be, spread_task, a->dy, a->dy, a->dx, 0.25f, a->accumulate);
}

/* init.c - initial weights, as published.
 *   ddpm     variance scaling, fan average, uniform: limit sqrt(6 scale / (fan_in + fan_out));
 * scale 1, and 1e-10 for the last convolution of each block, the attention's projection and the
 * head; biases 0   [Ho et al. 2020, code] pytorch  weights and biases U(+-1/sqrt(fan_in)), the last
 * layers exactly 0                    [PyTorch; ADM] Element e of parameter i is a function of
 * (seed, i, e) alone, drawn by any thread. */
#include "blocks.h"

#include "philox.h"

#include <math.h>

/* U(-limit, limit) into x[n]. */
static void fill_uniform(float *x, int64_t n, float limit, uint64_t seed, uint64_t parameter)
{
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (n + 3) / 4; block++) {
        const philox4 r = philox_draw(seed, PHILOX_INIT, 0, parameter, (uint32_t)block);
        for (int64_t i = 4 * block; i < 4 * block + 4 && i < n; i++)
            x[i] = (2 * philox_uniform(r.v[i % 4]) - 1) * limit;
    }
}

/* N(0, 1), by Box-Muller in double: a table of classes is small. */
static void fill_normal(float *x, int64_t n, uint64_t seed, uint64_t parameter)
{
    const double two_pi = 6.283185307179586;
    for (int64_t i = 0; i < n; i++) {
        const philox4 r = philox_draw(seed, PHILOX_INIT, 1, parameter, (uint32_t)(i / 2));
        const double u = philox_uniform(r.v[0]), v = two_pi * philox_uniform(r.v[1]);
        x[i] = (float)(sqrt(-2 * log(u)) * (i % 2 ? sin(v) : cos(v)));
    }
}

static void fill_constant(float *x, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = value;
}

void ddpm_model_init(const ddpm_model *m, uint64_t seed, float *arena)
{
    const bool ddpm = m->cfg.init == DDPM_INIT_DDPM;
    fill_constant(arena, ddpm_model_arena_count(m), 0); /* the gaps */
    for (int i = 0; i < m->n_params; i++) {
        const struct param *p = &m->params[i];
        float *x = arena + p->info.offset;
        const double fans = (double)(p->fan_in + p->fan_out),
                     torch_limit = 1 / sqrt((double)p->fan_in);
        double limit = 0;
        switch (p->init) {
        case INIT_ONE:
            fill_constant(x, p->info.count, 1);
            continue;
        case INIT_NORMAL:
            fill_normal(x, p->info.count, seed, (uint64_t)i);
            continue;
        case INIT_WEIGHT:
            limit = ddpm ? sqrt(6 / fans) : torch_limit;
            break;
        case INIT_ZERO_WEIGHT:
            limit = ddpm ? sqrt(6e-10 / fans) : 0;
            break;
        case INIT_BIAS:
            limit = ddpm ? 0 : torch_limit;
            break;
        case INIT_ZERO:
        case INIT_ZERO_BIAS:
            break;
        }
        if (limit > 0) fill_uniform(x, p->info.count, (float)limit, seed, (uint64_t)i);
    }
}

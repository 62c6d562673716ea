/* sampler.c - rows of reverse_step: what x0_hat is in terms of the network's answer, and the chosen sampler's weights.
 *
 * Job      one row of eight floats per step, from double.
 * Method   every objective is linear in (x_t, out), and every sampler here in (x0_hat, x_t, out, z), so one op serves all;
 *          which is which is decided once per step on the host and costs the device nothing. */
#include "sampler.h"

#include "sampler_rows.h"

#include <assert.h>
#include <math.h>

/* x0_hat = *x * x_t + *out * out, from x_t = sqrt(abar) x0 + sqrt(1 - abar) eps. */
static void objective_weights(double abar, int objective, double *x, double *out)
{
    switch (objective) {
    case DDPM_PREDICT_X0:
        *x = 0;
        *out = 1;
        return;
    case DDPM_PREDICT_V: /* v = sqrt(abar) eps - sqrt(1 - abar) x0 [Salimans & Ho 2022] */
        *x = sqrt(abar);
        *out = -sqrt(1 - abar);
        return;
    default: /* eps [DDPM 2020, eq. 4 solved for x0] */
        *x = 1 / sqrt(abar);
        *out = -sqrt(1 - abar) / sqrt(abar);
    }
}

void sampler_row_between(double abar_t, double abar_prev, const sampler_options *o, bool last, reverse_row *out)
{
    static reverse_weights (*const weights[])(double, double, const sampler_options *, bool) = {
#define X(kind, name) [kind] = name##_weights,
        SAMPLER_LIST(X)
#undef X
    };
    assert(o->kind >= 0 && o->kind < (int)(sizeof weights / sizeof *weights));
    double x0_x, x0_out;
    objective_weights(abar_t, o->objective, &x0_x, &x0_out);
    const reverse_weights w = weights[o->kind](abar_t, abar_prev, o, last);
    *out = (reverse_row){{(float)x0_x, (float)x0_out, o->clip ? -1.0f : -INFINITY, o->clip ? 1.0f : INFINITY,
                          (float)w.x0, (float)w.x, (float)w.out, (float)w.sigma}};
}

void sampler_row(const ddpm_schedule *s, const sampler_options *o, int t, reverse_row *out)
{
    assert(t >= 1 && t <= s->T);
    sampler_row_between(s->abar[t], s->abar[t - 1], o, t == 1, out);
}

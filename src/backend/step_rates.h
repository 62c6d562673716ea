/* step_rates.h - learning rate, EMA decay, Adam's bias corrections and the times of a step, from its counters. Compiled for
 * host and device.
 *
 * Rates follow the number of steps, so that a skipped step does not stretch the schedule. Bias corrections and the EMA's
 * warm-up follow the number of updates: what was skipped is in no average. All in double, cast once. The schedule ends at
 * train.steps whatever --max-steps says. */
#ifndef BACKEND_STEP_RATES_H
#define BACKEND_STEP_RATES_H

#include "ddpm/config.h"

#include "ops.h"
#include "philox.h"

#include <math.h>

/* Learning rate of the step after `step` steps: rises linearly over the warm-up, (step + 1) / warmup of the full rate,
 * then falls to 0 at `steps`. */
PHILOX_FN double step_lr(const struct step_rates *r, int64_t step)
{
    if (step < r->warmup) return r->lr * (double)(step + 1) / (double)r->warmup;
    if (r->decay == DDPM_DECAY_NONE) return r->lr;
    if (step >= r->steps) return 0;
    const double done = (double)(step - r->warmup) / (double)(r->steps - r->warmup);
    if (r->decay == DDPM_DECAY_LINEAR) return r->lr * (1 - done);
    return r->lr * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

/* Decay of an EMA at the update after `updates` updates: with warm-up at most (1 + updates) / (10 + updates). */
PHILOX_FN double step_ema_decay(const struct step_rates *r, int k, int64_t updates)
{
    if (!r->is_ema_warm) return r->ema[k];
    return fmin(r->ema[k], (1.0 + (double)updates) / (10.0 + (double)updates));
}

/* The state of the step after `step` steps, of which `updates` were not skipped. */
PHILOX_FN struct step_state step_state_at(const struct step_rates *r, int64_t step, int64_t updates)
{
    struct step_state s;
    s.seed = r->seed;
    s.step = r->is_key_fixed ? 0 : (uint32_t)step;
    s.lr = (float)step_lr(r, step);
    s.bias1 = (float)(1 - pow(r->beta1, (double)(updates + 1)));
    s.bias2 = (float)(1 - pow(r->beta2, (double)(updates + 1)));
    for (int k = 0; k < OPS_EMA_MAX; k++)
        s.ema_decay[k] = k < r->n_ema ? (float)step_ema_decay(r, k, updates) : 0.0f;
    return s;
}

/* 1..T */
PHILOX_FN int32_t step_time(const struct step_state *s, uint64_t index, int32_t T)
{
    const philox4 word = philox_draw(s->seed, PHILOX_T, s->step, index, 0);
    return 1 + (int32_t)philox_below(word.v[0], (uint32_t)T);
}

/* t is 1..T: 0..3 */
PHILOX_FN int32_t step_quarter(int32_t t, int32_t T)
{
    return (int32_t)(((int64_t)t - 1) * 4 / T);
}

#endif

/* rates.c - learning rate, EMA decay and Adam's bias corrections.
 *
 * Rates follow the number of steps, so that a skipped step does not stretch the schedule. Bias
 * corrections and the EMA's warm-up follow the number of updates: what was skipped is in no
 * average. All in double, cast once. The schedule ends at train.steps whatever --max-steps says. */
#include "rates.h"

#include <math.h>

double rate_lr(const ddpm_train_config *c, int64_t step)
{
    if (step < c->warmup) return c->lr * (double)(step + 1) / (double)c->warmup;
    if (c->lr_decay == DDPM_DECAY_NONE) return c->lr;
    if (step >= c->steps) return 0;
    const double done = (double)(step - c->warmup) / (double)(c->steps - c->warmup);
    if (c->lr_decay == DDPM_DECAY_LINEAR) return c->lr * (1 - done);
    return c->lr * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

double rate_ema(double rate, bool warmup, int64_t updates)
{
    if (!warmup) return rate;
    return fmin(rate, (1.0 + (double)updates) / (10.0 + (double)updates));
}

struct step_state rate_state(const ddpm_train_config *c, int64_t key, int64_t step, int64_t updates)
{
    struct step_state s = {
        .seed = (uint64_t)c->seed,
        .step = (uint32_t)key,
        .lr = (float)rate_lr(c, step),
        .bias1 = (float)(1 - pow(c->beta1, (double)(updates + 1))),
        .bias2 = (float)(1 - pow(c->beta2, (double)(updates + 1))),
    };
    for (int k = 0; k < c->ema.n && k < OPS_EMA_MAX; k++)
        s.ema_decay[k] = (float)rate_ema(c->ema.v[k], c->ema_warmup, updates);
    return s;
}

/* rates.h - the numbers that change from step to step, as pure functions of the step. */
#ifndef TRAIN_RATES_H
#define TRAIN_RATES_H

#include "ddpm/config.h"

#include "ops.h"

/* Learning rate of the step after `step` steps: rises linearly over train.warmup steps, (step + 1)
 * / warmup of the full rate, then falls to 0 at train.steps by train.lr_decay. */
double rate_lr(const ddpm_train_config *c, int64_t step);
/* Decay of an EMA at the update after `updates` updates: with warm-up at most (1 + updates) / (10 +
 * updates). */
double rate_ema(double rate, bool warmup, int64_t updates);
/* The state of a step. key: the step whose batch, times and noise are drawn. */
struct step_state rate_state(const ddpm_train_config *c, int64_t key, int64_t step,
                             int64_t updates);

#endif

/* rates.h - the rates of a run (step_rates.h) from its configuration. */
#ifndef TRAIN_RATES_H
#define TRAIN_RATES_H

#include "ddpm/config.h"

#include "ops.h"

struct step_rates rates_of(const ddpm_train_config *c);

#endif

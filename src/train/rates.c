/* rates.c - the keys of `train` that learning rate, averages and noise follow from. */
#include "rates.h"

struct step_rates rates_of(const ddpm_train_config *c)
{
    struct step_rates r = {.lr = c->lr,
                           .beta1 = c->beta1,
                           .beta2 = c->beta2,
                           .warmup = c->warmup,
                           .steps = c->steps,
                           .seed = (uint64_t)c->seed,
                           .decay = c->lr_decay,
                           .is_ema_warm = c->ema_warmup};
    for (; r.n_ema < c->ema.n && r.n_ema < OPS_EMA_MAX; r.n_ema++)
        r.ema[r.n_ema] = c->ema.v[r.n_ema];
    return r;
}

/* step.c - the two ends of a training step, open_step and close_step: a few numbers an image.
 *
 * Not cut into tasks: a batch of 512 takes 10 us. Losses are added in double in the order of the batch, which is the
 * definition of the mean that is reported. */
#include "cpu.h"
#include "step_rates.h"

#include <math.h>

ddpm_status cpu_open_step(ddpm_backend *be, const struct open_step_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    float *time = a->time->data;
    *a->state = step_state_at(&a->rates, a->counters->step, a->counters->updates);
    for (int64_t n = 0; n < a->time->dim[0]; n++) {
        a->t[n] = step_time(a->state, a->index[n], a->T);
        time[n] = a->model_time[a->t[n]];
    }
    return DDPM_OK;
}

ddpm_status cpu_close_step(ddpm_backend *be, const struct close_step_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    const float *loss = a->loss->data;
    const int64_t images = a->loss->dim[0];
    struct step_figures f = {.lr = a->state->lr};
    double sum = 0;
    for (int64_t n = 0; n < images; n++) {
        const int32_t q = step_quarter(a->t[n], a->T);
        f.quartile_sum[q] += (double)loss[n];
        f.quartile_count[q]++;
        sum += (double)loss[n];
    }
    f.loss = sum / (double)images;
    f.is_skipped = !isfinite(f.loss) || !isfinite(*a->sum);
    if (f.is_skipped && isfinite(*a->sum)) *a->sum = NAN;
    f.sum = *a->sum;
    struct step_counters *c = a->counters;
    struct step_figures *slot = a->ring + c->step % a->slots;
    c->step++;
    c->updates += !f.is_skipped;
    c->skipped_in_row = f.is_skipped ? c->skipped_in_row + 1 : 0;
    f.after = *c;
    *slot = f;
    return DDPM_OK;
}

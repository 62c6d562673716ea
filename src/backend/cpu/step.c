/* step.c - the ends of a step, in training and in sampling: a few numbers an image; and gather, a copy an image.
 *
 * Not cut into tasks: the numbers of a batch of 512 take 10 us, and nobody keeps a data set twice on the CPU. Losses are added in double in the order of the batch, which is the
 * definition of the mean that is reported. */
#include "cpu.h"
#include "step_rates.h"

#include <math.h>
#include <string.h>

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

ddpm_status cpu_open_sample(ddpm_backend *be, const struct open_sample_args *a)
{
    enum { ROW = 8 };
    if (cpu_is_measuring(be)) return DDPM_OK;
    float *time = a->time->data;
    const uint32_t step = a->state->step > 1 ? a->state->step - 1 : 1;
    a->state->step = step;
    for (int64_t n = 0; n < a->time->dim[0]; n++) {
        memcpy(a->rows + ROW * n, a->table + ROW * (int64_t)step, ROW * sizeof *a->rows);
        time[n] = a->times[step];
    }
    return DDPM_OK;
}

ddpm_status cpu_gather(ddpm_backend *be, const struct gather_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    const int64_t images = a->y->dim[0];
    const size_t bytes = (size_t)(a->y->dim[1] * a->y->dim[2] * a->y->dim[3]);
    const uint8_t *x = a->x->data;
    uint8_t *y = a->y->data;
    for (int64_t n = 0; n < images; n++) {
        memcpy(y + (size_t)n * bytes, x + (size_t)a->number[n] * bytes, bytes);
        if (a->label) a->label[n] = a->labels[a->number[n]];
    }
    return DDPM_OK;
}

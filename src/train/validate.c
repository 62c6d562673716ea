/* validate.c - the loss on held-out images, the same noise every time.
 *
 * Image j always gets the same t and eps, whatever the run's seed, so that two figures differ by
 * their weights alone, within a run and between runs. t is stratified: one draw from each of n
 * equal parts of 1..T, which leaves far less scatter than n free draws. Which part image j gets is
 * a fixed permutation with a large stride, for images may be sorted by class. The last micro-batch
 * is filled up with images whose loss is not counted: the shapes stay those of training and nothing
 * new is built. */
#include "trainer.h"

#include "fail.h"
#include "philox.h"

#include <math.h>
#include <string.h>

enum { VALID_SEED = 0 };

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* Near n times the golden section, and coprime to n: j * stride mod n visits each part once. */
static int64_t stride_of(int64_t n)
{
    int64_t stride = (int64_t)((double)n * 0.6180339887) + 1;
    while (common_divisor(stride, n) != 1)
        stride++;
    return stride;
}

static int32_t time_of(int64_t j, int64_t n, int64_t stride, int T)
{
    const double u =
        philox_uniform(philox_draw(VALID_SEED, PHILOX_VALID_T, 0, (uint64_t)j, 0).v[0]);
    const double part = (double)(int64_t)((unsigned __int128)j * (uint64_t)stride % (uint64_t)n);
    const int32_t t = 1 + (int32_t)((double)T * (part + u) / (double)n);
    return t > T ? T : t;
}

/* Images first .. first+count-1, filled up to the micro-batch with copies of the first of them. */
static ddpm_status load_images(ddpm_trainer *t, int64_t first, int64_t count, int64_t n)
{
    const int64_t stride = stride_of(n);
    const size_t m = (size_t)t->micro_batch, image = (size_t)(t->h * t->w * t->c);
    TRY(ddpm_dataset_validation(t->data, first, count, t->valid_images, t->valid_labels));
    for (int64_t i = 0; i < t->micro_batch; i++) {
        const int64_t from = i < count ? i : 0;
        if (i >= count) memcpy(t->valid_images + (size_t)i * image, t->valid_images, image);
        if (t->label) t->host_label[i] = (int32_t)t->valid_labels[from];
        t->host_t[i] = time_of(first + from, n, stride, t->schedule->T);
        t->host_time[i] = (float)t->schedule->model_time[t->host_t[i]];
        t->host_index[i] = (uint64_t)(first + from);
    }
    t->loaded = -1;
    TRY(ddpm_backend_upload(t->be, t->images, t->valid_images, m * image));
    if (t->label) TRY(ddpm_backend_upload(t->be, t->label, t->host_label, m * sizeof *t->label));
    TRY(ddpm_backend_upload(t->be, t->t, t->host_t, m * sizeof *t->t));
    TRY(ddpm_backend_upload(t->be, t->time, t->host_time, m * sizeof *t->time));
    return ddpm_backend_upload(t->be, t->valid_index, t->host_index, m * sizeof *t->valid_index);
}

static ddpm_status sum_losses(ddpm_trainer *t, int64_t n, double *sum)
{
    const struct loss_pass pass = {
        .state = t->valid_state, .index = t->valid_index, .purpose = PHILOX_VALID_EPS};
    *sum = 0;
    for (int64_t first = 0; first < n; first += t->micro_batch) {
        const int64_t left = n - first, count = left < t->micro_batch ? left : t->micro_batch;
        if (t->stop && *t->stop) return FAIL(STOPPED, "validation: stopped");
        TRY(load_images(t, first, count, n));
        TRY(trainer_pass(t, &pass, 0, t->micro_batch));
        TRY(ddpm_backend_download(t->be, t->host_loss, t->loss, (size_t)count * sizeof *t->loss));
        for (int64_t i = 0; i < count; i++)
            *sum += t->host_loss[i];
    }
    return DDPM_OK;
}

ddpm_status ddpm_trainer_validate(ddpm_trainer *t, int ema, double *loss)
{
    const int64_t n = ddpm_dataset_describe(t->data)->n_validation;
    REQUIRE(ema >= -1 && ema < t->n_ema, ARG,
            "validation: EMA %d, there are %d (and -1, the raw weights)", ema, t->n_ema);
    if (n == 0) {
        *loss = NAN;
        return DDPM_OK;
    }
    double sum = 0;
    ddpm_status s = trainer_bind(t, ema < 0 ? t->p : t->ema[ema], NULL);
    if (!s) s = sum_losses(t, n, &sum);
    TRY(trainer_rebind(t, s));
    *loss = sum / (double)n;
    return DDPM_OK;
}

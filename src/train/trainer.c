/* trainer.c - one step of training: algorithm 1 of DDPM (Ho 2020), in the paper's order.
 *
 *   2  x0 ~ q(x0)                     load_batch: the next images of the stream, as bytes
 *   3  t ~ Uniform({1..T})            draw_times
 *   4  eps ~ N(0, I)                  drawn inside q_sample and the loss, never stored
 *   5  gradient step on               trainer_pass, micro-batch by micro-batch: x_t, the network,
 * loss and
 *      ||eps - eps_theta(x_t, t)||^2  gradient; then clip, AdamW and EMAs in one pass over the
 * weights
 *
 * Everything random is keyed by (seed, step, position in the global batch), and each image's
 * gradient is scaled by 1 / batch, so that cutting the batch into micro-batches changes nothing but
 * the order of float sums. Cost: two passes over the weights beside the network; per image two
 * float copies of its pixels (x_t and the answer, which the loss overwrites with its gradient).
 * Storing eps was rejected: drawing it twice is cheaper than the memory it would need. */
#include "trainer.h"

#include "fail.h"
#include "philox.h"
#include "rates.h"

#include <inttypes.h>
#include <math.h>

static ddpm_status load_batch(ddpm_trainer *t, int64_t key)
{
    if (t->loaded == key) return DDPM_OK; /* overfitting: it is there */
    t->loaded = -1;
    ddpm_batch b;
    TRY(ddpm_dataset_next(t->data, (uint64_t)key, &b));
    const size_t n = (size_t)t->batch;
    TRY(ddpm_backend_upload(t->be, t->images, b.images, n * (size_t)(t->h * t->w * t->c)));
    TRY(ddpm_backend_upload(t->be, t->flip, b.flip, n));
    if (t->label) {
        for (size_t i = 0; i < n; i++)
            t->host_label[i] = (int32_t)b.labels[i];
        TRY(ddpm_backend_upload(t->be, t->label, t->host_label, n * sizeof *t->label));
    }
    t->loaded = key;
    return DDPM_OK;
}

static ddpm_status draw_times(ddpm_trainer *t, int64_t key)
{
    const uint32_t T = (uint32_t)t->schedule->T;
    for (int64_t i = 0; i < t->batch; i++) {
        const philox4 r =
            philox_draw((uint64_t)t->cfg.train.seed, PHILOX_T, (uint32_t)key, (uint64_t)i, 0);
        t->host_t[i] = 1 + (int32_t)philox_below(r.v[0], T);
        t->host_time[i] = (float)t->schedule->model_time[t->host_t[i]];
    }
    const size_t n = (size_t)t->batch;
    TRY(ddpm_backend_upload(t->be, t->t, t->host_t, n * sizeof *t->t));
    return ddpm_backend_upload(t->be, t->time, t->host_time, n * sizeof *t->time);
}

ddpm_status trainer_pass(ddpm_trainer *t, const struct loss_pass *pass, int64_t first, int64_t n)
{
    ddpm_tensor x0 = ddpm_tensor_4d(t->images + first * t->h * t->w * t->c, n, t->h, t->w, t->c);
    x0.dtype = DDPM_U8;
    ddpm_tensor xt = ddpm_tensor_4d(t->xt, n, t->h, t->w, t->c);
    ddpm_tensor out = ddpm_tensor_4d(t->out, n, t->h, t->w, t->c);
    ddpm_tensor loss = ddpm_tensor_1d(t->loss + first, n);
    const ddpm_tensor time = ddpm_tensor_1d(t->time + first, n);
    const uint8_t *flip = pass->is_training ? t->flip + first : NULL;

    TRY(t->ops->q_sample(t->be, &(struct q_sample_args){.x0 = &x0,
                                                        .flip = flip,
                                                        .t = t->t + first,
                                                        .coef = t->q_rows,
                                                        .state = pass->state,
                                                        .index = pass->index,
                                                        .purpose = pass->purpose,
                                                        .use_step = pass->use_step,
                                                        .xt = &xt}));
    const ddpm_forward_args forward = {.x = &xt,
                                       .t = &time,
                                       .label = t->label ? t->label + first : NULL,
                                       .state = pass->is_training ? pass->state : NULL,
                                       .index = pass->index,
                                       .out = &out};
    TRY(ddpm_model_forward(t->model, &forward));
    TRY(t->ops->diffusion_loss(
        t->be, &(struct diffusion_loss_args){.x0 = &x0,
                                             .out = &out,
                                             .flip = flip,
                                             .t = t->t + first,
                                             .tcoef = t->target_rows,
                                             .state = pass->state,
                                             .index = pass->index,
                                             .purpose = pass->purpose,
                                             .use_step = pass->use_step,
                                             .scale = 1.0f / (float)t->batch,
                                             .loss = &loss,
                                             .dout = pass->is_training ? &out : NULL}));
    return pass->is_training ? ddpm_model_backward(t->model, &forward, &out, NULL) : DDPM_OK;
}

int trainer_quartile(int t, int T)
{
    return (int)(4 * (int64_t)(t - 1) / T);
}

/* Mean loss, of all and by quartile of t; added up in double in the order of the batch. */
static ddpm_status read_losses(ddpm_trainer *t, ddpm_step_result *r)
{
    TRY(ddpm_backend_download(t->be, t->host_loss, t->loss, (size_t)t->batch * sizeof *t->loss));
    double sum = 0;
    for (int q = 0; q < 4; q++) {
        t->quartile_sum[q] = 0;
        t->quartile_count[q] = 0;
    }
    for (int64_t i = 0; i < t->batch; i++) {
        const int q = trainer_quartile(t->host_t[i], t->schedule->T);
        t->quartile_sum[q] += t->host_loss[i];
        t->quartile_count[q]++;
        sum += t->host_loss[i];
    }
    r->loss = sum / (double)t->batch;
    for (int q = 0; q < 4; q++)
        r->quartile[q] =
            t->quartile_count[q] ? t->quartile_sum[q] / (double)t->quartile_count[q] : NAN;
    return DDPM_OK;
}

/* Clip, AdamW, EMAs, g = 0. The op skips where the sum is not finite; a loss that is not finite
 * must skip too, even where its gradient is, so it is written into the sum. */
static ddpm_status update_weights(ddpm_trainer *t, ddpm_step_result *r)
{
    const ddpm_train_config *c = &t->cfg.train;
    ddpm_tensor p = ddpm_tensor_1d(t->p, t->count), g = ddpm_tensor_1d(t->g, t->count);
    ddpm_tensor m = ddpm_tensor_1d(t->m, t->count), v = ddpm_tensor_1d(t->v, t->count);
    ddpm_tensor ema[OPS_EMA_MAX];
    double sum;
    TRY(t->ops->sum_squares(t->be, &(struct sum_squares_args){.x = &g, .sum = t->sum}));
    TRY(ddpm_backend_download(t->be, &sum, t->sum, sizeof sum));
    if (!isfinite(r->loss) && isfinite(sum)) {
        sum = NAN;
        TRY(ddpm_backend_upload(t->be, t->sum, &sum, sizeof sum));
    }
    r->grad_norm = sqrt(sum);
    r->skipped = !isfinite(sum);

    struct adamw_args a = {.p = &p,
                           .g = &g,
                           .m = &m,
                           .v = &v,
                           .n_ema = t->n_ema,
                           .beta1 = (float)c->beta1,
                           .beta2 = (float)c->beta2,
                           .eps = (float)c->adam_eps,
                           .weight_decay = (float)c->weight_decay,
                           .clip_norm = (float)c->clip_norm,
                           .sum = t->sum,
                           .state = t->state};
    for (int k = 0; k < t->n_ema; k++) {
        ema[k] = ddpm_tensor_1d(t->ema[k], t->count);
        a.ema[k] = &ema[k];
    }
    return t->ops->adamw(t->be, &a);
}

ddpm_status ddpm_trainer_step(ddpm_trainer *t, ddpm_step_result *out)
{
    const ddpm_train_config *c = &t->cfg.train;
    const int64_t key = t->is_overfit ? 0 : t->step;
    const struct step_state state = rate_state(c, key, t->step, t->updates);
    ddpm_step_result r = {.lr = state.lr};

    TRY(load_batch(t, key));
    TRY(draw_times(t, key));
    TRY(ddpm_backend_upload(t->be, t->state, &state, sizeof state));
    for (int64_t i = 0; i < t->batch; i += t->micro_batch) {
        const int64_t left = t->batch - i;
        const struct loss_pass pass = {.state = t->state,
                                       .index = t->index + i,
                                       .purpose = PHILOX_EPS,
                                       .use_step = true,
                                       .is_training = true};
        TRY(trainer_pass(t, &pass, i, left < t->micro_batch ? left : t->micro_batch));
    }
    TRY(read_losses(t, &r));
    TRY(update_weights(t, &r));

    t->step++;
    t->updates += !r.skipped;
    t->skipped_in_row = r.skipped ? t->skipped_in_row + 1 : 0;
    REQUIRE(t->skipped_in_row < c->max_skipped, NUMERIC,
            "step %" PRId64 ": loss %g, gradient norm %g: not finite for %" PRId64
            " steps in a row; lower train.lr or train.clip_norm",
            t->step, r.loss, r.grad_norm, t->skipped_in_row);
    *out = r;
    return DDPM_OK;
}

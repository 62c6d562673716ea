/* trainer.c - one step of training: algorithm 1 of DDPM (Ho 2020), in the paper's order.
 *
 *   2  x0 ~ q(x0)                     load_batch: the next images of the stream, as bytes
 *   3  t ~ Uniform({1..T})            open_step
 *   4  eps ~ N(0, I)                  drawn inside q_sample and the loss, never stored
 *   5  gradient step on               trainer_pass, micro-batch by micro-batch: x_t, the network,
 * loss and
 *      ||eps - eps_theta(x_t, t)||^2  gradient; then clip, AdamW and EMAs in one pass over the
 * weights
 *
 * Counters, rates and the decision to skip live on the device, so that a step is queued without
 * waiting for the one before; its figures wait in a ring there until they are collected.
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
    TRY(ddpm_backend_upload(t->be, t->flip, b.flip, n));
    if (t->pack) {
        for (size_t i = 0; i < n; i++)
            t->host_number[i] = (int32_t)b.number[i];
        TRY(ddpm_backend_upload(t->be, t->number, t->host_number, n * sizeof *t->number));
        t->loaded = key;
        return DDPM_OK;
    }
    TRY(ddpm_backend_upload(t->be, t->images, b.images, n * (size_t)(t->h * t->w * t->c)));
    if (t->label) {
        for (size_t i = 0; i < n; i++)
            t->host_label[i] = (int32_t)b.labels[i];
        TRY(ddpm_backend_upload(t->be, t->label, t->host_label, n * sizeof *t->label));
    }
    t->loaded = key;
    return DDPM_OK;
}

ddpm_status trainer_pass(ddpm_trainer *t, const struct loss_pass *pass, int64_t first, int64_t n)
{
    ddpm_tensor x0 = ddpm_tensor_4d(t->images + first * t->h * t->w * t->c, n, t->h, t->w, t->c);
    x0.dtype = DDPM_U8;
    ddpm_tensor xt = ddpm_tensor_4d(t->xt, n, t->h, t->w, t->c);
    ddpm_tensor out = ddpm_tensor_4d(t->out, n, t->h, t->w, t->c);
    xt.dtype = out.dtype = ddpm_model_activation(t->model);
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

static ddpm_status gather_batch(ddpm_trainer *t)
{
    ddpm_tensor all = ddpm_tensor_4d(t->pack, ddpm_dataset_describe(t->data)->n, t->h, t->w, t->c);
    ddpm_tensor batch = ddpm_tensor_4d(t->images, t->batch, t->h, t->w, t->c);
    all.dtype = batch.dtype = DDPM_U8;
    return t->ops->gather(t->be, &(struct gather_args){.x = &all,
                                                       .number = t->number,
                                                       .labels = t->pack_labels,
                                                       .y = &batch,
                                                       .label = t->label});
}

/* t of every image, and the numbers of the step: from the counters on the device. */
static ddpm_status open_step(ddpm_trainer *t)
{
    ddpm_tensor time = ddpm_tensor_1d(t->time, t->batch);
    struct step_rates rates = rates_of(&t->cfg.train);
    rates.is_key_fixed = t->is_overfit;
    return t->ops->open_step(t->be, &(struct open_step_args){.rates = rates,
                                                             .counters = t->counters,
                                                             .model_time = t->model_time,
                                                             .index = t->index,
                                                             .T = t->schedule->T,
                                                             .state = t->state,
                                                             .t = t->t,
                                                             .time = &time});
}

/* Figures and counters; whether the step is skipped is decided here, from loss and gradient. */
static ddpm_status close_step(ddpm_trainer *t)
{
    const ddpm_tensor g = ddpm_tensor_1d(t->g, t->count), loss = ddpm_tensor_1d(t->loss, t->batch);
    TRY(t->ops->sum_squares(t->be, &(struct sum_squares_args){.x = &g, .sum = t->sum}));
    return t->ops->close_step(t->be, &(struct close_step_args){.loss = &loss,
                                                               .t = t->t,
                                                               .T = t->schedule->T,
                                                               .slots = DDPM_STEPS_PENDING,
                                                               .state = t->state,
                                                               .sum = t->sum,
                                                               .counters = t->counters,
                                                               .ring = t->ring});
}

/* Clip, AdamW, EMAs, g = 0; of a skipped step g = 0 alone. */
static ddpm_status update_weights(ddpm_trainer *t)
{
    const ddpm_train_config *c = &t->cfg.train;
    ddpm_tensor p = ddpm_tensor_1d(t->p, t->count), g = ddpm_tensor_1d(t->g, t->count);
    ddpm_tensor m = ddpm_tensor_1d(t->m, t->count), v = ddpm_tensor_1d(t->v, t->count);
    ddpm_tensor ema[OPS_EMA_MAX], half = ddpm_tensor_1d(t->half, t->count);
    half.dtype = DDPM_BF16;
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
                           .state = t->state,
                           .half = t->half ? &half : NULL};
    for (int k = 0; k < t->n_ema; k++) {
        ema[k] = ddpm_tensor_1d(t->ema[k], t->count);
        a.ema[k] = &ema[k];
    }
    return t->ops->adamw(t->be, &a);
}

ddpm_status trainer_step_calls(void *user)
{
    ddpm_trainer *t = user;
    if (t->pack) TRY(gather_batch(t));
    TRY(open_step(t));
    for (int64_t i = 0; i < t->batch; i += t->micro_batch) {
        const int64_t left = t->batch - i;
        const struct loss_pass pass = {.state = t->state,
                                       .index = t->index + i,
                                       .purpose = PHILOX_EPS,
                                       .use_step = true,
                                       .is_training = true};
        TRY(trainer_pass(t, &pass, i, left < t->micro_batch ? left : t->micro_batch));
    }
    TRY(close_step(t));
    return update_weights(t);
}

/* adamw keeps `half` in line while training; other weights, or new ones, are rounded here. */
ddpm_status trainer_bind(ddpm_trainer *t, float *weights, float *grads)
{
    ddpm_model_bind(t->model, weights, grads);
    if (!t->half) return DDPM_OK;
    const ddpm_tensor from = ddpm_tensor_1d(weights, t->count);
    ddpm_tensor to = ddpm_tensor_1d(t->half, t->count);
    to.dtype = DDPM_BF16;
    ddpm_model_bind_half(t->model, t->half);
    return t->ops->cast(t->be, &(struct cast_args){.x = &from, .y = &to});
}

ddpm_status trainer_rebind(ddpm_trainer *t, ddpm_status s)
{
    const ddpm_status back = trainer_bind(t, t->p, t->g);
    return s ? s : back;
}

/* ---- steps and their figures ---- */

int ddpm_trainer_pending(const ddpm_trainer *t)
{
    return (int)(t->step - t->collected);
}

ddpm_status ddpm_trainer_queue(ddpm_trainer *t)
{
    REQUIRE(ddpm_trainer_pending(t) < DDPM_STEPS_PENDING, ARG,
            "trainer: %d steps are pending; collect their figures first", DDPM_STEPS_PENDING);
    TRY(load_batch(t, t->is_overfit ? 0 : t->step));
    TRY(ddpm_recording_run(t->recording));
    t->step++;
    return DDPM_OK;
}

static ddpm_step_result result_of(const struct step_figures *f)
{
    ddpm_step_result r = {.step = f->after.step,
                          .loss = f->loss,
                          .grad_norm = sqrt(f->sum),
                          .lr = f->lr,
                          .skipped = f->is_skipped,
                          .skipped_in_row = f->after.skipped_in_row};
    for (int q = 0; q < 4; q++) {
        r.quartile_sum[q] = f->quartile_sum[q];
        r.quartile_count[q] = f->quartile_count[q];
    }
    return r;
}

/* Waits, and fills host_ring with the pending steps' figures, slot by slot as on the device. */
static ddpm_status read_ring(ddpm_trainer *t)
{
    const int64_t first = t->collected % DDPM_STEPS_PENDING, n = ddpm_trainer_pending(t);
    const int64_t wrapped = first + n > DDPM_STEPS_PENDING ? first + n - DDPM_STEPS_PENDING : 0;
    const size_t unit = sizeof *t->ring;
    if (wrapped) TRY(ddpm_backend_download(t->be, t->host_ring, t->ring, (size_t)wrapped * unit));
    return ddpm_backend_download(t->be, t->host_ring + first, t->ring + first,
                                 (size_t)(n - wrapped) * unit);
}

ddpm_status ddpm_trainer_collect(ddpm_trainer *t, ddpm_step_result *out, int *n)
{
    const ddpm_step_result *fatal = NULL;
    *n = 0;
    TRY(read_ring(t));
    for (; t->collected < t->step; t->collected++) {
        const struct step_figures *f = &t->host_ring[t->collected % DDPM_STEPS_PENDING];
        ddpm_step_result *r = &out[(*n)++];
        *r = result_of(f);
        t->updates = f->after.updates;
        t->skipped_in_row = f->after.skipped_in_row;
        if (!fatal && r->skipped_in_row >= t->cfg.train.max_skipped) fatal = r;
    }
    REQUIRE(!fatal, NUMERIC,
            "step %" PRId64 ": loss %g, gradient norm %g: not finite for %" PRId64
            " steps in a row; lower train.lr or train.clip_norm",
            fatal->step, fatal->loss, fatal->grad_norm, fatal->skipped_in_row);
    return DDPM_OK;
}

ddpm_status ddpm_trainer_step(ddpm_trainer *t, ddpm_step_result *out)
{
    int n;
    REQUIRE(ddpm_trainer_pending(t) == 0, ARG,
            "trainer: %d steps are pending; collect their figures first", ddpm_trainer_pending(t));
    TRY(ddpm_trainer_queue(t));
    TRY(ddpm_trainer_collect(t, t->results, &n));
    *out = t->results[0];
    return DDPM_OK;
}

ddpm_status trainer_counters(ddpm_trainer *t, struct step_counters *out)
{
    return ddpm_backend_download(t->be, out, t->counters, sizeof *out);
}

ddpm_status trainer_set_counters(ddpm_trainer *t, const struct step_counters *c)
{
    TRY(ddpm_backend_upload(t->be, t->counters, c, sizeof *c));
    t->step = t->collected = c->step;
    t->updates = c->updates;
    t->skipped_in_row = c->skipped_in_row;
    return DDPM_OK;
}

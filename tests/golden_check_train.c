/* golden_check_train.c - twenty optimiser steps against PyTorch's trace: losses, gradient norms,
 * and what the weights, their average and the moments are in the end.
 *
 * The steps are algorithm 1 from our ops in the trainer's order; x0, t and eps come from the file.
 */
#include "golden_check.h"
#include "step_rates.h"

#include <math.h>

struct trace {
    ddpm_model *model;
    ddpm_schedule *schedule;
    int64_t steps, n;
    struct step_rates rates;
    double adam_eps, weight_decay, clip_norm;
    float *p, *g, *m, *v, *average; /* device, ddpm_model_arena_count elements */
    float *q_rows, *target_rows;    /* device */
    uint8_t *pixels;                /* host [steps,n,H,W,C] */
    int64_t *time;                  /* host [steps,n], 0-based */
    double *lr, *loss, *norm;       /* host [steps] */
    ddpm_tensor x0, noise, xt, t_model, out, per_image, sum, half;
    int32_t *t;
    struct step_state *state;
    uint64_t *index;
};

static ddpm_status trace_setting(golden *g, struct trace *r)
{
    int64_t T;
    TRY(golden_case_int(g, "steps", &r->steps));
    TRY(golden_case_int(g, "T", &T));
    struct step_rates *c = &r->rates;
    TRY(golden_case_real(g, "lr", &c->lr));
    TRY(golden_case_int(g, "warmup", &c->warmup));
    TRY(golden_case_real(g, "beta1", &c->beta1));
    TRY(golden_case_real(g, "beta2", &c->beta2));
    TRY(golden_case_real(g, "adam_eps", &r->adam_eps));
    TRY(golden_case_real(g, "wd", &r->weight_decay));
    TRY(golden_case_real(g, "clip", &r->clip_norm));
    TRY(golden_case_real(g, "ema", &c->ema[0]));
    c->n_ema = 1;
    c->steps = r->steps;
    REQUIRE(r->steps > 0 && r->steps <= 10000, FORMAT, "%s: %lld steps", g->path,
            (long long)r->steps);
    TRY(golden_schedule(json_string_value(json_object_get(g->setting, "schedule")), T, 1e-4, 0.02,
                        &r->schedule));
    return golden_model_create(g, g->setting, &r->model);
}

/* Pixels come as [steps,n,C,H,W]. */
static ddpm_status trace_pixels(golden *g, struct trace *r)
{
    const st_tensor *t;
    uint8_t *plain;
    TRY(golden_find(g, "in.x0_u8", 5, &t));
    const ddpm_model_config *c = ddpm_model_configuration(r->model);
    r->n = t->shape[1];
    REQUIRE(t->dtype == ST_U8 && t->shape[0] == r->steps && t->shape[2] == c->image_channels &&
                t->shape[3] == c->image_height && t->shape[4] == c->image_width && r->n <= 4096,
            FORMAT, "%s: in.x0_u8 does not fit the case", g->path);
    TRY(golden_host(g, t->bytes, &plain));
    TRY(golden_host(g, t->bytes, &r->pixels));
    TRY(st_read(g->file, t, 0, plain, t->bytes));
    const int64_t pixels = t->shape[3] * t->shape[4], channels = t->shape[2];
    for (int64_t i = 0; i < r->steps * r->n; i++)
        for (int64_t k = 0; k < channels; k++)
            for (int64_t p = 0; p < pixels; p++)
                r->pixels[(i * pixels + p) * channels + k] = plain[(i * channels + k) * pixels + p];
    return DDPM_OK;
}

static ddpm_status trace_inputs(golden *g, struct trace *r)
{
    const st_tensor *t, *lr;
    TRY(trace_pixels(g, r));
    TRY(golden_find(g, "in.t", 2, &t));
    TRY(golden_find(g, "out.lr", 1, &lr));
    REQUIRE(t->shape[0] == r->steps && t->shape[1] == r->n && lr->shape[0] == r->steps, FORMAT,
            "%s: in.t or out.lr does not fit the case", g->path);
    TRY(golden_host(g, (size_t)(r->steps * r->n) * sizeof *r->time, &r->time));
    TRY(st_read_i64(g->file, t, r->time));
    for (int64_t i = 0; i < r->steps * r->n; i++)
        REQUIRE(r->time[i] >= 0 && r->time[i] < r->schedule->T, FORMAT, "%s: in.t", g->path);
    TRY(golden_host(g, (size_t)r->steps * sizeof *r->lr, &r->lr));
    TRY(golden_host(g, (size_t)r->steps * sizeof *r->loss, &r->loss));
    TRY(golden_host(g, (size_t)r->steps * sizeof *r->norm, &r->norm));
    return st_read_f64(g->file, lr, r->lr);
}

static ddpm_status trace_reserve(golden *g, struct trace *r)
{
    const ddpm_model_config *c = ddpm_model_configuration(r->model);
    const size_t bytes = (size_t)ddpm_model_arena_count(r->model) * sizeof(float);
    const int64_t shape[4] = {r->n, c->image_height, c->image_width, c->image_channels};
    const size_t row_bytes = (size_t)(r->schedule->T + 1) * 2 * sizeof(float);
    float *initial, *rows;
    TRY(golden_model_weights(g, g->file, r->model, &initial));
    TRY(golden_upload(g, initial, bytes, &r->p));
    TRY(golden_upload(g, initial, bytes, &r->average));
    TRY(golden_device(g, bytes, &r->g));
    TRY(golden_device(g, bytes, &r->m));
    TRY(golden_device(g, bytes, &r->v));
    TRY(golden_host(g, row_bytes, &rows));
    ddpm_schedule_q_rows(r->schedule, rows);
    TRY(golden_upload(g, rows, row_bytes, &r->q_rows));
    ddpm_schedule_target_rows(r->schedule, DDPM_PREDICT_EPS, rows);
    TRY(golden_upload(g, rows, row_bytes, &r->target_rows));
    TRY(golden_empty(g, 4, shape, &r->x0));
    r->x0.dtype = DDPM_U8; /* a quarter of the memory is used */
    TRY(golden_empty(g, 4, shape, &r->noise));
    TRY(golden_activation(g, r->model, &r->noise, &r->xt));
    TRY(golden_activation(g, r->model, &r->noise, &r->out));
    TRY(golden_empty(g, 1, &r->n, &r->t_model));
    TRY(golden_empty(g, 1, &r->n, &r->per_image));
    TRY(golden_device(g, (size_t)r->n * sizeof *r->t, &r->t));
    TRY(golden_empty(g, 1, (int64_t[]){2}, &r->sum)); /* one f64 */
    TRY(golden_state(g, r->n, &r->state, &r->index));
    TRY(ddpm_model_reserve(r->model, (int)r->n, true));
    TRY(golden_bind(g, r->model, r->p, r->g, &r->half));
    return DDPM_OK;
}

/* What differs from step to step, to the device. */
static ddpm_status trace_upload(golden *g, struct trace *r, int64_t step)
{
    const int64_t size = ddpm_tensor_count(&r->xt);
    struct step_state state = step_state_at(&r->rates, step, step);
    state.lr = (float)r->lr[step];
    float *eps, *told;
    int32_t *t;
    TRY(golden_host(g, (size_t)size * sizeof *eps, &eps));
    TRY(golden_host(g, (size_t)r->n * sizeof *told, &told));
    TRY(golden_host(g, (size_t)r->n * sizeof *t, &t));
    TRY(golden_slice(g, "in.noise", step, eps, size));
    for (int64_t i = 0; i < r->n; i++) {
        t[i] = (int32_t)r->time[step * r->n + i] + 1;
        told[i] = (float)r->schedule->model_time[t[i]];
    }
    TRY(ddpm_backend_upload(g->be, r->state, &state, sizeof state));
    TRY(ddpm_backend_upload(g->be, r->noise.data, eps, (size_t)size * sizeof *eps));
    TRY(ddpm_backend_upload(g->be, r->x0.data, r->pixels + step * size, (size_t)size));
    TRY(ddpm_backend_upload(g->be, r->t, t, (size_t)r->n * sizeof *t));
    return ddpm_backend_upload(g->be, r->t_model.data, told, (size_t)r->n * sizeof *told);
}

static ddpm_status trace_step(golden *g, struct trace *r, int64_t step)
{
    const int64_t count = ddpm_model_arena_count(r->model);
    ddpm_tensor p = ddpm_tensor_1d(r->p, count), grad = ddpm_tensor_1d(r->g, count),
                m = ddpm_tensor_1d(r->m, count), v = ddpm_tensor_1d(r->v, count),
                average = ddpm_tensor_1d(r->average, count);
    const ddpm_forward_args a = {
        .x = &r->xt, .t = &r->t_model, .state = r->state, .index = r->index, .out = &r->out};
    ddpm_tensor *half = ddpm_model_activation(r->model) == DDPM_BF16 ? &r->half : NULL;
    float *loss;
    double sum;
    TRY(trace_upload(g, r, step));
    TRY(g->ops->q_sample(
        g->be, &(struct q_sample_args){
                   .x0 = &r->x0, .eps = &r->noise, .t = r->t, .coef = r->q_rows, .xt = &r->xt}));
    TRY(ddpm_model_forward(r->model, &a));
    TRY(g->ops->diffusion_loss(g->be, &(struct diffusion_loss_args){.x0 = &r->x0,
                                                                    .eps = &r->noise,
                                                                    .out = &r->out,
                                                                    .t = r->t,
                                                                    .tcoef = r->target_rows,
                                                                    .scale = 1.0f / (float)r->n,
                                                                    .loss = &r->per_image,
                                                                    .dout = &r->out}));
    TRY(ddpm_model_backward(r->model, &a, &r->out, NULL));
    TRY(g->ops->sum_squares(g->be, &(struct sum_squares_args){.x = &grad, .sum = r->sum.data}));
    TRY(golden_floats(g, &r->per_image, &loss));
    TRY(ddpm_backend_download(g->be, &sum, r->sum.data, sizeof sum));
    for (int64_t i = 0; i < r->n; i++)
        r->loss[step] += loss[i] / (double)r->n;
    r->norm[step] = sqrt(sum);
    return g->ops->adamw(g->be, &(struct adamw_args){.p = &p,
                                                     .g = &grad,
                                                     .m = &m,
                                                     .v = &v,
                                                     .ema = {&average},
                                                     .n_ema = 1,
                                                     .beta1 = (float)r->rates.beta1,
                                                     .beta2 = (float)r->rates.beta2,
                                                     .eps = (float)r->adam_eps,
                                                     .weight_decay = (float)r->weight_decay,
                                                     .clip_norm = (float)r->clip_norm,
                                                     .sum = r->sum.data,
                                                     .state = r->state,
                                                     .half = half});
}

/* The rule of the trainer, where the file's first step has 1/warmup of the full rate. */
static ddpm_status compare_rates(golden *g, const struct trace *r)
{
    int64_t first;
    double *lr;
    TRY(golden_case_int(g, "first", &first));
    if (first != 1) return DDPM_OK;
    TRY(golden_host(g, (size_t)r->steps * sizeof *lr, &lr));
    for (int64_t i = 0; i < r->steps; i++)
        lr[i] = step_lr(&r->rates, i);
    return golden_compare_f64(g, "out.lr", lr, r->steps, 1e-12);
}

static ddpm_status trace_run(golden *g, struct trace *r)
{
    TRY(trace_setting(g, r));
    TRY(trace_inputs(g, r));
    TRY(trace_reserve(g, r));
    TRY(compare_rates(g, r));
    for (int64_t step = 0; step < r->steps; step++)
        TRY(trace_step(g, r, step));
    /* PyTorch in float32 is within 1e-6 of the exact trace; ten times that is left for the order of
     * sums */
    const double limit = g->precision == DDPM_PRECISION_BF16 ? golden_limit(g, "out.loss") : 1e-5;
    TRY(golden_compare_f64(g, "out.loss", r->loss, r->steps, limit));
    TRY(golden_compare_f64(g, "out.grad_norm", r->norm, r->steps, limit));
    TRY(golden_compare_arena(g, "final.w.", r->model, r->p));
    TRY(golden_compare_arena(g, "final.ema.", r->model, r->average));
    if (!golden_has(g, "final.m.conv_in.weight")) return DDPM_OK;
    TRY(golden_compare_arena(g, "final.m.", r->model, r->m));
    return golden_compare_arena(g, "final.v.", r->model, r->v);
}

ddpm_status golden_train(golden *g)
{
    struct trace r = {0};
    const ddpm_status s = trace_run(g, &r);
    ddpm_model_free(r.model);
    ddpm_schedule_free(r.schedule);
    return s;
}

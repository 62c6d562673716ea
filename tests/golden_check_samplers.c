/* golden_check_samplers.c - DDIM and ancestral traces of diffusers, step by step, on a tiny trained
 * U-Net whose weights lie in the file that the case names, beside it.
 *
 * The trajectory is ours from x_T on: an error in one step shows in all that follow. diffusers'
 * conventions differ from guided-diffusion's in two places, both said by the file: DDIM keeps the
 * network's eps where x0 was clipped, and a step goes from t to t - T/n, which is not always the
 * next listed step. */
#include "golden_check.h"
#include "sampler.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct trace {
    ddpm_model *model;
    st_file *weights;
    ddpm_schedule *schedule;
    sampler_options options;
    bool ends_at_one; /* abar before the first step is 1; else abar of the first */
    int64_t steps, *from, *to;
    ddpm_tensor x, out, x0_hat, noise, t, half;
    float *rows; /* device [n,8] */
    struct step_state *state;
    uint64_t *index;
};

static ddpm_status read_steps(golden *g, const char *key, int64_t steps, int64_t **out)
{
    const st_tensor *t;
    TRY(golden_find(g, key, 1, &t));
    REQUIRE(t->shape[0] == steps, FORMAT, "%s: %s has %lld steps, the case %lld", g->path, key,
            (long long)t->shape[0], (long long)steps);
    TRY(golden_host(g, (size_t)steps * sizeof **out, out));
    return st_read_i64(g->file, t, *out);
}

static ddpm_status trace_setting(golden *g, struct trace *r)
{
    const json_t *c = json_object_get(g->setting, "config");
    const bool is_ddim = strcmp(st_metadata(g->file, "kind"), "samplers/ddim") == 0;
    const char *variance = json_string_value(json_object_get(c, "variance_type"));
    const double start = json_number_value(json_object_get(c, "beta_start")),
                 end = json_number_value(json_object_get(c, "beta_end"));
    r->options = (sampler_options){
        .kind = is_ddim ? DDPM_SAMPLER_DDIM : DDPM_SAMPLER_ANCESTRAL,
        .objective = DDPM_PREDICT_EPS,
        .variance = variance && strcmp(variance, "fixed_large") == 0 ? DDPM_VARIANCE_LARGE
                                                                     : DDPM_VARIANCE_SMALL,
        .eta = json_number_value(json_object_get(g->setting, "eta")),
        .clip = json_is_true(json_object_get(c, "clip_sample")),
        .network_eps = true,
    };
    r->ends_at_one = !is_ddim || !json_is_false(json_object_get(c, "set_alpha_to_one"));
    TRY(golden_case_int(g, "num_inference_steps", &r->steps));
    REQUIRE(r->steps > 0 && r->steps <= 10000, FORMAT, "%s: %lld steps", g->path,
            (long long)r->steps);
    TRY(golden_schedule(json_string_value(json_object_get(c, "beta_schedule")),
                        json_integer_value(json_object_get(c, "num_train_timesteps")),
                        start > 0 ? start : 1e-4, end > 0 ? end : 0.02, &r->schedule));
    TRY(read_steps(g, "out.timesteps", r->steps, &r->from));
    TRY(read_steps(g, "out.prev_timesteps", r->steps, &r->to));
    for (int64_t i = 0; i < r->steps; i++)
        REQUIRE(r->from[i] >= 0 && r->from[i] < r->schedule->T && r->to[i] < r->from[i], FORMAT,
                "%s: step %lld goes from %lld to %lld", g->path, (long long)i,
                (long long)r->from[i], (long long)r->to[i]);
    return DDPM_OK;
}

/* The model's file lies beside the case's. */
static ddpm_status trace_model(golden *g, struct trace *r)
{
    const char *name = json_string_value(json_object_get(g->setting, "model")),
               *slash = strrchr(g->path, '/');
    char *path;
    float *arena, *weights;
    REQUIRE(name && !strchr(name, '/'), FORMAT, "%s: case names no model", g->path);
    const size_t folder = slash ? (size_t)(slash - g->path) + 1 : 0,
                 bytes = folder + strlen(name) + 16;
    TRY(golden_host(g, bytes, &path));
    memcpy(path, g->path, folder);
    snprintf(path + folder, bytes - folder, "%s.safetensors", name);
    TRY(st_open(path, &r->weights));
    const char *text = st_metadata(r->weights, "case");
    json_t *setting = text ? json_loads(text, 0, NULL) : NULL;
    REQUIRE(setting, FORMAT, "%s: no case in its metadata", path);
    const ddpm_status s = golden_model_create(g, setting, &r->model);
    json_decref(setting);
    if (s) return s;
    TRY(golden_model_weights(g, r->weights, r->model, &arena));
    TRY(golden_upload(g, arena, (size_t)ddpm_model_arena_count(r->model) * sizeof *arena,
                      &weights));
    return golden_bind(g, r->model, weights, NULL, &r->half);
}

static ddpm_status trace_reserve(golden *g, struct trace *r)
{
    TRY(golden_load(g, "in.x_T", &r->x));
    TRY(golden_activation(g, r->model, &r->x, &r->out));
    TRY(golden_like(g, &r->x, &r->x0_hat));
    TRY(golden_like(g, &r->x, &r->noise));
    const int64_t n = r->x.dim[0];
    REQUIRE(n <= 64, FORMAT, "%s: %lld images", g->path, (long long)n);
    TRY(golden_empty(g, 1, &n, &r->t));
    TRY(golden_device(g, (size_t)n * sizeof(reverse_row), &r->rows));
    TRY(golden_state(g, n, &r->state, &r->index));
    return ddpm_model_reserve(r->model, (int)n, false);
}

/* Row `step` of KEY against a tensor. */
static ddpm_status compare_step(golden *g, const char *key, int64_t row, const ddpm_tensor *t)
{
    const int64_t count = ddpm_tensor_count(t);
    float *expected, *found;
    char label[64];
    TRY(golden_host(g, (size_t)count * sizeof *expected, &expected));
    TRY(golden_slice(g, key, row, expected, count));
    TRY(golden_floats(g, t, &found));
    snprintf(label, sizeof label, "%s[%lld]", key, (long long)row);
    golden_compare_arrays(g, label, found, expected, count);
    return DDPM_OK;
}

static ddpm_status trace_upload(golden *g, struct trace *r, int64_t step)
{
    const double *abar = r->schedule->abar;
    const int64_t n = r->x.dim[0], count = ddpm_tensor_count(&r->x);
    const double before = r->to[step] >= 0 ? abar[r->to[step] + 1] : r->ends_at_one ? 1 : abar[1];
    reverse_row rows[64];
    float told[64], *z;
    /* DDIM's noise vanishes by itself where abar before is 1, and must stay where it is not */
    sampler_row_between(abar[r->from[step] + 1], before, &r->options,
                        r->options.kind == DDPM_SAMPLER_ANCESTRAL && r->to[step] < 0, &rows[0]);
    for (int64_t i = 0; i < n; i++) {
        rows[i] = rows[0];
        told[i] = (float)r->from[step];
    }
    TRY(ddpm_backend_upload(g->be, r->rows, rows, (size_t)n * sizeof *rows));
    TRY(ddpm_backend_upload(g->be, r->t.data, told, (size_t)n * sizeof *told));
    if (!golden_has(g, "in.noise")) return DDPM_OK;
    TRY(golden_host(g, (size_t)count * sizeof *z, &z));
    TRY(golden_slice(g, "in.noise", step, z, count));
    return ddpm_backend_upload(g->be, r->noise.data, z, (size_t)count * sizeof *z);
}

static ddpm_status trace_step(golden *g, struct trace *r, int64_t step)
{
    TRY(trace_upload(g, r, step));
    TRY(ddpm_model_forward(r->model, &(ddpm_forward_args){.x = &r->x, .t = &r->t, .out = &r->out}));
    if (golden_has(g, "out.model_output")) TRY(compare_step(g, "out.model_output", step, &r->out));
    TRY(g->ops->reverse_step(g->be, &(struct reverse_step_args){.out = &r->out,
                                                                .noise = &r->noise,
                                                                .rows = r->rows,
                                                                .state = r->state,
                                                                .index = r->index,
                                                                .x = &r->x,
                                                                .x0_hat = &r->x0_hat}));
    if (golden_has(g, "out.pred_x0")) {
        /* x0_hat = (x - sqrt(1 - abar) eps) / sqrt(abar) enlarges what eps is off in bf16 */
        const double abar = r->schedule->abar[r->from[step] + 1];
        g->enlarged = fmax(1, sqrt((1 - abar) / abar));
        const ddpm_status s = compare_step(g, "out.pred_x0", step, &r->x0_hat);
        g->enlarged = 1;
        TRY(s);
    }
    return compare_step(g, "out.x", step + 1, &r->x);
}

static ddpm_status trace_run(golden *g, struct trace *r)
{
    TRY(trace_setting(g, r));
    TRY(trace_model(g, r));
    TRY(trace_reserve(g, r));
    for (int64_t step = 0; step < r->steps; step++)
        TRY(trace_step(g, r, step));
    return DDPM_OK;
}

ddpm_status golden_sampler(golden *g)
{
    struct trace r = {0};
    const ddpm_status s = trace_run(g, &r);
    ddpm_model_free(r.model);
    st_close(r.weights);
    ddpm_schedule_free(r.schedule);
    return s;
}

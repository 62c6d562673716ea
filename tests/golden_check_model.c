/* golden_check_model.c - whole U-Nets of diffusers through ddpm_model: output, gradient of the
 * input, and every weight's. */
#include "golden_check.h"

#include <stdio.h>
#include <string.h>

/* What UNet2DModel means where its configuration says nothing. */
static double number_or(const json_t *o, const char *key, double otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

static ddpm_status config_levels(const golden *g, const json_t *o, ddpm_model_config *c)
{
    const json_t *widths = json_object_get(o, "block_out_channels"),
                 *kinds = json_object_get(o, "down_block_types");
    const size_t n = json_array_size(widths);
    REQUIRE(n >= 1 && n <= DDPM_LIST_MAX && json_array_size(kinds) == n, FORMAT,
            "%s: case has %zu levels", g->path, n);
    c->channels = json_integer_value(json_array_get(widths, 0));
    REQUIRE(c->channels > 0, FORMAT, "%s: block_out_channels", g->path);
    for (size_t i = 0; i < n; i++) {
        const char *kind = json_string_value(json_array_get(kinds, i));
        const int64_t width = json_integer_value(json_array_get(widths, i));
        REQUIRE(width > 0, FORMAT, "%s: block_out_channels", g->path);
        c->channel_mult.v[c->channel_mult.n++] = (double)width / (double)c->channels;
        if (kind && strncmp(kind, "Attn", 4) == 0)
            c->attention_resolutions.v[c->attention_resolutions.n++] = c->image_height >> i;
    }
    if (c->attention_resolutions.n == 0) c->attention_resolutions.n = 1; /* 0: the middle's alone */
    return DDPM_OK;
}

ddpm_status golden_model_create(golden *g, const json_t *setting, ddpm_model **out)
{
    const json_t *o = json_object_get(setting, "config");
    const char *class = json_string_value(json_object_get(setting, "class"));
    REQUIRE(o && class && strcmp(class, "UNet2DModel") == 0, FORMAT, "%s: case is no UNet2DModel",
            g->path);
    const json_t *size = json_object_get(o, "sample_size");
    const char *shift = json_string_value(json_object_get(o, "resnet_time_scale_shift"));
    const json_t *flip = json_object_get(o, "flip_sin_to_cos");
    ddpm_model_config c = {
        .image_height = json_integer_value(json_is_array(size) ? json_array_get(size, 0) : size),
        .image_width = json_integer_value(json_is_array(size) ? json_array_get(size, 1) : size),
        .image_channels = (int64_t)number_or(o, "in_channels", 3),
        .num_res_blocks = (int64_t)number_or(o, "layers_per_block", 2),
        .num_heads = 1,
        .head_channels = json_is_null(json_object_get(o, "attention_head_dim"))
                             ? 0
                             : (int64_t)number_or(o, "attention_head_dim", 8),
        .norm_groups = (int64_t)number_or(o, "norm_num_groups", 32),
        .norm_eps = number_or(o, "norm_eps", 1e-5),
        .embedding_order = !flip || json_is_true(flip) ? DDPM_COS_SIN : DDPM_SIN_COS,
        .embedding_shift = number_or(o, "freq_shift", 0),
        .downsample_padding = (int64_t)number_or(o, "downsample_padding", 1),
        .scale_shift = shift && strcmp(shift, "scale_shift") == 0,
        .num_classes = (int64_t)number_or(o, "num_class_embeds", 0),
    };
    TRY(config_levels(g, o, &c));
    TRY(ddpm_model_create(g->be, &c, out));
    return ddpm_model_set_precision(*out, g->precision, "--precision");
}

ddpm_status golden_activation(golden *g, const ddpm_model *m, const ddpm_tensor *t, ddpm_tensor *out)
{
    TRY(golden_like(g, t, out));
    out->dtype = ddpm_model_activation(m);
    return DDPM_OK;
}

ddpm_status golden_bind(golden *g, ddpm_model *m, float *weights, float *grads, ddpm_tensor *half)
{
    ddpm_model_bind(m, weights, grads);
    if (ddpm_model_activation(m) != DDPM_BF16) return DDPM_OK;
    const ddpm_tensor flat = ddpm_tensor_1d(weights, ddpm_model_arena_count(m));
    TRY(golden_cast(g, &flat, half));
    ddpm_model_bind_half(m, half->data);
    return DDPM_OK;
}

ddpm_status golden_model_weights(golden *g, st_file *from, const ddpm_model *m, float **out)
{
    float *arena;
    int found = 0;
    TRY(golden_host(g, (size_t)ddpm_model_arena_count(m) * sizeof *arena, &arena));
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        char key[192];
        float *values;
        snprintf(key, sizeof key, "w.%s", p->name);
        const st_tensor *t = st_find(from, key);
        REQUIRE(t, FORMAT, "%s: weight %s is missing", st_path(from), key);
        bool same = t->rank == p->rank;
        for (int k = 0; same && k < t->rank; k++)
            same = t->shape[k] == p->shape[k];
        REQUIRE(same, FORMAT, "%s: %s does not have the shape of the model's", st_path(from), key);
        TRY(golden_host(g, (size_t)p->count * sizeof *values, &values));
        TRY(st_read_f32(from, t, values));
        ddpm_model_from_file_layout(m, i, values, arena);
    }
    for (int i = 0; i < st_count(from); i++)
        found += strncmp(st_at(from, i)->name, "w.", 2) == 0;
    REQUIRE(found == ddpm_model_parameter_count(m), FORMAT, "%s: has %d weights, the model has %d",
            st_path(from), found, ddpm_model_parameter_count(m));
    *out = arena;
    return DDPM_OK;
}

ddpm_status golden_compare_arena(golden *g, const char *prefix, const ddpm_model *m,
                                 const float *device)
{
    float *arena, *values;
    const size_t bytes = (size_t)ddpm_model_arena_count(m) * sizeof *arena;
    TRY(golden_host(g, bytes, &arena));
    TRY(ddpm_backend_sync(g->be));
    TRY(ddpm_backend_download(g->be, arena, device, bytes));
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        char key[192];
        if (golden_listed(g->ill, p->name))
            continue; /* Adam makes full steps of rounding noise there */
        snprintf(key, sizeof key, "%s%s", prefix, p->name);
        TRY(golden_host(g, (size_t)p->count * sizeof *values, &values));
        ddpm_model_to_file_layout(m, i, arena, values);
        TRY(golden_compare_f32(g, key, values, p->count));
    }
    return DDPM_OK;
}

static ddpm_status unet_run(golden *g, ddpm_model *m)
{
    ddpm_tensor x, y, dy, dx, t, half;
    float *arena, *weights, *grads, *time;
    int64_t *whole;
    int32_t *label = NULL;
    struct step_state *state;
    uint64_t *index;
    const st_tensor *in_file;
    const size_t bytes = (size_t)ddpm_model_arena_count(m) * sizeof *arena;
    TRY(golden_model_weights(g, g->file, m, &arena));
    TRY(golden_upload(g, arena, bytes, &weights));
    TRY(golden_device(g, bytes, &grads));
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_find(g, "in.t", 1, &in_file));
    const int64_t n = x.dim[0], classes = ddpm_model_configuration(m)->num_classes;
    REQUIRE(in_file->shape[0] == n && n <= 64, FORMAT, "%s: in.t does not fit in.x", g->path);
    TRY(golden_host(g, (size_t)n * sizeof *whole, &whole));
    TRY(st_read_i64(g->file, in_file, whole));
    TRY(golden_host(g, (size_t)n * sizeof *time, &time));
    for (int64_t i = 0; i < n; i++)
        time[i] = (float)whole[i];
    TRY(golden_empty(g, 1, (int64_t[]){n}, &t));
    TRY(ddpm_backend_upload(g->be, t.data, time, (size_t)n * sizeof *time));
    if (classes > 0) TRY(golden_load_i32(g, "in.y", 0, 0, classes - 1, &label));
    TRY(golden_state(g, n, &state, &index));
    if (ddpm_model_activation(m) == DDPM_BF16) { /* also x: its gradient is of its type */
        TRY(golden_cast(g, &dy, &dy));
        TRY(golden_cast(g, &x, &x));
    }
    TRY(golden_activation(g, m, &x, &y));
    TRY(golden_activation(g, m, &x, &dx));
    TRY(ddpm_model_reserve(m, (int)n, true));
    TRY(golden_bind(g, m, weights, grads, &half));
    const ddpm_forward_args a = {
        .x = &x, .t = &t, .label = label, .state = state, .index = index, .out = &y};
    TRY(ddpm_model_forward(m, &a));
    TRY(golden_compare(g, "out.y", &y));
    TRY(ddpm_model_backward(m, &a, &dy, &dx));
    TRY(golden_compare(g, "g.in.x", &dx));
    return golden_compare_arena(g, "g.w.", m, grads);
}

ddpm_status golden_unet(golden *g)
{
    ddpm_model *m = NULL;
    int64_t parameters;
    TRY(golden_case_int(g, "params", &parameters));
    TRY(golden_model_create(g, g->setting, &m));
    const bool same = ddpm_model_parameter_total(m) == parameters;
    ddpm_status s = DDPM_OK;
    if (!same)
        s = FAIL(FORMAT, "%s: the model has %lld parameters, the case %lld", g->path,
                 (long long)ddpm_model_parameter_total(m), (long long)parameters);
    if (!s) s = unet_run(g, m);
    ddpm_model_free(m);
    return s;
}

/* A file of weights alone: names, shapes, and the way into our layout and back to the same numbers.
 */
ddpm_status golden_weights(golden *g)
{
    ddpm_model *m = NULL;
    float *arena, *device;
    TRY(golden_model_create(g, g->setting, &m));
    ddpm_status s = golden_model_weights(g, g->file, m, &arena);
    if (!s) s = golden_upload(g, arena, (size_t)ddpm_model_arena_count(m) * sizeof *arena, &device);
    if (!s) s = golden_compare_arena(g, "w.", m, device);
    ddpm_model_free(m);
    return s;
}

/* golden_check_math.c - the schedules in double, and the forward process q with its posterior. */
#include "golden_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* scaled_linear has betas whose square roots are even; it is no schedule of ours, but importing one
 * needs the tables that follow from it. */
static ddpm_status scaled_linear(int64_t steps, double start, double end, ddpm_schedule **out)
{
    double *beta = malloc((size_t)steps * sizeof *beta);
    REQUIRE(beta, NOMEM, "schedule of %lld steps", (long long)steps);
    for (int64_t i = 0; i < steps; i++) {
        const double root =
            sqrt(start) + (sqrt(end) - sqrt(start)) * (double)i / (double)(steps - 1);
        beta[i] = root * root;
    }
    const ddpm_status s = ddpm_schedule_from_betas(beta, (int)steps, out);
    free(beta);
    return s;
}

ddpm_status golden_schedule(const char *kind, int64_t steps, double start, double end,
                            ddpm_schedule **out)
{
    REQUIRE(kind, FORMAT, "a schedule without a kind");
    REQUIRE(steps >= 2 && steps <= 100000, FORMAT, "a schedule of %lld steps", (long long)steps);
    if (strcmp(kind, "scaled_linear") == 0) return scaled_linear(steps, start, end, out);
    ddpm_diffusion_config c = {
        .schedule = DDPM_SCHEDULE_LINEAR, .steps = steps, .beta_start = start, .beta_end = end};
    if (strcmp(kind, "cosine") == 0 || strcmp(kind, "squaredcos_cap_v2") == 0)
        c.schedule = DDPM_SCHEDULE_COSINE;
    else
        REQUIRE(strcmp(kind, "linear") == 0, FORMAT, "schedule \"%s\"", kind);
    return ddpm_schedule_create(&c, out);
}

/* The arrays of `s` that the file has under PREFIX. Indices 1..T of ours are 0..T-1 there. */
static ddpm_status compare_tables(golden *g, const char *prefix, const ddpm_schedule *s,
                                  double beta_limit)
{
    const struct {
        const char *name;
        const double *values;
        double limit;
    } tables[] = {
        {"betas", s->beta, beta_limit},
        {"alphas_cumprod", s->abar, g->limit},
        {"posterior_variance", s->posterior_var, g->limit},
        /* logarithms of betas carry their relative error */
        {"posterior_log_variance_clipped", s->posterior_logvar, beta_limit},
        {"posterior_mean_coef1", s->posterior_x0, g->limit},
        {"posterior_mean_coef2", s->posterior_xt, g->limit},
    };
    char key[128];
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        snprintf(key, sizeof key, "%s.%s", prefix, tables[i].name);
        if (golden_has(g, key))
            TRY(golden_compare_f64(g, key, tables[i].values + 1, s->T, tables[i].limit));
    }
    /* 1/sqrt(abar) and sqrt(1/abar - 1), which turn eps into x0 */
    double *root;
    TRY(golden_host(g, (size_t)s->T * sizeof *root, &root));
    snprintf(key, sizeof key, "%s.sqrt_recip_alphas_cumprod", prefix);
    for (int t = 1; t <= s->T; t++)
        root[t - 1] = sqrt(1 / s->abar[t]);
    if (golden_has(g, key)) TRY(golden_compare_f64(g, key, root, s->T, g->limit));
    snprintf(key, sizeof key, "%s.sqrt_recipm1_alphas_cumprod", prefix);
    for (int t = 1; t <= s->T; t++)
        root[t - 1] = sqrt(1 / s->abar[t] - 1);
    if (golden_has(g, key)) TRY(golden_compare_f64(g, key, root, s->T, g->limit));
    return DDPM_OK;
}

/* Betas of a schedule that is not one of ours come from the file: then the tables derived from them
 * are compared. */
static ddpm_status schedule_of(golden *g, const char *name, const json_t *setting,
                               ddpm_schedule **out)
{
    const char *kind = json_string_value(json_object_get(setting, "kind"));
    const int64_t steps = json_integer_value(json_object_get(setting, "T"));
    REQUIRE(kind && steps >= 2 && steps <= 100000, FORMAT, "%s: schedule %s", g->path, name);
    if (strcmp(kind, "sigmoid") != 0)
        return golden_schedule(kind, steps,
                               json_number_value(json_object_get(setting, "beta_start")),
                               json_number_value(json_object_get(setting, "beta_end")), out);
    const st_tensor *t;
    double *beta;
    char key[128];
    snprintf(key, sizeof key, "%s.betas", name);
    TRY(golden_find(g, key, 1, &t));
    TRY(golden_host(g, (size_t)t->shape[0] * sizeof *beta, &beta));
    TRY(st_read_f64(g->file, t, beta));
    return ddpm_schedule_from_betas(beta, (int)t->shape[0], out);
}

/* Kept steps exactly, their betas to 1e-8: a difference of nearly equal products. */
static ddpm_status compare_respaced(golden *g, const ddpm_schedule *whole, const char *name,
                                    const char *spacing, const json_t *expected)
{
    char prefix[96], key[128];
    int *kept = NULL, n = 0;
    ddpm_schedule *s = NULL;
    if (json_is_string(expected)) {
        const ddpm_status refused = ddpm_spacing_parse(spacing, whole->T, &kept, &n);
        free(kept);
        golden_report(g, spacing, refused ? 0 : INFINITY, 0);
        return DDPM_OK;
    }
    TRY(ddpm_spacing_parse(spacing, whole->T, &kept, &n));
    snprintf(prefix, sizeof prefix, "respace.%s.%s", name, spacing);
    for (char *c = prefix; *c; c++)
        if (*c == ',') *c = '_';
    ddpm_status status = ddpm_schedule_respace(whole, kept, n, &s);
    free(kept);
    if (status) return status;
    double *map;
    snprintf(key, sizeof key, "%s.timestep_map", prefix);
    status = golden_host(g, (size_t)n * sizeof *map, &map);
    for (int i = 0; !status && i < n; i++)
        map[i] = s->original_t[i + 1] - 1;
    if (!status) status = golden_compare_f64(g, key, map, n, 0);
    for (int i = 0; !status && i < n; i++)
        map[i] = s->model_time[i + 1];
    if (!status) status = golden_compare_f64(g, key, map, n, 0);
    if (!status) status = compare_tables(g, prefix, s, 1e-8);
    ddpm_schedule_free(s);
    return status;
}

ddpm_status golden_schedules(golden *g)
{
    json_t *schedules = json_object_get(g->setting, "schedules"),
           *respace = json_object_get(g->setting, "respace"), *v;
    const char *name, *spec;
    json_object_foreach(schedules, name, v)
    {
        ddpm_schedule *s = NULL;
        TRY(schedule_of(g, name, v, &s));
        ddpm_status status = compare_tables(g, name, s, g->limit);
        json_t *expected;
        json_object_foreach(respace, spec, expected)
        {
            const size_t n = strlen(name);
            if (!status && strncmp(spec, name, n) == 0 && spec[n] == '/')
                status = compare_respaced(g, s, name, spec + n + 1, expected);
        }
        ddpm_schedule_free(s);
        if (status) return status;
    }
    return DDPM_OK;
}

/* ---- q(x_t | x_0) and q(x_{t-1} | x_t, x_0) ---- */

struct q_case {
    ddpm_tensor x0, eps, xt;
    int32_t *t;
    float *coef, *x0_host, *xt_host, *row;
    int64_t *time;   /* 1..T */
    int64_t n, size; /* images, values of one */
};

static ddpm_status q_load(golden *g, const ddpm_schedule *s, struct q_case *q)
{
    const st_tensor *in_file;
    TRY(golden_load(g, "in.x0", &q->x0));
    TRY(golden_load(g, "in.noise", &q->eps));
    TRY(golden_load_i32(g, "in.t", 1, 0, s->T - 1, &q->t));
    TRY(golden_find(g, "in.t", 1, &in_file));
    q->n = q->x0.dim[0];
    q->size = ddpm_tensor_count(&q->x0) / q->n;
    REQUIRE(in_file->shape[0] == q->n && ddpm_tensor_count(&q->eps) == q->n * q->size, FORMAT,
            "%s: in.t or in.noise does not fit in.x0", g->path);
    TRY(golden_host(g, (size_t)q->n * sizeof *q->time, &q->time));
    TRY(st_read_i64(g->file, in_file, q->time));
    for (int64_t i = 0; i < q->n; i++)
        q->time[i]++;
    TRY(golden_like(g, &q->x0, &q->xt));
    float *rows;
    TRY(golden_host(g, (size_t)(s->T + 1) * 2 * sizeof *rows, &rows));
    ddpm_schedule_q_rows(s, rows);
    TRY(golden_upload(g, rows, (size_t)(s->T + 1) * 2 * sizeof *rows, &q->coef));
    TRY(golden_floats(g, &q->x0, &q->x0_host));
    return golden_host(g, (size_t)(q->n * q->size) * sizeof *q->row, &q->row);
}

/* The op with x0 as floats, as pixels, and without noise, and its oracle in double. */
static ddpm_status q_forward(golden *g, const ddpm_schedule *s, struct q_case *q)
{
    const int64_t count = q->n * q->size;
    struct q_sample_args a = {
        .x0 = &q->x0, .eps = &q->eps, .t = q->t, .coef = q->coef, .xt = &q->xt};
    TRY(g->ops->q_sample(g->be, &a));
    TRY(golden_compare(g, "out.q_sample", &q->xt));
    TRY(golden_floats(g, &q->xt, &q->xt_host));

    unsigned char *pixels;
    float *eps;
    TRY(golden_host(g, (size_t)count, &pixels));
    for (int64_t i = 0; i < count; i++)
        pixels[i] = (unsigned char)lrintf((q->x0_host[i] + 1) * 127.5f);
    ddpm_tensor u8 = q->x0, zero;
    u8.dtype = DDPM_U8;
    TRY(golden_upload(g, pixels, (size_t)count, &u8.data));
    a.x0 = &u8;
    TRY(g->ops->q_sample(g->be, &a));
    TRY(golden_compare(g, "out.q_sample", &q->xt));

    TRY(golden_like(g, &q->x0, &zero));
    a.x0 = &q->x0;
    a.eps = &zero;
    TRY(g->ops->q_sample(g->be, &a));
    TRY(golden_compare(g, "out.q_mean", &q->xt));

    double *x0, *z, *xt;
    TRY(golden_host(g, (size_t)count * sizeof *x0, &x0));
    TRY(golden_host(g, (size_t)count * sizeof *z, &z));
    TRY(golden_host(g, (size_t)count * sizeof *xt, &xt));
    TRY(golden_floats(g, &q->eps, &eps));
    for (int64_t i = 0; i < count; i++)
        x0[i] = q->x0_host[i], z[i] = eps[i];
    for (int64_t i = 0; i < q->n; i++)
        ddpm_q_sample_f64(s, (int)q->time[i], x0 + i * q->size, z + i * q->size, xt + i * q->size,
                          q->size);
    ddpm_tensor oracle = q->xt;
    for (int64_t i = 0; i < count; i++)
        q->row[i] = (float)xt[i];
    TRY(golden_upload(g, q->row, (size_t)count * sizeof(float), &oracle.data));
    return golden_compare(g, "out.q_sample", &oracle);
}

/* Per-image numbers a[t] x0 + b[t] x_t + c[t], as one tensor. */
static ddpm_status q_compare_rows(golden *g, struct q_case *q, const char *key, const double *a,
                                  const double *b, const double *c)
{
    ddpm_tensor result = q->xt;
    for (int64_t i = 0; i < q->n * q->size; i++) {
        const int64_t t = q->time[i / q->size];
        q->row[i] = (float)((a ? a[t] * q->x0_host[i] : 0) + (b ? b[t] * q->xt_host[i] : 0) +
                            (c ? c[t] : 0));
    }
    TRY(golden_upload(g, q->row, (size_t)(q->n * q->size) * sizeof(float), &result.data));
    return golden_compare(g, key, &result);
}

/* out.prior_bpd belongs to the likelihood, which this engine does not have yet. */
ddpm_status golden_q(golden *g)
{
    struct q_case q = {0};
    int64_t steps;
    ddpm_schedule *s = NULL;
    double *variance;
    TRY(golden_case_int(g, "T", &steps));
    TRY(golden_schedule(json_string_value(json_object_get(g->setting, "schedule")), steps, 1e-4,
                        0.02, &s));
    ddpm_status status = q_load(g, s, &q);
    if (!status) status = q_forward(g, s, &q);
    if (!status)
        status =
            q_compare_rows(g, &q, "out.posterior_mean", s->posterior_x0, s->posterior_xt, NULL);
    if (!status)
        status = q_compare_rows(g, &q, "out.posterior_variance", NULL, NULL, s->posterior_var);
    if (!status)
        status = q_compare_rows(g, &q, "out.posterior_log_variance_clipped", NULL, NULL,
                                s->posterior_logvar);
    if (!status) status = golden_host(g, (size_t)(s->T + 1) * sizeof *variance, &variance);
    for (int t = 1; !status && t <= s->T; t++)
        variance[t] = 1 - s->abar[t];
    if (!status) status = q_compare_rows(g, &q, "out.q_variance", NULL, NULL, variance);
    for (int t = 1; !status && t <= s->T; t++)
        variance[t] = log(1 - s->abar[t]);
    if (!status) status = q_compare_rows(g, &q, "out.q_log_variance", NULL, NULL, variance);
    ddpm_schedule_free(s);
    return status;
}

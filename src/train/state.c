/* state.c - the trainer's state to a checkpoint and back.
 *
 * All of it: weights, both moments, every EMA, and the counters; the order of data and all noise
 * are functions of these. The CPU's arrays are written from where they lie; those of another device
 * are copied first. Weights that are not finite are never written: the last good file would be
 * rotated away. */
#include "trainer.h"

#include "checkpoint.h"
#include "fail.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FAMILIES_MAX = 3 + OPS_EMA_MAX };

/* In the checkpoint's order; returns how many. */
static int families(const ddpm_trainer *t, const float **arrays)
{
    arrays[0] = t->p;
    arrays[1] = t->m;
    arrays[2] = t->v;
    for (int k = 0; k < t->n_ema; k++)
        arrays[3 + k] = t->ema[k];
    return 3 + t->n_ema;
}

static ddpm_status require_finite(ddpm_trainer *t)
{
    const ddpm_tensor p = ddpm_tensor_1d(t->p, t->count);
    double sum;
    TRY(t->ops->sum_squares(t->be, &(struct sum_squares_args){.x = &p, .sum = t->sum}));
    TRY(ddpm_backend_download(t->be, &sum, t->sum, sizeof sum));
    REQUIRE(isfinite(sum), NUMERIC,
            "step %" PRId64 ": weights are not finite and are not saved; lower train.lr", t->step);
    return DDPM_OK;
}

static checkpoint_counters counters_of(const ddpm_trainer *t, const struct step_counters *counts)
{
    checkpoint_counters c = {.step = counts->step,
                             .updates = counts->updates,
                             .skipped_in_row = counts->skipped_in_row,
                             .seed = (uint64_t)t->cfg.train.seed,
                             .n_ema = t->n_ema};
    snprintf(c.dataset, sizeof c.dataset, "%s", ddpm_dataset_describe(t->data)->source_hash);
    for (int k = 0; k < t->n_ema; k++)
        c.ema[k] = t->cfg.train.ema.v[k];
    return c;
}

ddpm_status ddpm_trainer_save(ddpm_trainer *t, const char *path)
{
    const float *arrays[FAMILIES_MAX];
    const int n = families(t, arrays);
    struct step_counters counts;
    TRY(require_finite(t));
    TRY(trainer_counters(t, &counts));
    const checkpoint_counters counters = counters_of(t, &counts);
    TRY(ddpm_backend_sync(t->be)); /* a fault that arrived late must not be saved */
    if (ddpm_backend_is_cpu(t->be))
        return checkpoint_write(path, &t->cfg, &counters, t->model, arrays);

    const size_t bytes = (size_t)t->count * sizeof(float);
    float *copy = calloc((size_t)n, bytes);
    REQUIRE(copy, NOMEM, "%s: %zu bytes to copy the state from the device", path,
            (size_t)n * bytes);
    ddpm_status s = DDPM_OK;
    for (int i = 0; i < n && !s; i++) {
        float *to = copy + (size_t)i * (size_t)t->count;
        s = ddpm_backend_download(t->be, to, arrays[i], bytes);
        arrays[i] = to;
    }
    if (!s) s = checkpoint_write(path, &t->cfg, &counters, t->model, arrays);
    free(copy);
    return s;
}

/* ---- back ---- */

static ddpm_status read_family(ddpm_trainer *t, st_file *f, const char *prefix, float *array)
{
    if (ddpm_backend_is_cpu(t->be)) return checkpoint_read(f, prefix, t->model, array);
    const size_t bytes = (size_t)t->count * sizeof(float);
    float *host = calloc(1, bytes);
    REQUIRE(host, NOMEM, "%s: %zu bytes for %s", st_path(f), bytes, prefix);
    ddpm_status s = checkpoint_read(f, prefix, t->model, host);
    if (!s) s = ddpm_backend_upload(t->be, array, host, bytes);
    free(host);
    return s;
}

/* An EMA that the file has under the same rate is read; a rate that is new starts from the weights.
 */
static ddpm_status read_ema(ddpm_trainer *t, st_file *f, const checkpoint_counters *c, int k)
{
    for (int j = 0; j < c->n_ema; j++) {
        if (c->ema[j] != t->cfg.train.ema.v[k]) continue;
        char prefix[16];
        snprintf(prefix, sizeof prefix, "ema.%d", j);
        return read_family(t, f, prefix, t->ema[k]);
    }
    return read_family(t, f, "weights", t->ema[k]);
}

/* The keys of one section that differ, as a failure on one line. */
static ddpm_status require_same(const char *path, const ddpm_config *then, const ddpm_config *now,
                                const char *section)
{
    char *diff;
    TRY(ddpm_config_diff(then, now, section, &diff));
    ddpm_status s = DDPM_OK;
    size_t n = strlen(diff);
    while (n && diff[n - 1] == '\n')
        diff[--n] = '\0';
    for (char *p = diff; (p = strchr(p, '\n')); p++)
        *p = ',';
    if (*diff)
        s = FAIL(CONFIG,
                 "%s is of another %s: %s; put these keys back, or train in a new run folder", path,
                 section, diff);
    free(diff);
    return s;
}

static ddpm_status require_same_run(ddpm_trainer *t, const char *path, const ddpm_config *then,
                                    const checkpoint_counters *c)
{
    TRY(require_same(path, then, &t->cfg, "model"));
    TRY(require_same(path, then, &t->cfg, "diffusion"));
    const char *hash = ddpm_dataset_describe(t->data)->source_hash;
    REQUIRE(strcmp(c->dataset, hash) == 0, CONFIG,
            "%s was trained on other images: pack %s there, %s in %s; put that pack back, or train "
            "in a new "
            "run folder",
            path, c->dataset, hash, t->cfg.data.pack);
    return DDPM_OK;
}

ddpm_status ddpm_trainer_load(ddpm_trainer *t, const char *path)
{
    ddpm_status s = DDPM_OK;
    st_file *f = NULL;
    ddpm_config then = {0};
    checkpoint_counters c;
    TRY(checkpoint_open(path, &f, &then, &c)); /* every hash is compared */

    TRY_GOTO(done, require_same_run(t, path, &then, &c));
    TRY_GOTO(done, read_family(t, f, "weights", t->p));
    TRY_GOTO(done, read_family(t, f, "adam_m", t->m));
    TRY_GOTO(done, read_family(t, f, "adam_v", t->v));
    for (int k = 0; k < t->n_ema; k++)
        TRY_GOTO(done, read_ema(t, f, &c, k));
    TRY_GOTO(done, ddpm_backend_zero(t->be, t->g, (size_t)t->count * sizeof(float)));
    TRY_GOTO(done, trainer_set_counters(t, &(struct step_counters){.step = c.step,
                                                                    .updates = c.updates,
                                                                    .skipped_in_row = c.skipped_in_row}));
    TRY_GOTO(done, trainer_bind(t, t->p, t->g));
    t->loaded = -1;
done:
    st_close(f);
    ddpm_config_free(&then);
    return s;
}

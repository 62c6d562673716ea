/* setup.c - a trainer from a configuration: data, network, memory; and its end.
 *
 * Three blocks: weights (parameters, gradients, moments, EMAs), the batch (pixels as bytes, one
 * micro-batch in float), and the model's step block, each one allocation; nothing is allocated once
 * training runs. Each layout is one function that runs twice, measuring and then handing out. What
 * is needed is compared with what there is before anything is taken: a refusal with numbers at the
 * start, not a kill at night. */
#include "trainer.h"

#include "checked.h"
#include "fail.h"
#include "memory.h"
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN_DEVICE = 64, ALIGN_HOST = 16, ROUND_FLOATS = 16 };

/* ---- the three layouts ---- */

static void weights_layout(ddpm_trainer *t, arena *a)
{
    float **arrays[] = {&t->p, &t->g, &t->m, &t->v};
    const size_t bytes = (size_t)t->count * sizeof(float);
    for (int i = 0; i < 4; i++)
        *arrays[i] = arena_take(a, bytes, ALIGN_DEVICE);
    for (int k = 0; k < t->n_ema; k++)
        t->ema[k] = arena_take(a, bytes, ALIGN_DEVICE);
    t->half = NULL;
    if (ddpm_model_activation(t->model) == DDPM_BF16)
        t->half = arena_take(a, (size_t)t->count * sizeof *t->half, ALIGN_DEVICE);
}

static void batch_layout(ddpm_trainer *t, arena *a, int64_t micro_batch)
{
    const size_t n = (size_t)t->batch, m = (size_t)micro_batch;
    const size_t image = (size_t)(t->h * t->w * t->c), rows = (size_t)(t->schedule->T + 1);
    t->images = arena_take(a, n * image, ALIGN_DEVICE);
    t->flip = arena_take(a, n, ALIGN_DEVICE);
    t->label = NULL;
    if (t->cfg.model.num_classes) t->label = arena_take(a, n * sizeof *t->label, ALIGN_DEVICE);
    t->t = arena_take(a, n * sizeof *t->t, ALIGN_DEVICE);
    t->time = arena_take(a, n * sizeof *t->time, ALIGN_DEVICE);
    t->index = arena_take(a, n * sizeof *t->index, ALIGN_DEVICE);
    t->loss = arena_take(a, n * sizeof *t->loss, ALIGN_DEVICE);
    t->valid_index = arena_take(a, m * sizeof *t->valid_index, ALIGN_DEVICE);
    t->q_rows = arena_take(a, 2 * rows * sizeof(float), ALIGN_DEVICE);
    t->model_time = arena_take(a, rows * sizeof(float), ALIGN_DEVICE);
    t->target_rows = arena_take(a, 2 * rows * sizeof(float), ALIGN_DEVICE);
    t->sum = arena_take(a, sizeof *t->sum, ALIGN_DEVICE);
    t->counters = arena_take(a, sizeof *t->counters, ALIGN_DEVICE);
    t->ring = arena_take(a, DDPM_STEPS_PENDING * sizeof *t->ring, ALIGN_DEVICE);
    t->state = arena_take(a, sizeof *t->state, ALIGN_DEVICE);
    t->valid_state = arena_take(a, sizeof *t->valid_state, ALIGN_DEVICE);
    const size_t unit = ddpm_dtype_size(ddpm_model_activation(t->model));
    t->xt = arena_take(a, m * image * unit, ALIGN_DEVICE);
    t->out = arena_take(a, m * image * unit, ALIGN_DEVICE);
}

static void host_layout(ddpm_trainer *t, arena *a)
{
    const size_t n = (size_t)t->batch, m = (size_t)t->micro_batch;
    t->host_label = arena_take(a, n * sizeof *t->host_label, ALIGN_HOST);
    t->host_t = arena_take(a, n * sizeof *t->host_t, ALIGN_HOST);
    t->host_number = arena_take(a, n * sizeof *t->host_number, ALIGN_HOST);
    t->host_time = arena_take(a, n * sizeof *t->host_time, ALIGN_HOST);
    t->host_loss = arena_take(a, n * sizeof *t->host_loss, ALIGN_HOST);
    t->host_index = arena_take(a, n * sizeof *t->host_index, ALIGN_HOST);
    t->host_ring = arena_take(a, DDPM_STEPS_PENDING * sizeof *t->host_ring, ALIGN_HOST);
    t->results = arena_take(a, DDPM_STEPS_PENDING * sizeof *t->results, ALIGN_HOST);
    t->valid_images = NULL;
    t->valid_labels = NULL;
    if (!t->data || ddpm_dataset_describe(t->data)->n_validation == 0) return;
    t->valid_images = arena_take(a, m * (size_t)(t->h * t->w * t->c), ALIGN_HOST);
    t->valid_labels = arena_take(a, m * sizeof *t->valid_labels, ALIGN_HOST);
}

static size_t weights_bytes(const ddpm_trainer *t)
{
    ddpm_trainer copy = *t;
    arena a = {0};
    weights_layout(&copy, &a);
    return a.peak;
}

static size_t batch_bytes(const ddpm_trainer *t, int64_t micro_batch)
{
    ddpm_trainer copy = *t;
    arena a = {0};
    batch_layout(&copy, &a, micro_batch);
    return a.peak;
}

static ddpm_status host_create(ddpm_trainer *t)
{
    arena a = {0};
    host_layout(t, &a);
    t->host_block = calloc(1, a.peak);
    REQUIRE(t->host_block, NOMEM, "trainer: %zu bytes to stage a batch of %" PRId64, a.peak,
            t->batch);
    a = (arena){.base = t->host_block, .size = a.peak};
    host_layout(t, &a);
    return DDPM_OK;
}

/* What a step takes from the host where the pack is not on the device. */
static size_t upload_bytes(const ddpm_trainer *t)
{
    enum { UNIT = 256 }; /* of ddpm_backend_reserve_uploads */
    const size_t n = (size_t)t->batch, label = t->cfg.model.num_classes ? n * sizeof *t->label : 0;
    const size_t sizes[] = {n * (size_t)(t->h * t->w * t->c), n * sizeof *t->flip, label};
    size_t sum = 0;
    for (int i = 0; i < 3; i++)
        sum += (sizes[i] + UNIT - 1) / UNIT * UNIT;
    return sum;
}

/* ---- does it fit? ---- */

static ddpm_status needed_bytes(ddpm_trainer *t, int64_t micro_batch, uint64_t *out)
{
    ddpm_model_memory m;
    TRY(ddpm_model_measure(t->model, (int)micro_batch, true, &m));
    size_t n = weights_bytes(t);
    const size_t twice = ddpm_backend_is_cpu(t->be) ? 0 : 2 * upload_bytes(t);
    if (!checked_add(n, batch_bytes(t, micro_batch), &n) || !checked_add(n, twice, &n) ||
        !checked_add(n, m.activation_bytes, &n) || !checked_add(n, m.scratch_bytes, &n))
        n = SIZE_MAX;
    *out = n;
    return DDPM_OK;
}

/* 0 where not even one image at a time fits. What it costs grows with the micro-batch. */
static ddpm_status largest_micro_batch(ddpm_trainer *t, uint64_t available, int64_t *out)
{
    int64_t fits = 0, too_many = t->micro_batch;
    while (too_many - fits > 1) {
        const int64_t middle = fits + (too_many - fits) / 2;
        uint64_t needed;
        TRY(needed_bytes(t, middle, &needed));
        if (needed <= available)
            fits = middle;
        else
            too_many = middle;
    }
    while (fits > 0 && t->batch % fits != 0)
        fits--; /* as ddpm_config_check asks for */
    *out = fits;
    return DDPM_OK;
}

static ddpm_status memory_check(ddpm_trainer *t)
{
    const char *limit = ddpm_backend_name(t->be);
    size_t on_device;
    TRY(ddpm_backend_memory_available(t->be, &on_device));
    const uint64_t available = ddpm_backend_is_cpu(t->be) ? memory_available(&limit) : on_device;
    uint64_t needed;
    TRY(needed_bytes(t, t->micro_batch, &needed));
    if (needed <= available) return DDPM_OK;

    int64_t fits;
    TRY(largest_micro_batch(t, available, &fits));
    char need[32], have[32], advice[96];
    format_bytes(needed, need, sizeof need);
    format_bytes(available, have, sizeof have);
    if (fits)
        snprintf(advice, sizeof advice,
                 "train.micro_batch=%" PRId64 " fits and gives the same result", fits);
    else
        snprintf(advice, sizeof advice,
                 "not even one image at a time fits: choose a smaller model");
    return FAIL(NOMEM, "training %" PRId64 " images at a time needs %s, available are %s (%s); %s",
                t->micro_batch, need, have, limit, advice);
}

/* ---- create ---- */

static ddpm_status open_data(ddpm_trainer *t)
{
    const ddpm_config *c = &t->cfg;
    REQUIRE(c->data.pack && *c->data.pack, CONFIG,
            "data.pack is empty: name a pack made by `ddpm pack`");
    const ddpm_dataset_options options = {
        .validation = c->data.validation,
        .memory_bytes = c->data.memory_mib ? c->data.memory_mib << 20 : -1,
        .threads = (int)c->data.threads,
        .batch = t->batch,
        .seed = (uint64_t)c->train.seed,
        .flip = c->data.flip,
    };
    return ddpm_dataset_open(c->data.pack, &options, &t->data);
}

/* The network must be made for the pack's images. */
static ddpm_status match_data(const ddpm_trainer *t)
{
    const ddpm_dataset_info *d = ddpm_dataset_describe(t->data);
    const ddpm_model_config *m = &t->cfg.model;
    REQUIRE(d->height == t->h && d->width == t->w && d->channels == t->c, CONFIG,
            "the model is for images of %" PRId64 "x%" PRId64 "x%" PRId64 ", %s has %" PRId64
            "x%" PRId64 "x%" PRId64
            " (height, width, channels); set model.image_height, image_width and image_channels",
            t->h, t->w, t->c, t->cfg.data.pack, d->height, d->width, d->channels);
    REQUIRE(m->num_classes == 0 || m->num_classes == d->n_classes, CONFIG,
            "model.num_classes is %" PRId64 ", %s has %d classes; set it to %d, or to 0 for an "
            "unconditional model",
            m->num_classes, t->cfg.data.pack, d->n_classes, d->n_classes);
    return DDPM_OK;
}

static ddpm_status read_config(ddpm_trainer *t, const ddpm_config *cfg)
{
    TRY(ddpm_config_check(cfg));
    TRY(ddpm_config_copy(cfg, &t->cfg));
    const ddpm_train_config *c = &t->cfg.train;
    REQUIRE(c->ema.n <= OPS_EMA_MAX, CONFIG, "train.ema: %d rates, there can be %d", c->ema.n,
            OPS_EMA_MAX);
    t->n_ema = c->ema.n;
    t->batch = c->batch;
    t->micro_batch = c->micro_batch > 0 && c->micro_batch < c->batch ? c->micro_batch : c->batch;
    t->h = t->cfg.model.image_height;
    t->w = t->cfg.model.image_width;
    t->c = t->cfg.model.image_channels;
    return DDPM_OK;
}

static ddpm_status take_blocks(ddpm_trainer *t)
{
    arena a = {.size = weights_bytes(t)};
    void *base;
    TRY(ddpm_backend_alloc(t->be, a.size, &base));
    t->weights_block = a.base = base;
    weights_layout(t, &a);

    a = (arena){.size = batch_bytes(t, t->micro_batch)};
    TRY(ddpm_backend_alloc(t->be, a.size, &base));
    t->batch_block = a.base = base;
    batch_layout(t, &a, t->micro_batch);
    TRY(host_create(t));
    TRY(ddpm_model_reserve(t->model, (int)t->micro_batch, true));
    TRY(trainer_bind(t, t->p, t->g));
    if (t->data) TRY(trainer_place_pack(t));
    if (!t->pack) TRY(ddpm_backend_reserve_uploads(t->be, upload_bytes(t)));
    return ddpm_recording_create(t->be, trainer_step_calls, t, &t->recording);
}

/* What stays as it is for the whole run. */
static ddpm_status upload_constants(ddpm_trainer *t)
{
    const size_t n = 2 * ((size_t)t->schedule->T + 1), bytes = n * sizeof(float);
    float *rows = malloc(bytes);
    REQUIRE(rows, NOMEM, "trainer: %zu bytes for the rows of the schedule", bytes);
    ddpm_schedule_q_rows(t->schedule, rows);
    ddpm_status s = ddpm_backend_upload(t->be, t->q_rows, rows, bytes);
    ddpm_schedule_target_rows(t->schedule, t->cfg.diffusion.objective, rows);
    if (!s) s = ddpm_backend_upload(t->be, t->target_rows, rows, bytes);
    for (size_t i = 0; i < n / 2; i++)
        rows[i] = (float)t->schedule->model_time[i];
    if (!s) s = ddpm_backend_upload(t->be, t->model_time, rows, bytes / 2);
    free(rows);
    TRY(s);

    for (int64_t i = 0; i < t->batch; i++)
        t->host_index[i] = (uint64_t)i;
    TRY(ddpm_backend_upload(t->be, t->index, t->host_index, (size_t)t->batch * sizeof *t->index));
    const struct step_state zero = {0};
    return ddpm_backend_upload(t->be, t->valid_state, &zero, sizeof zero);
}

/* Without data the trainer's device calls can be made, which is enough to plan them. */
static ddpm_status build(ddpm_backend *be, const ddpm_config *cfg, bool has_data, ddpm_trainer **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    ddpm_trainer *t = calloc(1, sizeof *t);
    REQUIRE(t, NOMEM, "trainer: %zu bytes", sizeof *t);
    t->be = be;
    t->ops = backend_ops(be);
    t->loaded = -1;

    TRY_GOTO(fail, read_config(t, cfg));
    TRY_GOTO(fail, ddpm_schedule_create(&t->cfg.diffusion, &t->schedule));
    TRY_GOTO(fail, ddpm_model_create(be, &t->cfg.model, &t->model));
    TRY_GOTO(fail, ddpm_model_set_precision(t->model, t->cfg.train.precision, "train.precision"));
    ddpm_backend_options options = ddpm_backend_configuration(be);
    options.uses_tf32 = t->cfg.train.precision == DDPM_PRECISION_TF32;
    ddpm_backend_configure(be, &options);
    t->count = (ddpm_model_arena_count(t->model) + ROUND_FLOATS - 1) / ROUND_FLOATS * ROUND_FLOATS;
    if (has_data) {
        TRY_GOTO(fail, open_data(t));
        TRY_GOTO(fail, match_data(t));
    }
    TRY_GOTO(fail, memory_check(t));
    TRY_GOTO(fail, take_blocks(t));
    TRY_GOTO(fail, upload_constants(t));
    *out = t;
    return DDPM_OK;
fail:
    ddpm_trainer_free(t);
    return s;
}

ddpm_status trainer_build(ddpm_backend *be, const ddpm_config *cfg, ddpm_trainer **out)
{
    return build(be, cfg, true, out);
}

ddpm_status ddpm_trainer_plan(ddpm_backend *be, const ddpm_config *cfg)
{
    ddpm_trainer *t;
    TRY(build(be, cfg, false, &t));
    t->is_overfit = true; /* on batch 0, */
    t->loaded = 0;        /* as if it were there */
    const ddpm_status s = ddpm_trainer_queue(t);
    ddpm_trainer_free(t);
    return s;
}

/* The CPU's arrays are filled in place; for another device by way of the host. */
ddpm_status trainer_init_weights(ddpm_trainer *t)
{
    const size_t bytes = (size_t)t->count * sizeof(float);
    float *host = t->p;
    if (!ddpm_backend_is_cpu(t->be)) {
        host = calloc(1, bytes);
        REQUIRE(host, NOMEM, "trainer: %zu bytes for the initial weights", bytes);
    }
    ddpm_status s = DDPM_OK;
    ddpm_model_init(t->model, (uint64_t)t->cfg.train.seed, host);
    if (host != t->p) s = ddpm_backend_upload(t->be, t->p, host, bytes);
    for (int k = 0; k < t->n_ema && !s; k++)
        s = ddpm_backend_upload(t->be, t->ema[k], host, bytes);
    if (host != t->p) free(host);
    return s ? s : trainer_bind(t, t->p, t->g);
}

ddpm_status ddpm_trainer_create(ddpm_backend *be, const ddpm_config *cfg, ddpm_trainer **out)
{
    *out = NULL;
    ddpm_trainer *t;
    TRY(trainer_build(be, cfg, &t));
    const ddpm_status s = trainer_init_weights(t);
    if (s) {
        ddpm_trainer_free(t);
        return s;
    }
    *out = t;
    return DDPM_OK;
}

void ddpm_trainer_free(ddpm_trainer *t)
{
    if (!t) return;
    ddpm_dataset_close(t->data);
    ddpm_recording_free(t->recording);
    ddpm_model_free(t->model);
    ddpm_schedule_free(t->schedule);
    if (t->pack_block) ddpm_backend_release(t->be, t->pack_block);
    if (t->batch_block) ddpm_backend_release(t->be, t->batch_block);
    if (t->weights_block) ddpm_backend_release(t->be, t->weights_block);
    free(t->host_block);
    ddpm_config_free(&t->cfg);
    free(t);
}

void ddpm_trainer_overfit(ddpm_trainer *t, bool on)
{
    if (t->is_overfit != on) ddpm_recording_reset(t->recording); /* it holds the rates */
    t->is_overfit = on;
    t->loaded = -1;
}

int64_t ddpm_trainer_step_number(const ddpm_trainer *t)
{
    return t->step;
}

ddpm_model *ddpm_trainer_model(ddpm_trainer *t)
{
    return t->model;
}

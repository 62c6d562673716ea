/* job.c - `ddpm sample`: from a checkpoint to a folder of shards, and what a person looks at.
 *
 * Job      resolve and prove the checkpoint, build the network on the chosen weights, then shard after shard; the pictures come
 *          right after the first. Everything that can be refused is refused before the folder is touched.
 * Method   sample i is a function of (checkpoint, seed, i), so shards need not know of each other, and a run that was cut off
 *          goes on by looking which shards are there. Where the caller names no shard, this process makes all of them, one
 *          for each SHARD_IMAGES images, so that a signal costs at most as many, and then merges them.
 * Memory   a batch of images, the network's step block, one copy of the weights; nothing grows with the number of samples. */
#include "job.h"

#include "checkpoint.h"
#include "fail.h"
#include "notices.h"
#include "ops.h"
#include "philox.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SHARD_IMAGES = 256, GRID_IMAGES = 64, SETS_MAX = 256 };

/* ---- the checkpoint and the settings ---- */

/* A file as it is; of a run folder the newest checkpoint that verifies. malloc'd. */
static ddpm_status find_checkpoint(const ddpm_sample_job *job, char **path)
{
    struct stat st;
    if (stat(job->checkpoint, &st) != 0) return FAIL_ERRNO("%s: %s", job->checkpoint, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        *path = strdup(job->checkpoint);
        REQUIRE(*path, NOMEM, "%s: no memory for the path", job->checkpoint);
        return DDPM_OK;
    }
    TRY(checkpoint_newest(job->checkpoint, job->sink, path));
    REQUIRE(*path, NOINPUT, "%s: no checkpoint in it (%s/checkpoints/step-NNNNNNNN.safetensors)", job->checkpoint,
            job->checkpoint);
    return DDPM_OK;
}

/* The checkpoint's own settings, the job's overrides of sample.* on top. */
static ddpm_status resolve_config(sample_run *r, const ddpm_config *stored)
{
    const ddpm_sample_job *job = r->args;
    const char *set[SETS_MAX];
    char spacing[64], *yaml;
    int n = 0;
    REQUIRE(job->n_set >= 0 && job->n_set < SETS_MAX, ARG, "%d overrides, at most %d", job->n_set, SETS_MAX - 1);
    for (int i = 0; i < job->n_set; i++) {
        REQUIRE(strncmp(job->set[i], "sample.", 7) == 0, ARG,
                "--set %.80s: only keys of `sample` can be changed here; the others are the checkpoint's", job->set[i]);
        set[n++] = job->set[i];
    }
    if (job->steps > 0) { /* evenly, step T included, which the rule of "1" would leave out */
        snprintf(spacing, sizeof spacing, job->steps == 1 ? "sample.spacing=trailing:1" : "sample.spacing=%d", job->steps);
        set[n++] = spacing;
    }
    TRY(ddpm_config_print(stored, &yaml));
    const ddpm_status s = ddpm_config_parse(yaml, strlen(yaml), "the checkpoint's configuration", set, n, &r->cfg);
    free(yaml);
    return s;
}

static ddpm_status check_weights(const sample_run *r, const checkpoint_counters *counters)
{
    const int ema = r->args->ema;
    REQUIRE(ema >= -1, ARG, "averaged weights number %d; -1 means the raw ones", ema);
    REQUIRE(ema < counters->n_ema, ARG, "%s: has %d sets of averaged weights; there is no number %d (--ema raw: the weights "
            "themselves)", r->args->checkpoint, counters->n_ema, ema);
    return DDPM_OK;
}

/* ---- the network ---- */

static ddpm_status round_weights(sample_run *r, int64_t count)
{
    TRY(ddpm_backend_alloc(r->be, (size_t)count * sizeof(uint16_t), &r->half));
    const ddpm_tensor from = ddpm_tensor_1d(r->weights, count);
    ddpm_tensor to = ddpm_tensor_1d(r->half, count);
    to.dtype = DDPM_BF16;
    ddpm_model_bind_half(r->model, r->half);
    return backend_ops(r->be)->cast(r->be, &(struct cast_args){.x = &from, .y = &to});
}

static ddpm_status load_weights(sample_run *r, st_file *file)
{
    const size_t count = (size_t)ddpm_model_arena_count(r->model);
    char prefix[16] = "weights";
    if (r->args->ema >= 0) snprintf(prefix, sizeof prefix, "ema.%d", r->args->ema);
    float *arena = calloc(count, sizeof *arena);
    REQUIRE(arena, NOMEM, "weights: %zu bytes on the host", count * sizeof *arena);
    ddpm_status s = checkpoint_read(file, prefix, r->model, arena);
    if (!s) s = ddpm_backend_alloc(r->be, count * sizeof *arena, (void **)&r->weights);
    if (!s) s = ddpm_backend_upload(r->be, r->weights, arena, count * sizeof *arena);
    free(arena);
    if (s) return s;
    ddpm_model_bind(r->model, r->weights, NULL);
    return ddpm_model_activation(r->model) == DDPM_BF16 ? round_weights(r, (int64_t)count) : DDPM_OK;
}

static ddpm_status make_staging(sample_run *r)
{
    const size_t n = (size_t)r->batch;
    r->images = malloc(n * (size_t)(r->shape.h * r->shape.w * r->shape.c));
    r->index = calloc(n, sizeof *r->index);
    r->label = calloc(n, sizeof *r->label);
    r->wide = calloc(2 * n, sizeof *r->wide);
    REQUIRE(r->images && r->index && r->label && r->wide, NOMEM, "staging of %d images; use a smaller sample.batch",
            r->batch);
    return DDPM_OK;
}

static ddpm_status make_network(sample_run *r, st_file *file)
{
    const int64_t largest = (r->args->n - 1) / r->shards + 1;
    const int64_t classes = r->cfg.model.num_classes;
    r->batch = (int)(r->cfg.sample.batch < largest ? r->cfg.sample.batch : largest);
    r->shape = (shard_shape){.h = r->cfg.model.image_height,
                             .w = r->cfg.model.image_width,
                             .c = r->cfg.model.image_channels,
                             .has_labels = classes > 0};
    REQUIRE(r->args->label >= -1 && (r->args->label < classes || r->args->label == -1), ARG,
            "label %" PRId64 "; the model has %" PRId64 " classes", r->args->label, classes);
    TRY(ddpm_model_create(r->be, &r->cfg.model, &r->model));
    TRY(ddpm_model_set_precision(r->model, r->cfg.sample.precision, "sample.precision"));
    ddpm_backend_options options = ddpm_backend_configuration(r->be);
    options.uses_tf32 = r->cfg.sample.precision == DDPM_PRECISION_TF32;
    ddpm_backend_configure(r->be, &options);
    TRY(load_weights(r, file));
    TRY(ddpm_sampler_create(r->be, r->model, &r->cfg.diffusion, &r->cfg.sample, r->batch, &r->sampler));
    return make_staging(r);
}

static ddpm_status prepare_from(sample_run *r, const char *path)
{
    st_file *file = NULL;
    ddpm_config stored = {0};
    checkpoint_counters counters;
    TRY(checkpoint_open(path, &file, &stored, &counters));
    snprintf(r->checkpoint_hash, sizeof r->checkpoint_hash, "%s", st_metadata(file, "ddpm.header"));
    r->checkpoint_step = counters.step;
    ddpm_status s = check_weights(r, &counters);
    if (!s) s = resolve_config(r, &stored);
    if (!s && r->is_alone && r->args->shards == 0) {
        const int64_t each = r->cfg.sample.batch > SHARD_IMAGES ? r->cfg.sample.batch : SHARD_IMAGES;
        const int64_t wanted = (r->args->n - 1) / each + 1;
        r->shards = wanted < SHARDS_MAX ? (int)wanted : SHARDS_MAX;
    }
    if (!s) s = make_network(r, file);
    st_close(file);
    ddpm_config_free(&stored);
    return s;
}

static ddpm_status prepare(sample_run *r)
{
    const ddpm_sample_job *job = r->args;
    REQUIRE(job->checkpoint && job->output, ARG, "a checkpoint and an output folder are needed");
    REQUIRE(job->n >= 1 && job->n <= SHARD_SAMPLES_MAX, ARG, "%" PRId64 " samples; 1 to %" PRId64 " are possible", job->n,
            SHARD_SAMPLES_MAX);
    REQUIRE(job->shards >= 0 && job->shards <= SHARDS_MAX && job->shard >= 0 &&
                (job->shard < job->shards || (job->shard == 0 && job->shards == 0)),
            ARG, "shard %d of %d; shards count from 0 and there are at most %d", job->shard, job->shards, SHARDS_MAX);
    r->shards = job->shards > 1 ? job->shards : 1;
    r->is_alone = job->shards <= 1;

    char *path = NULL;
    TRY(find_checkpoint(job, &path));
    const ddpm_status s = prepare_from(r, path);
    free(path);
    if (s) return s;

    const int64_t in_first = shard_first(job->n, 1, r->shards), wanted = job->grid < 0 ? GRID_IMAGES : job->grid;
    const bool has_pictures = r->shape.c == 1 || r->shape.c == 3;
    if (!has_pictures && wanted > 0)
        log_line(job->sink, "no grid.png: images of %" PRId64 " channels", r->shape.c);
    r->grid = !has_pictures ? 0 : (int)(wanted < in_first ? wanted : in_first);
    return DDPM_OK;
}

/* ---- drawing ---- */

int32_t job_label(const sample_run *r, uint64_t index)
{
    if (!r->shape.has_labels) return 0;
    if (r->args->label >= 0) return (int32_t)r->args->label;
    const philox4 word = philox_draw(r->args->seed, PHILOX_LABEL, 0, index, 0);
    return (int32_t)philox_below(word.v[0], (uint32_t)r->cfg.model.num_classes);
}

/* ddpm_frame_sink: shows the step on the way, and keeps what the animation wants. */
static void on_frame(void *user, int step, const uint8_t *x0_hat)
{
    sample_run *r = user;
    const frame_store *f = &r->frames;
    char note[48];
    snprintf(note, sizeof note, "step %d/%d", ddpm_sampler_steps(r->sampler) - step + 1, ddpm_sampler_steps(r->sampler));
    progress_update(&r->shown, r->done, note);

    const size_t image = (size_t)(r->shape.h * r->shape.w * r->shape.c);
    const int64_t room = f->n_images - r->first, n = room < r->batch ? room : r->batch;
    if (n <= 0 || !x0_hat) return;
    for (int i = 0; i < f->n_frames; i++)
        if (f->step[i] == step)
            memcpy(f->images + ((size_t)i * (size_t)f->n_images + (size_t)r->first) * image, x0_hat, (size_t)n * image);
}

ddpm_status job_draw(sample_run *r, int64_t first, int n)
{
    for (int i = 0; i < n; i++) {
        r->index[i] = (uint64_t)(first + i);
        r->label[i] = job_label(r, r->index[i]);
    }
    r->first = first;
    const bool is_kept = first < r->frames.n_images, is_seen = r->args->sink || is_kept;
    ddpm_sampler_frames(r->sampler, r->frames.step, is_kept ? r->frames.n_frames : 0);
    return ddpm_sampler_run(r->sampler, r->args->seed, n, r->index, r->shape.has_labels ? r->label : NULL, r->images,
                            is_seen ? on_frame : NULL, r, r->args->stop);
}

/* One npz of all, by the same code as `ddpm merge`. */
static ddpm_status merge_own(sample_run *r, bool was_drawn)
{
    char name[SHARD_NAME_BYTES];
    struct stat st;
    shard_merged_name(r->args->n, &r->shape, name);
    TRY(job_path(r, name, &r->report.npz));
    if (!was_drawn && stat(r->report.npz, &st) == 0) return DDPM_OK;
    return ddpm_merge(r->args->output, r->report.npz, r->args->sink);
}

static ddpm_status draw_shards(sample_run *r)
{
    const int first = r->is_alone ? 0 : r->args->shard, last = r->is_alone ? r->shards - 1 : r->args->shard;
    bool any_drawn = false;
    for (int k = first; k <= last; k++) {
        bool was_drawn;
        if (k == 0) TRY(job_frames_begin(r));
        TRY(job_shard(r, k, &was_drawn));
        if (k == 0) TRY(job_pictures(r, was_drawn));
        job_frames_release(r);
        any_drawn = any_drawn || was_drawn;
    }
    if (r->is_alone) return merge_own(r, any_drawn);
    char name[SHARD_NAME_BYTES];
    shard_name(first, r->shards, name);
    return job_path(r, name, &r->report.npz);
}

static ddpm_status run_job(sample_run *r)
{
    TRY(prepare(r));
    TRY(job_claim_folder(r));
    const int64_t total = r->is_alone ? r->args->n
                                      : shard_first(r->args->n, r->args->shard + 1, r->shards) -
                                            shard_first(r->args->n, r->args->shard, r->shards);
    progress_begin(&r->shown, r->args->sink, "sample", "img", total, 0);
    const ddpm_status s = draw_shards(r);
    r->report.steps = ddpm_sampler_steps(r->sampler);
    notices_show(r->be, r->args->sink, &(int){0});
    if (s) return s;
    progress_end(&r->shown, NULL);
    return DDPM_OK;
}

static void release(sample_run *r)
{
    job_frames_release(r);
    ddpm_sampler_free(r->sampler);
    ddpm_model_free(r->model);
    ddpm_backend_release(r->be, r->weights);
    ddpm_backend_release(r->be, r->half);
    ddpm_config_free(&r->cfg);
    free(r->images);
    free(r->index);
    free(r->label);
    free(r->wide);
}

ddpm_status ddpm_sample_run(ddpm_backend *be, const ddpm_sample_job *job, ddpm_sample_report *report)
{
    const double start = monotonic_seconds();
    sample_run r = {.args = job, .be = be};
    const ddpm_status s = run_job(&r);
    release(&r);
    if (s) {
        ddpm_sample_report_free(&r.report);
        return s;
    }
    r.report.seconds = monotonic_seconds() - start;
    *report = r.report;
    return DDPM_OK;
}

void ddpm_sample_report_free(ddpm_sample_report *r)
{
    if (!r) return;
    free(r->npz);
    free(r->grid);
    free(r->animation);
    *r = (ddpm_sample_report){0};
}

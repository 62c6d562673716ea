/* sampler_run.c - the reverse process of one batch: noise in, images out.
 *
 *     x ~ N(0, I) keyed by (seed, sample);  for step = S .. 1:  out = net(x, t);  x = reverse_step(x, out, rows[step])
 *
 * Method   all coefficients of all steps are computed at create, in double, one row a step, and lie on the device, as does the
 *          step's number: a step is three calls that take nothing from the host, and one recording. Noise is keyed by seed,
 *          sample and step, so image i depends neither on its batch nor on its neighbours.
 * Memory   one device block and one host block, both of create; the loop allocates nothing. Weights are frozen while it runs,
 *          so the backend may keep packed copies; these are built in the first step.
 * Checked  that the network's answer is finite, every step, by the op that reads it; the host looks at the marks at the end and
 *          now and then. Looking at the images would not do, for clipping turns an infinite answer into a white pixel. */
#include "ddpm/sample.h"

#include "arena.h"
#include "fail.h"
#include "ops.h"
#include "philox.h"
#include "sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct ddpm_sampler {
    ddpm_backend *be;      /* borrowed */
    const struct ops *ops; /* of be */
    ddpm_model *model;     /* borrowed */
    int batch, steps;
    int64_t h, w, c, size; /* size: elements of an image */
    bool is_conditional;
    reverse_row *rows; /* [steps+1] of step 1 .. S; [0] unused */
    float *time;       /* [steps+1] what the network is told */
    const int *wanted; /* borrowed: steps whose x0_hat the frame sink gets */
    int n_wanted;      /* -1: all */

    /* One step of `n` images with these weights, as calls; it is made anew where one of these changes. */
    ddpm_recording *recording;
    int n;
    bool gives_x0_hat;
    const void *weights;

    void *device; /* one block, owned; the rest are places in it */
    struct step_state *state;
    uint64_t *index;      /* [batch] */
    int32_t *label;       /* [batch] */
    float *t;             /* [batch] */
    float *step_rows;     /* [batch,8] */
    float *table, *times; /* [steps+1,8], [steps+1] rows and time */
    int32_t *bad;         /* [batch] the first step at which the answer was not finite, or 0 */
    float *x, *x0_hat;    /* [batch,h,w,c] */
    void *out;            /* likewise, of the network's type */
    uint8_t *bytes;       /* [batch,h,w,c] */

    void *host; /* one block, owned */
    int32_t *host_bad;   /* [batch] */
    uint8_t *host_bytes; /* [batch,h,w,c] */
};

static void *take(arena *a, size_t count, size_t unit)
{
    return arena_take(a, count * unit, 64);
}

/* Runs twice: measuring, then on the block. */
static void place_device(ddpm_sampler *s, arena *a)
{
    const size_t n = (size_t)s->batch, all = n * (size_t)s->size;
    s->state = take(a, 1, sizeof *s->state);
    s->index = take(a, n, sizeof *s->index);
    s->label = take(a, n, sizeof *s->label);
    s->t = take(a, n, sizeof *s->t);
    s->step_rows = take(a, n, sizeof(reverse_row));
    s->table = take(a, (size_t)s->steps + 1, sizeof(reverse_row));
    s->times = take(a, (size_t)s->steps + 1, sizeof *s->times);
    s->bad = take(a, n, sizeof *s->bad);
    s->x = take(a, all, sizeof *s->x);
    s->out = take(a, all, ddpm_dtype_size(ddpm_model_activation(s->model)));
    s->x0_hat = take(a, all, sizeof *s->x0_hat);
    s->bytes = take(a, all, sizeof *s->bytes);
}

static void place_host(ddpm_sampler *s, arena *a)
{
    const size_t n = (size_t)s->batch, all = n * (size_t)s->size;
    s->host_bad = take(a, n, sizeof *s->host_bad);
    s->host_bytes = take(a, all, sizeof *s->host_bytes);
    s->rows = take(a, (size_t)s->steps + 1, sizeof *s->rows);
    s->time = take(a, (size_t)s->steps + 1, sizeof *s->time);
}

static ddpm_status allocate(ddpm_sampler *s)
{
    arena a = {0};
    place_device(s, &a);
    TRY(ddpm_backend_alloc(s->be, a.peak, &s->device));
    a = (arena){.base = s->device, .size = a.peak};
    place_device(s, &a);

    arena b = {0};
    place_host(s, &b);
    /* the blocks are touched at 64-byte places */
    s->host = aligned_alloc(64, (b.peak + 63) / 64 * 64);
    REQUIRE(s->host, NOMEM, "sampler: %zu bytes on the host for a batch of %d; use a smaller sample.batch", b.peak, s->batch);
    memset(s->host, 0, b.peak);
    b = (arena){.base = s->host, .size = b.peak};
    place_host(s, &b);
    return DDPM_OK;
}

/* The schedule of the steps kept. */
static ddpm_status make_schedule(const ddpm_diffusion_config *diffusion, const char *spacing, ddpm_schedule **out)
{
    ddpm_schedule *full = NULL;
    int *kept = NULL, n = 0;
    ddpm_status s;
    TRY_GOTO(fail, ddpm_schedule_create(diffusion, &full));
    TRY_GOTO(fail, ddpm_spacing_parse(spacing, full->T, &kept, &n));
    TRY_GOTO(fail, ddpm_schedule_respace(full, kept, n, out));
fail:
    free(kept);
    ddpm_schedule_free(full);
    return s;
}

static ddpm_status fill_tables(ddpm_sampler *s, const ddpm_schedule *schedule, int objective, const ddpm_sample_config *cfg)
{
    const sampler_options options = {.kind = cfg->sampler,
                                     .objective = objective,
                                     .variance = cfg->variance,
                                     .eta = cfg->eta,
                                     .clip = cfg->clip};
    for (int t = 1; t <= schedule->T; t++) {
        sampler_row(schedule, &options, t, &s->rows[t]);
        s->time[t] = (float)schedule->model_time[t];
    }
    TRY(ddpm_backend_upload(s->be, s->table, s->rows, (size_t)(s->steps + 1) * sizeof *s->rows));
    return ddpm_backend_upload(s->be, s->times, s->time, (size_t)(s->steps + 1) * sizeof *s->time);
}

static ddpm_tensor images(const ddpm_sampler *s, void *data, int n)
{
    return ddpm_tensor_4d(data, n, s->h, s->w, s->c);
}

/* One step of s->n images, which takes all that changes from device memory. */
static ddpm_status step_calls(void *user)
{
    ddpm_sampler *s = user;
    ddpm_tensor x = images(s, s->x, s->n), out = images(s, s->out, s->n), x0_hat = images(s, s->x0_hat, s->n);
    ddpm_tensor t = ddpm_tensor_1d(s->t, s->n);
    out.dtype = ddpm_model_activation(s->model);
    TRY(s->ops->open_sample(s->be, &(struct open_sample_args){.table = s->table,
                                                              .times = s->times,
                                                              .state = s->state,
                                                              .rows = s->step_rows,
                                                              .time = &t}));
    TRY(ddpm_model_forward(s->model, &(ddpm_forward_args){.x = &x,
                                                          .t = &t,
                                                          .label = s->is_conditional ? s->label : NULL,
                                                          .out = &out}));
    return s->ops->reverse_step(s->be, &(struct reverse_step_args){.out = &out,
                                                                   .rows = s->step_rows,
                                                                   .state = s->state,
                                                                   .index = s->index,
                                                                   .x = &x,
                                                                   .x0_hat = s->gives_x0_hat ? &x0_hat : NULL,
                                                                   .bad = s->bad});
}

ddpm_status ddpm_sampler_create(ddpm_backend *be, ddpm_model *model, const ddpm_diffusion_config *diffusion,
                                const ddpm_sample_config *cfg, int batch, ddpm_sampler **out)
{
    ddpm_status st;
    ddpm_schedule *schedule = NULL;
    const ddpm_model_config *m = ddpm_model_configuration(model);
    *out = NULL;
    REQUIRE(batch >= 1, ARG, "sampler: a batch of %d; at least 1", batch);
    ddpm_sampler *s = calloc(1, sizeof *s);
    REQUIRE(s, NOMEM, "sampler: %zu bytes", sizeof *s);
    s->be = be;
    s->ops = backend_ops(be);
    s->model = model;
    s->batch = batch;
    s->n_wanted = -1;
    s->h = m->image_height;
    s->w = m->image_width;
    s->c = m->image_channels;
    s->size = s->h * s->w * s->c;
    s->is_conditional = m->num_classes > 0;

    if ((st = make_schedule(diffusion, cfg->spacing, &schedule))) goto fail;
    s->steps = schedule->T;
    if ((st = allocate(s))) goto fail;
    if ((st = fill_tables(s, schedule, diffusion->objective, cfg))) goto fail;
    if ((st = ddpm_recording_create(be, step_calls, s, &s->recording))) goto fail;
    if ((st = ddpm_model_reserve(model, batch, false))) goto fail;
    ddpm_schedule_free(schedule);
    *out = s;
    return DDPM_OK;
fail:
    ddpm_schedule_free(schedule);
    ddpm_sampler_free(s);
    return st;
}

void ddpm_sampler_free(ddpm_sampler *s)
{
    if (!s) return;
    ddpm_recording_free(s->recording);
    ddpm_backend_release(s->be, s->device);
    free(s->host);
    free(s);
}

int ddpm_sampler_steps(const ddpm_sampler *s)
{
    return s->steps;
}

static ddpm_status upload_state(ddpm_sampler *s, uint64_t seed, int step)
{
    const struct step_state state = {.seed = seed, .step = (uint32_t)step};
    return ddpm_backend_upload(s->be, s->state, &state, sizeof state);
}

/* x_T of every image, and what stays the same over the steps. */
static ddpm_status begin(ddpm_sampler *s, uint64_t seed, int n, const uint64_t *index, const int32_t *label)
{
    ddpm_tensor x = images(s, s->x, n);
    TRY(upload_state(s, seed, s->steps + 1)); /* each step counts it down first */
    TRY(ddpm_backend_zero(s->be, s->bad, (size_t)n * sizeof *s->bad));
    TRY(ddpm_backend_upload(s->be, s->index, index, (size_t)n * sizeof *index));
    if (s->is_conditional) TRY(ddpm_backend_upload(s->be, s->label, label, (size_t)n * sizeof *label));
    return s->ops->gaussian(s->be, &(struct gaussian_args){.state = s->state,
                                                           .index = s->index,
                                                           .purpose = PHILOX_PRIOR,
                                                           .x = &x});
}

/* from: x or x0_hat, to u8 on the host. */
static ddpm_status to_host(ddpm_sampler *s, float *from, int n, uint8_t *host)
{
    const ddpm_tensor x = images(s, from, n);
    ddpm_tensor y = images(s, s->bytes, n);
    y.dtype = DDPM_U8;
    TRY(s->ops->to_u8(s->be, &(struct to_u8_args){.x = &x, .y = &y}));
    return ddpm_backend_download(s->be, host, s->bytes, (size_t)(n * s->size));
}

static ddpm_status check_arguments(const ddpm_sampler *s, int n, const int32_t *label)
{
    REQUIRE(n >= 1 && n <= s->batch, ARG, "sampler: %d images at once; it was made for 1 to %d", n, s->batch);
    if (!s->is_conditional) return DDPM_OK;
    const int64_t classes = ddpm_model_configuration(s->model)->num_classes;
    REQUIRE(label, ARG, "sampler: the model has %" PRId64 " classes and needs a label per image", classes);
    for (int i = 0; i < n; i++)
        REQUIRE(label[i] >= 0 && label[i] < classes, ARG, "sampler: label %d; the model's classes are 0 to %" PRId64,
                label[i], classes - 1);
    return DDPM_OK;
}

/* Waits for the steps queued; NUMERIC where an answer was not finite: the first step that had one, the first sample. */
static ddpm_status check_finite(ddpm_sampler *s, int n, const uint64_t *index)
{
    int at = 0;
    TRY(ddpm_backend_download(s->be, s->host_bad, s->bad, (size_t)n * sizeof *s->bad));
    for (int i = 1; i < n; i++)
        if (s->host_bad[i] > s->host_bad[at]) at = i; /* steps count down */
    const int step = s->host_bad[at];
    REQUIRE(step == 0, NUMERIC,
            "sample %" PRIu64 ": at step %d of %d (t = %g) the network's answer is not finite: the weights are damaged or the "
            "training diverged", index[at], step, s->steps, s->time[step] + 1.0);
    return DDPM_OK;
}

void ddpm_sampler_frames(ddpm_sampler *s, const int *step, int n)
{
    s->wanted = step;
    s->n_wanted = n;
}

static bool is_wanted(const ddpm_sampler *s, int step)
{
    for (int i = 0; i < s->n_wanted; i++)
        if (s->wanted[i] == step) return true;
    return s->n_wanted < 0;
}

/* Whether the host waits after this step, beside for a frame: a CPU has ended it anyway; a GPU is let alone, but not so long
 * that nobody sees how far it is, or that a signal has to wait. */
static bool is_look_due(const ddpm_sampler *s, int step)
{
    enum { STEPS_AHEAD = 16 };
    return ddpm_backend_is_cpu(s->be) || (s->steps - step) % STEPS_AHEAD == 0 || step == 1;
}

/* The recording is of the calls as they are now. */
static void settle_recording(ddpm_sampler *s, int n, bool gives_x0_hat)
{
    const void *weights = ddpm_model_weights(s->model);
    if (s->n != n || s->gives_x0_hat != gives_x0_hat || s->weights != weights) ddpm_recording_reset(s->recording);
    s->n = n;
    s->gives_x0_hat = gives_x0_hat;
    s->weights = weights;
}

static ddpm_status run_steps(ddpm_sampler *s, uint64_t seed, int n, const uint64_t *index, const int32_t *label,
                             ddpm_frame_sink frames, void *user, const volatile int *stop)
{
    settle_recording(s, n, frames && s->n_wanted != 0);
    TRY(begin(s, seed, n, index, label));
    for (int step = s->steps; step >= 1; step--) {
        REQUIRE(!stop || !*stop, STOPPED, "stopped before step %d of %d of a batch of %d samples", s->steps - step + 1,
                s->steps, n);
        TRY(ddpm_recording_run(s->recording));
        const bool is_frame = frames && is_wanted(s, step);
        if (!is_frame && !is_look_due(s, step)) continue;
        TRY(check_finite(s, n, index));
        if (is_frame) TRY(to_host(s, s->x0_hat, n, s->host_bytes));
        if (frames) frames(user, step, is_frame ? s->host_bytes : NULL);
    }
    return DDPM_OK;
}

ddpm_status ddpm_sampler_run(ddpm_sampler *s, uint64_t seed, int n, const uint64_t *index, const int32_t *label,
                             uint8_t *out, ddpm_frame_sink frames, void *user, const volatile int *stop)
{
    TRY(check_arguments(s, n, label));
    ddpm_backend_freeze_weights(s->be, true);
    ddpm_status st = run_steps(s, seed, n, index, label, frames, user, stop);
    if (!st) st = to_host(s, s->x, n, out);
    ddpm_backend_freeze_weights(s->be, false);
    return st;
}

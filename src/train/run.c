/* run.c - a whole run: resume or begin, the loop, and what happens between steps.
 *
 * Between steps, in this order: figures, validation, preview, checkpoint, and only then a look at
 * the stop flag and the clock, so that a stop saves once and loses nothing. What fails beside the
 * training (a preview, a full disk at an interval's checkpoint, a line of metrics) is told and the
 * training goes on; it ends where the state is no longer safe: three checkpoints in a row or the
 * last one not written, weights or losses not finite, a device's fault. Nothing stands before the
 * first step but what it needs; previews take their memory at the start and draw when due. */
#include "trainer.h"

#include "checkpoint.h"
#include "fail.h"
#include "metrics.h"
#include "notices.h"
#include "run_folder.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FAILED_SAVES_MAX = 3, LOSSES_MAX = 1024 };

/* Sums since the last line of metrics. */
struct window {
    int64_t steps, finite;
    double loss, grad_norm, seconds;
    double quartile_sum[4];
    int64_t quartile_count[4];
};

struct run {
    const ddpm_run_options *opts; /* borrowed */
    ddpm_config cfg;
    struct run_folder folder;
    ddpm_trainer *trainer;
    struct preview *preview; /* NULL: none */
    metrics *metrics;
    progress progress;
    struct window window;
    double started, trained_seconds; /* of all steps but the first, which builds things */
    double collected_at;             /* when the first of the pending steps was begun */
    int64_t first, end, saved;       /* steps; saved: -1 none */
    int failed_saves;
    int notices;      /* of the backend, shown */
    bool has_figures; /* put into metrics and not flushed */
    double losses[LOSSES_MAX];
    ddpm_run_report *report;
};

static bool is_due(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

static bool is_stopped(const struct run *r)
{
    return r->opts->stop && *r->opts->stop;
}

static bool is_out_of_time(const struct run *r)
{
    return r->opts->max_seconds > 0 && monotonic_seconds() - r->started >= r->opts->max_seconds;
}

static ddpm_status set_newest(struct run *r, const char *path)
{
    char *copy = strdup(path);
    REQUIRE(copy, NOMEM, "%s: no memory for its name", path);
    free(r->report->checkpoint);
    r->report->checkpoint = copy;
    return DDPM_OK;
}

/* ---- figures ---- */

static void window_add(struct run *r, const ddpm_step_result *res)
{
    struct window *w = &r->window;
    w->steps++;
    if (res->skipped) return;
    w->finite++;
    w->loss += res->loss;
    w->grad_norm += res->grad_norm;
    for (int q = 0; q < 4; q++) {
        w->quartile_sum[q] += res->quartile_sum[q];
        w->quartile_count[q] += res->quartile_count[q];
    }
}

static void put(struct run *r, const char *name, double value)
{
    metrics_put(r->metrics, name, value);
    r->has_figures = true;
}

static void put_window(struct run *r, double lr)
{
    static const char *const names[] = {"loss/q1", "loss/q2", "loss/q3", "loss/q4"};
    const struct window *w = &r->window;
    const double n = (double)w->finite; /* 0: means are NaN, written as null */
    put(r, "loss", w->loss / n);
    for (int q = 0; q < 4; q++)
        put(r, names[q], w->quartile_sum[q] / (double)w->quartile_count[q]);
    put(r, "grad_norm", w->grad_norm / n);
    put(r, "lr", lr);
    put(r, "images_per_s", (double)(w->steps * r->trainer->batch) / w->seconds);
    put(r, "skipped", (double)(r->trainer->step - r->trainer->updates));
    r->window = (struct window){0};
}

/* Mean of the last train.log_every losses that were finite. */
static double recent_loss(const struct run *r)
{
    int64_t n = r->trainer->step - r->first, used = 0;
    if (n > r->cfg.train.log_every) n = r->cfg.train.log_every;
    if (n > LOSSES_MAX) n = LOSSES_MAX;
    double sum = 0;
    for (int64_t i = 1; i <= n; i++) {
        const double loss = r->losses[(r->trainer->step - i) % LOSSES_MAX];
        if (!isfinite(loss)) continue;
        sum += loss;
        used++;
    }
    return used ? sum / (double)used : NAN;
}

static void fill_report(struct run *r)
{
    const int64_t steps = r->trainer->step - r->first;
    r->report->first_step = r->first;
    r->report->last_step = r->trainer->step;
    r->report->loss = recent_loss(r);
    if (r->trained_seconds > 0)
        r->report->images_per_second =
            (double)((steps - 1) * r->trainer->batch) / r->trained_seconds;
}

/* `seconds` for the last n steps */
static void show_progress(struct run *r, const ddpm_step_result *res, int n, double seconds)
{
    char note[96];
    snprintf(note, sizeof note, "loss %.4f, %.3g img/s", res->loss,
             (double)(n * r->trainer->batch) / seconds);
    notices_show(r->trainer->be, r->opts->sink, &r->notices);
    progress_update(&r->progress, r->trainer->step, note);
}

/* ---- what is due between steps ---- */

/* Faults that end the run even at an interval's checkpoint: trying again cannot help. */
static bool is_final_fault(ddpm_status s)
{
    return s == DDPM_NUMERIC || s == DDPM_BACKEND || s == DDPM_BUG || s == DDPM_SHAPE;
}

static ddpm_status save(struct run *r, bool is_last)
{
    const char *path = run_folder_checkpoint(&r->folder, r->trainer->step);
    const ddpm_train_config *c = &r->cfg.train;
    const ddpm_status s = ddpm_trainer_save(r->trainer, path);
    if (!s) {
        r->failed_saves = 0;
        r->saved = r->trainer->step;
        TRY(set_newest(r, path));
        if (checkpoint_prune(r->folder.dir, (int)c->keep_last, c->keep_every, path) != DDPM_OK)
            log_line(r->opts->sink, "older checkpoints were not removed: %s", ddpm_last_error());
        return DDPM_OK;
    }
    if (is_final_fault(s)) return s;
    r->failed_saves++;
    if (is_last) return status_context(s, "the last checkpoint was not written");
    if (r->failed_saves >= FAILED_SAVES_MAX)
        return status_context(s, "%d checkpoints in a row were not written", r->failed_saves);
    log_line(r->opts->sink,
             "no checkpoint at step %" PRId64 ", the older ones are intact, next try after %" PRId64
             " steps: %s",
             r->trainer->step, c->save_every, ddpm_last_error());
    return DDPM_OK;
}

/* The weights that will be sampled: the first EMA where there is one. */
static ddpm_status validate(struct run *r)
{
    double loss;
    const ddpm_status s = ddpm_trainer_validate(r->trainer, r->trainer->n_ema ? 0 : -1, &loss);
    if (s == DDPM_STOPPED) return DDPM_OK;
    TRY(s);
    if (isnan(loss)) return DDPM_OK;
    put(r, "validation_loss", loss);
    log_line(r->opts->sink, "step %" PRId64 ": validation loss %.5f", r->trainer->step, loss);
    return DDPM_OK;
}

static ddpm_status draw_preview(struct run *r)
{
    const char *path = run_folder_preview(&r->folder, r->trainer->step);
    const ddpm_status s = preview_draw(r->preview, r->trainer, path, r->opts->stop);
    if (s == DDPM_BACKEND || s == DDPM_BUG) return s;
    if (s && s != DDPM_STOPPED)
        log_line(r->opts->sink, "no preview at step %" PRId64 ": %s", r->trainer->step,
                 ddpm_last_error());
    return DDPM_OK;
}

static ddpm_status between_steps(struct run *r, const ddpm_step_result *res)
{
    const ddpm_train_config *c = &r->cfg.train;
    const int64_t step = r->trainer->step;
    if (is_due(step, c->log_every) || step == r->end) put_window(r, res->lr);
    if (is_due(step, c->validate_every)) TRY(validate(r));
    if (r->has_figures) metrics_flush(r->metrics, step);
    r->has_figures = false;
    if (r->preview && is_due(step, c->preview_every)) TRY(draw_preview(r));
    /* While steps are being skipped the weights may be bad already: the files that are there stay.
     */
    if (step < r->end && is_due(step, c->save_every) && r->trainer->skipped_in_row == 0)
        TRY(save(r, false));
    return DDPM_OK;
}

/* ---- the loop ---- */

/* Figures wait on the device for as long as nobody needs them. A device that trains beside this
 * thread is looked at once a second at least, for the progress and to notice skipped steps. */
static bool must_collect(const struct run *r)
{
    const ddpm_train_config *c = &r->cfg.train;
    const int64_t step = r->trainer->step;
    return ddpm_backend_is_cpu(r->trainer->be) || step == r->first + 1 || step == r->end ||
           is_due(step, c->log_every) || is_due(step, c->validate_every) ||
           is_due(step, c->preview_every) || is_due(step, c->save_every) || is_stopped(r) ||
           is_out_of_time(r) || ddpm_trainer_pending(r->trainer) == DDPM_STEPS_PENDING ||
           monotonic_seconds() - r->collected_at >= 1;
}

static void take_figures(struct run *r, const ddpm_step_result *res)
{
    r->losses[(res->step - 1) % LOSSES_MAX] = res->skipped ? NAN : res->loss;
    window_add(r, res);
    if (res->skipped)
        log_line(r->opts->sink,
                 "step %" PRId64 " skipped: loss %g, gradient norm %g; %" PRId64 " of %" PRId64
                 " in a row",
                 res->step, res->loss, res->grad_norm, res->skipped_in_row,
                 r->cfg.train.max_skipped);
}

/* Waits for the steps that are queued and takes their figures; *last those of the newest. */
static ddpm_status collect(struct run *r, ddpm_step_result *last)
{
    ddpm_step_result *results = r->trainer->results;
    int n;
    TRY(ddpm_trainer_collect(r->trainer, results, &n));
    const double now = monotonic_seconds(), seconds = now - r->collected_at;
    for (int i = 0; i < n; i++)
        take_figures(r, &results[i]);
    *last = results[n - 1];
    r->window.seconds += seconds;
    if (results[0].step == r->first + 1)
        r->report->seconds_to_first_step = now - r->started;
    else
        r->trained_seconds += seconds;
    show_progress(r, last, n, seconds);
    return DDPM_OK;
}

static ddpm_status one_step(struct run *r)
{
    ddpm_step_result last;
    if (ddpm_trainer_pending(r->trainer) == 0) r->collected_at = monotonic_seconds();
    TRY(ddpm_trainer_queue(r->trainer));
    if (!must_collect(r)) return DDPM_OK;
    TRY(collect(r, &last));
    return between_steps(r, &last);
}

static ddpm_status loop(struct run *r)
{
    while (r->trainer->step < r->end) {
        TRY(one_step(r));
        const bool stopped = is_stopped(r);
        if ((!stopped && !is_out_of_time(r)) || r->trainer->step == r->end) continue;
        ddpm_step_result last;
        if (ddpm_trainer_pending(r->trainer)) TRY(collect(r, &last));
        if (r->saved != r->trainer->step) TRY(save(r, true));
        return FAIL(STOPPED, "%s: stopped %s at step %" PRId64 " of %" PRId64, r->folder.dir,
                    stopped ? "by a signal" : "at the time limit", r->trainer->step, r->end);
    }
    return r->saved == r->trainer->step ? DDPM_OK : save(r, true);
}

/* ---- the start ---- */

/* config.yaml must find the pack from any folder. */
static ddpm_status read_config(struct run *r, const ddpm_config *cfg)
{
    TRY(ddpm_config_copy(cfg, &r->cfg));
    char *full = r->cfg.data.pack ? realpath(r->cfg.data.pack, NULL) : NULL;
    if (!full) return DDPM_OK; /* opening it will say why */
    free(r->cfg.data.pack);
    r->cfg.data.pack = full;
    return DDPM_OK;
}

static ddpm_status resume(struct run *r)
{
    char *newest = NULL;
    TRY(checkpoint_newest(r->folder.dir, r->opts->sink, &newest));
    const bool is_new = !newest;
    ddpm_status s = run_folder_settle_overfit(&r->folder, is_new, r->opts->overfit);
    if (!s)
        s = run_folder_settle(&r->folder, &r->cfg, is_new, r->opts->override_config, r->opts->sink);
    if (!s) s = is_new ? trainer_init_weights(r->trainer) : ddpm_trainer_load(r->trainer, newest);
    if (!s && !is_new) {
        r->saved = r->trainer->step;
        log_line(r->opts->sink, "going on from step %" PRId64 ": %s", r->trainer->step, newest);
        s = set_newest(r, newest);
    }
    free(newest);
    return s;
}

static ddpm_status begin(struct run *r, ddpm_backend *be)
{
    const ddpm_run_options *o = r->opts;
    TRY(run_folder_open(o->dir, &r->folder));
    TRY(trainer_build(be, &r->cfg, &r->trainer));
    r->trainer->stop = o->stop;
    TRY(resume(r));
    ddpm_trainer_overfit(r->trainer, o->overfit);

    r->first = r->trainer->step;
    r->end = r->cfg.train.steps;
    if (o->max_steps > 0 && o->max_steps < r->end) r->end = o->max_steps;
    if (r->first >= r->end) return DDPM_OK;
    /* PNG has grey and RGB; a grid that will never be due takes no memory. */
    const int64_t every = r->cfg.train.preview_every;
    const bool is_drawn = r->trainer->c == 1 || r->trainer->c == 3;
    if (is_drawn && every > 0 && r->first / every < r->end / every)
        TRY(preview_create(r->trainer, &r->preview));
    TRY(metrics_open(r->folder.dir, r->first, &r->metrics));
    char text[32];
    log_line(o->sink,
             "%s: %" PRId64 " parameters, steps %" PRId64 " to %" PRId64 " of %" PRId64
             " images, %s on %s",
             o->dir, ddpm_model_parameter_total(r->trainer->model), r->first + 1, r->end,
             r->trainer->batch, format_bytes(ddpm_backend_memory(be), text, sizeof text),
             ddpm_backend_name(be));
    if (r->trainer->pack)
        log_line(o->sink, "all %" PRId64 " images are on the device",
                 ddpm_dataset_describe(r->trainer->data)->n);
    progress_begin(&r->progress, o->sink, "train", "step", r->end, r->first);
    return DDPM_OK;
}

static ddpm_status train(struct run *r, ddpm_backend *be, const ddpm_config *cfg)
{
    TRY(read_config(r, cfg));
    TRY(begin(r, be));
    if (r->first >= r->end) {
        log_line(r->opts->sink, "%s is at step %" PRId64 " already, its last; nothing to do",
                 r->opts->dir, r->first);
        fill_report(r);
        return DDPM_OK;
    }
    const ddpm_status s = loop(r);
    fill_report(r);
    progress_end(&r->progress, NULL);
    notices_show(be, r->opts->sink, &r->notices);
    if (metrics_dropped(r->metrics))
        log_line(r->opts->sink, "%" PRId64 " lines of metrics could not be written",
                 metrics_dropped(r->metrics));
    return s;
}

ddpm_status ddpm_train_run(ddpm_backend *be, const ddpm_config *cfg, const ddpm_run_options *opts,
                           ddpm_run_report *report)
{
    const double started = monotonic_seconds();
    *report = (ddpm_run_report){.loss = NAN};
    REQUIRE(opts->dir && *opts->dir, ARG, "no run folder is given");
    struct run *r = calloc(1, sizeof *r);
    REQUIRE(r, NOMEM, "run: %zu bytes", sizeof *r);
    r->opts = opts;
    r->report = report;
    r->started = started;
    r->saved = -1;
    const ddpm_status s = train(r, be, cfg);
    preview_free(r->preview);
    metrics_close(r->metrics);
    ddpm_trainer_free(r->trainer);
    run_folder_release(&r->folder);
    ddpm_config_free(&r->cfg);
    free(r);
    return s;
}

void ddpm_run_report_free(ddpm_run_report *r)
{
    free(r->checkpoint);
    *r = (ddpm_run_report){0};
}

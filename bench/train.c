/* train.c - `ddpm bench train`: whole training steps on synthetic images, by the trainer itself. On
 * a GPU a repeat is GPU_SPAN steps and one wait, for `ddpm train` waits once a log line.
 *
 * The trainer reads packs, so a small one of noise is written to a temporary folder and removed at
 * the end: the figure includes reading ahead, augmentation, clip, AdamW and every EMA. The first
 * step is timed from the start of the process; the machine's peak is measured last, so that it
 * spoils neither that nor the peak of memory. */
#include "bench.h"

#include "ddpm/train.h"
#include "fail.h"
#include "philox.h"
#include "profile.h"
#include "safetensors.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROFILED_STEPS = 3, GPU_SPAN = 4 };

/* ---- the synthetic pack ---- */

static ddpm_status declare_pack(st_writer *w, const ddpm_model_config *m, int64_t n,
                                uint64_t *bytes)
{
    char total[24];
    const int64_t images[] = {n, m->image_height, m->image_width, m->image_channels};
    snprintf(total, sizeof total, "%lld", (long long)n);
    *bytes = (uint64_t)(n * m->image_height * m->image_width * m->image_channels);
    TRY(st_add(w, "images", ST_U8, 4, images));
    if (m->num_classes) TRY(st_add(w, "labels", ST_I64, 1, &n));
    TRY(st_add_metadata(w, "ddpm.kind", "pack"));
    TRY(st_add_metadata(w, "ddpm.shard", "0/1"));
    TRY(st_add_metadata(w, "ddpm.total", total));
    return st_add_metadata(w, "ddpm.source", "00000000000000000000000000000000");
}

static ddpm_status put_noise(st_writer *w, uint64_t bytes)
{
    philox4 words[1024];
    for (uint64_t at = 0; at < bytes; at += sizeof words) {
        for (uint32_t i = 0; i < 1024; i++)
            words[i] = philox_draw(0, PHILOX_TEST, 0, at / sizeof words, i);
        TRY(st_put(w, words, bytes - at < sizeof words ? bytes - at : sizeof words));
    }
    return DDPM_OK;
}

static ddpm_status write_pack(const char *path, const ddpm_model_config *m, int64_t n)
{
    st_writer *w = NULL;
    uint64_t bytes = 0;
    TRY(st_writer_create(&w));
    ddpm_status s = declare_pack(w, m, n, &bytes);
    if (!s) s = st_begin(w, path);
    if (!s) s = put_noise(w, bytes);
    for (int64_t i = 0; i < n && m->num_classes && !s; i++) {
        /* the last class stands in the pack too, so that it has as many classes as the model */
        const int64_t label = i == 0 ? m->num_classes - 1 : i % m->num_classes;
        s = st_put(w, &label, sizeof label);
    }
    if (s) {
        st_writer_abandon(w);
        return s;
    }
    return st_finish(w);
}

static ddpm_status make_data(ddpm_config *cfg, char *dir, size_t size)
{
    const char *tmp = getenv("TMPDIR");
    char path[PATH_MAX];
    if (snprintf(dir, size, "%s/ddpm-bench-XXXXXX", tmp && *tmp ? tmp : "/tmp") >= (int)size ||
        !mkdtemp(dir)) {
        const ddpm_status s =
            FAIL_ERRNO("%s: a temporary folder: %s", tmp && *tmp ? tmp : "/tmp", strerror(errno));
        dir[0] = '\0';
        return s;
    }
    REQUIRE(snprintf(path, sizeof path, "%s/noise.safetensors", dir) < (int)sizeof path, ARG,
            "%s: too long", dir);
    TRY(write_pack(path, &cfg->model, 2 * cfg->train.batch));
    char *copy = strdup(path);
    REQUIRE(copy, NOMEM, "the name of the pack");
    free(cfg->data.pack);
    cfg->data.pack = copy;
    cfg->data.validation = 0;
    return DDPM_OK;
}

static void remove_data(const char *dir)
{
    char path[PATH_MAX];
    if (!*dir) return;
    if (snprintf(path, sizeof path, "%s/noise.safetensors", dir) < (int)sizeof path) unlink(path);
    rmdir(dir);
}

/* ---- the steps ---- */

/* `span` steps one behind another, as `ddpm train` queues them, and the wait behind them: seconds of
 * one, and the last one's loss. */
static ddpm_status time_span(ddpm_trainer *t, int span, double *seconds, double *loss)
{
    ddpm_step_result results[DDPM_STEPS_PENDING];
    int n = 0;
    const double start = monotonic_seconds();
    for (int i = 0; i < span; i++)
        TRY(ddpm_trainer_queue(t));
    TRY(ddpm_trainer_collect(t, results, &n));
    *seconds = (monotonic_seconds() - start) / span;
    *loss = results[n - 1].loss;
    return DDPM_OK;
}

static ddpm_status time_steps(const bench_job *job, ddpm_trainer *t, int span, bench_times *times,
                              double *first_s, double *loss)
{
    progress p;
    const int total = job->warmup + job->repeats;
    progress_begin(&p, job->sink, "bench train", span > 1 ? "span" : "step", total, 0);
    for (int i = 0; i < total; i++) {
        double seconds;
        REQUIRE(!*job->stop, STOPPED, "stopped after %d of %d repeats", i, total);
        TRY(time_span(t, i == 0 ? 1 : span, &seconds, loss));
        if (i >= job->warmup) bench_times_add(times, seconds);
        if (i == 0) *first_s = bench_process_seconds();
        progress_update(&p, i + 1, NULL);
    }
    progress_end(&p, NULL);
    return DDPM_OK;
}

static ddpm_status profile_steps(const bench_job *job, ddpm_backend *be, ddpm_trainer *t)
{
    ddpm_step_result result;
    struct profile_entry e;
    double all = 0;
    backend_profile(be, true);
    for (int i = 0; i < PROFILED_STEPS; i++)
        TRY(ddpm_trainer_step(t, &result));
    backend_profile(be, false);
    for (int i = 0; backend_profile_at(be, i, &e); i++)
        all += e.seconds;
    for (int i = 0; backend_profile_at(be, i, &e); i++) {
        if (!e.calls) continue;
        report_row(job->r, "time_by_op");
        report_text(job->r, "op", "%s", e.name);
        report_int(job->r, "calls", (int64_t)(e.calls / PROFILED_STEPS));
        report_real(job->r, "step_ms", e.seconds * 1e3 / PROFILED_STEPS);
        report_real(job->r, "share", all > 0 ? e.seconds / all : 0);
        report_real(job->r, "gflop_per_s", e.flops > 0 ? e.flops / e.seconds / 1e9 : NAN);
        report_close(job->r);
    }
    return DDPM_OK;
}

static ddpm_status run_steps(bench_job *job, ddpm_backend *be, ddpm_trainer *t, bench_times *times)
{
    const ddpm_train_config *c = &job->cfg.train;
    double first_s = 0, loss = 0;
    bench_peak peak;
    const int span = ddpm_backend_is_cpu(be) ? 1 : GPU_SPAN;
    TRY(time_steps(job, t, span, times, &first_s, &loss));
    const int64_t device_bytes = (int64_t)ddpm_backend_memory_peak(be),
                  process_bytes = bench_process_peak_bytes();
    TRY(bench_measure_peak(job, be, &peak));

    const double median = bench_times_quantile(times, 0.5);
    const double gflop = 6.0 * ddpm_model_macs(ddpm_trainer_model(t)) * (double)c->batch / 1e9;
    report *r = job->r;
    report_text(r, "bench", "train");
    report_text(r, "configuration", "%s", job->configuration);
    report_int(r, "parameters", ddpm_model_parameter_total(ddpm_trainer_model(t)));
    report_real(r, "gmac_per_image", ddpm_model_macs(ddpm_trainer_model(t)) / 1e9);
    report_int(r, "batch", c->batch);
    report_int(r, "micro_batch", c->micro_batch ? c->micro_batch : c->batch);
    report_int(r, "warmup", job->warmup);
    report_int(r, "repeats", job->repeats);
    report_int(r, "steps_per_repeat", span);
    report_real(r, "first_step_s", first_s);
    report_real(r, "step_median_ms", median * 1e3);
    report_real(r, "step_p99_ms", bench_times_quantile(times, 0.99) * 1e3);
    report_real(r, "images_per_s", (double)c->batch / median);
    bench_report_shares(r, &peak, gflop / median);
    report_int(r, "backend_peak_bytes", device_bytes);
    report_int(r, "process_peak_bytes", process_bytes);
    report_real(r, "loss", loss);
    if (job->profiles) TRY(profile_steps(job, be, t));
    bench_report_machine(r, be, &peak);
    return DDPM_OK;
}

ddpm_status bench_train(bench_job *job)
{
    char dir[PATH_MAX] = "";
    ddpm_backend *be = NULL;
    ddpm_trainer *t = NULL;
    bench_times times = {0};
    const int64_t needed = (job->warmup + job->repeats) * GPU_SPAN + PROFILED_STEPS;
    if (job->cfg.train.steps < needed) job->cfg.train.steps = needed;
    ddpm_status s = make_data(&job->cfg, dir, sizeof dir);
    if (!s) s = bench_backend(job, &be);
    if (!s) s = ddpm_trainer_create(be, &job->cfg, &t);
    if (!s) s = bench_times_init(&times, job->repeats);
    if (!s) s = run_steps(job, be, t, &times);
    bench_times_release(&times);
    ddpm_trainer_free(t);
    ddpm_backend_free(be);
    remove_data(dir);
    return s;
}

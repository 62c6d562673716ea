/* sample.c - `ddpm bench sample`: the reverse process on fresh weights, by the sampler itself.
 *
 * Time does not depend on what the weights are, so no checkpoint is needed. A run is a whole batch
 * over all steps kept; the time of one step is the run's divided by their number. */
#include "bench.h"

#include "ddpm/sample.h"
#include "fail.h"
#include "ops.h"

#include <stdlib.h>

struct sample_run {
    ddpm_backend *be;
    ddpm_model *model;
    ddpm_sampler *sampler;
    void *weights;   /* device */
    void *half;      /* device: the weights as bf16, or NULL */
    float *initial;  /* host */
    uint8_t *images; /* [batch,H,W,C] */
    uint64_t *index; /* [batch] */
    int32_t *label;  /* [batch], zeros */
    bench_times times;
};

static void sample_release(struct sample_run *b)
{
    bench_times_release(&b->times);
    ddpm_sampler_free(b->sampler);
    ddpm_model_free(b->model);
    if (b->be) ddpm_backend_release(b->be, b->weights);
    if (b->be) ddpm_backend_release(b->be, b->half);
    ddpm_backend_free(b->be);
    free(b->initial);
    free(b->images);
    free(b->index);
    free(b->label);
}

static ddpm_status round_weights(struct sample_run *b, int64_t count)
{
    TRY(ddpm_backend_alloc(b->be, (size_t)count * sizeof(uint16_t), &b->half));
    const ddpm_tensor from = ddpm_tensor_1d(b->weights, count);
    ddpm_tensor to = ddpm_tensor_1d(b->half, count);
    to.dtype = DDPM_BF16;
    ddpm_model_bind_half(b->model, b->half);
    return backend_ops(b->be)->cast(b->be, &(struct cast_args){.x = &from, .y = &to});
}

static ddpm_status sample_prepare(const bench_job *job, struct sample_run *b)
{
    const ddpm_config *c = &job->cfg;
    const size_t n = (size_t)c->sample.batch;
    TRY(bench_backend(job, &b->be));
    TRY(ddpm_model_create(b->be, &c->model, &b->model));
    TRY(ddpm_model_set_precision(b->model, c->sample.precision, "sample.precision"));
    const size_t count = (size_t)ddpm_model_arena_count(b->model);
    const size_t pixels =
        (size_t)(c->model.image_height * c->model.image_width * c->model.image_channels);
    b->initial = calloc(count, sizeof(float));
    b->images = calloc(n, pixels);
    b->index = calloc(n, sizeof *b->index);
    b->label = calloc(n, sizeof *b->label);
    REQUIRE(b->initial && b->images && b->index && b->label, NOMEM,
            "weights of %zu and a batch of %zu images", count, n);
    for (size_t i = 0; i < n; i++)
        b->index[i] = i;
    ddpm_model_init(b->model, 0, b->initial);
    TRY(ddpm_backend_alloc(b->be, count * sizeof(float), &b->weights));
    TRY(ddpm_backend_upload(b->be, b->weights, b->initial, count * sizeof(float)));
    free(b->initial);
    b->initial = NULL;
    ddpm_model_bind(b->model, b->weights, NULL);
    if (ddpm_model_activation(b->model) == DDPM_BF16) TRY(round_weights(b, (int64_t)count));
    ddpm_backend_freeze_weights(b->be, true);
    TRY(ddpm_sampler_create(b->be, b->model, &c->diffusion, &c->sample, (int)n, &b->sampler));
    return bench_times_init(&b->times, job->repeats);
}

static ddpm_status time_runs(const bench_job *job, struct sample_run *b)
{
    const int n = (int)job->cfg.sample.batch, total = job->warmup + job->repeats;
    const int32_t *label = job->cfg.model.num_classes ? b->label : NULL;
    progress p;
    progress_begin(&p, job->sink, "bench sample", "run", total, 0);
    for (int i = 0; i < total; i++) {
        const double start = monotonic_seconds();
        TRY(ddpm_sampler_run(b->sampler, 0, n, b->index, label, b->images, NULL, NULL, job->stop));
        if (i >= job->warmup) bench_times_add(&b->times, monotonic_seconds() - start);
        progress_update(&p, i + 1, NULL);
    }
    progress_end(&p, NULL);
    return DDPM_OK;
}

static ddpm_status sample_figures(const bench_job *job, struct sample_run *b)
{
    bench_peak peak;
    TRY(time_runs(job, b));
    const int64_t device_bytes = (int64_t)ddpm_backend_memory_peak(b->be),
                  process_bytes = bench_process_peak_bytes();
    TRY(bench_measure_peak(job, b->be, &peak));

    report *r = job->r;
    const int steps = ddpm_sampler_steps(b->sampler);
    const double batch = (double)job->cfg.sample.batch;
    const double median = bench_times_quantile(&b->times, 0.5),
                 p99 = bench_times_quantile(&b->times, 0.99);
    const double gflop = 2.0 * ddpm_model_macs(b->model) * batch * steps / 1e9;
    report_text(r, "bench", "sample");
    report_text(r, "configuration", "%s", job->configuration);
    report_int(r, "parameters", ddpm_model_parameter_total(b->model));
    report_real(r, "gmac_per_image", ddpm_model_macs(b->model) / 1e9);
    report_text(r, "sampler", "%s",
                job->cfg.sample.sampler == DDPM_SAMPLER_DDIM ? "ddim" : "ancestral");
    report_int(r, "sampler_steps", steps);
    report_int(r, "batch", job->cfg.sample.batch);
    report_int(r, "warmup", job->warmup);
    report_int(r, "repeats", job->repeats);
    report_real(r, "run_median_ms", median * 1e3);
    report_real(r, "run_p99_ms", p99 * 1e3);
    report_real(r, "step_median_ms", median * 1e3 / steps);
    report_real(r, "images_per_s", batch / median);
    bench_report_shares(r, &peak, gflop / median);
    report_int(r, "backend_peak_bytes", device_bytes);
    report_int(r, "process_peak_bytes", process_bytes);
    bench_report_machine(r, b->be, &peak);
    return DDPM_OK;
}

ddpm_status bench_sample(bench_job *job)
{
    struct sample_run b = {0};
    ddpm_status s = sample_prepare(job, &b);
    if (!s) s = sample_figures(job, &b);
    sample_release(&b);
    return s;
}

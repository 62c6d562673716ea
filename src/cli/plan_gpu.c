/* plan_gpu.c - `ddpm plan --gpu`: one training step and one reverse step noted on the planning backend, then priced.
 *
 * Nothing is counted by a formula of its own where code can be asked: calls, bytes and scratch come from running the trainer
 * and the sampler on a backend that notes, launches from the launchers, engines and workspaces from cuDNN. The predicted time
 * alone is a model, a coarse one: each call takes as long as its multiply-adds or its bytes at a fixed share of what the
 * device is rated at, whichever is longer, and each kernel a fixed time more. The shares are printed with the figures. */
#include "plan_gpu.h"

#include "ddpm/sample.h"
#include "ddpm/train.h"

#include "commit.h"
#include "fail.h"
#include "gpu_device.h"
#include "planning.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shares of the rating, by what dense products of this kind and copies reach on the GPUs named; to be replaced by measured ones. */
static const double TENSOR_SHARE = 0.45, F32_SHARE = 0.7, MEMORY_SHARE = 0.8;
static const double KERNEL_S = 2e-6;      /* from one kernel of a recorded graph to the next */
static const double RESERVED_BYTES = 1e9; /* context, libraries' code */

struct priced {
    const struct planning_call *call; /* borrowed from the planning backend */
    struct planning_own own;
    struct planning_engine engine[PLANNING_FORMS];
    int n_engines;
    int kernels; /* of one call; -1: unknown */
    double seconds;
};

struct step {
    const struct plan_gpu_options *o;
    const struct gpu_device *gpu;
    const struct planning_engines *engines; /* or NULL: this build has no cuDNN */
    ddpm_backend *be;
    struct priced *call;
    int n;
    const struct step *known; /* the same step, whose convolutions' engines are known; or NULL */
    int64_t batch, memory_bytes; /* blocks */
    size_t workspace_bytes;      /* scratch or workspace, whichever is more: they share a block */
    size_t side_bytes;           /* workspace of gradients of weights, which have a block of their own */
    size_t tuning_bytes, staging_bytes;
    int64_t kernels;             /* -1: unknown */
    double flops, bytes, seconds;
    bool is_training;
};

/* ---- noting ---- */

/* The form counted with: the first that cuDNN has; NULL where own kernels compute that product. */
static const struct planning_engine *chosen(const struct priced *p, int product)
{
    for (int i = 0; i < p->n_engines; i++)
        if (p->engine[i].product == product && p->engine[i].is_found) return &p->engine[i];
    return NULL;
}

static bool gives_sums(const struct priced *p)
{
    const struct planning_engine *e = chosen(p, 0);
    return e && e->gives_sums;
}

static const struct priced *find_priced(const struct step *s, const struct planning_call *c)
{
    for (int i = 0; i < s->n; i++)
        if (s->call[i].call->op == c->op && strcmp(s->call[i].call->text, c->text) == 0) return &s->call[i];
    return NULL;
}

static bool leaves_sums(const void *from, const struct planning_call *c)
{
    const struct priced *p = find_priced(from, c);
    return p && gives_sums(p);
}

static ddpm_status note_step(struct step *s, const ddpm_config *cfg, int64_t batch)
{
    const struct planning_options options = {
        .name = s->gpu->name, .leaves_sums = s->known ? leaves_sums : NULL, .from = s->known};
    REQUIRE(batch <= INT_MAX, CONFIG, "a batch of %lld images is more than can be counted", (long long)batch);
    ddpm_config c = *cfg;
    c.train.micro_batch = 0;
    c.train.batch = batch;
    c.train.precision = c.sample.precision = s->o->precision;
    s->batch = batch;
    TRY(planning_create(&options, &s->be));
    TRY(s->is_training ? ddpm_trainer_plan(s->be, &c) : ddpm_sampler_plan(s->be, &c, (int)batch));
    s->memory_bytes = (int64_t)ddpm_backend_memory_peak(s->be);
    s->workspace_bytes = ddpm_backend_scratch_bytes(s->be);
    s->staging_bytes = planning_staging_bytes(s->be);
    s->tuning_bytes = s->engines ? planning_spare(s->engines) : 0;
    s->n = planning_call_count(s->be);
    s->call = calloc((size_t)s->n, sizeof *s->call);
    REQUIRE(s->call, NOMEM, "plan: no memory for %d calls", s->n);
    for (int i = 0; i < s->n; i++) {
        s->call[i].call = planning_call_at(s->be, i);
        planning_own_kernels(s->call[i].call, &s->call[i].own);
    }
    return DDPM_OK;
}

static void release_step(struct step *s)
{
    free(s->call);
    ddpm_backend_free(s->be);
}

/* cuDNN is asked by several threads: what it compiles takes seconds. */
static ddpm_status find_engines(struct step *s)
{
    ddpm_status first = DDPM_OK;
    char message[1024] = "";
    if (!s->engines) return DDPM_OK;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < s->n; i++) {
        struct priced *p = &s->call[i];
        const ddpm_status st = planning_engines_of(s->engines, p->call, p->engine, &p->n_engines);
        if (!st) continue;
#pragma omp critical
        if (!first) {
            first = st;
            status_copy_message(message, sizeof message);
        }
    }
    if (first) status_set_message(message);
    return first;
}

/* The step once more, where convolutions leave sums: norms are called with them. */
static ddpm_status note_sums(struct step *s, const ddpm_config *cfg)
{
    bool any = false;
    for (int i = 0; i < s->n; i++)
        any = any || gives_sums(&s->call[i]);
    if (!any) return DDPM_OK;
    struct step again = {.o = s->o, .gpu = s->gpu, .engines = s->engines, .known = s, .is_training = s->is_training};
    const ddpm_status st = note_step(&again, cfg, s->batch);
    again.known = NULL;
    for (int i = 0; !st && i < again.n; i++) {
        const struct priced *p = find_priced(s, again.call[i].call);
        if (!p) continue; /* a norm */
        memcpy(again.call[i].engine, p->engine, sizeof p->engine);
        again.call[i].n_engines = p->n_engines;
    }
    release_step(s);
    *s = again;
    return st;
}

/* ---- pricing ---- */

static int count_kernels(const struct priced *p)
{
    if (!p->own.is_known) return -1;
    int kernels = 0;
    for (int product = 0; product < 2; product++) {
        const struct planning_engine *e = chosen(p, product);
        if (!e) continue;
        kernels += 1 + e->leaves_sum + e->wants_lines;
        if (e->leaves_epilogue) kernels += p->own.left;
    }
    return kernels ? kernels : p->own.launches;
}

static void price(struct step *s, struct priced *p)
{
    const struct planning_call *c = p->call;
    const bool is_bf16 = c->n_tensors && c->tensor[0].dtype == DDPM_BF16;
    const double rate = is_bf16                                     ? s->gpu->bf16_flops * TENSOR_SHARE
                        : s->o->precision == DDPM_PRECISION_TF32 ? s->gpu->tf32_flops * TENSOR_SHARE
                                                                 : s->gpu->f32_flops * F32_SHARE;
    const double compute = rate > 0 ? c->flops / rate : 0, memory = c->bytes / (s->gpu->bytes_per_s * MEMORY_SHARE);
    p->kernels = count_kernels(p);
    p->seconds = (compute > memory ? compute : memory) + KERNEL_S * (p->kernels < 0 ? 1 : p->kernels);
    for (int product = 0; product < 2; product++) {
        const struct planning_engine *e = chosen(p, product);
        size_t *const most = strcmp(c->name, "conv2d_bwd_filter") == 0 ? &s->side_bytes : &s->workspace_bytes;
        if (e && e->workspace_bytes > *most) *most = e->workspace_bytes;
    }
}

static void price_step(struct step *s)
{
    for (int i = 0; i < s->n; i++) {
        struct priced *p = &s->call[i];
        const double calls = (double)p->call->calls;
        price(s, p);
        s->flops += calls * p->call->flops;
        s->bytes += calls * p->call->bytes;
        s->seconds += calls * p->seconds;
        s->kernels = p->kernels < 0 || s->kernels < 0 ? -1 : s->kernels + p->call->calls * p->kernels;
    }
}

/* ---- memory ---- */

/* Blocks and scratch of a batch; workspaces are not known without asking cuDNN again and are taken to grow with it. */
static ddpm_status bytes_of(const struct step *s, const ddpm_config *cfg, int64_t batch, double *out)
{
    struct step other = {.o = s->o, .gpu = s->gpu, .engines = s->engines, .is_training = s->is_training};
    const ddpm_status st = note_step(&other, cfg, batch);
    const double growth = (double)batch / (double)s->batch, workspace = (double)s->workspace_bytes * growth;
    const double scratch = (double)other.workspace_bytes, side = (double)s->side_bytes * growth;
    *out = (double)other.memory_bytes + (workspace > scratch ? workspace : scratch) + side +
           (double)(other.tuning_bytes + other.staging_bytes);
    release_step(&other);
    return st;
}

/* The largest batch, in one piece, that fits into the device; 0 where one image does not. */
static ddpm_status largest_batch(const struct step *s, const ddpm_config *cfg, int64_t *out)
{
    const double have = (double)s->gpu->memory_bytes - RESERVED_BYTES;
    int64_t fits = 0, too_many = 65537;
    while (too_many - fits > 1) {
        const int64_t middle = fits ? fits + (too_many - fits) / 2 : too_many > 1024 ? 256 : too_many / 2;
        double needed;
        TRY(bytes_of(s, cfg, middle, &needed));
        if (needed <= have)
            fits = middle;
        else
            too_many = middle;
    }
    *out = fits;
    return DDPM_OK;
}

/* ---- report ---- */

static void report_kernels(report *r, int64_t kernels)
{
    if (kernels < 0)
        report_text(r, "kernels", "unknown");
    else
        report_int(r, "kernels", kernels);
}

static ddpm_status report_step(const struct step *s, const ddpm_config *cfg, const char *name, report *r)
{
    int64_t fits;
    TRY(largest_batch(s, cfg, &fits));
    const int64_t workspace = (int64_t)(s->workspace_bytes + s->side_bytes);
    const int64_t total = s->memory_bytes + workspace + (int64_t)(s->tuning_bytes + s->staging_bytes);
    report_open(r, name);
    report_int(r, "batch", s->batch);
    report_kernels(r, s->kernels);
    report_int(r, "blocks_bytes", s->memory_bytes);
    report_int(r, "workspace_bytes", workspace);
    report_int(r, "tuning_bytes", (int64_t)s->tuning_bytes);
    report_int(r, "staging_bytes", (int64_t)s->staging_bytes);
    report_int(r, "total_bytes", total);
    report_bool(r, "fits", (double)total <= (double)s->gpu->memory_bytes - RESERVED_BYTES);
    report_int(r, "largest_batch", fits);
    report_real(r, "gflop", s->flops / 1e9);
    report_real(r, "moved_gbyte", s->bytes / 1e9);
    report_real(r, "predicted_ms", s->seconds * 1e3);
    report_real(r, "predicted_images_per_s", (double)s->batch / s->seconds);
    report_close(r);
    return DDPM_OK;
}

static void report_calls(const struct step *s, const char *table, report *r)
{
    for (int i = 0; i < s->n; i++) {
        const struct priced *p = &s->call[i];
        report_row(r, table);
        report_text(r, "op", "%s", p->call->name);
        report_text(r, "shape", "%s", p->call->shape);
        report_int(r, "calls", p->call->calls);
        report_kernels(r, p->kernels);
        report_real(r, "gflop", p->call->flops / 1e9);
        report_real(r, "moved_mbyte", p->call->bytes / 1e6);
        report_real(r, "predicted_ms", p->seconds * 1e3 * (double)p->call->calls);
        report_close(r);
    }
}

static const char *flags_of(const struct planning_engine *e)
{
    if (!e->is_found) return "no engine: own kernels";
    if (e->copies_tensor) return "copies a tensor";
    if (!e->is_built) return "compiled at run time";
    return e->is_deterministic ? "-" : "order of sums varies";
}

static void report_engines(const struct step *s, const char *table, report *r)
{
    for (int i = 0; i < s->n; i++)
        for (int k = 0; k < s->call[i].n_engines; k++) {
            const struct planning_engine *e = &s->call[i].engine[k];
            report_row(r, table);
            report_text(r, "op", "%s", s->call[i].call->name);
            report_text(r, "form", "%s", e->form);
            report_text(r, "graph", "%s", e->graph);
            report_int(r, "engine", e->is_found ? e->engine : -1);
            report_text(r, "kernel", "%s", e->is_built && *e->kernel ? e->kernel : "-");
            report_int(r, "workspace_bytes", (int64_t)e->workspace_bytes);
            report_text(r, "remark", "%s", flags_of(e));
            report_close(r);
        }
}

static void report_assumptions(const struct gpu_device *gpu, report *r)
{
    report_open(r, "assumed");
    report_real(r, "bf16_tflops", gpu->bf16_flops / 1e12);
    report_real(r, "f32_tflops", gpu->f32_flops / 1e12);
    report_real(r, "memory_gbyte_per_s", gpu->bytes_per_s / 1e9);
    report_real(r, "share_of_tensor_rating", TENSOR_SHARE);
    report_real(r, "share_of_f32_rating", F32_SHARE);
    report_real(r, "share_of_memory_rating", MEMORY_SHARE);
    report_real(r, "microseconds_per_kernel", KERNEL_S * 1e6);
    report_int(r, "reserved_bytes", (int64_t)RESERVED_BYTES);
    report_close(r);
}

static ddpm_status plan_step(struct step *s, const ddpm_config *cfg, int64_t batch, const char *name, report *r)
{
    TRY(note_step(s, cfg, batch));
    TRY(find_engines(s));
    TRY(note_sums(s, cfg));
    price_step(s);
    return report_step(s, cfg, name, r);
}

static ddpm_status plan_on(const struct plan_gpu_options *o, const ddpm_config *cfg, const struct gpu_device *gpu,
                           const struct planning_engines *engines, report *r)
{
    struct step train = {.o = o, .gpu = gpu, .engines = engines, .is_training = true};
    struct step sample = {.o = o, .gpu = gpu, .engines = engines};
    const int64_t micro = cfg->train.micro_batch ? cfg->train.micro_batch : cfg->train.batch;
    ddpm_status s = plan_step(&train, cfg, o->batch ? o->batch : micro, "gpu_train", r);
    if (!s) s = plan_step(&sample, cfg, o->batch ? o->batch : cfg->sample.batch, "gpu_sample", r);
    if (!s) {
        report_assumptions(gpu, r);
        report_calls(&train, "train_calls", r);
        report_engines(&train, "train_engines", r);
        report_engines(&sample, "sample_engines", r);
    }
    release_step(&train);
    release_step(&sample);
    return s;
}

ddpm_status plan_gpu(const struct plan_gpu_options *o, const ddpm_config *cfg, report *r)
{
    struct gpu_device gpu;
    struct planning_engines *engines = NULL;
    static const char *const precisions[] = {
        [DDPM_PRECISION_FP32] = "fp32", [DDPM_PRECISION_BF16] = "bf16", [DDPM_PRECISION_TF32] = "tf32"};
    const struct planning_engine_options wanted = {.is_deterministic = o->is_deterministic,
                                                   .uses_tf32 = o->precision == DDPM_PRECISION_TF32,
                                                   .compiles = o->compiles};
    TRY(gpu_device_find(o->gpu, &gpu));
    const char *cudnn = planning_cudnn_version();
    ddpm_status s = cudnn && !o->skips_engines ? planning_engines_create(gpu.json, &wanted, &engines) : DDPM_OK;
    if (!s) {
        report_text(r, "gpu", "%s", gpu.name);
        report_int(r, "gpu_memory_bytes", gpu.memory_bytes);
        report_text(r, "precision", "%s", precisions[o->precision]);
        report_text(r, "cudnn", "%s",
                    !cudnn    ? "not in this build: engines and workspaces are unknown"
                    : engines ? cudnn
                              : "not asked: own kernels are counted");
        s = plan_on(o, cfg, &gpu, engines, r);
    }
    planning_engines_free(engines);
    gpu_device_release(&gpu);
    return s;
}

ddpm_status plan_write_properties(const char *path)
{
    char *json = NULL;
    TRY(planning_gpu_properties(0, &json));
    FILE *f = fopen(path, "we");
    if (!f) {
        free(json);
        return FAIL_ERRNO("%s: %s", path, strerror(errno));
    }
    const bool is_written = fputs(json, f) >= 0 && fputc('\n', f) >= 0;
    free(json);
    if (fclose(f) || !is_written) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    return DDPM_OK;
}

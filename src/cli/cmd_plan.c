/* cmd_plan.c - `ddpm plan CONFIG`: what a configuration costs, before anything is paid.
 *
 * The network is built from its records and its builder run in measuring mode, as training and
 * sampling do at their start, so the bytes are those of a real run; nothing of that size is
 * allocated. */
#include "cli.h"
#include "plan_gpu.h"
#include "report.h"

#include "ddpm/model.h"
#include "fail.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct plan {
    const char *config, *device;
    cli_sets sets;
    int batch, threads; /* 0: as configured; all cores */
    bool is_json, lists_keys;
    struct plan_gpu_options gpu;  /* gpu.gpu NULL: this machine */
    const char *write_properties; /* or NULL */
};

enum {
    KEY_JSON = 256,
    KEY_SET,
    KEY_DEVICE,
    KEY_THREADS,
    KEY_KEYS,
    KEY_GPU,
    KEY_PRECISION,
    KEY_DETERMINISTIC,
    KEY_COMPILE,
    KEY_NO_ENGINES,
    KEY_PROPERTIES
};

static const struct argp_option options[] = {
    {"batch", 'b', "N", 0,
     "Images at a time (default: train.micro_batch or train.batch; sample.batch)", 0},
    {"set", KEY_SET, "KEY=VALUE", 0, "Override a configuration key; may be given again", 0},
    {"device", KEY_DEVICE, "NAME", 0, "cpu or cuda[:n], whose memory is counted (default: cpu)", 0},
    {"threads", KEY_THREADS, "N", 0, "CPU threads to count scratch for (default: all)", 0},
    {"gpu", KEY_GPU, "NAME|FILE", 0,
     "Also plan a step on a GPU that need not be there: a100, b200, h100, h200, or a file of properties", 0},
    {"precision", KEY_PRECISION, "P", 0, "With --gpu: fp32, tf32 or bf16 (default: train.precision)", 0},
    {"deterministic", KEY_DETERMINISTIC, NULL, 0, "With --gpu: engines that give the same bits on every run", 0},
    {"compile", KEY_COMPILE, NULL, 0,
     "With --gpu: build engines that are compiled at run time too, some seconds each, for kernel and workspace", 0},
    {"no-engines", KEY_NO_ENGINES, NULL, 0, "With --gpu: do not ask cuDNN, which takes up to a minute", 0},
    {"write-properties", KEY_PROPERTIES, "FILE", 0, "Write the properties of this machine's GPU for --gpu, and end", 0},
    {"json", KEY_JSON, NULL, 0, "Print JSON, with the names of the screen", 0},
    {"keys-markdown", KEY_KEYS, NULL, OPTION_HIDDEN, "Print the table of all configuration keys",
     0},
    {0}};

static int parse_precision(struct argp_state *state, const char *arg)
{
    if (strcmp(arg, "fp32") == 0) return DDPM_PRECISION_FP32;
    if (strcmp(arg, "bf16") == 0) return DDPM_PRECISION_BF16;
    if (strcmp(arg, "tf32") == 0) return DDPM_PRECISION_TF32;
    cli_usage_error(state, "--precision %s: fp32, tf32 or bf16", arg);
    return 0;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct plan *p = state->input;
    switch (key) {
    case 'b':
        p->batch = (int)cli_integer(state, "--batch", arg, 1, 65536);
        return 0;
    case KEY_SET:
        cli_sets_add(state, &p->sets, arg);
        return 0;
    case KEY_DEVICE:
        p->device = arg;
        return 0;
    case KEY_THREADS:
        p->threads = (int)cli_integer(state, "--threads", arg, 1, 4096);
        return 0;
    case KEY_JSON:
        p->is_json = true;
        return 0;
    case KEY_KEYS:
        p->lists_keys = true;
        return 0;
    case KEY_GPU:
        p->gpu.gpu = arg;
        return 0;
    case KEY_PRECISION:
        p->gpu.precision = parse_precision(state, arg);
        return 0;
    case KEY_DETERMINISTIC:
        p->gpu.is_deterministic = true;
        return 0;
    case KEY_COMPILE:
        p->gpu.compiles = true;
        return 0;
    case KEY_NO_ENGINES:
        p->gpu.skips_engines = true;
        return 0;
    case KEY_PROPERTIES:
        p->write_properties = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (p->config) return ARGP_ERR_UNKNOWN;
        p->config = arg;
        return 0;
    case ARGP_KEY_END:
        if (!p->config && !p->lists_keys && !p->write_properties) cli_usage_error(state, "no configuration file is given");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "CONFIG",
    .doc = "Parameters, multiply-adds and memory of a configuration, for training and for "
           "sampling, and a table "
           "of its layers. Needs no GPU and no data, and allocates nothing of the size it tells.\v"
           "Example:\n  ddpm plan configs/ddpm-cifar10.yaml --batch 64\n"
           "  ddpm plan configs/ddpm-cifar10.yaml --gpu h200 --precision bf16"};

/* '|' ends a cell of Markdown, also inside code. */
static void print_markdown(const char *text)
{
    for (; *text; text++)
        printf("%s%c", *text == '|' ? "\\" : "", *text);
}

/* The README's table, from the list that the parser of configurations uses. */
static void print_keys(void)
{
    puts("| Key | Default | Allowed | Meaning |\n|---|---|---|---|");
    for (int i = 0; i < ddpm_config_key_count(); i++) {
        const ddpm_config_key k = ddpm_config_key_at(i);
        printf("| `%s.%s` | %s%s%s | ", k.section, k.key, *k.default_text ? "`" : "",
               k.default_text, *k.default_text ? "`" : "");
        print_markdown(k.allowed);
        printf(" | ");
        print_markdown(k.help);
        printf(" |\n");
    }
}

static void report_layers(report *r, const ddpm_model *model)
{
    for (int i = 0; i < ddpm_model_layer_count(model); i++) {
        ddpm_layer_report layer;
        char size[64];
        ddpm_model_layer(model, i, &layer);
        snprintf(size, sizeof size, "%lldx%lldx%lld", (long long)layer.height,
                 (long long)layer.width, (long long)layer.channels);
        report_row(r, "layers");
        report_text(r, "name", "%s", layer.name);
        report_text(r, "kind", "%s", layer.kind);
        report_text(r, "output", "%s", size);
        report_int(r, "parameters", layer.parameters);
        report_real(r, "mmac", layer.macs / 1e6);
        report_int(r, "saved_bytes", layer.saved_bytes);
        report_close(r);
    }
}

/* Each phase is measured on a backend of its own: scratch is the most that any op of that phase
 * asks for. */
static ddpm_status measure_phase(const struct plan *p, const ddpm_config *cfg, int64_t batch,
                                 bool is_training, ddpm_model_memory *memory)
{
    ddpm_backend *be = NULL;
    ddpm_model *model = NULL;
    REQUIRE(batch <= INT_MAX, CONFIG, "a batch of %lld images is more than can be counted",
            (long long)batch);
    ddpm_status s = ddpm_backend_create(p->device, p->threads, &be);
    if (!s) s = ddpm_model_create(be, &cfg->model, &model);
    if (!s) s = ddpm_model_measure(model, (int)batch, is_training, memory);
    ddpm_model_free(model);
    ddpm_backend_free(be);
    return s;
}

/* `resident` is what lies in memory beside the step: weights alone, or with all that training adds.
 */
static ddpm_status report_phase(const struct plan *p, const ddpm_config *cfg, report *r,
                                double macs, int64_t batch, bool is_training, size_t resident)
{
    ddpm_model_memory memory;
    TRY(measure_phase(p, cfg, batch, is_training, &memory));
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const size_t total = resident + memory.activation_bytes + memory.scratch_bytes;
    report_open(r, is_training ? "train" : "sample");
    report_int(r, "batch", batch);
    report_int(r, "resident_bytes", (int64_t)resident);
    report_int(r, "activations_bytes", (int64_t)memory.activation_bytes);
    report_int(r, "scratch_bytes", (int64_t)memory.scratch_bytes);
    report_int(r, "total_bytes", (int64_t)total);
    report_bool(r, "fits_this_machine", pages > 0 && total <= (size_t)pages * (size_t)page);
    report_real(r, "gmac_per_step", macs * (double)batch * (is_training ? 3 : 1) / 1e9);
    report_close(r);
    return DDPM_OK;
}

static ddpm_status report_gpu(const struct plan *p, const ddpm_config *cfg, report *r)
{
    struct plan_gpu_options o = p->gpu;
    o.batch = p->batch;
    if (o.precision < 0) o.precision = cfg->train.precision;
    return plan_gpu(&o, cfg, r);
}

static ddpm_status report_plan(const struct plan *p, const ddpm_config *cfg, ddpm_model *model,
                               report *r)
{
    const ddpm_model_config *m = &cfg->model;
    const size_t flat = (size_t)ddpm_model_arena_count(model) * sizeof(float);
    const size_t n_ema = (size_t)cfg->train.ema.n;
    const int64_t micro = cfg->train.micro_batch ? cfg->train.micro_batch : cfg->train.batch;

    report_text(r, "configuration", "%s", p->config);
    report_text(r, "image", "%lldx%lldx%lld", (long long)m->image_height, (long long)m->image_width,
                (long long)m->image_channels);
    report_int(r, "parameters", ddpm_model_parameter_total(model));
    report_int(r, "parameter_tensors", ddpm_model_parameter_count(model));
    report_real(r, "gmac_per_image", ddpm_model_macs(model) / 1e9);
    report_int(r, "weights_bytes", (int64_t)flat);
    report_int(r, "gradients_bytes", (int64_t)flat);
    report_int(r, "moments_bytes", (int64_t)(2 * flat));
    report_int(r, "ema_bytes", (int64_t)(n_ema * flat));
    /* a checkpoint holds weights, both moments and every EMA; its header is small beside them */
    report_int(r, "checkpoint_bytes",
               (int64_t)sizeof(float) * ddpm_model_parameter_total(model) * (3 + (int64_t)n_ema));
    const double macs = ddpm_model_macs(model);
    if (p->gpu.gpu) {
        TRY(report_gpu(p, cfg, r));
    } else {
        TRY(report_phase(p, cfg, r, macs, p->batch ? p->batch : micro, true, (4 + n_ema) * flat));
        TRY(report_phase(p, cfg, r, macs, p->batch ? p->batch : cfg->sample.batch, false, flat));
    }
    report_layers(r, model);
    return report_end(r);
}

static ddpm_status plan_run(const struct plan *p, ddpm_config *cfg, ddpm_backend **be,
                            ddpm_model **model, report *r)
{
    TRY(ddpm_config_load(p->config, p->sets.v, p->sets.n, cfg));
    TRY(ddpm_backend_create(p->device, p->threads, be));
    TRY(ddpm_model_create(*be, &cfg->model, model));
    TRY(report_plan(p, cfg, *model, r));
    if (p->is_json) return report_print_json(r);
    report_show(r, stdout);
    return DDPM_OK;
}

int cmd_plan(int argc, char **argv)
{
    struct plan p = {.device = "cpu", .gpu.precision = -1};
    cli_parse(&parser, argc, argv, &p);
    if (p.write_properties) {
        const ddpm_status s = plan_write_properties(p.write_properties);
        return s ? cli_fail("plan", s, NULL, NULL) : 0;
    }
    if (p.lists_keys) {
        print_keys();
        const ddpm_status s = cli_flush_output();
        return s ? cli_fail("plan", s, NULL, NULL) : 0;
    }

    ddpm_config cfg = {0};
    ddpm_backend *be = NULL;
    ddpm_model *model = NULL;
    report r;
    report_begin(&r);
    ddpm_status s = plan_run(&p, &cfg, &be, &model, &r);
    if (!s) s = cli_flush_output();
    ddpm_model_free(model);
    ddpm_backend_free(be);
    ddpm_config_free(&cfg);
    report_release(&r);
    return s ? cli_fail("plan", s, NULL, NULL) : 0;
}

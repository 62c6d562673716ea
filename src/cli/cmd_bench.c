/* cmd_bench.c - `ddpm bench train|sample|ops [CONFIG]`: figures of this machine; the benches are in
 * bench/. */
#include "bench.h"
#include "cli.h"

#include "fail.h"

#include <stdio.h>
#include <string.h>

struct bench {
    const char *what, *config, *json, *op;
    cli_device device;
    cli_sets sets;
    int batch, warmup, repeats, steps; /* warmup -1, others 0: default */
    bool profiles, is_quiet, is_bf16, skips_peak;
};

enum {
    KEY_SET = 256,
    KEY_WARMUP,
    KEY_REPEATS,
    KEY_STEPS,
    KEY_JSON,
    KEY_PROFILE,
    KEY_DTYPE,
    KEY_OP,
    KEY_NO_PEAK
};

enum { DEFAULT_BATCH = 8, DEFAULT_STEPS = 10 };

static const struct argp_option options[] = {
    {"batch", 'b', "N", 0, "Images at a time (default: the configuration's; 8 without one)", 0},
    {"repeats", KEY_REPEATS, "N", 0, "Repeats that are timed (default: train 10, sample 5, ops 20)",
     0},
    {"warmup", KEY_WARMUP, "N", 0, "Repeats before that (default: train 2, sample 1, ops 3)", 0},
    {"steps", KEY_STEPS, "N", 0, "sample: reverse steps of a run (default: 10)", 0},
    {"profile", KEY_PROFILE, NULL, 0, "train: also a table of time by op", 0},
    {"dtype", KEY_DTYPE, "f32|bf16", 0, "ops: the type of activations (default: f32)", 0},
    {"op", KEY_OP, "NAME", 0, "ops: this one alone (default: all)", 0},
    {"no-peak", KEY_NO_PEAK, NULL, 0,
     "Leave out the machine's own peaks, and with them the shares of them", 0},
    {"set", KEY_SET, "KEY=VALUE", 0, "Override a configuration key; may be given again", 0},
    CLI_DEVICE_OPTIONS(0),
    {"json", KEY_JSON, "FILE", 0,
     "Write the figures as JSON, with the names of the screen; - for standard output", 0},
    {"quiet", 'q', NULL, 0, "No progress", 0},
    {0}};

static error_t parse_argument(struct bench *b, char *arg, struct argp_state *state)
{
    static const char *const kinds[] = {"train", "sample", "ops"};
    if (b->config) return ARGP_ERR_UNKNOWN;
    if (b->what) {
        b->config = arg;
        return 0;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(arg, kinds[i]) == 0) b->what = kinds[i];
    if (!b->what)
        cli_usage_error(state,
                        "nothing is benched by the name \"%.40s\"; there are train, sample and ops",
                        arg);
    return 0;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case 'b':
        b->batch = (int)cli_integer(state, "--batch", arg, 1, 4096);
        return 0;
    case KEY_REPEATS:
        b->repeats = (int)cli_integer(state, "--repeats", arg, 1, 100000);
        return 0;
    case KEY_WARMUP:
        b->warmup = (int)cli_integer(state, "--warmup", arg, 0, 100000);
        return 0;
    case KEY_STEPS:
        b->steps = (int)cli_integer(state, "--steps", arg, 1, 100000);
        return 0;
    case KEY_SET:
        cli_sets_add(state, &b->sets, arg);
        return 0;
    case KEY_JSON:
        b->json = arg;
        return 0;
    case KEY_NO_PEAK:
        b->skips_peak = true;
        return 0;
    case KEY_OP:
        b->op = arg;
        return 0;
    case KEY_DTYPE:
        b->is_bf16 = strcmp(arg, "bf16") == 0;
        if (!b->is_bf16 && strcmp(arg, "f32") != 0)
            cli_usage_error(state, "--dtype %.40s: must be f32 or bf16", arg);
        return 0;
    case KEY_PROFILE:
        b->profiles = true;
        return 0;
    case 'q':
        b->is_quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        return parse_argument(b, arg, state);
    case ARGP_KEY_END:
        if (!b->what) cli_usage_error(state, "what to bench is not given: train, sample or ops");
        if (b->config && strcmp(b->what, "ops") == 0)
            cli_usage_error(state, "bench ops takes no configuration");
        return 0;
    default:
        return cli_device_parse(&b->device, key, arg, state) ? 0 : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "train|sample|ops [CONFIG]",
    .doc = "How fast this machine is: training steps, reverse steps, or each op by itself, on "
           "synthetic data. Rates are by "
           "the median of the repeats; the share of peak is against the largest matrix product "
           "measured here. Without "
           "CONFIG the U-Net of configs/ddpm-cifar10.yaml.\v"
           "Example:\n  ddpm bench train configs/ddpm-cifar10.yaml --batch 8 --json train.json"};

/* The bench's own settings come first, so that a --set of the user's wins. */
static ddpm_status load_config(const struct bench *b, ddpm_config *cfg)
{
    char batch[2][32], micro[] = "train.micro_batch=0", spacing[40];
    const char *set[CLI_SET_MAX + 4];
    int n = 0;
    const int images = b->batch ? b->batch : b->config ? 0 : DEFAULT_BATCH;
    snprintf(batch[0], sizeof batch[0], "train.batch=%d", images);
    snprintf(batch[1], sizeof batch[1], "sample.batch=%d", images);
    snprintf(spacing, sizeof spacing, "sample.spacing=%d", b->steps ? b->steps : DEFAULT_STEPS);
    if (images) {
        set[n++] = batch[0];
        set[n++] = micro;
        set[n++] = batch[1];
    }
    set[n++] = spacing;
    memcpy(set + n, b->sets.v, (size_t)b->sets.n * sizeof *set);
    n += b->sets.n;
    if (b->config) return ddpm_config_load(b->config, set, n, cfg);
    return ddpm_config_parse("{}\n", 3, "built-in defaults", set, n, cfg);
}

static ddpm_status run_bench(const struct bench *b, report *r)
{
    static const struct {
        const char *name;
        ddpm_status (*run)(bench_job *job);
        int warmup, repeats;
    } kinds[] = {
        {"train", bench_train, 2, 10}, {"sample", bench_sample, 1, 5}, {"ops", bench_ops, 3, 20}};
    size_t k = 0;
    while (strcmp(kinds[k].name, b->what) != 0)
        k++;
    bench_job job = {.device = b->device.name,
                     .configuration = b->config ? b->config : "built-in defaults",
                     .threads = b->device.threads,
                     .options = b->device.options,
                     .warmup = b->warmup >= 0 ? b->warmup : kinds[k].warmup,
                     .repeats = b->repeats ? b->repeats : kinds[k].repeats,
                     .batch = b->batch,
                     .profiles = b->profiles,
                     .is_bf16 = b->is_bf16,
                     .only_op = b->op,
                     .skips_peak = b->skips_peak,
                     .sink = cli_sink(b->is_quiet),
                     .stop = cli_stop_flag(),
                     .r = r};
    commit *file;
    TRY(report_open_file(b->json, &file));
    ddpm_status s = load_config(b, &job.cfg);
    if (!s) s = kinds[k].run(&job);
    ddpm_config_free(&job.cfg);
    return report_finish(r, s, b->json, file);
}

int cmd_bench(int argc, char **argv)
{
    struct bench b = {.warmup = -1};
    cli_parse(&parser, argc, argv, &b);
    report r;
    report_begin(&r);
    ddpm_status s = run_bench(&b, &r);
    if (!s) s = cli_flush_output();
    report_release(&r);
    return s ? cli_fail("bench", s, s == DDPM_STOPPED ? "Nothing was kept" : NULL, NULL) : 0;
}

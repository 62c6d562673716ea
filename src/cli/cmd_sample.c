/* cmd_sample.c - `ddpm sample CHECKPOINT|RUN -n N -o DIR`. */
#include "cli.h"
#include "report.h"

#include "ddpm/sample.h"

#include "fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sample {
    ddpm_sample_job job;
    const char *json;
    cli_device device;
    cli_sets sets;
    char eta[64], sampler[64], batch[64]; /* these options as --set strings */
    bool is_quiet;
};

enum {
    KEY_SEED = 256,
    KEY_SHARD,
    KEY_STEPS,
    KEY_ETA,
    KEY_SAMPLER,
    KEY_SET,
    KEY_EMA,
    KEY_LABEL,
    KEY_NO_GRID,
    KEY_NO_ANIMATION,
    KEY_JSON
};

static const struct argp_option options[] = {
    {NULL, 'n', "N", 0, "Images in all (required)", 1},
    {"output", 'o', "DIR", 0, "Folder of the samples, made (required)", 1},
    {"seed", KEY_SEED, "N", 0, "Of the noise: image i depends on checkpoint, seed and i alone (default: 0)", 1},
    {"label", KEY_LABEL, "K", 0, "Class of every image (default: drawn for each by the seed)", 1},
    {"ema", KEY_EMA, "K|raw", 0, "Which averaged weights, or the raw ones (default: 0, the first)", 1},
    {"sampler", KEY_SAMPLER, "NAME", 0, "ancestral or ddim (default: the configuration's)", 2},
    {"steps", KEY_STEPS, "N", 0,
     "Reverse steps, spread evenly and the last one included (default: the configuration's spacing)", 2},
    {"eta", KEY_ETA, "X", 0, "DDIM: 0 deterministic, 1 ancestral noise (default: the configuration's)", 2},
    {"set", KEY_SET, "KEY=VALUE", 0, "Override a key of `sample`; may be given again", 2},
    {"shard", KEY_SHARD, "K/N", 0, "Draw shard K (from 0) of N only; `ddpm merge` joins them (default: all)", 3},
    {"batch", 'b', "N", 0, "Images at a time; changes no image (default: the configuration's)", 3},
    {"no-grid", KEY_NO_GRID, NULL, 0, "No grid.png and no animation (default: of 64 images)", 3},
    {"no-animation", KEY_NO_ANIMATION, NULL, 0, "No animation.webp", 3},
    CLI_DEVICE_OPTIONS(4),
    {"json", KEY_JSON, "FILE", 0, "Write the figures as JSON, with the names of the screen; - for standard output", 4},
    {"quiet", 'q', NULL, 0, "No progress", 4},
    {0}};

static void parse_shard(struct sample *p, const char *arg, struct argp_state *state)
{
    int k, n, used = 0;
    if (sscanf(arg, "%5d/%5d%n", &k, &n, &used) != 2 || arg[used] || k < 0 || n < 1 || k >= n)
        cli_usage_error(state, "--shard is \"%.40s\"; it takes K/N, K from 0 to N-1, as 0/8", arg);
    p->job.shard = k;
    p->job.shards = n;
}

/* A seed is any 64-bit number. */
static uint64_t parse_seed(const char *arg, struct argp_state *state)
{
    char *end;
    errno = 0;
    const unsigned long long v = strtoull(arg, &end, 10);
    if (errno || end == arg || *end || *arg < '0' || *arg > '9')
        cli_usage_error(state, "--seed is \"%.40s\"; it takes a whole number from 0 to 18446744073709551615", arg);
    return v;
}

static void set_text(struct sample *p, char dst[64], const char *key, const char *arg, struct argp_state *state)
{
    if (snprintf(dst, 64, "sample.%s=%s", key, arg) >= 64)
        cli_usage_error(state, "the value of --%s is too long: \"%.40s\"", key, arg);
    cli_sets_add(state, &p->sets, dst);
}

static error_t parse_sampling(struct sample *p, int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case KEY_SAMPLER:
        set_text(p, p->sampler, "sampler", arg, state);
        return 0;
    case KEY_ETA:
        set_text(p, p->eta, "eta", arg, state);
        return 0;
    case 'b':
        set_text(p, p->batch, "batch", arg, state);
        return 0;
    case KEY_SET:
        cli_sets_add(state, &p->sets, arg);
        return 0;
    case KEY_STEPS:
        p->job.steps = (int)cli_integer(state, "--steps", arg, 1, 100000);
        return 0;
    case KEY_EMA:
        p->job.ema = strcmp(arg, "raw") == 0 ? -1 : (int)cli_integer(state, "--ema", arg, 0, 3);
        return 0;
    case KEY_LABEL:
        p->job.label = cli_integer(state, "--label", arg, 0, 999999);
        return 0;
    case KEY_NO_GRID:
        p->job.grid = 0;
        return 0;
    case KEY_NO_ANIMATION:
        p->job.animation = false;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct sample *p = state->input;
    switch (key) {
    case 'n':
        p->job.n = cli_integer(state, "-n", arg, 1, INT64_C(1) << 40);
        return 0;
    case 'o':
        p->job.output = arg;
        return 0;
    case KEY_SEED:
        p->job.seed = parse_seed(arg, state);
        return 0;
    case KEY_SHARD:
        parse_shard(p, arg, state);
        return 0;
    case KEY_JSON:
        p->json = arg;
        return 0;
    case 'q':
        p->is_quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        if (p->job.checkpoint) return ARGP_ERR_UNKNOWN;
        p->job.checkpoint = arg;
        return 0;
    case ARGP_KEY_END:
        if (!p->job.checkpoint) cli_usage_error(state, "no checkpoint or run folder is given");
        if (p->job.n == 0) cli_usage_error(state, "how many images is not given: -n N");
        if (!p->job.output) cli_usage_error(state, "no output folder is given: -o DIR");
        return 0;
    default:
        return cli_device_parse(&p->device, key, arg, state) ? 0 : parse_sampling(p, key, arg, state);
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "CHECKPOINT|RUN",
    .doc = "Draws images from a trained model into DIR: npz shards (arr_0 u8 [n,h,w,c], arr_1 labels of a conditional model, "
           "seeds), one npz of all, grid.png, animation.webp of the denoising, and job.yaml. Of a run folder the newest "
           "checkpoint that verifies is taken. Run again after a stop, it goes on; the result is the same to the byte. Image i "
           "is the same whatever -n, --shard, --batch and --threads are.\v"
           "Example:\n  ddpm sample runs/fashion -n 64 -o samples --seed 1 --sampler ddim --steps 50"};

static void fill_report(report *r, const ddpm_sample_report *done)
{
    report_int(r, "sampled", done->sampled);
    report_int(r, "skipped", done->skipped);
    report_int(r, "steps", done->steps);
    report_real(r, "seconds", done->seconds);
    if (done->sampled > 0) report_real(r, "images_per_s", (double)done->sampled / done->seconds);
    report_text(r, "npz", "%s", done->npz);
    if (done->grid) report_text(r, "grid", "%s", done->grid);
    if (done->animation) report_text(r, "animation", "%s", done->animation);
}

static ddpm_status run(struct sample *p, report *r)
{
    ddpm_backend *be;
    ddpm_sample_report done = {0};
    p->job.set = p->sets.v;
    p->job.n_set = p->sets.n;
    p->job.sink = cli_sink(p->is_quiet);
    p->job.stop = cli_stop_flag();
    TRY(cli_device_create(&p->device, &be));
    ddpm_status s = ddpm_sample_run(be, &p->job, &done);
    if (!s) fill_report(r, &done);
    ddpm_sample_report_free(&done);
    ddpm_backend_free(be);
    commit *file = NULL;
    if (!s) s = report_open_file(p->json, &file); /* now: it may lie in the folder of the samples, which was made meanwhile */
    return report_finish(r, s, p->json, file);
}

int cmd_sample(int argc, char **argv)
{
    struct sample p = {.job = {.label = -1, .grid = -1, .animation = true}};
    cli_parse(&parser, argc, argv, &p);
    report r;
    report_begin(&r);
    ddpm_status s = run(&p, &r);
    report_release(&r);
    if (!s) s = cli_flush_output();
    if (!s) return 0;
    const char *safe = s == DDPM_STOPPED || s == DDPM_NUMERIC ? "The shards already committed are intact" : NULL;
    const char *next = s == DDPM_NUMERIC ? "Sample an earlier checkpoint, or other weights with --ema" : NULL;
    return cli_fail("sample", s, safe, next);
}

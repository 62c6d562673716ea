/* cmd_train.c - `ddpm train CONFIG --run DIR`: a configuration to checkpoints; the same line again
 * goes on. */
#include "cli.h"
#include "report.h"

#include "ddpm/train.h"
#include "fail.h"
#include "text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct train {
    const char *config, *dir;
    cli_device device;
    cli_sets sets;
    int64_t max_steps;
    double max_seconds;
    bool overfits, overrides, is_quiet, is_json;
};

enum {
    KEY_RUN = 256,
    KEY_SET,
    KEY_STEPS,
    KEY_TIME,
    KEY_OVERFIT,
    KEY_OVERRIDE,
    KEY_JSON
};

static const struct argp_option options[] = {
    {"run", KEY_RUN, "DIR", 0,
     "The run folder: checkpoints, metrics, previews; made where it is missing", 0},
    {"set", KEY_SET, "KEY=VALUE", 0, "Override a configuration key; may be given again", 0},
    {"max-steps", KEY_STEPS, "N", 0,
     "End at step N in all; schedules stay those of train.steps (default: train.steps)", 0},
    {"max-time", KEY_TIME, "TIME", 0,
     "Save and stop with exit code 75 after this time: 90s, 10m, 2h; a bare number is seconds "
     "(default: none)",
     0},
    {"overfit", KEY_OVERFIT, NULL, 0,
     "Train on the first batch alone, with one draw of noise: the loss must fall to nearly nothing",
     0},
    {"override", KEY_OVERRIDE, NULL, 0,
     "Go on though keys differ from those that the run was started with", 0},
    CLI_DEVICE_OPTIONS(0),
    {"quiet", 'q', NULL, 0, "No progress", 0},
    {"json", KEY_JSON, NULL, 0, "Print the figures of the run as JSON", 0},
    {0}};

/* "90", "90s", "1.5h" in seconds. */
static double parse_time(struct argp_state *state, const char *text)
{
    static const char units[] = "smh";
    char number[NUMBER_SIZE];
    const size_t n = strlen(text);
    const char *unit = n ? strchr(units, text[n - 1]) : NULL;
    double value = 0;
    snprintf(number, sizeof number, "%.*s", (int)(unit ? n - 1 : n), text);
    if (n >= sizeof number || !number_read(number, &value) || !isfinite(value) || value <= 0)
        cli_usage_error(state, "--max-time is \"%.40s\"; it takes a time as 90s, 10m or 2h", text);
    return value * (unit && *unit == 'm' ? 60 : unit && *unit == 'h' ? 3600 : 1);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct train *t = state->input;
    switch (key) {
    case KEY_RUN:
        t->dir = arg;
        return 0;
    case KEY_SET:
        cli_sets_add(state, &t->sets, arg);
        return 0;
    case KEY_STEPS:
        t->max_steps = cli_integer(state, "--max-steps", arg, 1, 1000000000);
        return 0;
    case KEY_TIME:
        t->max_seconds = parse_time(state, arg);
        return 0;
    case KEY_OVERFIT:
        t->overfits = true;
        return 0;
    case KEY_OVERRIDE:
        t->overrides = true;
        return 0;
    case 'q':
        t->is_quiet = true;
        return 0;
    case KEY_JSON:
        t->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (t->config) return ARGP_ERR_UNKNOWN;
        t->config = arg;
        return 0;
    case ARGP_KEY_END:
        if (!t->dir) cli_usage_error(state, "no run folder is given: --run DIR");
        return 0;
    default:
        return cli_device_parse(&t->device, key, arg, state) ? 0 : ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "[CONFIG]",
    .doc = "Trains a configuration in a run folder. Run again it goes on from the newest "
           "checkpoint that verifies, "
           "to the same bits as without a stop. Without CONFIG the run folder's own config.yaml is "
           "used. SIGINT, "
           "SIGTERM and SIGUSR1 save and end with exit code 75.\v"
           "Examples:\n  ddpm train configs/fashion-mnist.yaml --run runs/fashion\n"
           "  ddpm train --run runs/fashion --max-time 2h"};

/* The given file, or that of the run. */
static ddpm_status load_config(const struct train *t, ddpm_config *cfg)
{
    if (t->config) return ddpm_config_load(t->config, t->sets.v, t->sets.n, cfg);
    const size_t size = strlen(t->dir) + sizeof "/config.yaml";
    char *path = malloc(size);
    REQUIRE(path, NOMEM, "%s: no memory for its name", t->dir);
    snprintf(path, size, "%s/config.yaml", t->dir);
    struct stat st;
    ddpm_status s = DDPM_OK;
    if (stat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR))
        s = FAIL(NOINPUT,
                 "%s: there is no run here to go on with; give a configuration file: ddpm train "
                 "CONFIG --run %s",
                 path, t->dir);
    else
        s = ddpm_config_load(path, t->sets.v, t->sets.n, cfg);
    free(path);
    return s;
}

static ddpm_status print_json(const struct train *t, const ddpm_run_report *done)
{
    report r;
    report_begin(&r);
    report_text(&r, "run", "%s", t->dir);
    report_int(&r, "first_step", done->first_step);
    report_int(&r, "last_step", done->last_step);
    report_real(&r, "loss", done->loss);
    report_real(&r, "images_per_s", done->images_per_second);
    report_real(&r, "time_to_first_step_s", done->seconds_to_first_step);
    report_text(&r, "checkpoint", "%s", done->checkpoint ? done->checkpoint : "");
    ddpm_status s = report_end(&r);
    if (!s) s = report_print_json(&r);
    report_release(&r);
    return s;
}

/* Where the run is and how to sample from it. Names are escaped for the terminal. */
static void print_end(const struct train *t, const ddpm_run_report *done)
{
    char dir[1024];
    text_escape(dir, sizeof dir, t->dir, strlen(t->dir));
    printf("%s is at step %" PRId64, dir, done->last_step);
    if (isfinite(done->loss)) printf(", loss %.4f", done->loss);
    if (done->images_per_second > 0) printf(", %.3g images/s", done->images_per_second);
    const char *quote = strpbrk(dir, " '\"\\$&;()*?") ? "\"" : "";
    printf(". Sample from it: ddpm sample %s%s%s -n 64 -o samples\n", quote, dir, quote);
}

static ddpm_status run(const struct train *t, ddpm_config *cfg, ddpm_backend **be,
                       ddpm_run_report *done)
{
    const ddpm_run_options o = {.dir = t->dir,
                                .max_steps = t->max_steps,
                                .max_seconds = t->max_seconds,
                                .overfit = t->overfits,
                                .override_config = t->overrides,
                                .sink = cli_sink(t->is_quiet),
                                .stop = cli_stop_flag()};
    TRY(load_config(t, cfg));
    TRY(cli_device_create(&t->device, be));
    TRY(ddpm_train_run(*be, cfg, &o, done));
    if (t->is_json)
        TRY(print_json(t, done));
    else
        print_end(t, done);
    return cli_flush_output();
}

/* What is safe after a failure: the newest checkpoint by name. */
static int end_badly(ddpm_status s, const ddpm_run_report *done)
{
    char safe[1200];
    if (!done->checkpoint) return cli_fail("train", s, NULL, NULL);
    snprintf(safe, sizeof safe, "The newest checkpoint is %.1000s.", done->checkpoint);
    return cli_fail("train", s, safe, NULL);
}

int cmd_train(int argc, char **argv)
{
    struct train t = {0};
    ddpm_config cfg = {0};
    ddpm_backend *be = NULL;
    ddpm_run_report done = {0};
    cli_parse(&parser, argc, argv, &t);
    const ddpm_status s = run(&t, &cfg, &be, &done);
    const int code = s ? end_badly(s, &done) : 0;
    ddpm_run_report_free(&done);
    ddpm_backend_free(be);
    ddpm_config_free(&cfg);
    return code;
}

/* cli.h - what the subcommands share. Only this folder prints and exits.
 *
 * main.c dispatches `ddpm WHAT ...` to cmd_WHAT(argc, argv) with argv[0] = "ddpm WHAT"; each
 * returns the exit code. Each command parses by argp with an `argp` of its own, help text with
 * defaults and an example. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "ddpm/backend.h"
#include "ddpm/status.h"
#include "progress.h"

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#define CLI_COMMANDS(X) X(pack) X(train) X(sample) X(merge) X(bench) X(plan) X(info)
#define X(name)         int cmd_##name(int argc, char **argv);
CLI_COMMANDS(X)
#undef X

/* A usage fault inside an argp parser: message, "see ddpm WHAT --help", exit 64. */
void cli_usage_error(struct argp_state *state, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), noreturn));
/* Parses and, on a fault, exits 64 in our one-line form: an unknown option names the nearest one, a
 * surplus argument is named. --help and --usage print to stdout and exit 0. */
void cli_parse(const struct argp *parser, int argc, char **argv, void *input);
/* The value of `option` as a whole number lo..hi, or a usage fault that says what is allowed. */
int64_t cli_integer(struct argp_state *state, const char *option, const char *text, int64_t lo,
                    int64_t hi);
/* --set section.key=value, collected; a usage fault without '=' or beyond CLI_SET_MAX. Borrows. */
enum { CLI_SET_MAX = 128 };
typedef struct {
    const char *v[CLI_SET_MAX];
    int n;
} cli_sets;
void cli_sets_add(struct argp_state *state, cli_sets *sets, const char *text);

/* --device, --threads, --deterministic, --no-graph: their lines of a command's options, and what they say. */
typedef struct {
    const char *name; /* borrowed; NULL: the GPU where there is one */
    int threads;      /* 0: all */
    ddpm_backend_options options;
} cli_device;
enum { CLI_KEY_DEVICE = 512, CLI_KEY_THREADS, CLI_KEY_DETERMINISTIC, CLI_KEY_NO_GRAPH };
/* clang-format off */
#define CLI_DEVICE_OPTIONS(group)                                                                                      \
    {"device", CLI_KEY_DEVICE, "NAME", 0,                                                                              \
     "cpu or cuda[:n] (default: the GPU where there is one, else the CPU)", group},                                    \
    {"threads", CLI_KEY_THREADS, "N", 0, "CPU threads (default: all)", group},                                         \
    {"deterministic", CLI_KEY_DETERMINISTIC, NULL, 0,                                                                  \
     "GPU: the same bits on every run on the same GPU and versions, at some cost in speed; a CPU always gives them",   \
     group},                                                                                                           \
    {"no-graph", CLI_KEY_NO_GRAPH, NULL, 0,                                                                            \
     "GPU: enqueue every call of a step by itself instead of as one recorded graph; the same bits, slower", group}
/* clang-format on */
/* Takes the option where it is one of these. */
bool cli_device_parse(cli_device *d, int key, char *arg, struct argp_state *state);
ddpm_status cli_device_create(const cli_device *d, ddpm_backend **out);

/* The name nearest to `word` (edit distance at most half its length); NULL when none is near. */
const char *cli_nearest(const char *word, const char *const *names, int n);

/* Sink for progress and log lines on stderr, set up for terminal, NO_COLOR and --quiet; never
 * blocks or dies on a closed stderr: a line that cannot be written at once is dropped and counted.
 */
const log_sink *cli_sink(bool quiet);

/* SIGINT, SIGTERM, SIGUSR1 set the flag; a second SIGINT or SIGTERM leaves at once with 75 (files
 * stay intact). SIGPIPE is ignored. */
const volatile int *cli_stop_flag(void);

/* The one line of a failure: "ddpm train: WHAT. WHERE/NUMBERS. What is safe. What to do next." and
 * the exit code. `safe` and `next` may be NULL: then by the status. `command`: "train" or "ddpm
 * train". */
int cli_fail(const char *command, ddpm_status s, const char *safe, const char *next);

/* First thing in main: descriptors 0..2 that are closed are filled, so that no file of ours can get
 * their number and be written over by a message. */
void cli_prepare_streams(void);
/* Last thing of a command that prints to stdout: flushes; IO when the text did not get out. A
 * reader that left early (| head) is no fault. */
ddpm_status cli_flush_output(void);

#endif

/* cmd_merge.c - `ddpm merge DIR -o FILE.npz`. */
#include "cli.h"

#include "ddpm/sample.h"

struct merge {
    const char *dir, *output;
    bool is_quiet;
};

static const struct argp_option options[] = {
    {"output", 'o', "FILE", 0, "The npz to write (required)", 0},
    {"quiet", 'q', NULL, 0, "Do not print the hash", 0},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct merge *m = state->input;
    switch (key) {
    case 'o':
        m->output = arg;
        return 0;
    case 'q':
        m->is_quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        if (m->dir) return ARGP_ERR_UNKNOWN;
        m->dir = arg;
        return 0;
    case ARGP_KEY_END:
        if (!m->dir) cli_usage_error(state, "no folder of shards is given");
        if (!m->output) cli_usage_error(state, "no output file is given: -o FILE");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "DIR",
    .doc = "Joins the shards of a sampling job to one npz and prints its XXH3-128. The bytes do not depend on how many shards "
           "there were. Shards that are missing, damaged or of another job are named.\v"
           "Example:\n  ddpm merge samples -o samples_50000x32x32x3.npz"};

int cmd_merge(int argc, char **argv)
{
    struct merge m = {0};
    cli_parse(&parser, argc, argv, &m);
    const ddpm_status s = ddpm_merge(m.dir, m.output, cli_sink(m.is_quiet));
    return s ? cli_fail("merge", s, NULL, NULL) : 0;
}

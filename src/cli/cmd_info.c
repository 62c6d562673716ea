/* cmd_info.c - `ddpm info FILE|DIR...`: what it is, what is in it, and whether it is whole. */
#include "cli.h"
#include "info.h"

#include "fail.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct info {
    const char *path;
    bool verifies, lists_tensors, is_json;
};

enum { KEY_VERIFY = 256, KEY_TENSORS, KEY_JSON };

static const struct argp_option options[] = {
    {"verify", KEY_VERIFY, NULL, 0,
     "Prove every hash and checksum it carries (default: structure alone)", 0},
    {"tensors", KEY_TENSORS, NULL, 0, "List the tensors of a safetensors file", 0},
    {"json", KEY_JSON, NULL, 0, "Print JSON, with the names of the screen", 0},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct info *in = state->input;
    switch (key) {
    case KEY_VERIFY:
        in->verifies = true;
        return 0;
    case KEY_TENSORS:
        in->lists_tensors = true;
        return 0;
    case KEY_JSON:
        in->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (in->path) return ARGP_ERR_UNKNOWN;
        in->path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!in->path) cli_usage_error(state, "no file or folder is given");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "FILE|DIR",
    .doc = "What a file or folder is: checkpoint, run, pack, samples, configuration, metrics, "
           "picture, idx, CIFAR, or "
           "safetensors and npz of other programs. It is only read.\v"
           "A file that is damaged or of no known kind ends with exit code 65.\n\n"
           "Example:\n  ddpm info --verify runs/photos"};

static ddpm_status info_run(const struct info *in, report *r)
{
    struct stat st;
    const info_job job = {.path = in->path,
                          .verifies = in->verifies,
                          .lists_tensors = in->lists_tensors,
                          .sink = cli_sink(false),
                          .r = r};
    if (stat(in->path, &st) != 0) return FAIL_ERRNO("%s: %s", in->path, strerror(errno));
    TRY(S_ISDIR(st.st_mode) ? info_folder(&job) : info_file(&job));
    TRY(report_end(r));
    if (in->is_json) return report_print_json(r);
    report_show(r, stdout);
    return DDPM_OK;
}

int cmd_info(int argc, char **argv)
{
    struct info in = {0};
    cli_parse(&parser, argc, argv, &in);
    report r;
    report_begin(&r);
    ddpm_status s = info_run(&in, &r);
    if (!s) s = cli_flush_output();
    report_release(&r);
    if (!s) return 0;
    return cli_fail("info", s, "It was only read",
                    s == DDPM_FORMAT
                        ? "If it should be whole, make it again or copy it from its source"
                        : NULL);
}

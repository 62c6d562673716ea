/* cmd_pack.c - `ddpm pack SOURCE... -o PACK`: image files to the one file that training reads. */
#include "cli.h"

#include "fail.h"
#include "pack.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pack {
    const char **sources; /* owned list of the arguments */
    int n_sources;
    const char *output;
    bool is_quiet;
    pack_options o;
};

enum {
    KEY_SIZE = 256,
    KEY_CHANNELS,
    KEY_FIT,
    KEY_LABELS,
    KEY_CSV,
    KEY_SKIP_BAD,
    KEY_THREADS,
    KEY_LIMIT,
    KEY_SHARD
};

static const struct argp_option options[] = {
    {"output", 'o', "PACK", 0,
     "The pack to write (required); a folder where it needs several shards", 0},
    {"size", KEY_SIZE, "HxW|N", 0,
     "Height and width of the pack's images (default: those of the first image)", 0},
    {"channels", KEY_CHANNELS, "1|3", 0,
     "Grey or RGB (default: as the first image); alpha is put on black", 0},
    {"fit", KEY_FIT, "HOW", 0,
     "What to do with images of another size: refuse, crop (reduce by box and bicubic until it "
     "covers, cut the "
     "middle), pad (reduce until it fits, black around it) (default: refuse)",
     0},
    {"labels", KEY_LABELS, "HOW", 0,
     "Where a folder's classes come from: none, folder (the first sub-folder), prefix (the name "
     "before the first '_'), "
     "csv (default: none; csv where --csv is given)",
     0},
    {"csv", KEY_CSV, "FILE", 0, "Lines \"file,label\", files as named below their folder", 0},
    {"skip-bad", KEY_SKIP_BAD, NULL, 0,
     "Leave damaged and foreign files out and go on (default: list them and fail)", 0},
    {"threads", KEY_THREADS, "N", 0, "Decoding processes (default: all cores)", 0},
    {"limit", KEY_LIMIT, "N", 0, "Take the first N images only (default: all)", 0},
    {"shard-mib", KEY_SHARD, "N", 0, "Largest size of one file of the pack (default: 2048)", 0},
    {"quiet", 'q', NULL, 0, "No progress", 0},
    {0}};

/* The place of `word` in a list, or a usage fault that names the list. */
static int choice(struct argp_state *state, const char *option, const char *word,
                  const char *const *names, int n)
{
    char all[128] = "";
    for (int i = 0; i < n; i++) {
        if (!strcmp(word, names[i])) return i;
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = cli_nearest(word, names, n);
    cli_usage_error(state, "%s: \"%s\" is none of %s%s%s%s", option, word, all,
                    near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

static void parse_size(struct argp_state *state, const char *text, pack_options *o)
{
    char side[16];
    const char *times = strchr(text, 'x');
    const size_t n = times ? (size_t)(times - text) : strlen(text);
    if (n >= sizeof side) cli_usage_error(state, "--size: \"%s\" is not HxW or N", text);
    memcpy(side, text, n);
    side[n] = 0;
    o->height = (int)cli_integer(state, "--size", side, 1, 16384);
    o->width = times ? (int)cli_integer(state, "--size", times + 1, 1, 16384) : o->height;
}

static void source_add(struct argp_state *state, struct pack *in, const char *path)
{
    const char **v = realloc(in->sources, ((size_t)in->n_sources + 1) * sizeof *v);
    if (!v) cli_usage_error(state, "no memory for %d sources", in->n_sources + 1);
    v[in->n_sources++] = path;
    in->sources = v;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    static const char *const fits[] = {"refuse", "crop", "pad"};
    static const char *const labels[] = {"none", "folder", "prefix", "csv"};
    struct pack *in = state->input;
    switch (key) {
    case 'o':
        in->output = arg;
        return 0;
    case 'q':
        in->is_quiet = true;
        return 0;
    case KEY_SIZE:
        parse_size(state, arg, &in->o);
        return 0;
    case KEY_CHANNELS:
        in->o.channels = (int)cli_integer(state, "--channels", arg, 1, 3);
        if (in->o.channels == 2) cli_usage_error(state, "--channels: 1 or 3");
        return 0;
    case KEY_FIT:
        in->o.fit = (enum pack_fit)choice(state, "--fit", arg, fits, 3);
        return 0;
    case KEY_LABELS:
        in->o.labels = (enum pack_labels)choice(state, "--labels", arg, labels, 4);
        return 0;
    case KEY_CSV:
        in->o.csv = arg;
        in->o.labels = PACK_LABELS_CSV;
        return 0;
    case KEY_SKIP_BAD:
        in->o.skip_bad = true;
        return 0;
    case KEY_THREADS:
        in->o.threads = (int)cli_integer(state, "--threads", arg, 0, 256);
        return 0;
    case KEY_LIMIT:
        in->o.limit = cli_integer(state, "--limit", arg, 0, INT64_MAX / 2);
        return 0;
    case KEY_SHARD:
        in->o.shard_bytes = (uint64_t)cli_integer(state, "--shard-mib", arg, 1, INT64_C(1) << 30)
                            << 20;
        return 0;
    case ARGP_KEY_ARG:
        source_add(state, in, arg);
        return 0;
    case ARGP_KEY_END:
        if (!in->n_sources) cli_usage_error(state, "no source is given");
        if (!in->output) cli_usage_error(state, "no output is given (-o PACK)");
        if (in->o.labels == PACK_LABELS_CSV && !in->o.csv)
            cli_usage_error(state, "--labels csv: which file? (--csv FILE)");
        if (in->o.csv && in->o.labels != PACK_LABELS_CSV)
            cli_usage_error(state, "--csv goes with --labels csv alone");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "SOURCE... -o PACK",
    .doc =
        "Makes a pack of images for training. A SOURCE is a folder of PNG and JPEG files, such a "
        "file, an idx file "
        "(.gz too; its labels file is found beside it), a CIFAR-10 or CIFAR-100 binary batch, or "
        "an npz with arr_0 and "
        "arr_1. Several sources of one kind are joined.\v"
        "Files are decoded in processes without access to files or network. What is damaged or no "
        "image is listed "
        "in PACK.rejected.txt and never used. Stopped and run again, it goes on where it was.\n\n"
        "Examples:\n"
        "  ddpm pack photos/ --size 64 --fit crop --labels folder -o photos.safetensors\n"
        "  ddpm pack train-images-idx3-ubyte.gz -o fashion.safetensors"};

static ddpm_status report_print(const pack_report *r, const char *output)
{
    char size[32], time[32], classes[48] = "";
    if (r->n_classes) snprintf(classes, sizeof classes, ", %d classes", r->n_classes);
    printf("%s: %" PRId64 " images %" PRId64 "x%" PRId64 "x%" PRId64
           "%s, %s, in %s (%.0f images/s)\n",
           output, r->packed, r->height, r->width, r->channels, classes,
           format_bytes(r->bytes, size, sizeof size), format_seconds(r->seconds, time, sizeof time),
           r->seconds > 0 ? (double)r->packed / r->seconds : 0);
    if (r->rejected)
        printf("%" PRId64 " files were left out; they are listed in %s.rejected.txt\n", r->rejected,
               output);
    return cli_flush_output();
}

int cmd_pack(int argc, char **argv)
{
    struct pack in = {0};
    pack_report report = {0};
    cli_parse(&parser, argc, argv, &in);
    ddpm_status s = pack_run(in.sources, in.n_sources, in.output, &in.o, cli_sink(in.is_quiet),
                             cli_stop_flag(), &report);
    if (!s) s = report_print(&report, in.output);
    free(in.sources);
    const char *next = s == DDPM_FORMAT ? "Repair or remove what is damaged and run again." : NULL;
    return s ? cli_fail("pack", s, "No pack was changed.", next) : 0;
}

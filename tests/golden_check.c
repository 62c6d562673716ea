/* golden_check.c - runs PyTorch's recorded cases through our ops, models, optimiser and samplers.
 *
 *   golden_check [--strict] [--quiet] [--device NAME] [--precision fp32|bf16] FILE...
 *
 * bf16 is of networks: their kinds are held to limits of that type (golden_limit), all others to their own as ever.
 *
 * Prints, per file, the error of every tensor beside its limit, and at the end a table by kind.
 * Exit 0 when all are inside, 1 when one is not, 65 when a file is broken, 64 for wrong usage. A
 * kind without a routine is reported as skipped, and fails with --strict. The files' form is
 * described in golden/README.md; each file carries its own limit. */
#include "golden_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *kind; /* a trailing slash matches all that begin so */
    golden_routine run;
} routines[] = {
    {"ops/resblock_diffusers", golden_resblock},
    {"ops/resblock_guided", golden_resblock},
    {"ops/attention_block_diffusers", golden_attention_block},
    {"ops/attention_block_guided", golden_attention_block},
    {"ops/", golden_op},
    {"unet/diffusers", golden_unet},
    {"train/adamw", golden_train},
    {"schedules", golden_schedules},
    {"math/q", golden_q},
    {"samplers/ddim", golden_sampler},
    {"samplers/ddpm", golden_sampler},
    {"samplers/model", golden_weights},
};

enum { KINDS_MAX = 64 };

/* One row of the final table. */
struct kind_row {
    char kind[48];
    int files, passed, skipped;
    double worst;
};

struct table {
    struct kind_row row[KINDS_MAX];
    int n;
};

static struct kind_row *table_row(struct table *t, const char *kind)
{
    for (int i = 0; i < t->n; i++)
        if (strncmp(t->row[i].kind, kind, sizeof t->row[i].kind - 1) == 0) return &t->row[i];
    if (t->n == KINDS_MAX) return &t->row[KINDS_MAX - 1];
    snprintf(t->row[t->n].kind, sizeof t->row[t->n].kind, "%s", kind);
    return &t->row[t->n++];
}

static void table_print(const struct table *t)
{
    int files = 0, passed = 0, skipped = 0;
    printf("\n%-36s %6s %7s %8s   %s\n", "kind", "files", "passed", "skipped",
           "worst relative error");
    for (int i = 0; i < t->n; i++) {
        const struct kind_row *r = &t->row[i];
        printf("%-36s %6d %7d %8d", r->kind, r->files, r->passed, r->skipped);
        if (r->files > r->skipped) printf("   %.2e", r->worst);
        printf("\n");
        files += r->files;
        passed += r->passed;
        skipped += r->skipped;
    }
    printf("%-36s %6d %7d %8d\n", "all", files, passed, skipped);
}

static golden_routine find_routine(const char *kind)
{
    for (size_t i = 0; i < sizeof routines / sizeof *routines; i++) {
        const char *k = routines[i].kind;
        const size_t n = strlen(k);
        if (k[n - 1] == '/' ? strncmp(kind, k, n) == 0 : strcmp(kind, k) == 0)
            return routines[i].run;
    }
    return NULL;
}

/* A metadata value as JSON; *out stays NULL when it is absent. */
static ddpm_status read_json(const golden *g, const char *key, json_t **out)
{
    const char *text = st_metadata(g->file, key);
    json_error_t error;
    if (!text) return DDPM_OK;
    *out = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    REQUIRE(*out, FORMAT, "%s: metadata %s: %s", g->path, key, error.text);
    return DDPM_OK;
}

static ddpm_status open_gradients(golden *g)
{
    const char *name = st_metadata(g->file, "gradients_in"), *slash = strrchr(g->path, '/');
    char *path;
    if (!name) return DDPM_OK;
    REQUIRE(!strchr(name, '/'), FORMAT, "%s: gradients_in \"%s\" is no plain file name", g->path,
            name);
    const size_t folder = slash ? (size_t)(slash - g->path) + 1 : 0;
    TRY(golden_host(g, folder + strlen(name) + 1, &path));
    memcpy(path, g->path, folder);
    strcpy(path + folder, name);
    return st_open(path, &g->gradients);
}

/* The file's header and metadata; *kind is borrowed from the file. */
static ddpm_status golden_open(golden *g, const char **kind)
{
    TRY(st_open(g->path, &g->file));
    *kind = st_metadata(g->file, "kind");
    REQUIRE(*kind, FORMAT, "%s: no golden file: metadata has no \"kind\"", g->path);
    const char *limit = st_metadata(g->file, "limit");
    char *end = NULL;
    g->limit = limit ? strtod(limit, &end) : 0;
    REQUIRE(limit && end != limit && *end == 0 && g->limit > 0 && isfinite(g->limit), FORMAT,
            "%s: metadata \"limit\" is %s", g->path, limit ? limit : "missing");
    TRY(read_json(g, "case", &g->setting));
    REQUIRE(json_is_object(g->setting), FORMAT, "%s: metadata \"case\" is no object", g->path);
    TRY(read_json(g, "structurally_zero_gradients", &g->zero));
    TRY(read_json(g, "ill_conditioned", &g->ill));
    return open_gradients(g);
}

static void golden_close(golden *g)
{
    golden_release(g);
    st_close(g->file);
    st_close(g->gradients);
    json_decref(g->setting);
    json_decref(g->zero);
    json_decref(g->ill);
}

static bool is_of_networks(const char *kind)
{
    return strncmp(kind, "unet/", 5) == 0 || strncmp(kind, "train/", 6) == 0 ||
           strncmp(kind, "samplers/d", 10) == 0;
}

struct options {
    bool strict, quiet;
    const char *device;
    int precision;
};

/* Exit code of one file. */
static int check_file(ddpm_backend *be, const char *path, const struct options *o, struct table *t)
{
    golden g = {.be = be,
                .ops = backend_ops(be),
                .path = path,
                .largest_gradient = -1,
                .enlarged = 1,
                .is_quiet = o->quiet};
    const char *kind = NULL;
    int code = 0;
    printf("%s\n", path);
    ddpm_status s = golden_open(&g, &kind);
    if (!s) {
        if (is_of_networks(kind)) g.precision = o->precision;
        struct kind_row *row = table_row(t, kind);
        const golden_routine run = find_routine(kind);
        row->files++;
        if (!run) {
            printf("  skipped: kind %s\n", kind);
            row->skipped++;
            code = o->strict;
        } else if (!(s = run(&g)) && g.compared == 0) {
            /* golden_op answers so for an op that has no routine */
            printf("  skipped: kind %s\n", kind);
            row->skipped++;
            code = o->strict;
        } else if (!s) {
            if (!(g.worst <= row->worst)) row->worst = g.worst;
            row->passed += g.failed == 0;
            code = g.failed != 0;
            printf("  %s: %d tensors, %d outside, worst relative error %.2e\n",
                   code ? "FAILED" : "passed", g.compared, g.failed, g.worst);
        }
    }
    if (s) {
        const char *message = ddpm_last_error();
        const bool names_it = strncmp(message, path, strlen(path)) == 0;
        fprintf(stderr, "golden_check: %s%s%s\n", names_it ? "" : path, names_it ? "" : ": ",
                message);
        /* shapes come from the file, so a shape that does not fit is the file's fault here */
        code = s == DDPM_SHAPE || s == DDPM_CONFIG || s == DDPM_NOINPUT ? 65
                                                                        : ddpm_status_exit_code(s);
    }
    golden_close(&g);
    return code;
}

int main(int argc, char **argv)
{
    struct options o = {.device = "cpu"};
    struct table t = {.n = 0};
    int at = 1;
    for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
        if (strcmp(argv[at], "--strict") == 0)
            o.strict = true;
        else if (strcmp(argv[at], "--quiet") == 0)
            o.quiet = true;
        else if (strcmp(argv[at], "--device") == 0 && at + 1 < argc)
            o.device = argv[++at];
        else if (strcmp(argv[at], "--precision") == 0 && at + 1 < argc &&
                 (strcmp(argv[at + 1], "bf16") == 0 || strcmp(argv[at + 1], "fp32") == 0))
            o.precision = strcmp(argv[++at], "bf16") == 0 ? DDPM_PRECISION_BF16 : DDPM_PRECISION_FP32;
        else
            break;
    }
    if (at >= argc || strncmp(argv[at], "--", 2) == 0) {
        fprintf(stderr, "usage: golden_check [--strict] [--quiet] [--device NAME] [--precision fp32|bf16] FILE...\n");
        return 64;
    }
    ddpm_backend *be;
    const ddpm_status s = ddpm_backend_create(o.device, 0, &be);
    if (s) {
        fprintf(stderr, "golden_check: %s\n", ddpm_last_error());
        return ddpm_status_exit_code(s);
    }
    /* plans chosen by order, not by time: an error is the same on every run */
    ddpm_backend_configure(be, &(ddpm_backend_options){.is_deterministic = true});
    int code = 0;
    for (; at < argc; at++) {
        const int c = check_file(be, argv[at], &o, &t);
        if (c > code) code = c; /* a broken file outweighs a wrong number */
    }
    table_print(&t);
    ddpm_backend_free(be);
    return code;
}

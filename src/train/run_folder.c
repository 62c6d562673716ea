/* run_folder.c - the folder of a run: made, locked, swept; and the configuration it was started
 * with.
 *
 * config.yaml is the resolved configuration of the first start. A later start must agree with it: a
 * resumed run with another learning rate is another experiment under the old name, so that takes a
 * word (--override), is logged and written down. Another network or noise schedule cannot go on
 * from these weights at all. Only keys that cannot change a bit of the result are free: where the
 * same pack lies, reading threads, memory for data. */
#include "run_folder.h"

#include "checkpoint.h"
#include "fail.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LONGEST_NAME = 96 };

const char *run_folder_path(struct run_folder *f, const char *name)
{
    snprintf(f->path, f->path_size, "%s/%s", f->dir, name);
    return f->path;
}

const char *run_folder_checkpoint(struct run_folder *f, int64_t step)
{
    char name[CHECKPOINT_NAME_BYTES], below[LONGEST_NAME];
    checkpoint_name(step, name);
    snprintf(below, sizeof below, "checkpoints/%s", name);
    return run_folder_path(f, below);
}

const char *run_folder_preview(struct run_folder *f, int64_t step)
{
    char below[LONGEST_NAME];
    snprintf(below, sizeof below, "previews/step-%08" PRId64 ".png", step);
    return run_folder_path(f, below);
}

ddpm_status run_folder_open(const char *dir, struct run_folder *out)
{
    static const char *const parts[] = {"", "checkpoints", "previews"};
    *out = (struct run_folder){.path_size = strlen(dir) + LONGEST_NAME + 2};
    out->dir = strdup(dir);
    out->path = malloc(out->path_size);
    REQUIRE(out->dir && out->path, NOMEM, "%s: no memory for its name", dir);
    TRY(make_folder(dir));
    TRY(lock_acquire(dir, &out->lock));
    for (int i = 0; i < 3; i++) {
        if (i) TRY(make_folder(run_folder_path(out, parts[i])));
        TRY(commit_sweep(run_folder_path(out, parts[i])));
    }
    return DDPM_OK;
}

void run_folder_release(struct run_folder *f)
{
    lock_release(f->lock);
    free(f->dir);
    free(f->path);
    *f = (struct run_folder){0};
}

/* ---- the configuration ---- */

static ddpm_status write_config(struct run_folder *f, const ddpm_config *cfg)
{
    char *text;
    TRY(ddpm_config_print(cfg, &text));
    const ddpm_status s = commit_bytes(run_folder_path(f, "config.yaml"), text, strlen(text));
    free(text);
    return s;
}

/* One line: "train.lr: 0.1 -> 0.2, train.batch: 8 -> 16". */
static void join_lines(char *diff)
{
    size_t n = strlen(diff);
    while (n && diff[n - 1] == '\n')
        diff[--n] = '\0';
    for (char *p = diff; (p = strchr(p, '\n')); p++)
        *p = ',';
}

static ddpm_status diff_line(const ddpm_config *then, const ddpm_config *now, const char *section,
                             char **out)
{
    TRY(ddpm_config_diff(then, now, section, out));
    join_lines(*out);
    return DDPM_OK;
}

/* The free keys of `then` as `now` has them. */
static ddpm_status free_keys(ddpm_config *then, const ddpm_config *now, bool *is_moved)
{
    const ddpm_data_config *d = &now->data;
    *is_moved = strcmp(then->data.pack, d->pack) != 0 || then->data.threads != d->threads ||
                then->data.memory_mib != d->memory_mib;
    char *pack = strdup(d->pack);
    REQUIRE(pack, NOMEM, "configuration: no memory for the name of the pack");
    free(then->data.pack);
    then->data.pack = pack;
    then->data.threads = d->threads;
    then->data.memory_mib = d->memory_mib;
    return DDPM_OK;
}

static ddpm_status require_section(const char *path, const ddpm_config *then,
                                   const ddpm_config *now, const char *section)
{
    char *diff;
    TRY(diff_line(then, now, section, &diff));
    ddpm_status s = DDPM_OK;
    if (*diff)
        s = FAIL(
            CONFIG,
            "%s was started with another %s: %s; put these keys back, or choose a new run folder",
            path, section, diff);
    free(diff);
    return s;
}

static ddpm_status compare(struct run_folder *f, ddpm_config *then, const ddpm_config *now,
                           bool is_new, bool may_differ, const log_sink *sink)
{
    const char *path = run_folder_path(f, "config.yaml");
    bool is_moved;
    char *diff;
    TRY(free_keys(then, now, &is_moved));
    if (!is_new) {
        TRY(require_section(path, then, now, "model"));
        TRY(require_section(path, then, now, "diffusion"));
    }
    TRY(diff_line(then, now, NULL, &diff));
    const bool differs = *diff != '\0';
    ddpm_status s = DDPM_OK;
    if (differs && !is_new && !may_differ)
        s = FAIL(CONFIG,
                 "%s was started with other keys: %s; put them back, go on all the same with "
                 "--override, or "
                 "choose a new run folder",
                 path, diff);
    else if (differs)
        log_line(sink, "configuration changed: %s", diff);
    free(diff);
    TRY(s);
    return differs || is_moved ? write_config(f, now) : DDPM_OK;
}

ddpm_status run_folder_settle(struct run_folder *f, const ddpm_config *cfg, bool is_new,
                              bool may_differ, const log_sink *sink)
{
    struct stat st;
    if (lstat(run_folder_path(f, "config.yaml"), &st) != 0 && errno == ENOENT)
        return write_config(f, cfg);
    ddpm_config then = {0};
    TRY(ddpm_config_load(f->path, NULL, 0, &then));
    const ddpm_status s = compare(f, &then, cfg, is_new, may_differ, sink);
    ddpm_config_free(&then);
    return s;
}

ddpm_status run_folder_settle_overfit(struct run_folder *f, bool is_new, bool overfit)
{
    static const char text[] = "This run trains on one batch (--overfit).\n";
    const char *path = run_folder_path(f, "overfit");
    const bool was = access(path, F_OK) == 0;
    if (was == overfit) return DDPM_OK;
    REQUIRE(is_new, CONFIG,
            "%s was started %s --overfit and cannot go on %s it; choose another run folder", f->dir,
            was ? "with" : "without", was ? "without" : "with");
    if (overfit) return commit_bytes(path, text, sizeof text - 1);
    if (unlink(path) != 0) return FAIL_ERRNO("%s: cannot be removed: %m", path);
    return DDPM_OK;
}

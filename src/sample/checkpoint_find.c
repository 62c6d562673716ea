/* checkpoint_find.c - which checkpoints a run folder has, which one to use, which ones to remove.
 *
 * The names alone give the order; there is no "latest" file or link that could be out of date. The newest is tried first
 * and must open, verify and say the step that its name says; else it is told and the one before is tried. Entries of any
 * other name (temporaries, copies, notes) are not ours and are left alone. */
#include "checkpoint.h"

#include "fail.h"
#include "progress.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int64_t *step; /* owned; newest first */
    int n, room;
} step_list;

void checkpoint_name(int64_t step, char dst[CHECKPOINT_NAME_BYTES])
{
    snprintf(dst, CHECKPOINT_NAME_BYTES, "step-%08" PRId64 ".safetensors", step);
}

/* The step of a checkpoint's file name; -1 for any other name. */
static int64_t step_of_name(const char *name)
{
    char again[CHECKPOINT_NAME_BYTES];
    long long step;
    if (sscanf(name, "step-%18lld.safetensors", &step) != 1 || step < 0) return -1;
    checkpoint_name(step, again);
    return strcmp(name, again) == 0 ? step : -1;
}

static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static ddpm_status list_add(step_list *l, int64_t step)
{
    if (l->n == l->room) {
        const int room = l->room ? l->room * 2 : 16;
        int64_t *bigger = realloc(l->step, (size_t)room * sizeof *bigger);
        REQUIRE(bigger, NOMEM, "list of %d checkpoints", room);
        l->step = bigger;
        l->room = room;
    }
    l->step[l->n++] = step;
    return DDPM_OK;
}

/* A folder that is not there holds none. The caller frees l->step in every case. */
static ddpm_status list_checkpoints(const char *dir, step_list *l)
{
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) return DDPM_OK;
    if (!d) return FAIL_ERRNO("%s: cannot be listed: %s", dir, strerror(errno));
    ddpm_status s = DDPM_OK;
    const struct dirent *e;
    while (!s && (errno = 0, e = readdir(d))) {
        const int64_t step = step_of_name(e->d_name);
        if (step >= 0) s = list_add(l, step);
    }
    if (!s && errno) s = FAIL_ERRNO("%s: cannot be listed: %s", dir, strerror(errno));
    closedir(d);
    if (!s && l->n) qsort(l->step, (size_t)l->n, sizeof *l->step, newest_first);
    return s;
}

/* DIR/checkpoints, or DIR/checkpoints/NAME; malloc'd. */
static char *join_path(const char *run_dir, const char *name)
{
    const size_t size = strlen(run_dir) + sizeof "/checkpoints/" + strlen(name);
    char *path = malloc(size);
    if (path) snprintf(path, size, "%s/checkpoints%s%s", run_dir, *name ? "/" : "", name);
    return path;
}

static ddpm_status try_one(const char *path, int64_t step)
{
    st_file *file = NULL;
    ddpm_config cfg = {0};
    checkpoint_counters counters;
    TRY(checkpoint_open(path, &file, &cfg, &counters));
    st_close(file);
    ddpm_config_free(&cfg);
    REQUIRE(counters.step == step, FORMAT, "%s: its name says step %" PRId64 ", its metadata step %" PRId64, path, step,
            counters.step);
    return DDPM_OK;
}

static ddpm_status choose_newest(const char *run_dir, const step_list *l, const struct log_sink *sink, char **path)
{
    for (int i = 0; i < l->n; i++) {
        char name[CHECKPOINT_NAME_BYTES];
        checkpoint_name(l->step[i], name);
        char *candidate = join_path(run_dir, name);
        REQUIRE(candidate, NOMEM, "%s: no memory for a path", run_dir);
        const ddpm_status s = try_one(candidate, l->step[i]);
        if (!s) {
            *path = candidate;
            return DDPM_OK;
        }
        free(candidate);
        if (s == DDPM_NOMEM) return s;
        log_line(sink, "checkpoint skipped: %s", ddpm_last_error());
    }
    if (l->n == 0) return DDPM_OK;
    return FAIL(FORMAT, "%s/checkpoints: none of its %d checkpoints can be used; the oldest fault: %.600s", run_dir, l->n,
                ddpm_last_error());
}

ddpm_status checkpoint_newest(const char *run_dir, const struct log_sink *sink, char **path)
{
    step_list l = {0};
    *path = NULL;
    char *dir = join_path(run_dir, "");
    REQUIRE(dir, NOMEM, "%s: no memory for a path", run_dir);
    ddpm_status s = list_checkpoints(dir, &l);
    if (!s) s = choose_newest(run_dir, &l, sink, path);
    free(l.step);
    free(dir);
    return s;
}

static ddpm_status remove_one(const char *run_dir, int64_t step)
{
    char name[CHECKPOINT_NAME_BYTES];
    checkpoint_name(step, name);
    char *path = join_path(run_dir, name);
    REQUIRE(path, NOMEM, "%s: no memory for a path", run_dir);
    ddpm_status s = DDPM_OK;
    if (unlink(path) != 0 && errno != ENOENT) s = FAIL_ERRNO("%s: cannot be removed: %s", path, strerror(errno));
    free(path);
    return s;
}

ddpm_status checkpoint_prune(const char *run_dir, int keep_last, int64_t keep_every, const char *protect)
{
    step_list l = {0};
    char *dir = join_path(run_dir, "");
    REQUIRE(dir, NOMEM, "%s: no memory for a path", run_dir);
    ddpm_status s = list_checkpoints(dir, &l);
    free(dir);
    const char *slash = protect ? strrchr(protect, '/') : NULL;
    const int64_t protected_step = protect ? step_of_name(slash ? slash + 1 : protect) : -1;

    for (int i = keep_last > 1 ? keep_last : 1; !s && i < l.n; i++) {
        const int64_t step = l.step[i];
        const bool stays = step == protected_step || (keep_every > 0 && step % keep_every == 0);
        if (!stays) s = remove_one(run_dir, step);
    }
    free(l.step);
    return s;
}

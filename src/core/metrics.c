/* metrics.c - metrics.jsonl, and the same figures to TensorBoard.
 *
 * A line is made in a fixed buffer and written in one call, so logging takes no memory while
 * training runs, and a line that the disk did not take whole is cut off again: every line in the
 * file parses. On resume the file is read once, line by line, with a JSON library, since another
 * program may have touched it; lines that do not parse (a machine that fell over may leave one) go
 * with those beyond the step. */
#include "metrics.h"

#include "commit.h"
#include "fail.h"
#include "tensorboard.h"
#include "text.h"

#include <jansson.h>

#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_VALUES = TENSORBOARD_MAX_SCALARS,
    NAME_SIZE = 48,
    LINE_SIZE = MAX_VALUES * (NAME_SIZE + 40)
};

struct metrics {
    int fd;
    off_t bytes; /* of whole lines in the file */
    int64_t n_dropped;
    tensorboard *board; /* NULL where not built in */
    int n;
    char names[MAX_VALUES][NAME_SIZE];
    double values[MAX_VALUES];
};

/* ---- resuming ---- */

/* Whether a line is one of ours, of a step up to `last`. */
static bool is_kept(const char *line, size_t bytes, int64_t last)
{
    json_t *object = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(object, "step");
    const bool keep = json_is_integer(step) && json_integer_value(step) <= last;
    json_decref(object);
    return keep;
}

/* Copies the lines to keep into a new file that takes the old one's place. */
static ddpm_status copy_lines(FILE *old, const char *path, int64_t last, bool *is_whole,
                              commit *file)
{
    ddpm_status s = DDPM_OK;
    char *line = NULL;
    size_t room = 0;
    *is_whole = true;
    for (ssize_t n; !s && (n = getline(&line, &room, old)) > 0;) {
        if (line[n - 1] == '\n' && is_kept(line, (size_t)n, last))
            s = commit_write(file, line, (size_t)n);
        else
            *is_whole = false;
    }
    if (!s && ferror(old)) s = FAIL(IO, "%s: cannot read: %m", path);
    free(line);
    return s;
}

static ddpm_status cut_lines(const char *path, int64_t last)
{
    commit *file = NULL;
    FILE *old = fopen(path, "re");
    if (!old && errno == ENOENT) return DDPM_OK;
    if (!old) return FAIL_ERRNO("%s: cannot open: %m", path);
    bool is_whole = true;
    ddpm_status s = commit_begin(path, 0, &file);
    if (!s) s = copy_lines(old, path, last, &is_whole, file);
    fclose(old);
    if (s || is_whole) {
        commit_abandon(file);
        return s;
    }
    return commit_finish(file, NULL, NULL);
}

static ddpm_status open_lines(metrics *m, const char *path, int64_t resume_step)
{
    TRY(cut_lines(path, resume_step));
    m->fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (m->fd < 0) return FAIL_ERRNO("%s: cannot open: %m", path);
    m->bytes = lseek(m->fd, 0, SEEK_END);
    if (m->bytes < 0) return FAIL_ERRNO("%s: cannot find its end: %m", path);
    return DDPM_OK;
}

ddpm_status metrics_open(const char *dir, int64_t resume_step, metrics **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    const size_t size = strlen(dir) + sizeof "/metrics.jsonl";
    char *path = malloc(size);
    metrics *m = calloc(1, sizeof *m);
    if (m) m->fd = -1;
    if (!path || !m) FAIL_GOTO(fail, NOMEM, "%s: %zu bytes for metrics", dir, sizeof *m);
    snprintf(path, size, "%s/metrics.jsonl", dir);

    TRY_GOTO(fail, open_lines(m, path, resume_step));
    TRY_GOTO(fail, tensorboard_open(dir, resume_step + 1, &m->board));
    free(path);
    *out = m;
    return DDPM_OK;
fail:
    free(path);
    metrics_close(m);
    return s;
}

void metrics_close(metrics *m)
{
    if (!m) return;
    if (m->fd >= 0) close(m->fd);
    tensorboard_close(m->board);
    free(m);
}

/* ---- writing ---- */

void metrics_put(metrics *m, const char *name, double value)
{
    if (m->n == MAX_VALUES) {
        m->n_dropped++;
        return;
    }
    /* Names come from our own code; whatever they hold, the line stays JSON. */
    char *dst = m->names[m->n];
    size_t used = 0;
    for (; *name && used < NAME_SIZE - 1; name++)
        dst[used++] = *name >= 0x20 && *name < 0x7F && *name != '"' && *name != '\\' ? *name : '_';
    dst[used] = '\0';
    m->values[m->n++] = value;
}

static size_t make_line(const metrics *m, int64_t step, char *line)
{
    size_t used = (size_t)sprintf(line, "{\"step\":%lld", (long long)step);
    for (int i = 0; i < m->n; i++) {
        char number[NUMBER_SIZE] = "null";
        if (isfinite(m->values[i])) number_print(m->values[i], number);
        used += (size_t)sprintf(line + used, ",\"%s\":%s", m->names[i], number);
    }
    memcpy(line + used, "}\n", 3);
    return used + 2;
}

void metrics_flush(metrics *m, int64_t step)
{
    char line[LINE_SIZE];
    const char *names[MAX_VALUES];
    const size_t bytes = make_line(m, step, line);
    ssize_t n;
    do
        n = pwrite(m->fd, line, bytes, m->bytes);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)bytes) {
        m->bytes += n;
    } else {
        (void)!ftruncate(m->fd, m->bytes);
        m->n_dropped++;
    }
    for (int i = 0; i < m->n; i++)
        names[i] = m->names[i];
    if (tensorboard_write(m->board, step, names, m->values, m->n) != 0) m->n_dropped++;
    m->n = 0;
}

int64_t metrics_dropped(const metrics *m)
{
    return m->n_dropped;
}

/* source.c - files, names and class lists, as every kind of source needs them. */
#include "source.h"

#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_NAMES_FILE = 1 << 20 };

ddpm_status name_list_add(name_list *l, const char *text, size_t bytes)
{
    if (l->n == l->room) {
        const size_t room = l->room ? 2 * l->room : 64;
        char **v = realloc(l->v, room * sizeof *v);
        REQUIRE(v, NOMEM, "%zu names", room);
        l->v = v;
        l->room = room;
    }
    char *copy = malloc(bytes + 1);
    REQUIRE(copy, NOMEM, "a name of %zu bytes", bytes);
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    l->v[l->n++] = copy;
    return DDPM_OK;
}

void name_list_release(name_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->v[i]);
    free(l->v);
    *l = (name_list){0};
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void name_list_unique(name_list *l)
{
    if (l->n == 0) return;
    qsort(l->v, l->n, sizeof *l->v, by_bytes);
    size_t n = 1;
    for (size_t i = 1; i < l->n; i++) {
        if (strcmp(l->v[i], l->v[n - 1]))
            l->v[n++] = l->v[i];
        else
            free(l->v[i]);
    }
    l->n = n;
}

int64_t name_list_find(const name_list *l, const char *text, size_t bytes)
{
    size_t low = 0, high = l->n;
    while (low < high) {
        const size_t mid = (low + high) / 2;
        int order = strncmp(l->v[mid], text, bytes);
        if (order == 0 && l->v[mid][bytes]) order = 1;
        if (order == 0) return (int64_t)mid;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

ddpm_status source_open_file(const char *path, int *fd, int64_t *bytes)
{
    const int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (opened < 0) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(opened, &st) || !S_ISREG(st.st_mode)) {
        close(opened);
        return FAIL(FORMAT, "%s: is not a regular file", path);
    }
    *fd = opened;
    *bytes = st.st_size;
    return DDPM_OK;
}

ddpm_status source_read_at(int fd, const char *path, int64_t at, void *dst, size_t bytes)
{
    unsigned char *p = dst;
    while (bytes) {
        const ssize_t n = pread(fd, p, bytes > 1 << 30 ? 1 << 30 : bytes, at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return FAIL_ERRNO("%s: %s", path, strerror(errno));
        REQUIRE(n > 0, FORMAT, "%s: was cut short while it was read", path);
        p += n;
        at += n;
        bytes -= (size_t)n;
    }
    return DDPM_OK;
}

ddpm_status source_number_classes(pack_source *out, int n)
{
    out->classes = calloc((size_t)n, sizeof *out->classes);
    REQUIRE(out->classes, NOMEM, "%d class names", n);
    out->n_classes = n;
    for (int i = 0; i < n; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        out->classes[i] = strdup(text);
        REQUIRE(out->classes[i], NOMEM, "%d class names", n);
    }
    return DDPM_OK;
}

static ddpm_status names_take(pack_source *out, const char *path, char *text, int n)
{
    out->classes = calloc((size_t)n, sizeof *out->classes);
    REQUIRE(out->classes, NOMEM, "%d class names", n);
    out->n_classes = n;
    int found = 0;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        line[strcspn(line, "\r")] = 0;
        if (!*line) continue;
        REQUIRE(found < n, FORMAT, "%s: more than %d class names", path, n);
        out->classes[found] = strdup(line);
        REQUIRE(out->classes[found], NOMEM, "%d class names", n);
        found++;
    }
    REQUIRE(found == n, FORMAT, "%s: %d class names, expected %d", path, found, n);
    return DDPM_OK;
}

ddpm_status source_named_classes(pack_source *out, const char *path, int n)
{
    int fd = -1;
    int64_t bytes = 0;
    if (access(path, F_OK)) return DDPM_OK;
    TRY(source_open_file(path, &fd, &bytes));
    ddpm_status s = DDPM_OK;
    char *text = bytes <= MAX_NAMES_FILE ? calloc(1, (size_t)bytes + 1) : NULL;
    if (bytes > MAX_NAMES_FILE)
        s = FAIL(FORMAT, "%s: too long for class names", path);
    else if (!text)
        s = FAIL(NOMEM, "%s: %lld bytes", path, (long long)bytes);
    if (!s) s = source_read_at(fd, path, 0, text, (size_t)bytes);
    if (!s) s = names_take(out, path, text, n);
    free(text);
    close(fd);
    return s;
}

void source_release(pack_source *s)
{
    for (int i = 0; s->classes && i < s->n_classes; i++)
        free(s->classes[i]);
    free(s->classes);
    free(s->labels);
    *s = (pack_source){0};
}

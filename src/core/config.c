/* config.c - the configuration's life: defaults, loading, overriding, printing, comparing (see
 * config.h).
 *
 * A load works on a private copy and hands it over at the end, so a failed one changes nothing. */
#include "config_items.h"

#include "fail.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE = 1 << 20 };

/* Sets a member from one text; lists are split at commas and may stand in brackets. */
static ddpm_status set_from_text(ddpm_config *c, const config_item *item, const char *value,
                                 const char *where)
{
    if (item->kind != CONFIG_INTS && item->kind != CONFIG_REALS)
        return config_set_value(c, item, &value, 1, where);
    char copy[256];
    const size_t bytes = strlen(value);
    const bool is_bracketed = bytes >= 2 && value[0] == '[' && value[bytes - 1] == ']';
    REQUIRE(bytes < sizeof copy, CONFIG, "%s: %s.%s: %zu bytes for a list of at most %d values",
            where, item->section, item->key, bytes, DDPM_LIST_MAX);
    snprintf(copy, sizeof copy, "%.*s", (int)(bytes - (is_bracketed ? 2 : 0)),
             value + is_bracketed);
    const char *values[sizeof copy];
    int n = 0;
    for (char *p = copy; p;) {
        char *comma = strchr(p, ','), *end = comma ? comma : p + strlen(p);
        p += strspn(p, " ");
        while (end > p && end[-1] == ' ')
            end--;
        *end = '\0';
        values[n++] = p;
        p = comma ? comma + 1 : NULL;
    }
    return config_set_value(c, item, values, n, where);
}

ddpm_status ddpm_config_defaults(ddpm_config *c)
{
    *c = (ddpm_config){0};
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        void *member = config_member(c, item);
        ddpm_status s = DDPM_OK;
        switch (item->kind) {
        case CONFIG_INT:
            *(int64_t *)member = item->default_int;
            break;
        case CONFIG_REAL:
            *(double *)member = item->default_real;
            break;
        case CONFIG_BOOL:
            *(bool *)member = item->default_int != 0;
            break;
        case CONFIG_ENUM:
            *(int *)member = (int)item->default_int;
            break;
        default:
            s = set_from_text(c, item, item->default_token, "default");
            break;
        }
        if (s) {
            ddpm_config_free(c);
            return s;
        }
    }
    return DDPM_OK;
}

void ddpm_config_free(ddpm_config *c)
{
    for (int i = 0; i < CONFIG_COUNT; i++)
        if (config_items[i].kind == CONFIG_STRING)
            free(*(char **)config_member(c, &config_items[i]));
    *c = (ddpm_config){0};
}

ddpm_status ddpm_config_copy(const ddpm_config *from, ddpm_config *to)
{
    ddpm_config copy = *from;
    for (int i = 0; i < CONFIG_COUNT; i++)
        if (config_items[i].kind == CONFIG_STRING)
            *(char **)config_member(&copy, &config_items[i]) = NULL;
    for (int i = 0; i < CONFIG_COUNT; i++) {
        if (config_items[i].kind != CONFIG_STRING) continue;
        const char *value = *(char **)config_member(from, &config_items[i]);
        char **member = config_member(&copy, &config_items[i]);
        *member = strdup(value ? value : "");
        if (*member) continue;
        ddpm_config_free(&copy);
        return FAIL(NOMEM, "configuration: no memory for %s.%s", config_items[i].section,
                    config_items[i].key);
    }
    *to = copy;
    return DDPM_OK;
}

/* "section.key=value" */
static ddpm_status apply_set(ddpm_config *c, const char *set)
{
    const char *equals = strchr(set, '='), *dot = strchr(set, '.');
    REQUIRE(equals && dot && dot < equals, CONFIG,
            "--set '%.100s': write section.key=value, as in "
            "train.batch=64",
            set);
    const config_item *item =
        config_find(set, (size_t)(dot - set), dot + 1, (size_t)(equals - dot - 1));
    if (!item) {
        char section[64], key[64];
        snprintf(section, sizeof section, "%.*s", (int)(dot - set < 63 ? dot - set : 63), set);
        snprintf(key, sizeof key, "%.*s", (int)(equals - dot - 1 < 63 ? equals - dot - 1 : 63),
                 dot + 1);
        const config_item *near = config_nearest(section, key);
        return FAIL(CONFIG, "--set: unknown key '%s.%s'; the nearest is '%s.%s'", section, key,
                    near->section, near->key);
    }
    return set_from_text(c, item, equals + 1, "--set");
}

ddpm_status ddpm_config_parse(const char *text, size_t bytes, const char *name,
                              const char *const *set, int n_set, ddpm_config *out)
{
    ddpm_config c;
    TRY(ddpm_config_defaults(&c));
    ddpm_status s = config_read_yaml(text, bytes, name, &c);
    for (int i = 0; i < n_set && !s; i++)
        s = apply_set(&c, set[i]);
    if (!s && (s = ddpm_config_check(&c))) status_context(s, "%s", name);
    if (s)
        ddpm_config_free(&c);
    else
        *out = c;
    return s;
}

/* A regular file of reasonable size, whole. */
static ddpm_status read_small_file(const char *path, char **out, size_t *bytes)
{
    ddpm_status s = DDPM_OK;
    char *data = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return FAIL(NOINPUT, "%s: there is no such file", path);
    if (fd < 0 && (errno == ENAMETOOLONG || errno == ENOTDIR))
        return FAIL(NOINPUT, "%s: cannot open: %m", path);
    if (fd < 0) return FAIL_ERRNO("%s: cannot open: %m", path);
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        FAIL_GOTO(end, CONFIG, "%s: not a regular file", path);
    if (st.st_size > MAX_FILE)
        FAIL_GOTO(end, CONFIG, "%s: %lld bytes; a configuration has at most %d", path,
                  (long long)st.st_size, MAX_FILE);
    data = malloc((size_t)st.st_size + 1);
    if (!data) FAIL_GOTO(end, NOMEM, "%s: %lld bytes", path, (long long)st.st_size + 1);
    size_t used = 0;
    while (used < (size_t)st.st_size) {
        const ssize_t n = read(fd, data + used, (size_t)st.st_size - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL_GOTO(end, IO, "%s: cannot read: %m", path);
        if (n == 0) break;
        used += (size_t)n;
    }
    *bytes = used;
    *out = data;
    data = NULL;
end:
    free(data);
    close(fd);
    return s;
}

ddpm_status ddpm_config_load(const char *path, const char *const *set, int n_set, ddpm_config *out)
{
    char *yaml = NULL;
    size_t bytes = 0;
    TRY(read_small_file(path, &yaml, &bytes));
    const ddpm_status s = ddpm_config_parse(yaml, bytes, path, set, n_set, out);
    free(yaml);
    return s;
}

ddpm_status ddpm_config_print(const ddpm_config *c, char **out)
{
    text_buffer t = {0};
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        if (i == 0 || strcmp(item->section, item[-1].section) != 0)
            text_add(&t, "%s:\n", item->section);
        text_add(&t, "  %s: ", item->key);
        config_print_value(c, item, &t);
        text_add_bytes(&t, "\n", 1);
    }
    if (t.failed) {
        text_release(&t);
        return FAIL(NOMEM, "configuration: no memory to print it");
    }
    *out = t.data;
    return DDPM_OK;
}

ddpm_status ddpm_config_diff(const ddpm_config *a, const ddpm_config *b, const char *section,
                             char **out)
{
    text_buffer t = {0};
    text_add_bytes(&t, "", 0);
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        if (section && strcmp(item->section, section) != 0) continue;
        if (config_equal_value(a, b, item)) continue;
        text_add(&t, "%s.%s: ", item->section, item->key);
        config_print_value(a, item, &t);
        text_add(&t, " -> ");
        config_print_value(b, item, &t);
        text_add_bytes(&t, "\n", 1);
    }
    if (t.failed) {
        text_release(&t);
        return FAIL(NOMEM, "configuration: no memory to compare");
    }
    *out = t.data;
    return DDPM_OK;
}

/* tune_cache.c - what tuning chose, kept between runs.
 *
 * One JSON file for a kind of GPU and the versions of both libraries, in $DDPM_CACHE, else $XDG_CACHE_HOME/ddpm, else
 * ~/.cache/ddpm; an empty DDPM_CACHE keeps nothing. Entries are named by a hash of the call's signature. The file is
 * replaced as a whole; of two processes that save at once one loses entries, and tunes them again another time. Nothing
 * in it is trusted: what cuDNN or cuBLASLt do not take back is chosen anew. */
#include "products.h"

#include "commit.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FORMAT = 1 };

struct tune_cache {
    char folder[PATH_MAX - 256], path[PATH_MAX];
    json_t *entries; /* name -> [form, text] */
    bool is_changed;
};

/* False where nothing is to be kept. */
static bool find_folder(char *dst, size_t size)
{
    const char *own = getenv("DDPM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (own) n = snprintf(dst, size, "%s", own);
    else if (xdg && xdg[0] == '/') n = snprintf(dst, size, "%s/ddpm", xdg);
    else if (home && home[0] == '/') n = snprintf(dst, size, "%s/.cache/ddpm", home);
    return n > 0 && (size_t)n < size;
}

static void write_path(const struct products *all, struct tune_cache *c)
{
    char gpu[128];
    snprintf(gpu, sizeof gpu, "%.120s", all->be->properties.name);
    for (char *at = gpu; *at; at++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.", *at)) *at = '-';
    snprintf(c->path, sizeof c->path, "%s/%s-cudnn-%zu-cublas-%zu.json", c->folder, gpu, cudnnGetVersion(),
             all->matmuls ? matmul_library_version() : 0);
}

/* The entries of the file; NULL where there is none, or it is damaged. */
static json_t *read_entries(struct products *all, const char *path)
{
    if (access(path, F_OK) != 0) return NULL;
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);
    json_t *entries = json_object_get(root, "entries");
    if (json_is_object(entries) && json_integer_value(json_object_get(root, "format")) == FORMAT) {
        json_incref(entries);
    } else {
        entries = NULL;
        backend_note(&all->be->base, "%s is damaged and ignored: layers are timed anew", path);
    }
    json_decref(root);
    return entries;
}

ddpm_status tune_cache_open(struct products *all, struct tune_cache **out)
{
    struct tune_cache *c = calloc(1, sizeof *c);
    REQUIRE(c, NOMEM, "cache of engines: %zu bytes", sizeof *c);
    *out = NULL;
    if (!find_folder(c->folder, sizeof c->folder)) {
        free(c);
        return DDPM_OK;
    }
    write_path(all, c);
    c->entries = read_entries(all, c->path);
    if (!c->entries) c->entries = json_object();
    *out = c;
    if (!c->entries) {
        tune_cache_free(c);
        *out = NULL;
        return FAIL(NOMEM, "cache of engines: no memory");
    }
    return DDPM_OK;
}

void tune_cache_free(struct tune_cache *c)
{
    if (!c) return;
    json_decref(c->entries);
    free(c);
}

const char *tune_cache_find(const struct tune_cache *c, const char *key, const char **form)
{
    const json_t *entry = c ? json_object_get(c->entries, key) : NULL;
    *form = json_string_value(json_array_get(entry, 0));
    return *form ? json_string_value(json_array_get(entry, 1)) : NULL;
}

ddpm_status tune_cache_put(struct tune_cache *c, const char *key, const char *form, const char *text)
{
    if (!c) return DDPM_OK;
    json_t *entry = json_pack("[ss]", form, text);
    REQUIRE(entry && json_object_set_new(c->entries, key, entry) == 0, NOMEM, "cache of engines: no memory");
    c->is_changed = true;
    return DDPM_OK;
}

static ddpm_status save(const struct tune_cache *c)
{
    TRY(make_folder(c->folder));
    char *text = NULL;
    json_t *root = json_pack("{sisO}", "format", FORMAT, "entries", c->entries);
    if (root) text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(root);
    REQUIRE(text, NOMEM, "cache of engines: no memory");
    const ddpm_status s = commit_bytes(c->path, text, strlen(text));
    free(text);
    return s;
}

void tune_cache_save(struct products *all, struct tune_cache *c)
{
    if (!c || !c->is_changed) return;
    c->is_changed = false;
    if (save(c)) backend_note(&all->be->base, "%s cannot be written: the next run times all layers again", c->path);
}

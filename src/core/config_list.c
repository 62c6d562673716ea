/* config_list.c - the list of keys as data: lookup, what is allowed, and the nearest key to a
 * misspelt one.
 *
 * Nearest means the smallest number of letters inserted, removed, replaced or swapped with their
 * neighbour (Damerau-Levenshtein, restricted form): the slips that hands make. Names are cut to 48
 * bytes first, so that a hostile key costs no time. */
#include "config_items.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define ITEM_INT(d, lo, hi)    .default_int = (d), .int_lo = (lo), .int_hi = (hi)
#define ITEM_REAL(d, lo, hi)   .default_real = (d), .real_lo = (lo), .real_hi = (hi)
#define ITEM_BOOL(d, lo, hi)   .default_int = (d)
#define ITEM_STRING(d, lo, hi) .names = NULL
#define ITEM_ENUM(d, lo, hi)   .default_int = (d), .names = (lo)
#define ITEM_INTS(d, lo, hi)   .int_lo = (lo), .int_hi = (hi)
#define ITEM_REALS(d, lo, hi)  .real_lo = (lo), .real_hi = (hi)

#define TOKEN_INT(d)    #d
#define TOKEN_REAL(d)   #d
#define TOKEN_BOOL(d)   ((d) ? "true" : "false")
#define TOKEN_ENUM(d)   NULL
#define TOKEN_STRING(d) d
#define TOKEN_INTS(d)   d
#define TOKEN_REALS(d)  d

const config_item config_items[CONFIG_COUNT] = {
#define X(kind_, section_, key_, default_, lo_, hi_, help_)                                        \
    {.section = #section_,                                                                         \
     .key = #key_,                                                                                 \
     .kind_name = #kind_,                                                                          \
     .help = help_,                                                                                \
     .kind = CONFIG_##kind_,                                                                       \
     .offset = offsetof(ddpm_config, section_.key_),                                               \
     .default_token = TOKEN_##kind_(default_),                                                     \
     ITEM_##kind_(default_, lo_, hi_)},
    DDPM_CONFIG_LIST(X)
#undef X
};

/* The member of the struct has the type that the list says. */
#define X(kind, section, key, def, lo, hi, help)                                                   \
    _Static_assert(                                                                                \
        _Generic(((ddpm_config *)0)->section.key, DDPM_CONFIG_TYPE_##kind : 1, default : 0),       \
        #section "." #key " has another type in the struct");
DDPM_CONFIG_LIST(X)
#undef X

static bool is_name(const char *name, const char *s, size_t bytes)
{
    return strlen(name) == bytes && memcmp(name, s, bytes) == 0;
}

const config_item *config_find(const char *section, size_t section_bytes, const char *key,
                               size_t key_bytes)
{
    for (int i = 0; i < CONFIG_COUNT; i++)
        if (is_name(config_items[i].section, section, section_bytes) &&
            is_name(config_items[i].key, key, key_bytes))
            return &config_items[i];
    return NULL;
}

bool config_is_section(const char *name, size_t bytes)
{
    for (int i = 0; i < CONFIG_COUNT; i++)
        if (is_name(config_items[i].section, name, bytes)) return true;
    return false;
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

static int distance(const char *a, const char *b)
{
    enum { CUT = 48 };
    const int n = (int)strnlen(a, CUT), m = (int)strnlen(b, CUT);
    int d[3][CUT + 1]; /* rows i-2, i-1, i */
    for (int j = 0; j <= m; j++)
        d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = d[i % 3];
        const int *above = d[(i + 2) % 3], *before = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            row[j] =
                smaller(smaller(above[j], row[j - 1]) + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = smaller(row[j], before[j - 2] + 1);
        }
    }
    return d[n % 3][m];
}

const config_item *config_nearest(const char *section, const char *key)
{
    const config_item *best = NULL;
    int best_distance = 0;
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        /* Twice, and one for a foreign section: the section breaks ties only. */
        const int d = 2 * distance(key, item->key) + (strcmp(section, item->section) != 0);
        if (!best || d < best_distance) {
            best = item;
            best_distance = d;
        }
    }
    return best;
}

const char *config_nearest_section(const char *name)
{
    const config_item *best = &config_items[0];
    for (int i = 1; i < CONFIG_COUNT; i++)
        if (distance(name, config_items[i].section) < distance(name, best->section))
            best = &config_items[i];
    return best->section;
}

/* ---- texts for people ---- */

static char allowed_texts[CONFIG_COUNT][96], default_texts[CONFIG_COUNT][32];

static void describe(const config_item *item, char *allowed, size_t size)
{
    char lo[NUMBER_SIZE], hi[NUMBER_SIZE];
    const char *list =
        item->kind == CONFIG_INTS || item->kind == CONFIG_REALS ? "up to 8 values, each " : "";
    switch (item->kind) {
    case CONFIG_INT:
    case CONFIG_INTS:
        snprintf(allowed, size, "%s%lld to %lld", list, (long long)item->int_lo,
                 (long long)item->int_hi);
        break;
    case CONFIG_REAL:
    case CONFIG_REALS:
        snprintf(allowed, size, "%s%s to %s", list, number_print(item->real_lo, lo),
                 number_print(item->real_hi, hi));
        break;
    case CONFIG_BOOL:
        snprintf(allowed, size, "true, false");
        break;
    case CONFIG_STRING:
        snprintf(allowed, size, "text");
        break;
    case CONFIG_ENUM:
        for (const char *p = item->names; *p && size > 3; p++) {
            *allowed++ = *p == '|' ? ',' : *p;
            if (*p == '|') *allowed++ = ' ';
            size -= *p == '|' ? 2 : 1;
        }
        *allowed = '\0';
        break;
    }
}

static void describe_all(void)
{
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        describe(item, allowed_texts[i], sizeof allowed_texts[i]);
        const char *token = item->default_token;
        if (!token) { /* ENUM: name number default_int */
            token = item->names;
            for (int64_t k = 0; k < item->default_int; k++)
                token = strchr(token, '|') + 1;
        }
        snprintf(default_texts[i], sizeof default_texts[i], "%.*s",
                 item->kind == CONFIG_ENUM ? (int)strcspn(token, "|") : 31, token);
    }
}

const char *config_allowed(const config_item *item)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, describe_all);
    return allowed_texts[item - config_items];
}

int ddpm_config_key_count(void)
{
    return CONFIG_COUNT;
}

ddpm_config_key ddpm_config_key_at(int i)
{
    if (i < 0 || i >= CONFIG_COUNT) return (ddpm_config_key){"", "", "", "", "", ""};
    const config_item *item = &config_items[i];
    const char *allowed = config_allowed(item); /* writes default_texts too */
    return (ddpm_config_key){.section = item->section,
                             .key = item->key,
                             .kind = item->kind_name,
                             .default_text = default_texts[i],
                             .allowed = allowed,
                             .help = item->help};
}

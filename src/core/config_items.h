/* config_items.h - the list of keys as a table, and values as text, between the parts of the
 * configuration. */
#ifndef CORE_CONFIG_ITEMS_H
#define CORE_CONFIG_ITEMS_H

#include "ddpm/config.h"
#include "text.h"

typedef enum {
    CONFIG_INT,
    CONFIG_REAL,
    CONFIG_BOOL,
    CONFIG_STRING,
    CONFIG_ENUM,
    CONFIG_INTS,
    CONFIG_REALS
} config_kind;

typedef struct {
    const char *section, *key, *kind_name, *help;
    config_kind kind;
    size_t offset;             /* of the member in ddpm_config */
    int64_t default_int;       /* INT, BOOL, ENUM */
    double default_real;       /* REAL */
    const char *default_token; /* as the list spells it; the value itself for STRING, INTS, REALS */
    int64_t int_lo, int_hi;    /* INT, INTS */
    double real_lo, real_hi;   /* REAL, REALS */
    const char *names;         /* ENUM: "a|b" */
} config_item;

enum {
#define X(kind, section, key, def, lo, hi, help) CONFIG_AT_##section##_##key,
    DDPM_CONFIG_LIST(X)
#undef X
        CONFIG_COUNT
};

extern const config_item config_items[CONFIG_COUNT];

/* NULL when there is no such section or key; neither string need end in NUL. */
const config_item *config_find(const char *section, size_t section_bytes, const char *key,
                               size_t key_bytes);
bool config_is_section(const char *name, size_t bytes);
/* The key whose spelling is nearest; equal distances go to the same section. */
const config_item *config_nearest(const char *section, const char *key);
const char *config_nearest_section(const char *name);
/* "1 to 64", "linear, cosine", "true, false"; static. */
const char *config_allowed(const config_item *item);

/* Sets the member from n texts (one, but for lists). `where` begins the message: "a.yaml:3:8" or
 * "--set". CONFIG names key, value and what is allowed. A value of *c that is replaced is freed.
 * NOMEM. */
ddpm_status config_set_value(ddpm_config *c, const config_item *item, const char *const *values,
                             int n, const char *where);
/* The member as YAML: 12, 1e-4, true, "text", linear, [1, 2, 2]. */
void config_print_value(const ddpm_config *c, const config_item *item, text_buffer *out);
bool config_equal_value(const ddpm_config *a, const ddpm_config *b, const config_item *item);
static inline void *config_member(const ddpm_config *c, const config_item *item)
{
    return (char *)c + item->offset;
}

/* The document's values into *c, which holds the defaults. `name` begins messages. */
ddpm_status config_read_yaml(const char *yaml, size_t bytes, const char *name, ddpm_config *c);

#endif

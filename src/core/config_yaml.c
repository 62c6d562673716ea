/* config_yaml.c - a YAML document -> the values it gives, with line and column for whatever is
 * wrong.
 *
 * Two readings. The first walks libyaml's events and allows one shape only: sections, in them keys,
 * in those a scalar or a flat list; it notes where each value stands and names unknown and doubled
 * keys. The second is libcyaml's, under a schema made for just the keys that were found (a list key
 * may hold one scalar); it gives the texts, which config_value.c converts. libcyaml alone knows no
 * line of a key and forgives doubled ones; a schema of typed fields would also read numbers the
 * locale's way. Anchors, aliases and tags are refused: a configuration needs none, and an alias can
 * multiply a document a billionfold. */
#include "config_items.h"

#include "fail.h"

#include <cyaml/cyaml.h>
#include <yaml.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 1 << 20, MAX_LINE = 1 << 16, WHERE_SIZE = 300 };

typedef struct {
    const char *name; /* of the document */
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event, is_empty;                          /* is_empty: a document that says nothing */
    unsigned line[CONFIG_COUNT], column[CONFIG_COUNT]; /* 1-based; line 0: the key is not there */
    bool is_list[CONFIG_COUNT];
} walk;

static const char *where_of(const char *name, size_t line, size_t column, char dst[WHERE_SIZE])
{
    snprintf(dst, WHERE_SIZE, "%.250s:%zu:%zu", name, line, column);
    return dst;
}

/* A fault at the current event. */
#define BAD(w, ...) bad_here(w, FAIL(CONFIG, __VA_ARGS__))
static ddpm_status bad_here(const walk *w, ddpm_status s)
{
    char where[WHERE_SIZE];
    const yaml_mark_t at = w->event.start_mark;
    return status_context(s, "%s", where_of(w->name, at.line + 1, at.column + 1, where));
}

static ddpm_status parser_failed(const walk *w)
{
    const yaml_parser_t *p = &w->parser;
    char where[WHERE_SIZE];
    if (p->error == YAML_MEMORY_ERROR)
        return FAIL(NOMEM, "%s: no memory to read the configuration", w->name);
    return FAIL(CONFIG, "%s: not valid YAML: %s%s%s",
                where_of(w->name, p->problem_mark.line + 1, p->problem_mark.column + 1, where),
                p->problem ? p->problem : "unreadable text", p->context ? " " : "",
                p->context ? p->context : "");
}

static ddpm_status next_event(walk *w)
{
    if (w->has_event) yaml_event_delete(&w->event);
    w->has_event = yaml_parser_parse(&w->parser, &w->event);
    if (!w->has_event) return parser_failed(w);
    const yaml_event_t *e = &w->event;
    const bool is_marked =
        e->type == YAML_ALIAS_EVENT ||
        (e->type == YAML_SCALAR_EVENT && (e->data.scalar.anchor || e->data.scalar.tag)) ||
        (e->type == YAML_SEQUENCE_START_EVENT &&
         (e->data.sequence_start.anchor || e->data.sequence_start.tag)) ||
        (e->type == YAML_MAPPING_START_EVENT &&
         (e->data.mapping_start.anchor || e->data.mapping_start.tag));
    return is_marked ? BAD(w, "anchors, aliases and tags are not allowed here") : DDPM_OK;
}

static const char *scalar_of(const walk *w)
{
    return (const char *)w->event.data.scalar.value;
}

/* A scalar with a NUL inside is cut by every reader after us. */
static ddpm_status check_scalar(const walk *w)
{
    return strlen(scalar_of(w)) == w->event.data.scalar.length ? DDPM_OK
                                                               : BAD(w, "a NUL inside a value");
}

static bool is_nothing(const walk *w)
{
    return w->event.type == YAML_SCALAR_EVENT && w->event.data.scalar.length == 0 &&
           w->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* The value of a key: a scalar or a flat list of them. The current event is its first. */
static ddpm_status walk_value(walk *w, const config_item *item)
{
    const size_t i = (size_t)(item - config_items);
    w->line[i] = (unsigned)w->event.start_mark.line + 1;
    w->column[i] = (unsigned)w->event.start_mark.column + 1;
    w->is_list[i] = w->event.type == YAML_SEQUENCE_START_EVENT;
    if (w->event.type == YAML_SCALAR_EVENT) return check_scalar(w);
    if (!w->is_list[i])
        return BAD(w, "%s.%s: a mapping where a value belongs; allowed: %s", item->section,
                   item->key, config_allowed(item));
    for (;;) {
        TRY(next_event(w));
        if (w->event.type == YAML_SEQUENCE_END_EVENT) return DDPM_OK;
        if (w->event.type != YAML_SCALAR_EVENT)
            return BAD(w, "%s.%s: only plain values belong in this list; allowed: %s",
                       item->section, item->key, config_allowed(item));
        TRY(check_scalar(w));
    }
}

/* The keys of one section; the current event is its first, after it stands its last. */
static ddpm_status walk_section(walk *w, const char *section)
{
    if (is_nothing(w)) return DDPM_OK;
    if (w->event.type != YAML_MAPPING_START_EVENT)
        return BAD(w, "section '%s' must hold keys, indented below it", section);
    for (;;) {
        TRY(next_event(w));
        if (w->event.type == YAML_MAPPING_END_EVENT) return DDPM_OK;
        if (w->event.type != YAML_SCALAR_EVENT)
            return BAD(w, "a key of section '%s' must be a name", section);
        const char *key = scalar_of(w);
        const config_item *item = config_find(section, strlen(section), key, strlen(key));
        if (!item) {
            const config_item *near = config_nearest(section, key);
            return BAD(w, "unknown key '%s.%.60s'; the nearest is '%s.%s'", section, key,
                       near->section, near->key);
        }
        const unsigned earlier = w->line[item - config_items];
        if (earlier) return BAD(w, "%s.%s stands twice; first at line %u", section, key, earlier);
        TRY(next_event(w));
        TRY(walk_value(w, item));
    }
}

static ddpm_status walk_root(walk *w)
{
    char section[16];
    unsigned seen_line[CONFIG_COUNT] = {0}; /* by the section's first item */
    if (w->event.type != YAML_MAPPING_START_EVENT)
        return BAD(w, "the document must hold sections: model, diffusion, data, train, sample");
    for (;;) {
        TRY(next_event(w));
        if (w->event.type == YAML_MAPPING_END_EVENT) return DDPM_OK;
        if (w->event.type != YAML_SCALAR_EVENT)
            return BAD(w, "the name of a section must be a plain name");
        const char *name = scalar_of(w);
        if (!config_is_section(name, strlen(name))) {
            const config_item *near = config_nearest("", name);
            if (strcmp(near->key, name) == 0)
                return BAD(w, "unknown section '%.60s'; the nearest key is '%s.%s'", name,
                           near->section, near->key);
            return BAD(w, "unknown section '%.60s'; the nearest is '%s'", name,
                       config_nearest_section(name));
        }
        int first = 0;
        while (strcmp(config_items[first].section, name) != 0)
            first++;
        if (seen_line[first])
            return BAD(w, "section '%s' stands twice; first at line %u", name, seen_line[first]);
        seen_line[first] = (unsigned)w->event.start_mark.line + 1;
        snprintf(section, sizeof section, "%s", name);
        TRY(next_event(w));
        TRY(walk_section(w, section));
    }
}

static ddpm_status walk_document(walk *w)
{
    TRY(next_event(w)); /* start of the stream */
    TRY(next_event(w));
    w->is_empty = w->event.type == YAML_STREAM_END_EVENT;
    if (w->is_empty) return DDPM_OK;
    TRY(next_event(w)); /* behind the start of the document */
    w->is_empty = is_nothing(w);
    if (!w->is_empty) TRY(walk_root(w));
    TRY(next_event(w)); /* end of the document */
    TRY(next_event(w));
    return w->event.type == YAML_STREAM_END_EVENT
               ? DDPM_OK
               : BAD(w, "a second document; only one is allowed");
}

/* What no YAML reader would complain of, but people are glad to hear. */
static ddpm_status check_text(const char *yaml, size_t bytes, const char *name)
{
    REQUIRE(bytes <= MAX_BYTES, CONFIG, "%s: %zu bytes; a configuration has at most %d", name,
            bytes, MAX_BYTES);
    const bool has_mark =
        bytes >= 2 && (memcmp(yaml, "\xFE\xFF", 2) == 0 || memcmp(yaml, "\xFF\xFE", 2) == 0 ||
                       (bytes >= 3 && memcmp(yaml, "\xEF\xBB\xBF", 3) == 0));
    REQUIRE(!has_mark, CONFIG,
            "%s:1:1: begins with a byte order mark; save it as UTF-8 without one", name);
    size_t line = 1, begin = 0;
    for (size_t i = 0; i < bytes; i++) {
        REQUIRE(yaml[i] != '\r', CONFIG,
                "%s:%zu:%zu: a carriage return; save the file with Unix line ends "
                "(sed -i 's/\\r$//' FILE)",
                name, line, i - begin + 1);
        if (yaml[i] == '\n') {
            line++;
            begin = i + 1;
        }
        REQUIRE(i - begin < MAX_LINE || begin == i + 1, CONFIG,
                "%s:%zu:%d: the line is longer than %d bytes", name, line, MAX_LINE, MAX_LINE);
    }
    return DDPM_OK;
}

/* ---- the second reading ---- */

typedef struct {
    char *one;
    char **many;
    uint32_t many_count;
} raw_value;

typedef struct {
    raw_value at[CONFIG_COUNT];
} raw_config;

typedef struct {
    cyaml_schema_value_t root;
    cyaml_schema_field_t sections[CONFIG_COUNT + 1];
    cyaml_schema_field_t keys[2 * CONFIG_COUNT + 1]; /* each section's, and its end */
} schema;

static const cyaml_schema_value_t one_string = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, CYAML_UNLIMITED)};

static void *yaml_memory(void *ctx, void *p, size_t bytes)
{
    (void)ctx;
    if (bytes) return realloc(p, bytes);
    free(p);
    return NULL;
}

static const cyaml_config_t reading = {
    .mem_fn = yaml_memory, .log_level = CYAML_LOG_ERROR, .flags = CYAML_CFG_NO_ALIAS};

/* Fields for the keys that are there. Offsets of keys count from the whole struct: sections lie at
 * 0. A section without keys, which YAML calls null, is passed over. */
static void build_schema(const walk *w, schema *out)
{
    size_t n_sections = 0, n_keys = 0;
    for (size_t i = 0; i < CONFIG_COUNT;) {
        const char *section = config_items[i].section;
        const size_t first = n_keys;
        for (; i < CONFIG_COUNT && strcmp(config_items[i].section, section) == 0; i++) {
            if (!w->line[i]) continue;
            cyaml_schema_field_t *f = &out->keys[n_keys++];
            f->key = config_items[i].key;
            f->data_offset = (uint32_t)(i * sizeof(raw_value) + offsetof(raw_value, one));
            f->value = one_string;
            f->value.flags |= CYAML_FLAG_OPTIONAL;
            if (!w->is_list[i]) continue;
            f->data_offset = (uint32_t)(i * sizeof(raw_value) + offsetof(raw_value, many));
            f->count_offset = (uint32_t)(i * sizeof(raw_value) + offsetof(raw_value, many_count));
            f->count_size = sizeof(uint32_t);
            f->value.type = CYAML_SEQUENCE;
            f->value.data_size = sizeof(char *);
            f->value.sequence.entry = &one_string;
            f->value.sequence.min = 0;
            f->value.sequence.max = CYAML_UNLIMITED;
        }
        cyaml_schema_field_t *f = &out->sections[n_sections++];
        f->key = section;
        f->value.type = n_keys > first ? CYAML_MAPPING : CYAML_IGNORE;
        f->value.flags = CYAML_FLAG_OPTIONAL;
        if (n_keys > first) {
            f->value.data_size = sizeof(raw_config);
            f->value.mapping.fields = &out->keys[first];
        }
        n_keys++; /* the section's end: key NULL */
    }
    out->root.type = CYAML_MAPPING;
    out->root.flags = CYAML_FLAG_POINTER;
    out->root.data_size = sizeof(raw_config);
    out->root.mapping.fields = out->sections;
}

static ddpm_status set_all(const walk *w, const raw_config *raw, ddpm_config *c)
{
    for (size_t i = 0; i < CONFIG_COUNT; i++) {
        char where[WHERE_SIZE];
        const raw_value *v = &raw->at[i];
        if (!w->line[i]) continue;
        where_of(w->name, w->line[i], w->column[i], where);
        const char *const one[] = {v->one ? v->one : ""};
        const char *const *values = w->is_list[i] ? (const char *const *)v->many : one;
        const int n = !w->is_list[i]              ? 1
                      : v->many_count > MAX_BYTES ? MAX_BYTES
                                                  : (int)v->many_count;
        TRY(config_set_value(c, &config_items[i], values, n, where));
    }
    return DDPM_OK;
}

static ddpm_status load_values(const walk *w, const char *yaml, size_t bytes, ddpm_config *c)
{
    schema *sc = calloc(1, sizeof *sc);
    REQUIRE(sc, NOMEM, "%s: %zu bytes", w->name, sizeof *sc);
    build_schema(w, sc);
    raw_config *raw = NULL;
    const cyaml_err_t err = cyaml_load_data((const uint8_t *)yaml, bytes, &reading, &sc->root,
                                            (cyaml_data_t **)&raw, NULL);
    ddpm_status s = DDPM_OK;
    if (err == CYAML_ERR_OOM)
        s = FAIL(NOMEM, "%s: no memory to read the configuration", w->name);
    else if (err != CYAML_OK)
        s = FAIL(CONFIG, "%s: %s", w->name, cyaml_strerror(err));
    else if (raw)
        s = set_all(w, raw, c);
    cyaml_free(&reading, &sc->root, raw, 0);
    free(sc);
    return s;
}

ddpm_status config_read_yaml(const char *yaml, size_t bytes, const char *name, ddpm_config *c)
{
    TRY(check_text(yaml, bytes, name));
    walk *w = calloc(1, sizeof *w);
    REQUIRE(w, NOMEM, "%s: %zu bytes", name, sizeof *w);
    w->name = name;
    if (!yaml_parser_initialize(&w->parser)) {
        free(w);
        return FAIL(NOMEM, "%s: no memory to read the configuration", name);
    }
    yaml_parser_set_encoding(&w->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&w->parser, (const unsigned char *)yaml, bytes);
    ddpm_status s = walk_document(w);
    if (w->has_event) yaml_event_delete(&w->event);
    yaml_parser_delete(&w->parser);
    if (!s && !w->is_empty) s = load_values(w, yaml, bytes, c);
    free(w);
    return s;
}

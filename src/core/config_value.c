/* config_value.c - one key's value from text and back, the same for a YAML file and for --set.
 *
 * Numbers are decimal and nothing else: YAML 1.1 would read 010 as 8, 1_0 as 10 and .inf as
 * infinity, each of which is more likely a slip than meant. */
#include "config_items.h"

#include "fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    VALUE_OK,
    VALUE_NOT_WHOLE,
    VALUE_NOT_NUMBER,
    VALUE_NOT_FINITE,
    VALUE_OUTSIDE
} value_fault;

static value_fault read_int(const char *s, int64_t lo, int64_t hi, int64_t *out)
{
    const bool is_negative = *s == '-';
    const char *p = s + is_negative;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1])) return VALUE_NOT_WHOLE;
    int64_t v = 0;
    bool is_huge = false;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v))
            is_huge = true;
    if (*p) return VALUE_NOT_WHOLE;
    if (is_negative) v = -v;
    if (is_huge || v < lo || v > hi) return VALUE_OUTSIDE;
    *out = v;
    return VALUE_OK;
}

static value_fault read_real(const char *s, double lo, double hi, double *out)
{
    double v;
    if (!number_read(s, &v)) return VALUE_NOT_NUMBER;
    if (!isfinite(v)) return VALUE_NOT_FINITE;
    if (v < lo || v > hi) return VALUE_OUTSIDE;
    *out = v;
    return VALUE_OK;
}

static ddpm_status bad_value(const config_item *item, const char *where, const char *value,
                             value_fault fault)
{
    static const char *const why[] = {
        [VALUE_NOT_WHOLE] = "is not a whole number",
        [VALUE_NOT_NUMBER] = "is not a decimal number",
        [VALUE_NOT_FINITE] = "is too large for a number",
        [VALUE_OUTSIDE] = "is out of range",
    };
    return FAIL(CONFIG, "%s: %s.%s: '%.60s' %s; allowed: %s", where, item->section, item->key,
                value, why[fault], config_allowed(item));
}

static ddpm_status set_choice(int *member, const config_item *item, const char *value,
                              const char *where)
{
    const size_t bytes = strlen(value);
    int number = 0;
    for (const char *name = item->names;; number++) {
        const size_t n = strcspn(name, "|");
        if (n == bytes && memcmp(name, value, n) == 0) {
            *member = number;
            return DDPM_OK;
        }
        if (!name[n]) break;
        name += n + 1;
    }
    return FAIL(CONFIG, "%s: %s.%s: '%.60s' is not one of its names; allowed: %s", where,
                item->section, item->key, value, config_allowed(item));
}

static ddpm_status set_bool(bool *member, const config_item *item, const char *value,
                            const char *where)
{
    const bool is_true = strcmp(value, "true") == 0;
    REQUIRE(is_true || strcmp(value, "false") == 0, CONFIG,
            "%s: %s.%s: '%.60s' is neither true nor false", where, item->section, item->key, value);
    *member = is_true;
    return DDPM_OK;
}

static ddpm_status set_string(char **member, const config_item *item, const char *value,
                              const char *where)
{
    REQUIRE(utf8_valid(value, strlen(value)), CONFIG, "%s: %s.%s: '%.60s' is not valid UTF-8",
            where, item->section, item->key, value);
    char *copy = strdup(value);
    REQUIRE(copy, NOMEM, "%s: %s.%s: no memory for %zu bytes", where, item->section, item->key,
            strlen(value));
    free(*member);
    *member = copy;
    return DDPM_OK;
}

static ddpm_status set_list(void *member, const config_item *item, const char *const *values, int n,
                            const char *where)
{
    REQUIRE(n >= 1 && n <= DDPM_LIST_MAX, CONFIG, "%s: %s.%s: %d values; allowed: 1 to %d of them",
            where, item->section, item->key, n, DDPM_LIST_MAX);
    ddpm_int_list ints = {.n = n};
    ddpm_real_list reals = {.n = n};
    for (int i = 0; i < n; i++) {
        const value_fault fault =
            item->kind == CONFIG_INTS
                ? read_int(values[i], item->int_lo, item->int_hi, &ints.v[i])
                : read_real(values[i], item->real_lo, item->real_hi, &reals.v[i]);
        if (fault) return bad_value(item, where, values[i], fault);
    }
    if (item->kind == CONFIG_INTS)
        *(ddpm_int_list *)member = ints;
    else
        *(ddpm_real_list *)member = reals;
    return DDPM_OK;
}

ddpm_status config_set_value(ddpm_config *c, const config_item *item, const char *const *values,
                             int n, const char *where)
{
    void *member = config_member(c, item);
    if (item->kind == CONFIG_INTS || item->kind == CONFIG_REALS)
        return set_list(member, item, values, n, where);
    REQUIRE(n == 1, CONFIG, "%s: %s.%s: a list where one value belongs; allowed: %s", where,
            item->section, item->key, config_allowed(item));
    value_fault fault = VALUE_OK;
    switch (item->kind) {
    case CONFIG_BOOL:
        return set_bool(member, item, values[0], where);
    case CONFIG_STRING:
        return set_string(member, item, values[0], where);
    case CONFIG_ENUM:
        return set_choice(member, item, values[0], where);
    case CONFIG_INT:
        fault = read_int(values[0], item->int_lo, item->int_hi, member);
        break;
    default:
        fault = read_real(values[0], item->real_lo, item->real_hi, member);
        break;
    }
    return fault ? bad_value(item, where, values[0], fault) : DDPM_OK;
}

/* Double-quoted YAML; what stands in quotes needs no look at its meaning. */
static void print_string(const char *s, text_buffer *out)
{
    text_add_bytes(out, "\"", 1);
    while (*s) {
        const unsigned char byte = (unsigned char)*s;
        const unsigned step = utf8_step(s, strnlen(s, 4)), n = step ? step : 1;
        if (step == 0) /* put in by a program, not by a file or --set: shown, not kept */
            text_add_bytes(out, "?", 1);
        else if (byte == '"' || byte == '\\')
            text_add(out, "\\%c", byte);
        else if (byte < 0x20 || byte == 0x7F)
            text_add(out, "\\x%02X", byte);
        else if (byte == 0xC2 && (unsigned char)s[1] < 0xA0) /* C1: no character YAML allows */
            text_add(out, "\\x%02X", (unsigned char)s[1]);
        else if (byte == 0xE2 &&
                 (memcmp(s, "\xE2\x80\xA8", 3) == 0 || memcmp(s, "\xE2\x80\xA9", 3) == 0))
            text_add(out, "\\u%04X",
                     0x2000u | ((unsigned char)s[2] & 0x3Fu)); /* breaks of line to YAML */
        else if (byte == 0xEF &&
                 (memcmp(s, "\xEF\xBB\xBF", 3) == 0 || memcmp(s, "\xEF\xBF\xBE", 3) == 0 ||
                  memcmp(s, "\xEF\xBF\xBF", 3) == 0))
            text_add(out, "\\u%04X",
                     0xF000u | ((unsigned char)s[1] & 0x3Fu) << 6 | ((unsigned char)s[2] & 0x3Fu));
        else
            text_add_bytes(out, s, n);
        s += n;
    }
    text_add_bytes(out, "\"", 1);
}

void config_print_value(const ddpm_config *c, const config_item *item, text_buffer *out)
{
    const void *member = config_member(c, item);
    const ddpm_int_list *ints = member;
    const ddpm_real_list *reals = member;
    char number[NUMBER_SIZE];
    switch (item->kind) {
    case CONFIG_INT:
        text_add(out, "%lld", (long long)*(const int64_t *)member);
        break;
    case CONFIG_REAL:
        text_add(out, "%s", number_print(*(const double *)member, number));
        break;
    case CONFIG_BOOL:
        text_add(out, "%s", *(const bool *)member ? "true" : "false");
        break;
    case CONFIG_STRING:
        print_string(*(char *const *)member ? *(char *const *)member : "", out);
        break;
    case CONFIG_ENUM: {
        const char *name = item->names;
        for (int i = 0; i < *(const int *)member && strchr(name, '|'); i++)
            name = strchr(name, '|') + 1;
        text_add_bytes(out, name, strcspn(name, "|"));
        break;
    }
    case CONFIG_INTS:
        for (int i = 0; i < ints->n; i++)
            text_add(out, "%s%lld", i ? ", " : "[", (long long)ints->v[i]);
        text_add_bytes(out, "]", 1);
        break;
    case CONFIG_REALS:
        for (int i = 0; i < reals->n; i++)
            text_add(out, "%s%s", i ? ", " : "[", number_print(reals->v[i], number));
        text_add_bytes(out, "]", 1);
        break;
    }
}

bool config_equal_value(const ddpm_config *a, const ddpm_config *b, const config_item *item)
{
    const void *x = config_member(a, item), *y = config_member(b, item);
    const ddpm_int_list *i = x, *j = y;
    const ddpm_real_list *p = x, *q = y;
    switch (item->kind) {
    case CONFIG_INT:
        return *(const int64_t *)x == *(const int64_t *)y;
    case CONFIG_REAL:
        return *(const double *)x == *(const double *)y;
    case CONFIG_BOOL:
        return *(const bool *)x == *(const bool *)y;
    case CONFIG_ENUM:
        return *(const int *)x == *(const int *)y;
    case CONFIG_STRING:
        return strcmp(*(char *const *)x ? *(char *const *)x : "",
                      *(char *const *)y ? *(char *const *)y : "") == 0;
    case CONFIG_INTS:
        return i->n == j->n && memcmp(i->v, j->v, (size_t)i->n * sizeof *i->v) == 0;
    default:
        return p->n == q->n && memcmp(p->v, q->v, (size_t)p->n * sizeof *p->v) == 0;
    }
}

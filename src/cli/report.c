/* report.c - figures to screen and JSON from one tree, so that their names cannot differ.
 *
 * The tree is jansson's, which keeps the order of insertion. The screen is drawn from it: "name
 * value" lines, an object indented below its name, an array of objects as a table whose heads are
 * the names. */
#include "report.h"

#include "cli.h"
#include "commit.h"
#include "fail.h"
#include "text.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_SIZE = 160, COLUMNS_MAX = 16 };

void report_begin(report *r)
{
    *r = (report){.at = {json_object()}};
    r->failed = !r->at[0];
}

void report_release(report *r)
{
    json_decref(r->at[0]); /* accepts NULL */
    *r = (report){0};
}

static void put(report *r, const char *name, json_t *value)
{
    if (r->failed || json_object_set_new(r->at[r->depth], name, value) != 0) r->failed = true;
}

void report_int(report *r, const char *name, int64_t value)
{
    put(r, name, json_integer(value));
}

void report_real(report *r, const char *name, double value)
{
    put(r, name, isfinite(value) ? json_real(value) : json_null());
}

void report_bool(report *r, const char *name, bool value)
{
    put(r, name, json_boolean(value));
}

void report_text(report *r, const char *name, const char *fmt, ...)
{
    char text[2048], escaped[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    put(r, name, json_string(text_escape(escaped, sizeof escaped, text, strlen(text))));
}

/* Makes `child`, which its parent owns by now, the one that takes the next figures. */
static void descend(report *r, json_t *child)
{
    if (r->depth + 1 == REPORT_DEPTH) r->failed = true;
    if (r->failed) return;
    r->at[++r->depth] = child;
}

void report_open(report *r, const char *name)
{
    json_t *child = json_object();
    put(r, name, child);
    descend(r, child);
}

void report_row(report *r, const char *name)
{
    if (r->failed) return;
    json_t *rows = json_object_get(r->at[r->depth], name);
    if (!rows) {
        rows = json_array();
        put(r, name, rows);
    }
    json_t *child = json_object();
    if (r->failed || json_array_append_new(rows, child) != 0) r->failed = true;
    descend(r, child);
}

void report_close(report *r)
{
    if (r->depth > 0) r->depth--;
}

ddpm_status report_end(const report *r)
{
    REQUIRE(!r->failed, NOMEM, "the report of figures does not fit into memory");
    return DDPM_OK;
}

/* ---- the screen ---- */

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* 35746307 as 35,746,307. */
static void print_grouped(long long v, char *dst, size_t size)
{
    char digits[32];
    const int n = snprintf(digits, sizeof digits, "%lld", v);
    size_t used = 0;
    for (int i = 0; i < n && used + 2 < size; i++) {
        const int left = n - i;
        if (i > 0 && left % 3 == 0 && digits[i - 1] != '-') dst[used++] = ',';
        dst[used++] = digits[i];
    }
    dst[used] = '\0';
}

static void print_real(double v, char *dst, size_t size)
{
    if (fabs(v) >= 1e4 && fabs(v) < 1e15)
        print_grouped(llround(v), dst, size);
    else
        snprintf(dst, size, "%.4g", v);
}

static void print_cell(const char *name, const json_t *v, bool in_table, char *dst, size_t size)
{
    char text[40];
    switch (json_typeof(v)) {
    case JSON_INTEGER:
        if (ends_with(name, "_bytes") && in_table) {
            format_bytes((uint64_t)json_integer_value(v), dst, (unsigned)size);
        } else if (ends_with(name, "_bytes")) {
            print_grouped(json_integer_value(v), dst, size);
            format_bytes((uint64_t)json_integer_value(v), text, sizeof text);
            const size_t n = strlen(dst);
            snprintf(dst + n, size - n, " (%s)", text);
        } else if (ends_with(name, "seed")) {
            snprintf(dst, size, "%lld", (long long)json_integer_value(v));
        } else {
            print_grouped(json_integer_value(v), dst, size);
        }
        break;
    case JSON_REAL:
        print_real(json_real_value(v), dst, size);
        break;
    case JSON_STRING:
        snprintf(dst, size, "%s", json_string_value(v));
        break;
    case JSON_TRUE:
        snprintf(dst, size, "yes");
        break;
    case JSON_FALSE:
        snprintf(dst, size, "no");
        break;
    default:
        snprintf(dst, size, "-");
    }
}

static void show_table(const json_t *rows, int indent, FILE *out)
{
    int width[COLUMNS_MAX] = {0}, n_columns = 0;
    char cell[CELL_SIZE];
    const char *name;
    json_t *value, *row;
    size_t i;
    json_array_foreach((json_t *)rows, i, row)
    {
        int c = 0;
        json_object_foreach(row, name, value)
        {
            if (c == COLUMNS_MAX) break;
            print_cell(name, value, true, cell, sizeof cell);
            const int wide = (int)strlen(cell), head = (int)strlen(name);
            if (wide > width[c]) width[c] = wide;
            if (head > width[c]) width[c] = head;
            if (++c > n_columns) n_columns = c;
        }
    }
    for (int line = -1; line < (int)json_array_size(rows); line++) {
        json_t *of = json_array_get(rows, line < 0 ? 0 : (size_t)line);
        int c = 0;
        fprintf(out, "%*s", indent, "");
        json_object_foreach(of, name, value)
        {
            if (c == n_columns) break;
            print_cell(name, value, true, cell, sizeof cell);
            const bool is_text = json_is_string(value), is_last = c + 1 == n_columns;
            fprintf(out, "%*s%s", is_text ? (is_last ? 0 : -width[c]) : width[c],
                    line < 0 ? name : cell, is_last ? "" : "  ");
            c++;
        }
        fputc('\n', out);
    }
}

static void show_object(const json_t *object, int indent, FILE *out)
{
    int width = 0;
    char cell[2048];
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name,
                        value) if (!json_is_object(value) && !json_is_array(value) &&
                                   (int)strlen(name) > width) width = (int)strlen(name);
    json_object_foreach((json_t *)object, name, value)
    {
        if (json_is_object(value) || json_is_array(value)) {
            if (json_is_array(value) && json_array_size(value) == 0) continue;
            fprintf(out, "%*s%s:\n", indent, "", name);
            if (json_is_object(value))
                show_object(value, indent + 2, out);
            else
                show_table(value, indent + 2, out);
        } else {
            print_cell(name, value, false, cell, sizeof cell);
            fprintf(out, "%*s%-*s  %s\n", indent, "", width, name, cell);
        }
    }
}

void report_show(const report *r, FILE *out)
{
    show_object(r->at[0], 0, out);
}

static ddpm_status json_text(const report *r, char **out)
{
    TRY(report_end(r));
    *out = json_dumps(r->at[0], JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    REQUIRE(*out, NOMEM, "the JSON of the figures does not fit into memory");
    return DDPM_OK;
}

ddpm_status report_print_json(const report *r)
{
    char *text;
    TRY(json_text(r, &text));
    puts(text);
    free(text);
    return DDPM_OK;
}

ddpm_status report_open_file(const char *path, commit **out)
{
    *out = NULL;
    return path && strcmp(path, "-") != 0 ? commit_begin(path, 0, out) : DDPM_OK;
}

static ddpm_status write_json(const report *r, commit **file)
{
    char *text;
    TRY(json_text(r, &text));
    ddpm_status s = commit_write(*file, text, strlen(text));
    if (!s) s = commit_write(*file, "\n", 1);
    free(text);
    TRY(s);
    commit *whole = *file;
    *file = NULL;
    return commit_finish(whole, NULL, NULL);
}

ddpm_status report_finish(const report *r, ddpm_status s, const char *path, commit *file)
{
    const bool on_screen = path && !file;
    if (!s) s = report_end(r);
    if (!s && file) s = write_json(r, &file);
    commit_abandon(file);
    TRY(s);
    if (on_screen) return report_print_json(r);
    report_show(r, stdout);
    return DDPM_OK;
}

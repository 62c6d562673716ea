/* progress.c - the line that is redrawn, the plain line elsewhere, and words for times and sizes.
 *
 * The rate is that of this run so far, (done - first) / elapsed: steps of one training take the
 * same time, so the mean is steadier than a window and nothing has to be kept. A terminal is
 * redrawn at most ten times a second; elsewhere lines come after 5 seconds, so that a log of an
 * hour has some hundreds. */
#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LINE_SIZE = 512, BAR_CELLS = 20 };
static const double redraw_seconds = 0.1, plain_seconds = 5.0;

double monotonic_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *format_seconds(double s, char *dst, unsigned size)
{
    if (!(s >= 0) || s > 1e9) {
        snprintf(dst, size, "?");
        return dst;
    }
    const long long whole = (long long)(s + 0.5);
    if (s < 9.95)
        snprintf(dst, size, "%.1f s", s);
    else if (whole < 60)
        snprintf(dst, size, "%lld s", whole);
    else if (whole < 3600)
        snprintf(dst, size, "%lld min %02lld s", whole / 60, whole % 60);
    else if (whole < 48 * 3600)
        snprintf(dst, size, "%lld h %02lld min", whole / 3600, whole % 3600 / 60);
    else
        snprintf(dst, size, "%lld d %02lld h", whole / 86400, whole % 86400 / 3600);
    return dst;
}

const char *format_bytes(uint64_t bytes, char *dst, unsigned size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    unsigned u = 0;
    while (v >= 1023.95 && u + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        u++;
    }
    snprintf(dst, size, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return dst;
}

void log_line(const log_sink *sink, const char *fmt, ...)
{
    if (!sink || !sink->line) return;
    char line[2 * LINE_SIZE];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    sink->line(sink->user, line, false);
}

void progress_begin(progress *p, const log_sink *sink, const char *what, const char *unit,
                    int64_t total, int64_t first)
{
    *p = (progress){
        .sink = sink, .what = what, .unit = unit, .total = total, .done = first, .first = first};
    p->started = p->shown = monotonic_seconds();
}

/* Appends to a line of LINE_SIZE; what does not fit is left out. */
static void add(char *line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(char *line, const char *fmt, ...)
{
    const size_t used = strlen(line);
    va_list args;
    va_start(args, fmt);
    vsnprintf(line + used, LINE_SIZE - used, fmt, args);
    va_end(args);
}

static double fraction(const progress *p)
{
    const double f = p->total > 0 ? (double)p->done / (double)p->total : 0;
    return f < 0 ? 0 : f > 1 ? 1 : f;
}

static void add_bar(const progress *p, char *line)
{
    if (!p->sink->is_terminal || p->total <= 0) return;
    const int full = (int)(fraction(p) * BAR_CELLS);
    char bar[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    add(line, p->sink->has_color ? " \033[32m%.*s\033[0m%s" : " %.*s%s", full, bar, bar + full);
}

/* Columns that a line takes: escape sequences take none, nor do the later bytes of a character. */
static void cut_to_width(char *line, int width)
{
    int columns = 0;
    bool is_colored = false;
    for (char *c = line; *c; c++) {
        if (*c == '\033') {
            is_colored = !is_colored;
            while (*c && *c != 'm')
                c++;
            if (!*c) return;
            continue;
        }
        if (((unsigned char)*c & 0xC0) == 0x80) continue;
        if (++columns <= width) continue;
        strcpy(c,
               is_colored ? "\033[0m" : ""); /* at most LINE_SIZE - 5 stands before it: see show */
        return;
    }
}

static void show(progress *p, double now, const char *note, bool is_last)
{
    char line[LINE_SIZE + 8] = "", took[32];
    const double elapsed = now - p->started;
    const double rate = elapsed > 0 ? (double)(p->done - p->first) / elapsed : 0;
    add(line, "%s", p->what);
    if (!is_last) add_bar(p, line);
    add(line, " %lld", (long long)p->done);
    if (p->total > 0) add(line, "/%lld", (long long)p->total);
    add(line, " %s", p->unit);
    if (rate > 0) add(line, rate < 9.995 ? ", %.2f %s/s" : ", %.0f %s/s", rate, p->unit);
    if (is_last)
        add(line, ", took %s", format_seconds(elapsed, took, sizeof took));
    else if (rate > 0 && p->total > p->done)
        add(line, ", %s left",
            format_seconds((double)(p->total - p->done) / rate, took, sizeof took));
    if (note && *note) add(line, ", %s", note);

    const bool is_transient = p->sink->is_terminal && !is_last;
    if (is_transient) cut_to_width(line, (p->sink->width > 0 ? p->sink->width : 80) - 1);
    p->sink->line(p->sink->user, line, is_transient);
    p->shown = now;
}

void progress_update(progress *p, int64_t done, const char *note)
{
    p->done = done;
    if (!p->sink || !p->sink->line) return;
    const double now = monotonic_seconds();
    if (now - p->shown < (p->sink->is_terminal ? redraw_seconds : plain_seconds)) return;
    show(p, now, note, false);
}

void progress_end(progress *p, const char *note)
{
    if (p->sink && p->sink->line) show(p, monotonic_seconds(), note, true);
}

/* progress.h - what a person sees while long work runs, and the log lines of the program.
 *
 * On a terminal: one line redrawn at most ten times a second, with bar, count, rate and time left.
 * Elsewhere: a plain line every few seconds. Goes to stderr; a closed or full stderr drops lines
 * and never stops the work. NO_COLOR and --quiet are honoured. Monotonic clock only. The library
 * takes a sink, so that only the program prints: sink NULL is silence. */
#ifndef CORE_PROGRESS_H
#define CORE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Where lines go. `line` has no newline; transient lines may be overwritten by the next one. */
typedef struct log_sink {
    void (*line)(void *user, const char *text, bool transient);
    void *user;
    bool is_terminal;
    bool has_color;
    int width; /* columns; 0 = 80 */
} log_sink;

void log_line(const log_sink *sink, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

typedef struct progress {
    const log_sink *sink; /* borrowed; NULL is silence */
    const char *what;     /* "train", "pack", ...; borrowed */
    const char *unit;     /* "img", "step"; borrowed */
    int64_t total, done,
        first; /* first: where this run began, so that a resumed run's rate is right */
    double started, shown;
} progress;

void progress_begin(progress *p, const log_sink *sink, const char *what, const char *unit,
                    int64_t total, int64_t first);
/* `note` (may be NULL) follows the figures: "loss 0.031". */
void progress_update(progress *p, int64_t done, const char *note);
void progress_end(progress *p, const char *note); /* final plain line */

double monotonic_seconds(void);
/* "1.2 s", "3 min 20 s", "2 h 05 min" / "1.5 GiB" into dst; returns dst. */
const char *format_seconds(double s, char *dst, unsigned size);
const char *format_bytes(uint64_t bytes, char *dst, unsigned size);

#endif

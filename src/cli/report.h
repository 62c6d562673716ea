/* report.h - the figures of a command, kept once: what the screen shows is what --json writes,
 * under the same names and in the same order.
 *
 * Names are words with '_' and end in the unit where there is one: _bytes, _ms, _s, _per_s. A call
 * that runs out of memory is remembered, and report_end says so. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "ddpm/status.h"

#include "commit.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { REPORT_DEPTH = 6 };

typedef struct report {
    struct json_t
        *at[REPORT_DEPTH]; /* at[0] the whole, at[depth] the object that takes the next figure */
    int depth;
    bool failed;
} report;

void report_begin(report *r);
void report_release(report *r);

void report_int(report *r, const char *name, int64_t value);
void report_real(report *r, const char *name, double value); /* not finite: null, shown as - */
void report_bool(report *r, const char *name, bool value);
void report_text(report *r, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* What follows belongs to the object `name`, until report_close. */
void report_open(report *r, const char *name);
/* The same for a new row of the table `name`; rows of one table have the same figures in the same
 * order. */
void report_row(report *r, const char *name);
void report_close(report *r);

/* NOMEM when a figure was lost. */
ddpm_status report_end(const report *r);
/* For eyes: figures, then objects and tables below their names. */
void report_show(const report *r, FILE *out);
/* Onto the screen, as JSON. NOMEM. */
ddpm_status report_print_json(const report *r);

/* For commands with `--json FILE|-`: opened before work that would be lost, so that a place that cannot be written to shows at
 * once. path NULL or "-": *out is NULL. CANTCREAT, PERM, IO, NOMEM. */
ddpm_status report_open_file(const char *path, commit **out);
/* After the work ended with `s`: JSON into `file`, whole or not at all, or onto the screen (path "-"); else, and beside a
 * file, the figures for eyes. Frees file; where s is a failure, that is all and s is returned. */
ddpm_status report_finish(const report *r, ddpm_status s, const char *path, commit *file);

#endif

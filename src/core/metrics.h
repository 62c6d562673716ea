/* metrics.h - a run's numbers over its steps: one JSON object a line in DIR/metrics.jsonl, and,
 * where built with protobuf-c and ISA-L, TensorBoard scalars in DIR/events.out.tfevents.*.
 *
 * A full log disk drops lines and counts them (metrics_dropped); training goes on. On resume at
 * step s, lines of steps beyond s are cut off, so that no step stands twice. */
#ifndef CORE_METRICS_H
#define CORE_METRICS_H

#include "ddpm/status.h"

#include <stdint.h>

typedef struct metrics metrics;

ddpm_status metrics_open(const char *dir, int64_t resume_step, metrics **out);
void metrics_close(metrics *m); /* accepts NULL */
/* Values of one step are collected until metrics_flush writes the line. Names: "loss", "loss/q1",
 * "grad_norm", "lr", "images_per_s", "validation_loss"; the same on screen and in both files. NaN
 * is written as null. */
void metrics_put(metrics *m, const char *name, double value);
void metrics_flush(metrics *m, int64_t step);
int64_t metrics_dropped(const metrics *m);

#endif

/* train.h - a run: from a configuration and a folder to checkpoints; the same call again goes on.
 */
#ifndef DDPM_TRAIN_H
#define DDPM_TRAIN_H

#include "ddpm/backend.h"
#include "ddpm/config.h"
#include "ddpm/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct log_sink;

typedef struct ddpm_trainer ddpm_trainer;

/* Model, weights block { p, g, m, v, ema... }, dataset (borrowed configuration is copied). Weights
 * are initialised, step is 0. CONFIG where pack and model differ (size, channels, classes), NOMEM
 * before anything is allocated where the memory needed exceeds what there is, with the largest
 * micro_batch that fits. */
ddpm_status ddpm_trainer_create(ddpm_backend *be, const ddpm_config *cfg, ddpm_trainer **out);
void ddpm_trainer_free(ddpm_trainer *t); /* accepts NULL */

/* Makes a trainer without data and the device calls of one step, on a backend that only notes them (planning.h): what
 * `ddpm plan --gpu` counts. */
ddpm_status ddpm_trainer_plan(ddpm_backend *be, const ddpm_config *cfg);

typedef struct {
    int64_t step;              /* its number, from 1 */
    double loss;               /* mean over the batch */
    double quartile_sum[4];    /* of the losses by quartile of t, */
    int64_t quartile_count[4]; /* and of how many images */
    double grad_norm;          /* before clipping */
    double lr;
    bool skipped;           /* non-finite gradient or loss: weights and moments untouched */
    int64_t skipped_in_row; /* up to this one */
} ddpm_step_result;

/* One step of algorithm 1 on batch `step` of the stream: micro-batches, clip, AdamW, EMAs. NUMERIC
 * after train.max_skipped skipped steps in a row. Queue and collect in one; no step may be pending. */
ddpm_status ddpm_trainer_step(ddpm_trainer *t, ddpm_step_result *out);
/* The same without waiting for the device: its figures lie there until they are collected. At most
 * DDPM_STEPS_PENDING may be pending: ARG. */
enum { DDPM_STEPS_PENDING = 256 };
ddpm_status ddpm_trainer_queue(ddpm_trainer *t);
int ddpm_trainer_pending(const ddpm_trainer *t);
/* Waits for the pending steps and gives their figures in order: out [DDPM_STEPS_PENDING], n of them.
 * NUMERIC as ddpm_trainer_step, once one of them was one too many; the figures are there all the
 * same. */
ddpm_status ddpm_trainer_collect(ddpm_trainer *t, ddpm_step_result *out, int *n);
/* Every step from now on uses batch 0 with t and eps of step 0: the loss must fall to nearly
 * nothing. */
void ddpm_trainer_overfit(ddpm_trainer *t, bool on);
int64_t ddpm_trainer_step_number(const ddpm_trainer *t); /* steps queued */
ddpm_model *ddpm_trainer_model(ddpm_trainer *t);         /* borrowed */
/* Mean loss on the validation images by fixed t and eps, with weights -1 (raw) or EMA k. NaN
 * without validation images. */
ddpm_status ddpm_trainer_validate(ddpm_trainer *t, int ema, double *loss);

/* One file, atomically, verified; see checkpoint.h for what is inside. */
ddpm_status ddpm_trainer_save(ddpm_trainer *t, const char *path);
/* Weights, moments, EMAs, counters. CONFIG with the differing keys where the checkpoint's model
 * differs; FORMAT. */
ddpm_status ddpm_trainer_load(ddpm_trainer *t, const char *path);

typedef struct {
    const char *dir;    /* run folder; made */
    int64_t max_steps;  /* > 0: end at this step in all, schedules unchanged */
    double max_seconds; /* > 0: save and STOPPED after this time */
    bool overfit;
    bool override_config; /* go on though keys of the model-independent sections changed */
    const struct log_sink *sink;
    const volatile int *stop; /* set by a signal handler: save, STOPPED */
} ddpm_run_options;

typedef struct {
    int64_t first_step, last_step;
    double loss; /* mean of the last log_every steps */
    double images_per_second;
    double seconds_to_first_step; /* from run_train's start */
    char *checkpoint;             /* newest, malloc'd; freed by ddpm_run_report_free */
} ddpm_run_report;

/* The whole run: lock, config.yaml, resume from the newest checkpoint that verifies, loop, metrics,
 * previews, checkpoints, pruning. LOCKED, CONFIG (changed keys), STOPPED (checkpoint saved),
 * NUMERIC, IO and the rest. */
ddpm_status ddpm_train_run(ddpm_backend *be, const ddpm_config *cfg, const ddpm_run_options *opts,
                           ddpm_run_report *report);
void ddpm_run_report_free(ddpm_run_report *r);

#ifdef __cplusplus
}
#endif
#endif

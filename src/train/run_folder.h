/* run_folder.h - where a run lives: DIR/config.yaml, checkpoints/, previews/, metrics, lock. */
#ifndef TRAIN_RUN_FOLDER_H
#define TRAIN_RUN_FOLDER_H

#include "ddpm/config.h"

#include "commit.h"
#include "progress.h"

#include <stdbool.h>
#include <stddef.h>

struct run_folder {
    char *dir;
    run_lock *lock;
    char *path; /* of the file at hand, by run_folder_path */
    size_t path_size;
};

/* Makes the folder and those in it, locks it, and removes what killed processes left. CANTCREAT,
 * PERM, LOCKED. Half-open ones may be released too. */
ddpm_status run_folder_open(const char *dir, struct run_folder *out);
void run_folder_release(struct run_folder *f);

/* DIR/NAME; valid until the next call. */
const char *run_folder_path(struct run_folder *f, const char *name);
/* DIR/checkpoints/step-00010000.safetensors and DIR/previews/step-00010000.png, likewise. */
const char *run_folder_checkpoint(struct run_folder *f, int64_t step);
const char *run_folder_preview(struct run_folder *f, int64_t step);

/* Compares with DIR/config.yaml: model and diffusion must be the same, other keys unless
 * `may_differ`; where the pack lies, and how it is read, may always change. Writes config.yaml
 * where it is missing or something changed. `is_new`: the run has no checkpoint, so nothing can be
 * spoilt and any change is taken. CONFIG with the keys. */
ddpm_status run_folder_settle(struct run_folder *f, const ddpm_config *cfg, bool is_new,
                              bool may_differ, const log_sink *sink);
/* A run that overfits one batch stays one, and any other stays what it is: CONFIG. */
ddpm_status run_folder_settle_overfit(struct run_folder *f, bool is_new, bool overfit);

#endif

/* checkpoint.h - the one file of a run's state, and how it is found again.
 *
 * checkpoints/step-00010000.safetensors:
 *   weights.NAME, ema.K.NAME, adam_m.NAME, adam_v.NAME   f32, NAME and layout as in files (model.h)
 *   metadata: ddpm.kind = "checkpoint", ddpm.version = "1", ddpm.config = the resolved YAML, ddpm.step, ddpm.updates
 *   (steps not skipped), ddpm.skipped_in_row, ddpm.seed, ddpm.dataset (source hash), ddpm.ema (rates "0.9999,0.99")
 * Sampling needs nothing else. It lives below the trainer, as the sample layer reads it too. */
#ifndef SAMPLE_CHECKPOINT_H
#define SAMPLE_CHECKPOINT_H

#include "ddpm/config.h"
#include "ddpm/model.h"
#include "safetensors.h"

typedef struct {
    int64_t step, updates, skipped_in_row;
    uint64_t seed;
    char dataset[33];
    int n_ema;
    double ema[4];
} checkpoint_counters;

enum { CHECKPOINT_NAME_BYTES = 64 };

/* "step-00010000.safetensors". */
void checkpoint_name(int64_t step, char dst[CHECKPOINT_NAME_BYTES]);

/* Opens, compares every hash, and reads metadata: configuration (owned by the caller: ddpm_config_free) and counters. FORMAT
 * where it is damaged or some other file, naming what it is. */
ddpm_status checkpoint_open(const char *path, st_file **file, ddpm_config *cfg, checkpoint_counters *counters);
/* One family of tensors ("weights", "ema.0", "adam_m", ...) into a host array of the model's flat layout. FORMAT lists every
 * missing, extra or misshapen tensor in one message, and names one that is not finite. */
ddpm_status checkpoint_read(st_file *file, const char *prefix, const ddpm_model *model, float *arena);
/* Writes and commits; arrays are host, flat layout, n_ema + 3 of them in the order weights, adam_m, adam_v, ema.0, ... */
ddpm_status checkpoint_write(const char *path, const ddpm_config *cfg, const checkpoint_counters *counters,
                             const ddpm_model *model, const float *const *arrays);
/* The newest checkpoint of a run folder that passes st_verify; *path malloc'd, NULL when there is none. Each one skipped is told
 * to the sink with its reason. FORMAT when there are checkpoints but none verifies. */
struct log_sink;
ddpm_status checkpoint_newest(const char *run_dir, const struct log_sink *sink, char **path);
/* Removes all but the newest keep_last and those at multiples of keep_every (0: none). Never the newest that verified. */
ddpm_status checkpoint_prune(const char *run_dir, int keep_last, int64_t keep_every, const char *protect);

#endif

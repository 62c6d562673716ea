/* plan_gpu.h - what a configuration costs on a GPU that need not be there: the second half of `ddpm plan`. */
#ifndef CLI_PLAN_GPU_H
#define CLI_PLAN_GPU_H

#include "report.h"

#include "ddpm/config.h"

struct plan_gpu_options {
    const char *gpu; /* name or file */
    int precision;   /* enum ddpm_precision */
    int64_t batch;   /* 0: as configured */
    bool is_deterministic, compiles, skips_engines;
};

/* Figures of a training step and of a reverse step, their calls and cuDNN's engines for them, into the report. */
ddpm_status plan_gpu(const struct plan_gpu_options *o, const ddpm_config *cfg, report *r);
/* The properties of this machine's first GPU to a file, whole or not at all. BACKEND without one, or without cuDNN. */
ddpm_status plan_write_properties(const char *path);

#endif

/* info.h - what a file or a folder is: the parts of `ddpm info`. */
#ifndef CLI_INFO_H
#define CLI_INFO_H

#include "progress.h"
#include "report.h"
#include "safetensors.h"

#include <stdbool.h>

typedef struct {
    const char *path;
    bool verifies, lists_tensors;
    const log_sink *sink;
    report *r;
} info_job;

/* Puts "path", "kind" and the figures of that kind. With `verifies` every hash or checksum the file
 * carries is proved and "verified" put. FORMAT names what the first bytes look like where the kind
 * is unknown. */
ddpm_status info_file(const info_job *job);
ddpm_status info_folder(const info_job *job);

/* Any safetensors file: checkpoint, pack, or one of another program. */
ddpm_status info_safetensors(const info_job *job);
/* arr_0, arr_1 and seeds of a samples file; reads every byte where `verifies`. */
ddpm_status info_npz(const info_job *job);
/* "verified" for a file that has carried its checks already, or has none: `how` says which. */
void info_verified(const info_job *job, const char *how);
/* The last line of a run's metrics: its figures into "last_metrics". A file without one is no
 * fault. */
ddpm_status info_metrics(const info_job *job, const char *path);

#endif

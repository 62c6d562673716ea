/* job.h - what the files of the sampling job share.
 *
 * job.c prepares (checkpoint -> network -> sampler) and leads; job_folder.c says what the output folder holds and whether it is
 * ours; job_shards.c draws and proves shards; job_pictures.c is for people; shards.h has names and ranges, which merge.c needs
 * too. */
#ifndef SAMPLE_JOB_H
#define SAMPLE_JOB_H

#include "ddpm/sample.h"

#include "progress.h"
#include "shards.h"

/* Images shown in the animation: frames of the first images, filled as these are drawn. */
typedef struct {
    int n_frames, n_images; /* 0: nothing is collected */
    int *step;              /* [n_frames] sampler step of each frame, falling; owned */
    uint8_t *images;        /* [n_frames, n_images, h, w, c]; owned */
} frame_store;

typedef struct {
    const ddpm_sample_job *args; /* borrowed */
    ddpm_backend *be;            /* borrowed */
    ddpm_config cfg;             /* of the checkpoint, with the job's overrides */
    char checkpoint_hash[33];    /* of the file's header, which holds every tensor's hash */
    int64_t checkpoint_step;
    int shards;                  /* of the whole job */
    bool is_alone;               /* this process draws all shards, and merges them */
    shard_shape shape;           /* of the images */
    int grid;                    /* images in the pictures; 0: none */

    ddpm_model *model;
    float *weights; /* on the device, owned */
    void *half;     /* the same as bf16, for a bf16 network; owned */
    ddpm_sampler *sampler;
    int batch;

    uint8_t *images; /* [batch,h,w,c]; owned, as the next three */
    uint64_t *index; /* [batch] */
    int32_t *label;  /* [batch] */
    int64_t *wide;   /* [2 * batch] numbers on their way to a file */

    frame_store frames;
    progress shown;
    int64_t done, first; /* images done, skipped ones included; first of the batch that is being drawn */
    ddpm_sample_report report;
} sample_run;

/* The class of sample `index`; 0 for an unconditional model. */
int32_t job_label(const sample_run *r, uint64_t index);
/* Samples first .. first+n-1 (n <= batch) into r->images, r->index, r->label; frames as collected. */
ddpm_status job_draw(sample_run *r, int64_t first, int n);

/* Makes the folder and OUTPUT/job.yaml, or compares it: CANTCREAT names the first difference. */
ddpm_status job_claim_folder(const sample_run *r);
/* OUTPUT/name, malloc'd; NOMEM. */
ddpm_status job_path(const sample_run *r, const char *name, char **out);

/* Shard k drawn and committed, or found whole and counted as skipped. */
ddpm_status job_shard(sample_run *r, int k, bool *was_drawn);

/* Before shard 0: makes r->frames ready where an animation is wanted. */
ddpm_status job_frames_begin(sample_run *r);
void job_frames_release(sample_run *r);
/* After shard 0: grid.png from its images, animation.webp from r->frames. What is there already, from the same images, stays. */
ddpm_status job_pictures(sample_run *r, bool was_drawn);

#endif

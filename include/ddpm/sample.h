/* sample.h - the reverse process: batches of images, and the job that fills a folder. */
#ifndef DDPM_SAMPLE_H
#define DDPM_SAMPLE_H

#include "ddpm/backend.h"
#include "ddpm/diffusion.h"
#include "ddpm/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ddpm_sampler ddpm_sampler;

/* One batch at a time on a model that is bound to weights, in the model's precision. The model is borrowed and reserved for
 * `batch` images here unless it is already reserved for as many. NOMEM, CONFIG (spacing). */
ddpm_status ddpm_sampler_create(ddpm_backend *be, ddpm_model *model,
                                const ddpm_diffusion_config *diffusion,
                                const ddpm_sample_config *cfg, int batch, ddpm_sampler **out);
void ddpm_sampler_free(ddpm_sampler *s); /* accepts NULL; not the model */
int ddpm_sampler_steps(const ddpm_sampler *s);

/* Called after reverse steps, S .. 1, with the current x0_hat as u8 [n,H,W,C] (host, borrowed), or NULL
 * where the step's picture is not wanted: then it tells how far the run is, after every step on a CPU,
 * after some of them on a GPU, which is not made to wait. */
typedef void (*ddpm_frame_sink)(void *user, int step, const uint8_t *x0_hat);
/* The steps whose pictures the sink gets, from the next run on: step [n], borrowed; n = 0 none. At
 * first, and with n = -1, all. */
void ddpm_sampler_frames(ddpm_sampler *s, const int *step, int n);

/* Images of the samples index[0..n-1] (n <= batch), noise keyed by (seed, index): u8 [n,H,W,C] on
 * the host. label [n] or NULL. frames may be NULL, and is then free of cost. *stop (may be NULL)
 * ends it between steps with STOPPED. NUMERIC when the network gives non-finite values, with the
 * step and sample. On a GPU every step is one launch of a recording (backend.h). */
ddpm_status ddpm_sampler_run(ddpm_sampler *s, uint64_t seed, int n, const uint64_t *index,
                             const int32_t *label, uint8_t *images, ddpm_frame_sink frames,
                             void *user, const volatile int *stop);

/* Makes a model and a sampler and the device calls of one reverse step of `batch` images, on a backend that only notes them
 * (planning.h), with x_T and the images' bytes once: what `ddpm plan --gpu` counts. */
ddpm_status ddpm_sampler_plan(ddpm_backend *be, const ddpm_config *cfg, int batch);

/* ---- the job ---- */
struct log_sink;
typedef struct {
    const char
        *checkpoint; /* a checkpoint file, or a run folder: its newest checkpoint that verifies */
    const char *output; /* folder, made */
    int64_t n;          /* images in all */
    uint64_t seed;
    int ema;           /* which averaged weights: 0 the first; -1 the raw weights */
    int64_t label;     /* -1: unconditional, or drawn uniformly by sample for a conditional model */
    int shard, shards; /* k of n, 0-based; 0, 0: one */
    int64_t grid;      /* images in the PNG grid (at most n); 0 none, -1: 64 */
    bool animation;    /* of the grid's images */
    const char *const *set; /* overrides of sample.* keys */
    int n_set;
    int steps; /* > 0: shorthand: that many steps ("ddimN" or "N" by sampler) */
    const struct log_sink *sink;
    const volatile int *stop;
} ddpm_sample_job;

typedef struct {
    int64_t sampled, skipped; /* skipped: already there from an earlier run of the same job */
    int steps;
    double seconds;
    char *npz, *grid, *animation; /* paths written, malloc'd, or NULL; the caller frees by
                                     ddpm_sample_report_free */
} ddpm_sample_report;

/* Shards OUTPUT/samples-00000-of-00128.npz: arr_0 U8 [m,H,W,C], arr_1 I64 labels (conditional),
 * seeds I64 [m,2] = (seed, index); shard k holds samples k*n/shards .. (k+1)*n/shards - 1. A shard
 * that is there and complete is not computed again; one is written as it is drawn, in memory
 * bounded by the batch, and committed once. Ends with grid.png and animation.webp of the first
 * images (shard 0), and job.yaml with all that determines the bytes; a folder of another job is
 * CANTCREAT naming the difference. With shards = 1 also OUTPUT/samples_NxHxWxC.npz. */
ddpm_status ddpm_sample_run(ddpm_backend *be, const ddpm_sample_job *job,
                            ddpm_sample_report *report);
void ddpm_sample_report_free(ddpm_sample_report *r);

/* Shards of `dir` to one npz with the same bytes whatever the sharding. NOINPUT lists the missing
 * shards. */
ddpm_status ddpm_merge(const char *dir, const char *output, const struct log_sink *sink);

#ifdef __cplusplus
}
#endif
#endif

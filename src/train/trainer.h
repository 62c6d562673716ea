/* trainer.h - what the files of this folder share: the trainer's memory and its parts.
 *
 * setup.c makes it, trainer.c steps it, validate.c measures it, state.c writes and reads it, run.c
 * and run_folder.c make a run of it. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "ddpm/dataset.h"
#include "ddpm/diffusion.h"
#include "ddpm/train.h"

#include "arena.h"
#include "ops.h"

struct ddpm_trainer {
    ddpm_backend *be;      /* borrowed */
    const struct ops *ops; /* of be */
    ddpm_config cfg;       /* a copy of the caller's */
    ddpm_dataset *data;
    ddpm_model *model;
    ddpm_schedule *schedule;
    int64_t batch, micro_batch; /* images of a step, and at a time */
    int64_t h, w, c;
    int n_ema;
    const volatile int *stop; /* borrowed or NULL: ends a validation early */

    /* The weights block: arrays of `count` floats, each on 64 bytes. */
    void *weights_block;
    int64_t count; /* the model's flat array, rounded up to 16; what is behind stays zero */
    float *p, *g, *m, *v, *ema[OPS_EMA_MAX];
    uint16_t *half; /* the bound weights as bf16, for a bf16 network; else NULL */

    /* The batch block, on the device. Small things for the whole batch, uploaded once a step;
     * images in float for one micro-batch at a time. */
    void *batch_block;
    uint8_t *images;             /* [batch,h,w,c] as the pack has them */
    uint8_t *flip;               /* [batch] */
    int32_t *label;              /* [batch]; NULL for an unconditional model */
    int32_t *t;                  /* [batch] 1..T, drawn by open_step */
    float *time;                 /* [batch] what the network is told: t - 1 */
    uint64_t *index;             /* [batch] 0, 1, ...: position in the global batch */
    float *loss;                 /* [batch] */
    void *xt, *out;              /* [micro_batch,h,w,c] of the network's type; out becomes its own gradient */
    float *q_rows, *target_rows; /* [T+1,2] of diffusion.h */
    float *model_time;           /* [T+1] */
    double *sum;                 /* squares of the gradient, or of the weights */
    struct step_counters *counters;
    struct step_figures *ring; /* [DDPM_STEPS_PENDING] of the steps that are pending */
    struct step_state *state, *valid_state;
    uint64_t *valid_index; /* [micro_batch] which validation image */

    /* The whole pack on the device, where there is room beside the rest: a batch is a list of numbers. */
    void *pack_block;     /* NULL: batches are uploaded */
    uint8_t *pack;        /* [n,h,w,c] */
    int32_t *pack_labels; /* [n]; NULL for an unconditional model */
    int32_t *number;      /* [batch] which images the batch is of */

    /* Staging on the host, one block. */
    void *host_block;
    int32_t *host_label, *host_t, *host_number;
    float *host_time, *host_loss;
    struct step_figures *host_ring; /* [DDPM_STEPS_PENDING] */
    ddpm_step_result *results;      /* [DDPM_STEPS_PENDING], of the last collection */
    uint8_t *valid_images; /* [micro_batch,h,w,c]; NULL without validation images */
    int64_t *valid_labels; /* [micro_batch] */
    uint64_t *host_index;  /* [batch] */

    /* The counters on the device are those that count. Here: steps queued; and of the last step
     * collected its number, updates and skipped steps in a row. */
    int64_t step, collected, updates, skipped_in_row;

    ddpm_recording *recording; /* of the calls of a step */

    bool is_overfit;
    int64_t loaded; /* the step whose batch lies on the device; -1: none */
};

/* All of ddpm_trainer_create but the initial weights: a run that resumes has no use for them. */
ddpm_status trainer_build(ddpm_backend *be, const ddpm_config *cfg, ddpm_trainer **out);
/* Weights from the seed, EMAs as their copies. */
ddpm_status trainer_init_weights(ddpm_trainer *t);

/* Which noise a pass draws, and whether backward follows. */
struct loss_pass {
    const struct step_state *state; /* device: the key */
    const uint64_t *index;          /* device [n] */
    uint32_t purpose;
    bool use_step, is_training;
};
/* Images first .. first+n-1 of the batch on the device, n <= micro_batch: q_sample, the network,
 * the loss of each into t->loss; when training, also the backward pass, which adds to g. */
ddpm_status trainer_pass(ddpm_trainer *t, const struct loss_pass *pass, int64_t first, int64_t n);
/* Binds the model to weights, and brings `half` in line with them. */
ddpm_status trainer_bind(ddpm_trainer *t, float *weights, float *grads);
/* Back to the trained weights after something else used the network, which ended with s: s, or what
 * failed now. */
ddpm_status trainer_rebind(ddpm_trainer *t, ddpm_status s);
/* Puts the pack on a device that has room for it; else nothing is changed. */
ddpm_status trainer_place_pack(ddpm_trainer *t);
/* ddpm_calls: all of a step whose batch lies on the device; user is the trainer. */
ddpm_status trainer_step_calls(void *user);
/* What the device has counted when all that is queued is done; and back, with nothing pending. */
ddpm_status trainer_counters(ddpm_trainer *t, struct step_counters *out);
ddpm_status trainer_set_counters(ddpm_trainer *t, const struct step_counters *c);

/* ---- previews (preview.c) ---- */
struct preview;
/* Takes all the memory that drawing will need. CONFIG, NOMEM. */
ddpm_status preview_create(ddpm_trainer *t, struct preview **out);
void preview_free(struct preview *p); /* accepts NULL */
/* The grid by the first EMA and fixed seeds, as PNG. The trainer is as before, also after a
 * failure. STOPPED. */
ddpm_status preview_draw(struct preview *p, ddpm_trainer *t, const char *path,
                         const volatile int *stop);

#endif

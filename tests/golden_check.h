/* golden_check.h - what the routines of golden_check share: one open golden file, its tensors on
 * the device, and the comparison by the file's own rule.
 *
 * Layout. Files have channels second: [N,C,H,W], [O,I,kh,kw], [N,C,L]. Here every tensor of rank 3
 * or 4 is loaded as rank 4 with channels last, [N,H,W,C] ([N,L,1,C] for rank 3), and compared in
 * that order; ranks 1 and 2 stay as they are.
 *
 * Rule. error = max|a-b| / max|b| over a tensor, at most the file's limit. Gradients that are zero
 * by structure are compared with 1e-5 of the file's largest gradient; see the README beside the
 * files. */
#ifndef GOLDEN_CHECK_H
#define GOLDEN_CHECK_H

#include "ddpm/backend.h"
#include "ddpm/diffusion.h"
#include "ddpm/model.h"
#include "fail.h"
#include "ops.h"
#include "safetensors.h"

#include <jansson.h>

struct golden_block;

typedef struct {
    ddpm_backend *be;      /* borrowed */
    const struct ops *ops; /* borrowed */
    const char *path;      /* borrowed */
    st_file *file;
    st_file *gradients; /* the second file with g.w.*, or NULL */
    json_t *setting;    /* the metadata's "case" */
    json_t *zero;       /* array of keys, or NULL */
    json_t *ill;        /* array of weights left out, or NULL */
    double limit;    /* the file's; golden_limit has what holds */
    double enlarged; /* what makes the tensor at hand of another, and its error with it: 1, but in samplers */
    int precision; /* enum ddpm_precision: of networks */
    double largest_gradient; /* of all g.*; negative until it is needed */
    bool is_quiet;           /* only failures are printed per tensor */
    int compared, failed;
    double worst;                /* largest error relative to max|b| */
    struct golden_block *blocks; /* memory of this case, host and device */
} golden;

/* One routine serves one kind. */
typedef ddpm_status (*golden_routine)(golden *g);
ddpm_status golden_op(golden *g);       /* golden_check_ops.c: dispatches by kind */
ddpm_status golden_resblock(golden *g); /* golden_check_blocks.c */
ddpm_status golden_attention_block(golden *g);
ddpm_status golden_unet(golden *g); /* golden_check_model.c */
ddpm_status golden_weights(golden *g);
ddpm_status golden_train(golden *g);     /* golden_check_train.c */
ddpm_status golden_schedules(golden *g); /* golden_check_math.c */
ddpm_status golden_q(golden *g);
ddpm_status golden_sampler(golden *g); /* golden_check_samplers.c */

/* ---- memory that lives as long as the case ---- */
void golden_release(golden *g);                              /* all of it */
ddpm_status golden_host(golden *g, size_t bytes, void *out); /* out: address of a pointer; zeroed */
ddpm_status golden_device(golden *g, size_t bytes, void *out); /* zeroed */
ddpm_status golden_upload(golden *g, const void *host, size_t bytes, void *out);
ddpm_status golden_empty(golden *g, int rank, const int64_t dim[], ddpm_tensor *out);
ddpm_status golden_like(golden *g, const ddpm_tensor *t, ddpm_tensor *out); /* same shape, zeroed */
ddpm_status golden_floats(golden *g, const ddpm_tensor *t, float **out); /* contents on the host */
/* step_state and image numbers 0 .. n-1 on the device, for ops and models that want them. */
ddpm_status golden_state(golden *g, int64_t n, struct step_state **state, uint64_t **index);

/* ---- tensors of the file ---- */
bool golden_has(const golden *g, const char *key);
/* FORMAT when absent, of another rank (rank 0: any) or not a number. */
ddpm_status golden_find(const golden *g, const char *key, int rank, const st_tensor **out);
ddpm_status golden_load(golden *g, const char *key, ddpm_tensor *out);
ddpm_status golden_load_i32(golden *g, const char *key, int64_t add, int64_t low, int64_t high,
                            int32_t **out);
ddpm_status golden_load_scalar(golden *g, const char *key, double *out);
/* Slice i of the first dimension, as floats with channels last: [S,N,C,H,W] -> [N,H,W,C]. */
ddpm_status golden_slice(golden *g, const char *key, int64_t i, float *dst, int64_t count);
/* [n,c,p] -> [n,p,c]. */
void golden_channels_last(const float *src, float *dst, int64_t n, int64_t c, int64_t pixels);

/* ---- the case ---- */
bool golden_case_has(const golden *g, const char *key);
ddpm_status golden_case_int(const golden *g, const char *key, int64_t *out);
ddpm_status golden_case_real(const golden *g, const char *key, double *out);
bool golden_listed(const json_t *list, const char *name);

/* ---- comparison ---- */
ddpm_status golden_compare(golden *g, const char *key, const ddpm_tensor *t);
/* The largest error allowed to a tensor. */
double golden_limit(const golden *g, const char *key);
/* Host values in the file's own order. */
ddpm_status golden_compare_f32(golden *g, const char *key, const float *values, int64_t count);
ddpm_status golden_compare_f64(golden *g, const char *key, const double *values, int64_t count,
                               double limit);
/* Of a and b as they are. */
void golden_compare_arrays(golden *g, const char *key, const float *a, const float *b,
                           int64_t count);
void golden_report(golden *g, const char *key, double error, double limit);

/* ---- models, golden_check_model.c ---- */
ddpm_status golden_model_create(golden *g, const json_t *setting, ddpm_model **out);
/* Binds weights and gradients, in a bf16 network also `half`, made here. */
ddpm_status golden_bind(golden *g, ddpm_model *m, float *weights, float *grads, ddpm_tensor *half);
/* A tensor of the network's type like t; and t's contents in the other type of f32 and bf16. */
ddpm_status golden_activation(golden *g, const ddpm_model *m, const ddpm_tensor *t, ddpm_tensor *out);
ddpm_status golden_cast(golden *g, const ddpm_tensor *t, ddpm_tensor *out);
/* w.* of `from` into a host array of ddpm_model_arena_count elements; every weight must be there
 * with its shape. */
ddpm_status golden_model_weights(golden *g, st_file *from, const ddpm_model *m, float **out);
/* Weight by weight in the file's layout against keys PREFIX + name. */
ddpm_status golden_compare_arena(golden *g, const char *prefix, const ddpm_model *m,
                                 const float *device);
/* beta of the case's or scheduler's schedule -> tables; kinds linear, scaled_linear, cosine,
 * squaredcos_cap_v2. */
ddpm_status golden_schedule(const char *kind, int64_t steps, double start, double end,
                            ddpm_schedule **out);

#endif

/* config.h - every key of the configuration: one list, from which come the struct, the YAML parser,
 * --set, the resolved config.yaml, checkpoint metadata and the README's table.
 *
 * X(kind, section, key, default, lo, hi, help). Kinds: INT (int64_t), REAL (double), BOOL, STRING
 * (char *, owned), ENUM (int; `lo` is the list of names, "a|b|c", `hi` unused), INTS and REALS (up
 * to DDPM_LIST_MAX values, default a string "1,2,2"; lo and hi bound each value). */
#ifndef DDPM_CONFIG_H
#define DDPM_CONFIG_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DDPM_LIST_MAX 8

typedef struct {
    int n;
    int64_t v[DDPM_LIST_MAX];
} ddpm_int_list;
typedef struct {
    int n;
    double v[DDPM_LIST_MAX];
} ddpm_real_list;

enum ddpm_embedding_order { DDPM_SIN_COS, DDPM_COS_SIN };
enum ddpm_init { DDPM_INIT_DDPM, DDPM_INIT_PYTORCH };
enum ddpm_schedule_kind { DDPM_SCHEDULE_LINEAR, DDPM_SCHEDULE_COSINE };
enum ddpm_objective { DDPM_PREDICT_EPS, DDPM_PREDICT_X0, DDPM_PREDICT_V };
enum ddpm_sampler_kind { DDPM_SAMPLER_ANCESTRAL, DDPM_SAMPLER_DDIM };
enum ddpm_variance { DDPM_VARIANCE_SMALL, DDPM_VARIANCE_LARGE };
enum ddpm_lr_decay { DDPM_DECAY_NONE, DDPM_DECAY_LINEAR, DDPM_DECAY_COSINE };
enum ddpm_precision { DDPM_PRECISION_FP32, DDPM_PRECISION_BF16, DDPM_PRECISION_TF32 };

#define DDPM_CONFIG_LIST(X)                                                                        \
    X(INT, model, image_height, 32, 1, 8192, "rows of an image")                                   \
    X(INT, model, image_width, 32, 1, 8192, "columns of an image")                                 \
    X(INT, model, image_channels, 3, 1, 4, "1 grey, 3 RGB")                                        \
    X(INT, model, channels, 128, 1, 4096, "width of the first level")                              \
    X(REALS, model, channel_mult, "1,2,2,2", 0.125, 64,                                            \
      "width of each level, times `channels`")                                                     \
    X(INT, model, num_res_blocks, 2, 1, 16, "residual blocks per level")                           \
    X(INTS, model, attention_resolutions, "16", 0, 8192,                                           \
      "levels of this many rows get self-attention; 0: none but the middle's")                     \
    X(INT, model, num_heads, 1, 1, 64, "attention heads, where head_channels is 0")                \
    X(INT, model, head_channels, 0, 0, 1024, "channels of a head; 0: by num_heads")                \
    X(REAL, model, dropout, 0.0, 0, 0.9, "in each residual block, before its second convolution")  \
    X(INT, model, norm_groups, 32, 1, 512, "groups of GroupNorm")                                  \
    X(REAL, model, norm_eps, 1e-6, 1e-12, 1e-2, "epsilon of GroupNorm")                            \
    X(ENUM, model, embedding_order, DDPM_SIN_COS, "sin-cos|cos-sin", 0, "of the time embedding")   \
    X(REAL, model, embedding_shift, 1.0, 0, 1,                                                     \
      "frequencies are 10000^(-i / (half - shift)): 1 as in DDPM, 0 as in guided-diffusion")       \
    X(INT, model, downsample_padding, 0, 0, 1,                                                     \
      "of the stride-2 convolution: 0 pads bottom and right (DDPM), 1 every side")                 \
    X(BOOL, model, scale_shift, false, 0, 0, "the embedding scales and shifts the second norm")    \
    X(INT, model, num_classes, 0, 0, 1000000, "0: unconditional")                                  \
    X(ENUM, model, init, DDPM_INIT_DDPM, "ddpm|pytorch", 0, "initial weights")                     \
    X(ENUM, diffusion, schedule, DDPM_SCHEDULE_LINEAR, "linear|cosine", 0, "of beta_t")            \
    X(INT, diffusion, steps, 1000, 2, 100000, "T")                                                 \
    X(REAL, diffusion, beta_start, 1e-4, 1e-9, 0.999, "linear: beta_1")                            \
    X(REAL, diffusion, beta_end, 0.02, 1e-9, 0.999, "linear: beta_T")                              \
    X(ENUM, diffusion, objective, DDPM_PREDICT_EPS, "eps|x0|v", 0, "what the network predicts")    \
    X(STRING, data, pack, "", 0, 0, "folder or file made by `ddpm pack`")                          \
    X(INT, data, validation, 0, 0, 1000000000, "images kept out of training")                      \
    X(BOOL, data, flip, false, 0, 0, "mirror half of the images")                                  \
    X(INT, data, threads, 1, 0, 64, "reading ahead")                                               \
    X(INT, data, memory_mib, 2048, 0, 1048576, "a pack up to this size stays in memory; 0: none")  \
    X(INT, train, batch, 128, 1, 65536, "images per step")                                         \
    X(INT, train, micro_batch, 0, 0, 65536, "images at a time; 0: the whole batch")                \
    X(INT, train, steps, 800000, 1, 1000000000, "steps of the whole training")                     \
    X(REAL, train, lr, 2e-4, 0, 10, "learning rate")                                               \
    X(INT, train, warmup, 5000, 0, 1000000000, "steps of linear rise of the learning rate")        \
    X(ENUM, train, lr_decay, DDPM_DECAY_NONE, "none|linear|cosine", 0, "to 0 at `steps`")          \
    X(REAL, train, beta1, 0.9, 0, 0.999999, "of Adam")                                             \
    X(REAL, train, beta2, 0.999, 0, 0.9999999, "of Adam")                                          \
    X(REAL, train, adam_eps, 1e-8, 1e-16, 1, "of Adam")                                            \
    X(REAL, train, weight_decay, 0.0, 0, 10, "AdamW's; 0 is Adam")                                 \
    X(REAL, train, clip_norm, 1.0, 0, 1e9, "largest global norm of the gradient; 0: no clipping")  \
    X(REALS, train, ema, "0.9999", 0, 0.9999999,                                                   \
      "rates of the averaged weights, up to 4; the first is sampled")                              \
    X(BOOL, train, ema_warmup, true, 0, 0, "rate at step s is at most (1 + s) / (10 + s)")         \
    X(INT, train, seed, 0, 0, INT64_MAX, "of weights, order, noise")                               \
    X(INT, train, save_every, 5000, 1, 1000000000, "steps between checkpoints")                    \
    X(INT, train, keep_last, 3, 1, 1000000, "newest checkpoints kept")                             \
    X(INT, train, keep_every, 0, 0, 1000000000, "checkpoints at multiples of this stay; 0: none")  \
    X(INT, train, preview_every, 5000, 0, 1000000000, "steps between preview grids; 0: none")      \
    X(INT, train, preview_images, 64, 1, 4096, "in a preview grid")                                \
    X(INT, train, preview_steps, 25, 1, 100000, "DDIM steps of a preview")                         \
    X(INT, train, log_every, 50, 1, 1000000000, "steps between lines of metrics")                  \
    X(INT, train, validate_every, 5000, 0, 1000000000, "steps between validations; 0: none")       \
    X(INT, train, max_skipped, 10, 1, 1000000, "non-finite steps in a row before giving up")       \
    X(ENUM, train, precision, DDPM_PRECISION_FP32, "fp32|bf16|tf32", 0,                            \
      "of activations and products")                                                               \
    X(ENUM, sample, sampler, DDPM_SAMPLER_ANCESTRAL, "ancestral|ddim", 0, "reverse process")       \
    X(STRING, sample, spacing, "", 0, 0,                                                           \
      "steps kept: 250, \"10,15,20\", ddim50, trailing:20, leading:20; empty: all")                \
    X(REAL, sample, eta, 0.0, 0, 1, "DDIM: 0 deterministic, 1 ancestral noise")                    \
    X(ENUM, sample, variance, DDPM_VARIANCE_LARGE, "small|large", 0,                               \
      "ancestral: beta tilde or beta")                                                             \
    X(BOOL, sample, clip, true, 0, 0, "clip the predicted x_0 to [-1, 1]")                         \
    X(INT, sample, batch, 64, 1, 65536, "images at a time")                                        \
    X(ENUM, sample, precision, DDPM_PRECISION_FP32, "fp32|bf16|tf32", 0,                           \
      "of activations and products; bf16 and tf32 on GPUs alone")

/* C type of each kind. */
#define DDPM_CONFIG_TYPE_INT    int64_t
#define DDPM_CONFIG_TYPE_REAL   double
#define DDPM_CONFIG_TYPE_BOOL   bool
#define DDPM_CONFIG_TYPE_STRING char *
#define DDPM_CONFIG_TYPE_ENUM   int
#define DDPM_CONFIG_TYPE_INTS   ddpm_int_list
#define DDPM_CONFIG_TYPE_REALS  ddpm_real_list

typedef struct {
    int64_t image_height, image_width, image_channels, channels;
    ddpm_real_list channel_mult;
    int64_t num_res_blocks;
    ddpm_int_list attention_resolutions;
    int64_t num_heads, head_channels;
    double dropout;
    int64_t norm_groups;
    double norm_eps;
    int embedding_order;
    double embedding_shift;
    int64_t downsample_padding;
    bool scale_shift;
    int64_t num_classes;
    int init;
} ddpm_model_config;

typedef struct {
    int schedule;
    int64_t steps;
    double beta_start, beta_end;
    int objective;
} ddpm_diffusion_config;

typedef struct {
    char *pack;
    int64_t validation;
    bool flip;
    int64_t threads, memory_mib;
} ddpm_data_config;

typedef struct {
    int64_t batch, micro_batch, steps;
    double lr;
    int64_t warmup;
    int lr_decay;
    double beta1, beta2, adam_eps, weight_decay, clip_norm;
    ddpm_real_list ema;
    bool ema_warmup;
    int64_t seed, save_every, keep_last, keep_every, preview_every, preview_images, preview_steps;
    int64_t log_every, validate_every, max_skipped;
    int precision;
} ddpm_train_config;

typedef struct {
    int sampler;
    char *spacing;
    double eta;
    int variance;
    bool clip;
    int64_t batch;
    int precision;
} ddpm_sample_config;

typedef struct {
    ddpm_model_config model;
    ddpm_diffusion_config diffusion;
    ddpm_data_config data;
    ddpm_train_config train;
    ddpm_sample_config sample;
} ddpm_config;

/* Fills *c with the defaults. Strings are owned by *c: end with ddpm_config_free. NOMEM. */
ddpm_status ddpm_config_defaults(ddpm_config *c);
void ddpm_config_free(ddpm_config *c); /* strings only; leaves *c zeroed; accepts a zeroed struct */
ddpm_status ddpm_config_copy(const ddpm_config *from, ddpm_config *to);

/* Defaults, then the YAML file, then `n_set` strings "section.key=value", then the checks across
 * keys. CONFIG names file, line, column, key, value, what is allowed, and for an unknown key the
 * nearest valid one; NOINPUT, PERM. A relative data.pack in a file stays as written. *out is
 * written only on success. */
ddpm_status ddpm_config_load(const char *path, const char *const *set, int n_set, ddpm_config *out);
/* The same from text; `name` stands in messages. */
ddpm_status ddpm_config_parse(const char *text, size_t bytes, const char *name,
                              const char *const *set, int n_set, ddpm_config *out);
/* The whole resolved configuration as YAML, every key, floats that read back to the same bits.
 * *out is malloc'd, the caller frees. */
ddpm_status ddpm_config_print(const ddpm_config *c, char **out);
/* The checks across keys: levels against image size (CONFIG says which sizes work), groups against
 * channels, heads, micro_batch dividing batch, beta_start < beta_end, ema at most 4. */
ddpm_status ddpm_config_check(const ddpm_config *c);

/* Channels of a level, 0 .. channel_mult.n - 1: channels * channel_mult[level], which
 * ddpm_config_check has found to be a whole number. */
int64_t ddpm_model_level_channels(const ddpm_model_config *m, int level);

/* Keys whose values differ, as "model.channels: 128 -> 64\n..."; *out malloc'd, "" when equal.
 * `section` NULL = all. */
ddpm_status ddpm_config_diff(const ddpm_config *a, const ddpm_config *b, const char *section,
                             char **out);

/* The list itself, for --help, the README's table and tests. */
typedef struct {
    const char *section, *key, *kind, *default_text, *allowed, *help;
} ddpm_config_key;
int ddpm_config_key_count(void);
ddpm_config_key ddpm_config_key_at(int i);

#ifdef __cplusplus
}
#endif
#endif

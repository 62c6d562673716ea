/* model.h - the U-Net: parameters by name, forward, backward, and what it costs.
 *
 * A model is built from a configuration alone (no memory); ddpm_model_reserve gives it the step
 * block for a batch, and ddpm_model_bind the weights to work with, which the caller owns: the
 * trainer binds its weights and gradients, the sampler an EMA. */
#ifndef DDPM_MODEL_H
#define DDPM_MODEL_H

#include "ddpm/backend.h"
#include "ddpm/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ddpm_model ddpm_model;

/* One weight tensor as files have it: diffusers' name, OIHW or [out, in] or [n]. */
typedef struct {
    const char *name; /* "down_blocks.0.resnets.0.conv1.weight"; owned by the model */
    int rank;
    int64_t shape[4];
    int64_t offset; /* first element in the flat array of all weights  */
    int64_t count;
} ddpm_parameter;

/* CONFIG where the sizes cannot be (ddpm_config_check has the rules). Nothing is allocated on the
 * device. */
ddpm_status ddpm_model_create(ddpm_backend *be, const ddpm_model_config *cfg, ddpm_model **out);
void ddpm_model_free(ddpm_model *m); /* accepts NULL; not the bound weights */
/* The type of activations, their gradients and the kernels of convolutions: bf16 for
 * DDPM_PRECISION_BF16, else f32 (tf32 is the backend's, see ddpm_backend_options). Before
 * ddpm_model_reserve. CONFIG, naming `key`, where the backend has no bf16. The weights, their
 * gradients, statistics of norms, the time embedding and all sums stay f32. */
ddpm_status ddpm_model_set_precision(ddpm_model *m, int precision, const char *key);
ddpm_dtype ddpm_model_activation(const ddpm_model *m);

const ddpm_model_config *ddpm_model_configuration(const ddpm_model *m);
int64_t
ddpm_model_parameter_total(const ddpm_model *m);     /* 35,746,307 for configs/ddpm-cifar10.yaml */
int ddpm_model_parameter_count(const ddpm_model *m); /* tensors */
const ddpm_parameter *ddpm_model_parameter(const ddpm_model *m, int i);
int64_t ddpm_model_arena_count(
    const ddpm_model *m); /* elements of the flat array, gaps of alignment included (zero) */

/* Initial weights into the host array of ddpm_model_arena_count elements; a function of (cfg.init,
 * seed, name). ddpm: variance scaling, fan average, uniform; "zero" layers scale 1e-10; biases 0
 * [Ho 2020's code]. pytorch: U(+-1/sqrt(fan_in)) weights and biases, exact zeros [PyTorch's
 * defaults; guided-diffusion's zero_module]. */
void ddpm_model_init(const ddpm_model *m, uint64_t seed, float *arena);
/* Tensor i between the flat array (weights [out,kh,kw,in]) and the file's layout (OIHW); both host,
 * parameter.count elements at `file`. */
void ddpm_model_to_file_layout(const ddpm_model *m, int i, const float *arena, float *file);
void ddpm_model_from_file_layout(const ddpm_model *m, int i, const float *file, float *arena);

/* The step block, for at most max_batch images; training adds saved activations and gradients. May
 * be called again for another batch. NOMEM with the numbers. */
ddpm_status ddpm_model_reserve(ddpm_model *m, int max_batch, bool training);
/* weights, grads (or NULL): device arrays of ddpm_model_arena_count elements; borrowed. */
void ddpm_model_bind(ddpm_model *m, float *weights, float *grads);
/* In a bf16 network also the same weights as bf16, rounded to nearest, [ddpm_model_arena_count]:
 * convolutions read these. Borrowed; bound anew, or written anew, with each other set of weights. */
void ddpm_model_bind_half(ddpm_model *m, void *half);
/* The weights bound last; NULL before. */
const float *ddpm_model_weights(const ddpm_model *m);

/* Host numbers for the parts of a forward pass that are random or conditional. */
struct step_state;
typedef struct {
    const ddpm_tensor *x; /* [n,H,W,C], n <= max_batch; f32, or bf16 in a bf16 network */
    const ddpm_tensor *t; /* f32 [n] on the device: the model's time, t-1 of the mathematics */
    const int32_t *label; /* device [n]; NULL where num_classes is 0 */
    const struct step_state *state; /* device; dropout's seed and step; NULL: no dropout */
    const uint64_t *index;          /* device [n]; with state */
    ddpm_tensor *out;               /* [n,H,W,C] written; of ddpm_model_activation's type */
} ddpm_forward_args;

/* out = the prediction at (x, t). With `state` and reserve(training), keeps what backward needs. */
ddpm_status ddpm_model_forward(ddpm_model *m, const ddpm_forward_args *a);
/* From dout [n,H,W,C] of the last forward: grads += ; dx [n,H,W,C] written, or NULL; both of
 * ddpm_model_activation's type. dout is overwritten. */
ddpm_status ddpm_model_backward(ddpm_model *m, const ddpm_forward_args *a, ddpm_tensor *dout,
                                ddpm_tensor *dx);

/* What a batch costs, without allocating: bytes of the step block and of scratch, measured by
 * running the builder. */
typedef struct {
    size_t weights_bytes, activation_bytes, scratch_bytes;
} ddpm_model_memory;
ddpm_status ddpm_model_measure(ddpm_model *m, int batch, bool training, ddpm_model_memory *out);

/* One row per block. */
typedef struct {
    const char *name, *kind;         /* "down_blocks.0.resnets.0", "resblock"; owned by the model */
    int64_t height, width, channels; /* of its output */
    int64_t parameters;
    double macs;         /* forward, one image: convolutions, products, attention */
    int64_t saved_bytes; /* kept for backward, one image */
} ddpm_layer_report;
int ddpm_model_layer_count(const ddpm_model *m);
void ddpm_model_layer(const ddpm_model *m, int i, ddpm_layer_report *out);
double ddpm_model_macs(const ddpm_model *m); /* forward, one image */

#ifdef __cplusplus
}
#endif
#endif

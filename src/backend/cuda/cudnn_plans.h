/* cudnn_plans.h - how cuDNN computes a graph: the engines it offers for a device, and a plan made from one of them.
 *
 * The device is a description in JSON, so that everything but running works where no GPU is; on a GPU the description
 * is read from it. Engines that cuDNN compiles at run time (epilogues, attention) are offered only where libcuda.so.1
 * can be loaded; the others need nothing.
 *
 * Threads. A graph and a device may be used by many threads; a list and a plan by one at a time. */
#ifndef BACKEND_CUDA_CUDNN_PLANS_H
#define BACKEND_CUDA_CUDNN_PLANS_H

#include "cudnn_graph.h"

/* ---- devices ---- */

struct cudnn_device; /* opaque */

/* json: the members that cuDNN's own description has (devices/ has four of them). FORMAT where it is refused, with what is
 * missing. */
ddpm_status cudnn_device_from_json(const char *json, struct cudnn_device **out);
/* GPU `ordinal` of this machine. */
ddpm_status cudnn_device_from_gpu(int ordinal, struct cudnn_device **out);
void cudnn_device_free(struct cudnn_device *d);
/* Its description; the caller frees. */
ddpm_status cudnn_device_json(const struct cudnn_device *d, char **out);

/* ---- engines ---- */

/* How a plan may compute. Zero: anything that keeps bf16 and f32 what they are, and f32 in full precision. */
struct cudnn_plan_rules {
    bool is_deterministic; /* the same bits on every run */
    bool uses_tf32;        /* f32 products may round their inputs to TF32 */
};

enum { CUDNN_PLANS_MAX = 96, CUDNN_KERNEL_NAME = 192 };

struct cudnn_plan_list {
    int n;
    cudnnBackendDescriptor_t config[CUDNN_PLANS_MAX]; /* best first, as the heuristics order them, then the fallbacks */
    int n_refused;                                    /* engines that the rules left out */
};

/* All engine configurations for the graph on that device that keep the rules. An empty list is OK: cuDNN has none.
 * What a configuration is good for shows only when it is built: some fail, and the next one is to be tried. */
ddpm_status cudnn_plan_list(const struct cudnn_graph *g, const struct cudnn_device *d, const struct cudnn_plan_rules *rules,
                            struct cudnn_plan_list *out);
/* The same with the fallbacks only where nothing else is offered: where the best is wanted and not what to choose from, in a
 * quarter of the time. */
ddpm_status cudnn_plan_list_best(const struct cudnn_graph *g, const struct cudnn_device *d, const struct cudnn_plan_rules *rules,
                                 struct cudnn_plan_list *out);

/* What cuDNN says of an engine. */
struct cudnn_engine_notes {
    int64_t engine; /* its index in cuDNN */
    bool is_deterministic, uses_tensor_cores;
    bool rounds_inputs, rounds_sums; /* to fewer bits than the tensors have */
    bool is_compiled;                /* at run time: building a plan takes seconds */
};
ddpm_status cudnn_plan_list_notes(const struct cudnn_plan_list *list, int i, struct cudnn_engine_notes *out);
void cudnn_plan_list_release(struct cudnn_plan_list *list);

/* ---- plans ---- */

struct cudnn_plan {
    int64_t engine;                 /* its index in cuDNN */
    char kernel[CUDNN_KERNEL_NAME]; /* the kernel's name where cuDNN tells it, else the engine's choices */
    size_t workspace_bytes;         /* to be given to every run, 256-byte aligned; what the graph keeps there included */
    bool is_deterministic, uses_tensor_cores, rounds_inputs, is_compiled; /* compiled: at run time, 0.3 to 4 s */
    /* A plain convolution that asks for about as much as a whole tensor: it copies one in a pass of its own. */
    bool copies_tensor;
    cudnnBackendDescriptor_t plan;
    int n_tensors;
    struct cudnn_graph_tensor tensor[CUDNN_GRAPH_TENSORS];
    size_t inner_bytes; /* of the workspace: what the graph keeps in front of cuDNN's own */
};

/* The i-th configuration of the list made a plan; compiles where the engine is compiled at run time. Several may be built
 * at once, from lists of one thread each. BACKEND where cuDNN cannot. */
ddpm_status cudnn_plan_build(const struct cudnn_graph *g, const struct cudnn_plan_list *list, int i, struct cudnn_plan **out);
/* The first of the list that can be built; NULL and OK where none can. */
ddpm_status cudnn_plan_first(const struct cudnn_graph *g, const struct cudnn_plan_list *list, struct cudnn_plan **out);
/* A plan as text, with its compiled kernels (2 to 300 KB), and back on the same kind of device, in about a millisecond.
 * FORMAT for text that is not one, or of another cuDNN or device. The graph must be the one the text was made from:
 * keep it under the graph's name. json: the caller frees. */
ddpm_status cudnn_plan_to_json(const struct cudnn_plan *p, char **json);
ddpm_status cudnn_plan_from_json(const struct cudnn_graph *g, const struct cudnn_device *d, const char *json,
                                 struct cudnn_plan **out);
void cudnn_plan_free(struct cudnn_plan *p); /* accepts NULL */

struct cudnn_pointer {
    int64_t uid; /* of a tensor that is the caller's (CUDNN_GIVEN) */
    void *data;
};

/* Enqueues the plan on the handle's stream, which is `stream`. All given tensors of the graph, each once; other uids are
 * ignored, so that a caller may pass one list to several forms of a product. workspace: workspace_bytes. Allocates nothing
 * on the device and may be captured. BUG for a pointer that is missing or not aligned as the graph says. */
ddpm_status cudnn_plan_run(const struct cudnn_plan *p, cudnnHandle_t handle, cudaStream_t stream,
                           const struct cudnn_pointer *pointers, int n, void *workspace);

#endif

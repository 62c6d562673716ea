/* planning.h - a backend that computes nothing and notes what it is asked to: what a step costs, with no device.
 *
 * Code that trains or samples runs on it unchanged. Memory is handed out as addresses that nothing lies behind; what is
 * uploaded is dropped and what is downloaded is zero, so a training step on it ends with a loss of 0. Every op's call is held
 * against its contract, as on any backend, and noted: equal calls (same shapes, strides, types and options) as one, with
 * their number. Which tensors a call reads and writes stands in planning_ops.c, once for all ops. */
#ifndef BACKEND_PLANNING_H
#define BACKEND_PLANNING_H

#include "ops.h"

enum { PLANNING_TENSORS = 20, PLANNING_TEXT = 640, PLANNING_SHAPE = 96 };

union planning_args {
#define X(op) struct op##_args op;
    OP_LIST(X)
#undef X
};

/* One distinct call. */
struct planning_call {
    int op;           /* OP_<name> of backend_internal.h */
    const char *name; /* of the op */
    int64_t calls;
    char text[PLANNING_TEXT];   /* the whole signature: "x 128x32x32x128 w 256x3x3x128 bias 256 y ... stride=1" */
    char shape[PLANNING_SHAPE]; /* for eyes: "128x32x32x128 > 128x32x32x256 3x3" */
    double flops;               /* of one call: 2 per multiply-add of the definition, as `bench` counts */
    double bytes;               /* of one call: every tensor it reads or writes, once; what it adds to, twice */
    union planning_args args;   /* a copy whose tensors lie in `tensor` */
    int n_tensors;
    ddpm_tensor tensor[PLANNING_TENSORS];
};

/* What own kernels need for a call, told by their own launch code (kernels/launch_count.h). */
struct planning_own {
    bool is_known;  /* false in a build without CUDA */
    int launches;   /* of the whole op by own kernels */
    int left;       /* of what a library's product leaves to do (bias, emb, residual; db, demb), 0 for ops without product */
    size_t scratch; /* bytes, by own kernels */
};

struct planning_options {
    const char *name;    /* of the device, for messages; copied */
    size_t memory_bytes; /* what it has; 0: without bound */
    /* Whether a convolution or a gradient of its input leaves sums, and so has_sums or has_gradient becomes true; NULL: none
     * does. `c` has its text and its op. */
    bool (*leaves_sums)(const void *from, const struct planning_call *c);
    const void *from; /* borrowed */
};

ddpm_status planning_create(const struct planning_options *o, ddpm_backend **out);
int planning_call_count(const ddpm_backend *be);
/* The i-th distinct call in the order of their first appearance; borrowed until the next op or planning_forget. */
const struct planning_call *planning_call_at(const ddpm_backend *be, int i);
void planning_forget(ddpm_backend *be); /* the calls, not the memory */
/* Device memory of the CUDA backend's ring for uploads, after what has been reserved for them; 0 in a build without CUDA. */
size_t planning_staging_bytes(const ddpm_backend *be);
size_t planning_staging(size_t largest);

void planning_own_kernels(const struct planning_call *c, struct planning_own *out);

/* ---- cuDNN's engines for the products among the calls ---- */

struct planning_engines; /* opaque: a device as cuDNN sees it */

/* The best plan of one form (cudnn_forms.h) of a call. */
struct planning_engine {
    const char *form;
    int product; /* 0; 1 for the second product of linear_bwd: forms of one product are alternatives */
    char graph[512];        /* its name */
    bool is_found;          /* false: cuDNN has no engine for it */
    int64_t engine;         /* in cuDNN's numbering */
    bool is_built;          /* false: compiled at run time, and only listed; the next three are unknown */
    char kernel[192];       /* name, or the engine's choices */
    size_t workspace_bytes;
    bool copies_tensor;
    bool is_deterministic, is_compiled;
    bool leaves_epilogue, leaves_sum; /* own kernels follow: what is added or summed, the gradient's addition */
    bool gives_sums;                  /* for the norm beside it */
    bool wants_lines;                 /* an own kernel precedes: launch_groupnorm_lines */
};

enum { PLANNING_FORMS = 8 };

/* Whether this build has cuDNN, and which: "9.19.0", or NULL. */
const char *planning_cudnn_version(void);
struct planning_engine_options {
    bool is_deterministic, uses_tf32; /* as in ddpm_backend_options */
    bool compiles; /* also engines that are compiled at run time, 1 to 3 s each, are built, so that kernel and workspace are known */
};
/* json: the device's properties. FORMAT where cuDNN refuses them; BACKEND in a build without it. */
ddpm_status planning_engines_create(const char *json, const struct planning_engine_options *o, struct planning_engines **out);
/* The properties of GPU `ordinal` of this machine as such JSON; the caller frees. */
ddpm_status planning_gpu_properties(int ordinal, char **json);
void planning_engines_free(struct planning_engines *e);
/* What the backend may add to its scratch when it has timed its engines, at most; 0 where it times none. */
size_t planning_spare(const struct planning_engines *e);
/* Every form of the call, most fused first; *n is 0 for ops without product and for products that have none (attention in
 * f32). Several threads may ask one `e` at once. */
ddpm_status planning_engines_of(const struct planning_engines *e, const struct planning_call *c,
                                struct planning_engine out[PLANNING_FORMS], int *n);

/* ---- planning_ops.c: one line an op ---- */

/* Fills text, shape, bytes and the tensors of `c` from c->args, which still points to the caller's tensors. */
ddpm_status planning_describe(struct planning_call *c);

#endif

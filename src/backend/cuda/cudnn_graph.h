/* cudnn_graph.h - what cuDNN is asked to compute: one operation graph per kind of product, built from views.
 *
 * A graph is built once per shape, needs no GPU, no handle and no data, and is read-only afterwards, so that several threads
 * may plan it at once (cudnn_plans.h). Tensors come as the ddpm_tensor of ops.h: their dtype, extents and strides are used,
 * `data` is not read and may be NULL. Activations, weights and residuals of one graph have one dtype, f32 or bf16; products
 * accumulate in f32 and whatever is added to them before they are stored is added in f32.
 *
 * Layouts. Images [N,H,W,C] with free strides of N, H, W; kernels [K,kh,kw,C] dense (cuDNN takes no slices of them, even for
 * kh = 1); bias [K] and emb [N,K] f32 or the activations' dtype (cuDNN's precompiled convolution with bias wants the
 * latter); sums f32 [N,K] dense. A pointer given at run time is aligned as cudnn_graph_tensor says: 16 bytes, or less where
 * the view's own extents and strides are no multiple of 16 bytes.
 *
 * Which forms an installed cuDNN can plan differs (none, where cudnn_plans_list finds nothing): a caller falls back to
 * the form without its epilogue and adds that by itself. */
#ifndef BACKEND_CUDA_CUDNN_GRAPH_H
#define BACKEND_CUDA_CUDNN_GRAPH_H

#include "ddpm/backend.h"

#include <cudnn.h>

/* The tensors of a graph, as named to cuDNN and by cudnn_plan_run. */
enum cudnn_uid {
    CUDNN_UID_X = 1,       /* input of a convolution or dense layer */
    CUDNN_UID_W,           /* its weights */
    CUDNN_UID_Y,           /* its result, after all that is added */
    CUDNN_UID_BIAS,        /* [K] */
    CUDNN_UID_EMB,         /* [N,K] */
    CUDNN_UID_RESIDUAL,    /* added to y or dx; may be the same memory as what it is added to */
    CUDNN_UID_SUM,         /* f32 [N,K] written: sums over pixels of what is stored */
    CUDNN_UID_SUM_SQUARES, /* f32 [N,K] written: of its squares; backward: of its products with X */
    CUDNN_UID_DX,
    CUDNN_UID_DW,
    CUDNN_UID_DY,
    CUDNN_UID_SCALE, /* f32 [N,C] a and b of silu(a x + b), whose gradient a backward pass goes through */
    CUDNN_UID_SHIFT,
    CUDNN_UID_Q, /* attention */
    CUDNN_UID_K,
    CUDNN_UID_V,
    CUDNN_UID_O,
    CUDNN_UID_LSE, /* f32 [N,heads,T] */
    CUDNN_UID_DO,
    CUDNN_UID_DQ,
    CUDNN_UID_DK,
    CUDNN_UID_DV,
    CUDNN_UID_A, /* matmul: c = a b (+ bias) */
    CUDNN_UID_B,
    CUDNN_UID_C,
    /* Not the caller's: constants by value, and what the plan keeps in front of its workspace. */
    CUDNN_UID_FACTOR,
    CUDNN_UID_ONE,
    CUDNN_UID_ROW_SUM,
    CUDNN_UID_DQ_SUM,
    CUDNN_UID_VIRTUAL, /* this and above: values that never reach memory */
};

enum { CUDNN_GRAPH_TENSORS = 16, CUDNN_GRAPH_NAME = 512 };

/* Where the memory of a tensor comes from. */
enum cudnn_place {
    CUDNN_GIVEN,     /* the caller's pointer */
    CUDNN_BY_VALUE,  /* a constant of the graph */
    CUDNN_WORKSPACE, /* the plan's workspace */
    CUDNN_ZEROED,    /* the plan's workspace, set to zero before each run */
};

struct cudnn_graph_tensor {
    int64_t uid;
    enum cudnn_place place;
    bool is_output;
    int alignment; /* of the pointer, bytes */
    size_t bytes;  /* from the pointer to the end of the last element */
    float value;   /* CUDNN_BY_VALUE */
};

struct cudnn_graph {
    /* What is computed, on which shapes, strides and dtypes: equal text, equal graph. Without spaces at the ends or quotes:
     * fit for a key of a cache and a column of a table. */
    char name[CUDNN_GRAPH_NAME];
    int n_tensors;
    struct cudnn_graph_tensor tensor[CUDNN_GRAPH_TENSORS];
    double flops;       /* 2 per multiply-add of the products' definition */
    double bytes_moved; /* every tensor in memory once */
    size_t largest;     /* bytes of the largest of the caller's tensors */
    ddpm_dtype dtype;   /* of the activations */
    bool is_plain_conv; /* one convolution and nothing else */
    bool any_order;     /* holds sums whose terms are added in the order of their arrival: never deterministic */
    cudnnBackendDescriptor_t operations; /* the finalised operation graph */
    int n_owned;
    cudnnBackendDescriptor_t *owned; /* all descriptors, operations among them */
};

/* y = silu?(x * w + bias + emb + residual), each where given; conv2d_args' shapes and pads. */
struct cudnn_conv_args {
    const ddpm_tensor *x, *w, *y;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    const ddpm_tensor *bias, *emb, *residual; /* or NULL */
    bool silu;
    bool sums; /* also SUM and SUM_SQUARES of y, per image and channel */
};

/* dx = conv^T(dy, w), then
 *   residual   + RESIDUAL (may be dx itself: dx +=)
 *   x          * silu'(x); with scale and shift * silu'(SCALE x + SHIFT); shapes of dx
 *   sums       also SUM of dx and SUM_SQUARES = sum of dx * x (with x), per image and channel
 * beta: dx = result + beta dx inside the convolution, only for the plain form. */
struct cudnn_conv_bwd_data_args {
    const ddpm_tensor *dx, *w, *dy;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    const ddpm_tensor *residual, *x; /* or NULL */
    bool scale_shift, sums;
    float beta;
};

/* dw = sum over n and pixels of x dy (+ beta dw). dw in f32 or in the activations' dtype; which are planned depends on
 * the version: cuDNN 9.19 has no f32 dw from bf16 activations. */
struct cudnn_conv_bwd_filter_args {
    const ddpm_tensor *x, *dw, *dy;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    float beta;
};

/* attention_args' shapes and strides, bf16 only: o = softmax(scale q k^T) v, and LSE where has_lse. */
struct cudnn_attention_args {
    const ddpm_tensor *q, *k, *v, *o;
    float scale;
    bool has_lse;
};
/* DQ, DK, DV from Q, K, V, O, LSE, DO; dq, dk, dv have strides of their own. deterministic: dq in a fixed order, at the
 * cost of a workspace of heads * T * T per image; else its parts are added in f32 in the order of their arrival. */
struct cudnn_attention_bwd_args {
    const ddpm_tensor *q, *k, *v, *o, *d_o, *dq, *dk, *dv;
    float scale;
    bool deterministic;
};

/* c = a b (+ bias over rows) (+ residual): a [M,K], b [K,N], c and residual [M,N], any strides (a transposed view has them
 * swapped), bias [N]; bias and residual or NULL. Also a 1x1 convolution, whose kernel may be a slice here alone. */
struct cudnn_matmul_args {
    const ddpm_tensor *a, *b, *c, *bias, *residual;
};

/* SHAPE for views that disagree, BACKEND where cuDNN refuses to describe the graph (not: to plan it), NOMEM. */
ddpm_status cudnn_graph_conv(const struct cudnn_conv_args *a, struct cudnn_graph **out);
ddpm_status cudnn_graph_conv_bwd_data(const struct cudnn_conv_bwd_data_args *a, struct cudnn_graph **out);
ddpm_status cudnn_graph_conv_bwd_filter(const struct cudnn_conv_bwd_filter_args *a, struct cudnn_graph **out);
ddpm_status cudnn_graph_attention(const struct cudnn_attention_args *a, struct cudnn_graph **out);
ddpm_status cudnn_graph_attention_bwd(const struct cudnn_attention_bwd_args *a, struct cudnn_graph **out);
ddpm_status cudnn_graph_matmul(const struct cudnn_matmul_args *a, struct cudnn_graph **out);
void cudnn_graph_free(struct cudnn_graph *g); /* accepts NULL; plans made from it stay good */

/* The tensor of that uid, or NULL. */
const struct cudnn_graph_tensor *cudnn_graph_tensor(const struct cudnn_graph *g, int64_t uid);

/* OK, or BACKEND with `what`, cuDNN's name of the code and its own sentence; NOMEM for the codes of failed allocations.
 * For calls outside of these files too. */
ddpm_status cudnn_check(const char *what, cudnnStatus_t e);

#endif

/* blocks.h - what a network is made of: parameters, slots (tensors of the step block), and block
 * records.
 *
 * A network is a flat array of blocks. Each kind has `build` (declares its parameters and slots),
 * `forward` and `backward` side by side in one file; unet.c strings them together, forward walking
 * up the array, backward down.
 *
 * Memory has no second formula: model_reserve runs forward and backward once while the backend
 * measures, notes when each slot is first and last used, and lets slots share the step block where
 * their lives do not meet (plan.c). Therefore every op reaches its tensors through model_use, at
 * the call. */
#ifndef MODEL_BLOCKS_H
#define MODEL_BLOCKS_H

#include "ddpm/model.h"

#include "fail.h"
#include "ops.h"

/* ---- parameters (params.c) ---- */
enum param_init {
    INIT_WEIGHT,
    INIT_ZERO_WEIGHT,
    INIT_BIAS,
    INIT_ZERO_BIAS,
    INIT_ONE,
    INIT_ZERO,
    INIT_NORMAL
};

struct param {
    ddpm_parameter info;
    enum param_init init;
    int64_t fan_in, fan_out;
    ddpm_tensor shape; /* layout in the flat array: [out,kh,kw,in] for kernels; data unused */
};

/* A tensor over one parameter, or over several that lie side by side (q, k, v; every time
 * projection), or over some of its input channels. */
struct weight {
    ddpm_tensor w, g; /* data set by ddpm_model_bind */
    ddpm_tensor half; /* w as bf16, set by ddpm_model_bind_half */
    int64_t offset;
};

/* ---- slots (plan.c) ---- */
struct slot {
    ddpm_tensor tensor;   /* dim[0] is the batch at hand, data set when the step block exists */
    int parent;           /* -1, or the slot this is a view of */
    int64_t view_offset;  /* elements from the parent's data */
    int first, last;      /* clock of first and last use; first = -1: unused */
    int sum, square;      /* slots of conv2d's by-products, NO_SLOT without */
    bool has_sums;        /* they were written in the pass at hand */
    size_t offset, bytes; /* in the step block, for max_batch */
};

#define NO_SLOT (-1)

/* ---- blocks ---- */
enum block_kind {
    BLOCK_TIME,
    BLOCK_CONV_IN,
    BLOCK_RES,
    BLOCK_ATTENTION,
    BLOCK_DOWN,
    BLOCK_UP,
    BLOCK_HEAD
};

/* y = conv(x) with its weight and bias by index into model.weights. */
struct conv {
    int w, b; /* weights */
    int in, out, kernel, stride, pad_top, pad_left, pad_bottom, pad_right;
};
struct norm {
    int gamma, beta, stats; /* weights, slot */
};

struct block {
    enum block_kind kind;
    char *name;
    int64_t h, w;  /* of the output */
    int c1, c2, c; /* channels of the input, of the skip input (0: none), of the output */
    int x1, x2, y; /* slots */
    int64_t parameters;
    double macs;
    union {
        struct {
            int w0, b0, w1, b1, w_all, b_all, table; /* weights; table -1 without classes */
            int sinusoid, d0, s0, d1, s1, all; /* slots; all = every block's projection [n, sum] */
            int d_all, ds1, ds0;
        } time;
        struct {
            struct norm norm1, norm2;
            struct conv conv1, conv2;
            int shortcut1, shortcut2, shortcut_b; /* weights, -1: identity */
            int emb_begin;                        /* first column of this block in time.all */
            uint32_t layer;                       /* dropout's key */
            int act1, h1, act2, emb, shift;       /* slots */
            int d_act2, d_act1, d_emb, d_shift;
            int sum1, product1, sum2, product2; /* over d_act1 and d_act2 */
        } res;
        struct {
            struct norm norm;
            struct conv qkv, proj;
            int heads;
            int act, joint, q, k, v, o, o_heads, lse; /* slots; q, k, v, o_heads are views */
            int d_o, d_o_heads, d_joint, dq, dk, dv, d_act;
        } attention;
        struct {
            struct norm norm; /* BLOCK_HEAD */
            struct conv conv;
            int wide, d_wide; /* BLOCK_UP: the enlarged input, drawn anew in backward; BLOCK_HEAD:
                                 act and its gradient; BLOCK_CONV_IN: wide is an f32 input in
                                 bf16 */
            int wide_again;
        } plain;
    } u;
};

struct ddpm_model {
    ddpm_backend *be; /* borrowed */
    const struct ops *ops;
    ddpm_model_config cfg;
    bool is_half; /* activations and kernels are bf16 */

    struct param *params;
    int n_params, cap_params;
    int64_t total, arena_count;
    struct weight *weights;
    int n_weights, cap_weights;
    const float *bound; /* by ddpm_model_bind; borrowed */

    struct slot *slots;
    int n_slots, cap_slots;
    struct block *blocks;
    int n_blocks, cap_blocks;
    int embed_sum; /* columns of all time projections */

    /* Gradient slot of each image slot: grad[slot], made at build; started[slot] while backward
     * runs. */
    int *grad;
    bool *started;

    /* the step block */
    unsigned char *step; /* owned, on the device */
    size_t step_bytes;
    int max_batch, batch;
    bool training;
    int clock; /* counts ops while planning */

    /* of the pass at hand; borrowed */
    const ddpm_forward_args *args;
    ddpm_tensor *dout, *dx;
};

/* The op of the pass at hand, e.g. RUN(m, silu, .x = model_use(m, a), .y = model_out(m, b)). */
#define RUN(m, op, ...)                                                                            \
    do {                                                                                           \
        ddpm_status run_ = (m)->ops->op((m)->be, &(struct op##_args){__VA_ARGS__});                \
        (m)->clock++;                                                                              \
        if (run_) return run_;                                                                     \
    } while (0)

/* Tensor of a slot, noting the use. NULL for NO_SLOT. */
ddpm_tensor *model_use(ddpm_model *m, int slot);
/* Tensors of a weight and its gradient; NULL for -1. */
const ddpm_tensor *model_weight(const ddpm_model *m, int weight);
/* The same for the kernel of a convolution: of the type of its activations. */
const ddpm_tensor *model_kernel(const ddpm_model *m, int weight);
ddpm_tensor *model_gradient(const ddpm_model *m, int weight);

/* ---- building; a failure (NOMEM) is kept in the builder, whose later calls do nothing ---- */
struct builder {
    ddpm_model *m;
    ddpm_status s;
    struct block *block; /* whose parameters and MACs are being counted */
    const char *prefix;  /* of parameter names: "down_blocks.0.resnets.0" */
};

/* A parameter "prefix.leaf"; returns its index. `shape` in the flat array's layout. Each starts on
 * 16 elements, unless it `follows` the one before without a gap. */
int build_param(struct builder *b, const char *leaf, int rank, const int64_t *shape,
                enum param_init init, int64_t fan_in, int64_t fan_out, bool follows);
int build_weight(struct builder *b, int64_t offset, ddpm_tensor shape);
int build_param_weight(struct builder *b, int param); /* the tensor over one whole parameter */

int build_slot(struct builder *b, int rank, const int64_t *dim); /* dim[0] is set per pass */
int build_image(struct builder *b, int64_t h, int64_t w, int64_t c);
int build_view(struct builder *b, int parent, int64_t offset, int rank, const int64_t *dim,
               const int64_t *stride);
/* Slots for the sums of an image slot that a GroupNorm will read. */
void build_sums(struct builder *b, int slot);
/* An image slot that a gradient flows to, and that a GroupNorm may read: also makes its gradient's and its sums' slots. */
int build_activation(struct builder *b, int64_t h, int64_t w, int64_t c);
struct conv build_conv(struct builder *b, const char *leaf, int in, int out, int kernel, int stride,
                       int padding, bool zero);
struct norm build_norm(struct builder *b, const char *leaf, int c);
struct block *build_block(struct builder *b, enum block_kind kind, const char *name);
void build_macs(struct builder *b, double macs);
char *build_name(struct builder *b, const char *fmt, ...) FAIL_PRINTF(2, 3);

/* ---- what the kinds share (conv_norm.c) ---- */
/* y = conv(x) + bias (+ emb) (+ residual). */
ddpm_status conv_forward(ddpm_model *m, const struct conv *c, int x, int emb, int residual, int y);
/* The sums of a norm's sources, where each of them has some. */
struct norm_sums {
    const ddpm_tensor *sum1, *square1, *sum2, *square2;
};
struct norm_sums norm_sums_of(ddpm_model *m, int x1, int x2);
/* Room for the sums of image slot y, or NO_SLOT, for the convolution that writes it. */
struct conv_sums {
    ddpm_tensor *sum, *square;
    bool *has_sums;
};
struct conv_sums conv_sums_of(ddpm_model *m, int y);
/* dw, db +=; demb written; dx written or, with accumulate, added to; dx NO_SLOT: not needed. */
ddpm_status conv_backward(ddpm_model *m, const struct conv *c, int x, int dy, int demb, int dx,
                          bool accumulate);
/* The norm with SiLU, of one source and without dropout, that a convolution's input came from. Its gradient may be taken to
 * before SiLU by the convolution's, which then leaves sums over it. */
struct norm_gradient {
    const struct norm *norm;
    int x, scale, shift; /* slots; scale, shift: or NO_SLOT */
    int sum, product;    /* slots of conv2d_bwd_data's by-products */
    bool is_taken;       /* in the pass at hand */
};
ddpm_status conv_backward_to_norm(ddpm_model *m, const struct conv *c, int x, int dy, int demb,
                                  int dx, struct norm_gradient *to);
/* What conv_backward_to_norm has left for groupnorm_bwd; NULL where SiLU's gradient is still to be taken, or from is NULL. */
struct gradient_sums {
    const ddpm_tensor *dy, *dy_x;
};
struct gradient_sums gradient_sums_of(ddpm_model *m, const struct norm_gradient *from);
ddpm_status norm_forward(ddpm_model *m, const struct norm *n, int x1, int x2, bool silu, int y);
/* dx1 = ... + add1 and dx2 = ... + add2; add NO_SLOT: nothing. from: or NULL. */
ddpm_status norm_backward(ddpm_model *m, const struct norm *n, int dy, int x1, int x2, bool silu,
                          const struct norm_gradient *from, int add1, int add2, int dx1, int dx2);
/* The gradient slot of an activation, and whether something is in it already; marks it started. */
int grad_begin(ddpm_model *m, int slot, bool *had);
/* The complete gradient of a block's output. */
int grad_of(const ddpm_model *m, int slot);

/* ---- the kinds: build, forward, backward ---- */
void time_build(struct builder *b, struct block *k);
ddpm_status time_forward(ddpm_model *m, struct block *k);
ddpm_status time_backward(ddpm_model *m, struct block *k);

void res_build(struct builder *b, struct block *k, int x1, int x2, int c_out, int64_t h, int64_t w,
               int emb_begin);
ddpm_status res_forward(ddpm_model *m, struct block *k);
ddpm_status res_backward(ddpm_model *m, struct block *k);

void attention_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w);
ddpm_status attention_forward(ddpm_model *m, struct block *k);
ddpm_status attention_backward(ddpm_model *m, struct block *k);

void conv_in_build(struct builder *b, struct block *k);
void down_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w);
void up_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w);
void head_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w);
ddpm_status plain_forward(ddpm_model *m, struct block *k);
ddpm_status plain_backward(ddpm_model *m, struct block *k);

/* ---- the network (unet.c), its plan (plan.c) ---- */
void unet_build(struct builder *b);
ddpm_status plan_reserve(ddpm_model *m, int max_batch, bool training, size_t *step_bytes);
void plan_place(ddpm_model *m, unsigned char *base);

#endif

/* cudnn_forms.h - the graphs that can compute a call of ops.h, and what each of them leaves to do.
 *
 * One place decides which graphs a product may become: the backend times them and runs the winner, `ddpm plan --gpu` and the
 * committed tables of plans list them with no GPU. A form holds everything but what its `left` names; that is done by own
 * kernels behind it. Forms that differ by fusion alone come with the most fused first; the last one is the plainest. */
#ifndef BACKEND_CUDA_CUDNN_FORMS_H
#define BACKEND_CUDA_CUDNN_FORMS_H

#include "cudnn_plans.h"

#include "ops.h"

/* What a form leaves to other kernels. */
enum cudnn_left {
    CUDNN_LEFT_EPILOGUE = 1, /* bias, emb and residual of conv2d: launch_conv_epilogue */
    CUDNN_LEFT_SUMS = 2,     /* db and demb of conv2d_bwd_filter, db of linear_bwd */
    CUDNN_LEFT_ADD = 4,      /* the result lies in bf16 memory of its own and is to be added to the f32 gradient */
};

struct cudnn_form {
    struct cudnn_graph *graph; /* owned */
    const char *name;          /* "fused", "plain", "matmul", ...; of the form, not of the shape */
    unsigned left;             /* of cudnn_left */
};

enum { CUDNN_FORMS_MAX = 4 };
#define CUDNN_FORM_SUMS "sums"
#define CUDNN_FORM_GRADIENT "gradient"

/* Whether a form of that name writes SUM and SUM_SQUARES. */
bool cudnn_form_gives_sums(const char *name);

struct cudnn_forms {
    int n; /* 0: own kernels alone, as for attention in f32 */
    struct cudnn_form form[CUDNN_FORMS_MAX];
};

/* The forms of a call, whose arguments have passed expect_<op> (contracts.h). Pointers of tensors are not read. linear_bwd has
 * two products, each with forms of its own. rules: fused forms in full f32 are left out, for cuDNN compiles their engine for a
 * minute; attention's backward has the form that keeps the order where the rules want it.
 * uids of the tensors: by name (x X, w W, y Y, dw DW, ...); of "matmul" forms A, B, C, each form's doc below.
 *   conv2d            CUDNN_FORM_SUMS: fused with SUM and SUM_SQUARES, of images that GroupNorm would read twice; no other form
 *                     writes conv2d's sum and square. fused: + BIAS, EMB, RESIDUAL; plain. Sliced w (1x1): A = x, B = w, C = y, BIAS, RESIDUAL
 *   conv2d_bwd_data   CUDNN_FORM_GRADIENT: DX is g, X = norm.x, SCALE and SHIFT f32 [N,C] (launch_groupnorm_lines), SUM, and
 *                     SUM_SQUARES = product, of images that GroupNorm's gradient would read twice; plain, beta 1 where it
 *                     accumulates. Sliced w: A = dy, B = w, C = RESIDUAL = dx
 *   conv2d_bwd_filter f32: dw in f32, beta 1, DW the gradient itself; bf16: rounded DW to be added. Sliced dw: A = dy, B = x,
 *                     C = RESIDUAL = dw
 *   linear            A = x, B = w, C = y, BIAS
 *   linear_bwd        data: A = dy, B = w, C = dx (= RESIDUAL); weights: A = dy, B = x, C = RESIDUAL = dw */
ddpm_status cudnn_forms_conv2d(const struct conv2d_args *a, const struct cudnn_plan_rules *rules, struct cudnn_forms *out);
ddpm_status cudnn_forms_conv2d_bwd_data(const struct conv2d_bwd_data_args *a, const struct cudnn_plan_rules *rules,
                                        struct cudnn_forms *out);
ddpm_status cudnn_forms_conv2d_bwd_filter(const struct conv2d_bwd_filter_args *a, const struct cudnn_plan_rules *rules,
                                          struct cudnn_forms *out);
ddpm_status cudnn_forms_attention(const struct attention_args *a, const struct cudnn_plan_rules *rules,
                                  struct cudnn_forms *out);
ddpm_status cudnn_forms_attention_bwd(const struct attention_bwd_args *a, const struct cudnn_plan_rules *rules,
                                      struct cudnn_forms *out);
ddpm_status cudnn_forms_linear(const struct linear_args *a, const struct cudnn_plan_rules *rules, struct cudnn_forms *out);
ddpm_status cudnn_forms_linear_bwd_data(const struct linear_bwd_args *a, const struct cudnn_plan_rules *rules,
                                        struct cudnn_forms *out);
ddpm_status cudnn_forms_linear_bwd_weights(const struct linear_bwd_args *a, const struct cudnn_plan_rules *rules,
                                           struct cudnn_forms *out);
void cudnn_forms_release(struct cudnn_forms *f);

#endif

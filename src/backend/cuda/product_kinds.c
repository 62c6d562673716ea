/* product_kinds.c - the calls of ops.h that are products, as tables of their tensors and numbers.
 *
 * One table a kind says where tensors stand in the arguments and what cuDNN's graphs call them; keys, pointers and the
 * copies that tuning works on all follow from it. */
#include "products.h"

#include "launch.h"

#include <stddef.h>

/* ---- as products of matrices ---- */

static ddpm_tensor matrix(const ddpm_tensor *t, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride)
{
    return (ddpm_tensor){
        .data = t->data, .dtype = t->dtype, .rank = 2, .dim = {rows, columns}, .stride = {row_stride, column_stride}};
}

static ddpm_tensor flipped(const ddpm_tensor *t)
{
    return matrix(t, t->dim[1], t->dim[0], t->stride[1], t->stride[0]);
}

/* [N,H,W,C] as [N*H*W,C], where pixels are evenly spaced. */
static bool pixels(const ddpm_tensor *t, ddpm_tensor *out)
{
    const int64_t step = t->stride[2];
    *out = matrix(t, t->dim[0] * t->dim[1] * t->dim[2], t->dim[3], step, 1);
    return (t->dim[1] == 1 || t->stride[1] == t->dim[2] * step) &&
           (t->dim[0] == 1 || t->stride[0] == t->dim[1] * t->dim[2] * step);
}

/* A 1x1 convolution that reads every pixel once. */
static bool is_pointwise(const ddpm_tensor *w, int stride, int pads)
{
    return w->dim[1] == 1 && stride == 1 && pads == 0;
}

static ddpm_tensor kernel_matrix(const ddpm_tensor *w)
{
    return matrix(w, w->dim[0], w->dim[3], w->stride[0], 1);
}

static bool matrices_of_conv(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct conv2d_args *a = args;
    if (!is_pointwise(a->w, a->stride, a->pad_top + a->pad_left + a->pad_bottom + a->pad_right)) return false;
    const ddpm_tensor w = kernel_matrix(a->w);
    *m = (struct matmul_shape){.b = flipped(&w), .a_uid = CUDNN_UID_X, .b_uid = CUDNN_UID_W, .c_uid = CUDNN_UID_Y};
    const bool adds_bias = a->bias && !a->emb && a->y->dtype == DDPM_F32;
    const bool adds_residual = a->residual && !a->emb && (adds_bias || !a->bias);
    if (adds_bias) m->bias_uid = CUDNN_UID_BIAS;
    if (adds_residual) m->residual_uid = CUDNN_UID_RESIDUAL;
    *left = a->emb || (a->bias && !adds_bias) || (a->residual && !adds_residual) ? CUDNN_LEFT_EPILOGUE : 0;
    return pixels(a->x, &m->a) && pixels(a->y, &m->c);
}

static bool matrices_of_conv_data(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct conv2d_bwd_data_args *a = args;
    if (!is_pointwise(a->w, a->stride, a->pad_top + a->pad_left + a->pad_bottom + a->pad_right)) return false;
    *m = (struct matmul_shape){.b = kernel_matrix(a->w),
                               .a_uid = CUDNN_UID_DY,
                               .b_uid = CUDNN_UID_W,
                               .c_uid = CUDNN_UID_DX,
                               .residual_uid = a->accumulate ? CUDNN_UID_DX : 0};
    *left = 0;
    return pixels(a->dy, &m->a) && pixels(a->dx, &m->c);
}

static bool matrices_of_conv_filter(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct conv2d_bwd_filter_args *a = args;
    ddpm_tensor dy;
    if (!is_pointwise(a->dw, a->stride, a->pad_top + a->pad_left + a->pad_bottom + a->pad_right)) return false;
    if (!pixels(a->dy, &dy)) return false;
    *m = (struct matmul_shape){.a = flipped(&dy),
                               .c = kernel_matrix(a->dw),
                               .a_uid = CUDNN_UID_DY,
                               .b_uid = CUDNN_UID_X,
                               .c_uid = CUDNN_UID_DW,
                               .residual_uid = CUDNN_UID_DW};
    *left = a->db || a->demb ? CUDNN_LEFT_SUMS : 0;
    return pixels(a->x, &m->b);
}

static bool matrices_of_linear(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct linear_args *a = args;
    if (a->bias && a->y->dtype != DDPM_F32) return false; /* nobody would add it behind */
    *m = (struct matmul_shape){.a = *a->x,
                               .b = flipped(a->w),
                               .c = *a->y,
                               .a_uid = CUDNN_UID_A,
                               .b_uid = CUDNN_UID_B,
                               .c_uid = CUDNN_UID_C,
                               .bias_uid = a->bias ? CUDNN_UID_BIAS : 0};
    *left = 0;
    return true;
}

static bool matrices_of_linear_data(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct linear_bwd_args *a = args;
    *m = (struct matmul_shape){.a = *a->dy,
                               .b = *a->w,
                               .c = *a->dx,
                               .a_uid = CUDNN_UID_A,
                               .b_uid = CUDNN_UID_B,
                               .c_uid = CUDNN_UID_C,
                               .residual_uid = a->accumulate ? CUDNN_UID_C : 0};
    *left = 0;
    return true;
}

/* The sums that a product leaves take dense rows. */
static bool sums_are_ours(const struct linear_bwd_args *a)
{
    return !a->db || a->dy->stride[0] == a->dy->dim[1] || a->dy->dim[0] == 1;
}

static bool matrices_of_linear_weights(const void *args, struct matmul_shape *m, unsigned *left)
{
    const struct linear_bwd_args *a = args;
    *m = (struct matmul_shape){.a = flipped(a->dy),
                               .b = *a->x,
                               .c = *a->dw,
                               .a_uid = CUDNN_UID_A,
                               .b_uid = CUDNN_UID_B,
                               .c_uid = CUDNN_UID_C,
                               .residual_uid = CUDNN_UID_C};
    *left = a->db ? CUDNN_LEFT_SUMS : 0;
    return sums_are_ours(a);
}

static bool no_matrices(const void *args, struct matmul_shape *m, unsigned *left)
{
    (void)args;
    (void)m;
    (void)left;
    return false;
}

/* ---- as graphs ---- */

#define FORMS(name)                                                                                                           \
    static ddpm_status forms_of_##name(const void *args, const struct cudnn_plan_rules *rules, struct cudnn_forms *out)       \
    {                                                                                                                         \
        return cudnn_forms_##name(args, rules, out);                                                                          \
    }
FORMS(conv2d)
FORMS(conv2d_bwd_data)
FORMS(conv2d_bwd_filter)
FORMS(linear)
FORMS(linear_bwd_data)
FORMS(attention)
FORMS(attention_bwd)
#undef FORMS

static ddpm_status forms_of_linear_bwd_weights(const void *args, const struct cudnn_plan_rules *rules, struct cudnn_forms *out)
{
    *out = (struct cudnn_forms){0};
    return sums_are_ours(args) ? cudnn_forms_linear_bwd_weights(args, rules, out) : DDPM_OK;
}

/* ---- by kernels/ ---- */

#define OWN(op)                                                                                                               \
    static size_t own_scratch_##op(const void *args)                                                                          \
    {                                                                                                                         \
        return scratch_##op(args);                                                                                            \
    }                                                                                                                         \
    static cudaError_t own_##op(cudaStream_t stream, const void *args, void *scratch)                                         \
    {                                                                                                                         \
        return launch_##op(stream, args, scratch);                                                                            \
    }
OWN(conv2d)
OWN(conv2d_bwd_data)
OWN(conv2d_bwd_filter)
OWN(linear)
OWN(attention)
OWN(attention_bwd)
#undef OWN

static struct linear_bwd_args without_dx(const struct linear_bwd_args *a)
{
    struct linear_bwd_args weights = *a;
    weights.dx = NULL;
    return weights;
}

static size_t own_scratch_linear_bwd_weights(const void *args)
{
    const struct linear_bwd_args a = without_dx(args);
    return scratch_linear_bwd(&a);
}

static cudaError_t own_linear_bwd_weights(cudaStream_t stream, const void *args, void *scratch)
{
    const struct linear_bwd_args a = without_dx(args);
    return launch_linear_bwd(stream, &a, scratch);
}

/* [rows, columns] as images of one pixel. */
static ddpm_tensor as_images(const ddpm_tensor *t)
{
    const int64_t row = t->stride[0];
    return (ddpm_tensor){.data = t->data,
                         .dtype = t->dtype,
                         .rank = 4,
                         .dim = {t->dim[0], 1, 1, t->dim[1]},
                         .stride = {row, row, row, 1}};
}

static size_t own_scratch_linear_bwd_data(const void *args)
{
    (void)args;
    return 0;
}

static cudaError_t own_linear_bwd_data(cudaStream_t stream, const void *args, void *scratch)
{
    const struct linear_bwd_args *a = args;
    const ddpm_tensor dy = as_images(a->dy), w = as_images(a->w);
    ddpm_tensor dx = as_images(a->dx);
    return launch_conv2d_bwd_data(
        stream,
        &(struct conv2d_bwd_data_args){.dy = &dy, .w = &w, .stride = 1, .accumulate = a->accumulate, .dx = &dx}, scratch);
}

/* ---- the tables ---- */

#define UID(name) CUDNN_UID_##name
#define IN(type, member, ...) {offsetof(struct type, member), false, {__VA_ARGS__}}
#define OUT(type, member, ...) {offsetof(struct type, member), true, {__VA_ARGS__}}
#define NUMBER(type, member) {offsetof(struct type, member), sizeof(((struct type *)0)->member)}
#define BY(name, matrices) forms_of_##name, matrices, own_scratch_##name, own_##name
#define WINDOW(type)                                                                                                          \
    NUMBER(type, stride), NUMBER(type, pad_top), NUMBER(type, pad_left), NUMBER(type, pad_bottom), NUMBER(type, pad_right)

const struct product_kind product_kinds[PRODUCT_KINDS] = {
    [PRODUCT_CONV] = {"conv2d", sizeof(struct conv2d_args), 8, 5,
                      {IN(conv2d_args, x, UID(X), UID(A)), IN(conv2d_args, w, UID(W), UID(B)), IN(conv2d_args, bias, UID(BIAS)),
                       IN(conv2d_args, emb, UID(EMB)), IN(conv2d_args, residual, UID(RESIDUAL)),
                       OUT(conv2d_args, y, UID(Y), UID(C)), OUT(conv2d_args, sum, UID(SUM)),
                       OUT(conv2d_args, square, UID(SUM_SQUARES))},
                      {WINDOW(conv2d_args)}, BY(conv2d, matrices_of_conv)},
    [PRODUCT_CONV_DATA] = {"conv2d_bwd_data", sizeof(struct conv2d_bwd_data_args), 11, 7,
                           {IN(conv2d_bwd_data_args, dy, UID(DY), UID(A)), IN(conv2d_bwd_data_args, w, UID(W), UID(B)),
                            OUT(conv2d_bwd_data_args, dx, UID(DX), UID(C), UID(RESIDUAL)),
                            IN(conv2d_bwd_data_args, norm.x, UID(X)), IN(conv2d_bwd_data_args, norm.gamma, 0),
                            IN(conv2d_bwd_data_args, norm.beta, 0), IN(conv2d_bwd_data_args, norm.scale, 0),
                            IN(conv2d_bwd_data_args, norm.shift, 0), IN(conv2d_bwd_data_args, norm.stats, 0),
                            OUT(conv2d_bwd_data_args, sum, UID(SUM)), OUT(conv2d_bwd_data_args, product, UID(SUM_SQUARES))},
                           {WINDOW(conv2d_bwd_data_args), NUMBER(conv2d_bwd_data_args, accumulate),
                            NUMBER(conv2d_bwd_data_args, norm.groups)},
                           BY(conv2d_bwd_data, matrices_of_conv_data)},
    [PRODUCT_CONV_FILTER] = {"conv2d_bwd_filter", sizeof(struct conv2d_bwd_filter_args), 5, 5,
                             {IN(conv2d_bwd_filter_args, x, UID(X), UID(B)), IN(conv2d_bwd_filter_args, dy, UID(DY), UID(A)),
                              OUT(conv2d_bwd_filter_args, dw, UID(DW), UID(C), UID(RESIDUAL)),
                              OUT(conv2d_bwd_filter_args, db, 0), OUT(conv2d_bwd_filter_args, demb, 0)},
                             {WINDOW(conv2d_bwd_filter_args)}, BY(conv2d_bwd_filter, matrices_of_conv_filter)},
    [PRODUCT_LINEAR] = {"linear", sizeof(struct linear_args), 4, 0,
                        {IN(linear_args, x, UID(A)), IN(linear_args, w, UID(B)), IN(linear_args, bias, UID(BIAS)),
                         OUT(linear_args, y, UID(C))},
                        {{0, 0}}, BY(linear, matrices_of_linear)},
    [PRODUCT_LINEAR_DATA] = {"linear_bwd", sizeof(struct linear_bwd_args), 3, 1,
                             {IN(linear_bwd_args, dy, UID(A)), IN(linear_bwd_args, w, UID(B)),
                              OUT(linear_bwd_args, dx, UID(C), UID(RESIDUAL))},
                             {NUMBER(linear_bwd_args, accumulate)}, BY(linear_bwd_data, matrices_of_linear_data)},
    [PRODUCT_LINEAR_WEIGHTS] = {"linear_bwd", sizeof(struct linear_bwd_args), 4, 0,
                                {IN(linear_bwd_args, dy, UID(A)), IN(linear_bwd_args, x, UID(B)),
                                 OUT(linear_bwd_args, dw, UID(C), UID(RESIDUAL)), OUT(linear_bwd_args, db, 0)},
                                {{0, 0}}, BY(linear_bwd_weights, matrices_of_linear_weights)},
    [PRODUCT_ATTENTION] = {"attention", sizeof(struct attention_args), 5, 1,
                           {IN(attention_args, q, UID(Q)), IN(attention_args, k, UID(K)), IN(attention_args, v, UID(V)),
                            OUT(attention_args, o, UID(O)), OUT(attention_args, lse, UID(LSE))},
                           {NUMBER(attention_args, scale)}, BY(attention, no_matrices)},
    [PRODUCT_ATTENTION_BWD] = {"attention_bwd", sizeof(struct attention_bwd_args), 9, 1,
                               {IN(attention_bwd_args, q, UID(Q)), IN(attention_bwd_args, k, UID(K)),
                                IN(attention_bwd_args, v, UID(V)), IN(attention_bwd_args, o, UID(O)),
                                IN(attention_bwd_args, lse, UID(LSE)), IN(attention_bwd_args, d_o, UID(DO)),
                                OUT(attention_bwd_args, dq, UID(DQ)), OUT(attention_bwd_args, dk, UID(DK)),
                                OUT(attention_bwd_args, dv, UID(DV))},
                               {NUMBER(attention_bwd_args, scale)}, BY(attention_bwd, no_matrices)},
};

const ddpm_tensor *product_tensor(const struct product_kind *k, const void *args, int field)
{
    return *(const ddpm_tensor *const *)((const unsigned char *)args + k->field[field].at);
}

int product_pointers(const struct product_kind *k, const void *args, struct cudnn_pointer *out)
{
    int n = 0;
    for (int i = 0; i < k->n_fields; i++) {
        const ddpm_tensor *t = product_tensor(k, args, i);
        for (int j = 0; t && j < PRODUCT_UIDS && k->field[i].uid[j]; j++)
            out[n++] = (struct cudnn_pointer){k->field[i].uid[j], t->data};
    }
    return n;
}

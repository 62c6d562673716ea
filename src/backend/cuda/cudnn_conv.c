/* cudnn_conv.c - convolutions as graphs: forward with what is added behind it, and both gradients.
 *
 * The product of a fused form is a virtual f32 tensor, so bias, embedding and residual are added before the one rounding
 * to the activations' dtype. Sums are taken of what is stored, after that rounding: they are the sums of the tensor that
 * the next layer reads. */
#include "cudnn_builder.h"

#include <string.h>

struct pads {
    int stride, top, left, bottom, right;
};

#define PADS(a) ((struct pads){(a)->stride, (a)->pad_top, (a)->pad_left, (a)->pad_bottom, (a)->pad_right})

static bool extents_agree(int64_t in, int64_t kernel, int64_t out, int before, int after, int stride)
{
    return in > 0 && kernel > 0 && out > 0 && stride > 0 && in + before + after >= kernel &&
           (in + before + after - kernel) / stride + 1 == out;
}

static ddpm_status expect_conv(const char *what, const ddpm_tensor *x, const ddpm_tensor *w, const ddpm_tensor *y,
                               struct pads p)
{
    REQUIRE(x->rank == 4 && w->rank == 4 && y->rank == 4 && x->dim[0] == y->dim[0] && w->dim[3] == x->dim[3] &&
                w->dim[0] == y->dim[3] && extents_agree(x->dim[1], w->dim[1], y->dim[1], p.top, p.bottom, p.stride) &&
                extents_agree(x->dim[2], w->dim[2], y->dim[2], p.left, p.right, p.stride),
            SHAPE, "%s: %lldx%lldx%lldx%lld with kernel %lldx%lldx%lldx%lld, stride %d and pads %d %d %d %d is not %lldx%lldx%lldx%lld",
            what, (long long)x->dim[0], (long long)x->dim[1], (long long)x->dim[2], (long long)x->dim[3],
            (long long)w->dim[0], (long long)w->dim[1], (long long)w->dim[2], (long long)w->dim[3], p.stride, p.top, p.left,
            p.bottom, p.right, (long long)y->dim[0], (long long)y->dim[1], (long long)y->dim[2], (long long)y->dim[3]);
    return DDPM_OK;
}

static ddpm_status expect_same(const char *what, const ddpm_tensor *t, const ddpm_tensor *like)
{
    REQUIRE(t->rank == like->rank && memcmp(t->dim, like->dim, (size_t)t->rank * sizeof *t->dim) == 0, SHAPE,
            "%s: the extents of what is added differ from those of the result", what);
    return DDPM_OK;
}

/* ---- operations ---- */

static cudnn_descriptor describe_conv(struct cudnn_builder *b, struct pads p)
{
    const int64_t spatial = 2, before[2] = {p.top, p.left}, after[2] = {p.bottom, p.right};
    const int64_t strides[2] = {p.stride, p.stride}, dilations[2] = {1, 1};
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    cudnn_descriptor d = builder_descriptor(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, spatial, before);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, spatial, after);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, spatial, strides);
    builder_set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, spatial, dilations);
    builder_finalize(b, "cuDNN convolution", d);
    return d;
}

static void scale_conv(struct cudnn_builder *b, cudnn_descriptor op, cudnnBackendAttributeName_t alpha_name,
                       cudnnBackendAttributeName_t beta_name, float beta)
{
    const float alpha = 1;
    builder_set(b, op, alpha_name, CUDNN_TYPE_FLOAT, 1, &alpha);
    builder_set(b, op, beta_name, CUDNN_TYPE_FLOAT, 1, &beta);
}

static void name_conv(struct cudnn_builder *b, const char *kind, const ddpm_tensor *x, const ddpm_tensor *w,
                      const ddpm_tensor *y, struct pads p)
{
    text_add(&b->name, "%s %s", kind, x->dtype == DDPM_BF16 ? "bf16" : "f32");
    builder_describe(b, "x", x);
    builder_describe(b, "w", w);
    builder_describe(b, "y", y);
    text_add(&b->name, " s%d p%d,%d,%d,%d", p.stride, p.top, p.left, p.bottom, p.right);
    builder_count_flops(b, (double)ddpm_tensor_count(w) * (double)(y->dim[0] * y->dim[1] * y->dim[2]));
}

/* SUM of `of`, and SUM_SQUARES of its products with `with`, per image and channel. */
static void add_sums(struct cudnn_builder *b, const ddpm_tensor *shape, cudnn_descriptor of, cudnn_descriptor with)
{
    const int64_t n = shape->dim[0], c = shape->dim[3];
    cudnn_descriptor product = builder_virtual(b, DDPM_F32, shape_image(shape));
    builder_sum(b, of, builder_per_image(b, CUDNN_UID_SUM, true, n, c));
    builder_pointwise(b, CUDNN_POINTWISE_MUL, of, with, product);
    builder_sum(b, product, builder_per_image(b, CUDNN_UID_SUM_SQUARES, true, n, c));
    if (!b->s) b->g->any_order = true;
    text_add(&b->name, " +sums");
}

/* ---- forward ---- */

/* What stands between the product and y, in order. */
struct chain {
    cudnn_descriptor value; /* the latest */
    int left;               /* operations still to come; the last writes y */
};

static cudnn_descriptor next_value(struct cudnn_builder *b, struct chain *c, const ddpm_tensor *shape, cudnn_descriptor y)
{
    return --c->left == 0 ? y : builder_virtual(b, DDPM_F32, shape_dense(shape->dim[0], shape->dim[3], shape->dim[1], shape->dim[2]));
}

static void chain_add(struct cudnn_builder *b, struct chain *c, const ddpm_tensor *shape, cudnn_descriptor operand,
                      cudnn_descriptor y)
{
    cudnn_descriptor to = next_value(b, c, shape, y);
    builder_pointwise(b, CUDNN_POINTWISE_ADD, c->value, operand, to);
    c->value = to;
}

static void add_epilogue(struct cudnn_builder *b, struct chain *c, const struct cudnn_conv_args *a, cudnn_descriptor y)
{
    if (a->bias) {
        builder_describe(b, "+bias", a->bias);
        chain_add(b, c, a->y, builder_given(b, CUDNN_UID_BIAS, false, a->bias, shape_rows(a->bias)), y);
    }
    if (a->emb) {
        builder_describe(b, "+emb", a->emb);
        chain_add(b, c, a->y, builder_given(b, CUDNN_UID_EMB, false, a->emb, shape_rows(a->emb)), y);
    }
    if (a->residual) {
        builder_describe(b, "+residual", a->residual);
        chain_add(b, c, a->y, builder_given(b, CUDNN_UID_RESIDUAL, false, a->residual, shape_image(a->residual)), y);
    }
    if (a->silu) {
        text_add(&b->name, " +silu");
        cudnn_descriptor to = next_value(b, c, a->y, y);
        builder_pointwise(b, CUDNN_POINTWISE_SWISH_FWD, c->value, NULL, to);
    }
}

static ddpm_status expect_epilogue(const struct cudnn_conv_args *a)
{
    const int64_t n = a->y->dim[0], k = a->y->dim[3];
    REQUIRE(!a->bias || (a->bias->rank == 1 && a->bias->dim[0] == k), SHAPE, "convolution: bias has not %lld elements",
            (long long)k);
    REQUIRE(!a->emb || (a->emb->rank == 2 && a->emb->dim[0] == n && a->emb->dim[1] == k), SHAPE,
            "convolution: emb is not %lldx%lld", (long long)n, (long long)k);
    return a->residual ? expect_same("convolution", a->residual, a->y) : DDPM_OK;
}

ddpm_status cudnn_graph_conv(const struct cudnn_conv_args *a, struct cudnn_graph **out)
{
    const struct pads p = PADS(a);
    TRY(expect_conv("convolution", a->x, a->w, a->y, p));
    TRY(expect_epilogue(a));

    struct cudnn_builder b;
    builder_begin(&b, a->x->dtype);
    name_conv(&b, "conv", a->x, a->w, a->y, p);
    struct chain c = {.left = (a->bias != NULL) + (a->emb != NULL) + (a->residual != NULL) + a->silu + 1};
    if (!b.s) b.g->is_plain_conv = c.left == 1 && !a->sums;
    cudnn_descriptor y = builder_given(&b, CUDNN_UID_Y, true, a->y, shape_image(a->y));
    c.value = next_value(&b, &c, a->y, y);
    cudnn_descriptor op = builder_descriptor(&b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, describe_conv(&b, p));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                 builder_given(&b, CUDNN_UID_X, false, a->x, shape_image(a->x)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                 builder_given(&b, CUDNN_UID_W, false, a->w, shape_image(a->w)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, c.value);
    scale_conv(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 0);
    builder_operation(&b, "cuDNN convolution", op);
    add_epilogue(&b, &c, a, y);
    if (a->sums) add_sums(&b, a->y, y, y);
    return builder_finish(&b, out);
}

/* ---- gradient of x ---- */

/* a x + b, of which silu' is taken. */
static cudnn_descriptor scale_shift(struct cudnn_builder *b, const ddpm_tensor *shape, cudnn_descriptor x)
{
    const int64_t n = shape->dim[0], c = shape->dim[3];
    cudnn_descriptor product = builder_virtual(b, DDPM_F32, shape_image(shape));
    cudnn_descriptor sum = builder_virtual(b, DDPM_F32, shape_image(shape));
    builder_pointwise(b, CUDNN_POINTWISE_MUL, x, builder_per_image(b, CUDNN_UID_SCALE, false, n, c), product);
    builder_pointwise(b, CUDNN_POINTWISE_ADD, product, builder_per_image(b, CUDNN_UID_SHIFT, false, n, c), sum);
    return sum;
}

/* Everything behind the product: the residual's gradient, silu', sums. */
static void add_gradient(struct cudnn_builder *b, struct chain *c, const struct cudnn_conv_bwd_data_args *a,
                         cudnn_descriptor dx)
{
    if (a->residual) {
        builder_describe(b, "+residual", a->residual);
        chain_add(b, c, a->dx, builder_given(b, CUDNN_UID_RESIDUAL, false, a->residual, shape_image(a->residual)), dx);
    }
    cudnn_descriptor x = NULL;
    if (a->x) {
        builder_describe(b, a->scale_shift ? "*silu'(ax+b)" : "*silu'", a->x);
        x = builder_given(b, CUDNN_UID_X, false, a->x, shape_image(a->x));
        cudnn_descriptor at = a->scale_shift ? scale_shift(b, a->dx, x) : x;
        cudnn_descriptor to = next_value(b, c, a->dx, dx);
        builder_pointwise_bwd(b, CUDNN_POINTWISE_SWISH_BWD, at, c->value, to);
    }
    if (a->sums) add_sums(b, a->dx, dx, x ? x : dx);
}

ddpm_status cudnn_graph_conv_bwd_data(const struct cudnn_conv_bwd_data_args *a, struct cudnn_graph **out)
{
    const struct pads p = PADS(a);
    TRY(expect_conv("gradient of a convolution", a->dx, a->w, a->dy, p));
    if (a->residual) TRY(expect_same("gradient of a convolution", a->residual, a->dx));
    if (a->x) TRY(expect_same("gradient of a convolution", a->x, a->dx));
    REQUIRE(a->x || !a->scale_shift, SHAPE, "gradient of a convolution: scale and shift without x");

    struct cudnn_builder b;
    builder_begin(&b, a->dx->dtype);
    name_conv(&b, "conv_bwd_data", a->dx, a->w, a->dy, p);
    if (a->beta != 0) text_add(&b.name, " beta %g", (double)a->beta);
    struct chain c = {.left = (a->residual != NULL) + (a->x != NULL) + 1};
    if (!b.s) b.g->is_plain_conv = c.left == 1 && !a->sums;
    cudnn_descriptor dx = builder_given(&b, CUDNN_UID_DX, true, a->dx, shape_image(a->dx));
    c.value = next_value(&b, &c, a->dx, dx);
    cudnn_descriptor op = builder_descriptor(&b, CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, describe_conv(&b, p));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                 builder_given(&b, CUDNN_UID_DY, false, a->dy, shape_image(a->dy)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                 builder_given(&b, CUDNN_UID_W, false, a->w, shape_image(a->w)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, c.value);
    scale_conv(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
               a->beta);
    builder_operation(&b, "cuDNN gradient of a convolution", op);
    add_gradient(&b, &c, a, dx);
    return builder_finish(&b, out);
}

/* ---- gradient of w ---- */

ddpm_status cudnn_graph_conv_bwd_filter(const struct cudnn_conv_bwd_filter_args *a, struct cudnn_graph **out)
{
    const struct pads p = PADS(a);
    TRY(expect_conv("gradient of a kernel", a->x, a->dw, a->dy, p));

    struct cudnn_builder b;
    builder_begin(&b, a->x->dtype);
    name_conv(&b, "conv_bwd_filter", a->x, a->dw, a->dy, p);
    if (a->beta != 0) text_add(&b.name, " beta %g", (double)a->beta);
    if (!b.s) b.g->is_plain_conv = true;
    cudnn_descriptor op = builder_descriptor(&b, CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, describe_conv(&b, p));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                 builder_given(&b, CUDNN_UID_X, false, a->x, shape_image(a->x)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                 builder_given(&b, CUDNN_UID_DY, false, a->dy, shape_image(a->dy)));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                 builder_given(&b, CUDNN_UID_DW, true, a->dw, shape_image(a->dw)));
    scale_conv(&b, op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, a->beta);
    builder_operation(&b, "cuDNN gradient of a kernel", op);
    return builder_finish(&b, out);
}

/* contract_products.c - the contracts of convolutions, dense layers and attention.
 *
 * The activations of a call share one dtype, that of the tensor checked first. A gradient is
 * checked as the tensor it belongs to, under its own name. */
#include "check.h"
#include "contracts.h"

/* ---- convolutions ---- */

/* A tensor under the name its op has for it. */
struct named {
    const char *name;
    const ddpm_tensor *t;
};
#define NAMED(tensor) ((struct named){#tensor, tensor})

static bool is_pad(int n)
{
    return n >= 0 && n <= 2;
}

/* A square kernel of 1 or 3; contiguous when 3. */
static ddpm_status expect_kernel(const char *op, const ddpm_tensor *w)
{
    const int64_t size = w->dim[1], c = w->dim[3];
    REQUIRE(size == w->dim[2] && (size == 1 || size == 3), SHAPE,
            "%s: kernel %lldx%lld, must be 1x1 or 3x3", op, (long long)size, (long long)w->dim[2]);
    if (size == 1) return DDPM_OK;
    REQUIRE((w->stride[0] == 9 * c || w->dim[0] == 1) && w->stride[1] == 3 * c && w->stride[2] == c,
            SHAPE, "%s: a 3x3 kernel must be contiguous", op);
    return DDPM_OK;
}

/* x and w give y's extents; x is dx, w dw and y dy where the op is their gradient. */
static ddpm_status expect_conv(const ddpm_backend *be, const char *op, struct named x,
                               struct named w, struct named y, ddpm_dtype images,
                               ddpm_dtype weights, struct conv_pads p)
{
    TRY(op_expect(be, op, x.name, x.t, images, OP_VIEW, 4, (int64_t[]){-1, -1, -1, -1}));
    TRY(op_expect(be, op, w.name, w.t, weights, OP_VIEW, 4, (int64_t[]){-1, -1, -1, x.t->dim[3]}));
    TRY(expect_kernel(op, w.t));
    const int64_t n = x.t->dim[0], h = x.t->dim[1], width = x.t->dim[2], c = x.t->dim[3];
    const int64_t k = w.t->dim[0], size = w.t->dim[1];
    REQUIRE(n <= INT32_MAX && h <= INT32_MAX && width <= INT32_MAX && c <= INT32_MAX &&
                k <= INT32_MAX,
            SHAPE, "%s: an extent above 2^31", op);
    REQUIRE(p.stride == 1 || p.stride == 2, SHAPE, "%s: stride %d, must be 1 or 2", op, p.stride);
    REQUIRE(is_pad(p.top) && is_pad(p.left) && is_pad(p.bottom) && is_pad(p.right), SHAPE,
            "%s: pads %d,%d,%d,%d, must be 0 to 2", op, p.top, p.left, p.bottom, p.right);
    const int64_t rows = h + p.top + p.bottom - size, columns = width + p.left + p.right - size;
    REQUIRE(rows >= 0 && columns >= 0, SHAPE, "%s: a %lldx%lld image is smaller than the kernel",
            op, (long long)h, (long long)width);
    return op_expect(be, op, y.name, y.t, images, OP_DENSE, 4,
                     (int64_t[]){n, rows / p.stride + 1, columns / p.stride + 1, k});
}

ddpm_status expect_conv2d(const ddpm_backend *be, const struct conv2d_args *a)
{
    const char *op = "conv2d";
    const ddpm_dtype dtype = op_activation(be, a->x);
    TRY(expect_conv(be, op, NAMED(a->x), NAMED(a->w), NAMED(a->y), dtype, dtype, CONV_PADS(a)));
    const int64_t n = a->y->dim[0], k = a->y->dim[3];
    OP_EXPECT_OR_NULL(be, op, a->bias, DDPM_F32, OP_DENSE, k);
    OP_EXPECT_OR_NULL(be, op, a->emb, DDPM_F32, OP_VIEW, n, k);
    if (a->residual) OP_EXPECT_LIKE(be, op, a->residual, dtype, a->y);
    OP_EXPECT_OR_NULL(be, op, a->sum, DDPM_F32, OP_DENSE, n, k);
    OP_EXPECT_OR_NULL(be, op, a->square, DDPM_F32, OP_DENSE, n, k);
    REQUIRE(!a->sum == !a->square && !a->sum == !a->has_sums, SHAPE,
            "%s: sum, square and has_sums go together", op);
    return DDPM_OK;
}

/* The norm whose gradient may be taken on the way, and where that is left. */
static ddpm_status expect_norm_ref(const ddpm_backend *be, const struct conv2d_bwd_data_args *a)
{
    const char *op = "conv2d_bwd_data";
    const struct norm_ref *norm = &a->norm;
    const int64_t n = a->dx->dim[0], c = a->dx->dim[3];
    OP_EXPECT_LIKE(be, op, norm->x, a->dx->dtype, a->dx);
    OP_EXPECT_LIKE(be, op, a->dx, a->dx->dtype, norm->x);
    OP_EXPECT(be, op, norm->gamma, DDPM_F32, OP_DENSE, c);
    OP_EXPECT(be, op, norm->beta, DDPM_F32, OP_DENSE, c);
    OP_EXPECT_OR_NULL(be, op, norm->scale, DDPM_F32, OP_VIEW, n, c);
    OP_EXPECT_OR_NULL(be, op, norm->shift, DDPM_F32, OP_VIEW, n, c);
    REQUIRE(norm->groups >= 1 && c % norm->groups == 0, SHAPE,
            "%s: %d groups do not divide %lld channels", op, norm->groups, (long long)c);
    OP_EXPECT(be, op, norm->stats, DDPM_F32, OP_DENSE, n, norm->groups, 2);
    OP_EXPECT(be, op, a->sum, DDPM_F32, OP_DENSE, n, c);
    OP_EXPECT(be, op, a->product, DDPM_F32, OP_DENSE, n, c);
    REQUIRE(!a->accumulate, SHAPE, "%s: the gradient of a norm is not accumulated", op);
    return DDPM_OK;
}

ddpm_status expect_conv2d_bwd_data(const ddpm_backend *be, const struct conv2d_bwd_data_args *a)
{
    const char *op = "conv2d_bwd_data";
    const ddpm_dtype dtype = op_activation(be, a->dx);
    TRY(expect_conv(be, op, NAMED(a->dx), NAMED(a->w), NAMED(a->dy), dtype, dtype, CONV_PADS(a)));
    REQUIRE(!a->norm.x == !a->sum && !a->sum == !a->product && !a->sum == !a->has_gradient, SHAPE,
            "%s: norm, sum, product and has_gradient go together", op);
    return a->norm.x ? expect_norm_ref(be, a) : DDPM_OK;
}

ddpm_status expect_conv2d_bwd_filter(const ddpm_backend *be, const struct conv2d_bwd_filter_args *a)
{
    const char *op = "conv2d_bwd_filter";
    TRY(expect_conv(be, op, NAMED(a->x), NAMED(a->dw), NAMED(a->dy), op_activation(be, a->x),
                    DDPM_F32, CONV_PADS(a)));
    const int64_t n = a->dy->dim[0], k = a->dy->dim[3];
    OP_EXPECT_OR_NULL(be, op, a->db, DDPM_F32, OP_DENSE, k);
    OP_EXPECT_OR_NULL(be, op, a->demb, DDPM_F32, OP_VIEW, n, k);
    return DDPM_OK;
}

/* ---- dense layers ---- */

ddpm_status expect_linear(const ddpm_backend *be, const struct linear_args *a)
{
    const char *op = "linear";
    const ddpm_dtype dtype = op_activation(be, a->x);
    OP_EXPECT(be, op, a->x, dtype, OP_VIEW, -1, -1);
    OP_EXPECT(be, op, a->w, dtype, OP_DENSE, -1, a->x->dim[1]);
    OP_EXPECT_OR_NULL(be, op, a->bias, DDPM_F32, OP_DENSE, a->w->dim[0]);
    OP_EXPECT(be, op, a->y, dtype, OP_VIEW, a->x->dim[0], a->w->dim[0]);
    return DDPM_OK;
}

ddpm_status expect_linear_bwd(const ddpm_backend *be, const struct linear_bwd_args *a)
{
    const char *op = "linear_bwd";
    const ddpm_dtype dtype = op_activation(be, a->dy);
    OP_EXPECT(be, op, a->dy, dtype, OP_VIEW, -1, -1);
    const int64_t m = a->dy->dim[0], out = a->dy->dim[1];
    OP_EXPECT(be, op, a->x, dtype, OP_VIEW, m, -1);
    const int64_t in = a->x->dim[1];
    OP_EXPECT_OR_NULL(be, op, a->dx, dtype, OP_VIEW, m, in);
    if (a->dx) OP_EXPECT(be, op, a->w, dtype, OP_DENSE, out, in);
    OP_EXPECT(be, op, a->dw, DDPM_F32, OP_DENSE, out, in);
    OP_EXPECT_OR_NULL(be, op, a->db, DDPM_F32, OP_DENSE, out);
    return DDPM_OK;
}

/* ---- attention ---- */

ddpm_status expect_attention(const ddpm_backend *be, const struct attention_args *a)
{
    const char *op = "attention";
    const ddpm_dtype dtype = op_activation(be, a->q);
    OP_EXPECT(be, op, a->q, dtype, OP_STRIDED, -1, -1, -1, -1);
    const int64_t n = a->q->dim[0], t = a->q->dim[1], heads = a->q->dim[2], d = a->q->dim[3];
    OP_EXPECT(be, op, a->k, dtype, OP_STRIDED, n, t, heads, d);
    OP_EXPECT(be, op, a->v, dtype, OP_STRIDED, n, t, heads, d);
    OP_EXPECT(be, op, a->o, dtype, OP_STRIDED, n, t, heads, d);
    OP_EXPECT_OR_NULL(be, op, a->lse, DDPM_F32, OP_DENSE, n, heads, t);
    return DDPM_OK;
}

ddpm_status expect_attention_bwd(const ddpm_backend *be, const struct attention_bwd_args *a)
{
    const char *op = "attention_bwd";
    const ddpm_dtype dtype = op_activation(be, a->q);
    OP_EXPECT(be, op, a->q, dtype, OP_STRIDED, -1, -1, -1, -1);
    const struct named same[] = {NAMED(a->k),  NAMED(a->v),  NAMED(a->o), NAMED(a->d_o),
                                 NAMED(a->dq), NAMED(a->dk), NAMED(a->dv)};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        TRY(op_expect(be, op, same[i].name, same[i].t, dtype, OP_STRIDED, 4, a->q->dim));
    OP_EXPECT(be, op, a->lse, DDPM_F32, OP_DENSE, a->q->dim[0], a->q->dim[2], a->q->dim[1]);
    return DDPM_OK;
}

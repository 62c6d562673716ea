/* contract_network.c - the contracts of the network's other ops: normalisation, softmax,
 * activations, resampling, embeddings.
 *
 * The images of a call share one dtype, that of the tensor checked first; parameters, statistics
 * and vectors of one image (scale, shift, embeddings) are f32, and so are the rows of a softmax. */
#include "check.h"
#include "contracts.h"

/* ---- GroupNorm ---- */

/* What forward and backward take alike. */
static ddpm_status expect_norm(const ddpm_backend *be, const char *op, const ddpm_tensor *x1,
                               const ddpm_tensor *x2, const ddpm_tensor *gamma,
                               const ddpm_tensor *beta, const ddpm_tensor *scale,
                               const ddpm_tensor *shift, int groups, enum norm_resample resample,
                               float dropout, bool has_key)
{
    const ddpm_dtype dtype = op_activation(be, x1);
    OP_EXPECT(be, op, x1, dtype, OP_DENSE, -1, -1, -1, -1);
    OP_EXPECT_OR_NULL(be, op, x2, dtype, OP_DENSE, x1->dim[0], x1->dim[1], x1->dim[2], -1);
    const int64_t c = x1->dim[3] + (x2 ? x2->dim[3] : 0);
    OP_EXPECT(be, op, gamma, DDPM_F32, OP_DENSE, c);
    OP_EXPECT(be, op, beta, DDPM_F32, OP_DENSE, c);
    OP_EXPECT_OR_NULL(be, op, scale, DDPM_F32, OP_VIEW, x1->dim[0], c);
    OP_EXPECT_OR_NULL(be, op, shift, DDPM_F32, OP_VIEW, x1->dim[0], c);
    REQUIRE(groups >= 1 && c % groups == 0, SHAPE, "%s: %d groups do not divide %lld channels", op,
            groups, (long long)c);
    REQUIRE(dropout >= 0.0f && dropout < 1.0f, SHAPE, "%s: dropout %g is not in [0, 1)", op,
            (double)dropout);
    REQUIRE(dropout == 0.0f || has_key || be->is_measuring, SHAPE,
            "%s: dropout needs state and index", op);
    REQUIRE(resample == NORM_SAME || dropout == 0.0f, SHAPE, "%s: no dropout where y is resampled",
            op);
    return DDPM_OK;
}

/* y or dy: as x1 with c channels, resampled. */
static ddpm_status expect_resampled(const ddpm_backend *be, const char *op, const char *name,
                                    const ddpm_tensor *y, const ddpm_tensor *x1, int64_t c,
                                    enum norm_resample resample)
{
    int64_t h = x1->dim[1], w = x1->dim[2];
    REQUIRE(resample == NORM_SAME || resample == NORM_UP2 || resample == NORM_MEAN2, SHAPE,
            "%s: no way to resample is number %d", op, (int)resample);
    if (resample == NORM_UP2) {
        h *= 2;
        w *= 2;
    } else if (resample == NORM_MEAN2) {
        REQUIRE(h % 2 == 0 && w % 2 == 0, SHAPE, "%s: x1 is %lld by %lld, both must be even", op,
                (long long)h, (long long)w);
        h /= 2;
        w /= 2;
    }
    return op_expect(be, op, name, y, x1->dtype, OP_DENSE, 4, (int64_t[]){x1->dim[0], h, w, c});
}

ddpm_status expect_groupnorm(const ddpm_backend *be, const struct groupnorm_args *a)
{
    const char *op = "groupnorm";
    TRY(expect_norm(be, op, a->x1, a->x2, a->gamma, a->beta, a->scale, a->shift, a->groups,
                    a->resample, a->dropout, a->state && a->index));
    const int64_t *dim = a->x1->dim, c2 = a->x2 ? a->x2->dim[3] : 0;
    OP_EXPECT(be, op, a->stats, DDPM_F32, OP_DENSE, dim[0], a->groups, 2);
    OP_EXPECT_OR_NULL(be, op, a->sum1, DDPM_F32, OP_DENSE, dim[0], dim[3]);
    OP_EXPECT_OR_NULL(be, op, a->square1, DDPM_F32, OP_DENSE, dim[0], dim[3]);
    OP_EXPECT_OR_NULL(be, op, a->sum2, DDPM_F32, OP_DENSE, dim[0], c2);
    OP_EXPECT_OR_NULL(be, op, a->square2, DDPM_F32, OP_DENSE, dim[0], c2);
    REQUIRE(!a->sum1 == !a->square1 && !a->sum2 == !a->square2, SHAPE,
            "%s: sums without squares, or squares without sums", op);
    return expect_resampled(be, op, "y", a->y, a->x1, a->gamma->dim[0], a->resample);
}

ddpm_status expect_groupnorm_bwd(const ddpm_backend *be, const struct groupnorm_bwd_args *a)
{
    const char *op = "groupnorm_bwd";
    TRY(expect_norm(be, op, a->x1, a->x2, a->gamma, a->beta, a->scale, a->shift, a->groups,
                    a->resample, a->dropout, a->state && a->index));
    const ddpm_dtype dtype = a->x1->dtype;
    const int64_t *dim = a->x1->dim, c = a->gamma->dim[0];
    TRY(expect_resampled(be, op, "dy", a->dy, a->x1, c, a->resample));
    OP_EXPECT(be, op, a->stats, DDPM_F32, OP_DENSE, dim[0], a->groups, 2);
    OP_EXPECT_OR_NULL(be, op, a->dy_sum, DDPM_F32, OP_DENSE, dim[0], dim[3]);
    OP_EXPECT_OR_NULL(be, op, a->dy_x, DDPM_F32, OP_DENSE, dim[0], dim[3]);
    REQUIRE(!a->dy_sum == !a->dy_x, SHAPE, "%s: dy_sum and dy_x go together", op);
    REQUIRE(!a->dy_sum || (!a->x2 && !a->silu && a->dropout == 0.0f && a->resample == NORM_SAME),
            SHAPE, "%s: dy_sum with a second source, silu, dropout or a resampled y", op);
    OP_EXPECT_LIKE(be, op, a->dx1, dtype, a->x1);
    if (a->add1) OP_EXPECT_LIKE(be, op, a->add1, dtype, a->x1);
    if (a->x2) {
        OP_EXPECT_LIKE(be, op, a->dx2, dtype, a->x2);
        if (a->add2) OP_EXPECT_LIKE(be, op, a->add2, dtype, a->x2);
    }
    OP_EXPECT(be, op, a->dgamma, DDPM_F32, OP_DENSE, c);
    OP_EXPECT(be, op, a->dbeta, DDPM_F32, OP_DENSE, c);
    if (a->scale) OP_EXPECT(be, op, a->dscale, DDPM_F32, OP_VIEW, dim[0], c);
    if (a->shift) OP_EXPECT(be, op, a->dshift, DDPM_F32, OP_VIEW, dim[0], c);
    return DDPM_OK;
}

/* ---- softmax ---- */

ddpm_status expect_softmax(const ddpm_backend *be, const struct softmax_args *a)
{
    OP_EXPECT(be, "softmax", a->x, DDPM_F32, OP_DENSE, -1, -1);
    OP_EXPECT_LIKE(be, "softmax", a->y, DDPM_F32, a->x);
    return DDPM_OK;
}

ddpm_status expect_softmax_bwd(const ddpm_backend *be, const struct softmax_bwd_args *a)
{
    OP_EXPECT(be, "softmax_bwd", a->y, DDPM_F32, OP_DENSE, -1, -1);
    OP_EXPECT_LIKE(be, "softmax_bwd", a->dy, DDPM_F32, a->y);
    OP_EXPECT_LIKE(be, "softmax_bwd", a->dx, DDPM_F32, a->y);
    return DDPM_OK;
}

/* ---- one element at a time ---- */

ddpm_status expect_silu(const ddpm_backend *be, const struct silu_args *a)
{
    const ddpm_dtype dtype = op_activation(be, a->x);
    OP_EXPECT_ANY(be, "silu", a->x, dtype);
    OP_EXPECT_LIKE(be, "silu", a->y, dtype, a->x);
    return DDPM_OK;
}

ddpm_status expect_silu_bwd(const ddpm_backend *be, const struct silu_bwd_args *a)
{
    const ddpm_dtype dtype = op_activation(be, a->x);
    OP_EXPECT_ANY(be, "silu_bwd", a->x, dtype);
    OP_EXPECT_LIKE(be, "silu_bwd", a->dy, dtype, a->x);
    OP_EXPECT_LIKE(be, "silu_bwd", a->dx, dtype, a->x);
    return DDPM_OK;
}

ddpm_status expect_add(const ddpm_backend *be, const struct add_args *a)
{
    const ddpm_dtype dtype = op_activation(be, a->a);
    OP_EXPECT_ANY(be, "add", a->a, dtype);
    OP_EXPECT_LIKE(be, "add", a->b, dtype, a->a);
    OP_EXPECT_LIKE(be, "add", a->y, dtype, a->a);
    return DDPM_OK;
}

/* ---- twice and half the size ---- */

/* small [N,H,W,C] and large [N,2H,2W,C], the names as the op's contract has them */
static ddpm_status expect_pair(const ddpm_backend *be, const char *op, const char *small_name,
                               const ddpm_tensor *small, const char *large_name,
                               const ddpm_tensor *large)
{
    const ddpm_dtype dtype = op_activation(be, large);
    TRY(op_expect(be, op, large_name, large, dtype, OP_DENSE, 4, (int64_t[]){-1, -1, -1, -1}));
    const int64_t *dim = large->dim;
    REQUIRE(dim[1] % 2 == 0 && dim[2] % 2 == 0, SHAPE, "%s: %s is %lld by %lld, both must be even",
            op, large_name, (long long)dim[1], (long long)dim[2]);
    return op_expect(be, op, small_name, small, dtype, OP_DENSE, 4,
                     (int64_t[]){dim[0], dim[1] / 2, dim[2] / 2, dim[3]});
}

ddpm_status expect_upsample2(const ddpm_backend *be, const struct upsample2_args *a)
{
    return expect_pair(be, "upsample2", "x", a->x, "y", a->y);
}

ddpm_status expect_upsample2_bwd(const ddpm_backend *be, const struct upsample2_bwd_args *a)
{
    return expect_pair(be, "upsample2_bwd", "dx", a->dx, "dy", a->dy);
}

ddpm_status expect_avgpool2(const ddpm_backend *be, const struct avgpool2_args *a)
{
    return expect_pair(be, "avgpool2", "y", a->y, "x", a->x);
}

ddpm_status expect_avgpool2_bwd(const ddpm_backend *be, const struct avgpool2_bwd_args *a)
{
    return expect_pair(be, "avgpool2_bwd", "dy", a->dy, "dx", a->dx);
}

/* ---- embeddings ---- */

ddpm_status expect_time_embedding(const ddpm_backend *be, const struct time_embedding_args *a)
{
    OP_EXPECT(be, "time_embedding", a->t, DDPM_F32, OP_DENSE, -1);
    OP_EXPECT(be, "time_embedding", a->y, DDPM_F32, OP_DENSE, a->t->dim[0], -1);
    const int64_t width = a->y->dim[1];
    REQUIRE(width < 2 || (float)(width / 2) > a->shift, SHAPE,
            "time_embedding: y is %lld wide, too narrow for a frequency shift of %g",
            (long long)width, (double)a->shift);
    return DDPM_OK;
}

ddpm_status expect_embedding(const ddpm_backend *be, const struct embedding_args *a)
{
    OP_EXPECT(be, "embedding", a->table, DDPM_F32, OP_DENSE, -1, -1);
    OP_EXPECT(be, "embedding", a->y, DDPM_F32, OP_DENSE, -1, a->table->dim[1]);
    REQUIRE(a->label || be->is_measuring, SHAPE, "embedding: label is missing");
    return DDPM_OK;
}

ddpm_status expect_embedding_bwd(const ddpm_backend *be, const struct embedding_bwd_args *a)
{
    OP_EXPECT(be, "embedding_bwd", a->dtable, DDPM_F32, OP_DENSE, -1, -1);
    OP_EXPECT(be, "embedding_bwd", a->dy, DDPM_F32, OP_DENSE, -1, a->dtable->dim[1]);
    REQUIRE(a->label || be->is_measuring, SHAPE, "embedding_bwd: label is missing");
    return DDPM_OK;
}

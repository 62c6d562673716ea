/* contract_method.c - the contracts of what stands around the network: noise, the forward and
 * reverse process, the loss, the optimiser, images to bytes.
 *
 * Samples, noise and everything the optimiser touches are f32; what goes into the network or comes
 * out of it may be bf16 where the backend takes it. Pointers into the device may be missing while
 * the backend measures. */
#include "check.h"
#include "contracts.h"

/* ---- noise and the forward process ---- */

ddpm_status expect_gaussian(const ddpm_backend *be, const struct gaussian_args *a)
{
    OP_EXPECT_ANY(be, "gaussian", a->x, DDPM_F32);
    REQUIRE((a->state && a->index) || be->is_measuring, SHAPE,
            "gaussian: state or index is missing");
    return DDPM_OK;
}

/* What q_sample and diffusion_loss take alike. */
static ddpm_status expect_source(const ddpm_backend *be, const char *op, const ddpm_tensor *x0,
                                 const ddpm_tensor *eps, const int32_t *t, const float *coef,
                                 bool has_key)
{
    const ddpm_dtype dtype = x0 && x0->dtype == DDPM_U8 ? DDPM_U8 : DDPM_F32;
    OP_EXPECT(be, op, x0, dtype, OP_DENSE, -1, -1, -1, -1);
    if (eps) OP_EXPECT_LIKE(be, op, eps, DDPM_F32, x0);
    REQUIRE((t && coef) || be->is_measuring, SHAPE, "%s: t or its coefficients are missing", op);
    REQUIRE(eps || has_key || be->is_measuring, SHAPE,
            "%s: without eps, state and index are needed", op);
    return DDPM_OK;
}

ddpm_status expect_q_sample(const ddpm_backend *be, const struct q_sample_args *a)
{
    TRY(expect_source(be, "q_sample", a->x0, a->eps, a->t, a->coef, a->state && a->index));
    OP_EXPECT_LIKE(be, "q_sample", a->xt, op_activation(be, a->xt), a->x0);
    return DDPM_OK;
}

ddpm_status expect_diffusion_loss(const ddpm_backend *be, const struct diffusion_loss_args *a)
{
    const char *op = "diffusion_loss";
    const ddpm_dtype dtype = op_activation(be, a->out);
    TRY(expect_source(be, op, a->x0, a->eps, a->t, a->tcoef, a->state && a->index));
    OP_EXPECT_LIKE(be, op, a->out, dtype, a->x0);
    OP_EXPECT(be, op, a->loss, DDPM_F32, OP_DENSE, a->x0->dim[0]);
    if (a->dout) OP_EXPECT_LIKE(be, op, a->dout, dtype, a->x0);
    OP_EXPECT_OR_NULL(be, op, a->quartiles, DDPM_F32, OP_DENSE, 4, 2);
    REQUIRE(!a->quartiles || a->T >= 1, SHAPE, "%s: quartiles of T = %d steps", op, a->T);
    return DDPM_OK;
}

/* ---- the reverse process ---- */

/* Whether a row's sigma asks for noise stands in device memory: a backend that can read it checks
 * that noise, or state and index, are given. */
ddpm_status expect_reverse_step(const ddpm_backend *be, const struct reverse_step_args *a)
{
    const char *op = "reverse_step";
    OP_EXPECT(be, op, a->x, DDPM_F32, OP_DENSE, -1, -1, -1, -1);
    OP_EXPECT_LIKE(be, op, a->out, op_activation(be, a->out), a->x);
    if (a->noise) OP_EXPECT_LIKE(be, op, a->noise, DDPM_F32, a->x);
    if (a->x0_hat) OP_EXPECT_LIKE(be, op, a->x0_hat, DDPM_F32, a->x);
    REQUIRE(a->rows || be->is_measuring, SHAPE, "reverse_step: rows are missing");
    REQUIRE(!a->bad || a->state || be->is_measuring, SHAPE, "reverse_step: bad needs state");
    return DDPM_OK;
}

ddpm_status expect_to_u8(const ddpm_backend *be, const struct to_u8_args *a)
{
    OP_EXPECT_ANY(be, "to_u8", a->x, DDPM_F32);
    OP_EXPECT_LIKE(be, "to_u8", a->y, DDPM_U8, a->x);
    return DDPM_OK;
}

/* ---- the optimiser ---- */

ddpm_status expect_sum_squares(const ddpm_backend *be, const struct sum_squares_args *a)
{
    OP_EXPECT(be, "sum_squares", a->x, DDPM_F32, OP_DENSE, -1);
    REQUIRE(a->sum || be->is_measuring, SHAPE, "sum_squares: sum is missing");
    return DDPM_OK;
}

ddpm_status expect_adamw(const ddpm_backend *be, const struct adamw_args *a)
{
    const char *op = "adamw";
    OP_EXPECT(be, op, a->p, DDPM_F32, OP_DENSE, -1);
    OP_EXPECT_LIKE(be, op, a->g, DDPM_F32, a->p);
    OP_EXPECT_LIKE(be, op, a->m, DDPM_F32, a->p);
    OP_EXPECT_LIKE(be, op, a->v, DDPM_F32, a->p);
    REQUIRE(a->n_ema >= 0 && a->n_ema <= OPS_EMA_MAX, SHAPE, "%s: %d averages, at most %d", op,
            a->n_ema, OPS_EMA_MAX);
    for (int k = 0; k < a->n_ema; k++)
        TRY(op_expect(be, op, "ema", a->ema[k], DDPM_F32, OP_DENSE, 1, a->p->dim));
    if (a->half) OP_EXPECT_LIKE(be, op, a->half, DDPM_BF16, a->p);
    REQUIRE(a->state || be->is_measuring, SHAPE, "%s: state is missing", op);
    REQUIRE(a->sum || be->is_measuring, SHAPE, "%s: sum is missing", op);
    return DDPM_OK;
}

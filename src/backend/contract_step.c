/* contract_step.c - the contracts of what lets a step run without the host: its two ends,
 * the batch, and copies in another type. */
#include "check.h"
#include "contracts.h"

ddpm_status expect_open_step(const ddpm_backend *be, const struct open_step_args *a)
{
    const char *op = "open_step";
    OP_EXPECT(be, op, a->time, DDPM_F32, OP_DENSE, -1);
    REQUIRE(a->T >= 1, SHAPE, "%s: T is %d", op, a->T);
    REQUIRE(a->rates.n_ema >= 0 && a->rates.n_ema <= OPS_EMA_MAX, SHAPE, "%s: %d averages, at most %d", op,
            a->rates.n_ema, OPS_EMA_MAX);
    REQUIRE((a->counters && a->model_time && a->index && a->state && a->t) || be->is_measuring, SHAPE,
            "%s: counters, model_time, index, state or t is missing", op);
    return DDPM_OK;
}

ddpm_status expect_close_step(const ddpm_backend *be, const struct close_step_args *a)
{
    const char *op = "close_step";
    OP_EXPECT(be, op, a->loss, DDPM_F32, OP_DENSE, -1);
    REQUIRE(a->T >= 1 && a->slots >= 1, SHAPE, "%s: T is %d, the ring has %d slots", op, a->T, a->slots);
    REQUIRE((a->t && a->state && a->sum && a->counters && a->ring) || be->is_measuring, SHAPE,
            "%s: t, state, sum, counters or ring is missing", op);
    return DDPM_OK;
}

ddpm_status expect_open_sample(const ddpm_backend *be, const struct open_sample_args *a)
{
    const char *op = "open_sample";
    OP_EXPECT(be, op, a->time, DDPM_F32, OP_DENSE, -1);
    REQUIRE((a->table && a->times && a->state && a->rows) || be->is_measuring, SHAPE,
            "%s: table, times, state or rows is missing", op);
    return DDPM_OK;
}

ddpm_status expect_cast(const ddpm_backend *be, const struct cast_args *a)
{
    const bool is_to_half = a->x && a->x->dtype == DDPM_F32;
    OP_EXPECT_ANY(be, "cast", a->x, is_to_half ? DDPM_F32 : DDPM_BF16);
    OP_EXPECT_LIKE(be, "cast", a->y, is_to_half ? DDPM_BF16 : DDPM_F32, a->x);
    return DDPM_OK;
}

ddpm_status expect_gather(const ddpm_backend *be, const struct gather_args *a)
{
    const char *op = "gather";
    OP_EXPECT(be, op, a->x, DDPM_U8, OP_DENSE, -1, -1, -1, -1);
    OP_EXPECT(be, op, a->y, DDPM_U8, OP_DENSE, -1, a->x->dim[1], a->x->dim[2], a->x->dim[3]);
    REQUIRE(a->number || be->is_measuring, SHAPE, "%s: number is missing", op);
    REQUIRE(!a->labels == !a->label, SHAPE, "%s: labels without label, or label without labels", op);
    return DDPM_OK;
}

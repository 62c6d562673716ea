/* contract_step.c - the contracts of what lets a step run without the host: its two ends. */
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

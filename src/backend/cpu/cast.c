/* cast.c - f32 to bf16 and back, at the memory's pace: 6 bytes an element. */
#include "cast.h"

#include "cpu.h"
#include "formulas.h"
#include "vector.h"

#define RUN 16384

struct cast {
    const void *x;
    void *y;
    int64_t n;
    bool is_to_half;
};

/* bf16 is the upper half of an f32. To nearest, ties to even: 7fff and the last bit that stays, added to all bits,
 * carry into the upper half just where it is to be rounded up. A NaN, whose carry could give a number, becomes 7fff, as
 * on a GPU. */
CPU_CLONES void cast_to_half(int64_t n, const float *restrict x, uint16_t *restrict half)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = formula_bits(x[i]), even = bits >> 16 & 1;
        const uint32_t is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        half[i] = (uint16_t)(is_nan ? 0x7fffu : (bits + 0x7fffu + even) >> 16);
    }
}

CPU_CLONES static void from_half(int64_t n, const uint16_t *restrict half, float *restrict x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = formula_float((uint32_t)half[i] << 16);
}

static void cast_task(void *context, int64_t task, int thread)
{
    const struct cast *c = context;
    const int64_t at = task * RUN, n = cpu_min(RUN, c->n - at);
    (void)thread;
    if (c->is_to_half)
        cast_to_half(n, (const float *)c->x + at, (uint16_t *)c->y + at);
    else
        from_half(n, (const uint16_t *)c->x + at, (float *)c->y + at);
}

ddpm_status cpu_cast(ddpm_backend *be, const struct cast_args *a)
{
    struct cast c = {.x = a->x->data,
                     .y = a->y->data,
                     .n = ddpm_tensor_count(a->x),
                     .is_to_half = a->x->dtype == DDPM_F32};
    if (!cpu_is_measuring(be)) cpu_run(be, cpu_ceil_div(c.n, RUN), cast_task, &c);
    return DDPM_OK;
}

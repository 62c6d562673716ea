/* tall.c - products with many rows to sum over and few results: a task takes a group of the rows
 * and has sums of its own.
 *
 * With tiles of c as tasks instead, 32 to 64 channels are one task, and one thread takes three
 * times as long as this does on two. */
#include "tall.h"

#include "gemm.h"

#define SUMS_MOST   ((int64_t)64 << 10) /* floats of c: half of a core's second-level cache */
#define GROUPS_MOST 32
#define ALL_SUMS    ((int64_t)256 << 10) /* floats of all groups: adding them up must not show */

struct call {
    const struct tall *t;
    int64_t groups;
    float *sums;  /* [groups][m][n] */
    float *rooms; /* of each thread, for a piece and for gemm */
    size_t room;
};

bool tall_fits(int64_t m, int64_t n)
{
    return m * n <= SUMS_MOST;
}

static int64_t groups_of(const struct tall *t)
{
    const int64_t affordable = ALL_SUMS / (t->m * t->n),
                  most = affordable < GROUPS_MOST ? affordable : GROUPS_MOST;
    return t->pieces < most ? t->pieces : most;
}

static size_t room_of(const struct tall *t)
{
    return gemm_work_floats() + (t->room_floats + 15) / 16 * 16;
}

static size_t sums_of(const struct tall *t)
{
    return ((size_t)(groups_of(t) * t->m * t->n) + 15) / 16 * 16;
}

size_t tall_floats(const ddpm_backend *be, const struct tall *t)
{
    return sums_of(t) + (size_t)cpu_threads(be) * room_of(t);
}

static void group_task(void *context, int64_t i, int thread)
{
    const struct call *c = context;
    const struct tall *t = c->t;
    const int64_t begin = t->pieces * i / c->groups, end = t->pieces * (i + 1) / c->groups;
    float *work = c->rooms + (size_t)thread * c->room, *room = work + gemm_work_floats();
    for (int64_t j = begin; j < end; j++) {
        const struct tall_piece p = t->piece(t->context, j, room);
        gemm_run(&(struct gemm){.m = t->m,
                                .n = t->n,
                                .k = p.rows,
                                .a = p.a,
                                .a_row = 1,
                                .a_col = p.a_row,
                                .b = p.b,
                                .b_row = p.b_row,
                                .b_col = 1,
                                .c = c->sums + i * t->m * t->n,
                                .c_row = t->n,
                                .accumulate = j > begin},
                 work);
    }
}

static void row_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct call *c = context;
    const struct tall *t = c->t;
    for (int64_t g = 0; g < c->groups; g++)
        cpu_add_to(t->c + i * t->c_row, c->sums + (g * t->m + i) * t->n, t->n);
}

void tall_run(ddpm_backend *be, const struct tall *t, float *scratch)
{
    struct call c = {.t = t,
                     .groups = groups_of(t),
                     .sums = scratch,
                     .rooms = scratch + sums_of(t),
                     .room = room_of(t)};
    cpu_run(be, c.groups, group_task, &c);
    cpu_run(be, t->m, row_task, &c);
}

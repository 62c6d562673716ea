/* op_step.c - rows of `bench ops` for what stands around a step so that the host need not: its two ends. A batch of the
 * level's images, once a level. */
#include "op_rows.h"

#include <stdio.h>

enum { LABEL_SIZE = 48, T = 1000 };

static const char *batch_text(const op_level *l, char *dst)
{
    snprintf(dst, LABEL_SIZE, "%lld images", (long long)l->n);
    return dst;
}

void op_row_open_step(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    if (l->h <= 16) return; /* the same batch as the level above */
    ddpm_tensor time = op_take_1d(b, l->n), model_time = op_take_1d(b, T + 1);
    const struct open_step_args args = {.rates = {.lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .warmup = 5000, .steps = 800000},
                                        .counters = op_take_bits(b, sizeof *args.counters),
                                        .model_time = model_time.data,
                                        .index = op_take_indices(b, l->n),
                                        .T = T,
                                        .state = op_take_state(b),
                                        .t = op_take_ints(b, l->n, 0),
                                        .time = &time};
    OP_TIME(b, open_step, batch_text(l, of), &args, 0, 16.0 * (double)l->n);
}

void op_row_close_step(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    if (l->h <= 16) return;
    ddpm_tensor loss = op_take_1d(b, l->n);
    const struct close_step_args args = {.loss = &loss,
                                         .t = op_take_ints(b, l->n, T / 2),
                                         .T = T,
                                         .slots = 4,
                                         .state = op_take_state(b),
                                         .sum = op_take_sum(b),
                                         .counters = op_take_bits(b, sizeof *args.counters),
                                         .ring = op_take_bits(b, 4 * sizeof *args.ring)};
    OP_TIME(b, close_step, batch_text(l, of), &args, 0, 8.0 * (double)l->n);
}

/* op_step.c - rows of `bench ops` for what stands around a step so that the host need not: its ends, a batch out
 * of a data set on the device, copies in another type. Once a network, at its first level. */
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

void op_row_open_sample(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    if (l->h <= 16) return;
    ddpm_tensor table = op_take_2d(b, T + 1, 8), times = op_take_1d(b, T + 1);
    ddpm_tensor rows = op_take_2d(b, l->n, 8), time = op_take_1d(b, l->n);
    struct step_state *state = op_take_state(b);
    const struct open_sample_args args = {
        .table = table.data, .times = times.data, .state = state, .rows = rows.data, .time = &time};
    OP_TIME(b, open_sample, batch_text(l, of), &args, 0, 72.0 * (double)l->n);
}

void op_row_cast(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    if (l->h <= 16) return;
    ddpm_tensor x = op_take(b, l->n, l->h, l->w, l->c), y = x;
    y.data = op_take_bits(b, (size_t)ddpm_tensor_count(&y) * sizeof(uint16_t));
    y.dtype = DDPM_BF16;
    snprintf(of, sizeof of, "%lld", (long long)ddpm_tensor_count(&x));
    OP_TIME(b, cast, of, (&(struct cast_args){.x = &x, .y = &y}), 0, 6.0 * (double)ddpm_tensor_count(&x));
}

void op_row_gather(op_bench *b, const op_level *l)
{
    enum { IMAGES = 100 };
    char of[LABEL_SIZE];
    const int64_t c = l->h >= 32 ? 3 : 1;
    if (l->h <= 16) return;
    ddpm_tensor x = op_take_u8(b, IMAGES, l->h, l->w, c), y = op_take_u8(b, l->n, l->h, l->w, c);
    const struct gather_args args = {.x = &x, .number = op_take_ints(b, l->n, IMAGES / 2), .y = &y};
    OP_TIME(b, gather, batch_text(l, of), &args, 0, 2.0 * (double)ddpm_tensor_count(&y));
}

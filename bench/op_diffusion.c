/* op_diffusion.c - rows of `bench ops` for the method itself: noise, noising, loss, reverse step,
 * optimiser.
 *
 * Pictures are those of the level's network: 3 channels where the level is wide (CIFAR), else 1.
 * Levels inside a network have no pictures, so only its first level is timed; the optimiser runs
 * over as many weights as one residual block of the level has, times 16. */
#include "op_rows.h"

#include <stdio.h>

enum { LABEL_SIZE = 48, T = 1000 };

/* The picture that belongs to the first level of a network; false for the levels below. */
static bool picture_of(const op_level *l, op_level *picture)
{
    *picture = (op_level){l->n, l->h, l->w, l->h >= 32 ? 3 : 1};
    return l->h > 16;
}

static double picture_bytes(const op_level *l)
{
    return 4.0 * (double)(l->n * l->h * l->w * l->c);
}

static double act_bytes(const op_bench *b, const op_level *l)
{
    return op_act_size(b) / 4 * picture_bytes(l);
}

static const char *picture_text(const op_level *l, char *dst)
{
    snprintf(dst, LABEL_SIZE, "%lldx%lldx%lldx%lld", (long long)l->n, (long long)l->h,
             (long long)l->w, (long long)l->c);
    return dst;
}

void op_row_add(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor a = op_act(b, l->n, l->h, l->w, l->c), c = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor y = op_act(b, l->n, l->h, l->w, l->c);
    OP_TIME(b, add, picture_text(l, of), (&(struct add_args){.a = &a, .b = &c, .y = &y}), 0,
            3 * act_bytes(b, l));
}

void op_row_gaussian(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    op_level p;
    if (!picture_of(l, &p)) return;
    ddpm_tensor x = op_take(b, p.n, p.h, p.w, p.c);
    const struct gaussian_args args = {.state = op_take_state(b),
                                       .index = op_take_indices(b, p.n),
                                       .purpose = 15,
                                       .use_step = true,
                                       .x = &x};
    OP_TIME(b, gaussian, picture_text(&p, of), &args, 0, picture_bytes(&p));
}

/* The picture as bytes, the noise drawn inside: as training does it. */
void op_row_q_sample(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    op_level p;
    if (!picture_of(l, &p)) return;
    ddpm_tensor x0 = op_take_u8(b, p.n, p.h, p.w, p.c), xt = op_act(b, p.n, p.h, p.w, p.c);
    ddpm_tensor coef = op_take_1d(b, 2 * (T + 1));
    const struct q_sample_args args = {.x0 = &x0,
                                       .t = op_take_ints(b, p.n, T / 2),
                                       .coef = coef.data,
                                       .state = op_take_state(b),
                                       .index = op_take_indices(b, p.n),
                                       .purpose = 15,
                                       .use_step = true,
                                       .xt = &xt};
    OP_TIME(b, q_sample, picture_text(&p, of), &args, 0,
            0.25 * picture_bytes(&p) + act_bytes(b, &p));
}

void op_row_diffusion_loss(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    op_level p;
    if (!picture_of(l, &p)) return;
    ddpm_tensor x0 = op_take_u8(b, p.n, p.h, p.w, p.c), out = op_act(b, p.n, p.h, p.w, p.c);
    ddpm_tensor dout = op_act(b, p.n, p.h, p.w, p.c), loss = op_take_1d(b, p.n),
                coef = op_take_1d(b, 2 * (T + 1));
    const struct diffusion_loss_args args = {.x0 = &x0,
                                             .out = &out,
                                             .t = op_take_ints(b, p.n, T / 2),
                                             .tcoef = coef.data,
                                             .state = op_take_state(b),
                                             .index = op_take_indices(b, p.n),
                                             .purpose = 15,
                                             .use_step = true,
                                             .scale = 1,
                                             .loss = &loss,
                                             .dout = &dout};
    OP_TIME(b, diffusion_loss, picture_text(&p, of), &args, 0,
            0.25 * picture_bytes(&p) + 2 * act_bytes(b, &p));
}

void op_row_reverse_step(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    op_level p;
    if (!picture_of(l, &p)) return;
    ddpm_tensor out = op_act(b, p.n, p.h, p.w, p.c), x = op_take(b, p.n, p.h, p.w, p.c);
    ddpm_tensor x0_hat = op_take(b, p.n, p.h, p.w, p.c), table = op_take_2d(b, p.n, 8);
    const struct reverse_step_args args = {.out = &out,
                                           .rows = table.data,
                                           .state = op_take_state(b),
                                           .index = op_take_indices(b, p.n),
                                           .x = &x,
                                           .x0_hat = &x0_hat};
    OP_TIME(b, reverse_step, picture_text(&p, of), &args, 0,
            3 * picture_bytes(&p) + act_bytes(b, &p));
}

/* Weights of a residual block of the level (two 3 x 3 convolutions), times 16. */
static int64_t weights_of(const op_level *l)
{
    return 16 * 18 * l->c * l->c;
}

void op_row_sum_squares(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t n = weights_of(l);
    if (l->h < 14) return; /* the same size as the level above */
    ddpm_tensor x = op_take_1d(b, n);
    double *sum = op_take_sum(b);
    snprintf(of, sizeof of, "%lld", (long long)n);
    OP_TIME(b, sum_squares, of, (&(struct sum_squares_args){.x = &x, .sum = sum}), 0,
            4.0 * (double)n);
}

void op_row_adamw(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t n = weights_of(l);
    if (l->h < 14) return;
    ddpm_tensor p = op_take_1d(b, n), g = op_take_1d(b, n), ema = op_take_1d(b, n);
    ddpm_tensor m = op_take_zeros(b, n), v = op_take_zeros(b, n), half = {0};
    const bool has_half = b->act == DDPM_BF16 || b->rounds_act; /* the copy that products read */
    if (has_half) half = op_take_half(b, n);
    const struct adamw_args args = {.p = &p,
                                    .g = &g,
                                    .m = &m,
                                    .v = &v,
                                    .ema = {&ema},
                                    .n_ema = 1,
                                    .beta1 = 0.9f,
                                    .beta2 = 0.999f,
                                    .eps = 1e-8f,
                                    .clip_norm = 1,
                                    .sum = op_take_sum(b),
                                    .half = has_half ? &half : NULL,
                                    .state = op_take_state(b)};
    snprintf(of, sizeof of, "%lld, 1 EMA", (long long)n);
    /* p, g, m, v and the EMA: each read and written */
    OP_TIME(b, adamw, of, &args, 0, (has_half ? 42.0 : 40.0) * (double)n);
}

void op_row_to_u8(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    op_level p;
    if (!picture_of(l, &p)) return;
    ddpm_tensor x = op_take(b, p.n, p.h, p.w, p.c), y = op_take_u8(b, p.n, p.h, p.w, p.c);
    OP_TIME(b, to_u8, picture_text(&p, of), (&(struct to_u8_args){.x = &x, .y = &y}), 0,
            1.25 * picture_bytes(&p));
}

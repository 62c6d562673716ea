/* op_network.c - rows of `bench ops` for the layers of a network: products, norms, attention,
 * resampling, embeddings.
 *
 * Traffic counts each input once and each output once, "+=" as a read and a write. */
#include "op_rows.h"

#include <math.h>
#include <stdio.h>

enum { LABEL_SIZE = 48, EMBEDDING = 512, CLASSES = 1000 };

/* "8x32x32x128" into dst. */
static const char *level_text(const op_level *l, char *dst)
{
    snprintf(dst, LABEL_SIZE, "%lldx%lldx%lldx%lld", (long long)l->n, (long long)l->h,
             (long long)l->w, (long long)l->c);
    return dst;
}

static double level_bytes(const op_bench *b, const op_level *l)
{
    return op_act_size(b) * (double)(l->n * l->h * l->w * l->c);
}

/* The 3 x 3 convolution of a residual block, C to C channels. */
static double conv_flop(const op_level *l)
{
    return 2.0 * (double)(l->n * l->h * l->w) * 9.0 * (double)(l->c * l->c);
}

/* Of the 3 x 3 kernel, `size` bytes each. */
static double conv_weight_bytes(const op_level *l, double size)
{
    return size * 9.0 * (double)(l->c * l->c);
}

void op_row_conv2d(op_bench *b, const op_level *l)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 8];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), w = op_act(b, l->c, 3, 3, l->c),
                bias = op_take_1d(b, l->c);
    ddpm_tensor y = op_act(b, l->n, l->h, l->w, l->c);
    const struct conv2d_args args = {.x = &x,
                                     .w = &w,
                                     .bias = &bias,
                                     .stride = 1,
                                     .pad_top = 1,
                                     .pad_left = 1,
                                     .pad_bottom = 1,
                                     .pad_right = 1,
                                     .y = &y};
    snprintf(of, sizeof of, "%s 3x3", level_text(l, text));
    OP_TIME(b, conv2d, of, &args, conv_flop(l),
            2 * level_bytes(b, l) + conv_weight_bytes(l, op_act_size(b)));
}

void op_row_conv2d_bwd_data(op_bench *b, const op_level *l)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 8];
    ddpm_tensor dy = op_act(b, l->n, l->h, l->w, l->c), w = op_act(b, l->c, 3, 3, l->c);
    ddpm_tensor dx = op_act(b, l->n, l->h, l->w, l->c);
    const struct conv2d_bwd_data_args args = {.dy = &dy,
                                              .w = &w,
                                              .stride = 1,
                                              .pad_top = 1,
                                              .pad_left = 1,
                                              .pad_bottom = 1,
                                              .pad_right = 1,
                                              .dx = &dx};
    snprintf(of, sizeof of, "%s 3x3", level_text(l, text));
    OP_TIME(b, conv2d_bwd_data, of, &args, conv_flop(l),
            2 * level_bytes(b, l) + conv_weight_bytes(l, op_act_size(b)));
}

void op_row_conv2d_bwd_filter(op_bench *b, const op_level *l)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 8];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor dw = op_take(b, l->c, 3, 3, l->c), db = op_take_1d(b, l->c);
    const struct conv2d_bwd_filter_args args = {.x = &x,
                                                .dy = &dy,
                                                .stride = 1,
                                                .pad_top = 1,
                                                .pad_left = 1,
                                                .pad_bottom = 1,
                                                .pad_right = 1,
                                                .dw = &dw,
                                                .db = &db};
    snprintf(of, sizeof of, "%s 3x3", level_text(l, text));
    OP_TIME(b, conv2d_bwd_filter, of, &args, conv_flop(l),
            2 * level_bytes(b, l) + conv_weight_bytes(l, 2 * sizeof(float)));
}

/* The 1 x 1 projection of attention: all pixels times C x C. */
void op_row_linear(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t m = l->n * l->h * l->w;
    ddpm_tensor x = op_act_2d(b, m, l->c), w = op_act_2d(b, l->c, l->c), bias = op_take_1d(b, l->c);
    ddpm_tensor y = op_act_2d(b, m, l->c);
    const struct linear_args args = {.x = &x, .w = &w, .bias = &bias, .y = &y};
    snprintf(of, sizeof of, "%lldx%lld to %lld", (long long)m, (long long)l->c, (long long)l->c);
    OP_TIME(b, linear, of, &args, 2.0 * (double)(m * l->c * l->c),
            2 * level_bytes(b, l) + op_act_size(b) * (double)(l->c * l->c));
}

void op_row_linear_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t m = l->n * l->h * l->w;
    ddpm_tensor x = op_act_2d(b, m, l->c), w = op_act_2d(b, l->c, l->c), dy = op_act_2d(b, m, l->c);
    ddpm_tensor dx = op_act_2d(b, m, l->c), dw = op_take_2d(b, l->c, l->c),
                db = op_take_1d(b, l->c);
    const struct linear_bwd_args args = {
        .x = &x, .w = &w, .dy = &dy, .dx = &dx, .dw = &dw, .db = &db};
    snprintf(of, sizeof of, "%lldx%lld to %lld", (long long)m, (long long)l->c, (long long)l->c);
    OP_TIME(b, linear_bwd, of, &args, 4.0 * (double)(m * l->c * l->c),
            3 * level_bytes(b, l) + (op_act_size(b) + 8) * (double)(l->c * l->c));
}

/* To or from the level's size: to be compared with GroupNorm and upsample2 or avgpool2 as two ops. */
static void row_groupnorm_resampled(op_bench *b, const op_level *l, struct groupnorm_args args,
                                    enum norm_resample resample)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 16];
    const bool up = resample == NORM_UP2;
    ddpm_tensor small = op_act(b, l->n, l->h / 2, l->w / 2, l->c),
                large = op_act(b, l->n, l->h, l->w, l->c);
    args.resample = resample;
    args.x1 = up ? &small : &large;
    args.y = up ? &large : &small;
    snprintf(of, sizeof of, "%s silu %s", level_text(l, text), up ? "up2" : "mean2");
    OP_TIME(b, groupnorm, of, &args, 0, 1.25 * level_bytes(b, l));
}

/* With the sums that the convolution before it may leave. */
static void row_groupnorm_given(op_bench *b, const op_level *l, struct groupnorm_args args)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 16];
    const ddpm_tensor sum = op_take_2d(b, l->n, l->c), square = op_take_2d(b, l->n, l->c);
    args.sum1 = &sum;
    args.square1 = &square;
    snprintf(of, sizeof of, "%s silu given", level_text(l, text));
    OP_TIME(b, groupnorm, of, &args, 0, 2 * level_bytes(b, l));
}

void op_row_groupnorm(op_bench *b, const op_level *l)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 8];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), gamma = op_take_1d(b, l->c),
                beta = op_take_1d(b, l->c);
    ddpm_tensor stats = op_take(b, l->n, 1, 32, 2), y = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor stats_view = stats; /* [n,groups,2] */
    stats_view.rank = 3;
    stats_view.dim[1] = 32, stats_view.dim[2] = 2;
    stats_view.stride[0] = 64, stats_view.stride[1] = 2, stats_view.stride[2] = 1;
    const struct groupnorm_args args = {.x1 = &x,
                                        .gamma = &gamma,
                                        .beta = &beta,
                                        .groups = 32,
                                        .eps = 1e-6f,
                                        .silu = true,
                                        .stats = &stats_view,
                                        .y = &y};
    snprintf(of, sizeof of, "%s silu", level_text(l, text));
    OP_TIME(b, groupnorm, of, &args, 0, 2 * level_bytes(b, l));
    row_groupnorm_resampled(b, l, args, NORM_UP2);
    row_groupnorm_resampled(b, l, args, NORM_MEAN2);
    row_groupnorm_given(b, l, args);
}

/* Of a dy that the convolution behind it has taken through SiLU, with its sums. */
static void row_groupnorm_bwd_given(op_bench *b, const op_level *l, struct groupnorm_bwd_args args)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 16];
    const ddpm_tensor sum = op_take_2d(b, l->n, l->c), product = op_take_2d(b, l->n, l->c);
    args.silu = false;
    args.dy_sum = &sum;
    args.dy_x = &product;
    snprintf(of, sizeof of, "%s given", level_text(l, text));
    OP_TIME(b, groupnorm_bwd, of, &args, 0, 3 * level_bytes(b, l));
}

void op_row_groupnorm_bwd(op_bench *b, const op_level *l)
{
    char text[LABEL_SIZE], of[LABEL_SIZE + 8];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor gamma = op_take_1d(b, l->c), beta = op_take_1d(b, l->c),
                stats = op_take(b, l->n, 1, 32, 2);
    ddpm_tensor dx = op_act(b, l->n, l->h, l->w, l->c), dgamma = op_take_1d(b, l->c),
                dbeta = op_take_1d(b, l->c);
    ddpm_tensor stats_view = stats;
    stats_view.rank = 3;
    stats_view.dim[1] = 32, stats_view.dim[2] = 2;
    stats_view.stride[0] = 64, stats_view.stride[1] = 2, stats_view.stride[2] = 1;
    const struct groupnorm_bwd_args args = {.dy = &dy,
                                            .x1 = &x,
                                            .gamma = &gamma,
                                            .beta = &beta,
                                            .stats = &stats_view,
                                            .groups = 32,
                                            .silu = true,
                                            .dx1 = &dx,
                                            .dgamma = &dgamma,
                                            .dbeta = &dbeta};
    snprintf(of, sizeof of, "%s silu", level_text(l, text));
    OP_TIME(b, groupnorm_bwd, of, &args, 0, 3 * level_bytes(b, l));
    row_groupnorm_bwd_given(b, l, args);
}

/* Attention of one head over all pixels, as the networks have it below 1,024 pixels. */
static bool attends(const op_level *l)
{
    return l->h * l->w < 1024;
}

void op_row_attention(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t t = l->h * l->w;
    if (!attends(l)) return;
    ddpm_tensor q = op_act(b, l->n, t, 1, l->c), k = op_act(b, l->n, t, 1, l->c),
                v = op_act(b, l->n, t, 1, l->c);
    ddpm_tensor o = op_act(b, l->n, t, 1, l->c), lse = op_take_1d(b, l->n * t);
    ddpm_tensor lse_view = {.data = lse.data, .rank = 3, .dim = {l->n, 1, t}, .stride = {t, t, 1}};
    const struct attention_args args = {
        .q = &q, .k = &k, .v = &v, .scale = 1 / sqrtf((float)l->c), .o = &o, .lse = &lse_view};
    snprintf(of, sizeof of, "%lldx%lldx1x%lld", (long long)l->n, (long long)t, (long long)l->c);
    OP_TIME(b, attention, of, &args, 4.0 * (double)(l->n * t * t * l->c), 4 * level_bytes(b, l));
}

void op_row_attention_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t t = l->h * l->w;
    if (!attends(l)) return;
    ddpm_tensor q = op_act(b, l->n, t, 1, l->c), k = op_act(b, l->n, t, 1, l->c),
                v = op_act(b, l->n, t, 1, l->c);
    ddpm_tensor o = op_act(b, l->n, t, 1, l->c), d_o = op_act(b, l->n, t, 1, l->c),
                lse = op_take_1d(b, l->n * t);
    ddpm_tensor dq = op_act(b, l->n, t, 1, l->c), dk = op_act(b, l->n, t, 1, l->c),
                dv = op_act(b, l->n, t, 1, l->c);
    ddpm_tensor lse_view = {.data = lse.data, .rank = 3, .dim = {l->n, 1, t}, .stride = {t, t, 1}};
    const struct attention_bwd_args args = {.q = &q,
                                            .k = &k,
                                            .v = &v,
                                            .o = &o,
                                            .lse = &lse_view,
                                            .d_o = &d_o,
                                            .scale = 1 / sqrtf((float)l->c),
                                            .dq = &dq,
                                            .dk = &dk,
                                            .dv = &dv};
    snprintf(of, sizeof of, "%lldx%lldx1x%lld", (long long)l->n, (long long)t, (long long)l->c);
    /* five products: the probabilities again, dv, dp, dq, dk */
    OP_TIME(b, attention_bwd, of, &args, 10.0 * (double)(l->n * t * t * l->c),
            8 * level_bytes(b, l));
}

void op_row_softmax(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t m = l->n * l->h * l->w;
    ddpm_tensor x = op_take_2d(b, m, l->c), y = op_take_2d(b, m, l->c);
    snprintf(of, sizeof of, "%lldx%lld", (long long)m, (long long)l->c);
    OP_TIME(b, softmax, of, (&(struct softmax_args){.x = &x, .y = &y}), 0,
            8.0 * (double)(m * l->c));
}

void op_row_softmax_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    const int64_t m = l->n * l->h * l->w;
    ddpm_tensor y = op_take_2d(b, m, l->c), dy = op_take_2d(b, m, l->c),
                dx = op_take_2d(b, m, l->c);
    snprintf(of, sizeof of, "%lldx%lld", (long long)m, (long long)l->c);
    OP_TIME(b, softmax_bwd, of, (&(struct softmax_bwd_args){.y = &y, .dy = &dy, .dx = &dx}), 0,
            12.0 * (double)(m * l->c));
}

void op_row_silu(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), y = op_act(b, l->n, l->h, l->w, l->c);
    OP_TIME(b, silu, level_text(l, of), (&(struct silu_args){.x = &x, .y = &y}), 0,
            2 * level_bytes(b, l));
}

void op_row_silu_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor dx = op_act(b, l->n, l->h, l->w, l->c);
    OP_TIME(b, silu_bwd, level_text(l, of),
            (&(struct silu_bwd_args){.x = &x, .dy = &dy, .dx = &dx}), 0, 3 * level_bytes(b, l));
}

/* The level is the larger side in all four: h/2 x w/2 up to h x w, or down from it. */
void op_row_upsample2(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor x = op_act(b, l->n, l->h / 2, l->w / 2, l->c),
                y = op_act(b, l->n, l->h, l->w, l->c);
    OP_TIME(b, upsample2, level_text(l, of), (&(struct upsample2_args){.x = &x, .y = &y}), 0,
            1.25 * level_bytes(b, l));
}

void op_row_upsample2_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor dy = op_act(b, l->n, l->h, l->w, l->c),
                dx = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    OP_TIME(b, upsample2_bwd, level_text(l, of),
            (&(struct upsample2_bwd_args){.dy = &dy, .dx = &dx}), 0, 1.25 * level_bytes(b, l));
}

void op_row_avgpool2(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c),
                y = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    OP_TIME(b, avgpool2, level_text(l, of), (&(struct avgpool2_args){.x = &x, .y = &y}), 0,
            1.25 * level_bytes(b, l));
}

void op_row_avgpool2_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor dy = op_act(b, l->n, l->h / 2, l->w / 2, l->c),
                dx = op_act(b, l->n, l->h, l->w, l->c);
    OP_TIME(b, avgpool2_bwd, level_text(l, of), (&(struct avgpool2_bwd_args){.dy = &dy, .dx = &dx}),
            0, 1.25 * level_bytes(b, l));
}

void op_row_time_embedding(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor t = op_take_1d(b, l->n), y = op_take_2d(b, l->n, l->c);
    snprintf(of, sizeof of, "%lldx%lld", (long long)l->n, (long long)l->c);
    OP_TIME(b, time_embedding, of,
            (&(struct time_embedding_args){.t = &t, .sin_cos = true, .shift = 1, .y = &y}), 0,
            4.0 * (double)(l->n * (l->c + 1)));
}

void op_row_embedding(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor table = op_take_2d(b, CLASSES, EMBEDDING), y = op_take_2d(b, l->n, EMBEDDING);
    const int32_t *label = op_take_ints(b, l->n, 7);
    snprintf(of, sizeof of, "%lldx%d", (long long)l->n, EMBEDDING);
    OP_TIME(b, embedding, of, (&(struct embedding_args){.table = &table, .label = label, .y = &y}),
            0, 12.0 * (double)(l->n * EMBEDDING));
}

void op_row_embedding_bwd(op_bench *b, const op_level *l)
{
    char of[LABEL_SIZE];
    ddpm_tensor dtable = op_take_2d(b, CLASSES, EMBEDDING), dy = op_take_2d(b, l->n, EMBEDDING);
    const int32_t *label = op_take_ints(b, l->n, 7);
    snprintf(of, sizeof of, "%lldx%d", (long long)l->n, EMBEDDING);
    OP_TIME(b, embedding_bwd, of,
            (&(struct embedding_bwd_args){.dy = &dy, .label = label, .dtable = &dtable}), 0,
            12.0 * (double)(l->n * EMBEDDING));
}

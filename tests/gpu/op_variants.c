/* op_variants.c - for gpu_op_parity: what the networks and samplers ask of ops beyond the rows of the bench. */
#include "op_variants.h"

#include <math.h>
#include <stdio.h>

enum { TEXT = 96, T = 1000 };

static const char *text_of(const op_level *l, const char *what, char *dst)
{
    snprintf(dst, TEXT, "%lldx%lldx%lldx%lld %s", (long long)l->n, (long long)l->h, (long long)l->w, (long long)l->c, what);
    return dst;
}

#define CALL(op, what, ...) OP_TIME(b, op, text_of(l, what, (char[TEXT]){0}), (&(struct op##_args){__VA_ARGS__}), 0, 0)

/* ---- convolutions ---- */

static void conv_1x1(op_bench *b, const op_level *l)
{
    /* channels c.. of a wider tensor, and the same columns of a wider kernel: the second half of a skip connection */
    ddpm_tensor wide = op_act(b, l->n, l->h, l->w, 2 * l->c), kernel = op_act(b, 3 * l->c / 2, 1, 1, 2 * l->c);
    ddpm_tensor x = ddpm_tensor_slice(&wide, l->c, l->c), w = ddpm_tensor_slice(&kernel, l->c, l->c);
    ddpm_tensor y = op_act(b, l->n, l->h, l->w, 3 * l->c / 2);
    CALL(conv2d, "1x1, views, onto y", .x = &x, .w = &w, .residual = &y, .stride = 1, .y = &y);
}

static void conv_epilogue(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), w = op_act(b, l->c / 2, 3, 3, l->c), bias = op_take_1d(b, l->c / 2);
    ddpm_tensor all = op_take_2d(b, l->n, 2 * l->c), emb = ddpm_tensor_slice(&all, l->c / 4, l->c / 2);
    ddpm_tensor residual = op_act(b, l->n, l->h, l->w, l->c / 2), y = op_act(b, l->n, l->h, l->w, l->c / 2);
    CALL(conv2d, "3x3, bias, emb, residual", .x = &x, .w = &w, .bias = &bias, .emb = &emb, .residual = &residual, .stride = 1,
         .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1, .y = &y);
}

static void conv_down(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), w = op_act(b, l->c, 3, 3, l->c), bias = op_take_1d(b, l->c);
    ddpm_tensor y = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    CALL(conv2d, "3x3, stride 2, pads 0 and 1", .x = &x, .w = &w, .bias = &bias, .stride = 2, .pad_bottom = 1, .pad_right = 1,
         .y = &y);
}

static void conv_image(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, 3), w = op_act(b, l->c, 3, 3, 3), bias = op_take_1d(b, l->c);
    ddpm_tensor y = op_act(b, l->n, l->h, l->w, l->c);
    CALL(conv2d, "3x3 from 3 channels", .x = &x, .w = &w, .bias = &bias, .stride = 1, .pad_top = 1, .pad_left = 1,
         .pad_bottom = 1, .pad_right = 1, .y = &y);
}

static void conv_head(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), w = op_act(b, 3, 3, 3, l->c), bias = op_take_1d(b, 3);
    ddpm_tensor y = op_act(b, l->n, l->h, l->w, 3);
    CALL(conv2d, "3x3 to 3 channels", .x = &x, .w = &w, .bias = &bias, .stride = 1, .pad_top = 1, .pad_left = 1,
         .pad_bottom = 1, .pad_right = 1, .y = &y);
}

static void conv_data_down(op_bench *b, const op_level *l)
{
    ddpm_tensor dy = op_act(b, l->n, l->h / 2, l->w / 2, l->c), w = op_act(b, l->c, 3, 3, l->c);
    ddpm_tensor dx = op_act(b, l->n, l->h, l->w, l->c);
    CALL(conv2d_bwd_data, "3x3, stride 2, +=", .dy = &dy, .w = &w, .stride = 2, .pad_bottom = 1, .pad_right = 1,
         .accumulate = true, .dx = &dx);
}

static void conv_data_1x1(op_bench *b, const op_level *l)
{
    ddpm_tensor dy = op_act(b, l->n, l->h, l->w, l->c), kernel = op_act(b, l->c, 1, 1, 2 * l->c);
    ddpm_tensor wide = op_act(b, l->n, l->h, l->w, 2 * l->c);
    ddpm_tensor w = ddpm_tensor_slice(&kernel, l->c, l->c), dx = ddpm_tensor_slice(&wide, l->c, l->c);
    CALL(conv2d_bwd_data, "1x1, views", .dy = &dy, .w = &w, .stride = 1, .dx = &dx);
}

static void conv_filter_down(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), dy = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    ddpm_tensor dw = op_take(b, l->c, 3, 3, l->c), db = op_take_1d(b, l->c);
    CALL(conv2d_bwd_filter, "3x3, stride 2", .x = &x, .dy = &dy, .stride = 2, .pad_bottom = 1, .pad_right = 1, .dw = &dw,
         .db = &db);
}

static void conv_filter_sums(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, 3), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor dw = op_take(b, l->c, 3, 3, 3), db = op_take_1d(b, l->c);
    ddpm_tensor all = op_take_2d(b, l->n, 2 * l->c), demb = ddpm_tensor_slice(&all, l->c, l->c);
    CALL(conv2d_bwd_filter, "3x3 of 3 channels, demb", .x = &x, .dy = &dy, .stride = 1, .pad_top = 1, .pad_left = 1,
         .pad_bottom = 1, .pad_right = 1, .dw = &dw, .db = &db, .demb = &demb);
}

/* ---- dense layers, attention ---- */

static void linear_odd(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act_2d(b, l->n, 3 * l->c + 4), w = op_act_2d(b, 2 * l->c + 8, 3 * l->c + 4);
    ddpm_tensor bias = op_take_1d(b, 2 * l->c + 8), y = op_act_2d(b, l->n, 2 * l->c + 8);
    CALL(linear, "few rows", .x = &x, .w = &w, .bias = &bias, .y = &y);
}

static void linear_bwd_onto(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act_2d(b, l->n, 4 * l->c), w = op_act_2d(b, l->c, 4 * l->c), dy = op_act_2d(b, l->n, l->c);
    ddpm_tensor dx = op_act_2d(b, l->n, 4 * l->c), dw = op_take_2d(b, l->c, 4 * l->c), db = op_take_1d(b, l->c);
    CALL(linear_bwd, "few rows, +=", .x = &x, .w = &w, .dy = &dy, .accumulate = true, .dx = &dx, .dw = &dw, .db = &db);
}

/* Slices q, k, v of a joint projection [N,T,3,heads,D], as [N,T,heads,D]. */
static void joint(ddpm_tensor all, const op_level *l, int64_t heads, ddpm_tensor part[3])
{
    const int64_t t = l->h * l->w, d = l->c / heads;
    for (int i = 0; i < 3; i++) {
        part[i] = all;
        part[i].data = all.data ? (char *)all.data + (size_t)(i * l->c) * ddpm_dtype_size(all.dtype) : NULL;
        part[i].rank = 4;
        part[i].dim[0] = l->n, part[i].dim[1] = t, part[i].dim[2] = heads, part[i].dim[3] = d;
        part[i].stride[0] = t * 3 * l->c, part[i].stride[1] = 3 * l->c, part[i].stride[2] = d, part[i].stride[3] = 1;
    }
}

static ddpm_tensor as_heads(ddpm_tensor x, const op_level *l, int64_t heads)
{
    ddpm_tensor t = x;
    t.dim[0] = l->n, t.dim[1] = l->h * l->w, t.dim[2] = heads, t.dim[3] = l->c / heads;
    t.stride[0] = t.dim[1] * l->c, t.stride[1] = l->c, t.stride[2] = t.dim[3], t.stride[3] = 1;
    return t;
}

static ddpm_tensor as_lse(ddpm_tensor x, const op_level *l, int64_t heads)
{
    const int64_t t = l->h * l->w;
    x.rank = 3;
    x.dim[0] = l->n, x.dim[1] = heads, x.dim[2] = t;
    x.stride[0] = heads * t, x.stride[1] = t, x.stride[2] = 1;
    return x;
}

static void attention_heads(op_bench *b, const op_level *l)
{
    const int64_t heads = 2, t = l->h * l->w;
    if (t > 256) return;
    ddpm_tensor part[3];
    joint(op_act(b, l->n, l->h, l->w, 3 * l->c), l, heads, part);
    ddpm_tensor o = as_heads(op_act(b, l->n, l->h, l->w, l->c), l, heads);
    ddpm_tensor lse = as_lse(op_take_1d(b, l->n * heads * t), l, heads);
    CALL(attention, "2 heads of a joint projection", .q = &part[0], .k = &part[1], .v = &part[2],
         .scale = 1 / sqrtf((float)(l->c / heads)), .o = &o, .lse = &lse);
}

static void attention_heads_bwd(op_bench *b, const op_level *l)
{
    const int64_t heads = 2, t = l->h * l->w;
    if (t > 256) return;
    ddpm_tensor part[3], dpart[3];
    joint(op_act(b, l->n, l->h, l->w, 3 * l->c), l, heads, part);
    joint(op_act(b, l->n, l->h, l->w, 3 * l->c), l, heads, dpart);
    ddpm_tensor o = as_heads(op_act(b, l->n, l->h, l->w, l->c), l, heads);
    ddpm_tensor d_o = as_heads(op_act(b, l->n, l->h, l->w, l->c), l, heads);
    ddpm_tensor lse = as_lse(op_take_1d(b, l->n * heads * t), l, heads);
    CALL(attention_bwd, "2 heads of a joint projection", .q = &part[0], .k = &part[1], .v = &part[2], .o = &o, .lse = &lse,
         .d_o = &d_o, .scale = 1 / sqrtf((float)(l->c / heads)), .dq = &dpart[0], .dk = &dpart[1], .dv = &dpart[2]);
}

/* ---- norm ---- */

static ddpm_tensor as_stats(ddpm_tensor x, const op_level *l)
{
    x.rank = 3;
    x.dim[0] = l->n, x.dim[1] = 32, x.dim[2] = 2;
    x.stride[0] = 64, x.stride[1] = 2, x.stride[2] = 1;
    return x;
}

/* Two sources, the second of half the channels, so that a group straddles them where c / 32 is not a multiple of 3. */
static void norm_all(op_bench *b, const op_level *l)
{
    const int64_t c1 = l->c * 3 / 4, c2 = l->c / 4;
    ddpm_tensor x1 = op_act(b, l->n, l->h, l->w, c1), x2 = op_act(b, l->n, l->h, l->w, c2);
    ddpm_tensor gamma = op_take_1d(b, l->c), beta = op_take_1d(b, l->c), film = op_take_2d(b, l->n, 2 * l->c);
    ddpm_tensor scale = ddpm_tensor_slice(&film, 0, l->c), shift = ddpm_tensor_slice(&film, l->c, l->c);
    ddpm_tensor stats = as_stats(op_take(b, l->n, 1, 32, 2), l), y = op_act(b, l->n, l->h, l->w, l->c);
    CALL(groupnorm, "two sources, scale-shift, silu, dropout", .x1 = &x1, .x2 = &x2, .gamma = &gamma, .beta = &beta,
         .scale = &scale, .shift = &shift, .groups = 32, .eps = 1e-5f, .silu = true, .dropout = 0.25f, .layer = 3,
         .state = op_take_state(b), .index = op_take_indices(b, l->n), .stats = &stats, .y = &y);
}

static void norm_all_bwd(op_bench *b, const op_level *l)
{
    const int64_t c1 = l->c * 3 / 4, c2 = l->c / 4;
    ddpm_tensor x1 = op_act(b, l->n, l->h, l->w, c1), x2 = op_act(b, l->n, l->h, l->w, c2);
    ddpm_tensor gamma = op_take_1d(b, l->c), beta = op_take_1d(b, l->c), film = op_take_2d(b, l->n, 2 * l->c);
    ddpm_tensor scale = ddpm_tensor_slice(&film, 0, l->c), shift = ddpm_tensor_slice(&film, l->c, l->c);
    ddpm_tensor stats = as_stats(op_take(b, l->n, 1, 32, 2), l), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor add1 = op_act(b, l->n, l->h, l->w, c1);
    ddpm_tensor dx1 = op_act(b, l->n, l->h, l->w, c1), dx2 = op_act(b, l->n, l->h, l->w, c2);
    ddpm_tensor dgamma = op_take_1d(b, l->c), dbeta = op_take_1d(b, l->c), dfilm = op_take_2d(b, l->n, 2 * l->c);
    ddpm_tensor dscale = ddpm_tensor_slice(&dfilm, 0, l->c), dshift = ddpm_tensor_slice(&dfilm, l->c, l->c);
    CALL(groupnorm_bwd, "two sources, scale-shift, silu, dropout, add1", .dy = &dy, .x1 = &x1, .x2 = &x2, .gamma = &gamma,
         .beta = &beta, .scale = &scale, .shift = &shift, .stats = &stats, .groups = 32, .silu = true, .dropout = 0.25f,
         .layer = 3, .state = op_take_state(b), .index = op_take_indices(b, l->n), .add1 = &add1, .dx1 = &dx1, .dx2 = &dx2,
         .dgamma = &dgamma, .dbeta = &dbeta, .dscale = &dscale, .dshift = &dshift);
}

static void norm_plain(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), gamma = op_take_1d(b, l->c), beta = op_take_1d(b, l->c);
    ddpm_tensor stats = as_stats(op_take(b, l->n, 1, 32, 2), l);
    CALL(groupnorm, "in place, no silu", .x1 = &x, .gamma = &gamma, .beta = &beta, .groups = 32, .eps = 1e-6f,
         .stats = &stats, .y = &x);
}

/* From half the level's size to the level, with the gradient of the whole level in dy. */
static void norm_up_bwd(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h / 2, l->w / 2, l->c), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor gamma = op_take_1d(b, l->c), beta = op_take_1d(b, l->c), film = op_take_2d(b, l->n, 2 * l->c);
    ddpm_tensor scale = ddpm_tensor_slice(&film, 0, l->c), shift = ddpm_tensor_slice(&film, l->c, l->c);
    ddpm_tensor stats = as_stats(op_take(b, l->n, 1, 32, 2), l), dx = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    ddpm_tensor dgamma = op_take_1d(b, l->c), dbeta = op_take_1d(b, l->c), dfilm = op_take_2d(b, l->n, 2 * l->c);
    ddpm_tensor dscale = ddpm_tensor_slice(&dfilm, 0, l->c), dshift = ddpm_tensor_slice(&dfilm, l->c, l->c);
    CALL(groupnorm_bwd, "up2, scale-shift, silu", .dy = &dy, .x1 = &x, .gamma = &gamma, .beta = &beta, .scale = &scale,
         .shift = &shift, .stats = &stats, .groups = 32, .silu = true, .resample = NORM_UP2, .dx1 = &dx, .dgamma = &dgamma,
         .dbeta = &dbeta, .dscale = &dscale, .dshift = &dshift);
}

/* ---- single elements ---- */

static void softmax_log(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_take_2d(b, l->n * l->h, l->c + 5), y = op_take_2d(b, l->n * l->h, l->c + 5);
    CALL(softmax, "log", .x = &x, .log = true, .y = &y);
}

static void silu_onto(op_bench *b, const op_level *l)
{
    ddpm_tensor x = op_act(b, l->n, l->h, l->w, l->c), dy = op_act(b, l->n, l->h, l->w, l->c);
    ddpm_tensor dx = op_act(b, l->n, l->h, l->w, l->c);
    CALL(silu_bwd, "+=", .x = &x, .dy = &dy, .accumulate = true, .dx = &dx);
}

static void upsample_onto(op_bench *b, const op_level *l)
{
    ddpm_tensor dy = op_act(b, l->n, l->h, l->w, l->c), dx = op_act(b, l->n, l->h / 2, l->w / 2, l->c);
    CALL(upsample2_bwd, "+=", .dy = &dy, .accumulate = true, .dx = &dx);
}

static void pool_onto(op_bench *b, const op_level *l)
{
    ddpm_tensor dy = op_act(b, l->n, l->h / 2, l->w / 2, l->c), dx = op_act(b, l->n, l->h, l->w, l->c);
    CALL(avgpool2_bwd, "+=", .dy = &dy, .accumulate = true, .dx = &dx);
}

/* ---- the method ---- */

static void noise_given(op_bench *b, const op_level *l)
{
    ddpm_tensor x0 = op_take(b, l->n, l->h, l->w, 3), eps = op_take(b, l->n, l->h, l->w, 3);
    ddpm_tensor coef = op_take_1d(b, 2 * (T + 1)), xt = op_act(b, l->n, l->h, l->w, 3);
    CALL(q_sample, "f32 image, noise given", .x0 = &x0, .eps = &eps, .t = op_take_ints(b, l->n, 3 * T / 4), .coef = coef.data,
         .xt = &xt);
}

static void loss_weighted(op_bench *b, const op_level *l)
{
    ddpm_tensor x0 = op_take_u8(b, l->n, l->h, l->w, 3), out = op_act(b, l->n, l->h, l->w, 3);
    ddpm_tensor coef = op_take_1d(b, 2 * (T + 1)), weight = op_take_1d(b, l->n), loss = op_take_1d(b, l->n);
    ddpm_tensor quartiles = op_take_2d(b, 4, 2);
    CALL(diffusion_loss, "weighted, quartiles, gradient in place", .x0 = &x0, .out = &out, .t = op_take_ints(b, l->n, T / 4),
         .tcoef = coef.data, .weight = weight.data, .state = op_take_state(b), .index = op_take_indices(b, l->n),
         .purpose = 15, .use_step = true, .scale = 2, .loss = &loss, .dout = &out, .quartiles = &quartiles, .T = T);
}

static void reverse_given(op_bench *b, const op_level *l)
{
    ddpm_tensor out = op_act(b, l->n, l->h, l->w, 3), x = op_take(b, l->n, l->h, l->w, 3);
    ddpm_tensor noise = op_take(b, l->n, l->h, l->w, 3), table = op_take_2d(b, l->n, 8);
    CALL(reverse_step, "noise given", .out = &out, .noise = &noise, .rows = table.data, .state = op_take_state(b),
         .index = op_take_indices(b, l->n), .x = &x);
}

static void adamw_all(op_bench *b, const op_level *l)
{
    const int64_t n = l->n * l->h * l->w * l->c + 3;
    ddpm_tensor p = op_take_1d(b, n), g = op_take_1d(b, n), m = op_take_zeros(b, n), v = op_take_zeros(b, n);
    ddpm_tensor ema[4] = {op_take_1d(b, n), op_take_1d(b, n), op_take_1d(b, n), op_take_1d(b, n)};
    CALL(adamw, "4 EMAs, weight decay", .p = &p, .g = &g, .m = &m, .v = &v, .ema = {&ema[0], &ema[1], &ema[2], &ema[3]},
         .n_ema = 4, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .sum = op_take_sum(b),
         .state = op_take_state(b));
}

const struct op_row op_variants[] = {
    {"conv2d", conv_1x1},
    {"conv2d", conv_epilogue},
    {"conv2d", conv_down},
    {"conv2d", conv_image},
    {"conv2d", conv_head},
    {"conv2d_bwd_data", conv_data_down},
    {"conv2d_bwd_data", conv_data_1x1},
    {"conv2d_bwd_filter", conv_filter_down},
    {"conv2d_bwd_filter", conv_filter_sums},
    {"linear", linear_odd},
    {"linear_bwd", linear_bwd_onto},
    {"attention", attention_heads},
    {"attention_bwd", attention_heads_bwd},
    {"groupnorm", norm_all},
    {"groupnorm_bwd", norm_all_bwd},
    {"groupnorm", norm_plain},
    {"groupnorm_bwd", norm_up_bwd},
    {"softmax", softmax_log},
    {"silu_bwd", silu_onto},
    {"upsample2_bwd", upsample_onto},
    {"avgpool2_bwd", pool_onto},
    {"q_sample", noise_given},
    {"diffusion_loss", loss_weighted},
    {"reverse_step", reverse_given},
    {"adamw", adamw_all},
};
const int op_variant_count = (int)(sizeof op_variants / sizeof *op_variants);

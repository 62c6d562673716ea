/* conv_norm.c - convolution and normalisation over slots, and where gradients gather: what every
 * kind of block shares. */
#include "blocks.h"

struct conv_sums conv_sums_of(ddpm_model *m, int y)
{
    if (y < 0 || m->slots[y].sum < 0) return (struct conv_sums){0};
    m->slots[y].has_sums = false;
    return (struct conv_sums){.sum = model_use(m, m->slots[y].sum),
                              .square = model_use(m, m->slots[y].square),
                              .has_sums = &m->slots[y].has_sums};
}

/* Whether they are there or not, their slots are in use until here. */
struct norm_sums norm_sums_of(ddpm_model *m, int x1, int x2)
{
    const struct slot *s1 = &m->slots[x1], *s2 = x2 < 0 ? NULL : &m->slots[x2];
    const struct norm_sums all = {.sum1 = model_use(m, s1->sum),
                                  .square1 = model_use(m, s1->square),
                                  .sum2 = s2 ? model_use(m, s2->sum) : NULL,
                                  .square2 = s2 ? model_use(m, s2->square) : NULL};
    return s1->has_sums && (!s2 || s2->has_sums) ? all : (struct norm_sums){0};
}

ddpm_status conv_forward(ddpm_model *m, const struct conv *c, int x, int emb, int residual, int y)
{
    const struct conv_sums s = conv_sums_of(m, y);
    RUN(m, conv2d, .x = model_use(m, x), .w = model_kernel(m, c->w), .bias = model_weight(m, c->b),
        .emb = model_use(m, emb), .residual = model_use(m, residual), .stride = c->stride,
        .pad_top = c->pad_top, .pad_left = c->pad_left, .pad_bottom = c->pad_bottom,
        .pad_right = c->pad_right, .y = model_use(m, y), .sum = s.sum, .square = s.square,
        .has_sums = s.has_sums);
    return DDPM_OK;
}

static ddpm_status filter_backward(ddpm_model *m, const struct conv *c, int x, int dy, int demb)
{
    RUN(m, conv2d_bwd_filter, .x = model_use(m, x), .dy = model_use(m, dy), .stride = c->stride,
        .pad_top = c->pad_top, .pad_left = c->pad_left, .pad_bottom = c->pad_bottom,
        .pad_right = c->pad_right, .dw = model_gradient(m, c->w), .db = model_gradient(m, c->b),
        .demb = model_use(m, demb));
    return DDPM_OK;
}

ddpm_status conv_backward(ddpm_model *m, const struct conv *c, int x, int dy, int demb, int dx,
                          bool accumulate)
{
    TRY(filter_backward(m, c, x, dy, demb));
    if (dx == NO_SLOT) return DDPM_OK;
    RUN(m, conv2d_bwd_data, .dy = model_use(m, dy), .w = model_kernel(m, c->w), .stride = c->stride,
        .pad_top = c->pad_top, .pad_left = c->pad_left, .pad_bottom = c->pad_bottom,
        .pad_right = c->pad_right, .accumulate = accumulate, .dx = model_use(m, dx));
    return DDPM_OK;
}

ddpm_status conv_backward_to_norm(ddpm_model *m, const struct conv *c, int x, int dy, int demb,
                                  int dx, struct norm_gradient *to)
{
    TRY(filter_backward(m, c, x, dy, demb));
    to->is_taken = false;
    const struct norm_ref norm = {.x = model_use(m, to->x),
                                  .gamma = model_weight(m, to->norm->gamma),
                                  .beta = model_weight(m, to->norm->beta),
                                  .scale = model_use(m, to->scale),
                                  .shift = model_use(m, to->shift),
                                  .stats = model_use(m, to->norm->stats),
                                  .groups = (int)m->cfg.norm_groups};
    RUN(m, conv2d_bwd_data, .dy = model_use(m, dy), .w = model_kernel(m, c->w), .stride = c->stride,
        .pad_top = c->pad_top, .pad_left = c->pad_left, .pad_bottom = c->pad_bottom,
        .pad_right = c->pad_right, .dx = model_use(m, dx), .norm = norm,
        .sum = model_use(m, to->sum), .product = model_use(m, to->product),
        .has_gradient = &to->is_taken);
    return DDPM_OK;
}

/* Whether they are there or not, their slots are in use until here. */
struct gradient_sums gradient_sums_of(ddpm_model *m, const struct norm_gradient *from)
{
    if (!from) return (struct gradient_sums){0};
    const struct gradient_sums all = {model_use(m, from->sum), model_use(m, from->product)};
    return from->is_taken ? all : (struct gradient_sums){0};
}

ddpm_status norm_forward(ddpm_model *m, const struct norm *n, int x1, int x2, bool silu, int y)
{
    const struct norm_sums s = norm_sums_of(m, x1, x2);
    RUN(m, groupnorm, .x1 = model_use(m, x1), .x2 = model_use(m, x2), .sum1 = s.sum1,
        .square1 = s.square1, .sum2 = s.sum2, .square2 = s.square2,
        .gamma = model_weight(m, n->gamma), .beta = model_weight(m, n->beta), .groups = (int)m->cfg.norm_groups,
        .eps = (float)m->cfg.norm_eps, .silu = silu, .stats = model_use(m, n->stats),
        .y = model_use(m, y));
    return DDPM_OK;
}

ddpm_status norm_backward(ddpm_model *m, const struct norm *n, int dy, int x1, int x2, bool silu,
                          const struct norm_gradient *from, int add1, int add2, int dx1, int dx2)
{
    const struct gradient_sums s = gradient_sums_of(m, from);
    RUN(m, groupnorm_bwd, .dy = model_use(m, dy), .x1 = model_use(m, x1), .x2 = model_use(m, x2),
        .dy_sum = s.dy, .dy_x = s.dy_x,
        .gamma = model_weight(m, n->gamma), .beta = model_weight(m, n->beta),
        .stats = model_use(m, n->stats), .groups = (int)m->cfg.norm_groups, .silu = silu && !s.dy,
        .add1 = model_use(m, add1), .add2 = model_use(m, add2), .dx1 = model_use(m, dx1),
        .dx2 = model_use(m, dx2), .dgamma = model_gradient(m, n->gamma),
        .dbeta = model_gradient(m, n->beta));
    return DDPM_OK;
}

int grad_begin(ddpm_model *m, int slot, bool *had)
{
    *had = m->started[slot];
    m->started[slot] = true;
    return m->grad[slot];
}

int grad_of(const ddpm_model *m, int slot)
{
    return m->grad[slot];
}

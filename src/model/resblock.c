/* resblock.c - the residual block:
 *     h = conv1(silu(norm1([x1 | x2]))) + projection(temb)
 *     y = conv2(dropout(silu(norm2(h)))) + shortcut([x1 | x2])          [Ho 2020, appendix B]
 * or, with scale_shift, h = conv1(...), norm2(h) (1 + scale) + shift with both from the projection
 * [Dhariwal 2021, 3.1].
 *
 * x2 is the skip connection. The two are never copied together: norm1 reads both, the 1x1 shortcut
 * is one product for each. Saved for backward: x1, x2 (their producers' outputs), act1, h1, act2
 * and the norms' statistics. */
#include "blocks.h"

static bool has_shortcut(const struct block *k)
{
    return k->u.res.shortcut1 >= 0;
}

/* The 1x1 shortcut's weight is one parameter [out,1,1,c1+c2], of which each product takes its
 * columns. */
static void build_shortcut(struct builder *b, struct block *k)
{
    const int c_in = k->c1 + k->c2;
    k->u.res.shortcut1 = k->u.res.shortcut2 = k->u.res.shortcut_b = -1;
    if (c_in == k->c && !k->c2) return;
    const int w = build_param(b, "conv_shortcut.weight", 4, (int64_t[]){k->c, 1, 1, c_in},
                              INIT_WEIGHT, c_in, k->c, false);
    const int bias =
        build_param(b, "conv_shortcut.bias", 1, (int64_t[]){k->c}, INIT_BIAS, c_in, k->c, false);
    if (b->s) return;
    const int64_t offset = b->m->params[w].info.offset;
    ddpm_tensor part = ddpm_tensor_4d(NULL, k->c, 1, 1, k->c1);
    for (int i = 0; i < 3; i++)
        part.stride[i] = c_in;
    k->u.res.shortcut1 = build_weight(b, offset, part);
    if (k->c2) {
        part.dim[3] = k->c2;
        k->u.res.shortcut2 = build_weight(b, offset + k->c1, part);
    }
    k->u.res.shortcut_b = build_param_weight(b, bias);
    build_macs(b, (double)k->h * (double)k->w * c_in * k->c);
}

/* Columns of the joint time projection that belong to this block: [n,c], or scale and shift. */
static void build_embedding_views(struct builder *b, struct block *k, int emb_begin)
{
    const ddpm_model *m = b->m;
    if (b->s) return;
    const int all = m->blocks[0].u.time.all, d_all = m->blocks[0].u.time.d_all;
    const int64_t dim[2] = {0, k->c}, stride[2] = {m->embed_sum, 1};
    k->u.res.emb_begin = emb_begin;
    k->u.res.emb = build_view(b, all, emb_begin, 2, dim, stride);
    k->u.res.d_emb = build_view(b, d_all, emb_begin, 2, dim, stride);
    k->u.res.shift = k->u.res.d_shift = NO_SLOT;
    if (!m->cfg.scale_shift) return;
    k->u.res.shift = build_view(b, all, emb_begin + k->c, 2, dim, stride);
    k->u.res.d_shift = build_view(b, d_all, emb_begin + k->c, 2, dim, stride);
}

void res_build(struct builder *b, struct block *k, int x1, int x2, int c_out, int64_t h, int64_t w,
               int emb_begin)
{
    if (b->s) return;
    const ddpm_model *m = b->m;
    k->x1 = x1;
    k->x2 = x2;
    k->c1 = (int)m->slots[x1].tensor.dim[3];
    k->c2 = x2 < 0 ? 0 : (int)m->slots[x2].tensor.dim[3];
    k->c = c_out;
    k->h = h;
    k->w = w;
    const int c_in = k->c1 + k->c2;
    k->u.res.norm1 = build_norm(b, "norm1", c_in);
    k->u.res.conv1 = build_conv(b, "conv1", c_in, c_out, 3, 1, 1, false);
    k->u.res.norm2 = build_norm(b, "norm2", c_out);
    k->u.res.conv2 = build_conv(b, "conv2", c_out, c_out, 3, 1, 1, true);
    build_shortcut(b, k);
    build_embedding_views(b, k, emb_begin);
    k->u.res.act1 = build_image(b, h, w, c_in);
    k->u.res.h1 = build_image(b, h, w, c_out);
    build_sums(b, k->u.res.h1);
    k->u.res.act2 = build_image(b, h, w, c_out);
    k->u.res.d_act2 = build_image(b, h, w, c_out);
    k->u.res.d_act1 = build_image(b, h, w, c_in);
    k->u.res.sum1 = build_slot(b, 2, (int64_t[]){0, c_in});
    k->u.res.product1 = build_slot(b, 2, (int64_t[]){0, c_in});
    k->u.res.sum2 = build_slot(b, 2, (int64_t[]){0, c_out});
    k->u.res.product2 = build_slot(b, 2, (int64_t[]){0, c_out});
    k->y = build_activation(b, h, w, c_out);
    build_macs(b, 9.0 * (double)h * (double)w * c_out * (c_in + c_out));
}

ddpm_status res_forward(ddpm_model *m, struct block *k)
{
    const bool film = m->cfg.scale_shift;
    const float dropout = m->args->state ? (float)m->cfg.dropout : 0;
    TRY(norm_forward(m, &k->u.res.norm1, k->x1, k->x2, true, k->u.res.act1));
    TRY(conv_forward(m, &k->u.res.conv1, k->u.res.act1, film ? NO_SLOT : k->u.res.emb, NO_SLOT,
                     k->u.res.h1));
    const struct norm *n = &k->u.res.norm2;
    const struct norm_sums s = norm_sums_of(m, k->u.res.h1, NO_SLOT);
    RUN(m, groupnorm, .x1 = model_use(m, k->u.res.h1), .sum1 = s.sum1, .square1 = s.square1,
        .gamma = model_weight(m, n->gamma),
        .beta = model_weight(m, n->beta), .scale = model_use(m, film ? k->u.res.emb : NO_SLOT),
        .shift = model_use(m, k->u.res.shift), .groups = (int)m->cfg.norm_groups,
        .eps = (float)m->cfg.norm_eps, .silu = true, .dropout = dropout, .layer = k->u.res.layer,
        .state = m->args->state, .index = m->args->index, .stats = model_use(m, n->stats),
        .y = model_use(m, k->u.res.act2));
    if (!has_shortcut(k))
        return conv_forward(m, &k->u.res.conv2, k->u.res.act2, NO_SLOT, k->x1, k->y);
    RUN(m, conv2d, .x = model_use(m, k->x1), .w = model_kernel(m, k->u.res.shortcut1),
        .bias = model_weight(m, k->u.res.shortcut_b), .stride = 1, .y = model_use(m, k->y));
    if (k->c2)
        RUN(m, conv2d, .x = model_use(m, k->x2), .w = model_kernel(m, k->u.res.shortcut2),
            .stride = 1, .residual = model_use(m, k->y), .y = model_use(m, k->y));
    return conv_forward(m, &k->u.res.conv2, k->u.res.act2, NO_SLOT, k->y, k->y);
}

/* dx += the shortcut's gradient; the weight's too. */
static ddpm_status shortcut_backward(ddpm_model *m, const struct block *k, int dy, int dx1, int dx2)
{
    RUN(m, conv2d_bwd_filter, .x = model_use(m, k->x1), .dy = model_use(m, dy), .stride = 1,
        .dw = model_gradient(m, k->u.res.shortcut1), .db = model_gradient(m, k->u.res.shortcut_b));
    RUN(m, conv2d_bwd_data, .dy = model_use(m, dy), .w = model_kernel(m, k->u.res.shortcut1),
        .stride = 1, .accumulate = true, .dx = model_use(m, dx1));
    if (!k->c2) return DDPM_OK;
    RUN(m, conv2d_bwd_filter, .x = model_use(m, k->x2), .dy = model_use(m, dy), .stride = 1,
        .dw = model_gradient(m, k->u.res.shortcut2));
    RUN(m, conv2d_bwd_data, .dy = model_use(m, dy), .w = model_kernel(m, k->u.res.shortcut2),
        .stride = 1, .accumulate = true, .dx = model_use(m, dx2));
    return DDPM_OK;
}

/* d_h1 from dy. */
static ddpm_status second_half_backward(ddpm_model *m, struct block *k, int dy, int d_h1)
{
    const bool film = m->cfg.scale_shift;
    const float dropout = m->args->state ? (float)m->cfg.dropout : 0;
    const struct norm *n = &k->u.res.norm2;
    struct norm_gradient to = {.norm = n, .x = k->u.res.h1, .scale = film ? k->u.res.emb : NO_SLOT,
                               .shift = k->u.res.shift, .sum = k->u.res.sum2,
                               .product = k->u.res.product2};
    if (dropout > 0)
        TRY(conv_backward(m, &k->u.res.conv2, k->u.res.act2, dy, NO_SLOT, k->u.res.d_act2, false));
    else
        TRY(conv_backward_to_norm(m, &k->u.res.conv2, k->u.res.act2, dy, NO_SLOT, k->u.res.d_act2,
                                  &to));
    const struct gradient_sums s = gradient_sums_of(m, dropout > 0 ? NULL : &to);
    RUN(m, groupnorm_bwd, .dy = model_use(m, k->u.res.d_act2), .x1 = model_use(m, k->u.res.h1),
        .gamma = model_weight(m, n->gamma), .beta = model_weight(m, n->beta),
        .scale = model_use(m, film ? k->u.res.emb : NO_SLOT), .shift = model_use(m, k->u.res.shift),
        .stats = model_use(m, n->stats), .groups = (int)m->cfg.norm_groups, .silu = !s.dy,
        .dy_sum = s.dy, .dy_x = s.dy_x,
        .dropout = dropout, .layer = k->u.res.layer, .state = m->args->state,
        .index = m->args->index, .dx1 = model_use(m, d_h1), .dgamma = model_gradient(m, n->gamma),
        .dbeta = model_gradient(m, n->beta),
        .dscale = model_use(m, film ? k->u.res.d_emb : NO_SLOT),
        .dshift = model_use(m, k->u.res.d_shift));
    return DDPM_OK;
}

ddpm_status res_backward(ddpm_model *m, struct block *k)
{
    const int dy = grad_of(m, k->y), d_emb = m->cfg.scale_shift ? NO_SLOT : k->u.res.d_emb;
    const int d_h1 = k->u.res.d_act2; /* norm2's gradient is taken in place */
    struct norm_gradient to = {.norm = &k->u.res.norm1, .x = k->x1, .scale = NO_SLOT,
                               .shift = NO_SLOT, .sum = k->u.res.sum1,
                               .product = k->u.res.product1};
    TRY(second_half_backward(m, k, dy, d_h1));
    if (k->c2)
        TRY(conv_backward(m, &k->u.res.conv1, k->u.res.act1, d_h1, d_emb, k->u.res.d_act1, false));
    else
        TRY(conv_backward_to_norm(m, &k->u.res.conv1, k->u.res.act1, d_h1, d_emb, k->u.res.d_act1,
                                  &to));

    bool had1 = false, had2 = false;
    const int dx1 = grad_begin(m, k->x1, &had1);
    const int dx2 = k->c2 ? grad_begin(m, k->x2, &had2) : NO_SLOT;
    int add1 = had1 ? dx1 : NO_SLOT;
    if (!has_shortcut(k)) {
        if (had1)
            RUN(m, add, .a = model_use(m, dx1), .b = model_use(m, dy), .y = model_use(m, dx1));
        else
            add1 = dy;
    }
    TRY(norm_backward(m, &k->u.res.norm1, k->u.res.d_act1, k->x1, k->x2, true, k->c2 ? NULL : &to,
                      add1, had2 ? dx2 : NO_SLOT, dx1, dx2));
    return has_shortcut(k) ? shortcut_backward(m, k, dy, dx1, dx2) : DDPM_OK;
}

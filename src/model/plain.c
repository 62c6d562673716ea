/* plain.c - the blocks around the residual ones: first convolution, down, up, head.
 *     conv-in   y = conv3x3(x)
 *     down      y = conv3x3 stride 2; padding 0 pads bottom and right by one, as TensorFlow's SAME
 * does on even sizes up        y = conv3x3(nearest2(x)); the enlarged input is made again in
 * backward, not kept head      out = conv3x3(silu(norm(x))) */
#include "blocks.h"

static void set_extent(struct builder *b, struct block *k, int x, int c, int64_t h, int64_t w)
{
    k->x1 = x;
    k->c1 = x < 0 ? (int)b->m->cfg.image_channels : (int)b->m->slots[x].tensor.dim[3];
    k->c = c;
    k->h = h;
    k->w = w;
    build_macs(b, 9.0 * (double)h * (double)w * k->c1 * c);
}

void conv_in_build(struct builder *b, struct block *k)
{
    if (b->s) return;
    const ddpm_model_config *cfg = &b->m->cfg;
    b->prefix = ""; /* the parameters are named like the block */
    set_extent(b, k, NO_SLOT, (int)ddpm_model_level_channels(cfg, 0), cfg->image_height, cfg->image_width);
    k->u.plain.conv = build_conv(b, "conv_in", k->c1, k->c, 3, 1, 1, false);
    k->u.plain.wide = build_image(b, k->h, k->w, k->c1);
    k->y = build_activation(b, k->h, k->w, k->c);
}

void down_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w)
{
    if (b->s) return;
    const int padding = (int)b->m->cfg.downsample_padding;
    set_extent(b, k, x, (int)b->m->slots[x].tensor.dim[3], h / 2, w / 2);
    k->u.plain.conv = build_conv(b, "conv", k->c1, k->c, 3, 2, padding, false);
    if (!padding) k->u.plain.conv.pad_bottom = k->u.plain.conv.pad_right = 1;
    k->y = build_activation(b, k->h, k->w, k->c);
}

void up_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w)
{
    if (b->s) return;
    set_extent(b, k, x, (int)b->m->slots[x].tensor.dim[3], 2 * h, 2 * w);
    k->u.plain.conv = build_conv(b, "conv", k->c1, k->c, 3, 1, 1, false);
    k->u.plain.wide = build_image(b, k->h, k->w, k->c1);
    k->u.plain.wide_again = build_image(b, k->h, k->w, k->c1);
    k->u.plain.d_wide = build_image(b, k->h, k->w, k->c1);
    k->y = build_activation(b, k->h, k->w, k->c);
}

void head_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w)
{
    if (b->s) return;
    b->prefix = "";
    set_extent(b, k, x, (int)b->m->cfg.image_channels, h, w);
    k->u.plain.norm = build_norm(b, "conv_norm_out", k->c1);
    k->u.plain.conv = build_conv(b, "conv_out", k->c1, k->c, 3, 1, 1, true);
    k->u.plain.wide = build_image(b, h, w, k->c1);
    k->u.plain.d_wide = build_image(b, h, w, k->c1);
}

/* conv-in and head have the caller's tensor on one side, which is no slot. */
static ddpm_status convolve(ddpm_model *m, const struct conv *c, const ddpm_tensor *x,
                            ddpm_tensor *y, struct conv_sums s)
{
    RUN(m, conv2d, .x = x, .w = model_kernel(m, c->w), .bias = model_weight(m, c->b),
        .stride = c->stride, .pad_top = c->pad_top, .pad_left = c->pad_left,
        .pad_bottom = c->pad_bottom, .pad_right = c->pad_right, .y = y, .sum = s.sum,
        .square = s.square, .has_sums = s.has_sums);
    return DDPM_OK;
}

static ddpm_status convolve_backward(ddpm_model *m, const struct conv *c, const ddpm_tensor *x,
                                     const ddpm_tensor *dy, ddpm_tensor *dx)
{
    RUN(m, conv2d_bwd_filter, .x = x, .dy = dy, .stride = c->stride, .pad_top = c->pad_top,
        .pad_left = c->pad_left, .pad_bottom = c->pad_bottom, .pad_right = c->pad_right,
        .dw = model_gradient(m, c->w), .db = model_gradient(m, c->b));
    if (!dx) return DDPM_OK;
    RUN(m, conv2d_bwd_data, .dy = dy, .w = model_kernel(m, c->w), .stride = c->stride,
        .pad_top = c->pad_top, .pad_left = c->pad_left, .pad_bottom = c->pad_bottom,
        .pad_right = c->pad_right, .dx = dx);
    return DDPM_OK;
}

/* Samples are f32 whatever the network is. */
static bool is_cast(const ddpm_model *m)
{
    return m->is_half && m->args->x->dtype == DDPM_F32;
}

static const ddpm_tensor *network_input(ddpm_model *m, const struct block *k)
{
    return is_cast(m) ? model_use(m, k->u.plain.wide) : m->args->x;
}

ddpm_status plain_forward(ddpm_model *m, struct block *k)
{
    switch (k->kind) {
    case BLOCK_CONV_IN:
        if (is_cast(m))
            RUN(m, cast, .x = m->args->x, .y = model_use(m, k->u.plain.wide));
        return convolve(m, &k->u.plain.conv, network_input(m, k), model_use(m, k->y),
                        conv_sums_of(m, k->y));
    case BLOCK_UP:
        RUN(m, upsample2, .x = model_use(m, k->x1), .y = model_use(m, k->u.plain.wide));
        return conv_forward(m, &k->u.plain.conv, k->u.plain.wide, NO_SLOT, NO_SLOT, k->y);
    case BLOCK_HEAD:
        TRY(norm_forward(m, &k->u.plain.norm, k->x1, NO_SLOT, true, k->u.plain.wide));
        return convolve(m, &k->u.plain.conv, model_use(m, k->u.plain.wide), m->args->out,
                        (struct conv_sums){0});
    default:
        return conv_forward(m, &k->u.plain.conv, k->x1, NO_SLOT, NO_SLOT, k->y);
    }
}

static ddpm_status up_backward(ddpm_model *m, struct block *k)
{
    bool had;
    RUN(m, upsample2, .x = model_use(m, k->x1), .y = model_use(m, k->u.plain.wide_again));
    TRY(conv_backward(m, &k->u.plain.conv, k->u.plain.wide_again, grad_of(m, k->y), NO_SLOT,
                      k->u.plain.d_wide, false));
    const int dx = grad_begin(m, k->x1, &had);
    RUN(m, upsample2_bwd, .dy = model_use(m, k->u.plain.d_wide), .accumulate = had,
        .dx = model_use(m, dx));
    return DDPM_OK;
}

static ddpm_status head_backward(ddpm_model *m, struct block *k)
{
    bool had;
    TRY(convolve_backward(m, &k->u.plain.conv, model_use(m, k->u.plain.wide), m->dout,
                          model_use(m, k->u.plain.d_wide)));
    const int dx = grad_begin(m, k->x1, &had);
    return norm_backward(m, &k->u.plain.norm, k->u.plain.d_wide, k->x1, NO_SLOT, true,
                         NULL, had ? dx : NO_SLOT, NO_SLOT, dx, NO_SLOT);
}

ddpm_status plain_backward(ddpm_model *m, struct block *k)
{
    bool had;
    switch (k->kind) {
    case BLOCK_CONV_IN:
        return convolve_backward(m, &k->u.plain.conv, network_input(m, k),
                                 model_use(m, grad_of(m, k->y)), m->dx);
    case BLOCK_UP:
        return up_backward(m, k);
    case BLOCK_HEAD:
        return head_backward(m, k);
    default: {
        const int dx = grad_begin(m, k->x1, &had);
        return conv_backward(m, &k->u.plain.conv, k->x1, grad_of(m, k->y), NO_SLOT, dx, had);
    }
    }
}

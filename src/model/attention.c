/* attention.c - self-attention over all pixels of a level:
 *     y = x + proj(softmax(q k^T / sqrt(d)) v),   [q | k | v] = qkv(norm(x))        [Ho 2020,
 * appendix B]
 *
 * q, k and v are one 1x1 product over one joint weight [3c,c], in files three tensors; each head
 * reads its slice in place. Saved: act = norm(x), the joint projection, o and lse; the
 * probabilities are computed again in backward. */
#include "blocks.h"

#include <math.h>

/* to_q, to_k, to_v side by side: one weight of 3c rows, one bias. */
static struct conv build_joint(struct builder *b, int c)
{
    static const char *const leaf[3][2] = {
        {"to_q.weight", "to_q.bias"}, {"to_k.weight", "to_k.bias"}, {"to_v.weight", "to_v.bias"}};
    int first[2] = {0, 0};
    for (int bias = 0; bias < 2; bias++)
        for (int i = 0; i < 3; i++) {
            const int p = build_param(b, leaf[i][bias], bias ? 1 : 2, (int64_t[]){c, c},
                                      bias ? INIT_BIAS : INIT_WEIGHT, c, c, i > 0);
            if (i == 0) first[bias] = p;
        }
    struct conv joint = {.in = c, .out = 3 * c, .kernel = 1, .stride = 1};
    if (b->s) return joint;
    joint.w =
        build_weight(b, b->m->params[first[0]].info.offset, ddpm_tensor_4d(NULL, 3 * c, 1, 1, c));
    joint.b = build_weight(b, b->m->params[first[1]].info.offset, ddpm_tensor_1d(NULL, 3 * c));
    return joint;
}

static struct conv build_projection(struct builder *b, int c)
{
    const int w =
        build_param(b, "to_out.0.weight", 2, (int64_t[]){c, c}, INIT_ZERO_WEIGHT, c, c, false);
    const int bias =
        build_param(b, "to_out.0.bias", 1, (int64_t[]){c}, INIT_ZERO_BIAS, c, c, false);
    struct conv proj = {.in = c, .out = c, .kernel = 1, .stride = 1};
    if (b->s) return proj;
    proj.w = build_weight(b, b->m->params[w].info.offset, ddpm_tensor_4d(NULL, c, 1, 1, c));
    proj.b = build_param_weight(b, bias);
    return proj;
}

void attention_build(struct builder *b, struct block *k, int x, int64_t h, int64_t w)
{
    if (b->s) return;
    const ddpm_model_config *cfg = &b->m->cfg;
    const int c = (int)b->m->slots[x].tensor.dim[3];
    const int heads = cfg->head_channels ? c / (int)cfg->head_channels : (int)cfg->num_heads;
    const int64_t tokens = h * w, d = c / heads;
    k->x1 = x;
    k->c1 = k->c = c;
    k->h = h;
    k->w = w;
    k->u.attention.heads = heads;
    k->u.attention.norm = build_norm(b, "group_norm", c);
    k->u.attention.qkv = build_joint(b, c);
    k->u.attention.proj = build_projection(b, c);

    const int64_t dim[4] = {0, tokens, heads, d};
    const int64_t joint[4] = {tokens * 3 * c, 3 * c, d, 1}, plain[4] = {tokens * c, c, d, 1};
    k->u.attention.act = build_image(b, h, w, c);
    k->u.attention.joint = build_image(b, h, w, 3 * c);
    k->u.attention.q = build_view(b, k->u.attention.joint, 0, 4, dim, joint);
    k->u.attention.k = build_view(b, k->u.attention.joint, c, 4, dim, joint);
    k->u.attention.v = build_view(b, k->u.attention.joint, 2 * c, 4, dim, joint);
    k->u.attention.o = build_image(b, h, w, c);
    k->u.attention.o_heads = build_view(b, k->u.attention.o, 0, 4, dim, plain);
    k->u.attention.lse = build_slot(b, 3, (int64_t[]){0, heads, tokens});
    k->u.attention.d_o = build_image(b, h, w, c);
    k->u.attention.d_o_heads = build_view(b, k->u.attention.d_o, 0, 4, dim, plain);
    k->u.attention.d_joint = build_image(b, h, w, 3 * c);
    k->u.attention.dq = build_view(b, k->u.attention.d_joint, 0, 4, dim, joint);
    k->u.attention.dk = build_view(b, k->u.attention.d_joint, c, 4, dim, joint);
    k->u.attention.dv = build_view(b, k->u.attention.d_joint, 2 * c, 4, dim, joint);
    k->u.attention.d_act = build_image(b, h, w, c);
    k->y = build_activation(b, h, w, c);
    build_macs(b, (double)tokens * c * (4.0 * c + 2.0 * (double)tokens));
}

static float attention_scale(const ddpm_model *m, const struct block *k)
{
    return (float)(1.0 / sqrt((double)m->slots[k->u.attention.q].tensor.dim[3]));
}

ddpm_status attention_forward(ddpm_model *m, struct block *k)
{
    TRY(norm_forward(m, &k->u.attention.norm, k->x1, NO_SLOT, false, k->u.attention.act));
    TRY(conv_forward(m, &k->u.attention.qkv, k->u.attention.act, NO_SLOT, NO_SLOT,
                     k->u.attention.joint));
    RUN(m, attention, .q = model_use(m, k->u.attention.q), .k = model_use(m, k->u.attention.k),
        .v = model_use(m, k->u.attention.v), .scale = attention_scale(m, k),
        .o = model_use(m, k->u.attention.o_heads), .lse = model_use(m, k->u.attention.lse));
    return conv_forward(m, &k->u.attention.proj, k->u.attention.o, NO_SLOT, k->x1, k->y);
}

ddpm_status attention_backward(ddpm_model *m, struct block *k)
{
    const int dy = grad_of(m, k->y);
    TRY(conv_backward(m, &k->u.attention.proj, k->u.attention.o, dy, NO_SLOT, k->u.attention.d_o,
                      false));
    RUN(m, attention_bwd, .q = model_use(m, k->u.attention.q), .k = model_use(m, k->u.attention.k),
        .v = model_use(m, k->u.attention.v), .o = model_use(m, k->u.attention.o_heads),
        .lse = model_use(m, k->u.attention.lse), .d_o = model_use(m, k->u.attention.d_o_heads),
        .scale = attention_scale(m, k), .dq = model_use(m, k->u.attention.dq),
        .dk = model_use(m, k->u.attention.dk), .dv = model_use(m, k->u.attention.dv));
    TRY(conv_backward(m, &k->u.attention.qkv, k->u.attention.act, k->u.attention.d_joint, NO_SLOT,
                      k->u.attention.d_act, false));
    bool had;
    const int dx = grad_begin(m, k->x1, &had);
    if (had) RUN(m, add, .a = model_use(m, dx), .b = model_use(m, dy), .y = model_use(m, dx));
    return norm_backward(m, &k->u.attention.norm, k->u.attention.d_act, k->x1, NO_SLOT, false,
                         NULL, had ? dx : dy, NO_SLOT, dx, NO_SLOT);
}

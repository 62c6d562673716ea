/* unet.c - the U-Net of Ho et al. 2020 (and, by its configuration, diffusers' UNet2DModel): a
 * configuration in, an array of block records out; forward walks it up, backward down.
 *
 *     conv-in; per level: num_res_blocks x (res [attention]), down (but the last); middle: res
 * attention res; per level back: (num_res_blocks + 1) x (res with skip [attention]), up (but the
 * last); head. Every output on the way down is kept for one block on the way up. */
#include "blocks.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_SKIPS = 8 * 17 + 1 };

struct walk {
    struct builder *b;
    int x; /* slot of the current activation */
    int64_t h, w;
    int skips[MAX_SKIPS], n_skips;
    int embed; /* columns of the joint time projection given out */
    uint32_t layer;
};

static bool level_has_attention(const ddpm_model_config *cfg, int level)
{
    const int64_t rows = cfg->image_height >> level;
    for (int i = 0; i < cfg->attention_resolutions.n; i++)
        if (cfg->attention_resolutions.v[i] == rows) return true;
    return false;
}

static void add_res(struct walk *s, int skip, int c_out, const char *name)
{
    struct builder *b = s->b;
    if (b->s) return;
    struct block *k = build_block(b, BLOCK_RES, name);
    res_build(b, k, s->x, skip, c_out, s->h, s->w, s->embed);
    k->u.res.layer = s->layer++;
    s->embed += c_out * (b->m->cfg.scale_shift ? 2 : 1);
    s->x = k->y;
}

static void add_attention(struct walk *s, const char *name)
{
    if (s->b->s) return;
    struct block *k = build_block(s->b, BLOCK_ATTENTION, name);
    attention_build(s->b, k, s->x, s->h, s->w);
    s->x = k->y;
}

static void push_skip(struct walk *s)
{
    s->skips[s->n_skips++] = s->x;
}

static void add_level_down(struct walk *s, int level, bool last)
{
    const ddpm_model_config *cfg = &s->b->m->cfg;
    char name[96];
    for (int j = 0; j < cfg->num_res_blocks; j++) {
        snprintf(name, sizeof name, "down_blocks.%d.resnets.%d", level, j);
        add_res(s, NO_SLOT, (int)ddpm_model_level_channels(cfg, level), name);
        snprintf(name, sizeof name, "down_blocks.%d.attentions.%d", level, j);
        if (level_has_attention(cfg, level)) add_attention(s, name);
        push_skip(s);
    }
    if (last || s->b->s) return;
    snprintf(name, sizeof name, "down_blocks.%d.downsamplers.0", level);
    struct block *k = build_block(s->b, BLOCK_DOWN, name);
    down_build(s->b, k, s->x, s->h, s->w);
    s->x = k->y;
    s->h /= 2;
    s->w /= 2;
    push_skip(s);
}

/* up_blocks.0 is the lowest resolution. */
static void add_level_up(struct walk *s, int level, int index)
{
    const ddpm_model_config *cfg = &s->b->m->cfg;
    char name[96];
    for (int j = 0; j <= cfg->num_res_blocks; j++) {
        snprintf(name, sizeof name, "up_blocks.%d.resnets.%d", index, j);
        add_res(s, s->skips[--s->n_skips], (int)ddpm_model_level_channels(cfg, level), name);
        snprintf(name, sizeof name, "up_blocks.%d.attentions.%d", index, j);
        if (level_has_attention(cfg, level)) add_attention(s, name);
    }
    if (level == 0 || s->b->s) return;
    snprintf(name, sizeof name, "up_blocks.%d.upsamplers.0", index);
    struct block *k = build_block(s->b, BLOCK_UP, name);
    up_build(s->b, k, s->x, s->h, s->w);
    s->x = k->y;
    s->h *= 2;
    s->w *= 2;
}

/* Columns of all time projections: one block's output channels, twice with scale_shift. */
static int count_embedding(const ddpm_model_config *cfg)
{
    int sum = 2 * (int)ddpm_model_level_channels(cfg, cfg->channel_mult.n - 1);
    for (int level = 0; level < cfg->channel_mult.n; level++)
        sum += (int)ddpm_model_level_channels(cfg, level) * (int)(2 * cfg->num_res_blocks + 1);
    return cfg->scale_shift ? 2 * sum : sum;
}

/* Weights, then biases, of every block's time projection, side by side in the order of their
 * columns. */
static void add_projections(struct builder *b)
{
    ddpm_model *m = b->m;
    const int wide = 4 * (int)m->cfg.channels;
    for (int bias = 0; bias < 2 && !b->s; bias++) {
        int64_t begin = -1;
        for (int i = 0; i < m->n_blocks; i++) {
            struct block *k = &m->blocks[i];
            if (k->kind != BLOCK_RES) continue;
            b->block = k;
            b->prefix = k->name;
            const int rows = k->c * (m->cfg.scale_shift ? 2 : 1);
            const int p = build_param(b, bias ? "time_emb_proj.bias" : "time_emb_proj.weight",
                                      bias ? 1 : 2, (int64_t[]){rows, wide},
                                      bias ? INIT_BIAS : INIT_WEIGHT, wide, rows, begin >= 0);
            if (b->s) return;
            if (begin < 0) begin = m->params[p].info.offset;
        }
        const ddpm_tensor all =
            bias ? ddpm_tensor_1d(NULL, m->embed_sum) : ddpm_tensor_2d(NULL, m->embed_sum, wide);
        const int w = build_weight(b, begin, all);
        if (bias)
            m->blocks[0].u.time.b_all = w;
        else
            m->blocks[0].u.time.w_all = w;
    }
}

void unet_build(struct builder *b)
{
    const ddpm_model_config *cfg = &b->m->cfg;
    const int levels = cfg->channel_mult.n;
    b->m->embed_sum = count_embedding(cfg);
    time_build(b, build_block(b, BLOCK_TIME, "time_embedding"));
    struct block *k = build_block(b, BLOCK_CONV_IN, "conv_in");
    conv_in_build(b, k);
    struct walk s = {.b = b, .x = k->y, .h = cfg->image_height, .w = cfg->image_width};
    push_skip(&s);
    for (int level = 0; level < levels; level++)
        add_level_down(&s, level, level == levels - 1);
    add_res(&s, NO_SLOT, (int)ddpm_model_level_channels(cfg, levels - 1), "mid_block.resnets.0");
    add_attention(&s, "mid_block.attentions.0");
    add_res(&s, NO_SLOT, (int)ddpm_model_level_channels(cfg, levels - 1), "mid_block.resnets.1");
    for (int level = levels; level-- > 0;)
        add_level_up(&s, level, levels - 1 - level);
    head_build(b, build_block(b, BLOCK_HEAD, "conv_out"), s.x, s.h, s.w);
    add_projections(b);
}

static ddpm_status block_forward(ddpm_model *m, struct block *k)
{
    switch (k->kind) {
    case BLOCK_TIME:
        return time_forward(m, k);
    case BLOCK_RES:
        return res_forward(m, k);
    case BLOCK_ATTENTION:
        return attention_forward(m, k);
    default:
        return plain_forward(m, k);
    }
}

static ddpm_status block_backward(ddpm_model *m, struct block *k)
{
    switch (k->kind) {
    case BLOCK_TIME:
        return time_backward(m, k);
    case BLOCK_RES:
        return res_backward(m, k);
    case BLOCK_ATTENTION:
        return attention_backward(m, k);
    default:
        return plain_backward(m, k);
    }
}

/* The caller's tensors against the configuration and the reserved batch. */
static ddpm_status check_pass(ddpm_model *m, const ddpm_forward_args *a)
{
    const ddpm_model_config *c = &m->cfg;
    const ddpm_tensor *x = a->x;
    REQUIRE(m->max_batch > 0, BUG, "model: used before ddpm_model_reserve");
    REQUIRE(x->rank == 4 && x->dim[1] == c->image_height && x->dim[2] == c->image_width &&
                x->dim[3] == c->image_channels,
            SHAPE, "model: x is [%lld,%lld,%lld,%lld], made for [n,%lld,%lld,%lld]",
            (long long)x->dim[0], (long long)x->dim[1], (long long)x->dim[2], (long long)x->dim[3],
            (long long)c->image_height, (long long)c->image_width, (long long)c->image_channels);
    REQUIRE(x->dim[0] >= 1 && x->dim[0] <= m->max_batch, SHAPE,
            "model: %lld images, reserved for %d", (long long)x->dim[0], m->max_batch);
    REQUIRE(a->t->dim[0] == x->dim[0], SHAPE, "model: %lld times for %lld images",
            (long long)a->t->dim[0], (long long)x->dim[0]);
    REQUIRE(!c->num_classes || a->label, SHAPE, "model: a model of %lld classes needs labels",
            (long long)c->num_classes);
    m->args = a;
    m->batch = (int)x->dim[0];
    return DDPM_OK;
}

ddpm_status ddpm_model_forward(ddpm_model *m, const ddpm_forward_args *a)
{
    TRY(check_pass(m, a));
    for (int i = 0; i < m->n_blocks; i++)
        TRY(block_forward(m, &m->blocks[i]));
    return DDPM_OK;
}

ddpm_status ddpm_model_backward(ddpm_model *m, const ddpm_forward_args *a, ddpm_tensor *dout,
                                ddpm_tensor *dx)
{
    REQUIRE(m->training, BUG, "model: backward without ddpm_model_reserve(training)");
    TRY(check_pass(m, a));
    m->dout = dout;
    m->dx = dx;
    for (int i = 0; i < m->n_slots; i++)
        m->started[i] = false;
    for (int i = m->n_blocks; i-- > 0;)
        TRY(block_backward(m, &m->blocks[i]));
    return DDPM_OK;
}

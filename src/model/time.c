/* time.c - what every residual block is told: t, and the class.
 *     temb = dense1(silu(dense0(sinusoid(t)))) (+ table[label]),  all = projections(silu(temb))
 *
 * The projections of all blocks are one product at the start, each block reads its columns;
 * backward collects their gradients in one array of the same shape and does one product at the end.
 */
#include "blocks.h"

static int build_dense_weight(struct builder *b, const char *leaf, int out, int in)
{
    return build_param_weight(
        b, build_param(b, leaf, 2, (int64_t[]){out, in}, INIT_WEIGHT, in, out, false));
}

static int build_dense_bias(struct builder *b, const char *leaf, int out, int in)
{
    return build_param_weight(b,
                              build_param(b, leaf, 1, (int64_t[]){out}, INIT_BIAS, in, out, false));
}

/* First block of the array. The joint projection's parameters bear the names of the blocks they
 * belong to, and are declared by unet.c, which knows them. */
void time_build(struct builder *b, struct block *k)
{
    if (b->s) return;
    const ddpm_model_config *cfg = &b->m->cfg;
    const int c = (int)cfg->channels, wide = 4 * c;
    k->c1 = c;
    k->c = wide;
    k->h = k->w = 1;
    k->u.time.w0 = build_dense_weight(b, "linear_1.weight", wide, c);
    k->u.time.b0 = build_dense_bias(b, "linear_1.bias", wide, c);
    k->u.time.w1 = build_dense_weight(b, "linear_2.weight", wide, wide);
    k->u.time.b1 = build_dense_bias(b, "linear_2.bias", wide, wide);
    k->u.time.table = -1;
    if (cfg->num_classes) {
        b->prefix = "class_embedding";
        k->u.time.table =
            build_param_weight(b, build_param(b, "weight", 2, (int64_t[]){cfg->num_classes, wide},
                                              INIT_NORMAL, wide, wide, false));
        b->prefix = k->name;
    }
    const int64_t narrow_dim[2] = {0, c}, wide_dim[2] = {0, wide},
                  all_dim[2] = {0, b->m->embed_sum};
    k->u.time.sinusoid = build_slot(b, 2, narrow_dim);
    k->u.time.d0 = build_slot(b, 2, wide_dim);
    k->u.time.s0 = build_slot(b, 2, wide_dim);
    k->u.time.d1 = build_slot(b, 2, wide_dim);
    k->u.time.s1 = build_slot(b, 2, wide_dim);
    k->u.time.all = build_slot(b, 2, all_dim);
    k->u.time.d_all = build_slot(b, 2, all_dim);
    k->u.time.ds1 = build_slot(b, 2, wide_dim);
    k->u.time.ds0 = build_slot(b, 2, wide_dim);
    build_macs(b, (double)wide * (c + wide + b->m->embed_sum));
}

ddpm_status time_forward(ddpm_model *m, struct block *k)
{
    RUN(m, time_embedding, .t = m->args->t, .sin_cos = m->cfg.embedding_order == DDPM_SIN_COS,
        .shift = (float)m->cfg.embedding_shift, .y = model_use(m, k->u.time.sinusoid));
    RUN(m, linear, .x = model_use(m, k->u.time.sinusoid), .w = model_weight(m, k->u.time.w0),
        .bias = model_weight(m, k->u.time.b0), .y = model_use(m, k->u.time.d0));
    RUN(m, silu, .x = model_use(m, k->u.time.d0), .y = model_use(m, k->u.time.s0));
    RUN(m, linear, .x = model_use(m, k->u.time.s0), .w = model_weight(m, k->u.time.w1),
        .bias = model_weight(m, k->u.time.b1), .y = model_use(m, k->u.time.d1));
    if (k->u.time.table >= 0)
        RUN(m, embedding, .table = model_weight(m, k->u.time.table), .label = m->args->label,
            .y = model_use(m, k->u.time.d1));
    RUN(m, silu, .x = model_use(m, k->u.time.d1), .y = model_use(m, k->u.time.s1));
    RUN(m, linear, .x = model_use(m, k->u.time.s1), .w = model_weight(m, k->u.time.w_all),
        .bias = model_weight(m, k->u.time.b_all), .y = model_use(m, k->u.time.all));
    return DDPM_OK;
}

ddpm_status time_backward(ddpm_model *m, struct block *k)
{
    const int dd1 = k->u.time.ds1, dd0 = k->u.time.ds0; /* silu's gradient is taken in place */
    RUN(m, linear_bwd, .x = model_use(m, k->u.time.s1), .w = model_weight(m, k->u.time.w_all),
        .dy = model_use(m, k->u.time.d_all), .dx = model_use(m, k->u.time.ds1),
        .dw = model_gradient(m, k->u.time.w_all), .db = model_gradient(m, k->u.time.b_all));
    RUN(m, silu_bwd, .x = model_use(m, k->u.time.d1), .dy = model_use(m, k->u.time.ds1),
        .dx = model_use(m, dd1));
    if (k->u.time.table >= 0)
        RUN(m, embedding_bwd, .dy = model_use(m, dd1), .label = m->args->label,
            .dtable = model_gradient(m, k->u.time.table));
    RUN(m, linear_bwd, .x = model_use(m, k->u.time.s0), .w = model_weight(m, k->u.time.w1),
        .dy = model_use(m, dd1), .dx = model_use(m, k->u.time.ds0),
        .dw = model_gradient(m, k->u.time.w1), .db = model_gradient(m, k->u.time.b1));
    RUN(m, silu_bwd, .x = model_use(m, k->u.time.d0), .dy = model_use(m, k->u.time.ds0),
        .dx = model_use(m, dd0));
    RUN(m, linear_bwd, .x = model_use(m, k->u.time.sinusoid), .w = model_weight(m, k->u.time.w0),
        .dy = model_use(m, dd0), .dw = model_gradient(m, k->u.time.w0),
        .db = model_gradient(m, k->u.time.b0));
    return DDPM_OK;
}

/* golden_check_blocks.c - residual and attention blocks of diffusers and guided-diffusion, built of
 * our ops with the fusions that the model uses: SiLU inside GroupNorm, bias, embedding and residual
 * inside the convolution. */
#include "golden_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A weight, its bias, and their gradients. */
struct layer {
    ddpm_tensor w, b, dw, db;
};

static ddpm_status layer_load(golden *g, const char *name, struct layer *l)
{
    char key[96];
    snprintf(key, sizeof key, "w.%s.weight", name);
    TRY(golden_load(g, key, &l->w));
    snprintf(key, sizeof key, "w.%s.bias", name);
    TRY(golden_load(g, key, &l->b));
    TRY(golden_like(g, &l->w, &l->dw));
    return golden_like(g, &l->b, &l->db);
}

static ddpm_status layer_compare(golden *g, const char *name, const struct layer *l)
{
    char key[96];
    snprintf(key, sizeof key, "g.w.%s.weight", name);
    TRY(golden_compare(g, key, &l->dw));
    snprintf(key, sizeof key, "g.w.%s.bias", name);
    return golden_compare(g, key, &l->db);
}

/* ---- residual block ---- */

struct resblock {
    struct layer norm1, conv1, emb_proj, norm2, conv2, skip;
    bool has_skip, film;
    int resample; /* -1 down, 0 none, 1 up */
    int groups;
    float eps;
    ddpm_tensor x, emb, dy; /* given */
    ddpm_tensor stats1, stats2, h1, h1r, xr, s, e, h2, h3,
        y;                /* saved: r after resampling, s = SiLU(emb) */
    ddpm_tensor dx, demb; /* results */
};

/* norm1, conv1, projection of the embedding, norm2, conv2, skip */
static const char *const resblock_names[2][6] = {
    {"norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"},
    {"in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3",
     "skip_connection"}};

static ddpm_status resblock_load(golden *g, const char *const names[6], bool guided,
                                 struct resblock *r)
{
    char key[96];
    int64_t groups = 32;
    double eps = 1e-5; /* guided-diffusion's fixed choice */
    if (!guided) {
        TRY(golden_case_int(g, "groups", &groups));
        TRY(golden_case_real(g, "eps", &eps));
    }
    const char *updown = json_string_value(json_object_get(g->setting, "updown"));
    r->groups = (int)groups;
    r->eps = (float)eps;
    r->film = json_is_true(json_object_get(g->setting, "use_scale_shift_norm"));
    r->resample = !updown ? 0 : strcmp(updown, "up") == 0 ? 1 : -1;
    TRY(golden_load(g, "in.x", &r->x));
    TRY(golden_load(g, "in.emb", &r->emb));
    TRY(golden_load(g, "gout.y", &r->dy));
    TRY(layer_load(g, names[0], &r->norm1));
    TRY(layer_load(g, names[1], &r->conv1));
    TRY(layer_load(g, names[2], &r->emb_proj));
    TRY(layer_load(g, names[3], &r->norm2));
    TRY(layer_load(g, names[4], &r->conv2));
    snprintf(key, sizeof key, "w.%s.weight", names[5]);
    r->has_skip = golden_has(g, key);
    return r->has_skip ? layer_load(g, names[5], &r->skip) : DDPM_OK;
}

static ddpm_status resample(golden *g, int way, const ddpm_tensor *x, ddpm_tensor *y)
{
    if (way > 0) return g->ops->upsample2(g->be, &(struct upsample2_args){.x = x, .y = y});
    return g->ops->avgpool2(g->be, &(struct avgpool2_args){.x = x, .y = y});
}

static ddpm_status resample_bwd(golden *g, int way, const ddpm_tensor *dy, ddpm_tensor *dx)
{
    if (way > 0)
        return g->ops->upsample2_bwd(g->be, &(struct upsample2_bwd_args){.dy = dy, .dx = dx});
    return g->ops->avgpool2_bwd(g->be, &(struct avgpool2_bwd_args){.dy = dy, .dx = dx});
}

static ddpm_status resblock_reserve(golden *g, struct resblock *r)
{
    const int64_t n = r->x.dim[0], height = r->dy.dim[1], width = r->dy.dim[2], c = r->x.dim[3],
                  k = r->dy.dim[3];
    const int64_t stats[3] = {n, r->groups, 2};
    TRY(golden_empty(g, 3, stats, &r->stats1));
    TRY(golden_empty(g, 3, stats, &r->stats2));
    TRY(golden_like(g, &r->x, &r->h1));
    TRY(golden_like(g, &r->x, &r->dx));
    TRY(golden_like(g, &r->emb, &r->s));
    TRY(golden_like(g, &r->emb, &r->demb));
    TRY(golden_empty(g, 2, (int64_t[]){n, r->emb_proj.b.dim[0]}, &r->e));
    TRY(golden_like(g, &r->dy, &r->h2));
    TRY(golden_like(g, &r->dy, &r->h3));
    TRY(golden_like(g, &r->dy, &r->y));
    r->h1r = r->h1;
    r->xr = r->x;
    if (!r->resample) return DDPM_OK;
    REQUIRE(c == k, FORMAT, "%s: a resampling block changes its width", g->path);
    TRY(golden_empty(g, 4, (int64_t[]){n, height, width, c}, &r->h1r));
    return golden_empty(g, 4, (int64_t[]){n, height, width, c}, &r->xr);
}

static ddpm_status resblock_forward(golden *g, struct resblock *r)
{
    const struct ops *ops = g->ops;
    const int64_t k = r->dy.dim[3];
    ddpm_tensor scale = {0}, shift = {0};
    if (r->film) scale = ddpm_tensor_slice(&r->e, 0, k), shift = ddpm_tensor_slice(&r->e, k, k);
    TRY(ops->groupnorm(g->be, &(struct groupnorm_args){.x1 = &r->x,
                                                       .gamma = &r->norm1.w,
                                                       .beta = &r->norm1.b,
                                                       .groups = r->groups,
                                                       .eps = r->eps,
                                                       .silu = true,
                                                       .stats = &r->stats1,
                                                       .y = &r->h1}));
    if (r->resample) {
        TRY(resample(g, r->resample, &r->h1, &r->h1r));
        TRY(resample(g, r->resample, &r->x, &r->xr));
    }
    TRY(ops->silu(g->be, &(struct silu_args){.x = &r->emb, .y = &r->s}));
    TRY(ops->linear(g->be,
                    &(struct linear_args){
                        .x = &r->s, .w = &r->emb_proj.w, .bias = &r->emb_proj.b, .y = &r->e}));
    TRY(ops->conv2d(g->be, &(struct conv2d_args){.x = &r->h1r,
                                                 .w = &r->conv1.w,
                                                 .bias = &r->conv1.b,
                                                 .emb = r->film ? NULL : &r->e,
                                                 .stride = 1,
                                                 .pad_top = 1,
                                                 .pad_left = 1,
                                                 .pad_bottom = 1,
                                                 .pad_right = 1,
                                                 .y = &r->h2}));
    TRY(ops->groupnorm(g->be, &(struct groupnorm_args){.x1 = &r->h2,
                                                       .gamma = &r->norm2.w,
                                                       .beta = &r->norm2.b,
                                                       .scale = r->film ? &scale : NULL,
                                                       .shift = r->film ? &shift : NULL,
                                                       .groups = r->groups,
                                                       .eps = r->eps,
                                                       .silu = true,
                                                       .stats = &r->stats2,
                                                       .y = &r->h3}));
    if (r->has_skip)
        TRY(ops->conv2d(
            g->be, &(struct conv2d_args){
                       .x = &r->xr, .w = &r->skip.w, .bias = &r->skip.b, .stride = 1, .y = &r->y}));
    return ops->conv2d(g->be, &(struct conv2d_args){.x = &r->h3,
                                                    .w = &r->conv2.w,
                                                    .bias = &r->conv2.b,
                                                    .residual = r->has_skip ? &r->y : &r->xr,
                                                    .stride = 1,
                                                    .pad_top = 1,
                                                    .pad_left = 1,
                                                    .pad_bottom = 1,
                                                    .pad_right = 1,
                                                    .y = &r->y});
}

/* Gradient of a 3x3 convolution with its weights'. */
static ddpm_status conv3_bwd(golden *g, struct layer *l, const ddpm_tensor *x,
                             const ddpm_tensor *dy, ddpm_tensor *dx, ddpm_tensor *demb)
{
    TRY(g->ops->conv2d_bwd_filter(g->be, &(struct conv2d_bwd_filter_args){.x = x,
                                                                          .dy = dy,
                                                                          .stride = 1,
                                                                          .pad_top = 1,
                                                                          .pad_left = 1,
                                                                          .pad_bottom = 1,
                                                                          .pad_right = 1,
                                                                          .dw = &l->dw,
                                                                          .db = &l->db,
                                                                          .demb = demb}));
    return g->ops->conv2d_bwd_data(g->be, &(struct conv2d_bwd_data_args){.dy = dy,
                                                                         .w = &l->w,
                                                                         .stride = 1,
                                                                         .pad_top = 1,
                                                                         .pad_left = 1,
                                                                         .pad_bottom = 1,
                                                                         .pad_right = 1,
                                                                         .dx = dx});
}

/* What reaches x past the convolutions, at x's own resolution: the share that norm1's gradient
 * adds. */
static ddpm_status skip_bwd(golden *g, struct resblock *r, ddpm_tensor *out)
{
    *out = r->dy;
    if (r->has_skip) {
        TRY(golden_like(g, &r->xr, out));
        TRY(g->ops->conv2d_bwd_filter(
            g->be,
            &(struct conv2d_bwd_filter_args){
                .x = &r->xr, .dy = &r->dy, .stride = 1, .dw = &r->skip.dw, .db = &r->skip.db}));
        TRY(g->ops->conv2d_bwd_data(
            g->be,
            &(struct conv2d_bwd_data_args){.dy = &r->dy, .w = &r->skip.w, .stride = 1, .dx = out}));
    }
    if (!r->resample) return DDPM_OK;
    const ddpm_tensor at_output = *out;
    TRY(golden_like(g, &r->x, out));
    return resample_bwd(g, r->resample, &at_output, out);
}

static ddpm_status resblock_backward(golden *g, struct resblock *r)
{
    const struct ops *ops = g->ops;
    const int64_t k = r->dy.dim[3];
    ddpm_tensor dh3, dh2, dh1r, dh1, de, ds, side, scale = {0}, shift = {0}, dscale = {0},
                                                   dshift = {0};
    TRY(golden_like(g, &r->h3, &dh3));
    TRY(golden_like(g, &r->h2, &dh2));
    TRY(golden_like(g, &r->h1r, &dh1r));
    TRY(golden_like(g, &r->h1, &dh1));
    TRY(golden_like(g, &r->e, &de));
    TRY(golden_like(g, &r->s, &ds));
    if (r->film) {
        scale = ddpm_tensor_slice(&r->e, 0, k), shift = ddpm_tensor_slice(&r->e, k, k);
        dscale = ddpm_tensor_slice(&de, 0, k), dshift = ddpm_tensor_slice(&de, k, k);
    }
    TRY(conv3_bwd(g, &r->conv2, &r->h3, &r->dy, &dh3, NULL));
    TRY(ops->groupnorm_bwd(g->be,
                           &(struct groupnorm_bwd_args){.dy = &dh3,
                                                        .x1 = &r->h2,
                                                        .gamma = &r->norm2.w,
                                                        .beta = &r->norm2.b,
                                                        .scale = r->film ? &scale : NULL,
                                                        .shift = r->film ? &shift : NULL,
                                                        .stats = &r->stats2,
                                                        .groups = r->groups,
                                                        .silu = true,
                                                        .dx1 = &dh2,
                                                        .dgamma = &r->norm2.dw,
                                                        .dbeta = &r->norm2.db,
                                                        .dscale = r->film ? &dscale : NULL,
                                                        .dshift = r->film ? &dshift : NULL}));
    TRY(conv3_bwd(g, &r->conv1, &r->h1r, &dh2, &dh1r, r->film ? NULL : &de));
    TRY(ops->linear_bwd(g->be, &(struct linear_bwd_args){.x = &r->s,
                                                         .w = &r->emb_proj.w,
                                                         .dy = &de,
                                                         .dx = &ds,
                                                         .dw = &r->emb_proj.dw,
                                                         .db = &r->emb_proj.db}));
    TRY(ops->silu_bwd(g->be, &(struct silu_bwd_args){.x = &r->emb, .dy = &ds, .dx = &r->demb}));
    if (r->resample)
        TRY(resample_bwd(g, r->resample, &dh1r, &dh1));
    else
        dh1 = dh1r;
    TRY(skip_bwd(g, r, &side));
    return ops->groupnorm_bwd(g->be, &(struct groupnorm_bwd_args){.dy = &dh1,
                                                                  .x1 = &r->x,
                                                                  .gamma = &r->norm1.w,
                                                                  .beta = &r->norm1.b,
                                                                  .stats = &r->stats1,
                                                                  .groups = r->groups,
                                                                  .silu = true,
                                                                  .add1 = &side,
                                                                  .dx1 = &r->dx,
                                                                  .dgamma = &r->norm1.dw,
                                                                  .dbeta = &r->norm1.db});
}

ddpm_status golden_resblock(golden *g)
{
    const bool guided = strstr(st_metadata(g->file, "kind"), "guided") != NULL;
    const char *const *names = resblock_names[guided];
    struct resblock r = {0};
    TRY(resblock_load(g, names, guided, &r));
    TRY(resblock_reserve(g, &r));
    TRY(resblock_forward(g, &r));
    TRY(resblock_backward(g, &r));
    TRY(golden_compare(g, "out.y", &r.y));
    TRY(golden_compare(g, "g.in.x", &r.dx));
    TRY(golden_compare(g, "g.in.emb", &r.demb));
    const struct layer *layers[6] = {&r.norm1, &r.conv1, &r.emb_proj, &r.norm2, &r.conv2, &r.skip};
    for (int i = 0; i < 5 + r.has_skip; i++)
        TRY(layer_compare(g, names[i], layers[i]));
    return DDPM_OK;
}

/* ---- attention block: y = x + out(attention(projections(GroupNorm(x)))) ---- */

struct attention_block {
    struct layer norm, qkv[3], out; /* guided-diffusion: qkv[0] is the joint projection */
    bool is_joint;
    int groups;
    float eps, scale;
    ddpm_tensor x, dy, h, stats, qkv_all, o, lse, y;
    ddpm_tensor part[3], dpart[3]; /* [N,T,heads,D] views of qkv_all and its gradient */
    ddpm_tensor dh, dqkv_all, d_o, dx;
};

static ddpm_status attention_block_load(golden *g, struct attention_block *a, int64_t *heads,
                                        bool *is_new)
{
    int64_t groups = 32, width = -1;
    double eps = 1e-5;
    a->is_joint = strstr(st_metadata(g->file, "kind"), "guided") != NULL;
    TRY(golden_load(g, "in.x", &a->x));
    TRY(golden_load(g, "gout.y", &a->dy));
    if (a->is_joint) {
        TRY(golden_case_int(g, "num_heads", heads));
        TRY(golden_case_int(g, "num_head_channels", &width));
        if (width > 0) *heads = a->x.dim[3] / width;
        *is_new = json_is_true(json_object_get(g->setting, "use_new_attention_order"));
        TRY(layer_load(g, "norm", &a->norm));
        TRY(layer_load(g, "qkv", &a->qkv[0]));
        TRY(layer_load(g, "proj_out", &a->out));
    } else {
        TRY(golden_case_int(g, "heads", heads));
        TRY(golden_case_int(g, "groups", &groups));
        TRY(golden_case_real(g, "eps", &eps));
        *is_new = true;
        TRY(layer_load(g, "group_norm", &a->norm));
        TRY(layer_load(g, "to_q", &a->qkv[0]));
        TRY(layer_load(g, "to_k", &a->qkv[1]));
        TRY(layer_load(g, "to_v", &a->qkv[2]));
        TRY(layer_load(g, "to_out.0", &a->out));
    }
    REQUIRE(*heads > 0 && a->x.dim[3] % *heads == 0, FORMAT, "%s: %lld heads", g->path,
            (long long)*heads);
    a->groups = (int)groups;
    a->eps = (float)eps;
    return DDPM_OK;
}

static ddpm_status attention_block_reserve(golden *g, struct attention_block *a, int64_t heads,
                                           bool is_new)
{
    const int64_t n = a->x.dim[0], length = a->x.dim[1] * a->x.dim[2], c = a->x.dim[3],
                  d = c / heads;
    a->scale = 1.0f / sqrtf((float)d);
    TRY(golden_like(g, &a->x, &a->h));
    TRY(golden_like(g, &a->x, &a->dh));
    TRY(golden_like(g, &a->x, &a->y));
    TRY(golden_like(g, &a->x, &a->dx));
    TRY(golden_empty(g, 3, (int64_t[]){n, a->groups, 2}, &a->stats));
    TRY(golden_empty(g, 2, (int64_t[]){n * length, 3 * c}, &a->qkv_all));
    TRY(golden_like(g, &a->qkv_all, &a->dqkv_all));
    TRY(golden_empty(g, 4, (int64_t[]){n, length, heads, d}, &a->o));
    TRY(golden_like(g, &a->o, &a->d_o));
    TRY(golden_empty(g, 3, (int64_t[]){n, heads, length}, &a->lse));
    for (int i = 0; i < 3; i++) {
        a->part[i] = (ddpm_tensor){.data = (float *)a->qkv_all.data + i * (is_new ? c : d),
                                   .dtype = DDPM_F32,
                                   .rank = 4,
                                   .dim = {n, length, heads, d},
                                   .stride = {length * 3 * c, 3 * c, is_new ? d : 3 * d, 1}};
        a->dpart[i] = a->part[i];
        a->dpart[i].data = (float *)a->dqkv_all.data + i * (is_new ? c : d);
    }
    return DDPM_OK;
}

/* A 1x1 convolution's weight [O,1,1,I] as a matrix; matrices stay. */
static ddpm_tensor as_matrix(const ddpm_tensor *w)
{
    return ddpm_tensor_2d(w->data, w->dim[0], ddpm_tensor_count(w) / w->dim[0]);
}

static ddpm_status attention_block_forward(golden *g, struct attention_block *a)
{
    const struct ops *ops = g->ops;
    const int64_t c = a->x.dim[3], rows = a->qkv_all.dim[0];
    const ddpm_tensor h = ddpm_tensor_2d(a->h.data, rows, c),
                      o = ddpm_tensor_2d(a->o.data, rows, c);
    ddpm_tensor y = ddpm_tensor_2d(a->y.data, rows, c), w;
    TRY(ops->groupnorm(g->be, &(struct groupnorm_args){.x1 = &a->x,
                                                       .gamma = &a->norm.w,
                                                       .beta = &a->norm.b,
                                                       .groups = a->groups,
                                                       .eps = a->eps,
                                                       .stats = &a->stats,
                                                       .y = &a->h}));
    for (int i = 0; i < (a->is_joint ? 1 : 3); i++) {
        ddpm_tensor part = a->is_joint ? a->qkv_all : ddpm_tensor_slice(&a->qkv_all, i * c, c);
        w = as_matrix(&a->qkv[i].w);
        TRY(ops->linear(g->be,
                        &(struct linear_args){.x = &h, .w = &w, .bias = &a->qkv[i].b, .y = &part}));
    }
    TRY(ops->attention(g->be, &(struct attention_args){.q = &a->part[0],
                                                       .k = &a->part[1],
                                                       .v = &a->part[2],
                                                       .scale = a->scale,
                                                       .o = &a->o,
                                                       .lse = &a->lse}));
    w = as_matrix(&a->out.w);
    TRY(ops->linear(g->be, &(struct linear_args){.x = &o, .w = &w, .bias = &a->out.b, .y = &y}));
    return ops->add(g->be, &(struct add_args){.a = &a->y, .b = &a->x, .y = &a->y});
}

static ddpm_status attention_block_backward(golden *g, struct attention_block *a)
{
    const struct ops *ops = g->ops;
    const int64_t c = a->x.dim[3], rows = a->qkv_all.dim[0];
    const ddpm_tensor h = ddpm_tensor_2d(a->h.data, rows, c),
                      o = ddpm_tensor_2d(a->o.data, rows, c),
                      dy = ddpm_tensor_2d(a->dy.data, rows, c);
    ddpm_tensor dh = ddpm_tensor_2d(a->dh.data, rows, c),
                d_o = ddpm_tensor_2d(a->d_o.data, rows, c), w = as_matrix(&a->out.w),
                dw = as_matrix(&a->out.dw);
    TRY(ops->linear_bwd(g->be,
                        &(struct linear_bwd_args){
                            .x = &o, .w = &w, .dy = &dy, .dx = &d_o, .dw = &dw, .db = &a->out.db}));
    TRY(ops->attention_bwd(g->be, &(struct attention_bwd_args){.q = &a->part[0],
                                                               .k = &a->part[1],
                                                               .v = &a->part[2],
                                                               .o = &a->o,
                                                               .lse = &a->lse,
                                                               .d_o = &a->d_o,
                                                               .scale = a->scale,
                                                               .dq = &a->dpart[0],
                                                               .dk = &a->dpart[1],
                                                               .dv = &a->dpart[2]}));
    for (int i = 0; i < (a->is_joint ? 1 : 3); i++) {
        const ddpm_tensor part =
            a->is_joint ? a->dqkv_all : ddpm_tensor_slice(&a->dqkv_all, i * c, c);
        w = as_matrix(&a->qkv[i].w);
        dw = as_matrix(&a->qkv[i].dw);
        TRY(ops->linear_bwd(g->be, &(struct linear_bwd_args){.x = &h,
                                                             .w = &w,
                                                             .dy = &part,
                                                             .accumulate = i > 0,
                                                             .dx = &dh,
                                                             .dw = &dw,
                                                             .db = &a->qkv[i].db}));
    }
    return ops->groupnorm_bwd(g->be, &(struct groupnorm_bwd_args){.dy = &a->dh,
                                                                  .x1 = &a->x,
                                                                  .gamma = &a->norm.w,
                                                                  .beta = &a->norm.b,
                                                                  .stats = &a->stats,
                                                                  .groups = a->groups,
                                                                  .add1 = &a->dy,
                                                                  .dx1 = &a->dx,
                                                                  .dgamma = &a->norm.dw,
                                                                  .dbeta = &a->norm.db});
}

ddpm_status golden_attention_block(golden *g)
{
    struct attention_block a = {0};
    int64_t heads;
    bool is_new;
    TRY(attention_block_load(g, &a, &heads, &is_new));
    TRY(attention_block_reserve(g, &a, heads, is_new));
    TRY(attention_block_forward(g, &a));
    TRY(attention_block_backward(g, &a));
    TRY(golden_compare(g, "out.y", &a.y));
    TRY(golden_compare(g, "g.in.x", &a.dx));
    TRY(layer_compare(g, a.is_joint ? "norm" : "group_norm", &a.norm));
    TRY(layer_compare(g, a.is_joint ? "proj_out" : "to_out.0", &a.out));
    if (a.is_joint) return layer_compare(g, "qkv", &a.qkv[0]);
    TRY(layer_compare(g, "to_q", &a.qkv[0]));
    TRY(layer_compare(g, "to_k", &a.qkv[1]));
    return layer_compare(g, "to_v", &a.qkv[2]);
}

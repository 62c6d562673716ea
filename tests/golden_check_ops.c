/* golden_check_ops.c - single ops of PyTorch's record: forward, and every gradient, through the
 * backend's table.
 *
 * Keys are those of golden/README.md: in.*, w.*, out.*, gout.*, g.*. */
#include "golden_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static ddpm_status check_conv2d(golden *g)
{
    ddpm_tensor x, w, b, y, dy, dx, dw, db;
    int64_t stride, pad = 0, right = 0, bottom = 0;
    TRY(golden_case_int(g, "stride", &stride));
    if (golden_case_has(g, "padding")) TRY(golden_case_int(g, "padding", &pad));
    if (golden_case_has(g, "pad_right")) TRY(golden_case_int(g, "pad_right", &right));
    if (golden_case_has(g, "pad_bottom")) TRY(golden_case_int(g, "pad_bottom", &bottom));
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "w.weight", &w));
    TRY(golden_load(g, "w.bias", &b));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_like(g, &dy, &y));
    TRY(golden_like(g, &x, &dx));
    TRY(golden_like(g, &w, &dw));
    TRY(golden_like(g, &b, &db));
    const int s = (int)stride, before = (int)pad, after_x = (int)(pad + right),
              after_y = (int)(pad + bottom);
    TRY(g->ops->conv2d(g->be, &(struct conv2d_args){.x = &x,
                                                    .w = &w,
                                                    .bias = &b,
                                                    .stride = s,
                                                    .pad_top = before,
                                                    .pad_left = before,
                                                    .pad_bottom = after_y,
                                                    .pad_right = after_x,
                                                    .y = &y}));
    TRY(g->ops->conv2d_bwd_data(g->be, &(struct conv2d_bwd_data_args){.dy = &dy,
                                                                      .w = &w,
                                                                      .stride = s,
                                                                      .pad_top = before,
                                                                      .pad_left = before,
                                                                      .pad_bottom = after_y,
                                                                      .pad_right = after_x,
                                                                      .dx = &dx}));
    TRY(g->ops->conv2d_bwd_filter(g->be, &(struct conv2d_bwd_filter_args){.x = &x,
                                                                          .dy = &dy,
                                                                          .stride = s,
                                                                          .pad_top = before,
                                                                          .pad_left = before,
                                                                          .pad_bottom = after_y,
                                                                          .pad_right = after_x,
                                                                          .dw = &dw,
                                                                          .db = &db}));
    TRY(golden_compare(g, "out.y", &y));
    TRY(golden_compare(g, "g.in.x", &dx));
    TRY(golden_compare(g, "g.w.weight", &dw));
    return golden_compare(g, "g.w.bias", &db);
}

static ddpm_status check_linear(golden *g)
{
    ddpm_tensor x, w, b, y, dy, dx, dw, db;
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "w.weight", &w));
    TRY(golden_load(g, "w.bias", &b));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_like(g, &dy, &y));
    TRY(golden_like(g, &x, &dx));
    TRY(golden_like(g, &w, &dw));
    TRY(golden_like(g, &b, &db));
    TRY(g->ops->linear(g->be, &(struct linear_args){.x = &x, .w = &w, .bias = &b, .y = &y}));
    TRY(g->ops->linear_bwd(
        g->be,
        &(struct linear_bwd_args){.x = &x, .w = &w, .dy = &dy, .dx = &dx, .dw = &dw, .db = &db}));
    TRY(golden_compare(g, "out.y", &y));
    TRY(golden_compare(g, "g.in.x", &dx));
    TRY(golden_compare(g, "g.w.weight", &dw));
    return golden_compare(g, "g.w.bias", &db);
}

/* ops/groupnorm, groupnorm_silu, groupnorm_scaleshift_silu */
static ddpm_status check_groupnorm(golden *g)
{
    const bool silu = strstr(st_metadata(g->file, "kind"), "silu") != NULL,
               film = golden_has(g, "in.scale");
    ddpm_tensor x, gamma, beta, scale, shift, dscale, dshift, stats, y, dy, dx, dgamma, dbeta;
    int64_t groups;
    double eps;
    TRY(golden_case_int(g, "groups", &groups));
    TRY(golden_case_real(g, "eps", &eps));
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "w.norm.weight", &gamma));
    TRY(golden_load(g, "w.norm.bias", &beta));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_like(g, &x, &y));
    TRY(golden_like(g, &x, &dx));
    TRY(golden_like(g, &gamma, &dgamma));
    TRY(golden_like(g, &beta, &dbeta));
    TRY(golden_empty(g, 3, (int64_t[]){x.dim[0], groups, 2}, &stats));
    if (film) {
        TRY(golden_load(g, "in.scale", &scale));
        TRY(golden_load(g, "in.shift", &shift));
        TRY(golden_like(g, &scale, &dscale));
        TRY(golden_like(g, &shift, &dshift));
    }
    TRY(g->ops->groupnorm(g->be, &(struct groupnorm_args){.x1 = &x,
                                                          .gamma = &gamma,
                                                          .beta = &beta,
                                                          .scale = film ? &scale : NULL,
                                                          .shift = film ? &shift : NULL,
                                                          .groups = (int)groups,
                                                          .eps = (float)eps,
                                                          .silu = silu,
                                                          .stats = &stats,
                                                          .y = &y}));
    TRY(g->ops->groupnorm_bwd(g->be,
                              &(struct groupnorm_bwd_args){.dy = &dy,
                                                           .x1 = &x,
                                                           .gamma = &gamma,
                                                           .beta = &beta,
                                                           .scale = film ? &scale : NULL,
                                                           .shift = film ? &shift : NULL,
                                                           .stats = &stats,
                                                           .groups = (int)groups,
                                                           .silu = silu,
                                                           .dx1 = &dx,
                                                           .dgamma = &dgamma,
                                                           .dbeta = &dbeta,
                                                           .dscale = film ? &dscale : NULL,
                                                           .dshift = film ? &dshift : NULL}));
    TRY(golden_compare(g, "out.y", &y));
    TRY(golden_compare(g, "g.in.x", &dx));
    TRY(golden_compare(g, "g.w.norm.weight", &dgamma));
    TRY(golden_compare(g, "g.w.norm.bias", &dbeta));
    if (!film) return DDPM_OK;
    TRY(golden_compare(g, "g.in.scale", &dscale));
    return golden_compare(g, "g.in.shift", &dshift);
}

/* Both head orders are strided views of one projection: legacy [head, {q,k,v}, d], new [{q,k,v},
 * head, d]. */
static ddpm_status check_attention(golden *g)
{
    ddpm_tensor qkv, o, d_o, dqkv, lse, part[3], dpart[3];
    int64_t heads, d;
    TRY(golden_case_int(g, "heads", &heads));
    TRY(golden_case_int(g, "head_channels", &d));
    const char *order = json_string_value(json_object_get(g->setting, "order"));
    REQUIRE(order, FORMAT, "%s: case has no \"order\"", g->path);
    const bool is_new = strcmp(order, "new") == 0;
    TRY(golden_load(g, "in.qkv", &qkv));
    TRY(golden_load(g, "gout.y", &d_o));
    const int64_t n = qkv.dim[0], length = qkv.dim[1];
    REQUIRE(heads > 0 && d > 0 && qkv.dim[3] == 3 * heads * d && d_o.dim[0] == n &&
                d_o.dim[1] == length && d_o.dim[3] == heads * d,
            FORMAT, "%s: qkv does not fit %lld heads of %lld", g->path, (long long)heads,
            (long long)d);
    TRY(golden_like(g, &qkv, &dqkv));
    TRY(golden_empty(g, 4, (int64_t[]){n, length, heads, d}, &o));
    TRY(golden_empty(g, 3, (int64_t[]){n, heads, length}, &lse));
    const ddpm_tensor *whole[2] = {&qkv, &dqkv};
    ddpm_tensor *parts[2] = {part, dpart};
    for (int w = 0; w < 2; w++)
        for (int i = 0; i < 3; i++)
            parts[w][i] = (ddpm_tensor){
                .data = (float *)whole[w]->data + i * d * (is_new ? heads : 1),
                .dtype = DDPM_F32,
                .rank = 4,
                .dim = {n, length, heads, d},
                .stride = {length * 3 * heads * d, 3 * heads * d, is_new ? d : 3 * d, 1}};
    const ddpm_tensor heads_o = ddpm_tensor_4d(d_o.data, n, length, heads, d);
    const float scale = 1.0f / sqrtf((float)d);
    TRY(g->ops->attention(
        g->be,
        &(struct attention_args){
            .q = &part[0], .k = &part[1], .v = &part[2], .scale = scale, .o = &o, .lse = &lse}));
    TRY(g->ops->attention_bwd(g->be, &(struct attention_bwd_args){.q = &part[0],
                                                                  .k = &part[1],
                                                                  .v = &part[2],
                                                                  .o = &o,
                                                                  .lse = &lse,
                                                                  .d_o = &heads_o,
                                                                  .scale = scale,
                                                                  .dq = &dpart[0],
                                                                  .dk = &dpart[1],
                                                                  .dv = &dpart[2]}));
    TRY(golden_compare(g, "out.y", &o));
    return golden_compare(g, "g.in.qkv", &dqkv);
}

static ddpm_status check_resample(golden *g)
{
    const bool up = strstr(st_metadata(g->file, "kind"), "upsample") != NULL;
    ddpm_tensor x, y, dy, dx;
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_like(g, &dy, &y));
    TRY(golden_like(g, &x, &dx));
    if (up) {
        TRY(g->ops->upsample2(g->be, &(struct upsample2_args){.x = &x, .y = &y}));
        TRY(g->ops->upsample2_bwd(g->be, &(struct upsample2_bwd_args){.dy = &dy, .dx = &dx}));
    } else {
        TRY(g->ops->avgpool2(g->be, &(struct avgpool2_args){.x = &x, .y = &y}));
        TRY(g->ops->avgpool2_bwd(g->be, &(struct avgpool2_bwd_args){.dy = &dy, .dx = &dx}));
    }
    TRY(golden_compare(g, "out.y", &y));
    return golden_compare(g, "g.in.x", &dx);
}

static ddpm_status check_silu(golden *g)
{
    ddpm_tensor x, y, dy, dx;
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "gout.y", &dy));
    TRY(golden_like(g, &x, &y));
    TRY(golden_like(g, &x, &dx));
    TRY(g->ops->silu(g->be, &(struct silu_args){.x = &x, .y = &y}));
    TRY(g->ops->silu_bwd(g->be, &(struct silu_bwd_args){.x = &x, .dy = &dy, .dx = &dx}));
    TRY(golden_compare(g, "out.y", &y));
    return golden_compare(g, "g.in.x", &dx);
}

/* softmax and log softmax of the same rows; the stored gradient is of both outputs together. */
static ddpm_status check_softmax(golden *g)
{
    ddpm_tensor x, y[2], dy[2], dx[2], sum;
    TRY(golden_load(g, "in.x", &x));
    TRY(golden_load(g, "gout.y", &dy[0]));
    TRY(golden_load(g, "gout.logy", &dy[1]));
    TRY(golden_like(g, &x, &sum));
    for (int log = 0; log < 2; log++) {
        TRY(golden_like(g, &x, &y[log]));
        TRY(golden_like(g, &x, &dx[log]));
        TRY(g->ops->softmax(g->be, &(struct softmax_args){.x = &x, .log = log, .y = &y[log]}));
        TRY(g->ops->softmax_bwd(
            g->be,
            &(struct softmax_bwd_args){.y = &y[log], .dy = &dy[log], .log = log, .dx = &dx[log]}));
    }
    TRY(g->ops->add(g->be, &(struct add_args){.a = &dx[0], .b = &dx[1], .y = &sum}));
    TRY(golden_compare(g, "out.y", &y[0]));
    TRY(golden_compare(g, "out.logy", &y[1]));
    return golden_compare(g, "g.in.x", &sum);
}

/* loss = -log softmax(logits)[y]; the stored gradient is of gout.loss_mean * mean +
 * sum(gout.loss_per_sample * loss). */
static ddpm_status check_cross_entropy(golden *g)
{
    ddpm_tensor x, y, dy, dx, weight;
    const st_tensor *in_file;
    float *logp, *w, *dlogp, *loss, mean = 0;
    int64_t *label;
    double gmean;
    TRY(golden_load(g, "in.logits", &x));
    TRY(golden_load(g, "gout.loss_per_sample", &weight));
    TRY(golden_load_scalar(g, "gout.loss_mean", &gmean));
    const int64_t n = x.dim[0], classes = x.dim[1];
    TRY(golden_find(g, "in.y", 1, &in_file));
    REQUIRE(in_file->shape[0] == n && weight.dim[0] == n, FORMAT,
            "%s: in.y does not fit the logits", g->path);
    TRY(golden_host(g, (size_t)n * sizeof *label, &label));
    TRY(st_read_i64(g->file, in_file, label));
    TRY(golden_like(g, &x, &y));
    TRY(golden_like(g, &x, &dx));
    TRY(g->ops->softmax(g->be, &(struct softmax_args){.x = &x, .log = true, .y = &y}));
    TRY(golden_floats(g, &y, &logp));
    TRY(golden_floats(g, &weight, &w));
    TRY(golden_host(g, (size_t)(n * classes) * sizeof *dlogp, &dlogp));
    TRY(golden_host(g, (size_t)n * sizeof *loss, &loss));
    for (int64_t i = 0; i < n; i++) {
        REQUIRE(label[i] >= 0 && label[i] < classes, FORMAT, "%s: label %lld", g->path,
                (long long)label[i]);
        loss[i] = -logp[i * classes + label[i]];
        mean += loss[i] / (float)n;
        dlogp[i * classes + label[i]] = -((float)gmean / (float)n + w[i]);
    }
    dy = dx;
    TRY(golden_upload(g, dlogp, (size_t)(n * classes) * sizeof *dlogp, &dy.data));
    TRY(g->ops->softmax_bwd(
        g->be, &(struct softmax_bwd_args){.y = &y, .dy = &dy, .log = true, .dx = &dx}));
    TRY(golden_compare_f32(g, "out.loss_per_sample", loss, n));
    TRY(golden_compare_f32(g, "out.loss_mean", &mean, 1));
    return golden_compare(g, "g.in.logits", &dx);
}

static ddpm_status check_embedding(golden *g)
{
    ddpm_tensor table, y, dy, dtable;
    int32_t *label;
    TRY(golden_load(g, "w.weight", &table));
    TRY(golden_load(g, "gout.emb", &dy));
    TRY(golden_load_i32(g, "in.y", 0, 0, table.dim[0] - 1, &label));
    TRY(golden_like(g, &dy, &y));
    TRY(golden_like(g, &table, &dtable));
    TRY(g->ops->embedding(g->be,
                          &(struct embedding_args){.table = &table, .label = label, .y = &y}));
    TRY(g->ops->embedding_bwd(
        g->be, &(struct embedding_bwd_args){.dy = &dy, .label = label, .dtable = &dtable}));
    TRY(golden_compare(g, "out.emb", &y));
    return golden_compare(g, "g.w.weight", &dtable);
}

/* The training loss with target = eps: mean over images of the op's mean over pixels. */
static ddpm_status check_mse(golden *g)
{
    ddpm_tensor out, target, zero, dout, loss;
    float *per_image, *gradient, mean = 0, *tcoef;
    int32_t *t;
    double gout;
    TRY(golden_load(g, "in.pred", &out));
    TRY(golden_load(g, "in.target", &target));
    TRY(golden_load_scalar(g, "gout.loss", &gout));
    TRY(golden_like(g, &out, &zero));
    TRY(golden_like(g, &out, &dout));
    const int64_t n = out.dim[0], count = ddpm_tensor_count(&out);
    TRY(golden_empty(g, 1, (int64_t[]){n}, &loss));
    int32_t ones[64];
    REQUIRE(n <= 64, FORMAT, "%s: %lld images", g->path, (long long)n);
    for (int i = 0; i < n; i++)
        ones[i] = 1;
    TRY(golden_upload(g, ones, (size_t)n * sizeof *ones, &t));
    TRY(golden_upload(g, (float[]){0, 1, 0, 1}, 4 * sizeof(float), &tcoef));
    TRY(g->ops->diffusion_loss(g->be,
                               &(struct diffusion_loss_args){.x0 = &zero,
                                                             .eps = &target,
                                                             .out = &out,
                                                             .t = t,
                                                             .tcoef = tcoef,
                                                             .scale = (float)(gout / (double)n),
                                                             .loss = &loss,
                                                             .dout = &dout}));
    TRY(golden_floats(g, &loss, &per_image));
    TRY(golden_floats(g, &dout, &gradient));
    for (int i = 0; i < n; i++)
        mean += per_image[i] / (float)n;
    TRY(golden_compare_f32(g, "out.loss", &mean, 1));
    TRY(golden_compare(g, "g.in.pred", &dout));
    for (int64_t i = 0; i < count; i++)
        gradient[i] = -gradient[i];
    TRY(ddpm_backend_upload(g->be, dout.data, gradient, (size_t)count * sizeof(float)));
    return golden_compare(g, "g.in.target", &dout);
}

/* The exact values; float frequencies and arguments err by up to about 6e-8 t, hence a limit that
 * grows with t. */
static ddpm_status check_time_embedding(golden *g)
{
    ddpm_tensor t, y;
    float *time, *found, *expected;
    const char *name;
    json_t *sub;
    TRY(golden_load(g, "in.t", &t));
    TRY(golden_floats(g, &t, &time));
    json_object_foreach(g->setting, name, sub)
    {
        const int64_t n = t.dim[0], dim = json_integer_value(json_object_get(sub, "dim"));
        const json_t *flip = json_object_get(sub, "flip_sin_to_cos");
        char key[96];
        REQUIRE(dim > 0 && dim < 4096, FORMAT, "%s: case %s has dim %lld", g->path, name,
                (long long)dim);
        snprintf(key, sizeof key, "out.%s", name);
        ddpm_tensor truth;
        TRY(golden_load(g, key, &truth));
        REQUIRE(ddpm_tensor_count(&truth) == n * dim, FORMAT, "%s: %s does not fit", g->path, key);
        TRY(golden_empty(g, 2, (int64_t[]){n, dim}, &y));
        TRY(g->ops->time_embedding(
            g->be, &(struct time_embedding_args){.t = &t,
                                                 .sin_cos = flip ? !json_is_true(flip) : false,
                                                 .shift = (float)json_number_value(
                                                     json_object_get(sub, "downscale_freq_shift")),
                                                 .y = &y}));
        TRY(golden_floats(g, &y, &found));
        TRY(golden_floats(g, &truth, &expected));
        double worst = 0, limit = 0, share = -1;
        for (int64_t i = 0; i < n * dim; i++) {
            const double e = fabs((double)found[i] - expected[i]),
                         l = 1e-7 * fmax(time[i / dim], 10);
            if (!(e / l <= share)) share = e / l, worst = e, limit = l;
        }
        if (!(worst <= g->worst)) g->worst = worst; /* sine and cosine: absolute is relative */
        golden_report(g, key, worst, limit);
    }
    return DDPM_OK;
}

ddpm_status golden_op(golden *g)
{
    static const struct {
        const char *kind;
        golden_routine run;
    } ops[] = {
        {"ops/conv2d", check_conv2d},
        {"ops/linear", check_linear},
        {"ops/groupnorm", check_groupnorm},
        {"ops/groupnorm_silu", check_groupnorm},
        {"ops/groupnorm_scaleshift_silu", check_groupnorm},
        {"ops/attention", check_attention},
        {"ops/avgpool2", check_resample},
        {"ops/upsample_nearest2", check_resample},
        {"ops/silu", check_silu},
        {"ops/softmax", check_softmax},
        {"ops/cross_entropy", check_cross_entropy},
        {"ops/embedding", check_embedding},
        {"ops/mse", check_mse},
        {"ops/timestep_embedding", check_time_embedding},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (strcmp(st_metadata(g->file, "kind"), ops[i].kind) == 0) return ops[i].run(g);
    return DDPM_OK; /* nothing compared: the caller reports the kind as skipped */
}

/* cudnn_forms.c - calls of ops.h as cuDNN's graphs.
 *
 * A 1x1 convolution whose kernel is a slice of a wider one (the two halves of a shortcut over a skip connection) is a dense
 * product over pixels here: cuDNN's convolutions take no sliced kernels, its products take any strides. The rows of such a
 * product are all pixels of the batch, so x and y have to be evenly spaced from one row of pixels to the next. */
#include "cudnn_forms.h"

#include "fail.h"
#include "views.h"

#include <string.h>

void cudnn_forms_release(struct cudnn_forms *f)
{
    for (int i = 0; i < f->n; i++)
        cudnn_graph_free(f->form[i].graph);
    f->n = 0;
}

bool cudnn_form_gives_sums(const char *name)
{
    return strcmp(name, CUDNN_FORM_SUMS) == 0 || strcmp(name, CUDNN_FORM_GRADIENT) == 0;
}

/* Takes the graph of a builder that went well; after a failure what was there is released. */
static ddpm_status add_form(struct cudnn_forms *f, const char *name, unsigned left, ddpm_status s, struct cudnn_graph *graph)
{
    if (s)
        cudnn_forms_release(f);
    else
        f->form[f->n++] = (struct cudnn_form){.graph = graph, .name = name, .left = left};
    return s;
}

static bool is_strict(ddpm_dtype dtype, const struct cudnn_plan_rules *rules)
{
    return dtype == DDPM_F32 && !rules->uses_tf32;
}

/* ---- views of images as matrices ---- */

static bool is_slice(const ddpm_tensor *w)
{
    return w->stride[0] != w->dim[1] * w->dim[2] * w->dim[3];
}

/* SHAPE where pixels are not evenly spaced. */
static ddpm_status pixels(const ddpm_tensor *t, ddpm_tensor *out)
{
    REQUIRE(view_pixels(t, out), SHAPE, "a 1x1 convolution of a sliced kernel: its image's pixels are not evenly spaced");
    return DDPM_OK;
}

static ddpm_status add_matmul(struct cudnn_forms *f, unsigned left, const ddpm_tensor *a, const ddpm_tensor *b,
                              const ddpm_tensor *c, const ddpm_tensor *bias, const ddpm_tensor *residual)
{
    struct cudnn_graph *g = NULL;
    const struct cudnn_matmul_args args = {.a = a, .b = b, .c = c, .bias = bias, .residual = residual};
    const ddpm_status s = cudnn_graph_matmul(&args, &g);
    return add_form(f, "matmul", left, s, g);
}

/* ---- convolutions ---- */

static ddpm_status sliced_conv(const struct conv2d_args *a, struct cudnn_forms *out)
{
    ddpm_tensor x, y, residual;
    TRY(pixels(a->x, &x));
    TRY(pixels(a->y, &y));
    if (a->residual) TRY(pixels(a->residual, &residual));
    const ddpm_tensor w = view_kernel(a->w), wt = view_flipped(&w);
    if (!a->emb) return add_matmul(out, 0, &x, &wt, &y, a->bias, a->residual ? &residual : NULL);
    return add_matmul(out, CUDNN_LEFT_EPILOGUE, &x, &wt, &y, NULL, NULL);
}

/* Smaller images GroupNorm keeps in shared memory, and needs no sums (kernels/groupnorm.cu); backward with dy beside them
 * (groupnorm_bwd.cu). Engines with sums take whole packs of channels: up to 9.28 there is none for the first convolution's 1
 * or 3. */
enum { LARGEST_HELD = 32 * 32, LARGEST_HELD_BACKWARD = LARGEST_HELD / 2, PACK = 8 };

static bool wants_sums(const struct conv2d_args *a)
{
    const int64_t *y = a->y->dim;
    return a->sum && y[1] * y[2] > LARGEST_HELD && y[3] % PACK == 0 && a->x->dim[3] % PACK == 0;
}

ddpm_status cudnn_forms_conv2d(const struct conv2d_args *a, const struct cudnn_plan_rules *rules, struct cudnn_forms *out)
{
    *out = (struct cudnn_forms){0};
    if (is_slice(a->w)) return sliced_conv(a, out);
    struct cudnn_conv_args args = {.x = a->x,
                                   .w = a->w,
                                   .y = a->y,
                                   .stride = a->stride,
                                   .pad_top = a->pad_top,
                                   .pad_left = a->pad_left,
                                   .pad_bottom = a->pad_bottom,
                                   .pad_right = a->pad_right,
                                   .bias = a->bias,
                                   .emb = a->emb,
                                   .residual = a->residual};
    struct cudnn_graph *g = NULL;
    const bool has_epilogue = a->bias || a->emb || a->residual, is_compiled = !is_strict(a->x->dtype, rules);
    const bool is_precompiled = !a->emb && !a->residual;
    if (wants_sums(a) && is_compiled) {
        args.sums = true;
        const ddpm_status s = cudnn_graph_conv(&args, &g);
        TRY(add_form(out, CUDNN_FORM_SUMS, 0, s, g));
        args.sums = false;
    }
    if (has_epilogue && (is_precompiled || is_compiled)) {
        const ddpm_status s = cudnn_graph_conv(&args, &g);
        TRY(add_form(out, "fused", 0, s, g));
    }
    args.bias = args.emb = args.residual = NULL;
    const ddpm_status s = cudnn_graph_conv(&args, &g);
    return add_form(out, "plain", has_epilogue ? CUDNN_LEFT_EPILOGUE : 0, s, g);
}

static bool wants_gradient(const struct conv2d_bwd_data_args *a)
{
    const int64_t *dx = a->dx->dim;
    return a->norm.x && dx[1] * dx[2] > LARGEST_HELD_BACKWARD && dx[3] % PACK == 0 && a->dy->dim[3] % PACK == 0;
}

ddpm_status cudnn_forms_conv2d_bwd_data(const struct conv2d_bwd_data_args *a, const struct cudnn_plan_rules *rules,
                                        struct cudnn_forms *out)
{
    *out = (struct cudnn_forms){0};
    if (is_slice(a->w)) {
        ddpm_tensor dx, dy;
        TRY(pixels(a->dx, &dx));
        TRY(pixels(a->dy, &dy));
        const ddpm_tensor w = view_kernel(a->w);
        return add_matmul(out, 0, &dy, &w, &dx, NULL, a->accumulate ? &dx : NULL);
    }
    struct cudnn_graph *g = NULL;
    struct cudnn_conv_bwd_data_args args = {.dx = a->dx,
                                            .w = a->w,
                                            .dy = a->dy,
                                            .stride = a->stride,
                                            .pad_top = a->pad_top,
                                            .pad_left = a->pad_left,
                                            .pad_bottom = a->pad_bottom,
                                            .pad_right = a->pad_right};
    if (wants_gradient(a) && !is_strict(a->dx->dtype, rules)) {
        args.x = a->norm.x;
        args.scale_shift = args.sums = true;
        const ddpm_status s = cudnn_graph_conv_bwd_data(&args, &g);
        TRY(add_form(out, CUDNN_FORM_GRADIENT, 0, s, g));
        args.x = NULL;
        args.scale_shift = args.sums = false;
    }
    args.beta = a->accumulate ? 1 : 0;
    const ddpm_status s = cudnn_graph_conv_bwd_data(&args, &g);
    return add_form(out, "plain", 0, s, g);
}

static unsigned left_sums(const ddpm_tensor *db, const ddpm_tensor *demb)
{
    return db || demb ? CUDNN_LEFT_SUMS : 0;
}

static ddpm_status sliced_filter(const struct conv2d_bwd_filter_args *a, struct cudnn_forms *out)
{
    ddpm_tensor x, dy;
    TRY(pixels(a->x, &x));
    TRY(pixels(a->dy, &dy));
    const ddpm_tensor dw = view_kernel(a->dw), dyt = view_flipped(&dy);
    return add_matmul(out, left_sums(a->db, a->demb), &dyt, &x, &dw, NULL, &dw);
}

ddpm_status cudnn_forms_conv2d_bwd_filter(const struct conv2d_bwd_filter_args *a, const struct cudnn_plan_rules *rules,
                                          struct cudnn_forms *out)
{
    (void)rules;
    *out = (struct cudnn_forms){0};
    if (is_slice(a->dw)) return sliced_filter(a, out);
    struct cudnn_graph *g = NULL;
    struct cudnn_conv_bwd_filter_args args = {.x = a->x,
                                              .dw = a->dw,
                                              .dy = a->dy,
                                              .stride = a->stride,
                                              .pad_top = a->pad_top,
                                              .pad_left = a->pad_left,
                                              .pad_bottom = a->pad_bottom,
                                              .pad_right = a->pad_right,
                                              .beta = 1};
    const unsigned left = left_sums(a->db, a->demb);
    ddpm_status s = cudnn_graph_conv_bwd_filter(&args, &g);
    TRY(add_form(out, "f32", left, s, g));
    if (a->x->dtype == DDPM_F32) return DDPM_OK;
    ddpm_tensor rounded = *a->dw;
    rounded.dtype = a->x->dtype;
    args.dw = &rounded;
    args.beta = 0;
    s = cudnn_graph_conv_bwd_filter(&args, &g);
    return add_form(out, "rounded", left | CUDNN_LEFT_ADD, s, g);
}

/* ---- attention ---- */

ddpm_status cudnn_forms_attention(const struct attention_args *a, const struct cudnn_plan_rules *rules,
                                  struct cudnn_forms *out)
{
    (void)rules;
    *out = (struct cudnn_forms){0};
    if (a->q->dtype != DDPM_BF16) return DDPM_OK;
    struct cudnn_graph *g = NULL;
    const struct cudnn_attention_args args = {
        .q = a->q, .k = a->k, .v = a->v, .o = a->o, .scale = a->scale, .has_lse = a->lse != NULL};
    const ddpm_status s = cudnn_graph_attention(&args, &g);
    return add_form(out, "fused", 0, s, g);
}

ddpm_status cudnn_forms_attention_bwd(const struct attention_bwd_args *a, const struct cudnn_plan_rules *rules,
                                      struct cudnn_forms *out)
{
    *out = (struct cudnn_forms){0};
    if (a->q->dtype != DDPM_BF16) return DDPM_OK;
    struct cudnn_graph *g = NULL;
    const struct cudnn_attention_bwd_args args = {.q = a->q,
                                                  .k = a->k,
                                                  .v = a->v,
                                                  .o = a->o,
                                                  .d_o = a->d_o,
                                                  .dq = a->dq,
                                                  .dk = a->dk,
                                                  .dv = a->dv,
                                                  .scale = a->scale,
                                                  .deterministic = rules->is_deterministic};
    const ddpm_status s = cudnn_graph_attention_bwd(&args, &g);
    return add_form(out, "fused", 0, s, g);
}

/* ---- dense layers ---- */

ddpm_status cudnn_forms_linear(const struct linear_args *a, const struct cudnn_plan_rules *rules, struct cudnn_forms *out)
{
    (void)rules;
    *out = (struct cudnn_forms){0};
    const ddpm_tensor wt = view_flipped(a->w);
    return add_matmul(out, 0, a->x, &wt, a->y, a->bias, NULL);
}

ddpm_status cudnn_forms_linear_bwd_data(const struct linear_bwd_args *a, const struct cudnn_plan_rules *rules,
                                        struct cudnn_forms *out)
{
    (void)rules;
    *out = (struct cudnn_forms){0};
    if (!a->dx) return DDPM_OK;
    return add_matmul(out, 0, a->dy, a->w, a->dx, NULL, a->accumulate ? a->dx : NULL);
}

ddpm_status cudnn_forms_linear_bwd_weights(const struct linear_bwd_args *a, const struct cudnn_plan_rules *rules,
                                           struct cudnn_forms *out)
{
    (void)rules;
    *out = (struct cudnn_forms){0};
    const ddpm_tensor dyt = view_flipped(a->dy);
    return add_matmul(out, left_sums(a->db, NULL), &dyt, a->x, a->dw, NULL, a->dw);
}

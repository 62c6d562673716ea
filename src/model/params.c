/* params.c - the flat array of weights: which parameter lies where, under which name, in which
 * layout.
 *
 * Files hold diffusers' names and PyTorch's layouts (OIHW); the flat array holds the kernels'
 * layout [out,kh,kw,in], so that the optimiser, the norm and the EMAs are one pass over one array.
 */
#include "blocks.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16 }; /* elements: one cache line */

/* Room for one more element of a growing array. */
static bool grow(void **array, int n, int *cap, size_t size)
{
    if (n < *cap) return true;
    const int wanted = *cap ? 2 * *cap : 64;
    void *p = realloc(*array, (size_t)wanted * size);
    if (!p) return false;
    *array = p;
    *cap = wanted;
    return true;
}

static void builder_fail(struct builder *b, const char *what)
{
    if (!b->s) b->s = FAIL(NOMEM, "model: no memory for its %s", what);
}

char *build_name(struct builder *b, const char *fmt, ...)
{
    char text[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    char *name = strdup(text);
    if (!name) builder_fail(b, "names");
    return name;
}

int build_param(struct builder *b, const char *leaf, int rank, const int64_t *shape,
                enum param_init init, int64_t fan_in, int64_t fan_out, bool follows)
{
    ddpm_model *m = b->m;
    if (b->s) return 0;
    if (!grow((void **)&m->params, m->n_params, &m->cap_params, sizeof *m->params)) {
        builder_fail(b, "parameter table");
        return 0;
    }
    struct param *p = &m->params[m->n_params];
    *p = (struct param){.init = init, .fan_in = fan_in, .fan_out = fan_out};
    p->info.name = *b->prefix ? build_name(b, "%s.%s", b->prefix, leaf) : build_name(b, "%s", leaf);
    p->info.rank = rank;
    p->info.count = 1;
    for (int i = 0; i < rank; i++)
        p->info.count *= shape[i];
    /* the file's order: [out,in,kh,kw] */
    const int file_order[4] = {0, 3, 1, 2};
    for (int i = 0; i < rank; i++)
        p->info.shape[i] = shape[rank == 4 ? file_order[i] : i];
    p->shape = rank == 4   ? ddpm_tensor_4d(NULL, shape[0], shape[1], shape[2], shape[3])
               : rank == 2 ? ddpm_tensor_2d(NULL, shape[0], shape[1])
                           : ddpm_tensor_1d(NULL, shape[0]);
    p->info.offset = follows ? m->arena_count : (m->arena_count + ALIGN - 1) / ALIGN * ALIGN;
    m->arena_count = p->info.offset + p->info.count;
    m->total += p->info.count;
    if (b->block) b->block->parameters += p->info.count;
    return m->n_params++;
}

int build_weight(struct builder *b, int64_t offset, ddpm_tensor shape)
{
    ddpm_model *m = b->m;
    if (b->s) return 0;
    if (!grow((void **)&m->weights, m->n_weights, &m->cap_weights, sizeof *m->weights)) {
        builder_fail(b, "weight table");
        return 0;
    }
    m->weights[m->n_weights] = (struct weight){.w = shape, .g = shape, .offset = offset};
    return m->n_weights++;
}

int build_param_weight(struct builder *b, int param)
{
    if (b->s) return 0;
    const struct param *p = &b->m->params[param];
    return build_weight(b, p->info.offset, p->shape);
}

struct conv build_conv(struct builder *b, const char *leaf, int in, int out, int kernel, int stride,
                       int padding, bool zero)
{
    char name[96];
    const int64_t area = (int64_t)kernel * kernel;
    snprintf(name, sizeof name, "%s.weight", leaf);
    const int w = build_param(b, name, 4, (int64_t[]){out, kernel, kernel, in},
                              zero ? INIT_ZERO_WEIGHT : INIT_WEIGHT, in * area, out * area, false);
    snprintf(name, sizeof name, "%s.bias", leaf);
    const int bias = build_param(b, name, 1, (int64_t[]){out}, zero ? INIT_ZERO_BIAS : INIT_BIAS,
                                 in * area, out, false);
    struct conv c = {.in = in, .out = out, .kernel = kernel, .stride = stride};
    c.w = build_param_weight(b, w);
    c.b = build_param_weight(b, bias);
    c.pad_top = c.pad_left = c.pad_bottom = c.pad_right = padding;
    return c;
}

struct norm build_norm(struct builder *b, const char *leaf, int c)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", leaf);
    const int gamma = build_param(b, name, 1, (int64_t[]){c}, INIT_ONE, c, c, false);
    snprintf(name, sizeof name, "%s.bias", leaf);
    const int beta = build_param(b, name, 1, (int64_t[]){c}, INIT_ZERO, c, c, false);
    struct norm n;
    n.gamma = build_param_weight(b, gamma);
    n.beta = build_param_weight(b, beta);
    n.stats = build_slot(b, 3, (int64_t[]){0, b->m->cfg.norm_groups, 2});
    return n;
}

struct block *build_block(struct builder *b, enum block_kind kind, const char *name)
{
    ddpm_model *m = b->m;
    static struct block nowhere; /* a builder that failed goes on without a place to write */
    if (!b->s && !grow((void **)&m->blocks, m->n_blocks, &m->cap_blocks, sizeof *m->blocks))
        builder_fail(b, "block table");
    if (b->s) return &nowhere;
    struct block *k = &m->blocks[m->n_blocks++];
    *k = (struct block){.kind = kind, .x1 = NO_SLOT, .x2 = NO_SLOT, .y = NO_SLOT};
    k->name = build_name(b, "%s", name);
    b->block = k;
    b->prefix = k->name ? k->name : "";
    return k;
}

void build_macs(struct builder *b, double macs)
{
    b->block->macs += macs;
}

const ddpm_tensor *model_weight(const ddpm_model *m, int weight)
{
    return weight < 0 ? NULL : &m->weights[weight].w;
}

const ddpm_tensor *model_kernel(const ddpm_model *m, int weight)
{
    if (weight < 0) return NULL;
    return m->is_half ? &m->weights[weight].half : &m->weights[weight].w;
}

ddpm_tensor *model_gradient(const ddpm_model *m, int weight)
{
    return weight < 0 ? NULL : &m->weights[weight].g;
}

void ddpm_model_bind(ddpm_model *m, float *weights, float *grads)
{
    m->bound = weights;
    for (int i = 0; i < m->n_weights; i++) {
        struct weight *w = &m->weights[i];
        w->w.data = weights ? weights + w->offset : NULL;
        w->g.data = grads ? grads + w->offset : NULL;
    }
}

void ddpm_model_bind_half(ddpm_model *m, void *half)
{
    for (int i = 0; i < m->n_weights; i++) {
        struct weight *w = &m->weights[i];
        w->half = w->w;
        w->half.dtype = DDPM_BF16;
        w->half.data = half ? (uint16_t *)half + w->offset : NULL;
    }
}

const float *ddpm_model_weights(const ddpm_model *m)
{
    return m->bound;
}

/* ---- what callers see ---- */

int64_t ddpm_model_parameter_total(const ddpm_model *m)
{
    return m->total;
}

int ddpm_model_parameter_count(const ddpm_model *m)
{
    return m->n_params;
}

const ddpm_parameter *ddpm_model_parameter(const ddpm_model *m, int i)
{
    return &m->params[i].info;
}

int64_t ddpm_model_arena_count(const ddpm_model *m)
{
    return (m->arena_count + ALIGN - 1) / ALIGN * ALIGN;
}

void ddpm_model_to_file_layout(const ddpm_model *m, int i, const float *arena, float *file)
{
    const ddpm_parameter *p = &m->params[i].info;
    arena += p->offset;
    if (p->rank != 4) {
        memcpy(file, arena, (size_t)p->count * sizeof *file);
        return;
    }
    const int64_t in = p->shape[1], area = p->shape[2] * p->shape[3];
    for (int64_t o = 0; o < p->shape[0]; o++)
        for (int64_t c = 0; c < in; c++)
            for (int64_t k = 0; k < area; k++)
                file[(o * in + c) * area + k] = arena[(o * area + k) * in + c];
}

void ddpm_model_from_file_layout(const ddpm_model *m, int i, const float *file, float *arena)
{
    const ddpm_parameter *p = &m->params[i].info;
    arena += p->offset;
    if (p->rank != 4) {
        memcpy(arena, file, (size_t)p->count * sizeof *arena);
        return;
    }
    const int64_t in = p->shape[1], area = p->shape[2] * p->shape[3];
    for (int64_t o = 0; o < p->shape[0]; o++)
        for (int64_t k = 0; k < area; k++)
            for (int64_t c = 0; c < in; c++)
                arena[(o * area + k) * in + c] = file[(o * in + c) * area + k];
}

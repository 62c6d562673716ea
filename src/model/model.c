/* model.c - the life of a model: create, reserve, free; and what it reports of itself. */
#include "blocks.h"

#include <stdlib.h>

static void free_contents(ddpm_model *m)
{
    for (int i = 0; i < m->n_params; i++)
        free((char *)m->params[i].info.name);
    for (int i = 0; i < m->n_blocks; i++)
        free(m->blocks[i].name);
    free(m->params);
    free(m->weights);
    free(m->blocks);
    free(m->slots);
    free(m->grad);
    free(m->started);
}

void ddpm_model_free(ddpm_model *m)
{
    if (!m) return;
    if (m->be) ddpm_backend_release(m->be, m->step);
    free_contents(m);
    free(m);
}

ddpm_status ddpm_model_create(ddpm_backend *be, const ddpm_model_config *cfg, ddpm_model **out)
{
    const int levels = cfg->channel_mult.n;
    REQUIRE(levels >= 1 && levels <= DDPM_LIST_MAX, CONFIG,
            "model.channel_mult: %d levels, 1 to %d are possible", levels, DDPM_LIST_MAX);
    ddpm_model *m = calloc(1, sizeof *m);
    REQUIRE(m, NOMEM, "model: no memory for its tables");
    m->be = be;
    m->ops = backend_ops(be);
    m->cfg = *cfg;
    struct builder b = {.m = m};
    unet_build(&b);
    if (b.s) {
        ddpm_model_free(m);
        return b.s;
    }
    *out = m;
    return DDPM_OK;
}

/* Images are what bf16 is for; tensors of a few numbers an image (statistics, log-sums, embeddings) stay f32. */
ddpm_status ddpm_model_set_precision(ddpm_model *m, int precision, const char *key)
{
    REQUIRE(!m->step, BUG, "model: its precision is set after it was reserved");
    const bool is_half = precision == DDPM_PRECISION_BF16;
    REQUIRE(!is_half || ddpm_backend_takes_bf16(m->be), CONFIG, "%s: %s computes in fp32 alone; set it to fp32", key,
            ddpm_backend_name(m->be));
    m->is_half = is_half;
    for (int i = 0; i < m->n_slots; i++) {
        ddpm_tensor *t = &m->slots[i].tensor;
        t->dtype = is_half && t->rank == 4 ? DDPM_BF16 : DDPM_F32;
    }
    ddpm_model_bind_half(m, NULL); /* types and shapes of the kernels, for measuring */
    return DDPM_OK;
}

ddpm_dtype ddpm_model_activation(const ddpm_model *m)
{
    return m->is_half ? DDPM_BF16 : DDPM_F32;
}

const ddpm_model_config *ddpm_model_configuration(const ddpm_model *m)
{
    return &m->cfg;
}

ddpm_status ddpm_model_reserve(ddpm_model *m, int max_batch, bool training)
{
    if (m->step && m->max_batch >= max_batch && m->training == training) return DDPM_OK;
    ddpm_backend_release(m->be, m->step);
    m->step = NULL;
    m->max_batch = 0;
    size_t bytes;
    TRY(plan_reserve(m, max_batch, training, &bytes));
    void *step;
    TRY(ddpm_backend_alloc(m->be, bytes, &step));
    m->step = step;
    m->step_bytes = bytes;
    m->max_batch = max_batch;
    m->training = training;
    plan_place(m, m->step);
    return DDPM_OK;
}

ddpm_status ddpm_model_measure(ddpm_model *m, int batch, bool training, ddpm_model_memory *out)
{
    REQUIRE(!m->step, BUG, "model: measured after it was reserved");
    size_t bytes;
    TRY(plan_reserve(m, batch, training, &bytes));
    const size_t each = m->is_half ? sizeof(float) + sizeof(uint16_t) : sizeof(float);
    *out = (ddpm_model_memory){.weights_bytes = (size_t)ddpm_model_arena_count(m) * each,
                               .activation_bytes = bytes,
                               .scratch_bytes = ddpm_backend_scratch_bytes(m->be)};
    return DDPM_OK;
}

int ddpm_model_layer_count(const ddpm_model *m)
{
    return m->n_blocks;
}

static const char *const kind_names[] = {[BLOCK_TIME] = "time",    [BLOCK_CONV_IN] = "conv-in",
                                         [BLOCK_RES] = "resblock", [BLOCK_ATTENTION] = "attention",
                                         [BLOCK_DOWN] = "down",    [BLOCK_UP] = "up",
                                         [BLOCK_HEAD] = "head"};

/* Activations one block keeps from forward to backward, for one image. */
static int64_t saved_elements(const struct block *k)
{
    const int64_t pixels = k->h * k->w;
    switch (k->kind) {
    case BLOCK_RES:
        return pixels * ((int64_t)k->c1 + k->c2 + 3 * (int64_t)k->c);
    case BLOCK_ATTENTION:
        return pixels * 6 * k->c;
    case BLOCK_HEAD:
        return pixels * k->c1;
    default:
        return pixels * k->c;
    }
}

void ddpm_model_layer(const ddpm_model *m, int i, ddpm_layer_report *out)
{
    const struct block *k = &m->blocks[i];
    *out = (ddpm_layer_report){.name = k->name,
                               .kind = kind_names[k->kind],
                               .height = k->h,
                               .width = k->w,
                               .channels = k->c,
                               .parameters = k->parameters,
                               .macs = k->macs,
                               .saved_bytes =
                                   saved_elements(k) * (int64_t)ddpm_dtype_size(ddpm_model_activation(m))};
}

double ddpm_model_macs(const ddpm_model *m)
{
    double sum = 0;
    for (int i = 0; i < m->n_blocks; i++)
        sum += m->blocks[i].macs;
    return sum;
}

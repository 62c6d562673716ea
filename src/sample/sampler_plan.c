/* sampler_plan.c - one reverse step by the sampler's own code, on a backend that only notes calls. */
#include "ddpm/sample.h"

#include "fail.h"

#include <stdlib.h>

/* What the run reads and writes on the host; the images are dropped. */
struct host_side {
    uint64_t *index;
    int32_t *label;
    uint8_t *images;
};

static ddpm_status run_once(ddpm_sampler *s, const ddpm_model_config *m, int batch)
{
    const size_t n = (size_t)batch;
    ddpm_status st = DDPM_OK;
    struct host_side h = {.index = calloc(n, sizeof *h.index),
                          .label = calloc(n, sizeof *h.label),
                          .images = calloc(n, (size_t)(m->image_height * m->image_width * m->image_channels))};
    if (!h.index || !h.label || !h.images)
        st = FAIL(NOMEM, "sampler: no memory to plan a batch of %d", batch);
    else
        st = ddpm_sampler_run(s, 0, batch, h.index, m->num_classes ? h.label : NULL, h.images, NULL, NULL, NULL);
    free(h.index);
    free(h.label);
    free(h.images);
    return st;
}

ddpm_status ddpm_sampler_plan(ddpm_backend *be, const ddpm_config *cfg, int batch)
{
    ddpm_model *model = NULL;
    ddpm_sampler *s = NULL;
    void *weights = NULL, *half = NULL;
    ddpm_sample_config one_step = cfg->sample;
    one_step.spacing = (char[]){"1"};
    ddpm_status st = ddpm_model_create(be, &cfg->model, &model);
    if (!st) st = ddpm_model_set_precision(model, cfg->sample.precision, "sample.precision");
    if (!st) st = ddpm_backend_alloc(be, (size_t)ddpm_model_arena_count(model) * sizeof(float), &weights);
    if (!st && cfg->sample.precision == DDPM_PRECISION_BF16)
        st = ddpm_backend_alloc(be, (size_t)ddpm_model_arena_count(model) * 2, &half);
    if (!st) {
        ddpm_model_bind(model, weights, NULL);
        ddpm_model_bind_half(model, half);
        st = ddpm_sampler_create(be, model, &cfg->diffusion, &one_step, batch, &s);
    }
    if (!st) st = run_once(s, &cfg->model, batch);
    ddpm_sampler_free(s);
    ddpm_model_free(model);
    ddpm_backend_release(be, weights);
    ddpm_backend_release(be, half);
    return st;
}

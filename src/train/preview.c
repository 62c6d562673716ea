/* preview.c - a grid of samples in the middle of training: what the network has learnt so far.
 *
 * DDIM from the first EMA, by seeds that never change, so that grids of one run can be laid side by
 * side. The training model draws them itself, in inference mode on the step block it has: a second
 * network would double the memory. All that is needed beyond that is taken at the start. The last
 * batch is filled up with samples that nobody sees, so that every batch has one shape. Training is
 * not touched: noise has no state, the step block holds nothing between steps, and the weights are
 * bound again whatever happens. */
#include "trainer.h"

#include "ddpm/sample.h"
#include "fail.h"
#include "picture.h"

#include <stdio.h>
#include <stdlib.h>

struct preview {
    ddpm_sampler *sampler;
    int n, batch, rounded; /* images, at a time, images with those of filling up */
    uint8_t *images;       /* [rounded,h,w,c] */
    uint64_t *index;       /* [rounded] */
    int32_t *label;        /* [rounded]: the classes in turn */
};

static ddpm_status create_sampler(ddpm_trainer *t, struct preview *p)
{
    const int64_t T = t->cfg.diffusion.steps, steps = t->cfg.train.preview_steps;
    char spacing[24];
    snprintf(spacing, sizeof spacing, "%lld", (long long)(steps < T ? steps : T));
    ddpm_sample_config cfg = t->cfg.sample;
    cfg.sampler = DDPM_SAMPLER_DDIM;
    cfg.spacing = spacing;
    cfg.eta = 0;
    TRY(ddpm_sampler_create(t->be, t->model, &t->cfg.diffusion, &cfg, p->batch, &p->sampler));
    /* The sampler may have left the model with room for inference alone. */
    return ddpm_model_reserve(t->model, (int)t->micro_batch, true);
}

static ddpm_status create_arrays(const ddpm_trainer *t, struct preview *p)
{
    const size_t n = (size_t)p->rounded, image = (size_t)(t->h * t->w * t->c);
    const int64_t classes = t->cfg.model.num_classes;
    p->images = malloc(n * image);
    p->index = malloc(n * sizeof *p->index);
    p->label = malloc(n * sizeof *p->label);
    REQUIRE(p->images && p->index && p->label, NOMEM, "preview: %zu images of %zu bytes", n, image);
    for (size_t i = 0; i < n; i++) {
        p->index[i] = i;
        p->label[i] = classes ? (int32_t)((int64_t)i % classes) : 0;
    }
    return DDPM_OK;
}

ddpm_status preview_create(ddpm_trainer *t, struct preview **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    struct preview *p = calloc(1, sizeof *p);
    REQUIRE(p, NOMEM, "preview: %zu bytes", sizeof *p);
    p->n = (int)t->cfg.train.preview_images;
    p->batch = t->micro_batch < p->n ? (int)t->micro_batch : p->n;
    p->rounded = (p->n + p->batch - 1) / p->batch * p->batch;
    TRY_GOTO(fail, create_arrays(t, p));
    TRY_GOTO(fail, create_sampler(t, p));
    *out = p;
    return DDPM_OK;
fail:
    preview_free(p);
    return s;
}

void preview_free(struct preview *p)
{
    if (!p) return;
    ddpm_sampler_free(p->sampler);
    free(p->images);
    free(p->index);
    free(p->label);
    free(p);
}

static ddpm_status draw_images(struct preview *p, const ddpm_trainer *t, const volatile int *stop)
{
    const size_t image = (size_t)(t->h * t->w * t->c);
    for (int i = 0; i < p->rounded; i += p->batch)
        TRY(ddpm_sampler_run(p->sampler, (uint64_t)t->cfg.train.seed, p->batch, p->index + i,
                             t->cfg.model.num_classes ? p->label + i : NULL,
                             p->images + (size_t)i * image, NULL, NULL, stop));
    return DDPM_OK;
}

ddpm_status preview_draw(struct preview *p, ddpm_trainer *t, const char *path,
                         const volatile int *stop)
{
    ddpm_status s = trainer_bind(t, t->n_ema ? t->ema[0] : t->p, NULL);
    if (!s) s = draw_images(p, t, stop);
    TRY(trainer_rebind(t, s));
    return picture_grid(path, p->images, p->n, (int)t->h, (int)t->w, (int)t->c, 0);
}

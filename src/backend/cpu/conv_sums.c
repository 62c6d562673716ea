/* conv_sums.c - what is added to, and summed from, every pixel of a channel: bias and time embedding.
 *
 * Sums go in two levels, over the pixels of a row and then over rows, so that the rounding error of a large image
 * grows with H + W and not with H * W. */
#include "conv.h"

#include <string.h>

struct sums_call {
    const struct conv *s;
    const float *dy;
    float *sums;
};

#define CHANNELS 64 /* of a task */

static void sums_task(void *context, int64_t i, int thread)
{
    (void)thread;
    const struct sums_call *c = context;
    const struct conv *s = c->s;
    const int64_t n_blocks = conv_blocks(s->k, CHANNELS), n = i / n_blocks, k0 = i % n_blocks * CHANNELS;
    const int64_t k = s->k - k0 < CHANNELS ? s->k - k0 : CHANNELS;
    const float *dy = c->dy + n * s->ho * s->wo * s->k + k0;
    float *sum = c->sums + n * s->k + k0, row[CHANNELS];
    memset(sum, 0, (size_t)k * sizeof *sum);
    for (int64_t h = 0; h < s->ho; h++) {
        memset(row, 0, sizeof row);
        for (int64_t w = 0; w < s->wo; w++, dy += s->k)
            cpu_add_to(row, dy, k);
        cpu_add_to(sum, row, k);
    }
}

void conv_sums(ddpm_backend *be, const struct conv *s, const ddpm_tensor *dy, ddpm_tensor *db, ddpm_tensor *demb,
               float *sums)
{
    if (!db && !demb) return;
    struct sums_call c = {.s = s, .dy = conv_f32(dy), .sums = sums};
    cpu_run(be, s->n * conv_blocks(s->k, CHANNELS), sums_task, &c);
    for (int64_t n = 0; n < s->n; n++) {
        if (db) cpu_add_to(db->data, sums + n * s->k, s->k);
        if (demb) memcpy((float *)demb->data + n * demb->stride[0], sums + n * s->k, (size_t)s->k * sizeof(float));
    }
}

void conv_offsets(const struct conv *s, const ddpm_tensor *bias, const ddpm_tensor *emb, int64_t n, float *out)
{
    for (int64_t k = 0; k < s->k; k++)
        out[k] = (bias ? conv_f32(bias)[k] : 0) + (emb ? conv_f32(emb)[n * emb->stride[0] + k] : 0);
}

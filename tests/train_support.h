/* train_support.h - a pack and a configuration so small that a step takes milliseconds, for the tests of training. */
#ifndef TESTS_TRAIN_SUPPORT_H
#define TESTS_TRAIN_SUPPORT_H

#include "support.h"

#include "ddpm/train.h"

#include "safetensors.h"
#include "trainer.h"

#include <math.h>

enum { PACK_IMAGES = 24, PACK_SIDE = 8 };

/* PACK_IMAGES grey images of 8x8, bars of different place and brightness, labels 0, 1, 0, 1... `salt` gives other images
 * and another identity. */
static inline void train_write_pack(const char *path, int salt)
{
    st_writer *w;
    const int64_t n = PACK_IMAGES, images[] = {n, PACK_SIDE, PACK_SIDE, 1};
    char source[33];
    snprintf(source, sizeof source, "%032d", salt);
    assert_ok(st_writer_create(&w));
    assert_ok(st_add(w, "images", ST_U8, 4, images));
    assert_ok(st_add(w, "labels", ST_I64, 1, &n));
    assert_ok(st_add_metadata(w, "ddpm.kind", "pack"));
    assert_ok(st_add_metadata(w, "ddpm.classes", "[\"a\",\"b\"]"));
    assert_ok(st_add_metadata(w, "ddpm.source", source));
    assert_ok(st_add_metadata(w, "ddpm.shard", "0/1"));
    assert_ok(st_add_metadata(w, "ddpm.total", "24"));
    assert_ok(st_begin(w, path));
    for (int i = 0; i < PACK_IMAGES; i++) {
        uint8_t pixels[PACK_SIDE * PACK_SIDE];
        for (int j = 0; j < PACK_SIDE * PACK_SIDE; j++)
            pixels[j] = (j / PACK_SIDE + i + salt) % PACK_SIDE < 4 ? (uint8_t)(200 + i) : (uint8_t)(10 * (j % 3));
        assert_ok(st_put(w, pixels, sizeof pixels));
    }
    for (int64_t i = 0; i < PACK_IMAGES; i++) {
        const int64_t label = i % 2;
        assert_ok(st_put(w, &label, sizeof label));
    }
    assert_ok(st_finish(w));
}

/* Everything that is random is on: dropout, flips, two EMAs; and two micro-batches. */
static const char *const train_yaml =
    "model: {image_height: 8, image_width: 8, image_channels: 1, channels: 8, channel_mult: [1, 2],\n"
    "        num_res_blocks: 1, attention_resolutions: [4], norm_groups: 4, dropout: 0.1}\n"
    "diffusion: {schedule: cosine, steps: 50}\n"
    "data: {validation: 4, flip: true}\n"
    "train: {batch: 8, micro_batch: 4, steps: 1000, lr: 2e-3, warmup: 4, ema: [0.9, 0.99], seed: 7,\n"
    "        save_every: 1000, preview_every: 0, validate_every: 0, log_every: 5, preview_images: 3,\n"
    "        preview_steps: 4}\n";

/* train_yaml on DIR/pack.safetensors, which is written where it is missing, with the n keys of `set`. */
static inline void train_config(const char *dir, const char *const *set, int n, ddpm_config *cfg)
{
    char pack[SUPPORT_PATH], key[SUPPORT_PATH + 16];
    const char *all[16];
    support_join(pack, dir, "pack.safetensors");
    if (access(pack, F_OK) != 0) train_write_pack(pack, 0);
    snprintf(key, sizeof key, "data.pack=%s", pack);
    all[0] = key;
    for (int i = 0; i < n; i++)
        all[1 + i] = set[i];
    assert_ok(ddpm_config_parse(train_yaml, strlen(train_yaml), "tiny", all, n + 1, cfg));
}

/* A trainer with those keys; free with train_close. */
struct trained {
    ddpm_backend *be;
    ddpm_config cfg;
    ddpm_trainer *t;
};
static inline void train_open(const char *dir, int threads, const char *const *set, int n, struct trained *out)
{
    train_config(dir, set, n, &out->cfg);
    assert_ok(ddpm_backend_create("cpu", threads, &out->be));
    assert_ok(ddpm_trainer_create(out->be, &out->cfg, &out->t));
}
static inline void train_close(struct trained *x)
{
    ddpm_trainer_free(x->t);
    ddpm_backend_free(x->be);
    ddpm_config_free(&x->cfg);
}
static inline double train_steps(struct trained *x, int n)
{
    ddpm_step_result r = {0};
    for (int i = 0; i < n; i++)
        assert_ok(ddpm_trainer_step(x->t, &r));
    return r.loss;
}

/* Weights, moments and EMAs are the same in every byte. */
static inline void train_assert_same(const struct trained *a, const struct trained *b)
{
    const size_t bytes = (size_t)a->t->count * sizeof(float);
    assert_int_equal(a->t->count, b->t->count);
    assert_int_equal(a->t->step, b->t->step);
    assert_memory_equal(a->t->p, b->t->p, bytes);
    assert_memory_equal(a->t->m, b->t->m, bytes);
    assert_memory_equal(a->t->v, b->t->v, bytes);
    for (int k = 0; k < a->t->n_ema; k++)
        assert_memory_equal(a->t->ema[k], b->t->ema[k], bytes);
}

static inline void train_assert_same_files(const char *a, const char *b)
{
    size_t na, nb;
    char *x = support_read_file(a, &na), *y = support_read_file(b, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(x, y, na);
    free(x);
    free(y);
}

#endif

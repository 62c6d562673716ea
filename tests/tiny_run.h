/* tiny_run.h - a network of a few thousand weights and checkpoints of it, for the tests of what is made from checkpoints. */
#ifndef TESTS_TINY_RUN_H
#define TESTS_TINY_RUN_H

#include "support.h"

#include "ddpm/config.h"
#include "ddpm/model.h"

#include "checkpoint.h"
#include "philox.h"

static const char tiny_yaml[] = "model:\n"
                                "  image_height: 8\n"
                                "  image_width: 12\n"
                                "  image_channels: 1\n"
                                "  channels: 4\n"
                                "  channel_mult: [1, 2]\n"
                                "  num_res_blocks: 1\n"
                                "  attention_resolutions: [4]\n"
                                "  norm_groups: 2\n"
                                "diffusion:\n"
                                "  steps: 60\n"
                                "  schedule: cosine\n"
                                "train:\n"
                                "  ema: [0.9, 0.99]\n"
                                "sample:\n"
                                "  spacing: \"6\"\n"
                                "  batch: 8\n";

static inline ddpm_config tiny_config(int n_set, const char *const *set)
{
    ddpm_config c;
    assert_ok(ddpm_config_parse(tiny_yaml, sizeof tiny_yaml - 1, "tiny", set, n_set, &c));
    return c;
}

/* Weights that give a lively answer: the published initialisation leaves the last layers at zero. */
static inline float *tiny_arena(const ddpm_model *m, uint64_t seed)
{
    float *arena = calloc((size_t)ddpm_model_arena_count(m), sizeof *arena);
    assert_non_null(arena);
    ddpm_model_init(m, seed, arena);
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        for (int64_t k = 0; k < p->count; k++)
            arena[p->offset + k] +=
                0.2f * (philox_uniform(philox_draw(seed, PHILOX_TEST, 0, (uint64_t)i, (uint32_t)k).v[0]) - 0.5f);
    }
    return arena;
}

enum { TINY_EMA = 2, TINY_ARRAYS = 3 + TINY_EMA };

static inline checkpoint_counters tiny_counters(int64_t step)
{
    return (checkpoint_counters){.step = step,
                                 .updates = step,
                                 .seed = 3,
                                 .dataset = "00112233445566778899aabbccddeeff",
                                 .n_ema = TINY_EMA,
                                 .ema = {0.9, 0.99}};
}

/* arrays[k] is tiny_arena of seed + k; free each. */
static inline void tiny_arrays(const ddpm_model *m, uint64_t seed, float *arrays[TINY_ARRAYS])
{
    for (int k = 0; k < TINY_ARRAYS; k++)
        arrays[k] = tiny_arena(m, seed + (uint64_t)k);
}

/* A whole checkpoint at `path`. */
static inline void tiny_checkpoint(ddpm_backend *be, const char *path, const ddpm_config *cfg, int64_t step, uint64_t seed)
{
    ddpm_model *m;
    float *arrays[TINY_ARRAYS];
    const checkpoint_counters counters = tiny_counters(step);
    assert_ok(ddpm_model_create(be, &cfg->model, &m));
    tiny_arrays(m, seed, arrays);
    assert_ok(checkpoint_write(path, cfg, &counters, m, (const float *const *)arrays));
    for (int k = 0; k < TINY_ARRAYS; k++)
        free(arrays[k]);
    ddpm_model_free(m);
}

#endif

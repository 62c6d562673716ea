/* noise.c - Philox words and standard normals by the row, and the op gaussian.
 *
 * Sixteen blocks at a time go through the ten rounds side by side: the 32 x 32 -> 64 bit products vectorise, and so do
 * the polynomials of Box-Muller behind them. Words and normals are two loops over a short buffer, for one loop over both
 * would hold more values than there are registers. Cost per normal: about 2 ns on one core of a 3 GHz
 * machine, 20 times libm's; no memory is read. */
#include "noise.h"

#include "cpu.h"
#include "formulas.h"
#include "vector.h"

#define RUN 8192 /* elements of a task */

CPU_CLONES static void words_row(const struct noise_key *key, uint32_t block, int64_t n_blocks, uint32_t *restrict out)
{
    const struct noise_key k = *key;
    for (int64_t i = 0; i < n_blocks; i++) {
        const philox4 w = philox_draw(k.seed, k.purpose, k.step, k.index, block + (uint32_t)i);
        out[4 * i] = w.v[0];
        out[4 * i + 1] = w.v[1];
        out[4 * i + 2] = w.v[2];
        out[4 * i + 3] = w.v[3];
    }
}

CPU_CLONES static void normals_row(int64_t n_pairs, const uint32_t *restrict words, float *restrict out)
{
    for (int64_t i = 0; i < n_pairs; i++)
        formula_box_muller(words[2 * i], words[2 * i + 1], &out[2 * i], &out[2 * i + 1]);
}

const uint32_t *noise_words(const struct noise_key *key, int64_t first, int64_t count, uint32_t room[NOISE_ROOM])
{
    const int64_t skip = first % 4;
    words_row(key, (uint32_t)(first / 4), cpu_ceil_div(skip + count, 4), room);
    return room + skip;
}

const float *noise_normals(const struct noise_key *key, int64_t first, int64_t count, float room[NOISE_ROOM])
{
    uint32_t words[NOISE_ROOM];
    const int64_t skip = first % 4;
    noise_words(key, first, count, words);
    normals_row(2 * cpu_ceil_div(skip + count, 4), words, room);
    return room + skip;
}

struct gaussian {
    const struct gaussian_args *args;
    int64_t size, runs; /* of an image */
};

static void gaussian_task(void *context, int64_t task, int thread)
{
    const struct gaussian *g = context;
    const struct gaussian_args *a = g->args;
    const int64_t n = task / g->runs, begin = task % g->runs * RUN, end = cpu_min(g->size, begin + RUN);
    const struct noise_key key = noise_key_of(a->state, a->index, n, a->purpose, a->use_step);
    float *x = (float *)a->x->data + n * g->size;
    float room[NOISE_ROOM];
    (void)thread;
    for (int64_t at = begin; at < end; at += NOISE_PIECE) {
        const int64_t count = cpu_min(NOISE_PIECE, end - at);
        memcpy(x + at, noise_normals(&key, at, count, room), (size_t)count * sizeof *x);
    }
}

ddpm_status cpu_gaussian(ddpm_backend *be, const struct gaussian_args *a)
{
    const int64_t size = ddpm_tensor_count(a->x) / a->x->dim[0];
    struct gaussian g = {.args = a, .size = size, .runs = cpu_ceil_div(size, RUN)};
    if (!cpu_is_measuring(be)) cpu_run(be, a->x->dim[0] * g.runs, gaussian_task, &g);
    return DDPM_OK;
}

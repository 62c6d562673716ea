/* norm.h - what GroupNorm and its gradient share: how an image is cut, and what is drawn for dropout. */
#ifndef BACKEND_CPU_NORM_H
#define BACKEND_CPU_NORM_H

#include "cpu.h"
#include "vector.h"

#include <stddef.h>

/* A run of consecutive pixels of an image, all channels: about 64 KiB a tensor, so that two sweeps over it read memory
 * once. The cut follows from the shape alone. */
#define NORM_RUN 16384

struct norm_shape {
    int64_t n, pixels, c1, c2, c; /* c2 = 0 without a second source; c = c1 + c2 */
    int64_t groups, group;        /* group: channels of one */
    int64_t rows, runs;           /* pixels of a run; runs of an image */
    const float *x1, *x2;
};

/* Pixels begin .. begin+count of image n are a run. */
struct norm_run {
    int64_t n, begin, count;
};

static inline struct norm_run norm_run_at(const struct norm_shape *s, int64_t n, int64_t run)
{
    const int64_t begin = run * s->rows;
    return (struct norm_run){.n = n, .begin = begin, .count = cpu_min(s->rows, s->pixels - begin)};
}

/* One source within a run: its values, its channels, and where they begin among all. */
struct norm_part {
    int64_t at, c; /* offset of element (image n, pixel begin) in a tensor of this source's shape */
    int64_t first;
    const float *x;
};

static inline int norm_parts(const struct norm_shape *s, struct norm_run r, struct norm_part part[2])
{
    const int64_t pixel = r.n * s->pixels + r.begin;
    part[0] = (struct norm_part){.at = pixel * s->c1, .c = s->c1, .first = 0, .x = s->x1 + pixel * s->c1};
    if (!s->x2) return 1;
    part[1] = (struct norm_part){.at = pixel * s->c2, .c = s->c2, .first = s->c1, .x = s->x2 + pixel * s->c2};
    return 2;
}

/* Whole images to each thread (statistics, then use, of an image still in cache) where that keeps all threads busy;
 * else an image is shared. Both ways add in the same order. */
static inline bool norm_by_image(const ddpm_backend *be, const struct norm_shape *s)
{
    return s->n % cpu_threads(be) == 0 || s->n >= 4 * cpu_threads(be);
}

/* Cuts the work of either op. */
struct norm_shape norm_shape_of(const ddpm_tensor *x1, const ddpm_tensor *x2, int groups);

/* mean, slope and offset of formula_norm for each channel of image n: coef [3,C]. stats is [N,groups,2]. */
struct norm_affine {
    const float *gamma, *beta;
    const ddpm_tensor *scale, *shift; /* or NULL */
};
void norm_coefficients(const struct norm_shape *s, const struct norm_affine *a, const float *stats, int64_t n,
                       float *coef);

/* Dropout of one call; p == 0: none. */
struct norm_dropout {
    float p;
    uint32_t layer;
    const struct step_state *state;
    const uint64_t *index;
};
/* to[i] = from[i] * (0 or 1/(1-p)) for the elements of a run of [N,H,W,C]; to may be from. */
void norm_drop(const struct norm_shape *s, const struct norm_dropout *d, struct norm_run r, const float *from,
               float *to);

#endif

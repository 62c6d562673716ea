/* sampler_rows.h - the samplers there are, each a function that writes the last four numbers of a row.
 *
 * To add one: a line here, a file beside ancestral.c, a value of enum ddpm_sampler_kind. */
#ifndef DIFFUSION_SAMPLER_ROWS_H
#define DIFFUSION_SAMPLER_ROWS_H

#include "sampler.h"

#define SAMPLER_LIST(X)                                                                            \
    X(DDPM_SAMPLER_ANCESTRAL, ancestral)                                                           \
    X(DDPM_SAMPLER_DDIM, ddim)

/* x' = x0 * x0_hat + x * x_t + out * out + sigma * z */
typedef struct {
    double x0, x, out, sigma;
} reverse_weights;

/* From abar to abar_prev > abar; `last` adds no noise. */
#define X(kind, name)                                                                              \
    reverse_weights name##_weights(double abar, double abar_prev, const sampler_options *o, bool last);
SAMPLER_LIST(X)
#undef X

#endif

/* sampler.h - a sampler turns a schedule into one row of coefficients per step for ops.h's
 * reverse_step.
 *
 * To add one: a file beside ancestral.c, and a line in SAMPLER_LIST of sampler_rows.h. */
#ifndef DIFFUSION_SAMPLER_H
#define DIFFUSION_SAMPLER_H

#include "ddpm/diffusion.h"

/* { x0_x, x0_out, lo, hi, to_x0, to_x, to_out, sigma } of ops.h's reverse_step. */
typedef struct {
    float v[8];
} reverse_row;

typedef struct {
    int kind;         /* enum ddpm_sampler_kind */
    int objective;    /* enum ddpm_objective: what `out` is */
    int variance;     /* enum ddpm_variance, ancestral */
    double eta;       /* DDIM */
    bool clip;        /* x0_hat to [-1, 1] */
    bool network_eps; /* DDIM keeps the network's eps where x0_hat was clipped (diffusers); else eps
                       * is derived again from the clipped x0_hat (guided-diffusion) */
} sampler_options;

/* Row of step t (1..T) of the respaced schedule s. For t = 1 the ancestral sampler adds no noise
 * and DDIM ends at x0_hat. Ancestral: DDPM 2020, eq. 7 and algorithm 2. DDIM: Song 2021, eq. 12
 * and 16. */
void sampler_row(const ddpm_schedule *s, const sampler_options *o, int t, reverse_row *out);
/* The same with the abar of the step after given (diffusers' t - T/n is not always the next kept
 * step). `last` adds no noise; abar_prev = 1 is the way to x_0 itself. */
void sampler_row_between(double abar_t, double abar_prev, const sampler_options *o, bool last,
                         reverse_row *out);

#endif

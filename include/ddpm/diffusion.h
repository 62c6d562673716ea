/* diffusion.h - the forward process, its schedule in double, and the rows of every reverse step.
 *
 * Symbol      Paper                     Here
 * beta_t      DDPM eq. 2                beta[t]
 * alpha_t     1 - beta_t                alpha[t]
 * abar_t      prod alpha_s, eq. 4       abar[t], abar[0] = 1
 * beta~_t     eq. 7                     posterior_var[t] = beta (1 - abar[t-1]) / (1 - abar[t]);
 * [1] is 0 mu~_t       eq. 7                     posterior_x0[t] x0 + posterior_xt[t] x_t t
 * runs 1..T; arrays have T+1 entries, so t = 1 is no special case. */
#ifndef DDPM_DIFFUSION_H
#define DDPM_DIFFUSION_H

#include "ddpm/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ddpm_schedule {
    int T;                       /* steps kept */
    double *beta, *alpha, *abar; /* [T+1]; owned */
    double *posterior_var, *posterior_logvar, *posterior_x0, *posterior_xt;
    double
        *model_time; /* [T+1]: what the network is told: (original t) - 1; model_time[0] unused */
    int *original_t; /* [T+1]: the step of the unrespaced schedule; original_t[0] = 0 */
} ddpm_schedule;

/* posterior_logvar[1] is log posterior_var[2], as in guided-diffusion (for T = 1 log beta[1]).
 * linear: beta from beta_start to beta_end evenly; cosine: abar from cos^2, beta at most 0.999
 * [Nichol & Dhariwal 2021, eq. 17]. CONFIG, NOMEM. The identities of the table are asserted. */
ddpm_status ddpm_schedule_create(const ddpm_diffusion_config *cfg, ddpm_schedule **out);
/* From given betas [n] of t = 1..n (golden data, imported schedulers). */
ddpm_status ddpm_schedule_from_betas(const double *beta, int n, ddpm_schedule **out);
/* Keeps the n steps kept[0] < kept[1] < ... (each 1..T): beta'_k = 1 - abar[kept[k]] /
 * abar[kept[k-1]]. */
ddpm_status ddpm_schedule_respace(const ddpm_schedule *s, const int *kept, int n,
                                  ddpm_schedule **out);
void ddpm_schedule_free(ddpm_schedule *s); /* accepts NULL */

/* Parses sample.spacing for T steps into *kept (malloc'd, ascending, 1-based) of *n:
 *   ""           all
 *   "250"        guided-diffusion: evenly with both ends; "10,15,20": that many in each equal
 * section "ddim50"     guided-diffusion: the smallest whole stride that gives exactly 50 steps;
 * CONFIG names near counts "leading:20", "trailing:20", "linspace:20"   diffusers' timestep_spacing
 * CONFIG says what is allowed and for which counts. */
ddpm_status ddpm_spacing_parse(const char *text, int T, int **kept, int *n);

/* f32 [T+1][2] for ops: q_sample rows { sqrt(abar), sqrt(1-abar) }; target rows { c_x0, c_eps } of
 * an objective. */
void ddpm_schedule_q_rows(const ddpm_schedule *s, float *rows);
void ddpm_schedule_target_rows(const ddpm_schedule *s, int objective, float *rows);

/* x_t = sqrt(abar[t]) x0 + sqrt(1 - abar[t]) eps in double, for n elements: the oracle of the op.
 */
void ddpm_q_sample_f64(const ddpm_schedule *s, int t, const double *x0, const double *eps,
                       double *xt, int64_t n);

#ifdef __cplusplus
}
#endif
#endif

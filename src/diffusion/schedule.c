/* schedule.c - beta_t and everything that follows from it, in double.
 *
 * Job      one block of memory per schedule: the betas come in, abar and the posterior's coefficients go out.
 * Method   abar is the running product of 1 - beta. A respaced schedule copies abar at the kept steps instead of
 *          multiplying its own betas again, so that it equals the long one there to the last bit; beta' follows from it.
 * Checked  at the end of every construction: the identities of diffusion.h's table, by assert (they can only fail
 *          through a fault of this file: input is refused before).
 * Rejected float tables: 1 - abar[1] of the cosine schedule is 4e-5, of which float keeps three digits. */
#include "ddpm/diffusion.h"

#include "checked.h"
#include "fail.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define BETA_MAX_COSINE 0.999 /* Nichol & Dhariwal 2021, section 3.2 */
#define COSINE_OFFSET   0.008

static ddpm_status schedule_alloc(int T, ddpm_schedule **out)
{
    enum { ARRAYS = 8 };
    size_t doubles, bytes;
    const int64_t dim[] = {(int64_t)T + 1, ARRAYS};
    *out = NULL;
    REQUIRE(checked_product(dim, 2, sizeof(double), &doubles) &&
                checked_add(sizeof(ddpm_schedule), doubles, &bytes) &&
                checked_add(bytes, ((size_t)T + 1) * sizeof(int), &bytes),
            NOMEM, "schedule of %d steps does not fit in memory", T);
    ddpm_schedule *s = calloc(1, bytes);
    REQUIRE(s, NOMEM, "schedule of %d steps: %zu bytes", T, bytes);

    double *at = (double *)(s + 1);
    double **const arrays[ARRAYS] = {&s->beta,         &s->alpha,        &s->abar,
                                     &s->posterior_var, &s->posterior_logvar, &s->posterior_x0,
                                     &s->posterior_xt, &s->model_time};
    for (int i = 0; i < ARRAYS; i++, at += T + 1)
        *arrays[i] = at;
    s->original_t = (int *)at;
    s->T = T;
    *out = s;
    return DDPM_OK;
}

void ddpm_schedule_free(ddpm_schedule *s)
{
    free(s);
}

/* The identities that tie the arrays together: any posterior must reproduce q(x_{t-1} | x_0) when x_t is drawn from
 * q(x_t | x_0), in mean and in variance. */
static void check_identities(const ddpm_schedule *s)
{
#ifndef NDEBUG
    assert(s->abar[0] == 1.0 && s->posterior_var[1] == 0.0);
    for (int t = 1; t <= s->T; t++) {
        const double a = s->abar[t], ap = s->abar[t - 1];
        const double mean = s->posterior_x0[t] + s->posterior_xt[t] * sqrt(a);
        const double var = s->posterior_var[t] + s->posterior_xt[t] * s->posterior_xt[t] * (1 - a);
        assert(a > 0 && a < ap && s->original_t[t] > s->original_t[t - 1]);
        assert(fabs(s->alpha[t] * ap - a) <= 1e-13 * a);
        assert(fabs(mean - sqrt(ap)) <= 1e-9);
        assert(fabs(var - (1 - ap)) <= 1e-9);
    }
#else
    (void)s;
#endif
}

/* Everything that follows from beta, alpha, abar and original_t. */
static void derive(ddpm_schedule *s)
{
    s->abar[0] = s->alpha[0] = 1;
    for (int t = 1; t <= s->T; t++) {
        const double beta = s->beta[t], a = s->abar[t], ap = s->abar[t - 1];
        s->posterior_var[t] = beta * (1 - ap) / (1 - a);            /* eq. 7 */
        s->posterior_x0[t] = beta * sqrt(ap) / (1 - a);             /* eq. 7 */
        s->posterior_xt[t] = (1 - ap) * sqrt(s->alpha[t]) / (1 - a); /* eq. 7 */
        s->model_time[t] = s->original_t[t] - 1;
    }
    for (int t = 2; t <= s->T; t++)
        s->posterior_logvar[t] = log(s->posterior_var[t]);
    s->posterior_logvar[1] = s->T > 1 ? s->posterior_logvar[2] : log(s->beta[1]);
    check_identities(s);
}

ddpm_status ddpm_schedule_from_betas(const double *beta, int n, ddpm_schedule **out)
{
    *out = NULL;
    REQUIRE(n >= 1, CONFIG, "schedule: %d steps; at least 1 is needed", n);
    double product = 1;
    for (int i = 0; i < n; i++) {
        REQUIRE(beta[i] > 0 && beta[i] < 1, CONFIG,
                "schedule: beta of step %d is %g; each must lie between 0 and 1, both excluded", i + 1, beta[i]);
        const double next = product * (1 - beta[i]);
        REQUIRE(next > 0 && next < product, CONFIG,
                "schedule: at step %d, beta %g, abar leaves what double can hold (%g)", i + 1, beta[i], next);
        product = next;
    }
    ddpm_schedule *s;
    TRY(schedule_alloc(n, &s));
    s->abar[0] = 1;
    for (int t = 1; t <= n; t++) {
        s->beta[t] = beta[t - 1];
        s->alpha[t] = 1 - s->beta[t];
        s->abar[t] = s->abar[t - 1] * s->alpha[t];
        s->original_t[t] = t;
    }
    derive(s);
    *out = s;
    return DDPM_OK;
}

/* f(u) of Nichol & Dhariwal 2021, eq. 17, without its constant divisor. */
static double cosine_f(double u)
{
    const double half_pi = 1.57079632679489661923;
    const double c = cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * half_pi);
    return c * c;
}

ddpm_status ddpm_schedule_create(const ddpm_diffusion_config *cfg, ddpm_schedule **out)
{
    *out = NULL;
    REQUIRE(cfg->steps >= 1 && cfg->steps <= 100000, CONFIG,
            "diffusion.steps is %lld; allowed are 1 to 100000", (long long)cfg->steps);
    REQUIRE(cfg->schedule == DDPM_SCHEDULE_LINEAR || cfg->schedule == DDPM_SCHEDULE_COSINE, CONFIG,
            "diffusion.schedule %d is neither linear nor cosine", cfg->schedule);
    const int T = (int)cfg->steps;
    double *beta = malloc((size_t)T * sizeof *beta);
    REQUIRE(beta, NOMEM, "schedule of %d steps: %zu bytes", T, (size_t)T * sizeof *beta);
    for (int i = 0; i < T; i++) {
        if (cfg->schedule == DDPM_SCHEDULE_LINEAR)
            beta[i] = T == 1 ? cfg->beta_start
                             : cfg->beta_start + (cfg->beta_end - cfg->beta_start) * i / (T - 1);
        else
            beta[i] = fmin(1 - cosine_f((i + 1.0) / T) / cosine_f((double)i / T), BETA_MAX_COSINE);
    }
    const ddpm_status s = ddpm_schedule_from_betas(beta, T, out);
    free(beta);
    return s;
}

ddpm_status ddpm_schedule_respace(const ddpm_schedule *s, const int *kept, int n, ddpm_schedule **out)
{
    *out = NULL;
    REQUIRE(n >= 1 && n <= s->T, CONFIG, "respacing keeps %d of %d steps", n, s->T);
    for (int k = 0; k < n; k++)
        REQUIRE(kept[k] >= 1 && kept[k] <= s->T && (k == 0 || kept[k] > kept[k - 1]), CONFIG,
                "respacing: entry %d is step %d; entries rise and lie in 1..%d", k, kept[k], s->T);
    ddpm_schedule *r;
    TRY(schedule_alloc(n, &r));
    r->abar[0] = 1;
    for (int t = 1; t <= n; t++) {
        r->abar[t] = s->abar[kept[t - 1]];
        r->original_t[t] = s->original_t[kept[t - 1]];
        /* Two neighbours keep their beta to the bit; so a respacing that keeps all changes nothing. */
        const bool same = kept[t - 1] == (t > 1 ? kept[t - 2] : 0) + 1;
        r->beta[t] = same ? s->beta[kept[t - 1]] : 1 - r->abar[t] / r->abar[t - 1];
        r->alpha[t] = same ? s->alpha[kept[t - 1]] : r->abar[t] / r->abar[t - 1];
    }
    derive(r);
    *out = r;
    return DDPM_OK;
}

void ddpm_schedule_q_rows(const ddpm_schedule *s, float *rows)
{
    for (int t = 0; t <= s->T; t++) {
        rows[2 * t] = (float)sqrt(s->abar[t]);
        rows[2 * t + 1] = (float)sqrt(1 - s->abar[t]);
    }
}

void ddpm_schedule_target_rows(const ddpm_schedule *s, int objective, float *rows)
{
    for (int t = 0; t <= s->T; t++) {
        double x0 = 0, eps = 1;
        if (objective == DDPM_PREDICT_X0) {
            x0 = 1;
            eps = 0;
        } else if (objective == DDPM_PREDICT_V) { /* Salimans & Ho 2022, section 4 */
            x0 = -sqrt(1 - s->abar[t]);
            eps = sqrt(s->abar[t]);
        }
        rows[2 * t] = (float)x0;
        rows[2 * t + 1] = (float)eps;
    }
}

void ddpm_q_sample_f64(const ddpm_schedule *s, int t, const double *x0, const double *eps, double *xt, int64_t n)
{
    assert(t >= 0 && t <= s->T);
    const double a = sqrt(s->abar[t]), b = sqrt(1 - s->abar[t]);
    for (int64_t i = 0; i < n; i++)
        xt[i] = a * x0[i] + b * eps[i]; /* eq. 4 */
}

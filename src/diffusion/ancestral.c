/* ancestral.c - one step of DDPM 2020, algorithm 2: the posterior's mean at x0_hat, plus noise.
 *
 * Between any two levels abar < abar_prev the step's own beta is 1 - abar / abar_prev, so a respaced process needs no other
 * formula. The variance is the posterior's (beta tilde, right where x0 is known) or beta itself (right where x0 ~ N(0, I)):
 * section 3.2 of the paper, `small` and `large` here. */
#include "sampler_rows.h"

#include <math.h>

reverse_weights ancestral_weights(double abar, double abar_prev, const sampler_options *o, bool last)
{
    const double alpha = abar / abar_prev, beta = 1 - alpha;
    const double tilde = beta * (1 - abar_prev) / (1 - abar);
    return (reverse_weights){
        .x0 = beta * sqrt(abar_prev) / (1 - abar),          /* eq. 7 */
        .x = (1 - abar_prev) * sqrt(alpha) / (1 - abar),    /* eq. 7 */
        .sigma = last ? 0 : sqrt(o->variance == DDPM_VARIANCE_LARGE ? beta : tilde),
    };
}

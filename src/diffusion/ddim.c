/* ddim.c - one step of Song 2021, eq. 12, with sigma by eq. 16: eta 0 is deterministic, eta 1 has the ancestral noise.
 *
 *     x' = sqrt(abar_prev) x0_hat + c eps + sigma z,   c = sqrt(1 - abar_prev - sigma^2)
 *
 * Which eps, once x0_hat has been clipped, the paper leaves open. Derived again from x0_hat and x_t (guided-diffusion, and the
 * default here), it is folded into the weights of these two, so that no difference of nearly equal images is ever taken:
 *     eps = (x_t - sqrt(abar) x0_hat) / sqrt(1 - abar)
 * With network_eps (diffusers) it is what the network said. Without clipping both are the same. */
#include "sampler_rows.h"

#include <math.h>

reverse_weights ddim_weights(double abar, double abar_prev, const sampler_options *o, bool last)
{
    const double sigma =
        last ? 0 : o->eta * sqrt((1 - abar_prev) / (1 - abar)) * sqrt(1 - abar / abar_prev); /* eq. 16 */
    const double c = sqrt(fmax(0, 1 - abar_prev - sigma * sigma));
    const double signal = sqrt(abar), noise = sqrt(1 - abar);
    reverse_weights w = {.x0 = sqrt(abar_prev), .sigma = sigma};

    if (!o->network_eps) {
        w.x = c / noise;
        w.x0 -= c * signal / noise;
    } else if (o->objective == DDPM_PREDICT_X0) {
        w.x = c / noise;
        w.out = -c * signal / noise;
    } else if (o->objective == DDPM_PREDICT_V) {
        w.x = c * noise;
        w.out = c * signal;
    } else {
        w.out = c;
    }
    return w;
}

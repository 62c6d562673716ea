/* rating.c - what the maker says the device can do at most: the denominator of model FLOP utilisation. */
#include "cuda_backend.h"

#include "gpu_rating.h"

double cuda_rated_flops(const ddpm_backend *base)
{
    const struct cudaDeviceProp *p = &((const struct cuda_backend *)base)->properties;
    struct gpu_rating r;
    if (!gpu_rating_of(p->major, p->minor, &r)) return 0;
    return p->multiProcessorCount * (double)r.bf16_per_clock * r.mhz * 1e6;
}

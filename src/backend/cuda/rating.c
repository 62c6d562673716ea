/* rating.c - what the maker says the device can do at most: the denominator of model FLOP utilisation.
 *
 * Multiprocessors x operations per clock x clock, for dense bf16 products summed in f32. The clock is the one that NVIDIA
 * states its tensor ratings at, which lies below what the device may reach (H100 and H200: 1830 of 1980 MHz), so that
 * figures agree with published ones: 989 TFLOP/s for an H100 SXM or H200, 312 for an A100, 2240 for a B200. */
#include "cuda_backend.h"

#include <stddef.h>

static const struct {
    int major, minor;
    int flop_per_clock; /* of one multiprocessor */
    double mhz;
} ratings[] = {
    {8, 0, 2048, 1410}, {8, 6, 512, 1695}, {8, 9, 512, 2520}, {9, 0, 4096, 1830}, {10, 0, 8192, 1850}, {12, 0, 512, 2407},
};

double cuda_rated_flops(const ddpm_backend *base)
{
    const struct cudaDeviceProp *p = &((const struct cuda_backend *)base)->properties;
    for (size_t i = 0; i < sizeof ratings / sizeof *ratings; i++)
        if (ratings[i].major == p->major && ratings[i].minor == p->minor)
            return p->multiProcessorCount * (double)ratings[i].flop_per_clock * ratings[i].mhz * 1e6;
    return 0;
}

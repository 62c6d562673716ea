/* gpu_rating.h - what NVIDIA says a multiprocessor computes, by compute capability. */
#ifndef BACKEND_GPU_RATING_H
#define BACKEND_GPU_RATING_H

#include <stdbool.h>

struct gpu_rating {
    int bf16_per_clock; /* FLOP of one multiprocessor: dense bf16 products summed in f32; TF32 is half of it */
    int f32_per_clock;  /* f32 outside tensor cores */
    double mhz;         /* the clock that NVIDIA states ratings at, below what the device may reach */
};

/* False where none is known. */
bool gpu_rating_of(int major, int minor, struct gpu_rating *out);

#endif

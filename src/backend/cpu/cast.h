/* cast.h - rows of f32 rounded to bf16, for cast and for adamw's copy of the weights. */
#ifndef BACKEND_CPU_CAST_H
#define BACKEND_CPU_CAST_H

#include <stdint.h>

void cast_to_half(int64_t n, const float *restrict x, uint16_t *restrict half);

#endif

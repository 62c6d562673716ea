/* resample.h - one row of an image at half its size, and the two rows at full size that it stands for. */
#ifndef BACKEND_CPU_RESAMPLE_H
#define BACKEND_CPU_RESAMPLE_H

#include <stdbool.h>
#include <stdint.h>

/* A row of w pixels of c channels, times factor, to the four pixels under each: to has two rows of 2w. With accumulate
 * they are added to. */
void spread_row(int64_t w, int64_t c, float factor, bool accumulate, const float *from, float *to);
/* The other way: the sum of the four, times factor; w is again that of the short row. */
void gather_row(int64_t w, int64_t c, float factor, bool accumulate, const float *from, float *to);

#endif

/* exp_lanes.h - exp as straight-line arithmetic, so that a loop of it vectorises; the C library's does not without
 * fast-math. Cody-Waite reduction by ln 2 in two parts, then the Taylor polynomial to degree 7 on |r| <= ln(2)/2:
 * relative error below 2e-7 over the range of finite results; 0 below -87.3, finite at most. */
#ifndef CPU_EXP_LANES_H
#define CPU_EXP_LANES_H

#include <stdint.h>
#include <string.h>

static inline float exp_lane(float x)
{
    const float low = -87.3f, high = 88.3f;
    const float y = x < low ? low : x > high ? high : x;
    const float shifted = y * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to the nearest integer */
    const float n = shifted - 12582912.0f;
    const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < low ? 0.0f : x == x ? p * scale : x;
}

#endif

/* formulas.h - every per-element equation once, for host (C17, C++) and device (CUDA).
 *
 * A fused multiply-add is written fmaf; a bare a*b + c does not appear, for nvcc would contract it and gcc (with
 * -ffp-contract=off) would not. What is left, + - * / sqrt fma and integer arithmetic, rounds alike everywhere, so host and
 * device agree to the bit, exponentials and normals included: those are polynomials of our own, which gcc also
 * vectorises (libm's expf it calls once per element). No function here branches.
 *
 * Largest errors, held by tests/math/test_formulas.c against double:
 *   formula_exp       1.1 ulp over the normal range; gradual underflow below, infinity above 88.73
 *   formula_log01     1 ulp on (0, 1)
 *   formula_normals   3e-7 * max(1, |exact Box-Muller of the same uniforms|)
 *   formula_sigmoid, formula_silu   2.5 ulp for x > -87; 0 to 1e-36 below
 *   formula_silu_grad 3e-7
 * NaN gives NaN. */
#ifndef KERNELS_FORMULAS_H
#define KERNELS_FORMULAS_H

#include "philox.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FORMULA_FN static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define FORMULA_FN static inline __attribute__((always_inline))
#else
#define FORMULA_FN static inline
#endif

FORMULA_FN uint32_t formula_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

FORMULA_FN float formula_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* lo where x < lo, hi where x > hi; NaN stays NaN. */
FORMULA_FN float formula_clamp(float x, float lo, float hi)
{
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

/* ---- exp, log ---------------------------------------------------------------------------------------------- */

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2. Gives exp(r) and n, the latter in two's
 * complement in the low bits of *n: adding 1.5 * 2^23 rounds to an integer and leaves it there. |x| < 2^21. */
FORMULA_FN float formula_exp_reduce(float x, uint32_t *n)
{
    const float magic = 0x1.8p23f;
    const float shifted = fmaf(x, 0x1.715476p+0f, magic);
    const float k = shifted - magic;
    float r = fmaf(k, -0x1.62e43p-1f, x);
    r = fmaf(k, 0x1.05c61p-29f, r);
    *n = formula_bits(shifted); /* the constant's own bits end with 22 zeros: n modulo 2^22 */
    /* minimax of degree 6, relative error 1.9e-9 */
    float p = 0x1.6ab928p-10f;
    p = fmaf(p, r, 0x1.126d64p-7f);
    p = fmaf(p, r, 0x1.55589cp-5f);
    p = fmaf(p, r, 0x1.55540ap-3f);
    p = fmaf(p, r, 0x1.fffffap-2f);
    p = fmaf(p, r, 1.0f);
    return fmaf(p, r, 1.0f);
}

FORMULA_FN float formula_exp(float x)
{
    uint32_t n;
    const float p = formula_exp_reduce(formula_clamp(x, -104.0f, 89.0f), &n);
    /* 2^n in two factors: n runs from -150 to 128, beyond the exponents of normal numbers */
    const int32_t k = (int32_t)(n << 10) >> 10;
    const int32_t half = k >> 1;
    const float a = formula_float((uint32_t)(half + 127) << 23);
    const float b = formula_float((uint32_t)(k - half + 127) << 23);
    return p * a * b;
}

/* exp for -87 <= x <= 88, where 2^n is a normal number: its exponent is added to that of exp(r). */
FORMULA_FN float formula_exp_normal(float x)
{
    uint32_t n;
    const float p = formula_exp_reduce(x, &n);
    return formula_float(formula_bits(p) + (n << 23));
}

/* ln(u) for a normal number 0 < u < 1: u = 2^e m, sqrt(1/2) <= m < sqrt(2), f = m - 1. */
FORMULA_FN float formula_log01(float u)
{
    const uint32_t bits = formula_bits(u);
    const int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23;
    const float f = formula_float(bits - ((uint32_t)e << 23)) - 1.0f;
    const float k = (float)e;
    /* ln(1+f) = f - f^2/2 + f^3 P(f), P of degree 7 */
    float p = -0x1.41edf2p-4f;
    p = fmaf(p, f, 0x1.07d0eap-3f);
    p = fmaf(p, f, -0x1.0ce07cp-3f);
    p = fmaf(p, f, 0x1.226e4ap-3f);
    p = fmaf(p, f, -0x1.54788ap-3f);
    p = fmaf(p, f, 0x1.99a596p-3f);
    p = fmaf(p, f, -0x1.00022p-2f);
    p = fmaf(p, f, 0x1.55554ap-2f);
    const float f2 = f * f;
    float low = fmaf(f2 * f, p, k * -0x1.05c61p-29f);
    low = fmaf(-0.5f, f2, low);
    return fmaf(k, 0x1.62e43p-1f, f + low);
}

/* ---- activation -------------------------------------------------------------------------------------------- */

/* 1 / (1 + exp(-x)) */
FORMULA_FN float formula_sigmoid(float x)
{
    return 1.0f / (1.0f + formula_exp_normal(-formula_clamp(x, -88.0f, 87.0f)));
}

/* x * sigmoid(x). Below -88, where it is 0 to 1e-36, x counts as -88. */
FORMULA_FN float formula_silu(float x)
{
    const float z = x < -88.0f ? -88.0f : x;
    return z / (1.0f + formula_exp_normal(-(z > 87.0f ? 87.0f : z)));
}

/* silu'(x) = s (1 + x (1 - s)), s = sigmoid(x); 1 - s as exp(-x) s, which does not cancel */
FORMULA_FN float formula_silu_grad(float x)
{
    const float z = formula_clamp(x, -88.0f, 87.0f);
    const float e = formula_exp_normal(-z);
    const float s = 1.0f / (1.0f + e);
    return s * fmaf(z, e * s, 1.0f);
}

/* ---- normalisation ----------------------------------------------------------------------------------------- */

/* One multiply-add per value: u = (x - mean) * slope + offset, slope = rstd gamma (1 + scale), offset = beta (1 + scale) + shift */
FORMULA_FN float formula_norm(float x, float mean, float slope, float offset)
{
    return fmaf(x - mean, slope, offset);
}

/* dx = du * slope - rstd * m1 - xhat * rstd * m2, m1 and m2 the group's means of dxhat and dxhat * xhat; here with
 * a = rstd * m1 and b = rstd^2 * m2, for xhat = (x - mean) rstd. */
FORMULA_FN float formula_norm_bwd(float du, float x, float mean, float slope, float a, float b)
{
    return fmaf(du, slope, fmaf(x - mean, -b, -a));
}

/* 1 / (1-p) where the element is kept, 0 where it is dropped */
FORMULA_FN float formula_dropout(uint32_t word, float p, float inverse_keep)
{
    return philox_uniform(word) >= p ? inverse_keep : 0.0f;
}

/* ---- normals ----------------------------------------------------------------------------------------------- */

/* Two standard normals from two words [Box & Muller 1958]: r = sqrt(-2 ln u1), (r cos(2 pi u2), r sin(2 pi u2)).
 * 4 u2 = quadrant + rest is exact; the polynomials take the rest in quarter turns. */
FORMULA_FN void formula_box_muller(uint32_t w1, uint32_t w2, float *z1, float *z2)
{
    const float radius = sqrtf(-2.0f * formula_log01(philox_uniform(w1)));
    const float u = philox_uniform(w2);
    const int32_t quadrant = (int32_t)fmaf(u, 4.0f, 0.5f);
    const float r = fmaf(u, 4.0f, -(float)quadrant);
    const float r2 = r * r;
    float s = -0x1.2d9bb8p-8f;
    s = fmaf(s, r2, 0x1.465ec6p-4f);
    s = fmaf(s, r2, -0x1.4abbbap-1f);
    s = fmaf(s, r2, -0x1.777a5cp-25f); /* pi/2 in two parts: the first coefficient rounds badly */
    s = fmaf(s, r, 0x1.921fb6p+0f * r);
    float c = 0x1.d9f7bcp-11f;
    c = fmaf(c, r2, -0x1.55c664p-6f);
    c = fmaf(c, r2, 0x1.03c1dep-2f);
    c = fmaf(c, r2, -0x1.3bd3ccp+0f);
    c = fmaf(c, r2, 1.0f);
    const uint32_t q = (uint32_t)quadrant;
    const uint32_t sine = formula_bits((q & 1u) ? c : s) ^ ((q & 2u) << 30);
    const uint32_t cosine = formula_bits((q & 1u) ? s : c) ^ (((q + 1u) & 2u) << 30);
    *z1 = radius * formula_float(cosine);
    *z2 = radius * formula_float(sine);
}

typedef struct {
    float v[4];
} formula_normal4;

/* The normals of elements 4*block .. 4*block+3. */
FORMULA_FN formula_normal4 formula_normals(philox4 words)
{
    formula_normal4 z;
    formula_box_muller(words.v[0], words.v[1], &z.v[0], &z.v[1]);
    formula_box_muller(words.v[2], words.v[3], &z.v[2], &z.v[3]);
    return z;
}

/* ---- diffusion --------------------------------------------------------------------------------------------- */

/* u/127.5 - 1, correctly rounded: 0 is -1 and 255 is 1 exactly */
FORMULA_FN float formula_from_u8(uint8_t u)
{
    return (float)(2 * (int32_t)u - 255) / 255.0f;
}

/* Truncated, as guided-diffusion; NaN gives 0 */
FORMULA_FN uint8_t formula_to_u8(float x)
{
    float v = (x + 1.0f) * 127.5f;
    v = v > 0.0f ? v : 0.0f;
    v = v < 255.0f ? v : 255.0f;
    return (uint8_t)(int32_t)v;
}

/* c0 x0 + c1 eps: x_t [DDPM 2020, eq. 4], and with other coefficients the targets eps, x0 and v */
FORMULA_FN float formula_mix(float c0, float c1, float x0, float eps)
{
    return fmaf(c0, x0, c1 * eps);
}

/* d/d out of g/2 * (out - target)^2 for g = 2 * scale * weight / (H*W*C) */
FORMULA_FN float formula_loss_grad(float g, float difference)
{
    return g * difference;
}

/* One image's row of reverse_step (ops.h). */
typedef struct {
    float x0_x, x0_out, lo, hi, to_x0, to_x, to_out, sigma;
} formula_reverse_row;

FORMULA_FN float formula_reverse_x0(formula_reverse_row c, float x, float out)
{
    return formula_clamp(fmaf(c.x0_x, x, c.x0_out * out), c.lo, c.hi);
}

/* without the noise, which is added by fmaf(sigma, z, .) */
FORMULA_FN float formula_reverse_mean(formula_reverse_row c, float x0_hat, float x, float out)
{
    return fmaf(c.to_x0, x0_hat, fmaf(c.to_x, x, c.to_out * out));
}

/* ---- embedding --------------------------------------------------------------------------------------------- */

/* exp(-ln(10000) i / (half - shift)), rounded to float as the published networks have it */
FORMULA_FN float formula_time_frequency(int64_t i, int64_t half, float shift)
{
    return (float)exp(-9.2103403719761836 * (double)i / ((double)half - (double)shift));
}

/* sin and cos of t f in double: in float the argument alone, up to 1000, would lose three digits */
FORMULA_FN float formula_time_sin(float t, float f)
{
    return (float)sin((double)t * (double)f);
}

FORMULA_FN float formula_time_cos(float t, float f)
{
    return (float)cos((double)t * (double)f);
}

/* ---- optimiser --------------------------------------------------------------------------------------------- */

/* What is the same for all parameters of one AdamW step (ops.h). */
typedef struct {
    float clip;            /* c */
    float grow1, beta2, grow2; /* 1 - beta1, beta2, 1 - beta2 */
    float decay;           /* 1 - lr wd */
    float rate;            /* lr / bias1 */
    float inverse_bias2;   /* 1 / sqrt(bias2) */
    float eps;
} formula_adamw_step;

/* c of ops.h; sum is finite */
FORMULA_FN float formula_clip(double sum, float clip_norm)
{
    const double c = clip_norm > 0.0f ? (double)clip_norm / (sqrt(sum) + 1e-6) : 1.0;
    return (float)(c < 1.0 ? c : 1.0);
}

FORMULA_FN formula_adamw_step formula_adamw_prepare(double sum, float clip_norm, float beta1, float beta2,
                                                    float eps, float weight_decay, float lr, float bias1,
                                                    float bias2)
{
    formula_adamw_step s;
    s.clip = formula_clip(sum, clip_norm);
    s.grow1 = 1.0f - beta1;
    s.beta2 = beta2;
    s.grow2 = 1.0f - beta2;
    s.decay = fmaf(-lr, weight_decay, 1.0f);
    s.rate = lr / bias1;
    s.inverse_bias2 = 1.0f / sqrtf(bias2);
    s.eps = eps;
    return s;
}

FORMULA_FN float formula_adamw(formula_adamw_step s, float p, float g, float *m, float *v)
{
    const float gc = s.clip * g;
    *m = fmaf(s.grow1, gc - *m, *m);
    *v = fmaf(s.beta2, *v, s.grow2 * gc * gc);
    const float denominator = fmaf(sqrtf(*v), s.inverse_bias2, s.eps);
    return fmaf(-s.rate, *m / denominator, p * s.decay);
}

FORMULA_FN float formula_ema(float ema, float p, float one_minus_decay)
{
    return fmaf(one_minus_decay, p - ema, ema);
}

#endif

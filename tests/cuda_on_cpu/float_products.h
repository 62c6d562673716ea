/* float_products.h - sums of products in float, for the libraries' stand-ins: every element in the order of the inner
 * dimension, so that results depend on nothing else. */
#ifndef CUDA_ON_CPU_FLOAT_PRODUCTS_H
#define CUDA_ON_CPU_FLOAT_PRODUCTS_H

#include <stdint.h>
#include <string.h>

namespace cuda_on_cpu {

/* c [m,n] += a [m,k] b [k,n], rows lda, ldb, ldc apart. What lies behind the three must be known to be there: it is not
 * checked by sanitizers. */
void add_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                 int64_t ldc);

/* bf16 as cuda_bf16.h has it: the upper half of a float, rounded to nearest even. */
static inline float float_of_bf16(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint16_t bf16_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff; /* NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* As tensor cores read a float where TF32 is allowed: 10 bits of mantissa. */
static inline float tf32_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000) == 0x7f800000) return x;
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~(uint32_t)0x1fff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

} // namespace cuda_on_cpu

#endif

/* philox.h - Philox4x32-10 (Salmon et al., SC 2011): four random words as a pure function of a
 * 128-bit counter and a 64-bit key. Compiled for host and device; both give the same bits.
 *
 * Everything random here is a function of (seed, purpose, step, index, element): key = seed;
 * counter = { element / 4, step, index low 32, index high 24 | purpose << 24 }. No generator state
 * exists, so none can be lost, and nothing depends on batch size, thread or process count. */
#ifndef CORE_PHILOX_H
#define CORE_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN static __host__ __device__ __forceinline__
#else
#define PHILOX_FN static inline
#endif

enum philox_purpose {
    PHILOX_INIT = 1,    /* index = parameter number */
    PHILOX_ORDER = 2,   /* step = epoch */
    PHILOX_FLIP = 3,    /* index = position in the stream of examples */
    PHILOX_T = 4,       /* step, index = position in the global batch */
    PHILOX_EPS = 5,     /* step, index = position in the global batch */
    PHILOX_DROPOUT = 6, /* step, index = layer << 32 | position in the global batch */
    PHILOX_PRIOR = 7,   /* x_T of sample `index` */
    PHILOX_REVERSE = 8, /* step = sampler step, index = sample number */
    PHILOX_VALID_T = 9, /* index = validation image */
    PHILOX_VALID_EPS = 10,
    PHILOX_LABEL = 11, /* label of sample `index` where none was asked for */
    PHILOX_TEST = 15
};

typedef struct {
    uint32_t v[4];
} philox4;

PHILOX_FN philox4 philox(uint64_t key, philox4 ctr)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * ctr.v[0];
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * ctr.v[2];
        const uint32_t v1 = ctr.v[1], v3 = ctr.v[3];
        ctr.v[0] = (uint32_t)(p1 >> 32) ^ v1 ^ k0;
        ctr.v[1] = (uint32_t)p1;
        ctr.v[2] = (uint32_t)(p0 >> 32) ^ v3 ^ k1;
        ctr.v[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return ctr;
}

/* Words for elements 4*block .. 4*block+3. index < 2^56. */
PHILOX_FN philox4 philox_draw(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t index,
                              uint32_t block)
{
    philox4 c;
    c.v[0] = block;
    c.v[1] = step;
    c.v[2] = (uint32_t)index;
    c.v[3] = ((uint32_t)(index >> 32) & 0xFFFFFFu) | purpose << 24;
    return philox(seed, c);
}

/* Uniform in (0, 1), never 0 or 1, exact in float: (the top 23 bits + 1/2) * 2^-23. */
PHILOX_FN float philox_uniform(uint32_t word)
{
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}

/* Uniform in 0 .. n-1 by multiplication; bias below n / 2^32. n >= 1. */
PHILOX_FN uint32_t philox_below(uint32_t word, uint32_t n)
{
    return (uint32_t)(((uint64_t)word * n) >> 32);
}

#endif

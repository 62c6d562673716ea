/* halves.h - what tests of kernels in two element types share: an array of f32 or bf16 that may begin off a pack's
 * boundary, its values as doubles, and the error that rounding to bf16 alone may make. */
#ifndef TESTS_KERNELS_HALVES_H
#define TESTS_KERNELS_HALVES_H

#include "op_support.h"

/* Round to nearest even; no NaN. */
static inline uint16_t half_from(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float half_value(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

struct values {
    void *data; /* of the first element */
    int64_t n;
    ddpm_dtype dtype;
};

/* 64-byte aligned, `askew` elements further; zero. Freed by op_teardown. */
static inline struct values values_of(int64_t n, ddpm_dtype dtype, int askew)
{
    const size_t size = ddpm_dtype_size(dtype);
    unsigned char *block = take(((size_t)n + (size_t)askew) * size + 64);
    block += (64 - (uintptr_t)block % 64) % 64;
    return (struct values){block + (size_t)askew * size, n, dtype};
}

static inline double value_at(struct values v, int64_t i)
{
    if (v.dtype == DDPM_BF16) return (double)half_value(((const uint16_t *)v.data)[i]);
    return (double)((const float *)v.data)[i];
}

static inline void value_set(struct values v, int64_t i, float x)
{
    if (v.dtype == DDPM_BF16)
        ((uint16_t *)v.data)[i] = half_from(x);
    else
        ((float *)v.data)[i] = x;
}

/* Uniform in [lo, hi), different for each `stream`, and rounded to the type. */
static inline struct values random_values(int64_t n, ddpm_dtype dtype, int askew, uint64_t stream, float lo, float hi)
{
    const struct values v = values_of(n, dtype, askew);
    for (int64_t i = 0; i < n; i += 4) {
        const philox4 r = philox_draw(7, PHILOX_TEST, 0, stream, (uint32_t)(i / 4));
        for (int64_t j = i; j < n && j < i + 4; j++)
            value_set(v, j, lo + (hi - lo) * philox_uniform(r.v[j - i]));
    }
    return v;
}

static inline struct values copy_of_values(struct values v, int askew)
{
    const struct values copy = values_of(v.n, v.dtype, askew);
    memcpy(copy.data, v.data, (size_t)v.n * ddpm_dtype_size(v.dtype));
    return copy;
}

/* A tensor over the values, contiguous, with the extents of a tensor of f32. */
static inline ddpm_tensor tensor_of(struct values v, ddpm_tensor shape)
{
    shape.data = v.data;
    shape.dtype = v.dtype;
    return shape;
}

/* |got - want| <= limit + half a unit in the last place of bf16, 2^-8 |want|, where that is the type. */
#define assert_values(got, want, limit) values_near(__FILE__, __LINE__, #got, got, want, limit)
static inline void values_near(const char *file, int line, const char *what, struct values got, const double *want,
                               double limit)
{
    for (int64_t i = 0; i < got.n; i++) {
        const double x = value_at(got, i), d = fabs(x - want[i]);
        if (!(d <= limit + (got.dtype == DDPM_BF16 ? fabs(want[i]) / 256 : 0)))
            fail_msg("%s:%d: %s[%lld] = %.9g, expected %.9g within %.3g; %lld values of type %d", file, line, what,
                     (long long)i, x, want[i], limit, (long long)got.n, (int)got.dtype);
    }
}

#define assert_same_values(a, b)                                                                   \
    do {                                                                                           \
        assert_int_equal((a).n, (b).n);                                                            \
        assert_memory_equal((a).data, (b).data, (size_t)(a).n * ddpm_dtype_size((a).dtype));       \
    } while (0)

/* Every pair of an element type and a pointer, aligned or off by one element. */
static const struct {
    ddpm_dtype dtype;
    int askew;
} kinds[] = {{DDPM_F32, 0}, {DDPM_BF16, 0}, {DDPM_F32, 1}, {DDPM_BF16, 1}};
enum { KINDS = sizeof kinds / sizeof *kinds };

#endif

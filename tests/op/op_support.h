/* op_support.h - what the tests of ops share: backends, random tensors, comparison with a float64 reference.
 *
 * Errors are max|a-b| / max|b| over a tensor, as in golden/README.md. */
#ifndef TESTS_OP_SUPPORT_H
#define TESTS_OP_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fail.h"
#include "op_device.h"
#include "ops.h"
#include "philox.h"

/* f32 sums of up to a few thousand products in another order: 3e-7 is what PyTorch reaches, Winograd's F(4x4,3x3) 5e-6;
 * golden/README.md allows 1e-5. */
#define OP_TOLERANCE 1e-5

/* Every status in a test must be OK; the message says why not. */
#define OP_OK(call)                                                                                \
    do {                                                                                           \
        const ddpm_status op_s_ = (call);                                                          \
        if (op_s_) fail_msg("%s: %s", ddpm_status_name(op_s_), ddpm_last_error());                 \
    } while (0)
/* The call fails with this code, and says something. */
#define OP_FAILS(code, call)                                                                       \
    do {                                                                                           \
        assert_int_equal((call), DDPM_##code);                                                     \
        assert_true(strlen(ddpm_last_error()) > 0);                                                \
    } while (0)

static inline ddpm_backend *op_backend(int threads)
{
    ddpm_backend *be = NULL;
    OP_OK(ddpm_backend_create(op_device(), threads, &be));
    return be;
}

static inline void *op_alloc(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
    memset(p, 0, bytes);
    return p;
}

static inline float *op_floats(int64_t n)
{
    return op_alloc((size_t)n * sizeof(float));
}

static inline double *op_doubles(int64_t n)
{
    return op_alloc((size_t)n * sizeof(double));
}

/* Uniform in (-1, 1); `which` names the tensor. */
static inline void op_fill(float *x, int64_t n, uint64_t which)
{
    for (int64_t i = 0; i < n; i += 4) {
        const philox4 r = philox_draw(20, PHILOX_TEST, 0, which, (uint32_t)(i / 4));
        for (int64_t j = 0; j < 4 && i + j < n; j++)
            x[i + j] = 2 * philox_uniform(r.v[j]) - 1;
    }
}

static inline float *op_random(int64_t n, uint64_t which)
{
    float *x = op_floats(n);
    op_fill(x, n, which);
    return x;
}

static inline double op_error(const float *got, const double *want, int64_t n)
{
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) worst = d; /* a NaN stays */
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    return scale > 0 ? worst / scale : worst;
}

/* Fails with both sides at the worst place. */
static inline void op_compare(const char *what, const float *got, const double *want, int64_t n, double tolerance)
{
    const double error = op_error(got, want, n);
    if (error <= tolerance) return;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= fabs((double)got[at] - want[at]))) at = i;
    fail_msg("%s: error %.3g above %.3g; element %lld is %.9g, expected %.9g", what, error, tolerance, (long long)at,
             (double)got[at], want[at]);
}

/* The same bits? */
static inline void op_same_bits(const char *what, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: element %lld is %.9g and %.9g", what, (long long)i, (double)a[i], (double)b[i]);
}

static inline double op_dot(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

#endif

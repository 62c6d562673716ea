/* sums_support.h - bf16 tensors on the device and what is stored in them, for the tests of sums that engines leave. */
#ifndef TESTS_SUMS_SUPPORT_H
#define TESTS_SUMS_SUPPORT_H

#include "device_support.h"

#include "philox.h"

#include <math.h>

/* In -1 .. 1, others for each `which`. */
static inline float *numbers(int64_t n, uint64_t which)
{
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = 2 * philox_uniform(philox_draw(5, PHILOX_TEST, 0, which, (uint32_t)i).v[0]) - 1;
    return x;
}

static inline void *upload(ddpm_backend *be, const void *x, size_t bytes)
{
    void *p = taken(be, bytes);
    assert_ok(ddpm_backend_upload(be, p, x, bytes));
    return p;
}

static inline void *upload_half(ddpm_backend *be, int64_t n, uint64_t which)
{
    float *x = numbers(n, which);
    uint16_t *h = malloc((size_t)n * sizeof *h);
    assert_non_null(h);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        h[i] = (uint16_t)(u >> 16);
    }
    void *p = upload(be, h, (size_t)n * sizeof *h);
    free(x);
    free(h);
    return p;
}

static inline float *fetch(ddpm_backend *be, const void *p, int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    assert_ok(ddpm_backend_download(be, x, p, (size_t)n * sizeof *x));
    return x;
}

/* y as stored, in double. */
static inline double *stored(ddpm_backend *be, const ddpm_tensor *y)
{
    const int64_t n = ddpm_tensor_count(y);
    uint16_t *h = malloc((size_t)n * sizeof *h);
    double *x = malloc((size_t)n * sizeof *x);
    assert_true(h && x);
    assert_ok(ddpm_backend_download(be, h, y->data, (size_t)n * sizeof *h));
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = (uint32_t)h[i] << 16;
        float f;
        memcpy(&f, &u, sizeof f);
        x[i] = (double)f;
    }
    free(h);
    return x;
}

static inline ddpm_backend *backend_with(int version, bool is_deterministic)
{
    cuda_on_cpu_cudnn_version(version);
    ddpm_backend *be = create();
    ddpm_backend_configure(be, &(ddpm_backend_options){.is_deterministic = is_deterministic});
    return be;
}

/* Memory as numbers, none of which counts: NaN. */
static inline void *upload_nan(ddpm_backend *be, int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = NAN;
    void *p = upload(be, x, (size_t)n * sizeof *x);
    free(x);
    return p;
}

static inline int sums_begin(void **state)
{
    cuda_on_cpu_even_times(true); /* the first way is kept: with 9.26 the most fused one */
    return device_begin(state);
}

#endif

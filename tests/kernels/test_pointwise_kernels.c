/* test_pointwise_kernels.c - add, silu, resampling and softmax on the device in both element types: sizes around a
 * pack, a block and the widest warp's row, pointers off a pack's boundary, a grid that strides. The ops' own tests
 * cover the contract in f32; here every value is held against float64 computed from the rounded inputs. */
#include "halves.h"

static double exact_silu(double x)
{
    return x / (1 + exp(-x));
}

static double exact_silu_grad(double x)
{
    const double s = 1 / (1 + exp(-x));
    return s * (1 + x * (1 - s));
}

/* Around a pack of 4 or 8, and around a block of 256 packs of 4 or 8. */
static const int64_t sizes[] = {1, 3, 4, 7, 8, 9, 16, 1020, 1024, 1028, 2040, 2047, 2048, 2049, 2056, 5000};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* f32: one rounding of a sum below 16, 2^-21; two of the silu's 3e-7 of 8. */
static void check_elements(ddpm_backend *be, int64_t n, ddpm_dtype dtype, int askew)
{
    const struct values a = random_values(n, dtype, askew, 1, -8, 8), b = random_values(n, dtype, askew, 2, -8, 8);
    const struct values y = values_of(n, dtype, askew), dx = values_of(n, dtype, askew);
    double *sum = zeros64(n), *silu = zeros64(n), *grad = zeros64(n), *more = zeros64(n);
    for (int64_t i = 0; i < n; i++) {
        const double x = value_at(a, i), z = value_at(b, i);
        sum[i] = x + z;
        silu[i] = exact_silu(x);
        grad[i] = z * exact_silu_grad(x);
    }
    const ddpm_tensor shape = ddpm_tensor_1d(NULL, n);
    ddpm_tensor ta = tensor_of(a, shape), tb = tensor_of(b, shape);
    ddpm_tensor ty = tensor_of(y, shape), tdx = tensor_of(dx, shape);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->add(be, &(struct add_args){.a = &ta, .b = &tb, .y = &ty}));
    assert_values(y, sum, 5e-7);
    assert_ok(ops->silu(be, &(struct silu_args){.x = &ta, .y = &ty}));
    assert_values(y, silu, 3e-6);
    assert_ok(ops->silu_bwd(be, &(struct silu_bwd_args){.x = &ta, .dy = &tb, .dx = &tdx}));
    assert_values(dx, grad, 5e-6);
    for (int64_t i = 0; i < n; i++)
        more[i] = value_at(dx, i) + grad[i];
    const struct values once = copy_of_values(dx, 0), plus = copy_of_values(b, askew);
    assert_ok(ops->silu_bwd(be, &(struct silu_bwd_args){.x = &ta, .dy = &tb, .accumulate = true, .dx = &tdx}));
    assert_values(dx, more, 5e-6);

    /* in place, the same bits: dx = dy, y = b, y = x */
    ddpm_tensor tplus = tensor_of(plus, shape);
    assert_ok(ops->silu_bwd(be, &(struct silu_bwd_args){.x = &ta, .dy = &tplus, .dx = &tplus}));
    assert_same_values(plus, once);
    assert_ok(ops->add(be, &(struct add_args){.a = &ta, .b = &tb, .y = &tb}));
    assert_values(b, sum, 5e-7);
    const struct values activated = copy_of_values(y, 0);
    assert_ok(ops->silu(be, &(struct silu_args){.x = &ta, .y = &ta}));
    assert_same_values(a, activated);
}

static void test_elements(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int k = 0; k < KINDS; k++)
        for (int i = 0; i < SIZES; i++)
            check_elements(be, sizes[i], kinds[k].dtype, kinds[k].askew);
    ddpm_backend_free(be);
}

/* One element a thread and 65535 blocks of 256: the elements behind are a second stride. */
static void test_long(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const int64_t n = 65535 * 256 + 300;
    const struct values a = values_of(n, DDPM_BF16, 1);
    uint16_t *x = a.data;
    for (int64_t i = 0; i < n; i++)
        x[i] = half_from((float)(i % 251));
    ddpm_tensor ta = tensor_of(a, ddpm_tensor_1d(NULL, n));
    assert_ok(backend_ops(be)->add(be, &(struct add_args){.a = &ta, .b = &ta, .y = &ta}));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++)
        wrong += half_value(x[i]) != (float)(2 * (i % 251));
    assert_int_equal(wrong, 0);
    ddpm_backend_free(be);
}

/* ---- resampling ---- */

struct shape {
    int64_t n, h, w, c; /* of the smaller image */
};

static int64_t large_at(struct shape s, int64_t i, int corner)
{
    const int64_t c = i % s.c, w = i / s.c % s.w, h = i / s.c / s.w % s.h, n = i / s.c / s.w / s.h;
    return ((n * 2 * s.h + 2 * h + corner / 2) * 2 * s.w + 2 * w + corner % 2) * s.c + c;
}

/* Sums of four, one rounding each and one more when adding: 4 * 2^-24 * 4 in f32. */
static void check_resample(ddpm_backend *be, struct shape s, ddpm_dtype dtype, int askew, bool accumulate)
{
    const int64_t n = s.n * s.h * s.w * s.c;
    const struct values x = random_values(n, dtype, askew, 1, -1, 1), z = random_values(4 * n, dtype, askew, 2, -1, 1);
    const struct values up = values_of(4 * n, dtype, askew), pooled = values_of(n, dtype, askew);
    const struct values up_bwd = random_values(n, dtype, askew, 3, -1, 1);
    const struct values pool_bwd = random_values(4 * n, dtype, askew, 4, -1, 1);
    double *want_up = zeros64(4 * n), *want_pooled = zeros64(n);
    double *want_up_bwd = zeros64(n), *want_pool_bwd = zeros64(4 * n);
    for (int64_t i = 0; i < n; i++) {
        want_up_bwd[i] = accumulate ? value_at(up_bwd, i) : 0;
        for (int corner = 0; corner < 4; corner++) {
            const int64_t at = large_at(s, i, corner);
            want_up[at] = value_at(x, i);
            want_pool_bwd[at] = value_at(x, i) / 4 + (accumulate ? value_at(pool_bwd, at) : 0);
            want_pooled[i] += value_at(z, at) / 4;
            want_up_bwd[i] += value_at(z, at);
        }
    }
    const ddpm_tensor small = ddpm_tensor_4d(NULL, s.n, s.h, s.w, s.c);
    const ddpm_tensor large = ddpm_tensor_4d(NULL, s.n, 2 * s.h, 2 * s.w, s.c);
    ddpm_tensor tx = tensor_of(x, small), tz = tensor_of(z, large), tup = tensor_of(up, large);
    ddpm_tensor tpooled = tensor_of(pooled, small), tup_bwd = tensor_of(up_bwd, small);
    ddpm_tensor tpool_bwd = tensor_of(pool_bwd, large);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->upsample2(be, &(struct upsample2_args){.x = &tx, .y = &tup}));
    assert_ok(ops->upsample2_bwd(be, &(struct upsample2_bwd_args){&tz, accumulate, &tup_bwd}));
    assert_ok(ops->avgpool2(be, &(struct avgpool2_args){.x = &tz, .y = &tpooled}));
    assert_ok(ops->avgpool2_bwd(be, &(struct avgpool2_bwd_args){&tx, accumulate, &tpool_bwd}));
    assert_values(up, want_up, 0);
    assert_values(pooled, want_pooled, 1e-6);
    assert_values(up_bwd, want_up_bwd, 1e-6);
    assert_values(pool_bwd, want_pool_bwd, 1e-6);
}

/* One channel, odd counts, one pack of either type, several; blocks of 256 packs less one, full, and one more. */
static void test_resample(void **state)
{
    (void)state;
    const struct shape shapes[] = {{1, 1, 1, 1},  {2, 3, 5, 7},  {1, 2, 1, 8},   {3, 5, 3, 24}, {1, 3, 5, 17},
                                   {1, 4, 64, 4}, {1, 4, 64, 8}, {1, 1, 257, 8}, {1, 1, 255, 1}};
    ddpm_backend *be = cpu_with(1);
    for (int k = 0; k < KINDS; k++)
        for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                check_resample(be, shapes[i], kinds[k].dtype, kinds[k].askew, accumulate);
    ddpm_backend_free(be);
}

/* ---- softmax ---- */

static void softmax_rows(ddpm_backend *be, int64_t rows, int64_t width, bool log_of, float *x, float *y, float *dy,
                         float *dx)
{
    ddpm_tensor tx = ddpm_tensor_2d(x, rows, width), ty = ddpm_tensor_2d(y, rows, width);
    ddpm_tensor tdy = ddpm_tensor_2d(dy, rows, width), tdx = ddpm_tensor_2d(dx, rows, width);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->softmax(be, &(struct softmax_args){.x = &tx, .log = log_of, .y = &ty}));
    assert_ok(ops->softmax_bwd(be, &(struct softmax_bwd_args){.y = &ty, .dy = &tdy, .log = log_of, .dx = &tdx}));
}

/* By rows; the gradient in closed form. Relative to the row's largest: sums of up to 2000 terms in 32 or 256 lanes. */
static void check_softmax(ddpm_backend *be, int64_t rows, int64_t width, bool log_of)
{
    const int64_t n = rows * width;
    float *x = uniforms(n, 1, -6, 6), *y = zeros(n), *dy = uniforms(n, 2, -1, 1), *dx = zeros(n);
    double *want = zeros64(width), *want_dx = zeros64(width);
    softmax_rows(be, rows, width, log_of, x, y, dy, dx);
    for (int64_t r = 0; r < rows; r++) {
        const float *in = x + r * width, *up = dy + r * width;
        double max = -INFINITY, sum = 0, dot = 0, total = 0;
        for (int64_t i = 0; i < width; i++)
            max = fmax(max, (double)in[i]);
        for (int64_t i = 0; i < width; i++)
            sum += exp((double)in[i] - max);
        for (int64_t i = 0; i < width; i++) {
            want[i] = exp((double)in[i] - max) / sum;
            dot += want[i] * (double)up[i];
            total += (double)up[i];
        }
        for (int64_t i = 0; i < width; i++) {
            want_dx[i] = log_of ? (double)up[i] - want[i] * total : want[i] * ((double)up[i] - dot);
            if (log_of) want[i] = (double)in[i] - max - log(sum);
        }
        if (width == 1) {
            assert_true(y[r] == (log_of ? 0.0f : 1.0f) && dx[r] == 0.0f);
            continue;
        }
        assert_close(y + r * width, want, width, 1e-6);
        assert_close(dx + r * width, want_dx, width, 5e-6);
    }
    float *in_place = copy_of(dy, n);
    softmax_rows(be, rows, width, log_of, x, y, in_place, in_place);
    assert_bits(in_place, dx, n);
}

/* Lanes of a warp, the widest row of a warp, the first of a block; rows around the eight of a block. */
static void test_softmax(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 2, 31, 32, 33, 100, 1023, 1024, 1025, 2000}, rows[] = {1, 7, 8, 9};
    ddpm_backend *be = cpu_with(1);
    for (int k = 0; k < 10; k++)
        for (int log_of = 0; log_of < 2; log_of++)
            check_softmax(be, rows[(k + log_of) % 4], widths[k], log_of);
    ddpm_backend_free(be);
}

/* A NaN takes its own row and no other; so does a row of nothing but -infinity. In warps' rows and in blocks'. */
static void test_softmax_extremes(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int64_t width = 50; width <= 1500; width += 1450) {
        float *x = uniforms(4 * width, 1, -6, 6), *y = zeros(4 * width);
        x[width + 41] = NAN;
        for (int64_t i = 0; i < width; i++)
            x[2 * width + i] = -INFINITY;
        for (int64_t i = 0; i < width; i++)
            x[3 * width + i] = i == 7 ? 3e38f : -3e38f;
        ddpm_tensor tx = ddpm_tensor_2d(x, 4, width), ty = ddpm_tensor_2d(y, 4, width);
        assert_ok(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &tx, .y = &ty}));
        for (int64_t i = 0; i < width; i++) {
            assert_true(y[i] > 0 && y[i] < 1);
            assert_true(isnan(y[width + i]) && isnan(y[2 * width + i]));
            assert_true(y[3 * width + i] == (i == 7 ? 1.0f : 0.0f));
        }
    }
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_elements), OP_TEST(test_long), OP_TEST(test_resample),
                                       OP_TEST(test_softmax), OP_TEST(test_softmax_extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

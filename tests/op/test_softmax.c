/* test_softmax.c - softmax and log softmax over rows, and their gradients by central differences. */
#include "op_support.h"

static void reference_row(int64_t n, bool log_of, const double *x, double *y)
{
    double max = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        max = fmax(max, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - max);
    for (int64_t i = 0; i < n; i++)
        y[i] = log_of ? x[i] - max - log(sum) : exp(x[i] - max) / sum;
}

struct data {
    int64_t rows, width;
    float *x, *y, *dy, *dx;
};

static struct data make(int64_t rows, int64_t width)
{
    return (struct data){rows,
                         width,
                         uniforms(rows * width, 1, -6, 6),
                         zeros(rows * width),
                         uniforms(rows * width, 2, -1, 1),
                         zeros(rows * width)};
}

static void run(int threads, const struct data *d, bool log_of)
{
    ddpm_backend *be = cpu_with(threads);
    ddpm_tensor x = ddpm_tensor_2d(d->x, d->rows, d->width), y = ddpm_tensor_2d(d->y, d->rows, d->width);
    ddpm_tensor dy = ddpm_tensor_2d(d->dy, d->rows, d->width), dx = ddpm_tensor_2d(d->dx, d->rows, d->width);
    assert_ok(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &x, .log = log_of, .y = &y}));
    assert_ok(backend_ops(be)->softmax_bwd(
        be, &(struct softmax_bwd_args){.y = &y, .dy = &dy, .log = log_of, .dx = &dx}));
    ddpm_backend_free(be);
}

/* Forward 1e-6 of the largest; backward 2e-6: sums of up to 300 terms. */
static void test_values(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 2, 10, 16, 33, 300};
    for (int k = 0; k < 12; k++) {
        const bool log_of = k % 2;
        const struct data d = make(7, widths[k / 2]);
        const int64_t w = d.width;
        run(2, &d, log_of);
        double *x = zeros64(w), *y = zeros64(w), *up = zeros64(w), *down = zeros64(w), *dx = zeros64(w);
        for (int64_t r = 0; r < d.rows; r++) {
            for (int64_t i = 0; i < w; i++)
                x[i] = (double)d.x[r * w + i];
            reference_row(w, log_of, x, y);
            if (w > 1 || !log_of) assert_close(d.y + r * w, y, w, 1e-6);
            for (int64_t i = 0; i < w; i++) {
                const double at = x[i], h = 1e-5;
                x[i] = at + h;
                reference_row(w, log_of, x, up);
                x[i] = at - h;
                reference_row(w, log_of, x, down);
                x[i] = at;
                dx[i] = 0;
                for (int64_t j = 0; j < w; j++)
                    dx[i] += (double)d.dy[r * w + j] * (up[j] - down[j]) / (2 * h);
            }
            if (w > 1) assert_close(d.dx + r * w, dx, w, 2e-6);
        }
        if (w == 1) assert_true(d.y[0] == (log_of ? 0 : 1) && d.dx[0] == 0);
    }
}

/* Far below the largest is 0, not NaN; equal values share; logits of 1000 do not overflow. */
static void test_extremes(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    float x[] = {1000, 1000, -1000, -INFINITY}, y[4];
    ddpm_tensor tx = ddpm_tensor_2d(x, 1, 4), ty = ddpm_tensor_2d(y, 1, 4);
    assert_ok(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &tx, .y = &ty}));
    assert_true(y[0] == 0.5f && y[1] == 0.5f && y[2] == 0 && y[3] == 0);
    assert_ok(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &tx, .log = true, .y = &ty}));
    assert_true(fabsf(y[0] + 0.6931472f) < 1e-6f && fabsf(y[2] + 2000.6931f) < 1e-3f);
    x[1] = NAN;
    assert_ok(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &tx, .y = &ty}));
    assert_true(isnan(y[0]) && isnan(y[1]));
    ddpm_tensor wide = ddpm_tensor_2d(y, 2, 2), flat = ddpm_tensor_1d(x, 4);
    assert_status(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &tx, .y = &wide}), DDPM_SHAPE);
    assert_status(backend_ops(be)->softmax(be, &(struct softmax_args){.x = &flat, .y = &flat}), DDPM_SHAPE);
    assert_status(backend_ops(be)->softmax_bwd(be, &(struct softmax_bwd_args){.y = &tx, .dy = &wide, .dx = &ty}),
                  DDPM_SHAPE);
    ddpm_backend_free(be);
}

static void test_threads_and_aliasing(void **state)
{
    (void)state;
    for (int log_of = 0; log_of < 2; log_of++) {
        const struct data one = make(1000, 37);
        run(1, &one, log_of);
        for (int i = 1; i < THREAD_COUNTS; i++) {
            struct data d = make(1000, 37);
            d.dx = d.dy;
            run(thread_counts[i], &d, log_of);
            assert_bits(d.y, one.y, 37000);
            assert_bits(d.dx, one.dx, 37000);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_values), OP_TEST(test_extremes),
                                       OP_TEST(test_threads_and_aliasing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

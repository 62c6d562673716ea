/* test_reverse_step.c - one step back: the linear form against float64, clamping, noise by key, images apart. */
#include "op_support.h"

#include "formulas.h"

struct data {
    int64_t n, h, w, c, size;
    float *x, *out, *noise, *rows, *x0_hat;
    uint64_t *index;
    bool drawn;
    struct step_state state;
    int32_t *bad; /* or NULL */
};

static struct data make(int64_t n, int64_t h, int64_t w, int64_t c, bool drawn)
{
    const int64_t size = h * w * c;
    struct data d = {.n = n, .h = h, .w = w, .c = c, .size = size, .drawn = drawn};
    d.x = uniforms(n * size, 1, -2, 2);
    d.out = uniforms(n * size, 2, -2, 2);
    d.noise = uniforms(n * size, 3, -2, 2);
    d.rows = uniforms(8 * n, 4, -1, 1);
    d.x0_hat = zeros(n * size);
    d.index = indices(n, 70);
    d.state = (struct step_state){.seed = 17, .step = 41};
    for (int64_t i = 0; i < n; i++) { /* the first image is not clamped, the last has no noise */
        d.rows[8 * i + 2] = i ? -1 : -INFINITY;
        d.rows[8 * i + 3] = i ? 1 : INFINITY;
        if (i == n - 1) d.rows[8 * i + 7] = 0;
    }
    return d;
}

static void run(int threads, const struct data *d, bool want_x0)
{
    ddpm_backend *be = cpu_with(threads);
    ddpm_tensor x = ddpm_tensor_4d(d->x, d->n, d->h, d->w, d->c), out = ddpm_tensor_4d(d->out, d->n, d->h, d->w, d->c);
    ddpm_tensor noise = ddpm_tensor_4d(d->noise, d->n, d->h, d->w, d->c);
    ddpm_tensor x0_hat = ddpm_tensor_4d(d->x0_hat, d->n, d->h, d->w, d->c);
    assert_ok(backend_ops(be)->reverse_step(be, &(struct reverse_step_args){.out = &out,
                                                                            .noise = d->drawn ? NULL : &noise,
                                                                            .rows = d->rows,
                                                                            .state = &d->state,
                                                                            .index = d->index,
                                                                            .x = &x,
                                                                            .x0_hat = want_x0 ? &x0_hat : NULL,
                                                                            .bad = d->bad}));
    ddpm_backend_free(be);
}

/* 5e-7 of the largest: five products, each fused or rounded once. */
static void test_values(void **state)
{
    (void)state;
    const int64_t shapes[][4] = {{3, 5, 3, 3}, {2, 1, 1, 1}, {3, 41, 31, 7}};
    for (int k = 0; k < 6; k++) {
        const int64_t *shape = shapes[k / 2];
        const struct data d = make(shape[0], shape[1], shape[2], shape[3], k % 2);
        double *want = zeros64(d.n * d.size), *x0_hat = zeros64(d.n * d.size);
        for (int64_t i = 0; i < d.n * d.size; i++) {
            const int64_t n = i / d.size, in = i % d.size;
            const float *r = d.rows + 8 * n;
            const formula_normal4 z = formula_normals(
                philox_draw(17, PHILOX_REVERSE, 41, d.index[n], (uint32_t)(in / 4)));
            const double x = (double)d.x[i], out = (double)d.out[i];
            const double noise = (double)(d.drawn ? z.v[in % 4] : d.noise[i]);
            x0_hat[i] = fmin(fmax((double)r[0] * x + (double)r[1] * out, (double)r[2]), (double)r[3]);
            want[i] = (double)r[4] * x0_hat[i] + (double)r[5] * x + (double)r[6] * out + (double)r[7] * noise;
        }
        run(2, &d, true);
        assert_close(d.x, want, d.n * d.size, 5e-7);
        assert_close(d.x0_hat, x0_hat, d.n * d.size, 5e-7);
    }
}

/* Threads, no x0_hat, and each image alone: same bits. */
static void test_same_bits(void **state)
{
    (void)state;
    const struct data one = make(4, 37, 29, 3, true);
    const float *x = copy_of(one.x, one.n * one.size);
    run(1, &one, true);
    for (int i = 1; i < THREAD_COUNTS; i++) {
        const struct data d = make(4, 37, 29, 3, true);
        run(thread_counts[i], &d, false);
        assert_bits(d.x, one.x, one.n * one.size);
    }
    for (int64_t n = 0; n < 4; n++) {
        struct data d = make(1, 37, 29, 3, true);
        d.x = copy_of(x + n * d.size, d.size);
        d.out = one.out + n * d.size;
        d.rows = one.rows + 8 * n;
        d.index = one.index + n;
        run(2, &d, true);
        assert_bits(d.x, one.x + n * d.size, d.size);
        assert_bits(d.x0_hat, one.x0_hat + n * d.size, d.size);
    }
}

/* A row of zeros but to_x = 1 leaves x as it is; NaN in the answer is not hidden by the clamp. */
static void test_identity_and_nan(void **state)
{
    (void)state;
    struct data d = make(1, 4, 4, 3, true);
    const float row[8] = {0, 0, -1, 1, 0, 1, 0, 0};
    d.rows = (float *)row;
    const float *x = copy_of(d.x, d.size);
    run(1, &d, true);
    assert_bits(d.x, x, d.size);
    const float through[8] = {1, -1, -1, 1, 1, 0, 0, 0};
    d.rows = (float *)through;
    d.out[5] = NAN;
    run(1, &d, true);
    assert_true(isnan(d.x[5]) && isnan(d.x0_hat[5]) && !isnan(d.x[4]));
}

/* The step at which each image's answer was not finite for the first time; a clamp hides nothing. */
static void test_marks(void **state)
{
    (void)state;
    for (int odd = 0; odd < 2; odd++) {
        struct data d = make(4, odd ? 5 : 64, odd ? 3 : 96, 3, true);
        d.bad = take(4 * sizeof *d.bad);
        run(2, &d, true);
        for (int n = 0; n < 4; n++)
            assert_int_equal(d.bad[n], 0);
        d.out[d.size - 1] = INFINITY;                          /* the last of image 0 */
        d.out[2 * d.size] = d.out[3 * d.size - 1] = NAN;       /* both ends of image 2 */
        run(2, &d, true);
        d.state.step--;
        d.out[3 * d.size + 1] = -INFINITY; /* a step later also image 3 */
        run(2, &d, false);
        assert_int_equal(d.bad[0], 41);
        assert_int_equal(d.bad[1], 0);
        assert_int_equal(d.bad[2], 41);
        assert_int_equal(d.bad[3], 40);
    }
}

static void test_fails(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct data d = make(2, 3, 4, 3, true);
    ddpm_tensor x = ddpm_tensor_4d(d.x, 2, 3, 4, 3), out = ddpm_tensor_4d(d.out, 2, 3, 4, 3);
    struct reverse_step_args a = {.out = &out, .x = &x};
    assert_status(backend_ops(be)->reverse_step(be, &a), DDPM_SHAPE);
    assert_message("rows are missing");
    a.rows = d.rows;
    if (ddpm_backend_is_cpu(be)) /* sigma, but no noise and no key; elsewhere sigma lies on the device, and NaN tells */
        assert_status(backend_ops(be)->reverse_step(be, &a), DDPM_SHAPE);
    d.rows[7] = 0;
    assert_ok(backend_ops(be)->reverse_step(be, &a)); /* deterministic: none is needed */
    int32_t bad[2] = {0};
    a.bad = bad;
    assert_status(backend_ops(be)->reverse_step(be, &a), DDPM_SHAPE);
    assert_message("bad needs state");
    a.bad = NULL;
    out.dim[3] = 1;
    assert_status(backend_ops(be)->reverse_step(be, &a), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_values), OP_TEST(test_same_bits), OP_TEST(test_identity_and_nan),
                                       OP_TEST(test_marks),
                                       OP_TEST(test_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

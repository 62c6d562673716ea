/* test_loss.c - diffusion_loss: value and gradient against float64, the same eps as q_sample, fixed sums. */
#include "op_support.h"

#include "formulas.h"

struct data {
    int64_t n, h, w, c, size;
    float *x0, *eps, *out, *weight, *tcoef, *loss, *dout, *quartiles;
    uint8_t *x0_u8, *flip;
    int32_t *t;
    uint64_t *index;
    bool u8, mirrored, drawn, weighted, value_only;
    struct step_state state;
};

static struct data make(int64_t n, int64_t h, int64_t w, int64_t c, unsigned variant)
{
    const int64_t size = h * w * c;
    struct data d = {.n = n, .h = h, .w = w, .c = c, .size = size};
    d.x0 = uniforms(n * size, 1, -1, 1);
    d.eps = uniforms(n * size, 2, -2, 2);
    d.out = uniforms(n * size, 3, -2, 2);
    d.weight = uniforms(n, 4, 0.5f, 2);
    d.tcoef = uniforms(22, 5, -1, 1);
    d.loss = zeros(n);
    d.dout = zeros(n * size);
    d.x0_u8 = take((size_t)(n * size));
    d.flip = take((size_t)n);
    d.t = take((size_t)n * sizeof *d.t);
    d.index = indices(n, 100);
    for (int64_t i = 0; i < n * size; i++)
        d.x0_u8[i] = (uint8_t)(i * 53);
    for (int64_t i = 0; i < n; i++) {
        d.t[i] = (int32_t)(1 + 3 * i % 10);
        d.flip[i] = i % 2 == 0;
    }
    d.u8 = variant & 1;
    d.mirrored = variant & 2;
    d.drawn = variant & 4;
    d.weighted = variant & 8;
    d.state = (struct step_state){.seed = 31, .step = 8};
    return d;
}

static void run(int threads, const struct data *d, float scale)
{
    ddpm_backend *be = cpu_with(threads);
    ddpm_tensor x0 = ddpm_tensor_4d(d->u8 ? (void *)d->x0_u8 : (void *)d->x0, d->n, d->h, d->w, d->c);
    ddpm_tensor eps = ddpm_tensor_4d(d->eps, d->n, d->h, d->w, d->c);
    ddpm_tensor out = ddpm_tensor_4d(d->out, d->n, d->h, d->w, d->c);
    ddpm_tensor dout = ddpm_tensor_4d(d->dout, d->n, d->h, d->w, d->c), loss = ddpm_tensor_1d(d->loss, d->n);
    ddpm_tensor quartiles = ddpm_tensor_2d(d->quartiles, 4, 2);
    if (d->u8) x0.dtype = DDPM_U8;
    assert_ok(backend_ops(be)->diffusion_loss(
        be, &(struct diffusion_loss_args){.x0 = &x0,
                                          .eps = d->drawn ? NULL : &eps,
                                          .out = &out,
                                          .flip = d->mirrored ? d->flip : NULL,
                                          .t = d->t,
                                          .tcoef = d->tcoef,
                                          .weight = d->weighted ? d->weight : NULL,
                                          .state = &d->state,
                                          .index = d->index,
                                          .purpose = PHILOX_EPS,
                                          .use_step = true,
                                          .scale = scale,
                                          .loss = &loss,
                                          .dout = d->value_only ? NULL : &dout,
                                          .quartiles = d->quartiles ? &quartiles : NULL,
                                          .T = d->quartiles ? 10 : 0}));
    ddpm_backend_free(be);
}

static double target(const struct data *d, int64_t i)
{
    const int64_t n = i / d->size, in = i % d->size, w = in / d->c % d->w;
    const int64_t from = d->mirrored && d->flip[n] ? i + (d->w - 1 - 2 * w) * d->c : i;
    const double x0 = d->u8 ? d->x0_u8[from] / 127.5 - 1 : (double)d->x0[from];
    const formula_normal4 z = formula_normals(
        philox_draw(d->state.seed, PHILOX_EPS, d->state.step, d->index[n], (uint32_t)(in / 4)));
    const double eps = d->drawn ? (double)z.v[in % 4] : (double)d->eps[i];
    return (double)d->tcoef[2 * d->t[n]] * x0 + (double)d->tcoef[2 * d->t[n] + 1] * eps;
}

/* 1e-6 of the largest: target and difference are each rounded once or twice, the sum is in double. */
static void test_values(void **state)
{
    (void)state;
    const int64_t shapes[][4] = {{3, 5, 3, 3}, {2, 1, 1, 1}, {2, 41, 33, 7}};
    for (int k = 0; k < 3; k++)
        for (unsigned variant = 0; variant < 16; variant++) {
            const struct data d = make(shapes[k][0], shapes[k][1], shapes[k][2], shapes[k][3], variant);
            const double scale = 0.25;
            double *loss = zeros64(d.n), *dout = zeros64(d.n * d.size);
            for (int64_t i = 0; i < d.n * d.size; i++) {
                const double weight = d.weighted ? (double)d.weight[i / d.size] : 1;
                const double diff = (double)d.out[i] - target(&d, i);
                loss[i / d.size] += weight * diff * diff / (double)d.size;
                dout[i] = scale * weight * 2 * diff / (double)d.size;
            }
            run(2, &d, (float)scale);
            assert_close(d.loss, loss, d.n, 1e-6);
            assert_close(d.dout, dout, d.n * d.size, 1e-6);
        }
}

/* dout is the derivative of scale * sum of loss: central differences in out; exact for a square but for float32. */
static void test_gradient(void **state)
{
    (void)state;
    struct data d = make(2, 3, 2, 3, 15);
    run(1, &d, 1);
    const float *dout = copy_of(d.dout, d.n * d.size);
    d.value_only = true;
    for (int64_t i = 0; i < d.n * d.size; i++) {
        const float at = d.out[i], h = 0.25f;
        d.out[i] = at + h;
        run(1, &d, 1);
        double difference = (double)d.loss[i / d.size];
        d.out[i] = at - h;
        run(1, &d, 1);
        difference -= (double)d.loss[i / d.size];
        d.out[i] = at;
        assert_true(fabs(difference / (2 * (double)h) - (double)dout[i]) < 2e-6);
    }
}

/* Threads, the cut of the batch, dout in out's place, no dout: same bits. */
static void test_same_bits(void **state)
{
    (void)state;
    const struct data one = make(8, 37, 29, 3, 12);
    const int64_t all = one.n * one.size;
    run(1, &one, 1);
    for (int i = 1; i < THREAD_COUNTS; i++) {
        struct data d = make(8, 37, 29, 3, 12);
        d.dout = d.out;
        run(thread_counts[i], &d, 1);
        assert_bits(d.loss, one.loss, 8);
        assert_bits(d.dout, one.dout, all);
        struct data e = make(8, 37, 29, 3, 12);
        e.value_only = true;
        run(thread_counts[i], &e, 1);
        assert_bits(e.loss, one.loss, 8);
    }
    for (int half = 0; half < 2; half++) {
        struct data d = make(4, 37, 29, 3, 12);
        const int64_t at = half * 4 * d.size;
        d.x0 = one.x0 + at;
        d.out = one.out + at;
        d.t = one.t + half * 4;
        d.weight = one.weight + half * 4;
        d.index = one.index + half * 4;
        run(2, &d, 1);
        assert_bits(d.loss, one.loss + half * 4, 4);
        assert_bits(d.dout, one.dout + at, 4 * d.size);
    }
}

/* An answer that is the noise q_sample drew has no loss: both draw the same. */
static void test_agrees_with_q_sample(void **state)
{
    (void)state;
    struct data d = make(3, 5, 7, 3, 4 + 2);
    ddpm_backend *be = cpu_with(2);
    const float *coef = uniforms(22, 6, 0.3f, 0.9f);
    float *none = zeros(22);
    for (int i = 0; i < 11; i++)
        none[2 * i + 1] = 1; /* x_t = eps, target eps */
    ddpm_tensor x0 = ddpm_tensor_4d(d.x0, 3, 5, 7, 3), xt = ddpm_tensor_4d(d.out, 3, 5, 7, 3);
    struct q_sample_args a = {.x0 = &x0,
                              .flip = d.flip,
                              .t = d.t,
                              .coef = none,
                              .state = &d.state,
                              .index = d.index,
                              .purpose = PHILOX_EPS,
                              .use_step = true,
                              .xt = &xt};
    assert_ok(backend_ops(be)->q_sample(be, &a));
    d.tcoef = none;
    run(2, &d, 1);
    for (int n = 0; n < 3; n++)
        assert_true(d.loss[n] == 0);
    a.coef = coef; /* and x_t itself as target, with the mirrored x0 */
    assert_ok(backend_ops(be)->q_sample(be, &a));
    d.tcoef = copy_of(coef, 22);
    run(2, &d, 1);
    for (int n = 0; n < 3; n++)
        assert_true(d.loss[n] == 0);
    ddpm_backend_free(be);
}

/* t = 1 .. 10 lies in quarters 0 0 0 1 1 2 2 2 3 3. Two calls add up; each is a sum in double, rounded once: same bits.
 * An answer that is no number stays in its quarter. */
static void test_quartiles(void **state)
{
    (void)state;
    const int quarter[11] = {-1, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3};
    struct data d = make(601, 2, 1, 3, 12);
    float want[8] = {0.5f, 3, 0, 0, 0, 0, 1e8f, 1e6f};
    d.quartiles = copy_of(want, 8);
    for (int call = 0; call < 2; call++) {
        run(2, &d, 1);
        double sum[8] = {0};
        for (int n = 0; n < 601; n++) {
            sum[2 * quarter[d.t[n]]] += (double)d.loss[n];
            sum[2 * quarter[d.t[n]] + 1] += 1;
        }
        for (int i = 0; i < 8; i++)
            want[i] = (float)((double)want[i] + sum[i]);
        assert_bits(d.quartiles, want, 8);
    }
    d.out[6 * d.size] = NAN; /* t[6] = 9 */
    run(2, &d, 1);
    assert_true(!isnan(d.quartiles[0]) && !isnan(d.quartiles[2]) && !isnan(d.quartiles[4]) && isnan(d.quartiles[6]));
}

static void test_fails(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct data d = make(2, 3, 4, 3, 0);
    ddpm_tensor x0 = ddpm_tensor_4d(d.x0, 2, 3, 4, 3), out = ddpm_tensor_4d(d.out, 2, 3, 4, 3);
    ddpm_tensor loss = ddpm_tensor_1d(d.loss, 2), three = ddpm_tensor_1d(d.out, 3);
    struct diffusion_loss_args a = {.x0 = &x0, .eps = &x0, .out = &out, .t = d.t, .tcoef = d.tcoef, .loss = &loss};
    assert_ok(backend_ops(be)->diffusion_loss(be, &a));
    a.loss = &three;
    assert_status(backend_ops(be)->diffusion_loss(be, &a), DDPM_SHAPE);
    a.loss = &loss;
    a.eps = NULL;
    assert_status(backend_ops(be)->diffusion_loss(be, &a), DDPM_SHAPE);
    assert_message("state and index are needed");
    a.eps = &x0;
    ddpm_tensor quartiles = ddpm_tensor_2d(d.dout, 4, 2);
    a.quartiles = &quartiles;
    assert_status(backend_ops(be)->diffusion_loss(be, &a), DDPM_SHAPE);
    assert_message("quartiles of T = 0 steps");
    a.T = 10;
    assert_ok(backend_ops(be)->diffusion_loss(be, &a));
    quartiles = ddpm_tensor_2d(d.dout, 2, 4);
    assert_status(backend_ops(be)->diffusion_loss(be, &a), DDPM_SHAPE);
    a.quartiles = NULL;
    out.dim[0] = 1;
    assert_status(backend_ops(be)->diffusion_loss(be, &a), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_values),    OP_TEST(test_gradient),
                                       OP_TEST(test_same_bits), OP_TEST(test_agrees_with_q_sample),
                                       OP_TEST(test_quartiles), OP_TEST(test_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

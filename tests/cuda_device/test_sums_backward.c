/* test_sums_backward.c - SiLU's gradient and two sums over it, that the gradient of a convolution's input leaves for GroupNorm's: with
 * cuDNN's stand-in playing 9.26, which has such engines, and 9.19, which has none; and a network with sums both ways. */
#include "sums_support.h"

#include "ddpm/config.h"
#include "ddpm/model.h"

#include "launch.h"

/* 73728 bytes of x and dx an image: more than GroupNorm's gradient holds */
enum { N = 2, SIDE = 24, C = 32, K = 8, GROUPS = 4, PIXELS = SIDE * SIDE, SIZE = N * PIXELS * C };

/* dx of a 3x3 convolution that read silu of a norm of x with scale and shift, then dx of the norm. */
struct call {
    ddpm_tensor x, w, dy, dx, gamma, beta, film, scale, shift, stats, sum, product;
    ddpm_tensor dgamma, dbeta, dfilm, dscale, dshift;
    bool has_gradient;
    struct conv2d_bwd_data_args args;
};

static void *upload_numbers(ddpm_backend *be, int64_t n, uint64_t which)
{
    float *x = numbers(n, which);
    void *p = upload(be, x, (size_t)n * sizeof *x);
    free(x);
    return p;
}

static void *upload_zeros(ddpm_backend *be, int64_t n)
{
    void *p = taken(be, (size_t)n * sizeof(float));
    assert_ok(ddpm_backend_zero(be, p, (size_t)n * sizeof(float)));
    return p;
}

static void make_call(ddpm_backend *be, struct call *c)
{
    c->x = ddpm_tensor_4d(upload_half(be, SIZE, 1), N, SIDE, SIDE, C);
    c->w = ddpm_tensor_4d(upload_half(be, K * 9 * C, 2), K, 3, 3, C);
    c->dy = ddpm_tensor_4d(upload_half(be, N * PIXELS * K, 3), N, SIDE, SIDE, K);
    c->dx = ddpm_tensor_4d(taken(be, SIZE * 2), N, SIDE, SIDE, C);
    c->x.dtype = c->w.dtype = c->dy.dtype = c->dx.dtype = DDPM_BF16;
    c->gamma = ddpm_tensor_1d(upload_numbers(be, C, 4), C);
    c->beta = ddpm_tensor_1d(upload_numbers(be, C, 5), C);
    c->film = ddpm_tensor_2d(upload_numbers(be, N * 2 * C, 6), N, 2 * C);
    c->scale = ddpm_tensor_slice(&c->film, 0, C);
    c->shift = ddpm_tensor_slice(&c->film, C, C);
    c->stats = (ddpm_tensor){.data = upload_nan(be, N * GROUPS * 2), .rank = 3, .dim = {N, GROUPS, 2}, .stride = {2 * GROUPS, 2, 1}};
    c->sum = ddpm_tensor_2d(upload_nan(be, N * C), N, C); /* what is in the room does not count */
    c->product = ddpm_tensor_2d(upload_nan(be, N * C), N, C);
    c->dgamma = ddpm_tensor_1d(upload_zeros(be, C), C);
    c->dbeta = ddpm_tensor_1d(upload_zeros(be, C), C);
    c->dfilm = ddpm_tensor_2d(upload_zeros(be, N * 2 * C), N, 2 * C);
    c->dscale = ddpm_tensor_slice(&c->dfilm, 0, C);
    c->dshift = ddpm_tensor_slice(&c->dfilm, C, C);
    c->has_gradient = false;
    const struct norm_ref norm = {.x = &c->x, .gamma = &c->gamma, .beta = &c->beta, .scale = &c->scale, .shift = &c->shift,
                                  .stats = &c->stats, .groups = GROUPS};
    c->args = (struct conv2d_bwd_data_args){.dy = &c->dy, .w = &c->w, .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1,
                                            .pad_right = 1, .dx = &c->dx, .norm = norm, .sum = &c->sum, .product = &c->product,
                                            .has_gradient = &c->has_gradient};
    ddpm_tensor y = c->x;
    y.data = taken(be, SIZE * 2);
    assert_ok(backend_ops(be)->groupnorm(be, &(struct groupnorm_args){.x1 = &c->x, .gamma = &c->gamma, .beta = &c->beta,
                                                                      .scale = &c->scale, .shift = &c->shift, .groups = GROUPS,
                                                                      .eps = 1e-6f, .silu = true, .stats = &c->stats, .y = &y}));
    assert_ok(ddpm_backend_sync(be));
    ddpm_backend_release(be, y.data);
}

static void release_call(ddpm_backend *be, struct call *c)
{
    ddpm_tensor *all[] = {&c->x, &c->w, &c->dy, &c->dx, &c->gamma, &c->beta, &c->film, &c->stats, &c->sum, &c->product, &c->dgamma,
                          &c->dbeta, &c->dfilm};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ddpm_backend_release(be, all[i]->data);
}

/* The gradient of the convolution by its definition. */
static double *want_dx(ddpm_backend *be, const struct call *c)
{
    double *dx = calloc(SIZE, sizeof *dx), *dy = stored(be, &c->dy), *w = stored(be, &c->w);
    assert_non_null(dx);
    for (int64_t p = 0; p < N * PIXELS; p++)
        for (int64_t tap = 0; tap < 9; tap++) {
            const int64_t row = p % PIXELS / SIDE + tap / 3 - 1, column = p % SIDE + tap % 3 - 1;
            if (row < 0 || row >= SIDE || column < 0 || column >= SIDE) continue;
            double *to = dx + (p / PIXELS * PIXELS + row * SIDE + column) * C;
            for (int64_t k = 0; k < K; k++)
                for (int64_t i = 0; i < C; i++)
                    to[i] += dy[p * K + k] * w[(k * 9 + tap) * C + i];
        }
    free(dy);
    free(w);
    return dx;
}

/* *= silu'(u), u of the norm. */
static void through_silu(ddpm_backend *be, const struct call *c, double *dx)
{
    double *x = stored(be, &c->x);
    float *gamma = fetch(be, c->gamma.data, C), *beta = fetch(be, c->beta.data, C), *film = fetch(be, c->film.data, N * 2 * C);
    float *stats = fetch(be, c->stats.data, N * GROUPS * 2);
    for (int64_t i = 0; i < SIZE; i++) {
        const int64_t k = i % C, n = i / C / PIXELS, g = n * GROUPS + k / (C / GROUPS);
        const double norm = (x[i] - (double)stats[2 * g]) * (double)stats[2 * g + 1] * (double)gamma[k] + (double)beta[k];
        const double u = norm * (1 + (double)film[n * 2 * C + k]) + (double)film[n * 2 * C + C + k], s = 1 / (1 + exp(-u));
        dx[i] *= s * (1 + u * (1 - s));
    }
    free(x);
    free(gamma);
    free(beta);
    free(film);
    free(stats);
}

/* g as stored, within bf16's rounding; sums over what is stored. */
static void check_gradient(ddpm_backend *be, const struct call *c)
{
    double *want = want_dx(be, c), *g = stored(be, &c->dx), *x = stored(be, &c->x);
    float *sum = fetch(be, c->sum.data, N * C), *product = fetch(be, c->product.data, N * C);
    through_silu(be, c, want);
    for (int64_t i = 0; i < SIZE; i++)
        assert_near(g[i], want[i], fabs(want[i]) / 256 + 2e-5); /* terms of 72 products below 1, f32 */
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < C; k++) {
            double s = 0, q = 0, size = 0;
            for (int64_t p = 0; p < PIXELS; p++) {
                const int64_t at = (n * PIXELS + p) * C + k;
                s += g[at];
                q += g[at] * x[at];
                size += fabs(g[at]);
            }
            assert_near((double)sum[n * C + k], s, 1e-5 * size); /* f32 sums of 576 terms one after another: 1e-6 as a rule */
            assert_near((double)product[n * C + k], q, 1e-5 * size);
        }
    free(want);
    free(g);
    free(x);
    free(sum);
    free(product);
}

/* GroupNorm's gradient in place, of what the convolution has left; the kernels it took. */
static long norm_gradient(ddpm_backend *be, struct call *c)
{
    const long before = cuda_on_cpu_kernels();
    assert_ok(backend_ops(be)->groupnorm_bwd(
        be, &(struct groupnorm_bwd_args){.dy = &c->dx, .x1 = &c->x, .gamma = &c->gamma, .beta = &c->beta, .scale = &c->scale,
                                         .shift = &c->shift, .stats = &c->stats, .groups = GROUPS, .silu = !c->has_gradient,
                                         .dy_sum = c->has_gradient ? &c->sum : NULL, .dy_x = c->has_gradient ? &c->product : NULL,
                                         .dx1 = &c->dx, .dgamma = &c->dgamma, .dbeta = &c->dbeta, .dscale = &c->dscale,
                                         .dshift = &c->dshift}));
    assert_ok(ddpm_backend_sync(be));
    return cuda_on_cpu_kernels() - before;
}

/* All that the two calls make: dx, dgamma, dbeta, dscale and dshift. */
enum { ALL = SIZE + 2 * C + N * 2 * C };
static double *results(int version, bool is_deterministic, bool fused, long *kernels)
{
    ddpm_backend *be = backend_with(version, is_deterministic);
    double *all = malloc(ALL * sizeof *all);
    assert_non_null(all);
    struct call c;
    make_call(be, &c);
    for (int again = 0; again < 2; again++) { /* what the room held does not count the second time either */
        c.has_gradient = false;
        assert_ok(backend_ops(be)->conv2d_bwd_data(be, &c.args));
        assert_int_equal(c.has_gradient, fused);
        if (fused) check_gradient(be, &c);
    }
    if (!fused) {
        float *sum = fetch(be, c.sum.data, N * C);
        assert_true(isnan(sum[0])); /* untouched */
        free(sum);
    }
    *kernels = norm_gradient(be, &c);
    double *dx = stored(be, &c.dx);
    float *dgamma = fetch(be, c.dgamma.data, C), *dbeta = fetch(be, c.dbeta.data, C), *dfilm = fetch(be, c.dfilm.data, N * 2 * C);
    memcpy(all, dx, SIZE * sizeof *dx);
    for (int i = 0; i < C; i++) {
        all[SIZE + i] = (double)dgamma[i];
        all[SIZE + C + i] = (double)dbeta[i];
    }
    for (int i = 0; i < N * 2 * C; i++)
        all[SIZE + 2 * C + i] = (double)dfilm[i];
    free(dx);
    free(dgamma);
    free(dbeta);
    free(dfilm);
    release_call(be, &c);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
    return all;
}

static double largest(const double *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

/* The order of such sums varies, and older versions have no engine for them: the product alone, then. */
static void newer_engines_leave_gradients(void **state)
{
    (void)state;
    long with, without, strict;
    double *fused = results(92600, false, true, &with), *plain = results(91900, false, false, &without);
    double *ordered = results(92600, true, false, &strict);
    assert_int_equal(with, 3);    /* dx and x are not read for their sums */
    assert_int_equal(without, 4);
    assert_int_equal(strict, 4);
    const double rest = largest(plain, SIZE), sums = largest(plain + SIZE, ALL - SIZE);
    for (int64_t i = 0; i < ALL; i++) { /* bf16 rounds dx before silu' or behind it: 2^-8 of each of its terms */
        assert_near(fused[i], plain[i], i < SIZE ? fabs(plain[i]) / 64 + rest / 128 : sums / 64);
        assert_near(ordered[i], plain[i], i < SIZE ? fabs(plain[i]) / 64 + rest / 128 : sums / 64);
    }
    free(fused);
    free(plain);
    free(ordered);
}

/* ---- a network ---- */

/* 52x52 pixels of 16 channels are more than GroupNorm holds, 26x26 more than its gradient does. */
static const char yaml[] = "model:\n"
                           "  image_height: 52\n"
                           "  image_width: 52\n"
                           "  image_channels: 3\n"
                           "  channels: 16\n"
                           "  channel_mult: [1, 1]\n"
                           "  num_res_blocks: 1\n"
                           "  attention_resolutions: [0]\n"
                           "  norm_groups: 4\n";
enum { IMAGE = 52 * 52 * 3 };

struct answer {
    double out[IMAGE], *grads;
    int64_t n_grads;
    long kernels; /* of forward */
    int taken;    /* norms whose gradient began in a convolution's */
};

/* The device's table, with an eye on what GroupNorm's gradient is given. */
static const struct ops *device_ops;
static struct ops watched_ops;
static int taken_gradients;

static ddpm_status watch_groupnorm_bwd(ddpm_backend *be, const struct groupnorm_bwd_args *a)
{
    if (!be->is_measuring && a->dy_sum) taken_gradients++;
    return device_ops->groupnorm_bwd(be, a);
}

static void watch(ddpm_backend *be)
{
    device_ops = be->table;
    watched_ops = *device_ops;
    watched_ops.groupnorm_bwd = watch_groupnorm_bwd;
    be->table = &watched_ops;
    taken_gradients = 0;
}

/* While the first product's candidates would be timed there is next to no memory, so all keep their first way, the most fused. */
static void keep_first_ways(ddpm_backend *be)
{
    size_t free_bytes, total;
    void *rest = taken(be, 3 * 64 * sizeof(float));
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
    cuda_on_cpu_memory(total - free_bytes + (200 << 10));
    ddpm_tensor t[3];
    for (int i = 0; i < 3; i++)
        t[i] = ddpm_tensor_2d((float *)rest + 64 * i, 8, 8);
    assert_ok(backend_ops(be)->linear(be, &(struct linear_args){.x = &t[0], .w = &t[1], .y = &t[2]}));
    assert_ok(ddpm_backend_sync(be));
    cuda_on_cpu_memory(total);
    ddpm_backend_release(be, rest);
}

static struct answer answer(bool is_deterministic)
{
    struct answer a;
    ddpm_backend *be = backend_with(92600, is_deterministic);
    ddpm_config cfg;
    watch(be);
    ddpm_model *m;
    assert_ok(ddpm_config_parse(yaml, sizeof yaml - 1, "network", NULL, 0, &cfg));
    assert_ok(ddpm_model_create(be, &cfg.model, &m));
    assert_ok(ddpm_model_set_precision(m, DDPM_PRECISION_BF16, "precision"));
    assert_ok(ddpm_model_reserve(m, 1, true));
    const int64_t n = a.n_grads = ddpm_model_arena_count(m);
    float *weights = numbers(n, 9), time = 7;
    for (int64_t i = 0; i < n; i++)
        weights[i] *= 0.3f;
    void *all = upload(be, weights, (size_t)n * sizeof *weights), *half = upload_half(be, n, 9), *grads = upload_zeros(be, n);
    ddpm_tensor x = ddpm_tensor_4d(upload_half(be, IMAGE, 8), 1, 52, 52, 3), out = x, t = ddpm_tensor_1d(upload(be, &time, 4), 1);
    x.dtype = out.dtype = DDPM_BF16;
    out.data = taken(be, IMAGE * 2);
    ddpm_tensor dout = out;
    dout.data = upload_half(be, IMAGE, 7);
    ddpm_model_bind(m, all, grads);
    ddpm_model_bind_half(m, half);
    assert_ok(ddpm_backend_sync(be));
    keep_first_ways(be);
    const ddpm_forward_args args = {.x = &x, .t = &t, .out = &out};
    const long begin = cuda_on_cpu_kernels();
    assert_ok(ddpm_model_forward(m, &args));
    assert_ok(ddpm_backend_sync(be));
    a.kernels = cuda_on_cpu_kernels() - begin;
    double *y = stored(be, &out);
    memcpy(a.out, y, sizeof a.out);
    assert_ok(ddpm_model_backward(m, &args, &dout, NULL));
    float *g = fetch(be, grads, n);
    a.taken = taken_gradients;
    a.grads = malloc((size_t)n * sizeof *a.grads);
    assert_non_null(a.grads);
    for (int64_t i = 0; i < n; i++)
        a.grads[i] = (double)g[i];
    void *blocks[] = {all, half, grads, x.data, out.data, dout.data, t.data};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        ddpm_backend_release(be, blocks[i]);
    ddpm_model_free(m);
    ddpm_config_free(&cfg);
    ddpm_backend_free(be);
    free(weights);
    free(y);
    free(g);
    return a;
}

static double distance(const double *a, const double *b, int64_t n)
{
    double sum = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
        all += b[i] * b[i];
    }
    return sqrt(sum / all);
}

/* Sums reach the norms of a network, both ways: fewer kernels forward, and backward those of the 8 blocks' second norms and of the
 * first ones of the 4 that have no skip connection; for the same answer and the same gradients. What is rounded to 8 bits between
 * layers is rounded in another place where an epilogue is fused. */
static void a_network_uses_them(void **state)
{
    (void)state;
    struct answer plain = answer(true), fused = answer(false);
    double worst = 0;
    for (int i = 0; i < IMAGE; i++)
        worst = fmax(worst, fabs(fused.out[i] - plain.out[i]));
    const double far = distance(fused.grads, plain.grads, plain.n_grads);
    if (!(fused.kernels < plain.kernels)) fail_msg("%ld kernels with sums, %ld without", fused.kernels, plain.kernels);
    assert_int_equal(plain.taken, 0);
    assert_int_equal(fused.taken, 8 + 4);
    if (!(worst <= 0.03 * largest(plain.out, IMAGE))) fail_msg("differs by %g of %g", worst, largest(plain.out, IMAGE));
    if (!(far <= 0.03)) fail_msg("gradients differ by %g of their length", far);
    free(plain.grads);
    free(fused.grads);
}

int main(void)
{
    setenv("DDPM_CACHE", "", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(newer_engines_leave_gradients, sums_begin),
        cmocka_unit_test_setup(a_network_uses_them, sums_begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

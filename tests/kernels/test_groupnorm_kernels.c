/* test_groupnorm_kernels.c - groupnorm.cu and groupnorm_bwd.cu where the test of the op does not go: bf16 images, sizes
 * around each cut (slices of pixels, tiles of channels, what shared memory holds), packs that do not fit, more images
 * than a grid has blocks. Against float64 over the same rounded inputs; the op's own test holds that definition against
 * finite differences. */
#include "halves.h"

#include "launch.h"

struct shape {
    int64_t n, pixels, c1, c2;
    int groups;
    bool half, film, silu;
    float dropout, mean;
    int askew; /* elements between a 16-byte boundary and each image */
    enum norm_resample resample;
    int64_t w; /* where y is resampled: pixels of a row of x */
    bool given; /* sums over dy come with it */
};

struct call {
    struct shape s;
    int64_t c, all, y_all; /* elements of both sources together; of y and dy */
    struct values x1, x2, dy, add1, add2, y, dx1, dx2;
    float *gamma, *beta, *film, *stats, *dgamma, *dbeta, *dfilm; /* film: rows scale | shift | 1 more */
    uint64_t *index;
    struct step_state state;
};

/* ---- calls ---- */

static struct call call_of(struct shape s)
{
    struct call k = {.s = s, .c = s.c1 + s.c2, .state = {.seed = 0xfedcba9876543210u, .step = 3}};
    const int64_t pixels = s.n * s.pixels;
    const ddpm_dtype dtype = s.half ? DDPM_BF16 : DDPM_F32;
    k.all = pixels * k.c;
    k.y_all = s.resample == NORM_UP2 ? 4 * k.all : s.resample == NORM_MEAN2 ? k.all / 4 : k.all;
    k.x1 = random_values(pixels * s.c1, dtype, s.askew, 1, s.mean - 1, s.mean + 2);
    k.x2 = random_values(pixels * s.c2, dtype, s.askew, 2, s.mean - 2, s.mean + 1);
    k.dy = random_values(k.y_all, dtype, s.askew, 3, -1, 1);
    k.add1 = random_values(pixels * s.c1, dtype, s.askew, 4, -1, 1);
    k.add2 = random_values(pixels * s.c2, dtype, s.askew, 5, -1, 1);
    k.y = values_of(k.y_all, dtype, s.askew);
    k.dx1 = values_of(pixels * s.c1, dtype, s.askew);
    k.dx2 = values_of(pixels * s.c2, dtype, s.askew);
    k.gamma = uniforms(k.c, 6, 0.5f, 1.5f);
    k.beta = uniforms(k.c, 7, -0.5f, 0.5f);
    k.film = uniforms(s.n * (2 * k.c + 1), 8, -0.5f, 0.5f);
    k.stats = zeros(s.n * s.groups * 2);
    k.dgamma = uniforms(k.c, 9, -1, 1);
    k.dbeta = uniforms(k.c, 10, -1, 1);
    k.dfilm = zeros(s.n * (2 * k.c + 1));
    k.index = indices(s.n, ((uint64_t)1 << 31) + 7);
    return k;
}

static ddpm_tensor image_of(const struct call *k, struct values v, int64_t c)
{
    const int64_t w = k->s.w ? k->s.w : k->s.pixels;
    return tensor_of(v, ddpm_tensor_4d(NULL, k->s.n, k->s.pixels / w, w, c));
}

/* Of y or dy. */
static ddpm_tensor result_of(const struct call *k, struct values v)
{
    const ddpm_tensor t = image_of(k, v, k->c);
    const enum norm_resample r = k->s.resample;
    const int64_t h = t.dim[1], w = t.dim[2];
    if (r == NORM_UP2) return tensor_of(v, ddpm_tensor_4d(NULL, k->s.n, 2 * h, 2 * w, k->c));
    if (r == NORM_MEAN2) return tensor_of(v, ddpm_tensor_4d(NULL, k->s.n, h / 2, w / 2, k->c));
    return t;
}

/* Sums over pixels of dy and of dy x1, rounded to f32. */
static void sums_of(const struct call *k, float *sum, float *product)
{
    for (int64_t i = 0; i < k->s.n * k->c; i++) {
        double a = 0, b = 0;
        for (int64_t p = 0; p < k->s.pixels; p++) {
            const int64_t at = (i / k->c * k->s.pixels + p) * k->c + i % k->c;
            a += value_at(k->dy, at);
            b += value_at(k->dy, at) * value_at(k->x1, at);
        }
        sum[i] = (float)a;
        product[i] = (float)b;
    }
}

/* Forward, then backward, with the statistics of forward. */
static void run(struct call *k)
{
    const struct shape s = k->s;
    ddpm_tensor x1 = image_of(k, k->x1, s.c1), x2 = image_of(k, k->x2, s.c2), y = result_of(k, k->y);
    ddpm_tensor dy = result_of(k, k->dy), add1 = image_of(k, k->add1, s.c1), add2 = image_of(k, k->add2, s.c2);
    ddpm_tensor dx1 = image_of(k, k->dx1, s.c1), dx2 = image_of(k, k->dx2, s.c2);
    ddpm_tensor gamma = ddpm_tensor_1d(k->gamma, k->c), beta = ddpm_tensor_1d(k->beta, k->c);
    ddpm_tensor dgamma = ddpm_tensor_1d(k->dgamma, k->c), dbeta = ddpm_tensor_1d(k->dbeta, k->c);
    const ddpm_tensor film = ddpm_tensor_2d(k->film, s.n, 2 * k->c + 1),
                      dfilm = ddpm_tensor_2d(k->dfilm, s.n, 2 * k->c + 1);
    ddpm_tensor scale = ddpm_tensor_slice(&film, 0, k->c), shift = ddpm_tensor_slice(&film, k->c, k->c);
    ddpm_tensor dscale = ddpm_tensor_slice(&dfilm, 0, k->c), dshift = ddpm_tensor_slice(&dfilm, k->c, k->c);
    ddpm_tensor stats = {.data = k->stats, .rank = 3, .dim = {s.n, s.groups, 2}, .stride = {2 * s.groups, 2, 1}};
    const bool two = s.c2 > 0;
    const ddpm_tensor dy_sum = ddpm_tensor_2d(zeros(s.n * k->c), s.n, k->c), dy_x = ddpm_tensor_2d(zeros(s.n * k->c), s.n, k->c);
    if (s.given) sums_of(k, dy_sum.data, dy_x.data);
    const struct groupnorm_args forward = {.x1 = &x1,
                                           .x2 = two ? &x2 : NULL,
                                           .gamma = &gamma,
                                           .beta = &beta,
                                           .scale = s.film ? &scale : NULL,
                                           .shift = s.film ? &shift : NULL,
                                           .groups = s.groups,
                                           .eps = 1e-5f,
                                           .silu = s.silu,
                                           .resample = s.resample,
                                           .dropout = s.dropout,
                                           .layer = 5,
                                           .state = &k->state,
                                           .index = k->index,
                                           .stats = &stats,
                                           .y = &y};
    const struct groupnorm_bwd_args backward = {.dy = &dy,
                                                .x1 = &x1,
                                                .x2 = forward.x2,
                                                .gamma = &gamma,
                                                .beta = &beta,
                                                .scale = forward.scale,
                                                .shift = forward.shift,
                                                .stats = &stats,
                                                .groups = s.groups,
                                                .silu = s.silu,
                                                .resample = s.resample,
                                                .dropout = s.dropout,
                                                .layer = 5,
                                                .state = &k->state,
                                                .index = k->index,
                                                .dy_sum = s.given ? &dy_sum : NULL,
                                                .dy_x = s.given ? &dy_x : NULL,
                                                .add1 = k->add1.data ? &add1 : NULL,
                                                .add2 = two && k->add2.data ? &add2 : NULL,
                                                .dx1 = &dx1,
                                                .dx2 = two ? &dx2 : NULL,
                                                .dgamma = &dgamma,
                                                .dbeta = &dbeta,
                                                .dscale = s.film ? &dscale : NULL,
                                                .dshift = s.film ? &dshift : NULL};
    ddpm_backend *be = cpu_with(1);
    assert_ok(backend_ops(be)->groupnorm(be, &forward));
    assert_ok(backend_ops(be)->groupnorm_bwd(be, &backward));
    ddpm_backend_free(be);
}

/* ---- float64 ---- */

struct want {
    double *y, *dx, *stats, *dgamma, *dbeta, *dfilm; /* dx: of both sources, [N,pixels,C], without add */
};

static double x_at(const struct call *k, int64_t pixel, int64_t c)
{
    return c < k->s.c1 ? value_at(k->x1, pixel * k->s.c1 + c) : value_at(k->x2, pixel * k->s.c2 + c - k->s.c1);
}

static double mask_at(const struct call *k, int64_t n, int64_t element)
{
    if (k->s.dropout <= 0) return 1;
    const philox4 w = philox_draw(k->state.seed, PHILOX_DROPOUT, k->state.step, (uint64_t)5 << 32 | k->index[n],
                                  (uint32_t)(element / 4));
    return philox_uniform(w.v[element % 4]) >= k->s.dropout ? 1 / (1 - (double)k->s.dropout) : 0;
}

/* The i-th place in y of a value of pixel p of x, of at most four; -1: no more. */
static int64_t place_of(const struct call *k, int64_t n, int64_t p, int64_t c, int64_t i)
{
    const int64_t w = k->s.w, pixels = k->s.pixels;
    if (k->s.resample == NORM_UP2)
        return i == 4 ? -1 : (n * 4 * pixels + (2 * (p / w) + i / 2) * 2 * w + 2 * (p % w) + i % 2) * k->c + c;
    if (i > 0) return -1;
    if (k->s.resample == NORM_MEAN2) return (n * (pixels / 4) + p / w / 2 * (w / 2) + p % w / 2) * k->c + c;
    return (n * pixels + p) * k->c + c;
}

/* One image and group, channels first .. first + group. */
static void want_group(const struct call *k, struct want *to, int64_t n, int64_t first, int64_t group)
{
    const int64_t pixels = k->s.pixels, row = 2 * k->c + 1;
    const float *scale = k->film + n * row, *shift = scale + k->c;
    const double all = (double)(pixels * group);
    double mean = 0, square = 0, m1 = 0, m2 = 0;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = first; c < first + group; c++)
            mean += x_at(k, n * pixels + p, c) / all;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = first; c < first + group; c++)
            square += pow(x_at(k, n * pixels + p, c) - mean, 2) / all;
    const double rstd = 1 / sqrt(square + (double)1e-5f);
    double *stats = to->stats + 2 * (n * k->s.groups + first / group);
    stats[0] = mean;
    stats[1] = rstd;
    for (int64_t c = first; c < first + group; c++) {
        const double more = k->s.film ? 1 + (double)scale[c] : 1, gamma = (double)k->gamma[c],
                     beta = (double)k->beta[c];
        double a = 0, b = 0;
        for (int64_t p = 0; p < pixels; p++) {
            const int64_t at = (n * pixels + p) * k->c + c;
            const double xhat = (x_at(k, n * pixels + p, c) - mean) * rstd, mask = mask_at(k, n, p * k->c + c);
            const double u = (xhat * gamma + beta) * more + (k->s.film ? (double)shift[c] : 0), s = 1 / (1 + exp(-u));
            const double part = k->s.resample == NORM_MEAN2 ? 0.25 : 1;
            double dy = 0;
            for (int64_t i = 0, place; (place = place_of(k, n, p, c, i)) >= 0; i++) {
                dy += value_at(k->dy, place) * part;
                to->y[place] += (k->s.silu ? u * s : u) * mask * part;
            }
            const double du = dy * mask * (k->s.silu ? s * (1 + u * (1 - s)) : 1);
            to->dx[at] = du;
            a += du;
            b += du * xhat;
        }
        to->dfilm[n * row + c] = gamma * b + beta * a;
        to->dfilm[n * row + k->c + c] = a;
        to->dgamma[c] += more * b;
        to->dbeta[c] += more * a;
        m1 += gamma * more * a / all;
        m2 += gamma * more * b / all;
    }
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = first; c < first + group; c++) {
            double *dx = to->dx + (n * pixels + p) * k->c + c;
            const double more = k->s.film ? 1 + (double)scale[c] : 1;
            const double xhat = (x_at(k, n * pixels + p, c) - mean) * rstd;
            *dx = rstd * (*dx * (double)k->gamma[c] * more - m1 - xhat * m2);
        }
}

/* Before run(), which adds to dgamma and dbeta. */
static struct want want_of(const struct call *k)
{
    const int64_t row = 2 * k->c + 1, group = k->c / k->s.groups;
    struct want to = {zeros64(k->y_all), zeros64(k->all), zeros64(k->s.n * k->s.groups * 2),
                      zeros64(k->c),   zeros64(k->c),   zeros64(k->s.n * row)};
    for (int64_t c = 0; c < k->c; c++) {
        to.dgamma[c] = (double)k->dgamma[c];
        to.dbeta[c] = (double)k->dbeta[c];
    }
    for (int64_t n = 0; n < k->s.n; n++)
        for (int64_t g = 0; g < k->s.groups; g++)
            want_group(k, &to, n, g * group, group);
    if (!k->s.film) memset(to.dfilm, 0, (size_t)(k->s.n * row) * sizeof *to.dfilm);
    return to;
}

/* dx of one source out of that of both, with what is added */
static double *want_dx(const struct call *k, const struct want *w, int64_t first, int64_t c, struct values add)
{
    double *dx = zeros64(k->s.n * k->s.pixels * c);
    for (int64_t p = 0; p < k->s.n * k->s.pixels; p++)
        for (int64_t i = 0; i < c; i++)
            dx[p * c + i] = w->dx[p * k->c + first + i] + value_at(add, p * c + i);
    return dx;
}

static double largest(const double *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

/* The limits of the op's own test, relative to the largest; bf16 rounds on top. */
static void check(struct shape s)
{
    struct call k = call_of(s);
    const struct want w = want_of(&k);
    const double *dx1 = want_dx(&k, &w, 0, s.c1, k.add1), *dx2 = want_dx(&k, &w, s.c1, s.c2, k.add2);
    run(&k);
    assert_values(k.y, w.y, 1e-5 * largest(w.y, k.y_all));
    assert_close(k.stats, w.stats, s.n * s.groups * 2, 1e-6);
    assert_values(k.dx1, dx1, 2e-5 * largest(dx1, k.dx1.n));
    assert_values(k.dx2, dx2, 2e-5 * largest(dx2, k.dx2.n));
    assert_close(k.dgamma, w.dgamma, k.c, 2e-5);
    assert_close(k.dbeta, w.dbeta, k.c, 2e-5);
    assert_close(k.dfilm, w.dfilm, s.n * (2 * k.c + 1), 2e-5);
    op_teardown(NULL);
}

/* ---- tests ---- */

/* Images that are held, in f32 and bf16: groups within a pack, of several packs, across packs and across sources. */
static void test_held(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.n = 2, .pixels = 64, .c1 = 128, .groups = 32, .silu = true},
        {.n = 3, .pixels = 16, .c1 = 64, .c2 = 32, .groups = 32, .silu = true, .dropout = 0.3f}, /* groups of 3 */
        {.n = 1, .pixels = 49, .c1 = 24, .c2 = 40, .groups = 4, .film = true, .dropout = 0.1f},  /* straddle 24 | 40 */
        {.n = 2, .pixels = 25, .c1 = 16, .groups = 16, .film = true, .silu = true},              /* a channel a group */
        {.n = 1, .pixels = 7, .c1 = 160, .c2 = 96, .groups = 1, .silu = true, .mean = -3},
        {.n = 2, .pixels = 1, .c1 = 48, .groups = 6, .film = true, .silu = true}, /* fewer pixels than rows of threads
                                                                                   */
        {.n = 1, .pixels = 256, .c1 = 72, .groups = 9, .silu = true, .dropout = 0.5f}, /* the last tile is narrower */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int half = 0; half < 2; half++) {
            struct shape s = shapes[i];
            s.half = half;
            check(s);
        }
}

/* Packs that do not fit, by channels, by either source's, or by where memory begins. */
static void test_single_values(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.n = 2, .pixels = 15, .c1 = 15, .groups = 3, .film = true, .silu = true, .dropout = 0.2f},
        {.n = 2, .pixels = 15, .c1 = 9, .c2 = 7, .groups = 2, .silu = true, .dropout = 0.2f},
        {.n = 1, .pixels = 33, .c1 = 16, .groups = 4, .silu = true, .askew = 1},
        {.n = 1, .pixels = 130, .c1 = 601, .groups = 1, .silu = true, .dropout = 0.2f}, /* too wide to be held */
        {.n = 1, .pixels = 1300, .c1 = 33, .c2 = 2, .groups = 1, .film = true, .silu = true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int half = 0; half < 2; half++) {
            struct shape s = shapes[i];
            s.half = half;
            check(s);
        }
}

/* A slice's 128 pixels, and 256 above 4096; a tile's 16 packs of 4 or 8 channels; both less one, exactly, and one more.
 * Wide groups, or many pixels, are too much to be held. */
static void test_slices(void **state)
{
    (void)state;
    for (int64_t pixels = 127; pixels <= 129; pixels++)
        check((struct shape){.n = 1, .pixels = pixels, .c1 = 600, .c2 = 44, .groups = 1, .film = true, .silu = true});
    for (int64_t pixels = 4095; pixels <= 4097; pixels++)
        check((struct shape){
            .n = 1, .pixels = pixels, .c1 = 24, .groups = 3, .silu = true, .dropout = 0.1f, .half = true});
    for (int64_t packs = 15; packs <= 17; packs++) {
        check((struct shape){.n = 1, .pixels = 1400, .c1 = 4 * packs - 4, .c2 = 4, .groups = 4, .silu = true});
        check(
            (struct shape){.n = 1, .pixels = 1400, .c1 = 8, .c2 = 8 * packs - 8, .groups = 8, .half = true, .mean = 2});
    }
    check((struct shape){.n = 3, .pixels = 1300, .c1 = 32, .groups = 1, .film = true, .silu = true, .dropout = 0.3f});
}

/* The largest image whose narrowest tile, 64 bytes of a pixel, is held in 80 KiB, forward and backward, and its
 * neighbours. */
static void test_held_limit(void **state)
{
    (void)state;
    const struct {
        int64_t pixels;
        bool half;
    } limits[] = {{1245, false}, {1210, true}, {605, false}, {571, true}};
    for (int i = 0; i < 4; i++)
        for (int64_t more = -1; more <= 1; more++)
            check((struct shape){.n = 1,
                                 .pixels = limits[i].pixels + more,
                                 .c1 = 32,
                                 .groups = 8,
                                 .half = limits[i].half,
                                 .silu = true,
                                 .dropout = 0.1f});
}

/* Sums over dy that come with it: sliced images, of packs and of single values, groups within a pack and wider than a block
 * of the merging kernel; one that is held, which does without. */
static void test_given_sums(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.n = 2, .pixels = 1300, .c1 = 32, .groups = 8, .film = true, .mean = 1, .given = true},
        {.n = 1, .pixels = 1300, .c1 = 33, .groups = 3, .given = true},
        {.n = 2, .pixels = 130, .c1 = 640, .groups = 2, .film = true, .mean = -2, .given = true},
        {.n = 3, .pixels = 1400, .c1 = 24, .groups = 24, .askew = 1, .given = true},
        {.n = 1, .pixels = 64, .c1 = 64, .groups = 16, .film = true, .given = true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int half = 0; half < 2; half++) {
            struct shape s = shapes[i];
            s.half = half;
            check(s);
        }
}

/* u = a x + b of each channel: the same as by the definition, within a few roundings of the terms. */
static void test_lines(void **state)
{
    (void)state;
    enum { IMAGES = 3, C = 30, LINES = 3 * 30, WIDE = 65 };
    for (int film = 0; film < 2; film++) {
        float *gamma = uniforms(C, 1, -2, 2), *beta = uniforms(C, 2, -1, 1), *wide = uniforms(IMAGES * WIDE, 3, -1, 1);
        float *stats = uniforms(IMAGES * 6 * 2, 4, 0.1f, 3), *a = zeros(LINES), *b = zeros(LINES);
        const ddpm_tensor x = ddpm_tensor_4d(NULL, IMAGES, 2, 2, C), all = ddpm_tensor_2d(wide, IMAGES, WIDE);
        const ddpm_tensor tgamma = ddpm_tensor_1d(gamma, C), tbeta = ddpm_tensor_1d(beta, C);
        const ddpm_tensor scale = ddpm_tensor_slice(&all, 0, C), shift = ddpm_tensor_slice(&all, C, C);
        const ddpm_tensor tstats = {.data = stats, .rank = 3, .dim = {IMAGES, 6, 2}, .stride = {12, 2, 1}};
        const struct norm_ref norm = {.x = &x, .gamma = &tgamma, .beta = &tbeta, .scale = film ? &scale : NULL,
                                      .shift = film ? &shift : NULL, .stats = &tstats, .groups = 6};
        assert_int_equal(launch_groupnorm_lines(NULL, &norm, a, b), cudaSuccess);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        for (int i = 0; i < LINES; i++) {
            const int n = i / C, c = i % C;
            const double mean = (double)stats[2 * (n * 6 + c / 5)], rstd = (double)stats[2 * (n * 6 + c / 5) + 1];
            const double more = film ? 1 + (double)wide[n * WIDE + c] : 1, less = film ? (double)wide[n * WIDE + C + c] : 0;
            const double slope = rstd * (double)gamma[c] * more, offset = (double)beta[c] * more + less;
            assert_near((double)a[i], slope, 3e-7 * fabs(slope));
            assert_near((double)b[i], offset - mean * slope, 5e-7 * (fabs(offset) + fabs(mean * slope) + 1));
        }
        op_teardown(NULL);
    }
}

/* Twice and half the size: images that would be held otherwise, slices of the smaller image's 128 pixels less one row,
 * exactly, and more, two sources, packs that do not fit. */
static void test_resampled(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.n = 2, .pixels = 6 * 4, .w = 4, .c1 = 32, .c2 = 16, .groups = 4, .film = true, .silu = true, .mean = 1},
        {.n = 1, .pixels = 12 * 22, .w = 22, .c1 = 32, .groups = 1, .silu = true},
        {.n = 1, .pixels = 22 * 24, .w = 24, .c1 = 8, .c2 = 128, .groups = 2, .silu = true},
        {.n = 3, .pixels = 2 * 2, .w = 2, .c1 = 5, .c2 = 7, .groups = 3, .film = true},
        {.n = 2, .pixels = 8 * 2, .w = 2, .c1 = 16, .groups = 4, .silu = true, .askew = 1},
        {.n = 1, .pixels = 16 * 32, .w = 32, .c1 = 16, .groups = 2, .film = true, .silu = true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int way = 0; way < 4; way++) {
            struct shape s = shapes[i];
            s.half = way % 2;
            s.resample = way / 2 ? NORM_MEAN2 : NORM_UP2;
            check(s);
        }
}

/* More images than a grid has blocks: those left are taken in turns. */
static void test_many_images(void **state)
{
    (void)state;
    check((struct shape){.n = 65535 + 2, .pixels = 1, .c1 = 2, .groups = 1, .silu = true});
}

/* Mean 1000 and deviation 1: nothing cancels. And first pixels, which sums are taken about, far away from all others:
 * a slice's 128 pixels times f32's rounding, 2^-24, at most. */
static void test_pivots(void **state)
{
    (void)state;
    for (int64_t pixels = 64; pixels <= 1600; pixels *= 25)
        for (int far = 0; far < 2; far++) {
            struct call k =
                call_of((struct shape){.n = 2, .pixels = pixels, .c1 = 64, .groups = 4, .mean = far ? 0 : 1000});
            for (int64_t i = 0; far && i < 64; i++) {
                value_set(k.x1, i, 1e4f);
                value_set(k.x1, pixels * 64 + i, 1e4f);
            }
            const struct want w = want_of(&k);
            run(&k);
            for (int g = 0; g < 2 * 8; g += 2) { /* the mean: its own rounding, and 1e-6 deviations */
                const double rstd = w.stats[g + 1];
                assert_true(fabs((double)k.stats[g] - w.stats[g]) < 1e-7 * fabs(w.stats[g]) + 1e-6 / rstd);
                assert_true(fabs((double)k.stats[g + 1] / rstd - 1) < (far ? 8e-6 : 2e-6));
            }
            op_teardown(NULL);
        }
}

/* A constant image in slices: variance exactly 0, y exactly beta. */
static void test_constant_slices(void **state)
{
    (void)state;
    struct call k = call_of((struct shape){.n = 1, .pixels = 1500, .c1 = 16, .groups = 1});
    for (int64_t i = 0; i < k.all; i++)
        value_set(k.x1, i, 0.1f);
    run(&k);
    for (int64_t i = 0; i < k.all; i++)
        assert_true(value_at(k.y, i) == (double)k.beta[i % k.c]);
}

/* y over x1, dx1 over dy and over add1, held and sliced: the bits of separate tensors. */
static void test_aliasing(void **state)
{
    (void)state;
    for (int64_t pixels = 90; pixels <= 1440; pixels *= 16)
        for (int half = 0; half < 2; half++) {
            const struct shape s = {
                .n = 2, .pixels = pixels, .c1 = 32, .groups = 1, .silu = true, .dropout = 0.25f, .half = half};
            struct call apart = call_of(s), over_dy = call_of(s), over_add = call_of(s);
            run(&apart);
            over_dy.dx1 = over_dy.dy;
            run(&over_dy);
            assert_same_values(over_dy.dx1, apart.dx1);
            over_add.dx1 = over_add.add1;
            run(&over_add);
            assert_same_values(over_add.dx1, apart.dx1);
            struct call over_x = call_of(s);
            over_x.y = over_x.x1; /* backward then reads y as x: not looked at */
            run(&over_x);
            assert_same_values(over_x.y, apart.y);
            assert_bits(over_x.stats, apart.stats, 2 * s.n);
            op_teardown(NULL);
        }
}

/* Nothing to add: dx is that of add = 0. */
static void test_without_add(void **state)
{
    (void)state;
    for (int64_t pixels = 90; pixels <= 1440; pixels *= 16) {
        const struct shape s = {.n = 1, .pixels = pixels, .c1 = 24, .c2 = 8, .groups = 1, .half = true, .silu = true};
        struct call none = call_of(s), zero = call_of(s);
        none.add1.data = none.add2.data = NULL;
        zero.add1 = values_of(zero.add1.n, DDPM_BF16, 0);
        zero.add2 = values_of(zero.add2.n, DDPM_BF16, 0);
        run(&none);
        run(&zero);
        for (int64_t i = 0; i < none.dx1.n; i++) /* -0 + 0 is 0 */
            assert_true(value_at(none.dx1, i) == value_at(zero.dx1, i));
        for (int64_t i = 0; i < none.dx2.n; i++)
            assert_true(value_at(none.dx2, i) == value_at(zero.dx2, i));
        op_teardown(NULL);
    }
}

/* An image alone has the bits that it has among others, held and sliced. */
static void test_batch_cut(void **state)
{
    (void)state;
    for (int64_t pixels = 90; pixels <= 1440; pixels *= 16) {
        const struct shape s = {
            .n = 3, .pixels = pixels, .c1 = 32, .groups = 1, .film = true, .silu = true, .dropout = 0.2f};
        struct call all = call_of(s), one = call_of(s);
        run(&all);
        const int64_t size = pixels * 32;
        one.s.n = 1;
        one.x1.data = (float *)one.x1.data + 2 * size;
        one.dy.data = (float *)one.dy.data + 2 * size;
        one.add1.data = (float *)one.add1.data + 2 * size;
        one.film += 2 * (2 * one.c + 1);
        one.index += 2;
        run(&one);
        assert_bits((float *)one.y.data, (float *)all.y.data + 2 * size, size);
        assert_bits((float *)one.dx1.data, (float *)all.dx1.data + 2 * size, size);
        assert_bits(one.stats, all.stats + 4, 2);
        assert_bits(one.dfilm, all.dfilm + 2 * (2 * one.c + 1), 2 * one.c);
        op_teardown(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(test_held),        OP_TEST(test_single_values), OP_TEST(test_slices),          OP_TEST(test_held_limit),
        OP_TEST(test_many_images), OP_TEST(test_pivots),        OP_TEST(test_constant_slices), OP_TEST(test_aliasing),
        OP_TEST(test_without_add), OP_TEST(test_batch_cut),     OP_TEST(test_resampled),
        OP_TEST(test_given_sums),  OP_TEST(test_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

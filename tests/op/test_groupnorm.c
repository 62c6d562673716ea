/* test_groupnorm.c - GroupNorm and its gradient against float64 and finite differences, over one
 * source and two. */
#include "op_support.h"

struct shape {
    int64_t n, h, w, c1, c2;
    int groups;
    bool scale, silu;
    float dropout, mean;
    enum norm_resample resample;
};

static const struct shape shapes[] = {
    {2, 3, 5, 8, 0, 4, false, false, 0, 0, NORM_SAME},
    {2, 3, 5, 6, 0, 6, true, true, 0, 0, NORM_SAME},       /* a channel a group */
    {1, 1, 7, 9, 6, 3, false, true, 0, 0, NORM_SAME},      /* groups of 5 straddle 9 | 6 */
    {3, 4, 3, 7, 5, 1, true, true, 0.3f, 0, NORM_SAME},    /* one group; rows of 12 values */
    {2, 5, 3, 5, 0, 5, true, true, 0.25f, 0, NORM_SAME},   /* H*W*C % 4 != 0 */
    {2, 5, 3, 5, 10, 3, false, false, 0.5f, 3, NORM_SAME}, /* dropout without SiLU */
    {2, 3, 3, 32, 32, 1, true, false, 0, -2, NORM_SAME},   /* 64 channels a group */
    {1, 33, 17, 40, 24, 32, true, true, 0.1f, 1,
     NORM_SAME},                                    /* several runs of pixels, the last one short */
    {2, 3, 5, 5, 7, 4, true, true, 0, 0, NORM_UP2}, /* groups of 3 straddle 5 | 7 */
    {3, 2, 1, 8, 0, 2, false, true, 0, 0, NORM_UP2},
    {2, 4, 6, 8, 8, 4, false, true, 0, 0, NORM_MEAN2},
    {2, 2, 2, 6, 0, 3, true, false, 0, 2, NORM_MEAN2},   /* all of an image in one mean */
    {1, 34, 18, 40, 24, 32, true, true, 0, 1, NORM_UP2}, /* several runs */
    {1, 34, 18, 40, 24, 32, true, true, 0, 1, NORM_MEAN2},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

struct data {
    struct shape s;
    int64_t c, pixels, size1, size2, size;
    int64_t h, w, y_size; /* of y and dy */
    float *x1, *x2, *gamma, *beta, *embedding, *dy, *stats, *y;
    float *add1, *add2, *dx1, *dx2, *dgamma, *dbeta, *dembedding;
    uint64_t *index;
    struct step_state state;
};

static struct data make(struct shape s)
{
    struct data d = {.s = s, .c = s.c1 + s.c2, .pixels = s.h * s.w};
    d.size1 = s.n * d.pixels * s.c1;
    d.size2 = s.n * d.pixels * s.c2;
    d.size = d.size1 + d.size2;
    d.h = s.resample == NORM_UP2 ? 2 * s.h : s.resample == NORM_MEAN2 ? s.h / 2 : s.h;
    d.w = s.resample == NORM_UP2 ? 2 * s.w : s.resample == NORM_MEAN2 ? s.w / 2 : s.w;
    d.y_size = s.n * d.h * d.w * d.c;
    d.x1 = uniforms(d.size1, 1, s.mean - 1, s.mean + 2);
    d.x2 = uniforms(d.size2, 2, s.mean - 2, s.mean + 1);
    d.gamma = uniforms(d.c, 3, 0.5f, 1.5f);
    d.beta = uniforms(d.c, 4, -0.5f, 0.5f);
    d.embedding = uniforms(s.n * (2 * d.c + 3), 5, -0.5f, 0.5f); /* scale | shift | 3 more */
    d.dy = uniforms(d.y_size, 6, -1, 1);
    d.stats = zeros(s.n * s.groups * 2);
    d.y = zeros(d.y_size);
    d.add1 = uniforms(d.size1, 7, -1, 1);
    d.add2 = uniforms(d.size2, 8, -1, 1);
    d.dx1 = zeros(d.size1);
    d.dx2 = zeros(d.size2);
    d.dgamma = uniforms(d.c, 9, -1, 1);
    d.dbeta = uniforms(d.c, 10, -1, 1);
    d.dembedding = zeros(s.n * (2 * d.c + 3));
    d.index = indices(s.n, 40);
    d.state = (struct step_state){.seed = 99, .step = 12};
    return d;
}

struct tensors {
    ddpm_tensor x1, x2, gamma, beta, embedding, scale, shift, dy, stats, y;
    ddpm_tensor add1, add2, dx1, dx2, dgamma, dbeta, dembedding, dscale, dshift;
};

static struct tensors tensors_of(const struct data *d)
{
    const struct shape s = d->s;
    struct tensors t = {
        .x1 = ddpm_tensor_4d(d->x1, s.n, s.h, s.w, s.c1),
        .x2 = ddpm_tensor_4d(d->x2, s.n, s.h, s.w, s.c2),
        .gamma = ddpm_tensor_1d(d->gamma, d->c),
        .beta = ddpm_tensor_1d(d->beta, d->c),
        .embedding = ddpm_tensor_2d(d->embedding, s.n, 2 * d->c + 3),
        .dy = ddpm_tensor_4d(d->dy, s.n, d->h, d->w, d->c),
        .stats = {.data = d->stats,
                  .dtype = DDPM_F32,
                  .rank = 3,
                  .dim = {s.n, s.groups, 2},
                  .stride = {2 * s.groups, 2, 1}},
        .y = ddpm_tensor_4d(d->y, s.n, d->h, d->w, d->c),
        .add1 = ddpm_tensor_4d(d->add1, s.n, s.h, s.w, s.c1),
        .add2 = ddpm_tensor_4d(d->add2, s.n, s.h, s.w, s.c2),
        .dx1 = ddpm_tensor_4d(d->dx1, s.n, s.h, s.w, s.c1),
        .dx2 = ddpm_tensor_4d(d->dx2, s.n, s.h, s.w, s.c2),
        .dgamma = ddpm_tensor_1d(d->dgamma, d->c),
        .dbeta = ddpm_tensor_1d(d->dbeta, d->c),
        .dembedding = ddpm_tensor_2d(d->dembedding, s.n, 2 * d->c + 3),
    };
    t.scale = ddpm_tensor_slice(&t.embedding, 0, d->c);
    t.shift = ddpm_tensor_slice(&t.embedding, d->c, d->c);
    t.dscale = ddpm_tensor_slice(&t.dembedding, 0, d->c);
    t.dshift = ddpm_tensor_slice(&t.dembedding, d->c, d->c);
    return t;
}

static struct groupnorm_args forward_args(const struct data *d, const struct tensors *t)
{
    return (struct groupnorm_args){.x1 = &t->x1,
                                   .x2 = d->s.c2 ? &t->x2 : NULL,
                                   .gamma = &t->gamma,
                                   .beta = &t->beta,
                                   .scale = d->s.scale ? &t->scale : NULL,
                                   .shift = d->s.scale ? &t->shift : NULL,
                                   .groups = d->s.groups,
                                   .eps = 1e-5f,
                                   .silu = d->s.silu,
                                   .resample = d->s.resample,
                                   .dropout = d->s.dropout,
                                   .layer = 3,
                                   .state = &d->state,
                                   .index = d->index,
                                   .stats = (ddpm_tensor *)&t->stats,
                                   .y = (ddpm_tensor *)&t->y};
}

static struct groupnorm_bwd_args backward_args(const struct data *d, const struct tensors *t)
{
    const bool two = d->s.c2 > 0, film = d->s.scale;
    return (struct groupnorm_bwd_args){.dy = &t->dy,
                                       .x1 = &t->x1,
                                       .x2 = two ? &t->x2 : NULL,
                                       .gamma = &t->gamma,
                                       .beta = &t->beta,
                                       .scale = film ? &t->scale : NULL,
                                       .shift = film ? &t->shift : NULL,
                                       .stats = &t->stats,
                                       .groups = d->s.groups,
                                       .silu = d->s.silu,
                                       .resample = d->s.resample,
                                       .dropout = d->s.dropout,
                                       .layer = 3,
                                       .state = &d->state,
                                       .index = d->index,
                                       .add1 = &t->add1,
                                       .add2 = two ? &t->add2 : NULL,
                                       .dx1 = (ddpm_tensor *)&t->dx1,
                                       .dx2 = two ? (ddpm_tensor *)&t->dx2 : NULL,
                                       .dgamma = (ddpm_tensor *)&t->dgamma,
                                       .dbeta = (ddpm_tensor *)&t->dbeta,
                                       .dscale = film ? (ddpm_tensor *)&t->dscale : NULL,
                                       .dshift = film ? (ddpm_tensor *)&t->dshift : NULL};
}

static void run(int threads, const struct data *d, bool backward)
{
    ddpm_backend *be = cpu_with(threads);
    const struct tensors t = tensors_of(d);
    const struct groupnorm_args f = forward_args(d, &t);
    const struct groupnorm_bwd_args b = backward_args(d, &t);
    assert_ok(backend_ops(be)->groupnorm(be, &f));
    if (backward) assert_ok(backend_ops(be)->groupnorm_bwd(be, &b));
    ddpm_backend_free(be);
}

/* ---- float64 ---- */

/* All inputs in double, so that one of them can be moved a little. */
struct inputs {
    double *x, *gamma, *beta, *embedding; /* x [N,H,W,C], both sources together */
};

static struct inputs inputs_of(const struct data *d)
{
    const struct shape s = d->s;
    struct inputs in = {zeros64(d->size), zeros64(d->c), zeros64(d->c),
                        zeros64(s.n * (2 * d->c + 3))};
    for (int64_t p = 0; p < s.n * d->pixels; p++)
        for (int64_t c = 0; c < d->c; c++)
            in.x[p * d->c + c] =
                (double)(c < s.c1 ? d->x1[p * s.c1 + c] : d->x2[p * s.c2 + c - s.c1]);
    for (int64_t c = 0; c < d->c; c++) {
        in.gamma[c] = (double)d->gamma[c];
        in.beta[c] = (double)d->beta[c];
    }
    for (int64_t i = 0; i < s.n * (2 * d->c + 3); i++)
        in.embedding[i] = (double)d->embedding[i];
    return in;
}

static double dropout_factor(const struct data *d, int64_t n, int64_t element)
{
    if (d->s.dropout <= 0) return 1;
    const philox4 w = philox_draw(d->state.seed, PHILOX_DROPOUT, d->state.step,
                                  (uint64_t)3 << 32 | d->index[n], (uint32_t)(element / 4));
    return philox_uniform(w.v[element % 4]) >= d->s.dropout ? 1 / (1 - (double)d->s.dropout) : 0;
}

/* What a value at element `at` of an image of x adds to y. */
static void reference_put(const struct data *d, int64_t at, double value, double *y)
{
    const int64_t c = at % d->c, pixel = at / d->c, row = pixel / d->s.w, column = pixel % d->s.w;
    if (d->s.resample == NORM_SAME) {
        y[at] = value;
    } else if (d->s.resample == NORM_MEAN2) {
        y[(row / 2 * d->w + column / 2) * d->c + c] += value / 4;
    } else {
        for (int64_t k = 0; k < 4; k++)
            y[((2 * row + k / 2) * d->w + 2 * column + k % 2) * d->c + c] = value;
    }
}

/* Image n by the definition. */
static void reference_image(const struct data *d, const struct inputs *in, int64_t n, double *y,
                            double *stats)
{
    const struct shape s = d->s;
    const int64_t group = d->c / s.groups;
    memset(y, 0, (size_t)(d->h * d->w * d->c) * sizeof *y);
    const double *x = in->x + n * d->pixels * d->c, *scale = in->embedding + n * (2 * d->c + 3),
                 *shift = scale + d->c;
    for (int64_t g = 0; g < s.groups; g++) {
        double mean = 0, square = 0;
        for (int64_t p = 0; p < d->pixels; p++)
            for (int64_t c = g * group; c < (g + 1) * group; c++)
                mean += x[p * d->c + c];
        mean /= (double)(d->pixels * group);
        for (int64_t p = 0; p < d->pixels; p++)
            for (int64_t c = g * group; c < (g + 1) * group; c++)
                square += (x[p * d->c + c] - mean) * (x[p * d->c + c] - mean);
        const double rstd = 1 / sqrt(square / (double)(d->pixels * group) + (double)1e-5f);
        if (stats) stats[2 * g] = mean;
        if (stats) stats[2 * g + 1] = rstd;
        for (int64_t p = 0; p < d->pixels; p++)
            for (int64_t c = g * group; c < (g + 1) * group; c++) {
                const int64_t i = p * d->c + c;
                double u = (x[i] - mean) * rstd * in->gamma[c] + in->beta[c];
                if (s.scale) u = u * (1 + scale[c]) + shift[c];
                if (s.silu) u = u / (1 + exp(-u));
                reference_put(d, i, u * dropout_factor(d, n, i), y);
            }
    }
}

/* sum over image n of dy * y */
static double objective(const struct data *d, const struct inputs *in, int64_t n, double *room)
{
    double sum = 0;
    const int64_t size = d->h * d->w * d->c;
    reference_image(d, in, n, room, NULL);
    for (int64_t i = 0; i < size; i++)
        sum += (double)d->dy[n * size + i] * room[i];
    return sum;
}

/* Central difference in *at; the objective of image n, or of all (n < 0). */
static double difference(const struct data *d, const struct inputs *in, int64_t n, double *at,
                         double *room)
{
    const double h = 1e-4, x = *at;
    double sum = 0;
    for (int64_t k = n < 0 ? 0 : n; k < (n < 0 ? d->s.n : n + 1); k++) {
        *at = x + h;
        sum += objective(d, in, k, room);
        *at = x - h;
        sum -= objective(d, in, k, room);
    }
    *at = x;
    return sum / (2 * h);
}

/* Forward: 1e-5 of the largest value, the golden files' limit. */
static void test_forward(void **state)
{
    (void)state;
    for (int k = 0; k < SHAPES; k++) {
        const struct data d = make(shapes[k]);
        const struct inputs in = inputs_of(&d);
        double *y = zeros64(d.y_size), *stats = zeros64(d.s.n * d.s.groups * 2);
        for (int64_t n = 0; n < d.s.n; n++)
            reference_image(&d, &in, n, y + n * d.h * d.w * d.c, stats + n * d.s.groups * 2);
        run(2, &d, false);
        assert_close(d.y, y, d.y_size, 1e-5);
        assert_close(d.stats, stats, d.s.n * d.s.groups * 2, 1e-6);
    }
}

/* Sums over pixels of one source and of its squares, [N,C] each. */
static void sums_of(const float *x, int64_t n, int64_t pixels, int64_t c, float *sum, float *square)
{
    for (int64_t i = 0; i < n * c; i++) {
        double s = 0, q = 0;
        for (int64_t p = 0; p < pixels; p++) {
            const double v = (double)x[(i / c * pixels + p) * c + i % c];
            s += v;
            q += v * v;
        }
        sum[i] = (float)s;
        square[i] = (float)q;
    }
}

/* The same result with the sources' sums given, whether they are used or not; the last shape is one that kernels would read
 * twice. What squares of f32 lose: 1e-7 of mean^2 + var, of a variance of 0.75 here. */
static void test_given_sums(void **state)
{
    (void)state;
    const struct shape large = {1, 40, 40, 24, 40, 4, true, true, 0, 1, NORM_SAME};
    for (int k = 0; k <= SHAPES; k++) {
        const struct data d = make(k < SHAPES ? shapes[k] : large);
        const struct inputs in = inputs_of(&d);
        double *y = zeros64(d.y_size), *stats = zeros64(d.s.n * d.s.groups * 2);
        for (int64_t n = 0; n < d.s.n; n++)
            reference_image(&d, &in, n, y + n * d.h * d.w * d.c, stats + n * d.s.groups * 2);
        const struct tensors t = tensors_of(&d);
        const int64_t n1 = d.s.n * d.s.c1, n2 = d.s.n * d.s.c2;
        const ddpm_tensor sum1 = ddpm_tensor_2d(zeros(n1), d.s.n, d.s.c1);
        const ddpm_tensor square1 = ddpm_tensor_2d(zeros(n1), d.s.n, d.s.c1);
        const ddpm_tensor sum2 = ddpm_tensor_2d(zeros(n2), d.s.n, d.s.c2);
        const ddpm_tensor square2 = ddpm_tensor_2d(zeros(n2), d.s.n, d.s.c2);
        sums_of(d.x1, d.s.n, d.pixels, d.s.c1, sum1.data, square1.data);
        sums_of(d.x2, d.s.n, d.pixels, d.s.c2, sum2.data, square2.data);
        struct groupnorm_args a = forward_args(&d, &t);
        a.sum1 = &sum1, a.square1 = &square1;
        if (a.x2) a.sum2 = &sum2, a.square2 = &square2;
        ddpm_backend *be = cpu_with(2);
        assert_ok(backend_ops(be)->groupnorm(be, &a));
        ddpm_backend_free(be);
        assert_close(d.y, y, d.y_size, 1e-5);
        assert_close(d.stats, stats, d.s.n * d.s.groups * 2, 5e-6);
    }
}

/* Every gradient against central differences of the float64 definition, whose own error is h^2 =
 * 1e-8 of the third derivative; what is left, 2e-5 of the largest, is float32. Big tensors: every
 * 37th element. */
static void test_backward(void **state)
{
    (void)state;
    for (int k = 0; k < SHAPES; k++) {
        const struct data d = make(shapes[k]);
        const struct shape s = d.s;
        const struct inputs in = inputs_of(&d);
        double *room = zeros64(d.h * d.w * d.c);
        float *dgamma = copy_of(d.dgamma, d.c), *dbeta = copy_of(d.dbeta, d.c);
        run(2, &d, true);

        const int64_t step = d.size > 4000 ? 997 : 1;
        const int64_t count = (d.size + step - 1) / step;
        float *got = zeros(count);
        double *want = zeros64(count);
        for (int64_t i = 0; i < d.size; i += step) {
            const int64_t p = i / d.c, c = i % d.c, at1 = p * s.c1 + c, at2 = p * s.c2 + c - s.c1;
            got[i / step] = c < s.c1 ? d.dx1[at1] : d.dx2[at2];
            want[i / step] = difference(&d, &in, p / d.pixels, in.x + i, room) +
                             (double)(c < s.c1 ? d.add1[at1] : d.add2[at2]);
        }
        assert_close(got, want, count, 2e-5);

        double *want_gamma = zeros64(d.c), *want_beta = zeros64(d.c);
        float *got_film = zeros(2 * d.c * s.n);
        double *want_film = zeros64(2 * d.c * s.n);
        for (int64_t c = 0; c < d.c; c++) {
            want_gamma[c] = (double)dgamma[c] + difference(&d, &in, -1, in.gamma + c, room);
            want_beta[c] = (double)dbeta[c] + difference(&d, &in, -1, in.beta + c, room);
        }
        assert_close(d.dgamma, want_gamma, d.c, 2e-5);
        assert_close(d.dbeta, want_beta, d.c, 2e-5);
        for (int64_t i = 0; s.scale && i < 2 * d.c * s.n; i++) {
            const int64_t n = i / (2 * d.c), at = n * (2 * d.c + 3) + i % (2 * d.c);
            got_film[i] = d.dembedding[at];
            want_film[i] = difference(&d, &in, n, in.embedding + at, room);
        }
        if (s.scale) assert_close(got_film, want_film, 2 * d.c * s.n, 2e-5);
        op_teardown(NULL);
    }
}

/* silu'(u) of each value of the only source, from the statistics that forward has left. */
static double silu_gradient(const struct data *d, int64_t pixel, int64_t c)
{
    const int64_t n = pixel / d->pixels, group = d->c / d->s.groups;
    const float *stats = d->stats + 2 * (n * d->s.groups + c / group), *film = d->embedding + n * (2 * d->c + 3);
    double u = ((double)d->x1[pixel * d->c + c] - (double)stats[0]) * (double)stats[1] * (double)d->gamma[c] + (double)d->beta[c];
    if (d->s.scale) u = u * (1 + (double)film[c]) + (double)film[d->c + c];
    const double s = 1 / (1 + exp(-u));
    return s * (1 + u * (1 - s));
}

/* SiLU's gradient taken before, by whoever made dy, with sums over it: what groupnorm_bwd makes of dy with silu. The last
 * shape is one that kernels would read twice. Rounding dy * silu' to f32 is the difference. */
static void test_given_gradient(void **state)
{
    (void)state;
    const struct shape cases[] = {{2, 3, 5, 8, 0, 4, false, true, 0, 0, NORM_SAME},
                                  {2, 3, 5, 6, 0, 6, true, true, 0, 0, NORM_SAME},
                                  {2, 5, 3, 15, 0, 3, true, true, 0, -2, NORM_SAME},
                                  {2, 40, 41, 64, 0, 4, true, true, 0, 1, NORM_SAME}};
    for (int k = 0; k < 4; k++) {
        const struct data with = make(cases[k]);
        struct data d = make(cases[k]);
        run(2, &with, true);
        run(2, &d, false);
        double *sum = zeros64(d.s.n * d.c), *product = zeros64(d.s.n * d.c);
        for (int64_t p = 0; p < d.s.n * d.pixels; p++)
            for (int64_t c = 0; c < d.c; c++) {
                float *dy = d.dy + p * d.c + c;
                *dy = (float)((double)*dy * silu_gradient(&d, p, c));
                sum[p / d.pixels * d.c + c] += (double)*dy;
                product[p / d.pixels * d.c + c] += (double)*dy * (double)d.x1[p * d.c + c];
            }
        float *sums = zeros(d.s.n * d.c), *products = zeros(d.s.n * d.c);
        for (int64_t i = 0; i < d.s.n * d.c; i++) {
            sums[i] = (float)sum[i];
            products[i] = (float)product[i];
        }
        const ddpm_tensor dy_sum = ddpm_tensor_2d(sums, d.s.n, d.c), dy_x = ddpm_tensor_2d(products, d.s.n, d.c);
        const struct tensors t = tensors_of(&d);
        struct groupnorm_bwd_args a = backward_args(&d, &t);
        a.silu = false;
        a.dy_sum = &dy_sum, a.dy_x = &dy_x;
        ddpm_backend *be = cpu_with(2);
        assert_ok(backend_ops(be)->groupnorm_bwd(be, &a));
        ddpm_backend_free(be);
        const struct {
            const float *got, *want;
            int64_t n;
        } pairs[] = {{d.dx1, with.dx1, d.size1},
                     {d.dgamma, with.dgamma, d.c},
                     {d.dbeta, with.dbeta, d.c},
                     {d.dembedding, with.dembedding, d.s.n * (2 * d.c + 3)}};
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            double *want = zeros64(pairs[i].n);
            for (int64_t j = 0; j < pairs[i].n; j++)
                want[j] = (double)pairs[i].want[j];
            assert_close(pairs[i].got, want, pairs[i].n, 2e-5);
        }
    }
}

/* Mean 1000, deviation 1: values carry steps of 6e-5 and the mean itself is kept in float32, hence
 * 1e-4. */
static void test_large_mean(void **state)
{
    (void)state;
    const struct data d =
        make((struct shape){.n = 2, .h = 19, .w = 21, .c1 = 64, .groups = 8, .mean = 1000});
    const struct inputs in = inputs_of(&d);
    double *y = zeros64(d.size), *stats = zeros64(d.s.n * d.s.groups * 2);
    for (int64_t n = 0; n < d.s.n; n++)
        reference_image(&d, &in, n, y + n * d.pixels * d.c, stats + n * d.s.groups * 2);
    run(2, &d, false);
    assert_close(d.y, y, d.size, 1e-4);
    for (int g = 0; g < d.s.n * d.s.groups; g++) /* nothing cancels in the variance */
        assert_true(fabs((double)d.stats[2 * g + 1] / stats[2 * g + 1] - 1) < 2e-6);
}

/* A constant image: the variance is exactly 0, y is beta. */
static void test_constant(void **state)
{
    (void)state;
    struct data d = make((struct shape){.n = 1, .h = 9, .w = 5, .c1 = 12, .groups = 3});
    for (int64_t i = 0; i < d.size; i++)
        d.x1[i] = 0.1f;
    run(2, &d, false);
    for (int64_t i = 0; i < d.size; i++)
        assert_true(d.y[i] == d.beta[i % d.c]);
    assert_true(fabsf(d.stats[1] - 1 / sqrtf(1e-5f)) < 1e-3f);
}

static void test_threads(void **state)
{
    (void)state;
    const struct shape cases[] = {{1, 33, 17, 40, 24, 32, true, true, 0.1f, 1, NORM_SAME},
                                  {3, 21, 23, 48, 0, 16, false, true, 0, 0, NORM_SAME},
                                  {8, 5, 7, 16, 16, 8, true, true, 0.2f, 0, NORM_SAME},
                                  {1, 34, 18, 40, 24, 32, true, true, 0, 1, NORM_UP2},
                                  {8, 6, 8, 16, 0, 4, false, true, 0, 0, NORM_MEAN2}};
    for (int k = 0; k < 5; k++) {
        const struct data one = make(cases[k]);
        run(1, &one, true);
        for (int i = 1; i < THREAD_COUNTS; i++) {
            const struct data d = make(cases[k]);
            run(thread_counts[i], &d, true);
            assert_bits(d.y, one.y, d.y_size);
            assert_bits(d.stats, one.stats, d.s.n * d.s.groups * 2);
            assert_bits(d.dx1, one.dx1, d.size1);
            assert_bits(d.dx2, one.dx2, d.size2);
            assert_bits(d.dgamma, one.dgamma, d.c);
            assert_bits(d.dbeta, one.dbeta, d.c);
            assert_bits(d.dembedding, one.dembedding, d.s.n * (2 * d.c + 3));
        }
    }
}

/* Eight images at once, or four and four with their own indices: same values, same dropout. */
static void test_batch_cut(void **state)
{
    (void)state;
    const struct data all = make((struct shape){8, 5, 7, 16, 8, 8, true, true, 0.2f, 0, NORM_SAME});
    run(2, &all, true);
    for (int half = 0; half < 2; half++) {
        struct data d = make((struct shape){4, 5, 7, 16, 8, 8, true, true, 0.2f, 0, NORM_SAME});
        const int64_t at1 = half * d.size1, at2 = half * d.size2, at = half * d.size,
                      row = 2 * d.c + 3;
        d.x1 = all.x1 + at1;
        d.x2 = all.x2 + at2;
        d.add1 = all.add1 + at1;
        d.add2 = all.add2 + at2;
        d.dy = all.dy + at;
        d.embedding = all.embedding + half * 4 * row;
        d.index = all.index + half * 4;
        run(2, &d, true);
        assert_bits(d.y, all.y + at, d.size);
        assert_bits(d.dx1, all.dx1 + at1, d.size1);
        assert_bits(d.dx2, all.dx2 + at2, d.size2);
        assert_bits(d.dembedding, all.dembedding + half * 4 * row, 4 * row);
    }
}

/* y may be x1; dx1 may be dy, or the tensor that is added: same bits as apart. */
static void test_aliasing(void **state)
{
    (void)state;
    const struct shape s = {2, 9, 7, 24, 0, 6, true, true, 0.25f, 0, NORM_SAME};
    const struct data apart = make(s);
    run(2, &apart, true);

    struct data d = make(s);
    d.y = copy_of(d.x1, d.size);
    float *x1 = d.x1;
    d.x1 = d.y;
    run(2, &d, false);
    assert_bits(d.y, apart.y, d.size);
    d.x1 = x1;
    d.y = zeros(d.size);
    d.dx1 = d.dy;
    run(2, &d, true);
    assert_bits(d.dx1, apart.dx1, d.size);

    struct data e = make(s);
    e.dx1 = e.add1;
    run(2, &e, true);
    assert_bits(e.dx1, apart.dx1, d.size);

    const struct shape two = {2, 9, 7, 24, 8, 8, false, true, 0.25f, 0, NORM_SAME};
    const struct data apart2 = make(two);
    run(2, &apart2, true);
    struct data f = make(two);
    f.dx2 = f.add2;
    run(2, &f, true);
    assert_bits(f.dx1, apart2.dx1, f.size1);
    assert_bits(f.dx2, apart2.dx2, f.size2);
}

/* A resampled y and its gradients against GroupNorm and resampling as two ops. On the CPU the same
 * bits; on a GPU, where only the former is sure to be cut in slices, sums are rounded in another
 * order. */
static void test_resample_apart(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        const struct shape s = {
            2, 6, 10, 24, 8, 4, true, true, 0, 0, k == 0 ? NORM_UP2 : NORM_MEAN2};
        struct shape plain = s;
        plain.resample = NORM_SAME;
        const struct data both = make(s);
        struct data apart = make(plain);
        run(2, &both, true);
        run(2, &apart, false);
        const struct tensors t = tensors_of(&both), p = tensors_of(&apart);
        float *y = zeros(both.y_size);
        ddpm_tensor resampled = t.y, dx = p.dy;
        resampled.data = y;
        ddpm_backend *be = cpu_with(2);
        const struct ops *ops = backend_ops(be);
        if (s.resample == NORM_UP2) {
            assert_ok(ops->upsample2(be, &(struct upsample2_args){.x = &p.y, .y = &resampled}));
            assert_ok(ops->upsample2_bwd(be, &(struct upsample2_bwd_args){.dy = &t.dy, .dx = &dx}));
        } else {
            assert_ok(ops->avgpool2(be, &(struct avgpool2_args){.x = &p.y, .y = &resampled}));
            assert_ok(ops->avgpool2_bwd(be, &(struct avgpool2_bwd_args){.dy = &t.dy, .dx = &dx}));
        }
        ddpm_backend_free(be);
        run(2, &apart, true);
        const bool on_cpu = strcmp(op_device(), "cpu") == 0;
        const struct {
            const float *a, *b;
            int64_t n;
        } pairs[] = {{both.y, y, both.y_size},
                     {both.dx1, apart.dx1, both.size1},
                     {both.dx2, apart.dx2, both.size2},
                     {both.dgamma, apart.dgamma, both.c},
                     {both.dbeta, apart.dbeta, both.c},
                     {both.dembedding, apart.dembedding, s.n * (2 * both.c + 3)}};
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            double *want = zeros64(pairs[i].n);
            for (int64_t j = 0; j < pairs[i].n; j++)
                want[j] = (double)pairs[i].b[j];
            if (on_cpu) assert_bits(pairs[i].a, pairs[i].b, pairs[i].n);
            assert_close(pairs[i].a, want, pairs[i].n, 1e-5);
        }
    }
}

/* Dropout keeps 1 - p of the elements, scales them, and draws anew each step, layer and image. */
static void test_dropout_share(void **state)
{
    (void)state;
    struct data d = make((struct shape){2, 32, 32, 16, 0, 4, false, false, 0.3f, 0, NORM_SAME});
    for (int64_t c = 0; c < d.c; c++) {
        d.gamma[c] = 0;
        d.beta[c] = 1;
    }
    run(2, &d, false);
    const float *first = copy_of(d.y, d.size);
    int64_t kept_elements = 0, same_image = 0, same_step = 0;
    d.state.step++;
    run(2, &d, false);
    for (int64_t i = 0; i < d.size; i++) {
        assert_true(first[i] == 0 || first[i] == 1 / (1 - 0.3f));
        kept_elements += first[i] != 0;
        same_step += first[i] == d.y[i];
        if (i < d.size / 2) same_image += first[i] == first[i + d.size / 2];
    }
    /* binomial, 32768 draws: five standard deviations are 415 */
    assert_true(llabs(kept_elements - 22938) < 415);
    assert_true(llabs(same_step - 19005) < 450); /* p^2 + (1-p)^2 = 0.58 */
    assert_true(llabs(same_image - 9503) < 320);
}

static void test_fails(void **state)
{
    (void)state;
    const struct data d = make((struct shape){2, 3, 5, 8, 4, 4, true, true, 0, 0, NORM_SAME});
    struct tensors t = tensors_of(&d);
    ddpm_backend *be = cpu_with(1);
    const struct ops *ops = backend_ops(be);
    struct groupnorm_args f = forward_args(&d, &t);
    struct groupnorm_bwd_args b = backward_args(&d, &t);
    f.groups = 5;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("5 groups do not divide 12 channels");
    f.groups = 0;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    f = forward_args(&d, &t);
    f.x2 = NULL; /* gamma has 12 channels, x1 8 */
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    f = forward_args(&d, &t);
    f.y = NULL;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    f = forward_args(&d, &t);
    f.dropout = 1;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    f.dropout = 0.5f;
    f.index = NULL;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("dropout needs state and index");
    f = forward_args(&d, &t);
    f.resample = NORM_UP2; /* y has x's extents */
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("y");
    f.resample = NORM_MEAN2; /* 3 x 5 pixels */
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("both must be even");
    f.resample = (enum norm_resample)3;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    f.resample = NORM_UP2;
    f.dropout = 0.5f;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("no dropout where y is resampled");
    f = forward_args(&d, &t);
    ddpm_tensor sum = ddpm_tensor_2d(zeros(2 * 8), 2, 8);
    f.sum1 = &sum;
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("sums without squares");
    f.square1 = &sum;
    f.sum2 = f.square2 = &sum; /* x2 has 4 channels */
    assert_status(ops->groupnorm(be, &f), DDPM_SHAPE);
    assert_message("sum2");
    b.resample = NORM_UP2; /* dy has x's extents */
    assert_status(ops->groupnorm_bwd(be, &b), DDPM_SHAPE);
    b = backward_args(&d, &t);
    b.dscale = NULL;
    assert_status(ops->groupnorm_bwd(be, &b), DDPM_SHAPE);
    b = backward_args(&d, &t);
    b.dx2 = NULL;
    assert_status(ops->groupnorm_bwd(be, &b), DDPM_SHAPE);
    b = backward_args(&d, &t);
    t.add1.dim[1]++;
    assert_status(ops->groupnorm_bwd(be, &b), DDPM_SHAPE);

    /* while measuring nothing is touched, and scratch is counted */
    t = tensors_of(&d);
    t.x1.data = t.x2.data = t.y.data = t.stats.data = NULL;
    ddpm_backend_measure(be, true);
    f = forward_args(&d, &t);
    assert_ok(ops->groupnorm(be, &f));
    assert_true(ddpm_backend_scratch_bytes(be) > 0);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(test_forward),  OP_TEST(test_backward),      OP_TEST(test_large_mean),
        OP_TEST(test_constant), OP_TEST(test_threads),       OP_TEST(test_batch_cut),
        OP_TEST(test_aliasing), OP_TEST(test_dropout_share), OP_TEST(test_resample_apart),
        OP_TEST(test_given_sums), OP_TEST(test_given_gradient), OP_TEST(test_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

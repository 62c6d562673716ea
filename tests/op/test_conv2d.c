/* test_conv2d.c - the three passes of a convolution against a float64 loop: shapes odd and even,
 * every path, the bits on 1, 2 and 3 threads, the gradients by finite differences, the faults of
 * the contract. */
#include "op_support.h"

struct shape {
    int n, h, w, c, k, kernel, stride, pt, pl, pb, pr;
    int extra; /* channels of x that are not the view's */
};

static const struct shape shapes[] = {
    {2, 8, 8, 16, 32, 3, 1, 1, 1, 1, 1, 0},    {1, 16, 16, 64, 64, 3, 1, 1, 1, 1, 1, 0},
    {3, 7, 5, 32, 48, 3, 1, 1, 1, 1, 1, 0},    {2, 9, 6, 3, 32, 3, 1, 1, 1, 1, 1, 0},
    {2, 6, 9, 32, 3, 3, 1, 1, 1, 1, 1, 0},     {1, 28, 28, 1, 24, 3, 1, 1, 1, 1, 1, 0},
    {2, 5, 5, 24, 1, 3, 1, 1, 1, 1, 1, 0},     {2, 8, 8, 32, 32, 3, 2, 0, 0, 1, 1, 0},
    {9, 4, 4, 17, 19, 3, 2, 1, 1, 1, 1, 0},    {2, 3, 3, 5, 7, 3, 1, 0, 0, 0, 0, 0},
    {2, 7, 6, 20, 33, 1, 1, 0, 0, 0, 0, 0},    {2, 7, 6, 20, 33, 1, 2, 0, 0, 0, 0, 0},
    {1, 20, 20, 96, 64, 1, 1, 0, 0, 0, 0, 32}, {2, 6, 6, 32, 32, 3, 1, 1, 1, 1, 1, 16},
    {2, 5, 4, 8, 8, 1, 1, 1, 1, 1, 1, 0},      {10, 4, 4, 64, 128, 3, 1, 1, 1, 1, 1, 0},
    {1, 1, 1, 16, 16, 3, 1, 1, 1, 1, 1, 0},    {2, 2, 2, 32, 32, 3, 1, 1, 1, 1, 1, 0},
    {1, 13, 18, 40, 36, 3, 1, 1, 1, 1, 1, 8},  {2, 8, 8, 16, 16, 3, 1, 2, 2, 0, 1, 0},
    {1, 32, 32, 16, 128, 3, 1, 1, 1, 1, 1, 0}, {2, 10, 10, 128, 96, 3, 1, 1, 1, 1, 1, 0},
    {2, 5, 7, 272, 250, 1, 1, 0, 0, 0, 0, 0},
};
#define N_SHAPES ((int)(sizeof shapes / sizeof *shapes))

/* A case's tensors and its answers by the definition, in float64. */
struct fixture {
    struct shape s;
    int ho, wo;
    int64_t nx, nw, ny; /* nx: of the wide tensor that x is a slice of */
    float *x, *w, *bias, *emb, *residual, *dy;
    double *y, *dx, *dw, *db, *demb;
    ddpm_tensor tx, tw, tbias, temb, tres, tdy;
};

static void reference(struct fixture *f)
{
    const struct shape *s = &f->s;
    const int wide = s->c + s->extra;
    for (int n = 0; n < s->n; n++)
        for (int i = 0; i < f->ho; i++)
            for (int j = 0; j < f->wo; j++)
                for (int k = 0; k < s->k; k++) {
                    const int64_t at = (((int64_t)n * f->ho + i) * f->wo + j) * s->k + k;
                    double sum = (double)f->bias[k] + f->emb[n * s->k + k] + f->residual[at];
                    const double g = f->dy[at];
                    f->db[k] += g;
                    f->demb[n * s->k + k] += g;
                    for (int u = 0; u < s->kernel; u++)
                        for (int v = 0; v < s->kernel; v++) {
                            const int h = i * s->stride + u - s->pt, w = j * s->stride + v - s->pl;
                            if (h < 0 || h >= s->h || w < 0 || w >= s->w) continue;
                            const int64_t xa = (((int64_t)n * s->h + h) * s->w + w) * wide;
                            const int64_t wa =
                                (((int64_t)k * s->kernel + u) * s->kernel + v) * s->c;
                            for (int c = 0; c < s->c; c++) {
                                sum += (double)f->x[xa + c] * f->w[wa + c];
                                f->dx[xa + c] += g * f->w[wa + c];
                                f->dw[wa + c] += g * f->x[xa + c];
                            }
                        }
                    f->y[at] = sum;
                }
}

static void setup(struct fixture *f, const struct shape *s)
{
    memset(f, 0, sizeof *f);
    f->s = *s;
    f->ho = (s->h + s->pt + s->pb - s->kernel) / s->stride + 1;
    f->wo = (s->w + s->pl + s->pr - s->kernel) / s->stride + 1;
    f->nx = (int64_t)s->n * s->h * s->w * (s->c + s->extra);
    f->nw = (int64_t)s->k * s->kernel * s->kernel * s->c;
    f->ny = (int64_t)s->n * f->ho * f->wo * s->k;
    f->x = uniforms(f->nx, 1, -1, 1);
    f->w = uniforms(f->nw, 2, -1, 1);
    f->bias = uniforms(s->k, 3, -1, 1);
    f->emb = uniforms((int64_t)s->n * s->k, 4, -1, 1);
    f->residual = uniforms(f->ny, 5, -1, 1);
    f->dy = uniforms(f->ny, 6, -1, 1);
    f->y = zeros64(f->ny);
    f->dx = zeros64(f->nx);
    f->dw = zeros64(f->nw);
    f->db = zeros64(s->k);
    f->demb = zeros64((int64_t)s->n * s->k);
    const ddpm_tensor whole = ddpm_tensor_4d(f->x, s->n, s->h, s->w, s->c + s->extra);
    f->tx = ddpm_tensor_slice(&whole, 0, s->c);
    f->tw = ddpm_tensor_4d(f->w, s->k, s->kernel, s->kernel, s->c);
    f->tbias = ddpm_tensor_1d(f->bias, s->k);
    f->temb = ddpm_tensor_2d(f->emb, s->n, s->k);
    f->tres = ddpm_tensor_4d(f->residual, s->n, f->ho, f->wo, s->k);
    f->tdy = ddpm_tensor_4d(f->dy, s->n, f->ho, f->wo, s->k);
    reference(f);
}

#define GEOMETRY(f)                                                                                \
    .stride = (f)->s.stride, .pad_top = (f)->s.pt, .pad_left = (f)->s.pl, .pad_bottom = (f)->s.pb, \
    .pad_right = (f)->s.pr

static void forward(ddpm_backend *be, struct fixture *f, float *y)
{
    ddpm_tensor ty = ddpm_tensor_4d(y, f->s.n, f->ho, f->wo, f->s.k);
    assert_ok(backend_ops(be)->conv2d(be, &(struct conv2d_args){.x = &f->tx,
                                                                .w = &f->tw,
                                                                .bias = &f->tbias,
                                                                .emb = &f->temb,
                                                                .residual = &f->tres,
                                                                GEOMETRY(f),
                                                                .y = &ty}));
}

static void data(ddpm_backend *be, struct fixture *f, bool accumulate, float *dx)
{
    const ddpm_tensor whole = ddpm_tensor_4d(dx, f->s.n, f->s.h, f->s.w, f->s.c + f->s.extra);
    ddpm_tensor tdx = ddpm_tensor_slice(&whole, 0, f->s.c);
    assert_ok(backend_ops(be)->conv2d_bwd_data(
        be, &(struct conv2d_bwd_data_args){
                .dy = &f->tdy, .w = &f->tw, GEOMETRY(f), .accumulate = accumulate, .dx = &tdx}));
}

static void filter(ddpm_backend *be, struct fixture *f, float *dw, float *db, float *demb)
{
    ddpm_tensor tdw = ddpm_tensor_4d(dw, f->s.k, f->s.kernel, f->s.kernel, f->s.c),
                tdb = ddpm_tensor_1d(db, f->s.k);
    ddpm_tensor tdemb = ddpm_tensor_2d(demb, f->s.n, f->s.k);
    assert_ok(backend_ops(be)->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){
                .x = &f->tx, .dy = &f->tdy, GEOMETRY(f), .dw = &tdw, .db = &tdb, .demb = &tdemb}));
}

static void name_case(char *out, size_t size, const struct shape *s, const char *what)
{
    snprintf(out, size, "%s of [%d,%d,%d,%d+%d] to %d, %dx%d, stride %d", what, s->n, s->h, s->w,
             s->c, s->extra, s->k, s->kernel, s->kernel, s->stride);
}

static void check_case(ddpm_backend *be, const struct shape *s)
{
    struct fixture f;
    char name[160];
    setup(&f, s);
    float *y = zeros(f.ny), *dx = zeros(f.nx), *dw = zeros(f.nw), *db = zeros(s->k);
    float *demb = zeros((int64_t)s->n * s->k);
    forward(be, &f, y);
    name_case(name, sizeof name, s, "y");
    close_at(__FILE__, __LINE__, name, y, f.y, f.ny, OP_TOLERANCE);

    /* the other channels of the wide tensor stay what they were: zero, as in the reference */
    data(be, &f, false, dx);
    name_case(name, sizeof name, s, "dx");
    close_at(__FILE__, __LINE__, name, dx, f.dx, f.nx, OP_TOLERANCE);
    data(be, &f, true, dx);
    for (int64_t i = 0; i < f.nx; i++)
        f.dx[i] *= 2;
    name_case(name, sizeof name, s, "dx added");
    close_at(__FILE__, __LINE__, name, dx, f.dx, f.nx, OP_TOLERANCE);

    for (int twice = 1; twice <= 2; twice++) {
        filter(be, &f, dw, db, demb);
        for (int64_t i = 0; i < f.nw; i++)
            f.dw[i] *= twice;
        for (int64_t i = 0; i < s->k; i++)
            f.db[i] *= twice;
        name_case(name, sizeof name, s, "dw");
        close_at(__FILE__, __LINE__, name, dw, f.dw, f.nw, OP_TOLERANCE);
        close_at(__FILE__, __LINE__, "db", db, f.db, s->k, OP_TOLERANCE);
        close_at(__FILE__, __LINE__, "demb", demb, f.demb, (int64_t)s->n * s->k, OP_TOLERANCE);
    }
}

static void all_passes_equal_the_definition(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    for (int i = 0; i < N_SHAPES; i++)
        check_case(be, &shapes[i]);
    ddpm_backend_free(be);
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i += op_shape_step()) {
        struct fixture f;
        setup(&f, &shapes[i]);
        const int64_t ndemb = (int64_t)f.s.n * f.s.k, all = f.ny + f.nx + f.nw + f.s.k + ndemb;
        float *first = NULL;
        for (int threads = 1; threads <= op_most_threads(); threads++) {
            ddpm_backend *be = cpu_with(threads);
            float *r = zeros(all);
            forward(be, &f, r);
            data(be, &f, false, r + f.ny);
            filter(be, &f, r + f.ny + f.nx, r + f.ny + f.nx + f.nw, r + all - ndemb);
            if (first) assert_bits(first, r, all);
            first = r;
            ddpm_backend_free(be);
        }
    }
}

/* y may stand in for the residual; bias, emb and residual may each be missing. */
static void epilogue_parts_are_optional(void **state)
{
    (void)state;
    static const int which[] = {0, 1, 7, 10};
    ddpm_backend *be = cpu_with(2);
    for (int i = 0; i < 4; i++) {
        struct fixture f;
        setup(&f, &shapes[which[i]]);
        float *y = zeros(f.ny), *z = zeros(f.ny);
        ddpm_tensor ty = ddpm_tensor_4d(y, f.s.n, f.ho, f.wo, f.s.k), tz = ty;
        tz.data = z;
        memcpy(y, f.residual, (size_t)f.ny * sizeof *y);
        struct conv2d_args a = {.x = &f.tx,
                                .w = &f.tw,
                                .bias = &f.tbias,
                                .emb = &f.temb,
                                .residual = &ty,
                                GEOMETRY(&f),
                                .y = &ty};
        assert_ok(backend_ops(be)->conv2d(be, &a));
        close_at(__FILE__, __LINE__, "y in place of the residual", y, f.y, f.ny, OP_TOLERANCE);
        a = (struct conv2d_args){.x = &f.tx, .w = &f.tw, GEOMETRY(&f), .y = &tz};
        assert_ok(backend_ops(be)->conv2d(be, &a));
        for (int64_t j = 0; j < f.ny; j++)
            f.y[j] -= (double)f.bias[j % f.s.k] +
                      f.emb[j / ((int64_t)f.ho * f.wo * f.s.k) * f.s.k + j % f.s.k] + f.residual[j];
        close_at(__FILE__, __LINE__, "bare y", z, f.y, f.ny, OP_TOLERANCE);
    }
    ddpm_backend_free(be);
}

/* A convolution is linear, so central differences over a whole random direction are exact but for
 * rounding. */
static void gradients_are_finite_differences(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &shapes[2]);
    ddpm_backend *be = cpu_with(2);
    float *y = zeros(f.ny), *dx = zeros(f.nx), *dw = zeros(f.nw), *db = zeros(f.s.k);
    float *demb = zeros((int64_t)f.s.n * f.s.k);
    data(be, &f, false, dx);
    filter(be, &f, dw, db, demb);
    float *const value[] = {f.x, f.w, f.bias, f.emb}, *const gradient[] = {dx, dw, db, demb};
    const int64_t count[] = {f.nx, f.nw, f.s.k, (int64_t)f.s.n * f.s.k};
    for (int i = 0; i < 4; i++) {
        float *direction = uniforms(count[i], 40 + (uint64_t)i, -1, 1);
        double loss[2];
        for (int side = 0; side < 2; side++) {
            for (int64_t j = 0; j < count[i]; j++)
                value[i][j] += side ? -2 * direction[j] : direction[j];
            forward(be, &f, y);
            loss[side] = dot_product(y, f.dy, f.ny);
        }
        const double by_difference = (loss[0] - loss[1]) / 2,
                     by_gradient = dot_product(gradient[i], direction, count[i]);
        /* of the size of the loss's own terms: f32 rounding of y */
        assert_true(fabs(by_difference - by_gradient) <=
                    1e-4 * (fabs(by_gradient) + sqrt((double)f.ny)));
        for (int64_t j = 0; j < count[i]; j++)
            value[i][j] += direction[j];
    }
    ddpm_backend_free(be);
}

/* A 1x1 kernel may be a view of some input channels of a wider one; its gradient leaves the others
 * alone. */
static void kernel_may_be_a_view(void **state)
{
    (void)state;
    enum { N = 2, H = 5, W = 6, C1 = 24, C2 = 40, K = 16, P = N * H * W };
    ddpm_backend *be = cpu_with(2);
    float *x1 = uniforms(P * C1, 1, -1, 1), *x2 = uniforms(P * C2, 2, -1, 1),
          *w = uniforms(K * (C1 + C2), 3, -1, 1), *y = zeros(P * K);
    float *dw = zeros(K * (C1 + C2)), *dy = uniforms(P * K, 4, -1, 1);
    double *want = zeros64(P * K), *want_dw = zeros64(K * (C1 + C2));
    for (int p = 0; p < P; p++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < C1 + C2; c++) {
                const double x = c < C1 ? x1[p * C1 + c] : x2[p * C2 + c - C1];
                want[p * K + k] += x * w[k * (C1 + C2) + c];
                want_dw[k * (C1 + C2) + c] += x * dy[p * K + k];
            }
    const ddpm_tensor t1 = ddpm_tensor_4d(x1, N, H, W, C1), t2 = ddpm_tensor_4d(x2, N, H, W, C2);
    const ddpm_tensor whole = ddpm_tensor_4d(w, K, 1, 1, C1 + C2),
                      dwhole = ddpm_tensor_4d(dw, K, 1, 1, C1 + C2);
    const ddpm_tensor w1 = ddpm_tensor_slice(&whole, 0, C1), w2 = ddpm_tensor_slice(&whole, C1, C2);
    ddpm_tensor dw1 = ddpm_tensor_slice(&dwhole, 0, C1), dw2 = ddpm_tensor_slice(&dwhole, C1, C2);
    ddpm_tensor ty = ddpm_tensor_4d(y, N, H, W, K), tdy = ddpm_tensor_4d(dy, N, H, W, K);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->conv2d(be, &(struct conv2d_args){.x = &t1, .w = &w1, .stride = 1, .y = &ty}));
    assert_ok(ops->conv2d(
        be, &(struct conv2d_args){.x = &t2, .w = &w2, .residual = &ty, .stride = 1, .y = &ty}));
    close_at(__FILE__, __LINE__, "y", y, want, P * K, OP_TOLERANCE);
    assert_ok(ops->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){.x = &t1, .dy = &tdy, .stride = 1, .dw = &dw1}));
    assert_ok(ops->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){.x = &t2, .dy = &tdy, .stride = 1, .dw = &dw2}));
    close_at(__FILE__, __LINE__, "dw", dw, want_dw, K * (C1 + C2), OP_TOLERANCE);
    ddpm_backend_free(be);
}

static void frozen_weights_give_the_same_bits(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    for (int i = 0; i < N_SHAPES; i += op_shape_step()) {
        struct fixture f;
        setup(&f, &shapes[i]);
        float *plain = zeros(f.ny), *frozen = zeros(f.ny);
        forward(be, &f, plain);
        ddpm_backend_freeze_weights(be, true);
        for (int again = 0; again < 2; again++) {
            forward(be, &f, frozen);
            assert_bits(plain, frozen, f.ny);
        }
        ddpm_backend_freeze_weights(be, false);
        for (int64_t j = 0; j < f.nw; j++)
            f.w[j] += 1; /* seen once thawed */
        forward(be, &f, frozen);
        assert_true(memcmp(plain, frozen, (size_t)f.ny * sizeof *plain) != 0);
    }
    ddpm_backend_free(be);
}

/* Measuring touches nothing and tells the scratch; after the first real call the memory stays what
 * it is. */
static void memory_is_measured_and_stays(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    struct fixture f;
    setup(&f, &shapes[15]);
    float *r = zeros(f.ny + f.nx + f.nw + f.s.k + (int64_t)f.s.n * f.s.k);
    float *dw = r + f.ny + f.nx, *db = dw + f.nw, *demb = db + f.s.k;
    for (int round = 0; round < 3; round++) {
        ddpm_backend_measure(be, round == 0);
        const size_t before = ddpm_backend_memory(be);
        forward(be, &f, r);
        data(be, &f, false, r + f.ny);
        filter(be, &f, dw, db, demb);
        if (round == 0) {
            for (int64_t i = 0; i < f.ny + f.nx + f.nw; i++)
                assert_true(r[i] == 0);
            assert_int_equal(ddpm_backend_memory(be), 0);
        }
        if (round == 1) assert_int_equal(ddpm_backend_memory(be), ddpm_backend_scratch_bytes(be));
        if (round == 2) assert_int_equal(ddpm_backend_memory(be), before);
    }
    ddpm_backend_free(be);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct ops *ops = backend_ops(be);
    float *p = zeros(4096);
    ddpm_tensor x = ddpm_tensor_4d(p, 1, 4, 4, 8), w = ddpm_tensor_4d(p, 8, 3, 3, 8),
                y = ddpm_tensor_4d(p, 1, 4, 4, 8);
    const ddpm_tensor narrow = ddpm_tensor_4d(p, 8, 3, 3, 4), small = ddpm_tensor_1d(p, 7),
                      even = ddpm_tensor_4d(p, 8, 2, 2, 8);
    const struct conv2d_args good = {.x = &x,
                                     .w = &w,
                                     .stride = 1,
                                     .pad_top = 1,
                                     .pad_left = 1,
                                     .pad_bottom = 1,
                                     .pad_right = 1,
                                     .y = &y};
    struct conv2d_args a = good;
    a.w = &narrow;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    assert_non_null(strstr(ddpm_last_error(), "w is [8,3,3,4], expected [?,?,?,8]"));
    a = good;
    a.bias = &small;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    a = good;
    a.pad_right = 0;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    a = good;
    a.stride = 3;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    a = good;
    ddpm_tensor sum = ddpm_tensor_2d(p, 1, 8);
    a.sum = &sum;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    assert_message("go together");
    a = good;
    a.w = &even;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    a = good;
    a.x = NULL;
    assert_status(ops->conv2d(be, &a), DDPM_SHAPE);
    x.dtype = DDPM_U8;
    assert_status(ops->conv2d(be, &good), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(all_passes_equal_the_definition),
        OP_TEST(bits_do_not_depend_on_threads),
        OP_TEST(epilogue_parts_are_optional),
        OP_TEST(gradients_are_finite_differences),
        OP_TEST(kernel_may_be_a_view),
        OP_TEST(frozen_weights_give_the_same_bits),
        OP_TEST(memory_is_measured_and_stays),
        OP_TEST(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

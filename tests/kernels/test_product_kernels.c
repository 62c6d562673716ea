/* test_product_kernels.c - the fallback's convolutions and dense layers in both element types: rows, columns and inner
 * dimensions around a tile of 64 x 64 x 32, channels that share a step, pointers off a pack's boundary, views that keep
 * packs and views that do not, filters summed in parts. The ops' own tests cover the contract in f32; here every value
 * is held against float64 computed from the rounded inputs, and packs against single elements to the bit. */
#include "halves.h"

struct shape {
    int n, h, w, c, k, kernel, stride, top, left, bottom, right;
    int extra; /* channels of x, or columns of a matrix, outside the view */
};

static const struct shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0},     {1, 3, 3, 1, 2, 3, 1, 0, 0, 0, 0, 0},
    {1, 7, 9, 8, 8, 3, 1, 1, 1, 1, 1, 0},     {1, 8, 8, 16, 24, 3, 1, 1, 1, 1, 1, 0},
    {1, 5, 13, 17, 63, 1, 1, 0, 0, 0, 0, 0},  {2, 6, 6, 32, 64, 3, 2, 0, 0, 1, 1, 0},
    {1, 9, 7, 33, 65, 3, 2, 1, 1, 1, 1, 0},   {3, 4, 4, 40, 72, 1, 1, 0, 0, 0, 0, 8},
    {2, 5, 4, 8, 16, 3, 1, 2, 0, 1, 2, 3},    {1, 33, 32, 8, 8, 1, 1, 0, 0, 0, 0, 0},
    {1, 23, 47, 3, 8, 3, 1, 1, 1, 1, 1, 0},   {1, 6, 5, 64, 8, 1, 2, 2, 2, 2, 2, 0},
    {2, 4, 4, 72, 3, 3, 1, 1, 1, 1, 1, 0},    {1, 5, 1, 24, 32, 3, 2, 1, 1, 1, 1, 16},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* f32 sums of so many products below 1: the sum wanders to their square root, and every addition rounds to 2^-24 of it.
 * The parts of the epilogue are four terms more. */
static double limit_of(double terms)
{
    return (terms + 4) * sqrt(terms + 4) / (1 << 24);
}

struct conv {
    struct shape s;
    int ho, wo;
    struct values x, w, residual, dy, y, dx;
    float *bias, *emb, *dw, *demb;
    double *want_y, *want_dx, *want_dw;
    ddpm_tensor tx, tw, tbias, temb, tresidual, tdy, ty, tdx, tdw, tdemb;
};

/* Columns 0 .. columns-1 of a matrix of f32 that is `extra` wider. */
static ddpm_tensor columns_of(float *data, int64_t rows, int64_t columns, int64_t extra)
{
    const ddpm_tensor whole = ddpm_tensor_2d(data, rows, columns + extra);
    return ddpm_tensor_slice(&whole, 0, columns);
}

static ddpm_tensor image(struct values v, const struct shape *s)
{
    const ddpm_tensor whole = tensor_of(v, ddpm_tensor_4d(NULL, s->n, s->h, s->w, s->c + s->extra));
    ddpm_tensor view = ddpm_tensor_slice(&whole, 0, s->c);
    return view;
}

static void reference(struct conv *f)
{
    const struct shape *s = &f->s;
    const int wide = s->c + s->extra, pixels = s->n * f->ho * f->wo, taps = s->kernel * s->kernel;
    for (int p = 0; p < pixels; p++)
        for (int k = 0; k < s->k; k++) {
            const int n = p / (f->ho * f->wo), i = p / f->wo % f->ho, j = p % f->wo;
            const double g = value_at(f->dy, (int64_t)p * s->k + k);
            double sum = (double)f->bias[k] + (double)f->emb[n * (s->k + 5) + k];
            sum += value_at(f->residual, (int64_t)p * s->k + k);
            for (int tap = 0; tap < taps; tap++) {
                const int h = i * s->stride + tap / s->kernel - s->top, w = j * s->stride + tap % s->kernel - s->left;
                if (h < 0 || h >= s->h || w < 0 || w >= s->w) continue;
                const int64_t at = (((int64_t)n * s->h + h) * s->w + w) * wide, of = ((int64_t)k * taps + tap) * s->c;
                for (int c = 0; c < s->c; c++) {
                    const double x = value_at(f->x, at + c), weight = value_at(f->w, of + c);
                    sum += x * weight;
                    f->want_dx[at + c] += g * weight;
                    f->want_dw[of + c] += g * x;
                }
            }
            f->want_y[(int64_t)p * s->k + k] = sum;
        }
}

static void setup(struct conv *f, const struct shape *s, ddpm_dtype dtype, int askew)
{
    const int ho = (s->h + s->top + s->bottom - s->kernel) / s->stride + 1;
    const int wo = (s->w + s->left + s->right - s->kernel) / s->stride + 1;
    const int64_t nx = (int64_t)s->n * s->h * s->w * (s->c + s->extra), ny = (int64_t)s->n * ho * wo * s->k;
    const int64_t nw = (int64_t)s->k * s->kernel * s->kernel * s->c;
    *f = (struct conv){.s = *s, .ho = ho, .wo = wo,
                       .x = random_values(nx, dtype, askew, 1, -1, 1), .w = random_values(nw, dtype, askew, 2, -1, 1),
                       .residual = random_values(ny, dtype, askew, 3, -1, 1),
                       .dy = random_values(ny, dtype, askew, 4, -1, 1),
                       .y = values_of(ny, dtype, askew), .dx = values_of(nx, dtype, askew),
                       .bias = uniforms(s->k, 5, -1, 1), .emb = uniforms(s->n * (s->k + 5), 6, -1, 1),
                       .dw = zeros(nw), .demb = zeros(s->n * s->k),
                       .want_y = zeros64(ny), .want_dx = zeros64(nx), .want_dw = zeros64(nw)};
    f->tx = image(f->x, s);
    f->tdx = image(f->dx, s);
    f->tw = tensor_of(f->w, ddpm_tensor_4d(NULL, s->k, s->kernel, s->kernel, s->c));
    f->tdw = ddpm_tensor_4d(f->dw, s->k, s->kernel, s->kernel, s->c);
    const ddpm_tensor y = ddpm_tensor_4d(NULL, s->n, ho, wo, s->k);
    f->ty = tensor_of(f->y, y);
    f->tdy = tensor_of(f->dy, y);
    f->tresidual = tensor_of(f->residual, y);
    f->tbias = ddpm_tensor_1d(f->bias, s->k);
    f->temb = columns_of(f->emb, s->n, s->k, 5);
    reference(f);
}

#define GEOMETRY(f)                                                                                \
    .stride = (f)->s.stride, .pad_top = (f)->s.top, .pad_left = (f)->s.left, .pad_bottom = (f)->s.bottom, \
    .pad_right = (f)->s.right

static void forward(ddpm_backend *be, struct conv *f)
{
    assert_ok(backend_ops(be)->conv2d(
        be, &(struct conv2d_args){.x = &f->tx, .w = &f->tw, .bias = &f->tbias, .emb = &f->temb,
                                  .residual = &f->tresidual, GEOMETRY(f), .y = &f->ty}));
}

static void data(ddpm_backend *be, struct conv *f, bool accumulate)
{
    assert_ok(backend_ops(be)->conv2d_bwd_data(
        be, &(struct conv2d_bwd_data_args){.dy = &f->tdy, .w = &f->tw, GEOMETRY(f), .accumulate = accumulate,
                                           .dx = &f->tdx}));
}

static void filter(ddpm_backend *be, struct conv *f)
{
    assert_ok(backend_ops(be)->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){.x = &f->tx, .dy = &f->tdy, GEOMETRY(f), .dw = &f->tdw}));
}

static struct values floats(float *x, int64_t n)
{
    return (struct values){x, n, DDPM_F32};
}

static void check_conv(ddpm_backend *be, struct conv *f)
{
    const struct shape *s = &f->s;
    const int64_t nw = (int64_t)s->k * s->kernel * s->kernel * s->c;
    const double taps = s->kernel * s->kernel;
    forward(be, f);
    assert_values(f->y, f->want_y, limit_of(taps * s->c));
    f->tresidual = f->ty;
    memcpy(f->y.data, f->residual.data, (size_t)f->y.n * ddpm_dtype_size(f->y.dtype));
    forward(be, f); /* y in place of the residual */
    assert_values(f->y, f->want_y, limit_of(taps * s->c));

    data(be, f, false); /* channels outside the view stay zero, as in the reference */
    assert_values(f->dx, f->want_dx, limit_of(taps * s->k));
    for (int64_t i = 0; i < f->dx.n; i++)
        f->want_dx[i] += value_at(f->dx, i);
    data(be, f, true);
    assert_values(f->dx, f->want_dx, limit_of(taps * s->k));

    for (int times = 1; times <= 2; times++) { /* the second adds */
        filter(be, f);
        for (int64_t i = 0; i < nw; i++)
            f->want_dw[i] *= times;
        assert_values(floats(f->dw, nw), f->want_dw, times * limit_of((double)s->n * f->ho * f->wo));
    }
}

static void convolutions_equal_the_definition(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int i = 0; i < SHAPES; i++)
        for (int kind = 0; kind < KINDS; kind++) {
            struct conv f;
            setup(&f, &shapes[i], kinds[kind].dtype, kinds[kind].askew);
            check_conv(be, &f);
            op_teardown(NULL);
        }
    ddpm_backend_free(be);
}

/* The order of a sum is that of shapes: how the operands lie in memory changes no bit. */
static void packs_and_single_elements_give_the_same_bits(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int i = 0; i < SHAPES; i++)
        for (int dtype = 0; dtype < 2; dtype++) {
            struct conv f[2];
            for (int askew = 0; askew < 2; askew++) {
                setup(&f[askew], &shapes[i], dtype ? DDPM_BF16 : DDPM_F32, askew);
                forward(be, &f[askew]);
                data(be, &f[askew], false);
                filter(be, &f[askew]);
            }
            assert_same_values(f[0].y, f[1].y);
            assert_same_values(f[0].dx, f[1].dx);
            assert_bits(f[0].dw, f[1].dw, (int64_t)f[0].s.k * f[0].s.kernel * f[0].s.kernel * f[0].s.c);
            op_teardown(NULL);
        }
    ddpm_backend_free(be);
}

/* A 1x1 kernel that is a view of a wider one, and its gradient, in parts and in one. */
static void check_kernel_view(ddpm_backend *be, ddpm_dtype dtype, int begin, int pixels)
{
    enum { C = 16, WIDE = 40, K = 24 };
    const struct values x = random_values((int64_t)pixels * C, dtype, 0, 1, -1, 1);
    const struct values dy = random_values((int64_t)pixels * K, dtype, 0, 2, -1, 1);
    const struct values w = random_values(K * WIDE, dtype, 0, 3, -1, 1), y = values_of((int64_t)pixels * K, dtype, 0);
    float *dw = zeros(K * WIDE);
    double *want_y = zeros64((int64_t)pixels * K), *want_dw = zeros64(K * WIDE);
    for (int p = 0; p < pixels; p++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < C; c++) {
                want_y[p * K + k] += value_at(x, p * C + c) * value_at(w, k * WIDE + begin + c);
                want_dw[k * WIDE + begin + c] += value_at(x, p * C + c) * value_at(dy, p * K + k);
            }
    const ddpm_tensor whole = tensor_of(w, ddpm_tensor_4d(NULL, K, 1, 1, WIDE));
    const ddpm_tensor tw = ddpm_tensor_slice(&whole, begin, C);
    const ddpm_tensor dwhole = ddpm_tensor_4d(dw, K, 1, 1, WIDE);
    const ddpm_tensor tx = tensor_of(x, ddpm_tensor_4d(NULL, 1, pixels, 1, C));
    const ddpm_tensor tdy = tensor_of(dy, ddpm_tensor_4d(NULL, 1, pixels, 1, K));
    ddpm_tensor ty = tensor_of(y, tdy), tdw = ddpm_tensor_slice(&dwhole, begin, C);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->conv2d(be, &(struct conv2d_args){.x = &tx, .w = &tw, .stride = 1, .y = &ty}));
    assert_values(y, want_y, limit_of(C));
    const struct conv2d_bwd_filter_args filter = {.x = &tx, .dy = &tdy, .stride = 1, .dw = &tdw};
    assert_ok(ops->conv2d_bwd_filter(be, &filter));
    assert_values(floats(dw, K * WIDE), want_dw, limit_of(pixels)); /* zero outside the view */
}

static void kernel_may_be_a_view(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int dtype = 0; dtype < 2; dtype++)
        for (int begin = 8; begin < 10; begin++) {
            check_kernel_view(be, dtype ? DDPM_BF16 : DDPM_F32, begin, 100);
            check_kernel_view(be, dtype ? DDPM_BF16 : DDPM_F32, begin, 1500);
            op_teardown(NULL);
        }
    ddpm_backend_free(be);
}

/* ---- dense layers ---- */

static ddpm_tensor matrix(struct values v, int64_t rows, int64_t columns, int64_t extra)
{
    const ddpm_tensor whole = tensor_of(v, ddpm_tensor_2d(NULL, rows, columns + extra));
    return ddpm_tensor_slice(&whole, 0, columns);
}

static void check_linear(ddpm_backend *be, int m, int in, int out, int extra, ddpm_dtype dtype, int askew)
{
    const int sx = in + extra, sy = out + extra;
    const struct values x = random_values((int64_t)m * sx, dtype, askew, 1, -1, 1);
    const struct values w = random_values((int64_t)out * in, dtype, askew, 2, -1, 1);
    const struct values dy = random_values((int64_t)m * sy, dtype, askew, 3, -1, 1);
    const struct values y = values_of((int64_t)m * sy, dtype, askew), dx = values_of((int64_t)m * sx, dtype, askew);
    float *bias = uniforms(out, 4, -1, 1), *dw = zeros((int64_t)out * in), *db = zeros(out);
    double *want_y = zeros64((int64_t)m * sy), *want_dx = zeros64((int64_t)m * sx);
    double *want_dw = zeros64((int64_t)out * in), *want_db = zeros64(out);
    for (int r = 0; r < m; r++)
        for (int o = 0; o < out; o++) {
            const double g = value_at(dy, r * sy + o);
            double sum = (double)bias[o];
            want_db[o] += g;
            for (int i = 0; i < in; i++) {
                sum += value_at(x, r * sx + i) * value_at(w, o * in + i);
                want_dx[r * sx + i] += g * value_at(w, o * in + i);
                want_dw[o * in + i] += g * value_at(x, r * sx + i);
            }
            want_y[r * sy + o] = sum;
        }
    const ddpm_tensor tx = matrix(x, m, in, extra), tw = matrix(w, out, in, 0), tdy = matrix(dy, m, out, extra);
    const ddpm_tensor tbias = ddpm_tensor_1d(bias, out);
    ddpm_tensor ty = matrix(y, m, out, extra), tdx = matrix(dx, m, in, extra);
    ddpm_tensor tdw = ddpm_tensor_2d(dw, out, in), tdb = ddpm_tensor_1d(db, out);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->linear(be, &(struct linear_args){.x = &tx, .w = &tw, .bias = &tbias, .y = &ty}));
    assert_values(y, want_y, limit_of(in)); /* zero outside the view */
    struct linear_bwd_args bwd = {.x = &tx, .w = &tw, .dy = &tdy, .dx = &tdx, .dw = &tdw, .db = &tdb};
    assert_ok(ops->linear_bwd(be, &bwd));
    assert_values(dx, want_dx, limit_of(out));
    assert_values(floats(dw, (int64_t)out * in), want_dw, limit_of(m));
    assert_values(floats(db, out), want_db, limit_of(m));
    for (int64_t i = 0; i < dx.n; i++)
        want_dx[i] += value_at(dx, i);
    for (int64_t i = 0; i < out * in; i++)
        want_dw[i] *= 2;
    for (int o = 0; o < out; o++)
        want_db[o] *= 2;
    bwd.accumulate = true;
    assert_ok(ops->linear_bwd(be, &bwd));
    assert_values(dx, want_dx, limit_of(out));
    assert_values(floats(dw, (int64_t)out * in), want_dw, 2 * limit_of(m));
    assert_values(floats(db, out), want_db, 2 * limit_of(m));
}

static void dense_layers_equal_the_definition(void **state)
{
    (void)state;
    static const int cases[][4] = {{1, 1, 1, 0},   {1, 64, 130, 0}, {63, 8, 65, 0},   {64, 33, 7, 8},
                                   {65, 32, 64, 3}, {3, 200, 16, 0}, {1100, 8, 8, 8}, {5, 24, 40, 8}};
    ddpm_backend *be = cpu_with(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int kind = 0; kind < KINDS; kind++) {
            check_linear(be, cases[i][0], cases[i][1], cases[i][2], cases[i][3], kinds[kind].dtype, kinds[kind].askew);
            op_teardown(NULL);
        }
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(convolutions_equal_the_definition),
        OP_TEST(packs_and_single_elements_give_the_same_bits),
        OP_TEST(kernel_may_be_a_view),
        OP_TEST(dense_layers_equal_the_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

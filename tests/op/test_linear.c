/* test_linear.c - dense layers against a float64 loop, few rows and many, views, threads, faults.
 */
#include "op_support.h"

struct shape {
    int m, in, out, extra; /* extra columns of x, y, dx, dy outside the view */
};

static const struct shape shapes[] = {
    {1, 1, 1, 0},       {1, 128, 512, 0},  {8, 512, 300, 0},  {16, 33, 17, 3},
    {17, 64, 64, 0},    {64, 100, 10, 0},  {200, 48, 130, 5}, {3, 512, 1000, 8},
    {193, 257, 129, 0}, {400, 16, 513, 1}, {5, 7, 3, 0},      {128, 600, 96, 0},
    {130, 300, 260, 4},
};
#define N_SHAPES ((int)(sizeof shapes / sizeof *shapes))

struct fixture {
    struct shape s;
    int64_t nx, nw, ny;
    float *x, *w, *b, *dy;
    double *y, *dx, *dw, *db;
    ddpm_tensor tx, tw, tb, tdy;
};

static ddpm_tensor view(float *data, int rows, int columns, int extra)
{
    const ddpm_tensor whole = ddpm_tensor_2d(data, rows, columns + extra);
    return ddpm_tensor_slice(&whole, 0, columns);
}

static void setup(struct fixture *f, const struct shape *s)
{
    const int sx = s->in + s->extra, sy = s->out + s->extra;
    *f = (struct fixture){
        .s = *s, .nx = (int64_t)s->m * sx, .nw = (int64_t)s->out * s->in, .ny = (int64_t)s->m * sy};
    f->x = uniforms(f->nx, 1, -1, 1);
    f->w = uniforms(f->nw, 2, -1, 1);
    f->b = uniforms(s->out, 3, -1, 1);
    f->dy = uniforms(f->ny, 4, -1, 1);
    f->y = zeros64(f->ny);
    f->dx = zeros64(f->nx);
    f->dw = zeros64(f->nw);
    f->db = zeros64(s->out);
    for (int m = 0; m < s->m; m++)
        for (int o = 0; o < s->out; o++) {
            const double g = f->dy[m * sy + o];
            double sum = f->b[o];
            for (int i = 0; i < s->in; i++) {
                sum += (double)f->x[m * sx + i] * f->w[o * s->in + i];
                f->dx[m * sx + i] += g * f->w[o * s->in + i];
                f->dw[o * s->in + i] += g * f->x[m * sx + i];
            }
            f->y[m * sy + o] = sum;
            f->db[o] += g;
        }
    f->tx = view(f->x, s->m, s->in, s->extra);
    f->tw = ddpm_tensor_2d(f->w, s->out, s->in);
    f->tb = ddpm_tensor_1d(f->b, s->out);
    f->tdy = view(f->dy, s->m, s->out, s->extra);
}

static void forward(ddpm_backend *be, struct fixture *f, float *y)
{
    ddpm_tensor ty = view(y, f->s.m, f->s.out, f->s.extra);
    assert_ok(backend_ops(be)->linear(
        be, &(struct linear_args){.x = &f->tx, .w = &f->tw, .bias = &f->tb, .y = &ty}));
}

static void backward(ddpm_backend *be, struct fixture *f, bool accumulate, float *dx, float *dw,
                     float *db)
{
    ddpm_tensor tdx = view(dx, f->s.m, f->s.in, f->s.extra),
                tdw = ddpm_tensor_2d(dw, f->s.out, f->s.in);
    ddpm_tensor tdb = ddpm_tensor_1d(db, f->s.out);
    assert_ok(backend_ops(be)->linear_bwd(be, &(struct linear_bwd_args){.x = &f->tx,
                                                                        .w = &f->tw,
                                                                        .dy = &f->tdy,
                                                                        .accumulate = accumulate,
                                                                        .dx = &tdx,
                                                                        .dw = &tdw,
                                                                        .db = &tdb}));
}

static void both_passes_equal_the_definition(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    for (int i = 0; i < N_SHAPES; i++) {
        struct fixture f;
        setup(&f, &shapes[i]);
        float *y = zeros(f.ny), *dx = zeros(f.nx), *dw = zeros(f.nw), *db = zeros(f.s.out);
        forward(be, &f, y);
        close_at(__FILE__, __LINE__, "y", y, f.y, f.ny, OP_TOLERANCE);
        for (int times = 1; times <= 2; times++) { /* the second adds */
            backward(be, &f, times == 2, dx, dw, db);
            for (int64_t j = 0; times == 2 && j < f.nx; j++)
                f.dx[j] *= 2;
            for (int64_t j = 0; times == 2 && j < f.nw; j++)
                f.dw[j] *= 2;
            for (int64_t j = 0; times == 2 && j < f.s.out; j++)
                f.db[j] *= 2;
            close_at(__FILE__, __LINE__, "dx", dx, f.dx, f.nx, OP_TOLERANCE);
            close_at(__FILE__, __LINE__, "dw", dw, f.dw, f.nw, OP_TOLERANCE);
            close_at(__FILE__, __LINE__, "db", db, f.db, f.s.out, OP_TOLERANCE);
        }
    }
    ddpm_backend_free(be);
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i += op_shape_step()) {
        struct fixture f;
        setup(&f, &shapes[i]);
        const int64_t all = f.ny + f.nx + f.nw + f.s.out;
        float *first = NULL;
        for (int threads = 1; threads <= op_most_threads(); threads++) {
            ddpm_backend *be = cpu_with(threads);
            float *r = zeros(all);
            forward(be, &f, r);
            backward(be, &f, false, r + f.ny, r + f.ny + f.nx, r + f.ny + f.nx + f.nw);
            if (first) assert_bits(first, r, all);
            first = r;
            ddpm_backend_free(be);
        }
    }
}

/* Linear in x, w and b each, so central differences are exact but for rounding. */
static void gradients_are_finite_differences(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &shapes[3]);
    ddpm_backend *be = cpu_with(2);
    float *y = zeros(f.ny), *dx = zeros(f.nx), *dw = zeros(f.nw), *db = zeros(f.s.out);
    backward(be, &f, false, dx, dw, db);
    float *const value[] = {f.x, f.w, f.b}, *const gradient[] = {dx, dw, db};
    const int64_t count[] = {f.nx, f.nw, f.s.out};
    for (int i = 0; i < 3; i++) {
        float *direction = uniforms(count[i], 30 + (uint64_t)i, -1, 1);
        double loss[2];
        for (int side = 0; side < 2; side++) {
            for (int64_t j = 0; j < count[i]; j++)
                value[i][j] += side ? -2 * direction[j] : direction[j];
            forward(be, &f, y);
            loss[side] = dot_product(y, f.dy, f.ny);
        }
        const double by_gradient = dot_product(gradient[i], direction, count[i]);
        assert_true(fabs((loss[0] - loss[1]) / 2 - by_gradient) <=
                    1e-4 * (fabs(by_gradient) + sqrt((double)f.ny)));
        for (int64_t j = 0; j < count[i]; j++)
            value[i][j] += direction[j];
    }
    ddpm_backend_free(be);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct ops *ops = backend_ops(be);
    float *p = zeros(256);
    ddpm_tensor x = ddpm_tensor_2d(p, 2, 8), w = ddpm_tensor_2d(p, 4, 8),
                y = ddpm_tensor_2d(p, 2, 4);
    const ddpm_tensor narrow = ddpm_tensor_2d(p, 4, 7), bias = ddpm_tensor_1d(p, 5);
    assert_status(ops->linear(be, &(struct linear_args){.x = &x, .w = &narrow, .y = &y}),
                  DDPM_SHAPE);
    assert_non_null(strstr(ddpm_last_error(), "w is [4,7], expected [?,8]"));
    assert_status(ops->linear(be, &(struct linear_args){.x = &x, .w = &w, .bias = &bias, .y = &y}),
                  DDPM_SHAPE);
    assert_status(ops->linear(be, &(struct linear_args){.x = &x, .w = &w, .y = &x}), DDPM_SHAPE);
    assert_status(ops->linear(be, &(struct linear_args){.x = &x, .w = &w}), DDPM_SHAPE);
    assert_status(
        ops->linear_bwd(be, &(struct linear_bwd_args){.x = &x, .dy = &y, .w = &w, .dw = &y}),
        DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(both_passes_equal_the_definition),
        OP_TEST(bits_do_not_depend_on_threads),
        OP_TEST(gradients_are_finite_differences),
        OP_TEST(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

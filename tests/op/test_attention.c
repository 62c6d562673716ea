/* test_attention.c - attention and its gradients against a float64 loop: one head and many, both
 * orders of a joint projection's slices, lengths around the block size, large scores, threads,
 * finite differences, faults. */
#include "op_support.h"

struct shape {
    int n, t, heads, d;
    bool heads_first; /* q, k, v of a head side by side, heads behind each other; else all of q,
                         then k, then v */
    float size;       /* of q and k */
};

static const struct shape shapes[] = {
    {1, 1, 1, 1, false, 1},   {2, 16, 1, 32, false, 1}, {1, 256, 1, 64, false, 1},
    {2, 49, 4, 16, true, 1},  {3, 9, 2, 5, true, 1},    {1, 97, 1, 33, false, 1},
    {2, 64, 2, 64, true, 20}, {1, 200, 3, 8, false, 1}, {1, 96, 1, 96, false, 5},
    {1, 33, 1, 1, false, 1},  {4, 4, 8, 12, true, 1},   {1, 300, 1, 24, true, 1},
};
#define N_SHAPES ((int)(sizeof shapes / sizeof *shapes))

struct fixture {
    struct shape s;
    int64_t nqkv, no, nl;
    float scale;
    float *qkv, *d_o;
    double *o, *lse, *dqkv;
    ddpm_tensor q, k, v;
};

/* Slice `which` (0 q, 1 k, 2 v) of a joint projection [N,T,3*heads*D]. */
static ddpm_tensor slice(float *qkv, const struct shape *s, int which)
{
    const int64_t wide = (int64_t)3 * s->heads * s->d;
    return (ddpm_tensor){.data = qkv +
                                 (s->heads_first ? which * s->d : (int64_t)which * s->heads * s->d),
                         .dtype = DDPM_F32,
                         .rank = 4,
                         .dim = {s->n, s->t, s->heads, s->d},
                         .stride = {s->t * wide, wide, s->heads_first ? 3 * s->d : s->d, 1}};
}

static int64_t place(const ddpm_tensor *x, const float *base, int n, int t, int h)
{
    return (const float *)x->data - base + n * x->stride[0] + t * x->stride[1] + h * x->stride[2];
}

/* One query: its row of probabilities p, o, lse, and what it adds to the gradients. */
static void reference_row(struct fixture *f, int n, int h, int i, double *p)
{
    const struct shape *s = &f->s;
    const int64_t at_o = (((int64_t)n * s->t + i) * s->heads + h) * s->d,
                  qi = place(&f->q, f->qkv, n, i, h);
    double most = -INFINITY, sum = 0, delta = 0;
    for (int j = 0; j < s->t; j++) {
        const int64_t kj = place(&f->k, f->qkv, n, j, h);
        p[j] = 0;
        for (int e = 0; e < s->d; e++)
            p[j] += (double)f->qkv[qi + e] * f->qkv[kj + e] * f->scale;
        if (p[j] > most) most = p[j];
    }
    for (int j = 0; j < s->t; j++)
        sum += p[j] = exp(p[j] - most);
    f->lse[((int64_t)n * s->heads + h) * s->t + i] = most + log(sum);
    for (int j = 0; j < s->t; j++) {
        const int64_t vj = place(&f->v, f->qkv, n, j, h);
        p[j] /= sum;
        for (int e = 0; e < s->d; e++) {
            f->o[at_o + e] += p[j] * f->qkv[vj + e];
            f->dqkv[vj + e] += p[j] * f->d_o[at_o + e];
        }
    }
    for (int e = 0; e < s->d; e++)
        delta += f->o[at_o + e] * f->d_o[at_o + e];
    for (int j = 0; j < s->t; j++) {
        const int64_t kj = place(&f->k, f->qkv, n, j, h), vj = place(&f->v, f->qkv, n, j, h);
        double dp = 0;
        for (int e = 0; e < s->d; e++)
            dp += (double)f->d_o[at_o + e] * f->qkv[vj + e];
        const double ds = p[j] * (dp - delta) * f->scale;
        for (int e = 0; e < s->d; e++) {
            f->dqkv[qi + e] += ds * f->qkv[kj + e];
            f->dqkv[kj + e] += ds * f->qkv[qi + e];
        }
    }
}

static void setup(struct fixture *f, const struct shape *s)
{
    const int64_t rows = (int64_t)s->n * s->t * s->heads;
    *f = (struct fixture){.s = *s,
                          .nqkv = 3 * rows * s->d,
                          .no = rows * s->d,
                          .nl = rows,
                          .scale = 1 / sqrtf((float)s->d)};
    f->qkv = uniforms(f->nqkv, 1, -1, 1);
    f->d_o = uniforms(f->no, 2, -1, 1);
    f->q = slice(f->qkv, s, 0);
    f->k = slice(f->qkv, s, 1);
    f->v = slice(f->qkv, s, 2);
    for (int64_t i = 0; i < f->nqkv; i++)
        f->qkv[i] *= s->size;
    f->o = zeros64(f->no);
    f->lse = zeros64(f->nl);
    f->dqkv = zeros64(f->nqkv);
    double *p = zeros64(s->t);
    for (int n = 0; n < s->n; n++)
        for (int h = 0; h < s->heads; h++)
            for (int i = 0; i < s->t; i++)
                reference_row(f, n, h, i, p);
}

static void forward(ddpm_backend *be, struct fixture *f, float *o, float *lse)
{
    ddpm_tensor to = ddpm_tensor_4d(o, f->s.n, f->s.t, f->s.heads, f->s.d),
                tl = {.data = lse,
                      .dtype = DDPM_F32,
                      .rank = 3,
                      .dim = {f->s.n, f->s.heads, f->s.t},
                      .stride = {(int64_t)f->s.heads * f->s.t, f->s.t, 1}};
    assert_ok(backend_ops(be)->attention(be, &(struct attention_args){.q = &f->q,
                                                                      .k = &f->k,
                                                                      .v = &f->v,
                                                                      .scale = f->scale,
                                                                      .o = &to,
                                                                      .lse = lse ? &tl : NULL}));
}

static void backward(ddpm_backend *be, struct fixture *f, float *o, float *lse, float *dqkv)
{
    const struct shape *s = &f->s;
    const ddpm_tensor to = ddpm_tensor_4d(o, s->n, s->t, s->heads, s->d),
                      td = ddpm_tensor_4d(f->d_o, s->n, s->t, s->heads, s->d);
    const ddpm_tensor tl = {.data = lse,
                            .dtype = DDPM_F32,
                            .rank = 3,
                            .dim = {s->n, s->heads, s->t},
                            .stride = {(int64_t)s->heads * s->t, s->t, 1}};
    ddpm_tensor dq = slice(dqkv, s, 0), dk = slice(dqkv, s, 1), dv = slice(dqkv, s, 2);
    assert_ok(backend_ops(be)->attention_bwd(be, &(struct attention_bwd_args){.q = &f->q,
                                                                              .k = &f->k,
                                                                              .v = &f->v,
                                                                              .o = &to,
                                                                              .lse = &tl,
                                                                              .d_o = &td,
                                                                              .scale = f->scale,
                                                                              .dq = &dq,
                                                                              .dk = &dk,
                                                                              .dv = &dv}));
}

static void both_passes_equal_the_definition(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    for (int i = 0; i < N_SHAPES; i++) {
        struct fixture f;
        setup(&f, &shapes[i]);
        float *o = zeros(f.no), *lse = zeros(f.nl), *dqkv = zeros(f.nqkv);
        /* f32 scores of size s carry an error of s * 6e-8 into the exponent */
        const double tolerance = f.s.size > 1 ? 1e-4 : OP_TOLERANCE;
        forward(be, &f, o, NULL);
        close_at(__FILE__, __LINE__, "o without lse", o, f.o, f.no, tolerance);
        forward(be, &f, o, lse);
        close_at(__FILE__, __LINE__, "o", o, f.o, f.no, tolerance);
        for (int64_t j = 0; j < f.nl; j++) /* lse may be near 0 */
            assert_true(fabs(lse[j] - f.lse[j]) <= tolerance * (1 + fabs(f.lse[j])));
        backward(be, &f, o, lse, dqkv);
        close_at(__FILE__, __LINE__, "dq, dk, dv", dqkv, f.dqkv, f.nqkv, tolerance);
    }
    ddpm_backend_free(be);
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i += op_shape_step()) {
        struct fixture f;
        setup(&f, &shapes[i]);
        const int64_t all = f.no + f.nl + f.nqkv;
        float *first = NULL;
        for (int threads = 1; threads <= op_most_threads(); threads++) {
            ddpm_backend *be = cpu_with(threads);
            float *r = zeros(all);
            forward(be, &f, r, r + f.no);
            backward(be, &f, r, r + f.no, r + f.no + f.nl);
            if (first) assert_bits(first, r, all);
            first = r;
            ddpm_backend_free(be);
        }
    }
}

static void gradient_is_a_finite_difference(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, &shapes[4]);
    ddpm_backend *be = cpu_with(1);
    float *o = zeros(f.no), *lse = zeros(f.nl), *dqkv = zeros(f.nqkv),
          *direction = uniforms(f.nqkv, 9, -1, 1);
    forward(be, &f, o, lse);
    backward(be, &f, o, lse, dqkv);
    const float step = 1e-2f; /* error of the difference about step^2, of rounding 1e-7 / step */
    double loss[2];
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < f.nqkv; i++)
            f.qkv[i] += (side ? -2 : 1) * step * direction[i];
        forward(be, &f, o, NULL);
        loss[side] = dot_product(o, f.d_o, f.no);
    }
    const double by_gradient = dot_product(dqkv, direction, f.nqkv);
    assert_true(fabs((loss[0] - loss[1]) / (2 * step) - by_gradient) <=
                1e-3 * (1 + fabs(by_gradient)));
    ddpm_backend_free(be);
}

/* A long sequence costs blocks of rows, not T x T. */
static void scratch_does_not_grow_with_t_squared(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    const struct shape s = {.n = 1, .t = 8192, .heads = 4, .d = 64};
    const ddpm_tensor q = slice(NULL, &s, 0);
    ddpm_tensor o = ddpm_tensor_4d(NULL, s.n, s.t, s.heads, s.d);
    ddpm_backend_measure(be, true);
    assert_ok(backend_ops(be)->attention(
        be, &(struct attention_args){.q = &q, .k = &q, .v = &q, .scale = 1, .o = &o}));
    if (ddpm_backend_is_cpu(be))
        assert_true(ddpm_backend_scratch_bytes(be) > 0); /* CUDA's goes by tiles on the chip */
    assert_true(ddpm_backend_scratch_bytes(be) < (size_t)s.t * (size_t)s.t * sizeof(float) / 16);
    ddpm_backend_free(be);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const struct ops *ops = backend_ops(be);
    float *p = zeros(4096);
    const ddpm_tensor q = ddpm_tensor_4d(p, 1, 8, 2, 4), other = ddpm_tensor_4d(p, 1, 7, 2, 4),
                      lse = ddpm_tensor_1d(p, 16);
    ddpm_tensor o = ddpm_tensor_4d(p, 1, 8, 2, 4), flat = lse;
    assert_status(
        ops->attention(
            be, &(struct attention_args){.q = &q, .k = &other, .v = &q, .scale = 1, .o = &o}),
        DDPM_SHAPE);
    assert_non_null(strstr(ddpm_last_error(), "k is [1,7,2,4], expected [1,8,2,4]"));
    assert_status(ops->attention(be,
                                 &(struct attention_args){
                                     .q = &q, .k = &q, .v = &q, .scale = 1, .o = &o, .lse = &flat}),
                  DDPM_SHAPE);
    assert_status(ops->attention_bwd(be, &(struct attention_bwd_args){.q = &q,
                                                                      .k = &q,
                                                                      .v = &q,
                                                                      .o = &q,
                                                                      .lse = &lse,
                                                                      .d_o = &q,
                                                                      .dq = &o,
                                                                      .dk = &o,
                                                                      .dv = &o}),
                  DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(both_passes_equal_the_definition), OP_TEST(bits_do_not_depend_on_threads),
        OP_TEST(gradient_is_a_finite_difference),  OP_TEST(scratch_does_not_grow_with_t_squared),
        OP_TEST(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

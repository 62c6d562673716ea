/* test_attention_kernels.c - the fallback's attention in both element types: tokens around a tile of 64, columns
 * around a step of 32, a slice of 64 and the widest block of 128, pointers off a pack's boundary, both orders of a
 * joint projection, a maximum that keeps moving from tile to tile. The op's own test covers the contract in f32; here
 * every value is held against float64 computed from the rounded inputs. */
#include "halves.h"

struct shape {
    int n, t, heads, d;
    bool heads_first; /* q, k, v of a head side by side; else all of q, then k, then v */
    float scale;      /* 0: 1 / sqrt(d) */
    float grow;       /* key j is 1 + grow j long */
};

static const struct shape shapes[] = {
    {1, 1, 1, 1, false, 0, 0},          {2, 63, 2, 8, true, 0, 0},     {1, 64, 1, 32, false, 0, 0},
    {1, 65, 2, 33, false, 0, 0},        {1, 129, 1, 64, true, 0, 0},   {2, 16, 3, 24, true, 0, 0},
    {1, 70, 1, 65, false, 0, 0},        {1, 20, 1, 136, false, 0, 0},  {1, 66, 1, 264, true, 0, 0},
    {1, 5, 2, 131, false, 0, 0},        {1, 200, 1, 16, false, 0, 0.05f}, {1, 150, 1, 8, true, -0.5f, 0.02f},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

struct fixture {
    struct shape s;
    float scale;
    struct values qkv, d_o, o, dqkv;
    float *lse;
    double *want_o, *want_lse, *want_dqkv;
    ddpm_tensor q, k, v, to, tlse, td_o, dq, dk, dv;
};

/* Slice `which` (0 q, 1 k, 2 v) of a joint projection [N,T,3*heads*D]. */
static ddpm_tensor slice(struct values joint, const struct shape *s, int which)
{
    const int64_t wide = (int64_t)3 * s->heads * s->d;
    const int64_t begin = s->heads_first ? which * s->d : (int64_t)which * s->heads * s->d;
    ddpm_tensor t = tensor_of(joint, ddpm_tensor_4d(NULL, s->n, s->t, s->heads, s->d));
    t.data = (unsigned char *)joint.data + (size_t)begin * ddpm_dtype_size(joint.dtype);
    t.stride[0] = s->t * wide;
    t.stride[1] = wide;
    t.stride[2] = s->heads_first ? 3 * s->d : s->d;
    return t;
}

/* Where token t of a head begins in the joint projection. */
static int64_t place(const struct shape *s, int which, int n, int t, int h)
{
    const int64_t head = s->heads_first ? ((int64_t)h * 3 + which) * s->d : ((int64_t)which * s->heads + h) * s->d;
    return ((int64_t)n * s->t + t) * 3 * s->heads * s->d + head;
}

static double dot(struct values a, int64_t i, struct values b, int64_t j, int d)
{
    double sum = 0;
    for (int e = 0; e < d; e++)
        sum += value_at(a, i + e) * value_at(b, j + e);
    return sum;
}

/* One query's probabilities, and its o and lse. */
static void reference_forward(struct fixture *f, int n, int h, int i, double *p)
{
    const struct shape *s = &f->s;
    const int64_t at = (((int64_t)n * s->t + i) * s->heads + h) * s->d;
    double most = -INFINITY, sum = 0;
    for (int j = 0; j < s->t; j++) {
        p[j] = (double)f->scale * dot(f->qkv, place(s, 0, n, i, h), f->qkv, place(s, 1, n, j, h), s->d);
        most = fmax(most, p[j]);
    }
    for (int j = 0; j < s->t; j++)
        sum += p[j] = exp(p[j] - most);
    f->want_lse[((int64_t)n * s->heads + h) * s->t + i] = most + log(sum);
    for (int j = 0; j < s->t; j++) {
        p[j] /= sum;
        for (int e = 0; e < s->d; e++)
            f->want_o[at + e] += p[j] * value_at(f->qkv, place(s, 2, n, j, h) + e);
    }
}

/* What one query adds to the gradients, with the o that was stored. */
static void reference_backward(struct fixture *f, int n, int h, int i, const double *p)
{
    const struct shape *s = &f->s;
    const int64_t at = (((int64_t)n * s->t + i) * s->heads + h) * s->d, q = place(s, 0, n, i, h);
    const double delta = dot(f->d_o, at, f->o, at, s->d);
    for (int j = 0; j < s->t; j++) {
        const int64_t k = place(s, 1, n, j, h), v = place(s, 2, n, j, h);
        const double ds = p[j] * (dot(f->d_o, at, f->qkv, v, s->d) - delta) * (double)f->scale;
        for (int e = 0; e < s->d; e++) {
            f->want_dqkv[q + e] += ds * value_at(f->qkv, k + e);
            f->want_dqkv[k + e] += ds * value_at(f->qkv, q + e);
            f->want_dqkv[v + e] += p[j] * value_at(f->d_o, at + e);
        }
    }
}

static void setup(struct fixture *f, const struct shape *s, ddpm_dtype dtype, int askew)
{
    const int64_t rows = (int64_t)s->n * s->t * s->heads, count = rows * s->d;
    *f = (struct fixture){.s = *s, .scale = s->scale == 0 ? 1 / sqrtf((float)s->d) : s->scale,
                          .qkv = random_values(3 * count, dtype, askew, 1, -1, 1),
                          .d_o = random_values(count, dtype, askew, 2, -1, 1), .o = values_of(count, dtype, askew),
                          .dqkv = values_of(3 * count, dtype, askew), .lse = zeros(rows), .want_o = zeros64(count),
                          .want_lse = zeros64(rows), .want_dqkv = zeros64(3 * count)};
    for (int n = 0; n < s->n; n++)
        for (int h = 0; h < s->heads; h++)
            for (int j = 0; j < s->t; j++)
                for (int e = 0; e < s->d; e++) {
                    const int64_t at = place(s, 1, n, j, h) + e;
                    value_set(f->qkv, at, (float)value_at(f->qkv, at) * (1 + s->grow * (float)j));
                }
    ddpm_tensor *const views[] = {&f->q, &f->k, &f->v}, *const gradients[] = {&f->dq, &f->dk, &f->dv};
    for (int which = 0; which < 3; which++) {
        *views[which] = slice(f->qkv, s, which);
        *gradients[which] = slice(f->dqkv, s, which);
    }
    const ddpm_tensor o = ddpm_tensor_4d(NULL, s->n, s->t, s->heads, s->d);
    f->to = tensor_of(f->o, o);
    f->td_o = tensor_of(f->d_o, o);
    f->tlse = ddpm_tensor_4d(f->lse, s->n, s->heads, s->t, 1);
    f->tlse.rank = 3;
}

static void forward(ddpm_backend *be, struct fixture *f, bool with_lse)
{
    assert_ok(backend_ops(be)->attention(
        be, &(struct attention_args){.q = &f->q, .k = &f->k, .v = &f->v, .scale = f->scale, .o = &f->to,
                                     .lse = with_lse ? &f->tlse : NULL}));
}

static void backward(ddpm_backend *be, struct fixture *f)
{
    assert_ok(backend_ops(be)->attention_bwd(
        be, &(struct attention_bwd_args){.q = &f->q, .k = &f->k, .v = &f->v, .o = &f->to, .lse = &f->tlse,
                                         .d_o = &f->td_o, .scale = f->scale, .dq = &f->dq, .dk = &f->dk,
                                         .dv = &f->dv}));
}

/* Scores are below `largest`, and an f32 score carries so many 2^-24 into its exponential, and through it into o, which
 * is below 1; the gradients sum up to t such terms, of either sign. */
static void check(ddpm_backend *be, struct fixture *f)
{
    const struct shape *s = &f->s;
    const double largest = fabs((double)f->scale) * s->d / 2 * (1 + (double)s->grow * s->t) + 4;
    double *p = zeros64(s->t);
    forward(be, f, false);
    const struct values without = copy_of_values(f->o, 0);
    forward(be, f, true);
    assert_same_values(without, f->o);
    backward(be, f);
    for (int n = 0; n < s->n; n++)
        for (int h = 0; h < s->heads; h++)
            for (int i = 0; i < s->t; i++) {
                reference_forward(f, n, h, i, p);
                reference_backward(f, n, h, i, p);
            }
    assert_values(f->o, f->want_o, largest / (1 << 23));
    const struct values lse = {f->lse, (int64_t)s->n * s->heads * s->t, DDPM_F32};
    assert_values(lse, f->want_lse, largest / (1 << 22));
    assert_values(f->dqkv, f->want_dqkv, largest * sqrt(s->t + s->d) / (1 << 22));
}

static void both_passes_equal_the_definition(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    for (int i = 0; i < SHAPES; i++)
        for (int kind = 0; kind < KINDS; kind++) {
            struct fixture f;
            setup(&f, &shapes[i], kinds[kind].dtype, kinds[kind].askew);
            check(be, &f);
            op_teardown(NULL);
        }
    ddpm_backend_free(be);
}

/* A NaN in one query is in all of its output, and in no other. */
static void nan_stays_in_its_row(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    struct fixture f;
    setup(&f, &shapes[4], DDPM_F32, 0);
    forward(be, &f, true);
    const struct values clean = copy_of_values(f.o, 0);
    const int sick = 70;
    value_set(f.qkv, place(&f.s, 0, 0, sick, 0) + 3, NAN);
    forward(be, &f, true);
    for (int64_t i = 0; i < f.o.n; i++) {
        if (i / f.s.d == sick)
            assert_true(isnan(value_at(f.o, i)));
        else
            assert_true(value_at(f.o, i) == value_at(clean, i));
    }
    assert_true(isnan((double)f.lse[sick]));
    ddpm_backend_free(be);
}

/* Scores beyond exp's range: one key takes all, also when it comes after keys whose sums must vanish; and where lse is
 * so negative that its exponential overflows, what fills the last tile stays out of the gradients. */
static void scores_may_be_huge(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    struct fixture f;
    const struct shape s = {.n = 1, .t = 130, .heads = 1, .d = 4, .scale = 1};
    setup(&f, &s, DDPM_F32, 0);
    for (int64_t i = 0; i < s.t * s.d; i++) {
        const int64_t t = i / s.d, e = i % s.d;
        value_set(f.qkv, place(&s, 0, 0, (int)t, 0) + e, 100);
        value_set(f.qkv, place(&s, 1, 0, (int)t, 0) + e, (float)(t - 130));
        f.want_dqkv[place(&s, 2, 0, 129, 0) + e] += value_at(f.d_o, i);
    }
    forward(be, &f, true);
    for (int64_t i = 0; i < f.o.n; i++)
        assert_true(value_at(f.o, i) == value_at(f.qkv, place(&s, 2, 0, 129, 0) + i % s.d));
    for (int i = 0; i < s.t; i++)
        assert_true(f.lse[i] == -400);
    backward(be, &f);
    /* where p is 1, dp - delta is the rounding of 4 products, 2^-22, times keys and queries of 100, 130 in a sum */
    assert_values(f.dqkv, f.want_dqkv, 130 * 100.0 / (1 << 22));
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(both_passes_equal_the_definition),
        OP_TEST(nan_stays_in_its_row),
        OP_TEST(scores_may_be_huge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_contracts.c - what the check of a call takes and refuses, for backends with and without
 * bf16.
 *
 * No op runs: a backend object that measures, tensors without data, and every mixture of f32 and
 * bf16 over the activations of a call. Shapes are the business of each op's own test. */
#include "../support.h"
#include "backend_internal.h"
#include "contracts.h"

typedef ddpm_status check(const ddpm_backend *be, const void *args);
#define X(op)                                                                                      \
    static ddpm_status check_##op(const ddpm_backend *be, const void *args)                        \
    {                                                                                              \
        return expect_##op(be, args);                                                              \
    }
OP_LIST(X)
#undef X

#define TENSORS(...) ((ddpm_tensor *const[]){__VA_ARGS__, NULL})

enum { N = 2, H = 4, W = 6, C = 8, K = 12, CK = C + K, GROUPS = 4 };

static ddpm_tensor image(int64_t channels)
{
    return ddpm_tensor_4d(NULL, N, H, W, channels);
}

static ddpm_tensor cube(int64_t a, int64_t b, int64_t c)
{
    return (ddpm_tensor){.dtype = DDPM_F32, .rank = 3, .dim = {a, b, c}, .stride = {b * c, c, 1}};
}

/* All of these may be bf16 where the backend takes it, or none. */
static void may_be_bf16(check *call, const void *args, ddpm_tensor *const t[])
{
    int n = 0;
    while (t[n])
        n++;
    for (int takes = 0; takes < 2; takes++) {
        const ddpm_backend be = {.is_measuring = true, .takes_bf16 = takes};
        for (int mask = 0; mask < 1 << n; mask++) {
            for (int i = 0; i < n; i++)
                t[i]->dtype = mask >> i & 1 ? DDPM_BF16 : DDPM_F32;
            const bool fits = mask == 0 || (takes && mask == (1 << n) - 1);
            assert_status(call(&be, args), fits ? DDPM_OK : DDPM_SHAPE);
        }
    }
    for (int i = 0; i < n; i++)
        t[i]->dtype = DDPM_F32;
}

/* None of these may. */
static void stay_f32(check *call, const void *args, ddpm_tensor *const t[])
{
    const ddpm_backend be = {.is_measuring = true, .takes_bf16 = true};
    assert_ok(call(&be, args));
    for (int i = 0; t[i]; i++) {
        t[i]->dtype = DDPM_BF16;
        assert_status(call(&be, args), DDPM_SHAPE);
        assert_message("is bf16, expected f32");
        t[i]->dtype = DDPM_F32;
    }
}

static void convolutions(void **state)
{
    (void)state;
    ddpm_tensor x = image(C), w = ddpm_tensor_4d(NULL, K, 3, 3, C), y = image(K), r = y;
    ddpm_tensor bias = ddpm_tensor_1d(NULL, K), emb = ddpm_tensor_2d(NULL, N, K), sum = emb, square = emb;
    bool has_sums;
    const struct conv2d_args f = {&x, &w, &bias, &emb, &r, 1, 1, 1, 1, 1, &y, &sum, &square, &has_sums};
    may_be_bf16(check_conv2d, &f, TENSORS(&x, &w, &y, &r));
    stay_f32(check_conv2d, &f, TENSORS(&bias, &emb, &sum, &square));
    const struct conv2d_bwd_data_args d = {&y, &w, 1, 1, 1, 1, 1, false, &x, {0}, NULL, NULL, NULL};
    may_be_bf16(check_conv2d_bwd_data, &d, TENSORS(&x, &w, &y));
    ddpm_tensor from = image(C), gamma = ddpm_tensor_1d(NULL, C), beta = gamma, scale = ddpm_tensor_2d(NULL, N, C);
    ddpm_tensor shift = scale, product = scale, of = scale, stats = cube(N, GROUPS, 2);
    const struct norm_ref norm = {&from, &gamma, &beta, &scale, &shift, &stats, GROUPS};
    const struct conv2d_bwd_data_args e = {&y, &w, 1, 1, 1, 1, 1, false, &x, norm, &of, &product, &has_sums};
    may_be_bf16(check_conv2d_bwd_data, &e, TENSORS(&x, &w, &y, &from));
    stay_f32(check_conv2d_bwd_data, &e, TENSORS(&gamma, &beta, &scale, &shift, &stats, &of, &product));
    const struct conv2d_bwd_filter_args g = {&x, &y, 1, 1, 1, 1, 1, &w, &bias, &emb};
    may_be_bf16(check_conv2d_bwd_filter, &g, TENSORS(&x, &y));
    stay_f32(check_conv2d_bwd_filter, &g, TENSORS(&w, &bias, &emb));
}

/* A gradient is named as its own op names it. */
static void gradients_have_their_names(void **state)
{
    (void)state;
    const ddpm_backend be = {.is_measuring = true};
    const ddpm_tensor w = ddpm_tensor_4d(NULL, K, 3, 3, C), y = image(K);
    ddpm_tensor dx = image(K);
    assert_status(expect_conv2d_bwd_data(
                      &be, &(struct conv2d_bwd_data_args){&y, &w, 1, 1, 1, 1, 1, false, &dx, {0}, NULL, NULL, NULL}),
                  DDPM_SHAPE);
    assert_message("conv2d_bwd_data: w is [12,3,3,8], expected [?,?,?,12]");
    assert_status(expect_conv2d_bwd_data(
                      &be, &(struct conv2d_bwd_data_args){&y, &w, 1, 1, 1, 1, 1, false, NULL, {0}, NULL, NULL, NULL}),
                  DDPM_SHAPE);
    assert_message("conv2d_bwd_data: dx is missing");
}

/* The norm that a gradient goes through comes whole, with room for what it leaves. */
static void norms_of_gradients(void **state)
{
    (void)state;
    const ddpm_backend be = {.is_measuring = true};
    ddpm_tensor dx = image(C), sum = ddpm_tensor_2d(NULL, N, C), stats = cube(N, GROUPS, 2), w = ddpm_tensor_4d(NULL, K, 3, 3, C);
    const ddpm_tensor y = image(K), x = image(C), gamma = ddpm_tensor_1d(NULL, C);
    bool flag;
    const struct norm_ref norm = {.x = &x, .gamma = &gamma, .beta = &gamma, .stats = &stats, .groups = GROUPS};
    const struct conv2d_bwd_data_args good = {&y, &w, 1, 1, 1, 1, 1, false, &dx, norm, &sum, &sum, &flag};
    assert_ok(expect_conv2d_bwd_data(&be, &good));
    struct conv2d_bwd_data_args a = good;
    a.has_gradient = NULL;
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("go together");
    a = good, a.norm.x = NULL;
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("go together");
    a = good, a.accumulate = true;
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("is not accumulated");
    a = good, a.norm.groups = 3;
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("3 groups do not divide 8 channels");
    a = good, a.norm.x = &y; /* K channels */
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("norm->x");
    const ddpm_tensor wide = image(2 * C);
    ddpm_tensor view = ddpm_tensor_slice(&wide, 0, C);
    a = good, a.dx = &view;
    assert_status(expect_conv2d_bwd_data(&be, &a), DDPM_SHAPE);
    assert_message("dx");
}

/* Sums over dy are of one source, and of dy as it is. */
static void sums_of_gradients(void **state)
{
    (void)state;
    const ddpm_backend be = {.is_measuring = true};
    ddpm_tensor x = image(C), sum = ddpm_tensor_2d(NULL, N, C), gamma = ddpm_tensor_1d(NULL, C), stats = cube(N, GROUPS, 2);
    const struct groupnorm_bwd_args good = {.dy = &x, .x1 = &x, .gamma = &gamma, .beta = &gamma, .stats = &stats,
                                            .groups = GROUPS, .dy_sum = &sum, .dy_x = &sum, .dx1 = &x, .dgamma = &gamma,
                                            .dbeta = &gamma};
    assert_ok(expect_groupnorm_bwd(&be, &good));
    struct groupnorm_bwd_args a = good;
    a.dy_x = NULL;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    assert_message("dy_sum and dy_x go together");
    a = good, a.silu = true;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    a = good, a.dropout = 0.5f;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    assert_message("dy_sum with a second source, silu, dropout or a resampled y");
    ddpm_tensor half = ddpm_tensor_4d(NULL, N, H / 2, W / 2, C);
    a = good, a.resample = NORM_MEAN2, a.dy = &half;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    assert_message("dy_sum with");
    ddpm_tensor two = image(2 * C), gamma2 = ddpm_tensor_1d(NULL, 2 * C);
    a = good, a.x2 = &x, a.dx2 = &x, a.dy = &two, a.gamma = a.beta = a.dgamma = a.dbeta = &gamma2;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    assert_message("dy_sum with");
    a = good, a.dy_sum = &gamma;
    assert_status(expect_groupnorm_bwd(&be, &a), DDPM_SHAPE);
    assert_message("dy_sum");
}

static void dense_layers(void **state)
{
    (void)state;
    ddpm_tensor x = ddpm_tensor_2d(NULL, 5, C), w = ddpm_tensor_2d(NULL, K, C),
                y = ddpm_tensor_2d(NULL, 5, K);
    ddpm_tensor dx = x, dw = w, bias = ddpm_tensor_1d(NULL, K);
    const struct linear_args f = {&x, &w, &bias, &y};
    may_be_bf16(check_linear, &f, TENSORS(&x, &w, &y));
    stay_f32(check_linear, &f, TENSORS(&bias));
    const struct linear_bwd_args b = {&x, &w, &y, false, &dx, &dw, &bias};
    may_be_bf16(check_linear_bwd, &b, TENSORS(&x, &w, &y, &dx));
    stay_f32(check_linear_bwd, &b, TENSORS(&dw, &bias));
}

static void attention(void **state)
{
    (void)state;
    ddpm_tensor q = image(C), k = q, v = q, o = q, d_o = q, dq = q, dk = q, dv = q;
    ddpm_tensor lse = cube(N, W, H); /* of an image read as [N,T,heads,D] */
    const struct attention_args f = {&q, &k, &v, 1, &o, &lse};
    may_be_bf16(check_attention, &f, TENSORS(&q, &k, &v, &o));
    stay_f32(check_attention, &f, TENSORS(&lse));
    const struct attention_bwd_args b = {&q, &k, &v, &o, &lse, &d_o, 1, &dq, &dk, &dv};
    may_be_bf16(check_attention_bwd, &b, TENSORS(&q, &k, &v, &o, &d_o, &dq, &dk, &dv));
    stay_f32(check_attention_bwd, &b, TENSORS(&lse));
}

static void norm(void **state)
{
    (void)state;
    ddpm_tensor x1 = image(C), x2 = image(K), y = image(CK), dx1 = x1, dx2 = x2, add1 = x1,
                add2 = x2;
    ddpm_tensor gamma = ddpm_tensor_1d(NULL, CK), beta = gamma, dgamma = gamma, dbeta = gamma;
    ddpm_tensor scale = ddpm_tensor_2d(NULL, N, CK), shift = scale, dscale = scale, dshift = scale;
    ddpm_tensor stats = cube(N, GROUPS, 2);
    ddpm_tensor sum1 = ddpm_tensor_2d(NULL, N, C), square1 = sum1, sum2 = ddpm_tensor_2d(NULL, N, K), square2 = sum2;
    const struct groupnorm_args f = {.x1 = &x1,
                                     .x2 = &x2,
                                     .sum1 = &sum1,
                                     .square1 = &square1,
                                     .sum2 = &sum2,
                                     .square2 = &square2,
                                     .gamma = &gamma,
                                     .beta = &beta,
                                     .scale = &scale,
                                     .shift = &shift,
                                     .groups = GROUPS,
                                     .stats = &stats,
                                     .y = &y};
    may_be_bf16(check_groupnorm, &f, TENSORS(&x1, &x2, &y));
    stay_f32(check_groupnorm, &f, TENSORS(&gamma, &beta, &scale, &shift, &stats, &sum1, &square1, &sum2, &square2));
    const struct groupnorm_bwd_args b = {.dy = &y,
                                         .x1 = &x1,
                                         .x2 = &x2,
                                         .gamma = &gamma,
                                         .beta = &beta,
                                         .scale = &scale,
                                         .shift = &shift,
                                         .stats = &stats,
                                         .groups = GROUPS,
                                         .add1 = &add1,
                                         .add2 = &add2,
                                         .dx1 = &dx1,
                                         .dx2 = &dx2,
                                         .dgamma = &dgamma,
                                         .dbeta = &dbeta,
                                         .dscale = &dscale,
                                         .dshift = &dshift};
    may_be_bf16(check_groupnorm_bwd, &b, TENSORS(&x1, &x2, &y, &dx1, &dx2, &add1, &add2));
    stay_f32(check_groupnorm_bwd, &b,
             TENSORS(&gamma, &beta, &scale, &shift, &stats, &dgamma, &dbeta, &dscale, &dshift));
}

static void elements_and_resampling(void **state)
{
    (void)state;
    ddpm_tensor a = image(C), b = a, y = a, small = ddpm_tensor_4d(NULL, N, H / 2, W / 2, C);
    may_be_bf16(check_silu, &(struct silu_args){&a, &y}, TENSORS(&a, &y));
    may_be_bf16(check_silu_bwd, &(struct silu_bwd_args){&a, &b, false, &y}, TENSORS(&a, &b, &y));
    may_be_bf16(check_add, &(struct add_args){&a, &b, &y}, TENSORS(&a, &b, &y));
    may_be_bf16(check_upsample2, &(struct upsample2_args){&small, &a}, TENSORS(&small, &a));
    may_be_bf16(check_upsample2_bwd, &(struct upsample2_bwd_args){&a, false, &small},
                TENSORS(&small, &a));
    may_be_bf16(check_avgpool2, &(struct avgpool2_args){&a, &small}, TENSORS(&small, &a));
    may_be_bf16(check_avgpool2_bwd, &(struct avgpool2_bwd_args){&small, false, &a},
                TENSORS(&small, &a));
}

static void rows(void **state)
{
    (void)state;
    ddpm_tensor x = ddpm_tensor_2d(NULL, N, C), y = x, dy = x, t = ddpm_tensor_1d(NULL, N);
    stay_f32(check_softmax, &(struct softmax_args){.x = &x, .y = &y}, TENSORS(&x, &y));
    stay_f32(check_softmax_bwd, &(struct softmax_bwd_args){.y = &y, .dy = &dy, .dx = &x},
             TENSORS(&x, &y, &dy));
    stay_f32(check_time_embedding, &(struct time_embedding_args){.t = &t, .y = &y},
             TENSORS(&t, &y));
    stay_f32(check_embedding, &(struct embedding_args){.table = &x, .y = &y}, TENSORS(&x, &y));
    stay_f32(check_embedding_bwd, &(struct embedding_bwd_args){.dy = &dy, .dtable = &x},
             TENSORS(&x, &dy));
}

static void the_method(void **state)
{
    (void)state;
    ddpm_tensor x0 = image(C), eps = x0, xt = x0, out = x0, dout = x0, hat = x0, bytes = x0;
    ddpm_tensor loss = ddpm_tensor_1d(NULL, N), quartiles = ddpm_tensor_2d(NULL, 4, 2);
    bytes.dtype = DDPM_U8;
    stay_f32(check_gaussian, &(struct gaussian_args){.x = &eps}, TENSORS(&eps));
    const struct q_sample_args q = {.x0 = &x0, .eps = &eps, .xt = &xt};
    may_be_bf16(check_q_sample, &q, TENSORS(&xt));
    stay_f32(check_q_sample, &q, TENSORS(&x0, &eps));
    may_be_bf16(check_q_sample, &(struct q_sample_args){.x0 = &bytes, .xt = &xt}, TENSORS(&xt));
    const struct diffusion_loss_args l = {.x0 = &x0,
                                          .eps = &eps,
                                          .out = &out,
                                          .loss = &loss,
                                          .dout = &dout,
                                          .quartiles = &quartiles,
                                          .T = 1000};
    may_be_bf16(check_diffusion_loss, &l, TENSORS(&out, &dout));
    stay_f32(check_diffusion_loss, &l, TENSORS(&x0, &eps, &loss, &quartiles));
    const struct reverse_step_args r = {.out = &out, .noise = &eps, .x = &xt, .x0_hat = &hat};
    may_be_bf16(check_reverse_step, &r, TENSORS(&out));
    stay_f32(check_reverse_step, &r, TENSORS(&eps, &xt, &hat));
    stay_f32(check_to_u8, &(struct to_u8_args){.x = &xt, .y = &bytes}, TENSORS(&xt));
}

static void the_optimiser(void **state)
{
    (void)state;
    ddpm_tensor p = ddpm_tensor_1d(NULL, 100), g = p, m = p, v = p, ema = p, half = p;
    half.dtype = DDPM_BF16;
    stay_f32(check_sum_squares, &(struct sum_squares_args){.x = &g}, TENSORS(&g));
    const struct adamw_args a = {
        .p = &p, .g = &g, .m = &m, .v = &v, .ema = {&ema}, .n_ema = 1, .half = &half};
    stay_f32(check_adamw, &a, TENSORS(&p, &g, &m, &v, &ema));
}

/* From one of the two types to the other, whatever the backend takes for activations. */
static void casts(void **state)
{
    (void)state;
    const ddpm_backend be = {.is_measuring = true};
    static const ddpm_dtype types[] = {DDPM_F32, DDPM_BF16, DDPM_U8};
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            ddpm_tensor x = image(C), y = image(C);
            x.dtype = types[from];
            y.dtype = types[to];
            const bool fits = from + to == 1;
            assert_status(check_cast(&be, &(struct cast_args){&x, &y}), fits ? DDPM_OK : DDPM_SHAPE);
        }
}

/* Pointers into the device may be missing while measuring, and only then. */
static void missing_pointers(void **state)
{
    (void)state;
    float data[N * C];
    const ddpm_tensor x = ddpm_tensor_2d(data, N, C), flat = ddpm_tensor_1d(data, N);
    ddpm_tensor y = x, out = ddpm_tensor_4d(data, 1, 1, N, C), sums = flat, bytes = out;
    bytes.dtype = DDPM_U8;
    struct {
        check *call;
        const void *args;
        const char *message;
    } const rows_of[] = {
        {check_embedding, &(struct embedding_args){.table = &x, .y = &y}, "label is missing"},
        {check_gaussian, &(struct gaussian_args){.x = &y}, "state or index is missing"},
        {check_q_sample, &(struct q_sample_args){.x0 = &out, .eps = &out, .xt = &out},
         "t or its coefficients"},
        {check_reverse_step, &(struct reverse_step_args){.out = &out, .x = &out},
         "rows are missing"},
        {check_sum_squares, &(struct sum_squares_args){.x = &flat}, "sum is missing"},
        {check_adamw, &(struct adamw_args){.p = &sums, .g = &sums, .m = &sums, .v = &sums},
         "state is missing"},
        {check_open_sample, &(struct open_sample_args){.time = &sums}, "state or rows is missing"},
        {check_open_step, &(struct open_step_args){.T = 1, .time = &sums}, "index, state or t is missing"},
        {check_close_step, &(struct close_step_args){.T = 1, .slots = 1, .loss = &flat}, "counters or ring is missing"},
        {check_gather, &(struct gather_args){.x = &bytes, .y = &bytes}, "number is missing"},
    };
    for (size_t i = 0; i < sizeof rows_of / sizeof *rows_of; i++) {
        assert_ok(rows_of[i].call(&(ddpm_backend){.is_measuring = true}, rows_of[i].args));
        assert_status(rows_of[i].call(&(ddpm_backend){.is_measuring = false}, rows_of[i].args),
                      DDPM_SHAPE);
        assert_message(rows_of[i].message);
    }
    y.data = NULL;
    assert_status(expect_silu(&(ddpm_backend){.is_measuring = false}, &(struct silu_args){&x, &y}),
                  DDPM_SHAPE);
    assert_message("silu: y has no data");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions),  cmocka_unit_test(gradients_have_their_names),
        cmocka_unit_test(dense_layers),  cmocka_unit_test(attention),
        cmocka_unit_test(norm),          cmocka_unit_test(elements_and_resampling),
        cmocka_unit_test(rows),          cmocka_unit_test(the_method),
        cmocka_unit_test(the_optimiser), cmocka_unit_test(casts),
        cmocka_unit_test(missing_pointers), cmocka_unit_test(norms_of_gradients),
        cmocka_unit_test(sums_of_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

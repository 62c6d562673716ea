/* test_far_elements.c - offsets beyond 2^32 elements (far.h) in the kernels that walk over elements
 * or rows: pointwise ops, resampling, embeddings, softmax, layouts, noising, loss, the reverse
 * step, the optimiser. */
#include "far.h"

/* Elements of a pack, which kernels take where nothing is askew. */
static int64_t pack_of(int kind)
{
    return kinds[kind].askew ? 1 : 16 / (int64_t)ddpm_dtype_size(kinds[kind].dtype);
}

/* A row is what 256 threads take at a time. */
static void test_pointwise(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        const int64_t width = 256 * pack_of(k);
        const ddpm_tensor shape = ddpm_tensor_2d(NULL, far_rows(width, 1), width);
        const ddpm_dtype dtype = kinds[k].dtype;
        const int askew = kinds[k].askew;
        struct far a = far_input(shape, dtype, 1, askew, 1),
                   b = far_input(shape, dtype, 1, askew, 2);
        struct far sum = far_output(shape, dtype, 1, askew, 0),
                   y = far_output(shape, dtype, 1, askew, 0);
        struct far dx = far_output(shape, dtype, 1, askew, 3);
        FAR_LAUNCH(add, 1, FAR_ARGS(&a.all, &b.all, &sum.all),
                   FAR_ARGS(&a.tail, &b.tail, &sum.tail));
        FAR_LAUNCH(silu, 1, FAR_ARGS(&a.all, &y.all), FAR_ARGS(&a.tail, &y.tail));
        FAR_LAUNCH(silu_bwd, 1, FAR_ARGS(&a.all, &b.all, true, &dx.all),
                   FAR_ARGS(&a.tail, &b.tail, true, &dx.tail));
        far_check(sum, 0);
        far_check(y, 0);
        far_check(dx, 0);
        far_teardown(NULL);
    }
}

static void test_to_u8(void **state)
{
    (void)state;
    const int64_t width = 1024, rows = far_rows(width, 1);
    struct far x = far_input(ddpm_tensor_2d(NULL, rows, width), DDPM_F32, 1, 0, 1);
    uint8_t *bytes = far_take(rows * width), *tail = take((size_t)width);
    ddpm_tensor y = x.all, y_tail = x.tail;
    y.dtype = y_tail.dtype = DDPM_U8;
    y.data = bytes, y_tail.data = tail;
    FAR_LAUNCH(to_u8, 1, FAR_ARGS(&x.all, &y), FAR_ARGS(&x.tail, &y_tail));
    assert_memory_equal(bytes + (rows - 1) * width, tail, (size_t)width);
}

/* The smaller image of a row of 256 packs. */
static void test_resample(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        const int64_t c = 8 * pack_of(k), n = far_rows(4 * 32 * c, 1);
        const ddpm_dtype dtype = kinds[k].dtype;
        const int askew = kinds[k].askew;
        const ddpm_tensor small = ddpm_tensor_4d(NULL, n, 1, 32, c),
                          large = ddpm_tensor_4d(NULL, n, 2, 64, c);
        struct far x = far_input(small, dtype, 1, askew, 1),
                   y = far_output(large, dtype, 1, askew, 0);
        struct far dy = far_input(large, dtype, 1, askew, 2),
                   dx = far_output(small, dtype, 1, askew, 3);
        struct far mean = far_output(small, dtype, 1, askew, 0),
                   spread = far_output(large, dtype, 1, askew, 4);
        FAR_LAUNCH(upsample2, 1, FAR_ARGS(&x.all, &y.all), FAR_ARGS(&x.tail, &y.tail));
        FAR_LAUNCH(upsample2_bwd, 1, FAR_ARGS(&dy.all, true, &dx.all),
                   FAR_ARGS(&dy.tail, true, &dx.tail));
        FAR_LAUNCH(avgpool2, 1, FAR_ARGS(&dy.all, &mean.all), FAR_ARGS(&dy.tail, &mean.tail));
        FAR_LAUNCH(avgpool2_bwd, 1, FAR_ARGS(&x.all, true, &spread.all),
                   FAR_ARGS(&x.tail, true, &spread.tail));
        far_check(y, 0);
        far_check(dx, 0);
        far_check(mean, 0);
        far_check(spread, 0);
        far_teardown(NULL);
    }
}

/* A row is a block's, of 128 threads. */
static void test_embeddings(void **state)
{
    (void)state;
    const int64_t n = far_rows(256, 1), v = far_rows(512, 1);
    struct far t = far_input(ddpm_tensor_2d(NULL, n, 1), DDPM_F32, 1, 0, 1);
    struct far y = far_output(ddpm_tensor_2d(NULL, n, 256), DDPM_F32, 1, 0, 0);
    t.all.rank = t.tail.rank = 1;
    FAR_LAUNCH(time_embedding, 1, FAR_ARGS(&t.all, true, 1, &y.all),
               FAR_ARGS(&t.tail, true, 1, &y.tail));
    far_check(y, 0);

    /* the last of v labels for the last of v images */
    const ddpm_tensor shape = ddpm_tensor_2d(NULL, v, 512);
    struct far table = far_input(shape, DDPM_F32, 1, 0, 2),
               rows = far_output(shape, DDPM_F32, 1, 0, 3);
    int32_t *label = far_take(v * (int64_t)sizeof *label);
    const int32_t first = 0;
    label[v - 1] = (int32_t)(v - 1);
    FAR_LAUNCH(embedding, 1, FAR_ARGS(&table.all, label, &rows.all),
               FAR_ARGS(&table.tail, &first, &rows.tail));
    far_check(rows, 0);

    struct far dtable = far_output(shape, DDPM_F32, 2, 0, 4);
    const int32_t labels[] = {(int32_t)(v - 1), (int32_t)(v - 2), (int32_t)(v - 1)},
                  near[] = {1, 0, 1};
    const ddpm_tensor dy = ddpm_tensor_2d(uniforms(3 * 512, 5, -1, 1), 3, 512);
    FAR_LAUNCH(embedding_bwd, 2, FAR_ARGS(&dy, labels, &dtable.all),
               FAR_ARGS(&dy, near, &dtable.tail));
    far_check(dtable, 0);
}

/* Rows of a warp, eight to a block, and of a block. */
static void test_softmax(void **state)
{
    (void)state;
    const int64_t width[] = {64, 4096}, per_block[] = {8, 1};
    for (int i = 0; i < 2; i++)
        for (int log_of = 0; log_of < 2; log_of++) {
            const ddpm_tensor shape =
                ddpm_tensor_2d(NULL, far_rows(width[i], per_block[i]), width[i]);
            struct far x = far_input(shape, DDPM_F32, per_block[i], 0, 1),
                       dy = far_input(shape, DDPM_F32, per_block[i], 0, 2);
            struct far y = far_output(shape, DDPM_F32, per_block[i], 0, 0),
                       dx = far_output(shape, DDPM_F32, per_block[i], 0, 0);
            FAR_LAUNCH(softmax, 1, FAR_ARGS(&x.all, log_of, &y.all),
                       FAR_ARGS(&x.tail, log_of, &y.tail));
            far_check(y, 0);
            FAR_LAUNCH(softmax_bwd, 1, FAR_ARGS(&x.all, &dy.all, log_of, &dx.all),
                       FAR_ARGS(&x.tail, &dy.tail, log_of, &dx.tail));
            far_check(dx, 0);
            far_teardown(NULL);
        }
}

/* ---- the method ---- */

enum { T = 8, IMAGE = 32 * 32 * 3, RUNS = 3 };

/* Images of three runs; the last one's t is in the last quarter, all others' in the first. */
struct images {
    int64_t n;
    ddpm_tensor shape;
    int32_t *t;
    uint64_t *index;
    uint8_t *flip;
    struct step_state state;
};

static struct images images_of(void)
{
    struct images m = {.n = FAR_ELEMENTS / IMAGE + 1, .state = {.seed = 5, .step = 3}};
    m.shape = ddpm_tensor_4d(NULL, m.n, 32, 32, 3);
    m.t = far_take(m.n * (int64_t)sizeof *m.t);
    m.index = far_take(m.n * (int64_t)sizeof *m.index);
    m.flip = far_take(m.n);
    for (int64_t i = 0; i < m.n; i++)
        m.t[i] = 1;
    m.t[m.n - 1] = T;
    m.index[m.n - 1] = 77;
    m.flip[m.n - 1] = 1;
    return m;
}

static const float *coefficients(void)
{
    return uniforms(2 * (T + 1), 20, 0.25f, 0.75f);
}

static void test_noising(void **state)
{
    (void)state;
    for (int askew = 0; askew < 2; askew++) {
        const struct images m = images_of();
        const int64_t last = m.n - 1;
        const float *coef = coefficients();
        struct far x = far_output(m.shape, DDPM_F32, 1, askew, 0),
                   xt = far_output(m.shape, DDPM_F32, 1, askew, 0);
        struct far x0 = far_input(m.shape, DDPM_F32, 1, askew, 1);
        FAR_LAUNCH(gaussian, RUNS, FAR_ARGS(&m.state, m.index, PHILOX_TEST, true, &x.all),
                   FAR_ARGS(&m.state, m.index + last, PHILOX_TEST, true, &x.tail));
        far_check(x, 0);
        FAR_LAUNCH(q_sample, RUNS,
                   FAR_ARGS(&x0.all, NULL, m.flip, m.t, coef, &m.state, m.index, PHILOX_TEST, true,
                            &xt.all),
                   FAR_ARGS(&x0.tail, NULL, m.flip + last, m.t + last, coef, &m.state,
                            m.index + last, PHILOX_TEST, true, &xt.tail));
        far_check(xt, 0);
        struct far given = far_output(m.shape, DDPM_F32, 1, askew, 0);
        FAR_LAUNCH(q_sample, RUNS,
                   FAR_ARGS(&x0.all, &x.all, NULL, m.t, coef, &m.state, m.index, PHILOX_TEST, true,
                            &given.all),
                   FAR_ARGS(&x0.tail, &x.tail, NULL, m.t + last, coef, &m.state, m.index + last,
                            PHILOX_TEST, true, &given.tail));
        far_check(given, 0);
        far_teardown(NULL);
    }
}

static void test_loss(void **state)
{
    (void)state;
    const struct images m = images_of();
    const int64_t last = m.n - 1;
    const float *coef = coefficients();
    struct far x0 = far_input(m.shape, DDPM_F32, 1, 0, 1),
               out = far_input(m.shape, DDPM_BF16, 1, 0, 2);
    struct far dout = far_output(m.shape, DDPM_BF16, 1, 0, 0);
    struct far loss = far_output(ddpm_tensor_2d(NULL, m.n, 1), DDPM_F32, 1, 0, 0);
    loss.all.rank = loss.tail.rank = 1;
    ddpm_tensor all_quarters = ddpm_tensor_2d(zeros(8), 4, 2),
                tail_quarters = ddpm_tensor_2d(zeros(8), 4, 2);
    FAR_LAUNCH(diffusion_loss, 2 * RUNS,
               FAR_ARGS(&x0.all, NULL, &out.all, m.flip, m.t, coef, NULL, &m.state, m.index,
                        PHILOX_TEST, true, 2, &loss.all, &dout.all, &all_quarters, T),
               FAR_ARGS(&x0.tail, NULL, &out.tail, m.flip + last, m.t + last, coef, NULL, &m.state,
                        m.index + last, PHILOX_TEST, true, 2, &loss.tail, &dout.tail,
                        &tail_quarters, T));
    far_check(loss, 0);
    far_check(dout, 0);
    const float *all = all_quarters.data, *tail = tail_quarters.data;
    assert_bits(all + 6, tail + 6, 2);
    assert_true(all[1] == (float)last);
}

static void test_reverse_step(void **state)
{
    (void)state;
    const struct images m = images_of();
    const int64_t last = m.n - 1;
    struct far x = far_output(m.shape, DDPM_F32, 1, 0, 1),
               out = far_input(m.shape, DDPM_BF16, 1, 0, 2);
    struct far x0_hat = far_output(m.shape, DDPM_F32, 1, 0, 0);
    float *rows = far_take(m.n * 8 * (int64_t)sizeof *rows);
    const float row[] = {1.5f, -0.5f, -1, 1, 0.25f, 0.5f, 0.125f, 0.75f};
    memcpy(rows + 8 * last, row, sizeof row);
    FAR_LAUNCH(reverse_step, RUNS,
               FAR_ARGS(&out.all, NULL, rows, &m.state, m.index, &x.all, &x0_hat.all,
                        NULL),
               FAR_ARGS(&out.tail, NULL, rows + 8 * last, &m.state, m.index + last, &x.tail,
                        &x0_hat.tail, NULL));
    far_check(x, 0);
    far_check(x0_hat, 0);
}

/* ---- the optimiser ---- */

/* A part of 8192 elements a block; the blocks between leave zeros. */
static void test_sum_squares(void **state)
{
    (void)state;
    for (int askew = 0; askew < 2; askew++) {
        struct far x =
            far_input(ddpm_tensor_2d(NULL, far_rows(8192, 1), 8192), DDPM_F32, 1, askew, 1);
        double all = -1, tail = -2;
        const ddpm_tensor flat = ddpm_tensor_1d(x.all.data, far_size(&x.all)),
                          end = ddpm_tensor_1d(x.tail.data, 8192);
        FAR_LAUNCH(sum_squares, 1, FAR_ARGS(&flat, &all), FAR_ARGS(&end, &tail));
        assert_true(all == tail && all > 0);
        far_teardown(NULL);
    }
}

/* A tensor of rows as [n]. */
static void flat_of(struct far *f)
{
    f->all = (ddpm_tensor){f->all.data, f->all.dtype, 1, {far_size(&f->all)}, {1}};
    f->tail = (ddpm_tensor){f->tail.data, f->tail.dtype, 1, {far_size(&f->tail)}, {1}};
}

static void test_adamw(void **state)
{
    (void)state;
    for (int askew = 0; askew < 2; askew++) {
        const int64_t width = askew ? 256 : 1024; /* of a block at a time */
        const ddpm_tensor shape = ddpm_tensor_2d(NULL, far_rows(width, 1), width);
        struct far p = far_output(shape, DDPM_F32, 1, askew, 1),
                   g = far_output(shape, DDPM_F32, 1, askew, 2);
        struct far m = far_output(shape, DDPM_F32, 1, askew, 3),
                   v = far_output(shape, DDPM_F32, 1, askew, 0);
        struct far ema = far_output(shape, DDPM_F32, 1, askew, 4),
                   half = far_output(shape, DDPM_BF16, 1, askew, 0);
        struct far *const flat[] = {&p, &g, &m, &v, &ema, &half};
        for (int i = 0; i < 6; i++)
            flat_of(flat[i]);
        const double sum = 4;
        const struct step_state step = {
            .lr = 0.5f, .bias1 = 0.5f, .bias2 = 0.25f, .ema_decay = {0.75f}};
        struct adamw_args all = {.p = &p.all,
                                 .g = &g.all,
                                 .m = &m.all,
                                 .v = &v.all,
                                 .ema = {&ema.all},
                                 .n_ema = 1,
                                 .beta1 = 0.5f,
                                 .beta2 = 0.75f,
                                 .eps = 1e-8f,
                                 .weight_decay = 0.125f,
                                 .clip_norm = 1,
                                 .sum = &sum,
                                 .state = &step,
                                 .half = &half.all};
        struct adamw_args tail = all;
        tail.p = &p.tail, tail.g = &g.tail, tail.m = &m.tail, tail.v = &v.tail,
        tail.ema[0] = &ema.tail;
        tail.half = &half.tail;
        FAR_LAUNCH(adamw, 1, all, tail);
        far_check(p, 0);
        far_check(m, 0);
        far_check(v, 0);
        far_check(ema, 0);
        far_check(half, 0);
        assert_true(value_at(g.at, 0) == 0 && value_at(g.at, g.at.n - 1) == 0);
        far_teardown(NULL);
    }
}

/* ---- layouts ---- */

static void test_layouts(void **state)
{
    (void)state;
    enum { TILE = 32 };
    const int64_t pixels = far_rows(8, 256);
    struct far few = far_input(ddpm_tensor_2d(NULL, pixels, 3), DDPM_F32, 256, 0, 1);
    struct far many = far_output(ddpm_tensor_2d(NULL, pixels, 8), DDPM_BF16, 256, 0, 0);
    struct far back = far_output(ddpm_tensor_2d(NULL, pixels, 3), DDPM_F32, 256, 0, 0);
    cuda_on_cpu_only_ends(1);
    far_launched(
        launch_pack_channels(NULL, pixels, few.all.data, DDPM_F32, 3, many.all.data, DDPM_BF16, 8));
    far_launched(launch_pack_channels(NULL, pixels, many.all.data, DDPM_BF16, 8, back.all.data,
                                      DDPM_F32, 3));
    cuda_on_cpu_only_ends(0);
    far_launched(
        launch_pack_channels(NULL, 256, few.tail.data, DDPM_F32, 3, many.tail.data, DDPM_BF16, 8));
    far_launched(
        launch_pack_channels(NULL, 256, many.tail.data, DDPM_BF16, 8, back.tail.data, DDPM_F32, 3));
    far_check(many, 0);
    far_check(back, 256 * 3 / 3);

    const int64_t n =
        (FAR_ELEMENTS / (8192 * TILE * TILE) + 1) * 8192; /* a tile each, 8192 blocks */
    const ddpm_tensor shape = ddpm_tensor_4d(NULL, n, 1, TILE, TILE);
    struct far nhwc = far_input(shape, DDPM_BF16, 1, 0, 1),
               nchw = far_output(shape, DDPM_F32, 1, 0, 0);
    struct far again = far_output(shape, DDPM_BF16, 1, 0, 0);
    cuda_on_cpu_only_ends(1);
    far_launched(launch_nhwc_to_nchw(NULL, n, TILE, TILE, nhwc.all.data, DDPM_BF16, nchw.all.data));
    far_launched(
        launch_nchw_to_nhwc(NULL, n, TILE, TILE, nchw.all.data, again.all.data, DDPM_BF16));
    cuda_on_cpu_only_ends(0);
    far_launched(
        launch_nhwc_to_nchw(NULL, 1, TILE, TILE, nhwc.tail.data, DDPM_BF16, nchw.tail.data));
    far_launched(
        launch_nchw_to_nhwc(NULL, 1, TILE, TILE, nchw.tail.data, again.tail.data, DDPM_BF16));
    far_check(nchw, 0);
    far_check(again, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAR_TEST(test_pointwise),   FAR_TEST(test_to_u8),        FAR_TEST(test_resample),
        FAR_TEST(test_embeddings),  FAR_TEST(test_softmax),      FAR_TEST(test_noising),
        FAR_TEST(test_loss),        FAR_TEST(test_reverse_step), FAR_TEST(test_adamw),
        FAR_TEST(test_sum_squares), FAR_TEST(test_layouts),
    };
    return far_is_wanted() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}

/* test_far_networks.c - offsets beyond 2^32 elements (far.h) in the kernels of a network:
 * GroupNorm, convolutions, dense layers, attention, and launches of more blocks than there can be.
 */
#include "far.h"

static const ddpm_dtype types[] = {DDPM_F32, DDPM_BF16};

/* ---- GroupNorm ---- */

enum { CHANNELS = 64, GROUPS = 8 };

static ddpm_tensor vector_of(int64_t n, uint64_t which)
{
    return ddpm_tensor_1d(uniforms(n, which, 0.5f, 1.5f), n);
}

static struct far stats_of(int64_t n)
{
    ddpm_tensor shape = {.rank = 3, .dim = {n, GROUPS, 2}, .stride = {2 * GROUPS, 2, 1}};
    return far_output(shape, DDPM_F32, 1, 0, 0);
}

/* Many small images, forward and back, held or (resampled) in slices. Each is four tiles in f32,
 * two in bf16; a group's merge is a block. Scale and shift are slices of rows that are wider than
 * both. */
static void check_images(ddpm_dtype dtype, enum norm_resample resample)
{
    const int64_t side = resample == NORM_UP2 ? 8 : 16, n = far_rows(16 * 16 * CHANNELS, 1);
    const int64_t y_side = resample == NORM_UP2     ? 16
                           : resample == NORM_MEAN2 ? 8
                                                    : 16,
                  wide = (FAR_ELEMENTS / n + 64) / 64 * 64;
    const ddpm_tensor shape = ddpm_tensor_4d(NULL, n, side, side, CHANNELS);
    const ddpm_tensor result = ddpm_tensor_4d(NULL, n, y_side, y_side, CHANNELS);
    struct far x = far_input(shape, dtype, 1, 0, 1), y = far_output(result, dtype, 1, 0, 0),
               stats = stats_of(n);
    struct far film = far_input(ddpm_tensor_2d(NULL, n, wide), DDPM_F32, 1, 0, 2);
    struct far dfilm = far_output(ddpm_tensor_2d(NULL, n, wide), DDPM_F32, 1, 0, 0);
    ddpm_tensor gamma = vector_of(CHANNELS, 3), beta = vector_of(CHANNELS, 4);
    ddpm_tensor scale[2], shift[2], dscale[2], dshift[2];
    for (int k = 0; k < 2; k++) {
        scale[k] = ddpm_tensor_slice(k ? &film.tail : &film.all, wide - 2 * CHANNELS, CHANNELS);
        shift[k] = ddpm_tensor_slice(k ? &film.tail : &film.all, wide - CHANNELS, CHANNELS);
        dscale[k] = ddpm_tensor_slice(k ? &dfilm.tail : &dfilm.all, wide - 2 * CHANNELS, CHANNELS);
        dshift[k] = ddpm_tensor_slice(k ? &dfilm.tail : &dfilm.all, wide - CHANNELS, CHANNELS);
    }
    struct groupnorm_args all = {.x1 = &x.all,
                                 .gamma = &gamma,
                                 .beta = &beta,
                                 .scale = &scale[0],
                                 .shift = &shift[0],
                                 .groups = GROUPS,
                                 .eps = 1e-5f,
                                 .silu = true,
                                 .resample = resample,
                                 .stats = &stats.all,
                                 .y = &y.all};
    struct groupnorm_args tail = all;
    tail.x1 = &x.tail, tail.scale = &scale[1], tail.shift = &shift[1], tail.stats = &stats.tail,
    tail.y = &y.tail;
    FAR_LAUNCH(groupnorm, GROUPS, all, tail);
    far_check(stats, 0);
    far_check(y, 0);

    struct far dy = far_input(result, dtype, 1, 0, 5), dx = far_output(shape, dtype, 1, 0, 0);
    struct far add = far_input(shape, dtype, 1, 0, 6);
    ddpm_tensor dgamma[] = {vector_of(CHANNELS, 7), vector_of(CHANNELS, 7)};
    ddpm_tensor dbeta[] = {vector_of(CHANNELS, 8), vector_of(CHANNELS, 8)};
    struct groupnorm_bwd_args back = {.dy = &dy.all,
                                      .x1 = &x.all,
                                      .gamma = &gamma,
                                      .beta = &beta,
                                      .scale = &scale[0],
                                      .shift = &shift[0],
                                      .stats = &stats.all,
                                      .groups = GROUPS,
                                      .silu = true,
                                      .resample = resample,
                                      .add1 = &add.all,
                                      .dx1 = &dx.all,
                                      .dgamma = &dgamma[0],
                                      .dbeta = &dbeta[0],
                                      .dscale = &dscale[0],
                                      .dshift = &dshift[0]};
    struct groupnorm_bwd_args back_tail = back;
    back_tail.dy = &dy.tail, back_tail.x1 = &x.tail, back_tail.scale = &scale[1],
    back_tail.shift = &shift[1];
    back_tail.stats = &stats.tail, back_tail.add1 = &add.tail, back_tail.dx1 = &dx.tail;
    back_tail.dgamma = &dgamma[1], back_tail.dbeta = &dbeta[1], back_tail.dscale = &dscale[1],
    back_tail.dshift = &dshift[1];
    FAR_LAUNCH(groupnorm_bwd, GROUPS, back, back_tail);
    far_check(dx, 0);
    far_check(dfilm, 2 * CHANNELS);
    assert_bits((float *)dgamma[0].data, (float *)dgamma[1].data,
                CHANNELS); /* the other images' dy is zero */
    assert_bits((float *)dbeta[0].data, (float *)dbeta[1].data, CHANNELS);
    far_teardown(NULL);
}

static void test_norm_images(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++)
        for (int way = NORM_SAME; way <= NORM_MEAN2; way++)
            check_images(types[k], (enum norm_resample)way);
}

/* One image of 2^32 values, zero but for its last slice of 256 pixels: statistics and gradients in
 * double. */
static void test_norm_slices(void **state)
{
    (void)state;
    enum { SLICE = 256, OWN = SLICE * CHANNELS, GROUP = CHANNELS / GROUPS };
    const int64_t rows = far_rows(OWN, 1);
    const ddpm_tensor shape = ddpm_tensor_2d(NULL, rows, OWN),
                      image = ddpm_tensor_4d(NULL, 1, rows, SLICE, CHANNELS);
    struct far x = far_input(shape, DDPM_F32, 1, 0, 1), y = far_output(shape, DDPM_F32, 1, 0, 0);
    struct far dy = far_input(shape, DDPM_F32, 1, 0, 2), dx = far_output(shape, DDPM_F32, 1, 0, 0);
    ddpm_tensor tx = image, ty = image, tdy = image, tdx = image, stats = stats_of(1).all;
    tx.data = x.all.data, ty.data = y.all.data, tdy.data = dy.all.data, tdx.data = dx.all.data;
    ddpm_tensor gamma = vector_of(CHANNELS, 3), beta = vector_of(CHANNELS, 4);
    ddpm_tensor dgamma = ddpm_tensor_1d(zeros(CHANNELS), CHANNELS),
                dbeta = ddpm_tensor_1d(zeros(CHANNELS), CHANNELS);
    const struct groupnorm_args args = {.x1 = &tx,
                                        .gamma = &gamma,
                                        .beta = &beta,
                                        .groups = GROUPS,
                                        .eps = 1e-5f,
                                        .stats = &stats,
                                        .y = &ty};
    const struct groupnorm_bwd_args back = {.dy = &tdy,
                                            .x1 = &tx,
                                            .gamma = &gamma,
                                            .beta = &beta,
                                            .stats = &stats,
                                            .groups = GROUPS,
                                            .dx1 = &tdx,
                                            .dgamma = &dgamma,
                                            .dbeta = &dbeta};
    cuda_on_cpu_only_ends(GROUPS);
    far_launched(launch_groupnorm(NULL, &args, far_take((int64_t)scratch_groupnorm(&args))));
    far_launched(
        launch_groupnorm_bwd(NULL, &back, far_take((int64_t)scratch_groupnorm_bwd(&back))));

    const float *g = gamma.data, *b = beta.data;
    double *want_y = zeros64(OWN), *want_dx = zeros64(OWN), *a = zeros64(CHANNELS),
           *ab = zeros64(CHANNELS);
    double mean[GROUPS] = {0}, rstd[GROUPS] = {0}, want_stats[2 * GROUPS];
    const double all = (double)(rows * SLICE * GROUP);
    for (int64_t i = 0; i < OWN; i++) {
        mean[i % CHANNELS / GROUP] += value_at(x.at, i) / all;
        rstd[i % CHANNELS / GROUP] += pow(value_at(x.at, i), 2) / all;
    }
    for (int k = 0; k < GROUPS; k++) {
        rstd[k] = 1 / sqrt(rstd[k] - mean[k] * mean[k] + (double)1e-5f);
        want_stats[2 * k] = mean[k], want_stats[2 * k + 1] = rstd[k];
    }
    double m1[GROUPS] = {0}, m2[GROUPS] = {0};
    for (int64_t i = 0; i < OWN; i++) {
        const int64_t c = i % CHANNELS, k = c / GROUP;
        const double xhat = (value_at(x.at, i) - mean[k]) * rstd[k], d = value_at(dy.at, i);
        want_y[i] = xhat * (double)g[c] + (double)b[c];
        a[c] += d;
        ab[c] += d * xhat;
        m1[k] += d * (double)g[c] / all;
        m2[k] += d * xhat * (double)g[c] / all;
    }
    for (int64_t i = 0; i < OWN; i++) {
        const int64_t c = i % CHANNELS, k = c / GROUP;
        const double xhat = (value_at(x.at, i) - mean[k]) * rstd[k], d = value_at(dy.at, i);
        want_dx[i] = rstd[k] * (d * (double)g[c] - m1[k] - xhat * m2[k]);
    }
    assert_close((float *)stats.data, want_stats, 2 * GROUPS, 1e-6);
    assert_close((float *)y.at.data, want_y, OWN, 1e-5);
    assert_close((float *)dx.at.data, want_dx, OWN, 1e-5);
    assert_close((float *)dgamma.data, ab, CHANNELS, 1e-5);
    assert_close((float *)dbeta.data, a, CHANNELS, 1e-5);
}

/* ---- convolutions ---- */

enum { SIDE = 8, IN = 16, OUT = 64 }; /* the pixels of an image are a tile of results */

/* Images one after the other; x, dx and emb are slices of wider tensors. */
static void check_conv_images(ddpm_dtype dtype, int askew)
{
    const int64_t n = FAR_ELEMENTS / (SIDE * SIDE * OUT) + 1;
    const ddpm_tensor wide = ddpm_tensor_4d(NULL, n, SIDE, SIDE, 5 * IN),
                      result = ddpm_tensor_4d(NULL, n, SIDE, SIDE, OUT);
    struct far x = far_input(wide, dtype, 1, askew, 1), dx = far_output(wide, dtype, 1, askew, 2);
    struct far y = far_output(result, dtype, 1, askew, 0),
               residual = far_input(result, dtype, 1, askew, 3);
    struct far emb =
        far_input(ddpm_tensor_2d(NULL, n, (int64_t)OUT * SIDE * SIDE), DDPM_F32, 1, askew, 4);
    struct far w = far_input(ddpm_tensor_4d(NULL, OUT, 3, 3, IN), dtype, OUT, askew, 5);
    const ddpm_tensor bias = vector_of(OUT, 6);
    ddpm_tensor xs[] = {ddpm_tensor_slice(&x.all, 4 * IN, IN),
                        ddpm_tensor_slice(&x.tail, 4 * IN, IN)};
    ddpm_tensor dxs[] = {ddpm_tensor_slice(&dx.all, 4 * IN, IN),
                         ddpm_tensor_slice(&dx.tail, 4 * IN, IN)};
    ddpm_tensor embs[] = {ddpm_tensor_slice(&emb.all, OUT, OUT),
                          ddpm_tensor_slice(&emb.tail, OUT, OUT)};
    FAR_LAUNCH(conv2d, 1,
               FAR_ARGS(&xs[0], &w.all, &bias, &embs[0], &residual.all, 1, 1, 1, 1, 1, &y.all, NULL, NULL, NULL),
               FAR_ARGS(&xs[1], &w.all, &bias, &embs[1], &residual.tail, 1, 1, 1, 1, 1, &y.tail, NULL, NULL, NULL));
    far_check(y, 0);
    FAR_LAUNCH(conv2d_bwd_data, 1, FAR_ARGS(&residual.all, &w.all, 1, 1, 1, 1, 1, true, &dxs[0], {0}, NULL, NULL, NULL),
               FAR_ARGS(&residual.tail, &w.all, 1, 1, 1, 1, 1, true, &dxs[1], {0}, NULL, NULL, NULL));
    far_check(dx, IN);
    far_teardown(NULL);
}

static void test_conv_images(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++)
        check_conv_images(kinds[k].dtype, kinds[k].askew);
}

/* A 1x1 convolution to so many channels that weights and dy end beyond 2^32. */
static void test_conv_channels(void **state)
{
    (void)state;
    enum { WIDE = 1024, IMAGES = 16, PIXELS = IMAGES * SIDE * SIDE };
    const int64_t k = FAR_ELEMENTS / WIDE + OUT;
    for (int type = 0; type < 2; type++) {
        const ddpm_dtype dtype = types[type];
        const ddpm_tensor weights = ddpm_tensor_4d(NULL, k, 1, 1, WIDE);
        struct far x =
            far_input(ddpm_tensor_4d(NULL, IMAGES, SIDE, SIDE, WIDE), dtype, IMAGES, 0, 1);
        struct far w = far_input(weights, dtype, OUT, 0, 2),
                   dw = far_output(weights, DDPM_F32, OUT, 0, 3);
        ddpm_tensor y = ddpm_tensor_4d(far_take(PIXELS * k * 4), IMAGES, SIDE, SIDE, k);
        ddpm_tensor own = ddpm_tensor_4d(zeros(PIXELS * OUT), IMAGES, SIDE, SIDE, OUT);
        y.dtype = own.dtype = dtype;
        FAR_LAUNCH(conv2d, 1, FAR_ARGS(&x.all, &w.all, NULL, NULL, NULL, 1, 0, 0, 0, 0, &y, NULL, NULL, NULL),
                   FAR_ARGS(&x.all, &w.tail, NULL, NULL, NULL, 1, 0, 0, 0, 0, &own, NULL, NULL, NULL));
        const struct values far = {y.data, PIXELS * k, dtype},
                            near = {own.data, PIXELS * OUT, dtype};
        for (int64_t i = 0; i < OUT; i++) { /* of the last pixel, in the last block */
            assert_true(value_at(near, near.n - OUT + i) != 0);
            assert_true(value_at(far, far.n - OUT + i) == value_at(near, near.n - OUT + i));
        }
        for (int64_t p = 0; p < PIXELS; p++) /* what the first blocks wrote is not dy's */
            for (int64_t i = 0; i < OUT; i++)
                value_set(far, p * k + k - OUT + i, (float)value_at(near, p * OUT + i));
        FAR_LAUNCH(conv2d_bwd_filter, 1, FAR_ARGS(&x.all, &y, 1, 0, 0, 0, 0, &dw.all, NULL, NULL),
                   FAR_ARGS(&x.all, &own, 1, 0, 0, 0, 0, &dw.tail, NULL, NULL));
        const float *got = (float *)dw.at.data + dw.at.n - OUT,
                    *alone = (float *)dw.tail.data + dw.at.n - OUT;
        double *want = zeros64(
            OUT); /* 64 columns of the last row: the last tile. Fewer tiles cut pixels into parts */
        for (int64_t i = 0; i < OUT; i++)
            want[i] = (double)alone[i];
        assert_close(got, want, OUT, 1e-5);
        far_teardown(NULL);
    }
}

/* What is beside the product: the epilogue, and the sums of dy. */
static void test_conv_parts(void **state)
{
    (void)state;
    const int64_t n = (FAR_ELEMENTS / ((int64_t)SIDE * SIDE * OUT * 8192) + 1) *
                      8192; /* an image a block, 8192 blocks */
    for (int type = 0; type < 2; type++) {
        const ddpm_tensor shape = ddpm_tensor_4d(NULL, n, SIDE, SIDE, OUT);
        struct far y = far_output(shape, types[type], 1, 0, 1),
                   residual = far_input(shape, types[type], 1, 0, 2);
        struct far emb = far_input(ddpm_tensor_2d(NULL, n, OUT), DDPM_F32, 1, 0, 3);
        struct far demb = far_output(ddpm_tensor_2d(NULL, n, OUT), DDPM_F32, 1, 0, 0);
        const ddpm_tensor bias = vector_of(OUT, 4);
        ddpm_tensor db[] = {vector_of(OUT, 5), vector_of(OUT, 5)};
        const struct conv2d_args all = {
            .bias = &bias, .emb = &emb.all, .residual = &residual.all, .y = &y.all};
        const struct conv2d_args tail = {
            .bias = &bias, .emb = &emb.tail, .residual = &residual.tail, .y = &y.tail};
        const struct conv2d_bwd_filter_args sums = {
            .dy = &residual.all, .db = &db[0], .demb = &demb.all};
        const struct conv2d_bwd_filter_args sums_tail = {
            .dy = &residual.tail, .db = &db[1], .demb = &demb.tail};
        cuda_on_cpu_only_ends(2);
        far_launched(launch_conv_epilogue(NULL, &all));
        far_launched(
            launch_conv_sums(NULL, &sums, far_take((int64_t)scratch_conv_sums(&sums) + 256)));
        cuda_on_cpu_only_ends(0);
        far_launched(launch_conv_epilogue(NULL, &tail));
        far_launched(launch_conv_sums(NULL, &sums_tail,
                                      far_take((int64_t)scratch_conv_sums(&sums_tail) + 256)));
        far_check(y, 0);
        far_check(demb, OUT / 2); /* of the last block of columns */
        assert_bits((float *)db[0].data + OUT / 2, (float *)db[1].data + OUT / 2, OUT / 2);
        far_teardown(NULL);
    }
}

/* ---- rows far from each other ---- */

/* Values of a compact tensor, and the same with rows `step` elements apart. */
static ddpm_tensor apart(const ddpm_tensor *compact, int dim, int64_t step)
{
    ddpm_tensor t = *compact;
    const int64_t size = (int64_t)ddpm_dtype_size(t.dtype), row = compact->stride[dim];
    for (int i = 0; i <= dim; i++)
        t.stride[i] = compact->stride[i] / row * step;
    t.data = far_take(t.dim[0] * t.stride[0] * size);
    for (int64_t i = 0; i < t.dim[0] * compact->stride[0] / row; i++)
        memcpy((char *)t.data + i * step * size, (char *)compact->data + i * row * size,
               (size_t)(row * size));
    return t;
}

static void same_apart(const ddpm_tensor *far, const ddpm_tensor *compact, int dim)
{
    const int64_t size = (int64_t)ddpm_dtype_size(far->dtype), row = compact->stride[dim];
    for (int64_t i = 0; i < far->dim[0] * compact->stride[0] / row; i++)
        assert_memory_equal((char *)far->data + i * far->stride[dim] * size,
                            (char *)compact->data + i * row * size, row * size);
}

static ddpm_tensor random_tensor(ddpm_tensor shape, ddpm_dtype dtype, uint64_t which)
{
    return tensor_of(random_values(far_size(&shape), dtype, 0, which, -1, 1), shape);
}

/* A dense layer over views whose rows lie 2^26 elements apart. */
static void test_linear(void **state)
{
    (void)state;
    enum { M = 70, I = 24, O = 40 };
    const int64_t step = ((int64_t)1 << 26) + 64;
    for (int type = 0; type < 2; type++) {
        const ddpm_dtype dtype = types[type];
        const ddpm_tensor in = ddpm_tensor_2d(NULL, M, I), out = ddpm_tensor_2d(NULL, M, O),
                          bias = vector_of(O, 1);
        ddpm_tensor x = random_tensor(in, dtype, 2),
                    w = random_tensor(ddpm_tensor_2d(NULL, O, I), dtype, 3);
        ddpm_tensor y = random_tensor(out, dtype, 4), dx = random_tensor(in, dtype, 5),
                    dy = random_tensor(out, dtype, 6);
        ddpm_tensor dw[] = {ddpm_tensor_2d(zeros(O * I), O, I), ddpm_tensor_2d(zeros(O * I), O, I)};
        ddpm_tensor db[] = {vector_of(O, 7), vector_of(O, 7)};
        ddpm_tensor fx = apart(&x, 0, step), fy = apart(&y, 0, step), fdx = apart(&dx, 0, step),
                    fdy = apart(&dy, 0, step);
        FAR_LAUNCH(linear, 0, FAR_ARGS(&fx, &w, &bias, &fy), FAR_ARGS(&x, &w, &bias, &y));
        same_apart(&fy, &y, 0);
        FAR_LAUNCH(linear_bwd, 0, FAR_ARGS(&fx, &w, &fdy, true, &fdx, &dw[0], &db[0]),
                   FAR_ARGS(&x, &w, &dy, true, &dx, &dw[1], &db[1]));
        same_apart(&fdx, &dx, 0);
        assert_bits((float *)dw[0].data, (float *)dw[1].data, O * I);
        assert_bits((float *)db[0].data, (float *)db[1].data, O);
        far_teardown(NULL);
    }
}

/* Pixels of a convolution 2^28 elements apart; rows of a 1x1 kernel 2^28 apart. */
static void test_conv_strides(void **state)
{
    (void)state;
    enum { H = 5, W = 4, C = 8, K = 24 };
    const int64_t step = ((int64_t)1 << 28) + 8;
    for (int type = 0; type < 2; type++) {
        const ddpm_dtype dtype = types[type];
        const ddpm_tensor in = ddpm_tensor_4d(NULL, 1, H, W, C),
                          out = ddpm_tensor_4d(NULL, 1, H, W, K);
        ddpm_tensor x = random_tensor(in, dtype, 1), dx = random_tensor(in, dtype, 2),
                    y = random_tensor(out, dtype, 3);
        ddpm_tensor w = random_tensor(ddpm_tensor_4d(NULL, K, 1, 1, C), dtype, 4);
        ddpm_tensor dw = random_tensor(ddpm_tensor_4d(NULL, K, 1, 1, C), DDPM_F32, 5),
                    own = random_tensor(out, dtype, 3);
        ddpm_tensor fx = apart(&x, 2, step), fdx = apart(&dx, 2, step);
        ddpm_tensor fw = apart(&w, 2, step), fdw = apart(&dw, 2, step);
        fw.stride[1] = fw.stride[2] = fdw.stride[1] = fdw.stride[2] = C;
        FAR_LAUNCH(conv2d, 0, FAR_ARGS(&fx, &fw, NULL, NULL, NULL, 1, 0, 0, 0, 0, &own, NULL, NULL, NULL),
                   FAR_ARGS(&x, &w, NULL, NULL, NULL, 1, 0, 0, 0, 0, &y, NULL, NULL, NULL));
        same_apart(&own, &y, 2);
        FAR_LAUNCH(conv2d_bwd_data, 0, FAR_ARGS(&y, &fw, 1, 0, 0, 0, 0, true, &fdx, {0}, NULL, NULL, NULL),
                   FAR_ARGS(&y, &w, 1, 0, 0, 0, 0, true, &dx, {0}, NULL, NULL, NULL));
        fdx.stride[0] = H * W * step;
        same_apart(&fdx, &dx, 2);
        FAR_LAUNCH(conv2d_bwd_filter, 0, FAR_ARGS(&fx, &y, 1, 0, 0, 0, 0, &fdw, NULL, NULL),
                   FAR_ARGS(&x, &y, 1, 0, 0, 0, 0, &dw, NULL, NULL));
        fdw.stride[2] = step;
        same_apart(&fdw, &dw, 2);
        far_teardown(NULL);
    }
}

/* ---- attention ---- */

static ddpm_tensor lse_of(int64_t n, int64_t heads, int64_t t)
{
    return (ddpm_tensor){.rank = 3, .dim = {n, heads, t}, .stride = {heads * t, t, 1}};
}

/* Tokens 2^26 elements apart, two images, two heads, more than a tile of tokens. */
static void test_attention_strides(void **state)
{
    (void)state;
    enum { N = 2, TOKENS = 70, HEADS = 2, D = 16 };
    const int64_t step = ((int64_t)1 << 25) + 64;
    for (int type = 0; type < 2; type++) {
        const ddpm_tensor shape = ddpm_tensor_4d(NULL, N, TOKENS, HEADS, D);
        ddpm_tensor near[8], far[8], lse[2]; /* q k v o d_o dq dk dv */
        for (int i = 0; i < 8; i++) {
            near[i] = random_tensor(shape, types[type], (uint64_t)i + 1);
            far[i] = apart(&near[i], 1, step);
        }
        for (int i = 0; i < 2; i++) {
            lse[i] = lse_of(N, HEADS, TOKENS);
            lse[i].data = zeros(N * HEADS * TOKENS);
        }
        FAR_LAUNCH(attention, 0, FAR_ARGS(&far[0], &far[1], &far[2], 0.25f, &far[3], &lse[0]),
                   FAR_ARGS(&near[0], &near[1], &near[2], 0.25f, &near[3], &lse[1]));
        same_apart(&far[3], &near[3], 1);
        FAR_LAUNCH(attention_bwd, 0,
                   FAR_ARGS(&far[0], &far[1], &far[2], &far[3], &lse[0], &far[4], 0.25f, &far[5],
                            &far[6], &far[7]),
                   FAR_ARGS(&near[0], &near[1], &near[2], &near[3], &lse[1], &near[4], 0.25f,
                            &near[5], &near[6], &near[7]));
        for (int i = 5; i < 8; i++)
            same_apart(&far[i], &near[i], 1);
        far_teardown(NULL);
    }
}

/* So many images that lse is the only small tensor. */
static void test_attention_images(void **state)
{
    (void)state;
    enum { TOKENS = 64, D = 16 };
    const int64_t n = FAR_ELEMENTS / (TOKENS * D) + 1;
    const ddpm_tensor shape = ddpm_tensor_4d(NULL, n, TOKENS, 1, D);
    struct far q = far_input(shape, DDPM_BF16, 1, 0, 1), k = far_input(shape, DDPM_BF16, 1, 0, 2);
    struct far v = far_input(shape, DDPM_BF16, 1, 0, 3), d_o = far_input(shape, DDPM_BF16, 1, 0, 4);
    struct far o = far_output(shape, DDPM_BF16, 1, 0, 0),
               lse = far_output(lse_of(n, 1, TOKENS), DDPM_F32, 1, 0, 0);
    struct far dq = far_output(shape, DDPM_BF16, 1, 0, 0),
               dk = far_output(shape, DDPM_BF16, 1, 0, 0);
    struct far dv = far_output(shape, DDPM_BF16, 1, 0, 0);
    FAR_LAUNCH(attention, 1, FAR_ARGS(&q.all, &k.all, &v.all, 0.25f, &o.all, &lse.all),
               FAR_ARGS(&q.tail, &k.tail, &v.tail, 0.25f, &o.tail, &lse.tail));
    far_check(o, 0);
    far_check(lse, 0);
    FAR_LAUNCH(attention_bwd, 2,
               FAR_ARGS(&q.all, &k.all, &v.all, &o.all, &lse.all, &d_o.all, 0.25f, &dq.all, &dk.all,
                        &dv.all),
               FAR_ARGS(&q.tail, &k.tail, &v.tail, &o.tail, &lse.tail, &d_o.tail, 0.25f, &dq.tail,
                        &dk.tail, &dv.tail));
    far_check(dq, 0);
    far_check(dk, 0);
    far_check(dv, 0);
}

/* ---- more blocks than there can be ---- */

static void test_refused(void **state)
{
    (void)state;
    const int64_t n = (int64_t)1 << 32; /* blocks, or more */
    const ddpm_tensor w = random_tensor(ddpm_tensor_4d(NULL, 64, 1, 1, 8), DDPM_F32, 1);
    ddpm_tensor x = ddpm_tensor_4d(NULL, n, 8, 8, 8), y = ddpm_tensor_4d(NULL, n, 8, 8, 64);
    x.data = y.data = w.data; /* not looked at */
    const struct conv2d_args conv = {.x = &x, .w = &w, .stride = 1, .y = &y};
    assert_int_equal(launch_conv2d(NULL, &conv, NULL), cudaErrorInvalidConfiguration);
    ddpm_tensor q = ddpm_tensor_4d(w.data, n, 64, 1, 8);
    const struct attention_args attention = {&q, &q, &q, 1, &q, NULL};
    assert_int_equal(launch_attention(NULL, &attention, NULL), cudaErrorInvalidConfiguration);
    ddpm_tensor filter = ddpm_tensor_4d(w.data, 64 * n, 1, 1, 8),
                dy = ddpm_tensor_4d(w.data, 1, 8, 8, 64 * n);
    ddpm_tensor image = ddpm_tensor_4d(w.data, 1, 8, 8, 8);
    const struct conv2d_bwd_filter_args back = {.x = &image, .dy = &dy, .stride = 1, .dw = &filter};
    assert_int_equal(launch_conv2d_bwd_filter(NULL, &back, w.data), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAR_TEST(test_norm_images),      FAR_TEST(test_norm_slices),
        FAR_TEST(test_conv_images),      FAR_TEST(test_conv_channels),
        FAR_TEST(test_conv_parts),       FAR_TEST(test_conv_strides),
        FAR_TEST(test_linear),           FAR_TEST(test_attention_strides),
        FAR_TEST(test_attention_images), FAR_TEST(test_refused),
    };
    return far_is_wanted() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}

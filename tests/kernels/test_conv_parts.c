/* test_conv_parts.c - what convolutions add and sum, through launch.h: every choice of bias, embedding and residual,
 * both element types, channels around a pack and around a block of 64 packs, pixels around a walk and a slice, more
 * tiles than blocks; sums to the bit the same wherever dy lies. */
#include "halves.h"

#include "launch.h"

struct shape {
    int64_t n, h, w, k;
};

/* Around 4 and 8 channels a pack; 65 packs of either type, two blocks of columns; walks of 8 and 16 pixels by up to 256
 * rows, one pixel short, full and over. */
static const struct shape shapes[] = {{1, 1, 1, 1},     {3, 2, 3, 3},     {2, 5, 7, 8},    {2, 4, 4, 24},
                                      {1, 3, 43, 64},   {3, 1, 2, 260},   {2, 1, 3, 520},  {1, 16, 16, 128},
                                      {1, 1, 255, 128}, {2, 1, 513, 64}, {1, 67, 61, 3}, {1, 2, 1025, 4}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void launched(cudaError_t e)
{
    assert_int_equal(e, cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

/* The first k columns of rows twice as wide and one more: a view. */
static ddpm_tensor rows_in_wider(float *data, int64_t n, int64_t k)
{
    ddpm_tensor t = ddpm_tensor_2d(data, n, k);
    t.stride[0] = 2 * k + 1;
    return t;
}

/* ---- epilogue ---- */

static void check_epilogue(struct shape s, ddpm_dtype dtype, int askew, int parts)
{
    const int64_t count = s.n * s.h * s.w * s.k;
    const struct values y = random_values(count, dtype, askew, 1, -1, 1);
    const struct values residual = random_values(count, dtype, askew, 2, -1, 1);
    float *bias = uniforms(s.k, 3, -1, 1), *emb = uniforms(s.n * (2 * s.k + 1), 4, -1, 1);
    const bool has_bias = parts & 1, has_emb = parts & 2, has_residual = parts & 4;
    double *want = zeros64(count);
    for (int64_t i = 0; i < count; i++) {
        const int64_t k = i % s.k, n = i / (s.h * s.w * s.k);
        want[i] = value_at(y, i) + (has_bias ? (double)bias[k] : 0) +
                  (has_emb ? (double)emb[n * (2 * s.k + 1) + k] : 0) + (has_residual ? value_at(residual, i) : 0);
    }
    const ddpm_tensor shape = ddpm_tensor_4d(NULL, s.n, s.h, s.w, s.k);
    ddpm_tensor ty = tensor_of(y, shape), tresidual = tensor_of(residual, shape);
    ddpm_tensor tbias = ddpm_tensor_1d(bias, s.k), temb = rows_in_wider(emb, s.n, s.k);
    launched(launch_conv_epilogue(NULL, &(struct conv2d_args){.bias = has_bias ? &tbias : NULL,
                                                              .emb = has_emb ? &temb : NULL,
                                                              .residual = has_residual ? &tresidual : NULL,
                                                              .y = &ty}));
    assert_values(y, want, 1e-6); /* three additions of values below 4 */
}

static void test_epilogue(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS; k++)
        for (int i = 0; i < SHAPES; i++)
            check_epilogue(shapes[i], kinds[k].dtype, kinds[k].askew, 7);
    for (int parts = 0; parts < 8; parts++)
        check_epilogue((struct shape){2, 5, 7, 8}, DDPM_BF16, 0, parts);
    check_epilogue((struct shape){8192 + 3, 1, 1, 1}, DDPM_F32, 0, 3); /* blocks take a second tile */
}

/* residual = y: twice what is there, and the offsets once */
static void test_epilogue_in_place(void **state)
{
    (void)state;
    const int64_t count = 3 * 4 * 5 * 16;
    const struct values y = random_values(count, DDPM_BF16, 0, 1, -1, 1);
    float *bias = uniforms(16, 3, -1, 1);
    double *want = zeros64(count);
    for (int64_t i = 0; i < count; i++)
        want[i] = 2 * value_at(y, i) + (double)bias[i % 16];
    ddpm_tensor ty = tensor_of(y, ddpm_tensor_4d(NULL, 3, 4, 5, 16)), tbias = ddpm_tensor_1d(bias, 16);
    launched(launch_conv_epilogue(NULL, &(struct conv2d_args){.bias = &tbias, .residual = &ty, .y = &ty}));
    assert_values(y, want, 1e-6);
}

/* ---- sums ---- */

struct sums {
    float *db, *demb; /* [k], [n, 2k+1] of which k columns are demb */
};

/* Runs in the scratch that is asked for, no byte more: a sanitizer would see one. */
static struct sums run_sums(struct shape s, struct values dy, bool has_db, bool has_demb)
{
    const struct sums out = {uniforms(s.k, 5, -1, 1), uniforms(s.n * (2 * s.k + 1), 6, -1, 1)};
    ddpm_tensor tdy = tensor_of(dy, ddpm_tensor_4d(NULL, s.n, s.h, s.w, s.k));
    ddpm_tensor tdb = ddpm_tensor_1d(out.db, s.k), tdemb = rows_in_wider(out.demb, s.n, s.k);
    const struct conv2d_bwd_filter_args a = {
        .dy = &tdy, .db = has_db ? &tdb : NULL, .demb = has_demb ? &tdemb : NULL};
    const size_t bytes = scratch_conv_sums(&a);
    assert_int_equal(bytes > 0, has_db || has_demb);
    void *scratch = NULL;
    assert_int_equal(cudaMalloc(&scratch, bytes + !bytes), cudaSuccess);
    launched(launch_conv_sums(NULL, &a, scratch));
    assert_int_equal(cudaFree(scratch), cudaSuccess);
    return out;
}

/* Absolute: f32 sums in three levels of at most 32 terms, of values below 1 that partly cancel: 2e-7 a term's size
 * and level, times the square root of the count. */
static void check_sums(struct shape s, ddpm_dtype dtype)
{
    const int64_t pixels = s.h * s.w, count = s.n * pixels * s.k;
    const struct values dy = random_values(count, dtype, 0, 1, -1, 1);
    double *db = zeros64(s.k), *demb = zeros64(s.n * s.k);
    for (int64_t i = 0; i < count; i++) {
        db[i % s.k] += value_at(dy, i);
        demb[i / (pixels * s.k) * s.k + i % s.k] += value_at(dy, i);
    }
    const struct sums got = run_sums(s, dy, true, true);
    const float *db_before = uniforms(s.k, 5, -1, 1), *demb_before = uniforms(s.n * (2 * s.k + 1), 6, -1, 1);
    const double limit = 5e-7 * (1 + sqrt((double)(s.n * pixels)));
    for (int64_t k = 0; k < s.k; k++)
        assert_near((double)got.db[k], (double)db_before[k] + db[k], limit);
    for (int64_t i = 0; i < s.n * (2 * s.k + 1); i++) {
        const int64_t n = i / (2 * s.k + 1), k = i % (2 * s.k + 1);
        if (k < s.k)
            assert_near((double)got.demb[i], demb[n * s.k + k], limit);
        else
            assert_true(got.demb[i] == demb_before[i]); /* beside the view */
    }

    /* one at a time, and from another place: the same bits */
    const struct sums moved = run_sums(s, copy_of_values(dy, 1), true, true);
    assert_bits(moved.db, got.db, s.k);
    assert_bits(moved.demb, got.demb, s.n * (2 * s.k + 1));
    assert_bits(run_sums(s, dy, true, false).db, got.db, s.k);
    assert_bits(run_sums(s, dy, false, true).demb, got.demb, s.n * (2 * s.k + 1));
}

static void test_sums(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        check_sums(shapes[i], DDPM_F32);
        check_sums(shapes[i], DDPM_BF16);
    }
}

/* Images so large that slices grow: 64 of them, and walks beyond 16 pixels. */
static void test_sums_of_large_images(void **state)
{
    (void)state;
    check_sums((struct shape){1, 65, 64, 256}, DDPM_F32);
}

/* More tiles than blocks, and columns of one image's sums in more blocks than there are: a second turn. */
static void test_sums_of_many_images(void **state)
{
    (void)state;
    const struct shape s = {8192 + 5, 1, 2, 1};
    const struct values dy = random_values(2 * s.n, DDPM_F32, 0, 1, -1, 1);
    const struct sums got = run_sums(s, dy, false, true);
    for (int64_t n = 0; n < s.n; n++)
        assert_near((double)got.demb[n * 3], value_at(dy, 2 * n) + value_at(dy, 2 * n + 1), 2e-7);
}

/* Two slices of an image to be added, and more columns of sums than blocks: a block's second turn waits for its first. */
static void test_sums_in_turns(void **state)
{
    (void)state;
    enum { PIXELS = 65 };
    const struct shape s = {1024 + 1, 1, PIXELS, 256};
    const struct values dy = values_of(s.n * PIXELS * s.k, DDPM_F32, 0);
    for (int64_t i = 0; i < s.n * s.k; i++)
        value_set(dy, (i / s.k * PIXELS + PIXELS - 1) * s.k + i % s.k, (float)(i / s.k + 1));
    const struct sums got = run_sums(s, dy, false, true);
    for (int64_t i = 0; i < s.n * s.k; i++)
        assert_true(got.demb[i / s.k * (2 * s.k + 1) + i % s.k] == (float)(i / s.k + 1));
}

static void test_nothing_to_sum(void **state)
{
    (void)state;
    const struct shape s = {2, 2, 2, 8};
    const struct values dy = random_values(64, DDPM_F32, 0, 1, -1, 1);
    const struct sums got = run_sums(s, dy, false, false);
    assert_bits(got.db, uniforms(8, 5, -1, 1), 8);
    assert_bits(got.demb, uniforms(34, 6, -1, 1), 34);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(test_epilogue),
        OP_TEST(test_epilogue_in_place),
        OP_TEST(test_sums),
        OP_TEST(test_sums_of_large_images),
        OP_TEST(test_sums_of_many_images),
        OP_TEST(test_sums_in_turns),
        OP_TEST(test_nothing_to_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_layouts.c - layouts, through launch.h: channels padded and dropped, transposes to the order of files and back.
 * All of it moves values, so everything is exact but for the rounding to bf16, which is the test's own. */
#include "halves.h"

#include "launch.h"

static const ddpm_dtype types[] = {DDPM_F32, DDPM_BF16};

static void launched(cudaError_t e)
{
    assert_int_equal(e, cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

/* What v's element i becomes in another type. */
static double converted(struct values v, int64_t i, ddpm_dtype dtype)
{
    const float x = (float)value_at(v, i);
    return dtype == DDPM_BF16 ? (double)half_value(half_from(x)) : (double)x;
}

static void check_pack(int64_t pixels, int64_t c, int64_t c_padded, ddpm_dtype from_type, ddpm_dtype to_type, int askew)
{
    const struct values from = random_values(pixels * c, from_type, askew, 1, -4, 4);
    const struct values to = random_values(pixels * c_padded, to_type, askew, 2, 5, 6);
    launched(launch_pack_channels(NULL, pixels, from.data, from_type, c, to.data, to_type, c_padded));
    for (int64_t i = 0; i < to.n; i++) {
        const int64_t k = i % c_padded;
        assert_true(value_at(to, i) == (k < c ? converted(from, i / c_padded * c + k, to_type) : 0));
    }
}

/* Image channels to a tensor core's and back; no padding at all; more than a pack; pixels around a block of 256. */
static void test_pack_channels(void **state)
{
    (void)state;
    const int64_t cases[][3] = {{255, 3, 8}, {256, 1, 8},   {257, 3, 4}, {100, 8, 3}, {257, 8, 1}, {33, 5, 5},
                                {17, 6, 24}, {1, 13, 16}, {9, 24, 7}, {300, 1, 2},  {1, 1, 1}};
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++)
        for (int k = 0; k < 8; k++)
            check_pack(cases[i][0], cases[i][1], cases[i][2], types[k & 1], types[k >> 1 & 1], k >> 2);
}

static void check_transposes(int64_t n, int64_t pixels, int64_t c, ddpm_dtype dtype)
{
    const int64_t count = n * pixels * c;
    const struct values nhwc = random_values(count, dtype, 1, 1, -4, 4), back = values_of(count, dtype, 1);
    float *nchw = zeros(count);
    launched(launch_nhwc_to_nchw(NULL, n, pixels, c, nhwc.data, dtype, nchw));
    for (int64_t i = 0; i < count; i++) {
        const int64_t image = i / (pixels * c), k = i / pixels % c, p = i % pixels;
        assert_true((double)nchw[i] == value_at(nhwc, (image * pixels + p) * c + k));
    }
    launched(launch_nchw_to_nhwc(NULL, n, pixels, c, nchw, back.data, dtype));
    assert_same_values(back, nhwc);
}

/* Square tiles cut at 32 on either side, few channels, few pixels, one of both; tiles of 1024 and one value more. */
static void test_transposes(void **state)
{
    (void)state;
    const int64_t cases[][3] = {{1, 1, 1},   {2, 64, 64},  {1, 63, 65},  {3, 33, 33},   {1, 32, 40},  {1, 40, 32},
                                {2, 1024, 1}, {1, 1025, 1}, {2, 341, 3},  {1, 342, 3},   {5, 700, 3},  {3, 9, 113},
                                {2, 9, 128}, {2, 1, 1024}, {1, 1, 1025}, {4, 1, 5},     {1, 31, 33},  {1, 256, 130}};
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++)
        for (int k = 0; k < 2; k++)
            check_transposes(cases[i][0], cases[i][1], cases[i][2], types[k]);
}

/* More tiles than blocks: a block takes a second one in the same shared memory. */
static void test_many_images(void **state)
{
    (void)state;
    check_transposes(4096 + 5, 3, 2, DDPM_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_pack_channels), OP_TEST(test_transposes),
                                       OP_TEST(test_many_images)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

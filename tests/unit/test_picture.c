/* test_picture.c - grids and animations: what a viewer would see. */
#include "images.h"

#include "image.h"
#include "picture.h"

static uint8_t *decode(const char *path, image_info *info)
{
    size_t bytes = 0;
    uint8_t *pixels = NULL;
    char *file = support_read_file(path, &bytes);
    assert_ok(image_decode(file, bytes, 3, info, &pixels));
    free(file);
    return pixels;
}

static void test_grid(void **state)
{
    char path[SUPPORT_PATH];
    uint8_t images[5 * 8 * 6 * 3];
    for (int i = 0; i < 5; i++)
        memset(images + i * 144, 50 * i + 20, 144);
    images[0] = 255; /* top left, red */
    assert_ok(picture_grid(support_join(path, *state, "grid.png"), images, 5, 8, 6, 3, 0));
    image_info info;
    uint8_t *p = decode(path, &info);
    /* 3 columns and 2 rows with gaps of 2: 22 x 18, enlarged 24 times to reach 512 */
    assert_int_equal(info.width, 22 * 24);
    assert_int_equal(info.height, 18 * 24);
#define AT(y, x) (p[((size_t)(y) * (size_t)info.width + (size_t)(x)) * 3])
    assert_int_equal(AT(0, 0), 255);
    assert_int_equal(AT(23, 23), 255);
    assert_int_equal(AT(24, 0), 20);
    assert_int_equal(AT(0, 6 * 24), 0);         /* the gap */
    assert_int_equal(AT(0, 8 * 24), 70);        /* the second image */
    assert_int_equal(AT(10 * 24, 8 * 24), 220); /* the fifth */
    assert_int_equal(AT(10 * 24, 16 * 24), 0);  /* no sixth */
#undef AT
    free(p);
}

static void test_grey_grid_and_columns(void **state)
{
    char path[SUPPORT_PATH];
    uint8_t images[2 * 300 * 300];
    memset(images, 9, sizeof images);
    assert_ok(picture_grid(support_join(path, *state, "grid.png"), images, 2, 300, 300, 1, 1));
    image_info info;
    uint8_t *p = decode(path, &info);
    assert_int_equal(info.channels, 1);
    assert_int_equal(info.width, 600);
    assert_int_equal(info.height, 1204);
    assert_int_equal(p[0], 9);
    free(p);
}

static void test_refused(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "grid.png");
    assert_status(picture_grid(path, NULL, 100000, 1000, 1000, 3, 0), DDPM_SHAPE);
    assert_status(picture_grid(path, NULL, 0, 8, 8, 3, 0), DDPM_SHAPE);
    assert_status(picture_grid(path, NULL, 1, 8, 8, 2, 0), DDPM_SHAPE);
    const uint8_t pixel = 0;
    assert_status(picture_grid("/proc/no/such.png", &pixel, 1, 1, 1, 1, 0), DDPM_CANTCREAT);
    assert_int_equal(support_count_entries(*state), 0);
}

static void test_animation(void **state)
{
    char path[SUPPORT_PATH];
    picture_animation *a = NULL;
    uint8_t images[4 * 8 * 8];
    support_join(path, *state, "denoise.webp");
    assert_ok(picture_animation_create(path, 4, 8, 8, 1, 2, &a));
    for (int i = 0; i < 6; i++) {
        memset(images, 40 * i, sizeof images);
        assert_ok(picture_animation_add(a, images, 100));
    }
    assert_ok(picture_animation_finish(a));
    if (!a) skip(); /* built without WebP */
    size_t bytes = 0;
    char *file = support_read_file(path, &bytes);
    assert_memory_equal(file, "RIFF", 4);
    assert_memory_equal(file + 8, "WEBPVP8X", 8);
    int frames = 0;
    for (size_t i = 12; i + 4 < bytes; i++)
        frames += !memcmp(file + i, "ANMF", 4);
    assert_int_equal(frames, 6);
    free(file);
    assert_ok(picture_animation_create(path, 4, 8, 8, 1, 2, &a));
    picture_animation_abandon(a);
    picture_animation_abandon(NULL);
    assert_ok(picture_animation_create(path, 4, 8, 8, 3, 2, &a));
    assert_status(picture_animation_finish(a), DDPM_ARG); /* no frame */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_grid, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_grey_grid_and_columns, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(test_refused, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_animation, support_setup, support_teardown),
    };
    return cmocka_run_group_tests_name("picture", tests, NULL, NULL);
}

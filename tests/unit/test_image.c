/* test_image.c - which image files are taken, what their pixels are, and that a damaged one is
 * never taken. */
#include "images.h"

#include "fit.h"
#include "image.h"
#include "pack.h"
#include "sandbox.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

static uint8_t *golden(const char *name, size_t *bytes)
{
    char path[SUPPORT_PATH];
    return (uint8_t *)support_read_file(support_join(path, "golden_images", name), bytes);
}

static uint8_t *golden_pixels(const char *name, image_info *info)
{
    size_t bytes = 0;
    uint8_t *file = golden(name, &bytes), *pixels = NULL;
    assert_ok(image_decode(file, bytes, 3, info, &pixels));
    free(file);
    return pixels;
}

static int worst(const uint8_t *a, const uint8_t *b, size_t n)
{
    int most = 0;
    for (size_t i = 0; i < n; i++)
        most = abs(a[i] - b[i]) > most ? abs(a[i] - b[i]) : most;
    return most;
}

/* ---- sizes ---- */

static void test_crop_is_pillows(void **state)
{
    (void)state;
    static const int sizes[][2] = {{24, 24}, {16, 16}, {7, 7}, {40, 64}, {80, 72}};
    image_info src, want;
    uint8_t *pixels = golden_pixels("source_61x97.png", &src);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int h = sizes[i][0], w = sizes[i][1];
        char name[64];
        snprintf(name, sizeof name, "crop_%dx%d.png", h, w);
        uint8_t *expected = golden_pixels(name, &want), *got = malloc((size_t)(3 * h * w));
        assert_ok(fit_image(pixels, src.height, src.width, 3, got, h, w, PACK_FIT_CROP));
        /* both work in 8-bit steps with 22-bit weights: the same numbers */
        assert_int_equal(worst(got, expected, (size_t)(3 * h * w)), 0);
        free(expected);
        free(got);
    }
    free(pixels);
}

static void test_filters_are_pillows(void **state)
{
    (void)state;
    image_info src, want;
    uint8_t *pixels = golden_pixels("source_61x97.png", &src), got[50 * 48 * 3];
    uint8_t *expected = golden_pixels("bicubic_50x33.png", &want);
    assert_ok(fit_resize(pixels, 61, 97, 3, got, 50, 33, FIT_BICUBIC));
    assert_int_equal(worst(got, expected, 50 * 33 * 3), 0);
    free(expected);
    expected = golden_pixels("box_30x48.png", &want);
    assert_ok(fit_resize(pixels, 61, 97, 3, got, 30, 48, FIT_BOX));
    assert_int_equal(worst(got, expected, 30 * 48 * 3), 0);
    free(expected);
    free(pixels);
}

static void test_pad_and_refuse(void **state)
{
    (void)state;
    uint8_t src[2 * 4], dst[4 * 4];
    memset(src, 200, sizeof src);
    assert_ok(fit_image(src, 2, 4, 1, dst, 4, 4, PACK_FIT_PAD));
    for (int i = 0; i < 16; i++)
        assert_int_equal(dst[i], i / 4 == 1 || i / 4 == 2 ? 200 : 0);
    uint8_t wide[8 * 16];
    memset(wide, 90, sizeof wide);
    assert_ok(fit_image(wide, 8, 16, 1, dst, 4, 4, PACK_FIT_PAD)); /* shrunk to 2 x 4 */
    for (int i = 0; i < 16; i++)
        assert_int_equal(dst[i], i / 4 == 1 || i / 4 == 2 ? 90 : 0);
    assert_status(fit_image(src, 2, 4, 1, dst, 4, 4, PACK_FIT_REFUSE), DDPM_FORMAT);
    assert_message("2 x 4");
    assert_ok(fit_image(src, 2, 4, 1, dst, 2, 4, PACK_FIT_REFUSE));
    assert_int_equal(dst[7], 200);
    /* a line of pixels that would have to grow beyond measure */
    uint8_t *line = calloc(1, 16384), *big = malloc(16384 * 64);
    assert_status(fit_image(line, 1, 16384, 1, big, 16384, 64, PACK_FIT_CROP), DDPM_FORMAT);
    free(line);
    free(big);
}

/* ---- PNG ---- */

static void test_png_kinds(void **state)
{
    (void)state;
    static const uint8_t depths[7][6] = {{1, 2, 4, 8, 16}, {0}, {8, 16}, {1, 2, 4, 8},
                                         {8, 16},          {0}, {8, 16}};
    static const int channels[7] = {1, 0, 3, 3, 2, 0, 4};
    uint8_t palette[768];
    for (int i = 0; i < 768; i++)
        palette[i] = (uint8_t)(i * 7);
    for (unsigned color = 0; color < 7; color++)
        for (int d = 0; depths[color][d]; d++)
            for (unsigned size = 1; size < 20; size += 3)
                for (unsigned interlace = 0; interlace < 2; interlace++) {
                    const png_spec s = {.width = size,
                                        .height = 20 - size,
                                        .color = color,
                                        .depth = depths[color][d],
                                        .interlace = interlace,
                                        .palette = palette,
                                        .idat_parts = size % 2 ? 3 : 0,
                                        .palette_bytes = color == 3 ? 3u << depths[color][d] : 0};
                    size_t bytes = 0;
                    uint8_t *file = png_build(&s, NULL, &bytes), *pixels = NULL;
                    image_info info = {0};
                    assert_ok(image_decode(file, bytes, 3, &info, &pixels));
                    assert_int_equal(info.width, size);
                    assert_int_equal(info.height, 20 - size);
                    assert_int_equal(info.channels, channels[color]);
                    for (unsigned i = 0; i < 3 * size * (20 - size); i++)
                        assert_int_equal(pixels[i], color == 3 ? palette[i % 3] : 0);
                    free(pixels);
                    free(file);
                }
}

static void test_png_values(void **state)
{
    (void)state;
    image_info info;
    size_t bytes = 0;
    uint8_t *pixels = NULL;
    /* 2-bit grey with one transparent level; 16-bit keeps the high byte; alpha goes onto black */
    const png_spec grey = {.width = 4,
                           .height = 1,
                           .depth = 2,
                           .color = 0,
                           .trans = (const uint8_t *)"\0\2",
                           .trans_bytes = 2};
    uint8_t *file = png_build(&grey, (const uint8_t[]){0, 0x1B}, &bytes);
    assert_ok(image_decode(file, bytes, 1, &info, &pixels));
    assert_int_equal(info.channels, 2);
    assert_memory_equal(pixels, ((uint8_t[]){0, 85, 0, 255}), 4);
    free(pixels);
    free(file);
    const png_spec deep = {.width = 1, .height = 1, .depth = 16, .color = 6};
    file = png_build(&deep, (const uint8_t[]){0, 200, 1, 100, 2, 50, 3, 128, 4}, &bytes);
    assert_ok(image_decode(file, bytes, 3, &info, &pixels));
    assert_memory_equal(pixels, ((uint8_t[]){100, 50, 25}), 3); /* v * 128 / 255, rounded */
    free(pixels);
    assert_ok(image_decode(file, bytes, 1, &info, &pixels));
    assert_int_equal(pixels[0], 62); /* .299 * 100 + .587 * 50 + .114 * 25 */
    free(pixels);
    free(file);
}

static void test_palette_and_filters_are_pillows(void **state)
{
    (void)state;
    image_info a, b;
    uint8_t *got = golden_pixels("palette.png", &a), *want = golden_pixels("palette.png.png", &b);
    assert_int_equal(a.channels, 3);
    assert_int_equal(a.width, b.width);
    assert_memory_equal(got, want, (size_t)(3 * a.width * a.height));
    free(got);
    free(want);
}

/* Each chunk has its CRC, the rest is signature and lengths: no changed byte may go unseen. */
static void test_png_every_byte_counts(void **state)
{
    (void)state;
    size_t bytes = 0;
    image_info info;
    uint8_t *file = golden("palette.png", &bytes);
    assert_ok(image_check(file, bytes, &info));
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            file[i] ^= (uint8_t)(1 << bit);
            assert_status(image_check(file, bytes, &info), DDPM_FORMAT);
            file[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t n = 0; n < bytes; n++)
        assert_status(image_check(file, n, &info), DDPM_FORMAT);
    uint8_t *longer = calloc(1, bytes + 1);
    memcpy(longer, file, bytes);
    assert_status(image_check(longer, bytes + 1, &info), DDPM_FORMAT);
    free(longer);
    free(file);
}

static void refused(const png_spec *s, const uint8_t *rows, const char *why)
{
    size_t bytes = 0;
    image_info info;
    uint8_t *file = png_build(s, rows, &bytes);
    assert_status(image_check(file, bytes, &info), DDPM_FORMAT);
    assert_message(why);
    free(file);
}

static void test_png_lies(void **state)
{
    (void)state;
    const uint8_t colors[9] = {0};
    refused(&(png_spec){.width = 4, .height = 4, .depth = 8, .color = 2, .surplus = 1}, NULL,
            "more than");
    refused(&(png_spec){.width = 4, .height = 4, .depth = 8, .color = 2, .surplus = -1}, NULL,
            "of 52");
    refused(&(png_spec){.width = 4, .height = 4, .depth = 8, .color = 3}, NULL, "palette");
    refused(
        &(png_spec){
            .width = 4, .height = 1, .depth = 2, .color = 3, .palette = colors, .palette_bytes = 9},
        (const uint8_t[]){0, 0x03}, "color 3 in a palette of 3");
    refused(&(png_spec){.width = 1, .height = 1, .depth = 8, .color = 0}, (const uint8_t[]){5, 0},
            "filter 5");
    refused(&(png_spec){.width = 1, .height = 1, .depth = 4, .color = 2}, NULL,
            "color type 2 with 4 bits");
    refused(&(png_spec){.width = 4, .height = 4, .depth = 8, .color = 0, .interlace = 2}, NULL,
            "interlace 2");
    refused(
        &(png_spec){
            .width = 1, .height = 1, .depth = 8, .color = 0, .trans = colors, .trans_bytes = 6},
        NULL, "tRNS");
    /* the header asks for 2^28 pixels, or for a side beyond the limit, or for none */
    uint8_t head[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x40\0\0\0\x40\0\x08\2\0\0\0....";
    image_info info;
    png_put32(head + 29, (uint32_t)crc32(0, head + 12, 17));
    assert_status(image_check(head, 33, &info), DDPM_FORMAT);
    assert_message("16384 x 16384");
    png_put32(head + 16, 16385);
    png_put32(head + 20, 1);
    png_put32(head + 29, (uint32_t)crc32(0, head + 12, 17));
    assert_status(image_check(head, 33, &info), DDPM_FORMAT);
    assert_message("1 x 16385");
}

/* The index beyond the palette must be seen after the filters are undone, in each pass of an
 * interlaced image. */
static void test_palette_index_behind_filters(void **state)
{
    (void)state;
    uint8_t colors[9] = {0}, rows[2 * 5] = {1, 1, 1, 0, 0, 2, 0, 0, 0, 0};
    const png_spec s = {
        .width = 4, .height = 2, .depth = 8, .color = 3, .palette = colors, .palette_bytes = 9};
    size_t bytes = 0;
    image_info info;
    uint8_t *file = png_build(&s, rows, &bytes); /* 1 2 2 2, then the same by "up" */
    assert_ok(image_check(file, bytes, &info));
    free(file);
    rows[8] = 1; /* 1 2 3 2 */
    refused(&s, rows, "color 3 in a palette of 3");
}

/* ---- JPEG ---- */

static void test_jpeg_pixels(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int tolerance;
    } cases[] = {
        {"grey.jpg", 2},        /* two inverse transforms in integers */
        {"full_chroma.jpg", 4}, /* the same, through the colour matrix */
        {"baseline.jpg", 16},   {"progressive.jpg", 16},
        {"restart.jpg", 16}, /* other chroma interpolation */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        image_info a, b;
        char name[64];
        snprintf(name, sizeof name, "%s.png", cases[i].name);
        uint8_t *got = golden_pixels(cases[i].name, &a), *want = golden_pixels(name, &b);
        assert_int_equal(a.width, b.width);
        assert_int_equal(a.height, b.height);
        assert_int_equal(a.channels, i == 0 ? 1 : 3);
        assert_in_range(worst(got, want, (size_t)(3 * a.width * a.height)), 0, cases[i].tolerance);
        free(got);
        free(want);
    }
}

/* A file that was cut anywhere is seen, also where someone closed it with an end mark. */
static void test_jpeg_cut(void **state)
{
    (void)state;
    static const char *const names[] = {"baseline.jpg", "progressive.jpg", "restart.jpg",
                                        "grey.jpg"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        size_t bytes = 0;
        image_info info;
        uint8_t *file = golden(names[k], &bytes), *cut = malloc(bytes + 2);
        assert_ok(image_check(file, bytes, &info));
        for (size_t n = 0; n < bytes; n++) {
            memcpy(cut, file, n);
            assert_status(image_check(cut, n, &info), DDPM_FORMAT);
            if (n >= bytes - 2) continue; /* with the mark it is whole */
            cut[n] = 0xFF;
            cut[n + 1] = 0xD9;
            assert_status(image_check(cut, n + 2, &info), DDPM_FORMAT);
        }
        /* bytes of one piece of image data lost, the rest there */
        const size_t lost = bytes / 2;
        memcpy(cut, file, lost);
        memcpy(cut + lost, file + lost + 40, bytes - lost - 40);
        assert_status(image_check(cut, bytes - 40, &info), DDPM_FORMAT);
        free(cut);
        free(file);
    }
}

static void test_jpeg_refused(void **state)
{
    (void)state;
    size_t bytes = 0;
    image_info info;
    uint8_t *file = golden("cmyk.jpg", &bytes);
    assert_status(image_check(file, bytes, &info), DDPM_FORMAT);
    assert_message("CMYK");
    free(file);
    file = golden("grey.jpg", &bytes);
    for (size_t i = 0; i + 1 < bytes; i++)
        if (file[i] == 0xFF && file[i + 1] == 0xC0) {
            file[i + 1] = 0xC9; /* arithmetic coding */
            assert_status(image_check(file, bytes, &info), DDPM_FORMAT);
            assert_message("SOF9");
            file[i + 1] = 0xC0;
            file[i + 5] = file[i + 6] = 0; /* no height */
            assert_status(image_check(file, bytes, &info), DDPM_FORMAT);
            break;
        }
    free(file);
    /* 65 copies of a scan */
    file = golden("progressive.jpg", &bytes);
    size_t at = 0;
    while (!(file[at] == 0xFF && file[at + 1] == 0xDA))
        at++;
    uint8_t *many = malloc(bytes * 100);
    size_t n = at, scan = 0;
    memcpy(many, file, at);
    while (!(file[at + scan + 2] == 0xFF && file[at + scan + 3] != 0))
        scan++;
    for (int i = 0; i < 65; i++, n += scan + 2)
        memcpy(many + n, file + at, scan + 2);
    memcpy(many + n, file + at + scan + 2, bytes - at - scan - 2);
    assert_status(image_check(many, n + bytes - at - scan - 2, &info), DDPM_FORMAT);
    free(many);
    free(file);
}

/* Whatever bit is turned over: taken with its size, or refused, never more. A JPEG has no checksum,
 * and a turned bit of a coefficient's value is another picture; what upsets the codes is seen,
 * about 38 of 100 here. */
static void test_jpeg_bits(void **state)
{
    (void)state;
    size_t bytes = 0, start = 0;
    image_info info;
    uint8_t *file = golden("baseline.jpg", &bytes), *pixels = NULL;
    while (!(file[start] == 0xFF && file[start + 1] == 0xDA))
        start++;
    start += 14;
    int seen = 0, all = 0;
    for (size_t i = 2; i < bytes; i++) {
        const int bit = (int)(i * 5 % 8);
        file[i] ^= (uint8_t)(1 << bit);
        const ddpm_status s = image_decode(file, bytes, 3, &info, &pixels);
        assert_true(s == DDPM_OK || s == DDPM_FORMAT);
        if (!s) free(pixels);
        if (i >= start) {
            seen += s != DDPM_OK;
            all++;
        }
        file[i] ^= (uint8_t)(1 << bit);
    }
    assert_in_range(seen, all / 4, all);
    free(file);
}

/* ---- the child ---- */

static void test_child_decodes_and_goes_on(void **state)
{
    (void)state;
    image_child *child = NULL;
    size_t bytes = 0;
    image_info info;
    uint8_t *file = golden("source_61x97.png", &bytes), got[24 * 24 * 3];
    uint8_t *want = golden_pixels("crop_24x24.png", &info);
    assert_ok(image_child_start(&child));
    for (int i = 0; i < 3; i++) {
        memset(got, 0, sizeof got);
        assert_ok(image_child_decode(child, file, bytes, 24, 24, 3, PACK_FIT_CROP, got));
        assert_memory_equal(got, want, sizeof got);
        assert_status(image_child_decode(child, file, bytes / 2, 24, 24, 3, PACK_FIT_CROP, got),
                      DDPM_FORMAT);
        assert_message("cut short");
    }
    assert_status(image_child_decode(child, file, 0, 24, 24, 3, PACK_FIT_CROP, got), DDPM_FORMAT);
    free(want);
    free(file);
    image_child_stop(child);
    image_child_stop(NULL);
}

/* A file and an image larger than the room that the child began with. */
static void test_child_grows(void **state)
{
    (void)state;
    const png_spec s = {.width = 1500, .height = 1000, .depth = 8, .color = 2};
    const size_t raw = png_row_bytes(&s);
    uint8_t *rows = malloc(raw), *got = malloc(4500000);
    uint32_t x = 1;
    for (size_t i = 0; i < raw; i++)
        rows[i] = i % 4501 ? (uint8_t)((x = x * 1664525 + 1013904223) >> 24) : 0;
    size_t bytes = 0;
    uint8_t *file = png_build(&s, rows, &bytes);
    image_child *child = NULL;
    assert_true(bytes > 2 << 20);
    assert_ok(image_child_start(&child));
    assert_ok(image_child_decode(child, file, bytes, 1000, 1500, 3, PACK_FIT_REFUSE, got));
    assert_memory_equal(got + 4500, rows + 4502, 4500);
    image_child_stop(child);
    free(file);
    free(rows);
    free(got);
}

/* ---- the sandbox ---- */

enum {
    TRY_OPEN,
    TRY_SOCKET,
    TRY_FORK,
    TRY_EXEC,
    TRY_KILL,
    TRY_WRITE_ELSEWHERE,
    TRY_CODE_MEMORY,
    TRY_NOTHING
};

static void offend(int what)
{
    char *const none[] = {NULL};
    if (what == TRY_OPEN) (void)!fopen("/etc/passwd", "r");
    if (what == TRY_SOCKET) socket(AF_INET, SOCK_STREAM, 0);
    if (what == TRY_FORK) fork();
    if (what == TRY_EXEC) execve("/bin/true", none, none);
    if (what == TRY_KILL) kill(getppid(), 0);
    if (what == TRY_WRITE_ELSEWHERE) (void)!write(2, "x", 1);
    if (what == TRY_CODE_MEMORY) {
        char *page = aligned_alloc(4096, 4096);
        syscall(10 /* mprotect on x86-64 */, page, 4096, 7);
    }
}

static void test_sandbox_holds(void **state)
{
    (void)state;
    for (int what = TRY_OPEN; what <= TRY_NOTHING; what++) {
#if !defined(__x86_64__)
        if (what == TRY_CODE_MEMORY) continue;
#endif
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        const int parent = getpid();
        const pid_t pid = fork();
        if (pid == 0) {
            dup2(ends[1], 0);
            const char word = sandbox_enter(parent, 64 << 20, 10) ? 'c' : 'u';
            if (write(0, &word, 1) == 1 && word == 'c') offend(what);
            _exit(0);
        }
        char word = 0;
        int status = 0;
        assert_int_equal(read(ends[0], &word, 1), 1);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        close(ends[0]);
        close(ends[1]);
        if (word == 'u') skip(); /* a sanitizer, or a kernel without filters */
        assert_int_equal(WIFSIGNALED(status), what != TRY_NOTHING);
        if (what != TRY_NOTHING) assert_int_equal(WTERMSIG(status), SIGSYS);
    }
}

static void test_sandbox_limits_memory(void **state)
{
    (void)state;
    const int parent = getpid();
    int ends[2], status = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 0);
        const bool is_confined = sandbox_enter(parent, 64 << 20, 10);
        _exit(!is_confined ? 2 : malloc(32 << 20) && !malloc(128 << 20) ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(ends[0]);
    close(ends[1]);
    if (WEXITSTATUS(status) == 2) skip();
    assert_int_equal(status, 0);
}

/* ---- other files ---- */

static void test_foreign(void **state)
{
    (void)state;
    static const char *const texts[] = {"GIF89a..........",
                                        "BM..............",
                                        "8BPS............",
                                        "#?RADIANCE\n",
                                        "P6 1 1 255 ...",
                                        "hello",
                                        ""};
    image_info info;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_status(image_check(texts[i], strlen(texts[i]), &info), DDPM_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crop_is_pillows),
        cmocka_unit_test(test_filters_are_pillows),
        cmocka_unit_test(test_pad_and_refuse),
        cmocka_unit_test(test_png_kinds),
        cmocka_unit_test(test_png_values),
        cmocka_unit_test(test_palette_and_filters_are_pillows),
        cmocka_unit_test(test_png_every_byte_counts),
        cmocka_unit_test(test_png_lies),
        cmocka_unit_test(test_palette_index_behind_filters),
        cmocka_unit_test(test_jpeg_pixels),
        cmocka_unit_test(test_jpeg_cut),
        cmocka_unit_test(test_jpeg_refused),
        cmocka_unit_test(test_jpeg_bits),
        cmocka_unit_test(test_child_decodes_and_goes_on),
        cmocka_unit_test(test_child_grows),
        cmocka_unit_test(test_sandbox_holds),
        cmocka_unit_test(test_sandbox_limits_memory),
        cmocka_unit_test(test_foreign),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}

/* test_npz.c - npz archives: ours read back, NumPy's own, bytes that do not depend on time, and
 * damaged ones. */
#include "images.h"

#include "npz.h"

/* np.savez_compressed(f, arr_0=np.arange(24, dtype=np.uint8).reshape(2,3,4,1) % 5,
 * arr_1=np.array([3, -1])), NumPy 2.4 */
static const char NUMPY_FILE[] = "golden_images/numpy.npz";

static char *slurp(const char *path, size_t *bytes)
{
    return support_read_file(path, bytes);
}

static void sample_write(const char *path)
{
    npz_writer *w = NULL;
    uint8_t images[2 * 3 * 4 * 3];
    for (size_t i = 0; i < sizeof images; i++)
        images[i] = (uint8_t)(i * 3);
    const int64_t labels[2] = {7, -2};
    assert_ok(npz_create(path, &w));
    assert_ok(npz_begin(w, "arr_0", "u1", 4, (const int64_t[]){2, 3, 4, 3}));
    for (size_t i = 0; i < sizeof images; i += 8) /* in pieces that divide nothing */
        assert_ok(npz_put(w, images + i, 8));
    assert_ok(npz_begin(w, "arr_1", "i8", 1, (const int64_t[]){2}));
    assert_ok(npz_put(w, labels, sizeof labels));
    assert_ok(npz_finish(w));
}

static void test_written_is_read(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "a.npz");
    sample_write(path);
    npz_file *f = NULL;
    npz_array a;
    assert_ok(npz_open(path, &f));
    assert_ok(npz_find(f, "arr_0", &a));
    assert_string_equal(a.dtype, "u1");
    assert_int_equal(a.rank, 4);
    assert_int_equal(a.shape[2], 4);
    assert_int_equal(a.bytes, 72);
    uint8_t piece[30];
    assert_ok(npz_read(f, "arr_0", 42, piece, 30));
    assert_int_equal(piece[0], 126);
    assert_int_equal(piece[29], (uint8_t)213);
    assert_ok(npz_read(f, "arr_0", 1, piece, 2)); /* and back */
    assert_int_equal(piece[1], 6);
    int64_t labels[2];
    assert_ok(npz_read(f, "arr_1", 0, labels, sizeof labels));
    assert_int_equal(labels[1], -2);
    assert_status(npz_read(f, "arr_0", 70, piece, 3), DDPM_ARG);
    assert_status(npz_find(f, "arr_2", &a), DDPM_NOINPUT);
    npz_close(f);
    npz_close(NULL);
}

static void test_bytes_are_the_contents(void **state)
{
    char a[SUPPORT_PATH], b[SUPPORT_PATH];
    size_t n = 0, m = 0;
    sample_write(support_join(a, *state, "one.npz"));
    sample_write(support_join(b, *state, "two.npz"));
    char *x = slurp(a, &n), *y = slurp(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void test_numpys_own(void **state)
{
    (void)state;
    npz_file *f = NULL;
    npz_array a;
    uint8_t images[24];
    assert_ok(npz_open(NUMPY_FILE, &f));
    assert_ok(npz_find(f, "arr_0", &a));
    assert_int_equal(a.rank, 4);
    assert_int_equal(a.shape[1], 3);
    assert_ok(npz_read(f, "arr_0", 0, images, 24));
    for (int i = 0; i < 24; i++)
        assert_int_equal(images[i], i % 5);
    int64_t labels[2];
    assert_ok(npz_find(f, "arr_1", &a));
    assert_string_equal(a.dtype, "i8");
    assert_ok(npz_read(f, "arr_1", 0, labels, 16));
    assert_int_equal(labels[0], 3);
    assert_int_equal(labels[1], -1);
    npz_close(f);
}

/* Opens a file, reads both arrays whole; the first fault. */
static ddpm_status read_through(const char *path)
{
    npz_file *f = NULL;
    npz_array a;
    ddpm_status s = npz_open(path, &f);
    for (int i = 0; !s && i < 2; i++) {
        const char *name = i ? "arr_1" : "arr_0";
        s = npz_find(f, name, &a);
        uint8_t *p = s ? NULL : malloc(a.bytes + 1);
        if (!s) s = npz_read(f, name, 0, p, a.bytes);
        free(p);
    }
    npz_close(f);
    return s;
}

/* Every byte of the data and of the sizes is covered; dates, versions and attributes may say what
 * they like. */
static void test_damage(void **state)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    support_join(path, *state, "damaged.npz");
    sample_write(path);
    char *file = slurp(path, &n);
    int unseen = 0;
    for (size_t i = 0; i < n; i++) {
        file[i] ^= 0x10;
        support_write_file(path, file, n);
        const ddpm_status s = read_through(path);
        assert_true(s == DDPM_OK || s == DDPM_FORMAT || s == DDPM_NOINPUT);
        unseen += s == DDPM_OK;
        file[i] ^= 0x10;
    }
    assert_in_range(unseen, 0,
                    100); /* of two local and two central headers, 76 bytes each, and the end */
    for (size_t cut = 0; cut < n; cut++) {
        support_write_file(path, file, cut);
        assert_status(read_through(path), DDPM_FORMAT);
    }
    free(file);
}

static uint8_t *find(char *file, size_t n, const char *bytes, size_t count)
{
    uint8_t *p = memmem(file, n, bytes, count);
    assert_non_null(p);
    return p;
}

static void lie(const char *dir, size_t offset, int value, const char *mark, const char *why)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    support_join(path, dir, "lie.npz");
    sample_write(path);
    char *file = slurp(path, &n);
    uint8_t *p = find(file, n, mark, 4);
    p[offset] = (uint8_t)value;
    support_write_file(path, file, n);
    const ddpm_status s = read_through(path);
    if (s != DDPM_FORMAT) fail_msg("%s was taken", why);
    assert_message(why);
    free(file);
}

static void test_lies(void **state)
{
    lie(*state, 8, 1, "PK\1\2", "encrypted");
    lie(*state, 10, 12, "PK\1\2", "compression method 12");
    lie(*state, 46, '/', "PK\1\2", "not a plain name");
    lie(*state, 42, 1, "PK\1\2", "differs from the directory");
    lie(*state, 24, 1, "PK\1\2", "sizes differ");
    lie(*state, 30, 'b', "PK\3\4", "another name");
}

/* The second directory record points at the first entry's data: one byte counted twice. */
static void test_overlap(void **state)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    support_join(path, *state, "overlap.npz");
    npz_writer *w = NULL;
    assert_ok(npz_create(path, &w));
    for (int i = 0; i < 2; i++) {
        assert_ok(npz_begin(w, i ? "arr_1" : "arr_0", "u1", 1, (const int64_t[]){64}));
        assert_ok(npz_put(w, (const uint8_t[64]){0}, 64));
    }
    assert_ok(npz_finish(w));
    char *file = slurp(path, &n);
    uint8_t *first = find(file, n, "PK\1\2", 4);
    /* the first entry claims to reach to the end of the second one */
    const uint32_t wide = 0xEB + 0x80 + 0x40;
    for (int k = 0; k < 4; k++)
        first[20 + k] = first[24 + k] = (uint8_t)(wide >> 8 * k);
    support_write_file(path, file, n);
    assert_status(read_through(path), DDPM_FORMAT);
    assert_message("overlap");
    free(file);
}

static void header_case(const char *dir, const char *header, const char *why)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    support_join(path, dir, "header.npz");
    npz_writer *w = NULL;
    assert_ok(npz_create(path, &w));
    assert_ok(npz_begin(w, "arr_0", "u1", 1, (const int64_t[]){64}));
    assert_ok(npz_put(w, (const uint8_t[64]){0}, 64));
    assert_ok(npz_finish(w));
    char *file = slurp(path, &n);
    uint8_t *p = find(file, n, "\x93NUMPY", 6), *crc_local = find(file, n, "PK\3\4", 4) + 14;
    memset(p + 10, ' ', 117);
    memcpy(p + 10, header, strlen(header));
    const uint32_t crc = (uint32_t)crc32(0, p, 128 + 64);
    uint8_t *crc_central = find(file, n, "PK\1\2", 4) + 16;
    for (int k = 0; k < 4; k++)
        crc_local[k] = crc_central[k] = (uint8_t)(crc >> 8 * k);
    support_write_file(path, file, n);
    npz_file *f = NULL;
    npz_array a;
    assert_ok(npz_open(path, &f));
    if (why) {
        assert_status(npz_find(f, "arr_0", &a), DDPM_FORMAT);
        assert_message(why);
    } else {
        assert_ok(npz_find(f, "arr_0", &a));
    }
    npz_close(f);
    free(file);
}

static void test_headers(void **state)
{
    header_case(*state, "{'shape': (8, 8), 'fortran_order': False, 'descr': '|u1'}", NULL);
    header_case(*state, "{'descr': '<f8', 'fortran_order': False, 'shape': (8,), }", NULL);
    header_case(*state, "{'descr': '|O', 'fortran_order': False, 'shape': (8,), }", "dtype");
    header_case(*state, "{'descr': '>i4', 'fortran_order': False, 'shape': (16,), }",
                "little-endian");
    header_case(*state, "{'descr': '|u1', 'fortran_order': True, 'shape': (64,), }", "Fortran");
    header_case(*state, "{'descr': '|u1', 'fortran_order': False, 'shape': (63,), }", "63 bytes");
    header_case(*state, "{'descr': '|u1', 'fortran_order': False, 'shape': (-64,), }",
                "not a number");
    header_case(*state, "{'descr': '|u1', 'fortran_order': False, 'shape': (64), }", "shape");
    header_case(*state, "{'descr': '|u1', 'shape': (64,), 'shape': (64,), }", "keys");
    header_case(*state, "{'descr': '|u1', 'fortran_order': False, 'shape': (64,), } or 1",
                "damaged");
    header_case(
        *state,
        "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999, 99999999999, 99999999), }",
        "overflow");
    header_case(*state,
                "{'descr': '|u1', 'fortran_order': False, 'shape': (64, 1, 1, 1, 1, 1, 1, 1, 1), }",
                "8 dimensions");
}

static void test_no_archive(void **state)
{
    char path[SUPPORT_PATH];
    npz_file *f = NULL;
    assert_status(npz_open(support_join(path, *state, "absent.npz"), &f), DDPM_NOINPUT);
    assert_status(npz_open(*state, &f), DDPM_FORMAT);
    assert_status(npz_open("/dev/zero", &f), DDPM_FORMAT);
    assert_int_equal(mkfifo(support_join(path, *state, "pipe"), 0600), 0);
    assert_status(npz_open(path, &f), DDPM_FORMAT); /* and does not wait for a writer */
    assert_null(f);
}

static void test_writer_misuse(void **state)
{
    char path[SUPPORT_PATH];
    npz_writer *w = NULL;
    support_join(path, *state, "unfinished.npz");
    assert_ok(npz_create(path, &w));
    assert_status(npz_put(w, "x", 1), DDPM_ARG);
    assert_ok(npz_begin(w, "arr_0", "f4", 1, (const int64_t[]){2}));
    assert_status(npz_begin(w, "arr_1", "f4", 1, (const int64_t[]){2}), DDPM_ARG);
    assert_status(npz_put(w, "123456789", 9), DDPM_ARG);
    assert_ok(npz_put(w, "1234", 4));
    assert_status(npz_finish(w), DDPM_ARG);
    assert_int_not_equal(access(path, F_OK), 0); /* nothing got the name */
    assert_ok(npz_create(path, &w));
    npz_abandon(w);
    npz_abandon(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_written_is_read, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_bytes_are_the_contents, support_setup,
                                        support_teardown),
        cmocka_unit_test(test_numpys_own),
        cmocka_unit_test_setup_teardown(test_damage, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_lies, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_overlap, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_headers, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_no_archive, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(test_writer_misuse, support_setup, support_teardown),
    };
    return cmocka_run_group_tests_name("npz", tests, NULL, NULL);
}

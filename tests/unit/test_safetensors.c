/* The container: what we write reads back, Python's files are accepted, and nothing damaged is. */
#include "support.h"

#include "safetensors.h"

#include <fcntl.h>
#include <math.h>

static char folder[SUPPORT_PATH], file[SUPPORT_PATH];

static int setup(void **state)
{
    (void)state;
    support_make_folder(folder);
    support_join(file, folder, "a.safetensors");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    support_remove_tree(folder);
    return 0;
}

/* Writes header and data as a file, whatever they hold. */
static void write_raw(const char *header, const void *data, size_t data_bytes)
{
    const uint64_t length = strlen(header);
    char *all = malloc(8 + length + data_bytes);
    assert_non_null(all);
    memcpy(all, &length, 8);
    memcpy(all + 8, header, length);
    if (data_bytes) memcpy(all + 8 + length, data, data_bytes);
    support_write_file(file, all, 8 + length + data_bytes);
    free(all);
}

/* Two tensors, an empty one, a scalar, metadata with characters that need escapes. */
static void write_ours(const char *path)
{
    static const float w[6] = {1, -2, 3.5f, 0, 1e-30f, INFINITY};
    static const int64_t step = 12345678901234;
    st_writer *out;
    assert_ok(st_writer_create(&out));
    assert_ok(st_add(out, "w", ST_F32, 2, (int64_t[]){2, 3}));
    assert_ok(st_add(out, "empty", ST_U8, 3, (int64_t[]){4, 0, 4}));
    assert_ok(st_add(out, "Step", ST_I64, 0, NULL));
    assert_ok(st_add_metadata(out, "config", "a: \"b\\c\"\n\tgr\xC3\xBC\xC3\x9F"));
    assert_ok(st_begin(out, path));
    assert_int_equal(st_writer_count(out), 3);
    assert_string_equal(st_writer_at(out, 0)->name, "Step");
    assert_ok(st_put(out, &step, sizeof step));
    assert_ok(st_put(out, w, 5));
    assert_ok(st_put(out, (const char *)w + 5, sizeof w - 5));
    assert_ok(st_finish(out));
}

static void ours_reads_back(void **state)
{
    (void)state;
    write_ours(file);
    st_file *f;
    assert_ok(st_open(file, &f));
    assert_int_equal(st_count(f), 3);
    assert_string_equal(st_at(f, 0)->name, "Step");
    assert_string_equal(st_at(f, 1)->name, "empty");
    assert_null(st_find(f, "W"));
    assert_null(st_metadata(f, "none"));
    assert_string_equal(st_metadata(f, "config"), "a: \"b\\c\"\n\tgr\xC3\xBC\xC3\x9F");
    assert_true(st_has_hashes(f));
    /* The published XXH3-128 of no bytes, as Python's xxhash prints it. */
    assert_string_equal(st_metadata(f, "ddpm.xxh3.empty"), "99aa06d3014798d86001c324468d497f");
    const st_tensor *w = st_find(f, "w");
    assert_non_null(w);
    assert_int_equal(w->rank, 2);
    assert_int_equal(w->shape[1], 3);
    float v[6];
    assert_ok(st_read_f32(f, w, v));
    assert_true(v[1] == -2 && v[2] == 3.5f && isinf(v[5]));
    assert_ok(st_read(f, w, 8, v, 4));
    assert_true(v[0] == 3.5f);
    assert_status(st_read(f, w, 20, v, 8), DDPM_BUG);
    int64_t step = 0;
    assert_ok(st_read_i64(f, st_find(f, "Step"), &step));
    assert_true(step == 12345678901234);
    assert_ok(st_verify(f));
    st_close(f);
    st_close(NULL);
}

static void equal_contents_give_equal_bytes(void **state)
{
    (void)state;
    char second[SUPPORT_PATH];
    size_t n, m;
    write_ours(file);
    write_ours(support_join(second, folder, "b.safetensors"));
    char *a = support_read_file(file, &n), *b = support_read_file(second, &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    uint64_t length;
    memcpy(&length, a, 8);
    assert_int_equal(length % 8, 0);
    free(a);
    free(b);
}

static void every_flipped_byte_is_found(void **state)
{
    (void)state;
    size_t n;
    write_ours(file);
    char *good = support_read_file(file, &n);
    const int fd = open(file, O_WRONLY);
    for (size_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit++) {
            const char bad = (char)(good[i] ^ 1 << bit);
            assert_int_equal(pwrite(fd, &bad, 1, (off_t)i), 1);
            st_file *f = NULL;
            ddpm_status s = st_open(file, &f);
            if (!s) s = st_verify(f);
            st_close(f);
            if (s != DDPM_FORMAT)
                fail_msg("bit %d of byte %zu flipped: %s", bit, i, ddpm_status_name(s));
        }
        assert_int_equal(pwrite(fd, &good[i], 1, (off_t)i), 1);
    }
    close(fd);
    free(good);
}

static void every_truncated_length_is_refused(void **state)
{
    (void)state;
    size_t n;
    write_ours(file);
    char *good = support_read_file(file, &n);
    for (size_t i = 0; i < n; i++) {
        support_write_file(file, good, i);
        st_file *f = NULL;
        if (st_open(file, &f) != DDPM_FORMAT) fail_msg("accepted when cut to %zu bytes", i);
        assert_null(f);
    }
    char *longer = calloc(1, n + 1);
    memcpy(longer, good, n);
    support_write_file(file, longer, n + 1);
    st_file *f = NULL;
    assert_status(st_open(file, &f), DDPM_FORMAT);
    assert_message("1 bytes follow the last tensor");
    free(longer);
    free(good);
}

#define T(fields) "{\"a\":{" fields "}}"
#define D         "\"dtype\":\"U8\""
#define S         "\"shape\":[4]"
#define O         "\"data_offsets\":[0,4]"

/* Each with 4 bytes of data behind it. */
static void bad_headers_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header, *message;
    } rows[] = {
        {"", "'{'"},
        {" {}", "'{'"},
        {"[]", "'{'"},
        {"{", "string is expected"},
        {"{}", "4 bytes follow"},
        {"{\"a\"}", "':'"},
        {"{\"a\":1}", "'{'"},
        {"{\"a\":null}", "'{'"},
        {"{\"a\":[" D "]}", "'{'"},
        {"{\"a\":{}}", "string is expected"},
        {T(D "," S), "without dtype"},
        {T(D "," O), "without dtype"},
        {T(S "," O), "without dtype"},
        {T(D "," S "," O ",\"x\":1"), "field other than"},
        {T(D "," D "," S "," O), "stands twice"},
        {T("\"dtype\":\"F8\"," S "," O), "unknown dtype 'F8'"},
        {T("\"dtype\":\"u8\"," S "," O), "unknown dtype"},
        {T("\"dtype\":3," S "," O), "string is expected"},
        {T(D ",\"shape\":4," O), "list of integers"},
        {T(D ",\"shape\":[4,]," O), "non-negative integer"},
        {T(D ",\"shape\":[-4]," O), "non-negative integer"},
        {T(D ",\"shape\":[4.0]," O), "not a fraction"},
        {T(D ",\"shape\":[4e0]," O), "not a fraction"},
        {T(D ",\"shape\":[1e400]," O), "not a fraction"},
        {T(D ",\"shape\":[04]," O), "leading zero"},
        {T(D ",\"shape\":[+4]," O), "non-negative integer"},
        {T(D ",\"shape\":[\"4\"]," O), "non-negative integer"},
        {T(D ",\"shape\":[[4]]," O), "non-negative integer"},
        {T(D ",\"shape\":[1,1,1,1,1,1,1,1,4]," O), "too many numbers"},
        {T(D ",\"shape\":[5]," O), "disagree with the shape"},
        {T(D ",\"shape\":[4294967296,4294967296]," O), "overflows"},
        {T(D ",\"shape\":[9223372036854775808]," O), "beyond 2^63"},
        {T(D ",\"shape\":[99999999999999999999999]," O), "beyond 2^63"},
        {T("\"dtype\":\"F32\"," S "," O), "disagree with the shape"},
        {T(D "," S ",\"data_offsets\":[4,0]"), "outside the file"},
        {T(D "," S ",\"data_offsets\":[0,5]"), "outside the file"},
        {T(D "," S ",\"data_offsets\":[0]"), "two numbers"},
        {T(D "," S ",\"data_offsets\":[0,4,4]"), "too many numbers"},
        {T(D ",\"shape\":[3],\"data_offsets\":[1,4]"), "a hole"},
        {T(D ",\"shape\":[3],\"data_offsets\":[0,3]"), "1 bytes follow"},
        {"{\"a\":{" D "," S "," O "},\"b\":{" D "," S "," O "}}", "an overlap"},
        {"{\"a\":{" D "," S "," O "},\"a\":{" D ",\"shape\":[0],\"data_offsets\":[4,4]}}",
         "'a' stands twice"},
        {"{\"a\":{" D "," S "," O "},\"\\u0061\":{" D ",\"shape\":[0],\"data_offsets\":[4,4]}}",
         "'a' stands twice"},
        {"{\"a\":{" D ",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{" D
         ",\"shape\":[1],\"data_offsets\":[3,4]}}",
         "a hole"},
        {"{\"\":{" D "," S "," O "}}", "without a name"},
        {"{\"a\\u0000\":{" D "," S "," O "}}", "NUL"},
        {"{\"a\\ud800\":{" D "," S "," O "}}", "lone high"},
        {"{\"a\\ud800\\u0041\":{" D "," S "," O "}}", "lone high"},
        {"{\"a\\udc00\":{" D "," S "," O "}}", "lone low"},
        {"{\"a\\u12\":{" D "," S "," O "}}", "four hex digits"},
        {"{\"a\\q\":{" D "," S "," O "}}", "escape"},
        {"{\"a\n\":{" D "," S "," O "}}", "control character"},
        {"{\"a\xff\":{" D "," S "," O "}}", "UTF-8"},
        {"{\"a\xc0\x80\":{" D "," S "," O "}}", "UTF-8"},
        {"{\"a\xed\xa0\x80\":{" D "," S "," O "}}", "UTF-8"},
        {"{\"a", "does not end"},
        {"{\"a\\", "does not end"},
        {T(D "," S "," O) ",", "only spaces"},
        {T(D "," S "," O) "\n", "only spaces"},
        {"{\"a\":{" D "," S "," O "},}", "string is expected"},
        {"{\"a\":{" D "," S "," O ",}}", "string is expected"},
        {"{\"__metadata__\":{\"k\":1},\"a\":{" D "," S "," O "}}", "string is expected"},
        {"{\"__metadata__\":{\"k\":{\"l\":\"m\"}},\"a\":{" D "," S "," O "}}",
         "string is expected"},
        {"{\"__metadata__\":[],\"a\":{" D "," S "," O "}}", "object of strings"},
        {"{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"},\"a\":{" D "," S "," O "}}",
         "'k' stands twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{},\"a\":{" D "," S "," O "}}",
         "__metadata__ stands twice"},
        {"{\"__metadata__\":{\"ddpm.header\":\"00\"},\"a\":{" D "," S "," O "}}", "32 hex digits"},
        {"{\"__metadata__\":{\"ddpm.xxh3.a\":\"00\"},\"a\":{" D "," S "," O "}}",
         "'ddpm.header' is missing"},
        {"{\"__metadata__\":{\"ddpm.header\":\"00000000000000000000000000000000\"},\"a\":{" D "," S
         "," O "}}",
         "0 hashes for 1 tensors"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_file *f = NULL;
        write_raw(rows[i].header, "wxyz", 4);
        const ddpm_status s = st_open(file, &f);
        if (s != DDPM_FORMAT) fail_msg("row %zu: %s: %s", i, rows[i].header, ddpm_status_name(s));
        assert_null(f);
        assert_message(rows[i].message);
        assert_message("a.safetensors");
    }
}

static void hostile_lengths_cost_nothing(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {UINT64_MAX, INT64_MAX, (16 << 20) + 1, 1000, 3};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char all[10] = {0};
        memcpy(all, &lengths[i], 8);
        support_write_file(file, all, sizeof all);
        st_file *f;
        assert_status(st_open(file, &f), DDPM_FORMAT);
    }
}

/* A header of 16 MiB, whatever it holds, is read in well under a second. */
static void time_is_linear(void **state)
{
    (void)state;
    static const char *const units[] = {
        "[", "{\"a\":", "\"\\u0041", "\\", "{\"a\":{\"dtype\":\"U8\",", " "};
    const size_t size = 16 << 20;
    char *header = malloc(size + 1);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        const size_t n = strlen(units[u]);
        for (size_t i = 0; i < size; i++)
            header[i] = units[u][i % n];
        header[0] = '{';
        header[size] = '\0';
        write_raw(header, NULL, 0);
        st_file *f;
        assert_status(st_open(file, &f), DDPM_FORMAT);
    }
    free(header);
}

static void too_many_tensors(void **state)
{
    (void)state;
    char *header = malloc(16 << 20);
    size_t used = 0;
    const char *tail = ":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    for (int i = 0; i <= 100000; i++)
        used += (size_t)sprintf(header + used, "%c\"t%d\"%s", i ? ',' : '{', i, tail);
    strcpy(header + used, "}");
    write_raw(header, NULL, 0);
    st_file *f;
    assert_status(st_open(file, &f), DDPM_FORMAT);
    assert_message("more than 100000 tensors");
    free(header);
}

/* As Python's safetensors writes: its own order of keys, tensors not by name, no hashes. */
static void foreign_files_are_accepted(void **state)
{
    (void)state;
    write_raw("{\"__metadata__\":{\"format\":\"np\"},"
              "\"z\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
              "\"a/\\u00fc\\ud83d\\ude00\" : { \"shape\" : [ ] , "
              "\"dtype\":\"I32\",\t\"data_offsets\":[4,8]} ,\n"
              "\"none\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[4,4]}}     ",
              "\x00\x3c\x00\xc0\xfe\xff\xff\xff", 8);
    st_file *f;
    assert_ok(st_open(file, &f));
    assert_int_equal(st_count(f), 3);
    assert_false(st_has_hashes(f));
    assert_ok(st_verify(f));
    float v[2];
    assert_ok(st_read_f32(f, st_find(f, "z"), v));
    assert_true(v[0] == 1 && v[1] == -2);
    int64_t i;
    const st_tensor *t = st_find(f, "a/\xC3\xBC\xF0\x9F\x98\x80");
    assert_non_null(t);
    assert_ok(st_read_i64(f, t, &i));
    assert_int_equal(i, -2);
    double d;
    assert_ok(st_read_f64(f, t, &d));
    assert_true(d == -2);
    assert_status(st_read_f32(f, t, v), DDPM_FORMAT); /* I32 does not fit into F32 */
    assert_message("without loss");
    assert_string_equal(st_metadata(f, "format"), "np");
    st_close(f);
}

/* Every half against the rule it stands for. */
static void halves_are_widened_exactly(void **state)
{
    (void)state;
    uint16_t *half = malloc(2 * 65536);
    float *wide = malloc(sizeof *wide * 65536);
    for (int i = 0; i < 65536; i++)
        half[i] = (uint16_t)i;
    write_raw("{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],\"data_offsets\":[0,131072]}}", half,
              2 * 65536);
    st_file *f;
    assert_ok(st_open(file, &f));
    assert_ok(st_read_f32(f, st_find(f, "h"), wide));
    st_close(f);
    for (int i = 0; i < 65536; i++) {
        const int e = i >> 10 & 31, m = i & 1023;
        const double sign = i & 0x8000 ? -1 : 1;
        const double want = e == 0   ? ldexp(m, -24)
                            : e < 31 ? ldexp(1024 + m, e - 25)
                            : m      ? NAN
                                     : INFINITY;
        if (isnan(want) ? !isnan(wide[i]) : wide[i] != sign * want)
            fail_msg("half %04x: %g", i, (double)wide[i]);
    }
    write_raw("{\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]}}",
              "\x80\x3f\x20\xc0\x80\x7f", 6);
    assert_ok(st_open(file, &f));
    assert_ok(st_read_f32(f, st_find(f, "b"), wide));
    assert_true(wide[0] == 1 && wide[1] == -2.5f && isinf(wide[2]));
    st_close(f);
    free(half);
    free(wide);
}

static void other_files_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *message;
    } rows[] = {{"PK\3\4\0\0\0\0\0\0", 10, "zip archive"},
                {"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", 10, "pickle"},
                {"\x80\x02.", 3, "pickle"},
                {"\x89HDF\r\n\x1a\n1234", 12, "HDF5"},
                {"\x93NUMPY\1\0v\0", 10, "numpy"},
                {"abc", 3, "too few"},
                {"", 0, "too few"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_file *f;
        support_write_file(file, rows[i].bytes, rows[i].n);
        assert_status(st_open(file, &f), DDPM_FORMAT);
        assert_message(rows[i].message);
        if (i < 5) assert_message("convert it");
    }
    st_file *f;
    char path[SUPPORT_PATH];
    assert_status(st_open(support_join(path, folder, "missing"), &f), DDPM_NOINPUT);
    assert_status(st_open(folder, &f), DDPM_FORMAT); /* not a regular file */
    assert_int_equal(mkfifo(support_join(path, folder, "fifo"), 0600), 0);
    assert_status(st_open(path, &f), DDPM_FORMAT); /* and does not hang */
    assert_status(st_open("/dev/zero", &f), DDPM_FORMAT);
}

static void a_file_cut_while_open_is_an_error(void **state)
{
    (void)state;
    write_ours(file);
    st_file *f;
    float v[6];
    assert_ok(st_open(file, &f));
    assert_int_equal(truncate(file, 100), 0);
    assert_status(st_read_f32(f, st_find(f, "w"), v), DDPM_FORMAT);
    assert_status(st_verify(f), DDPM_FORMAT);
    st_close(f);
}

static void the_writer_refuses_misuse(void **state)
{
    (void)state;
    char long_name[600];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    const float x[2] = {1, 2};
    st_writer *w;
    assert_ok(st_writer_create(&w));
    assert_status(st_add(w, "", ST_F32, 0, NULL), DDPM_ARG);
    assert_status(st_add(w, long_name, ST_F32, 0, NULL), DDPM_ARG);
    assert_status(st_add(w, "\xff", ST_F32, 0, NULL), DDPM_ARG);
    assert_status(st_add(w, "__metadata__", ST_F32, 0, NULL), DDPM_ARG);
    assert_status(st_add(w, "x", ST_F32, 2, (int64_t[]){INT64_MAX, 4}), DDPM_ARG);
    assert_status(st_add(w, "x", ST_F32, 1, (int64_t[]){-1}), DDPM_ARG);
    assert_status(st_add_metadata(w, "ddpm.header", "x"), DDPM_ARG);
    assert_status(st_add_metadata(w, "k", "\xff"), DDPM_ARG);
    assert_ok(st_add(w, "x", ST_F32, 1, (int64_t[]){2}));
    assert_status(st_put(w, x, 4), DDPM_BUG);
    assert_ok(st_begin(w, file));
    assert_status(st_add(w, "y", ST_F32, 0, NULL), DDPM_BUG);
    assert_status(st_put(w, x, 9), DDPM_BUG);
    assert_ok(st_put(w, x, 4));
    support_write_file(file, "old", 3);
    assert_status(st_finish(w), DDPM_BUG); /* 4 of 8 bytes */
    size_t n;
    char *old = support_read_file(file, &n);
    assert_string_equal(old, "old");
    free(old);

    assert_ok(st_writer_create(&w));
    assert_ok(st_add(w, "x", ST_F32, 0, NULL));
    assert_ok(st_add(w, "x", ST_U8, 0, NULL));
    assert_status(st_begin(w, file), DDPM_ARG);
    st_writer_abandon(w);
    st_writer_abandon(NULL);
}

/* The disk gives back other bytes than were written: the new file is thrown away, the old one
 * stays. */
static void what_does_not_read_back_is_not_committed(void **state)
{
    (void)state;
    static const int64_t size = 1000;
    char data[1000] = {0}, temp[SUPPORT_PATH] = "";
    for (int place = 0; place < 3;
         place++) { /* the header's length, a byte of data, the last byte */
        write_ours(file);
        st_writer *w;
        assert_ok(st_writer_create(&w));
        assert_ok(st_add(w, "x", ST_U8, 1, &size));
        assert_ok(st_begin(w, file));
        assert_ok(st_put(w, data, sizeof data));
        DIR *d = opendir(folder);
        for (const struct dirent *e; (e = readdir(d));)
            if (strstr(e->d_name, ".tmp")) support_join(temp, folder, e->d_name);
        closedir(d);
        const int fd = open(temp, O_RDWR);
        assert_true(fd >= 0);
        const off_t end = lseek(fd, 0, SEEK_END);
        assert_int_equal(pwrite(fd, "\x55", 1,
                                place == 0   ? 0
                                : place == 1 ? end - 500
                                             : end - 1),
                         1);
        close(fd);
        assert_status(st_finish(w), DDPM_IO);
        assert_message("does not read back");
        assert_int_not_equal(access(temp, F_OK), 0);
        st_file *f;
        assert_ok(st_open(file, &f));
        assert_non_null(st_find(f, "w"));
        assert_ok(st_verify(f));
        st_close(f);
    }
}

static void a_file_without_tensors(void **state)
{
    (void)state;
    st_writer *w;
    assert_ok(st_writer_create(&w));
    assert_ok(st_add_metadata(w, "k", "v"));
    assert_ok(st_begin(w, file));
    assert_ok(st_finish(w));
    st_file *f;
    assert_ok(st_open(file, &f));
    assert_int_equal(st_count(f), 0);
    assert_string_equal(st_metadata(f, "k"), "v");
    assert_ok(st_verify(f));
    st_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ours_reads_back),
        cmocka_unit_test(equal_contents_give_equal_bytes),
        cmocka_unit_test(every_flipped_byte_is_found),
        cmocka_unit_test(every_truncated_length_is_refused),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(hostile_lengths_cost_nothing),
        cmocka_unit_test(time_is_linear),
        cmocka_unit_test(too_many_tensors),
        cmocka_unit_test(foreign_files_are_accepted),
        cmocka_unit_test(halves_are_widened_exactly),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(a_file_cut_while_open_is_an_error),
        cmocka_unit_test(the_writer_refuses_misuse),
        cmocka_unit_test(what_does_not_read_back_is_not_committed),
        cmocka_unit_test(a_file_without_tensors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

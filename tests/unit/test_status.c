/* Messages: they say what was said, on the thread that said it, and cannot harm a terminal. */
#include "support.h"

#include "fail.h"
#include "text.h"

#include <errno.h>
#include <pthread.h>

static ddpm_status fail_with(const char *text)
{
    return FAIL(FORMAT, "%s", text);
}

static void message_is_kept(void **state)
{
    (void)state;
    assert_int_equal(FAIL(SHAPE, "conv2d: input has %d channels, weight expects %d", 3, 4),
                     DDPM_SHAPE);
    assert_string_equal(ddpm_last_error(), "conv2d: input has 3 channels, weight expects 4");
    assert_non_null(strstr(status_where(), "test_status.c:"));
}

static void context_goes_before(void **state)
{
    (void)state;
    fail_with("tensor 'a' is damaged");
    assert_int_equal(status_context(DDPM_FORMAT, "file %s", "x.safetensors"), DDPM_FORMAT);
    assert_string_equal(ddpm_last_error(), "file x.safetensors: tensor 'a' is damaged");
    /* The old message as an argument of the new one. */
    (void)FAIL(IO, "again: %s", ddpm_last_error());
    assert_string_equal(ddpm_last_error(), "again: file x.safetensors: tensor 'a' is damaged");
}

static void hostile_text_is_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"a\nb", "a\\x0ab"},
        {"\033[2J", "\\x1b[2J"},
        {"\x7f", "\\x7f"},
        {"gr\xC3\xBC\xC3\x9F", "gr\xC3\xBC\xC3\x9F"}, /* good UTF-8 stays */
        {"\xC3", "\\xc3"},                            /* cut short */
        {"\xC0\xAF", "\\xc0\\xaf"},                   /* overlong */
        {"\xED\xA0\x80", "\\xed\\xa0\\x80"},          /* surrogate */
        {"\xC2\x9B"
         "31m",
         "\\xc2\\x9b31m"}, /* C1: control sequence */
        {"\xE2\x80\xAE"
         "cba",
         "\\xe2\\x80\\xae"
         "cba"}, /* right-to-left override */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fail_with(rows[i].in);
        assert_string_equal(ddpm_last_error(), rows[i].out);
    }
}

static void long_message_is_cut_at_a_character(void **state)
{
    (void)state;
    char text[4001];
    for (int i = 0; i < 4000; i += 2)
        memcpy(text + i, "\xC3\xA9", 2);
    text[4000] = '\0';
    fail_with(text);
    const size_t n = strlen(ddpm_last_error());
    assert_in_range(n, 1000, 1023);
    assert_true(utf8_valid(ddpm_last_error(), n));
    assert_string_equal(ddpm_last_error() + n - 3, "...");
    /* A context before a full message still shows whole. */
    status_context(DDPM_FORMAT, "the place");
    assert_memory_equal(ddpm_last_error(), "the place: ", 11);
}

static void *fail_elsewhere(void *copy)
{
    assert_string_equal(ddpm_last_error(), "");
    fail_with("from the worker");
    status_copy_message(copy, 64);
    return NULL;
}

static void threads_have_their_own(void **state)
{
    (void)state;
    char copy[64] = "";
    pthread_t worker;
    fail_with("from main");
    assert_int_equal(pthread_create(&worker, NULL, fail_elsewhere, copy), 0);
    pthread_join(worker, NULL);
    assert_string_equal(ddpm_last_error(), "from main");
    status_set_message(copy);
    assert_string_equal(ddpm_last_error(), "from the worker");
}

static void codes_are_those_of_the_program(void **state)
{
    (void)state;
    assert_string_equal(ddpm_status_name(DDPM_FORMAT), "FORMAT");
    assert_string_equal(ddpm_status_sentence(DDPM_FORMAT), "bad data or model file");
    assert_int_equal(ddpm_status_exit_code(DDPM_OK), 0);
    assert_int_equal(ddpm_status_exit_code(DDPM_CONFIG), 78);
    assert_int_equal(ddpm_status_exit_code(DDPM_NUMERIC), 80);
    assert_string_equal(ddpm_status_name((ddpm_status)999), "?");
    assert_int_equal(ddpm_status_exit_code((ddpm_status)-1), 70);
}

static void errno_is_mapped(void **state)
{
    (void)state;
    static const struct {
        int err;
        ddpm_status status;
    } rows[] = {{ENOENT, DDPM_NOINPUT},   {EACCES, DDPM_PERM},
                {EPERM, DDPM_PERM},       {ENOMEM, DDPM_NOMEM},
                {EMFILE, DDPM_NOMEM},     {EROFS, DDPM_CANTCREAT},
                {EISDIR, DDPM_CANTCREAT}, {ENOSPC, DDPM_IO},
                {EDQUOT, DDPM_IO},        {EIO, DDPM_IO}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        errno = rows[i].err;
        assert_int_equal(FAIL_ERRNO("open: %m"), rows[i].status);
        assert_message(strerror(rows[i].err));
    }
}

static void numbers_read_back(void **state)
{
    (void)state;
    static const double values[] = {0,         1,       -1,    0.1,    1e-4,         2e-4,
                                    0.9999999, 1.0 / 3, 1e300, 5e-324, 123456789.125};
    char text[NUMBER_SIZE];
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        double back = 7;
        assert_true(number_read(number_print(values[i], text), &back));
        assert_true(back == values[i]);
    }
    assert_string_equal(number_print(0.1, text), "0.1");
    static const char *const bad[] = {"",    "-",   ".",  "e5", "1e",  "1e+", "0x10",
                                      "nan", "inf", "1 ", " 1", "1,5", "1_0"};
    double v;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (number_read(bad[i], &v)) fail_msg("'%s' was read as a number", bad[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(message_is_kept),
        cmocka_unit_test(context_goes_before),
        cmocka_unit_test(hostile_text_is_escaped),
        cmocka_unit_test(long_message_is_cut_at_a_character),
        cmocka_unit_test(threads_have_their_own),
        cmocka_unit_test(codes_are_those_of_the_program),
        cmocka_unit_test(errno_is_mapped),
        cmocka_unit_test(numbers_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What a person sees: bounded in width and frequency, plain where there is no terminal. */
#include "support.h"

#include "progress.h"

#include <time.h>

typedef struct {
    int n_transient, n_plain;
    char last[1024];
} seen;

static void see(void *user, const char *line, bool transient)
{
    seen *s = user;
    assert_null(strchr(line, '\n'));
    transient ? s->n_transient++ : s->n_plain++;
    snprintf(s->last, sizeof s->last, "%s", line);
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void times_and_sizes(void **state)
{
    (void)state;
    static const struct {
        double s;
        const char *text;
    } times[] = {
        {0, "0.0 s"},         {1.24, "1.2 s"},     {9.96, "10 s"},       {59.4, "59 s"},
        {59.6, "1 min 00 s"}, {200, "3 min 20 s"}, {3600, "1 h 00 min"}, {7500, "2 h 05 min"},
        {172800, "2 d 00 h"}, {-1, "?"},           {1e30, "?"}};
    static const struct {
        uint64_t n;
        const char *text;
    } sizes[] = {
        {0, "0 B"},           {1023, "1023 B"},        {1024, "1.0 KiB"},       {1536, "1.5 KiB"},
        {1048575, "1.0 MiB"}, {1ull << 30, "1.0 GiB"}, {UINT64_MAX, "16.0 EiB"}};
    char text[32];
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        assert_string_equal(format_seconds(times[i].s, text, sizeof text), times[i].text);
    assert_string_equal(format_seconds(__builtin_nan(""), text, sizeof text), "?");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        assert_string_equal(format_bytes(sizes[i].n, text, sizeof text), sizes[i].text);
}

static void a_terminal_is_redrawn_rarely(void **state)
{
    (void)state;
    seen s = {0};
    const log_sink sink = {.line = see, .user = &s, .is_terminal = true, .width = 60};
    progress p;
    progress_begin(&p, &sink, "train", "step", 1000, 0);
    for (int i = 1; i <= 200; i++) {
        progress_update(&p, i, "loss 0.031");
        sleep_ms(1);
    }
    assert_in_range(s.n_transient, 1, 30); /* 0.2 s of work; slow machines stretch it */
    assert_int_equal(s.n_plain, 0);
    assert_non_null(strstr(s.last, "train "));
    assert_non_null(strstr(s.last, "/1000 step"));
    assert_in_range(strlen(s.last), 10, 59);
    progress_update(&p, 1000, NULL);
    progress_end(&p, "loss 0.031");
    assert_int_equal(s.n_plain, 1);
    assert_non_null(strstr(s.last, "1000/1000 step"));
    assert_non_null(strstr(s.last, ", took "));
    assert_non_null(strstr(s.last, ", loss 0.031"));
}

static void elsewhere_lines_are_plain_and_few(void **state)
{
    (void)state;
    seen s = {0};
    const log_sink sink = {.line = see, .user = &s};
    progress p;
    progress_begin(&p, &sink, "pack", "img", 10, 0);
    for (int i = 1; i <= 10; i++)
        progress_update(&p, i, NULL);
    assert_int_equal(s.n_plain + s.n_transient, 0); /* seconds have not passed */
    p.shown -= 60;                                  /* as if the last line were a minute old */
    progress_update(&p, 10, NULL);
    assert_int_equal(s.n_plain, 1);
    assert_null(strchr(s.last, '\033'));
    assert_null(strchr(s.last, '#'));
    progress_end(&p, NULL);
    assert_int_equal(s.n_plain, 2);
}

static void a_resumed_run_has_its_own_rate(void **state)
{
    (void)state;
    seen s = {0};
    const log_sink sink = {.line = see, .user = &s, .is_terminal = true, .width = 200};
    progress p;
    progress_begin(&p, &sink, "train", "step", 1000, 900);
    p.started -= 10; /* as if 10 s had gone */
    p.shown -= 10;
    progress_update(&p, 950, NULL);
    assert_non_null(strstr(s.last, "950/1000 step, 5.00 step/s, 10 s left"));
}

static void narrow_and_colored_lines_stay_whole(void **state)
{
    (void)state;
    char note[900];
    for (int i = 0; i < 898; i += 2)
        memcpy(note + i, "\xC3\xA9", 2);
    note[898] = '\0';
    for (int width = 1; width < 120; width++) {
        seen s = {0};
        const log_sink sink = {
            .line = see, .user = &s, .is_terminal = true, .has_color = true, .width = width};
        progress p;
        progress_begin(&p, &sink, "train", "step", 10, 0);
        p.shown -= 1;
        progress_update(&p, 5, note);
        int columns = 0;
        bool is_colored = false;
        for (const char *c = s.last; *c; c++) {
            if (*c == '\033') {
                is_colored = strncmp(c, "\033[0m", 4) != 0;
                c = strchr(c, 'm');
                assert_non_null(c);
            } else {
                columns += ((unsigned char)*c & 0xC0) != 0x80;
            }
        }
        assert_false(is_colored);
        assert_in_range(columns, 0, width - 1);
    }
}

static void silence_is_allowed(void **state)
{
    (void)state;
    progress p;
    progress_begin(&p, NULL, "train", "step", 10, 0);
    p.shown -= 60;
    progress_update(&p, 3, "x");
    progress_end(&p, NULL);
    assert_int_equal(p.done, 3);
    log_line(NULL, "nobody hears %d", 1);
    seen s = {0};
    log_line(&(log_sink){.line = see, .user = &s}, "step %d", 7);
    assert_string_equal(s.last, "step 7");
    progress_begin(&p, &(log_sink){.line = see, .user = &s}, "x", "img", 0, 0); /* nothing to do */
    progress_end(&p, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_and_sizes),
        cmocka_unit_test(a_terminal_is_redrawn_rarely),
        cmocka_unit_test(elsewhere_lines_are_plain_and_few),
        cmocka_unit_test(a_resumed_run_has_its_own_rate),
        cmocka_unit_test(narrow_and_colored_lines_stay_whole),
        cmocka_unit_test(silence_is_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* A run's figures: every line parses, no step stands twice after a resume, TensorBoard's records
 * are whole. */
#include "support.h"

#include "metrics.h"

#include <jansson.h>

#include <math.h>
#include <signal.h>
#include <sys/resource.h>

static char path[SUPPORT_PATH];

/* The lines of metrics.jsonl as a JSON array; fails when one does not parse. */
static json_t *lines_of(const char *dir)
{
    char *text = support_read_file(support_join(path, dir, "metrics.jsonl"), NULL);
    json_t *all = json_array();
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *one = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        if (!one) fail_msg("not JSON: %s", line);
        json_array_append_new(all, one);
    }
    free(text);
    return all;
}

static double value_of(const json_t *lines, size_t i, const char *name)
{
    return json_number_value(json_object_get(json_array_get(lines, i), name));
}

static void write_steps(const char *dir, int64_t resume_step, int64_t last)
{
    metrics *m;
    assert_ok(metrics_open(dir, resume_step, &m));
    for (int64_t step = resume_step + 1; step <= last; step++) {
        metrics_put(m, "loss", 1.0 / (double)step);
        metrics_put(m, "loss/q1", 0.1);
        metrics_flush(m, step);
    }
    assert_int_equal(metrics_dropped(m), 0);
    metrics_close(m);
    metrics_close(NULL);
}

static void lines_hold_the_values(void **state)
{
    metrics *m;
    assert_ok(metrics_open(*state, 0, &m));
    metrics_put(m, "loss", 1.0 / 3);
    metrics_put(m, "grad_norm", NAN);
    metrics_put(m, "validation_loss", INFINITY);
    metrics_put(m, "odd \"name\"\n", 1e-300);
    metrics_flush(m, 50);
    metrics_flush(m, 100); /* nothing was put: still a line */
    metrics_close(m);
    json_t *lines = lines_of(*state);
    assert_int_equal(json_array_size(lines), 2);
    assert_true(value_of(lines, 0, "step") == 50);
    assert_true(value_of(lines, 0, "loss") == 1.0 / 3); /* to the bit */
    assert_true(json_is_null(json_object_get(json_array_get(lines, 0), "grad_norm")));
    assert_true(json_is_null(json_object_get(json_array_get(lines, 0), "validation_loss")));
    assert_int_equal(json_object_size(json_array_get(lines, 0)), 5);
    assert_int_equal(json_object_size(json_array_get(lines, 1)), 1);
    json_decref(lines);
}

static void a_resume_cuts_later_steps(void **state)
{
    write_steps(*state, 0, 10);
    /* A machine that fell over left half a line; another program left something else. */
    FILE *f = fopen(support_join(path, *state, "metrics.jsonl"), "a");
    fputs("[]\n{\"step\":3.5}\n{\"step\":11,\"lo", f);
    fclose(f);
    write_steps(*state, 6, 8);
    json_t *lines = lines_of(*state);
    assert_int_equal(json_array_size(lines), 8);
    for (size_t i = 0; i < 8; i++)
        assert_true(value_of(lines, i, "step") == (double)(i + 1));
    json_decref(lines);
    write_steps(*state, 0, 0); /* from the start again */
    lines = lines_of(*state);
    assert_int_equal(json_array_size(lines), 0);
    json_decref(lines);
}

/* A limit on the file's size stands in for a full disk. */
static void a_full_disk_drops_lines_only(void **state)
{
    struct rlimit old;
    metrics *m;
    assert_ok(metrics_open(*state, 0, &m));
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small = {.rlim_cur = 100, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    for (int step = 1; step <= 20; step++) {
        metrics_put(m, "loss", 0.125);
        metrics_flush(m, step);
    }
    setrlimit(RLIMIT_FSIZE, &old);
    assert_in_range(metrics_dropped(m), 15, 40);
    metrics_put(m, "loss", 0.5);
    metrics_flush(m, 21);
    metrics_close(m);
    json_t *lines = lines_of(*state);
    const size_t n = json_array_size(lines);
    assert_in_range(n, 3, 5);
    assert_true(value_of(lines, n - 1, "step") == 21); /* and goes on when there is room */
    json_decref(lines);
}

static void too_many_values_are_counted(void **state)
{
    metrics *m;
    assert_ok(metrics_open(*state, 0, &m));
    for (int i = 0; i < 70; i++) {
        char name[80];
        snprintf(name, sizeof name, "value-with-a-rather-long-name-that-goes-on-and-on-%02d", i);
        metrics_put(m, name, -1.2345678901234567e-300);
    }
    metrics_flush(m, 1);
    assert_int_equal(metrics_dropped(m), 6);
    metrics_close(m);
}

static void a_bad_folder_is_named(void **state)
{
    metrics *m;
    char missing[SUPPORT_PATH];
    assert_status(metrics_open(support_join(missing, *state, "missing"), 0, &m), DDPM_NOINPUT);
    assert_message("metrics.jsonl");
    assert_null(m);
}

/* ---- TensorBoard ---- */

/* CRC-32C bit by bit, from its polynomial: the oracle of the records' checksums. */
static uint32_t crc32c(const unsigned char *p, size_t n)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static uint32_t masked(const unsigned char *p, size_t n)
{
    const uint32_t crc = crc32c(p, n);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static int find_event_files(const char *dir, char found[2][SUPPORT_PATH])
{
    int n = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, "events.out.tfevents.", 20) == 0 && n < 2)
            support_join(found[n++], dir, e->d_name);
    closedir(d);
    return n;
}

static bool holds(const char *data, size_t n, const char *part, size_t part_n)
{
    return memmem(data, n, part, part_n) != NULL;
}

static void tensorboard_records_are_whole(void **state)
{
    char dir[SUPPORT_PATH], found[2][SUPPORT_PATH];
    assert_int_equal(crc32c((const unsigned char *)"123456789", 9),
                     0xE3069283); /* the standard's check value */
    support_join(dir, *state, "board");
    assert_int_equal(mkdir(dir, 0700), 0);
    write_steps(dir, 0, 3);
    const int n_files = find_event_files(dir, found);
    if (n_files == 0) skip(); /* built without protobuf-c or ISA-L */
    size_t n;
    char *data = support_read_file(found[0], &n);
    int n_records = 0;
    for (size_t at = 0; at < n; n_records++) {
        const unsigned char *r = (const unsigned char *)data + at;
        uint64_t length;
        uint32_t crc;
        assert_true(n - at >= 16);
        memcpy(&length, r, 8);
        memcpy(&crc, r + 8, 4);
        assert_int_equal(crc, masked(r, 8));
        assert_true(length <= n - at - 16);
        memcpy(&crc, r + 12 + length, 4);
        assert_int_equal(crc, masked(r + 12, length));
        const char *event = (const char *)r + 12;
        assert_int_equal(event[0], 0x09); /* field 1, a double: the time */
        if (n_records == 0)
            assert_true(holds(event, length,
                              "\x1a\x0d"
                              "brain.Event:2",
                              15));
        if (n_records == 1)
            assert_true(holds(event, length,
                              "\x10\x01"
                              "\x3a\x02\x08\x01",
                              6)); /* start at step 1 */
        if (n_records == 2)
            assert_true(holds(event, length,
                              "\x0a\x04"
                              "loss"
                              "\x15\x00\x00\x80\x3f",
                              11)); /* 1.0 */
        at += 16 + length;
    }
    assert_int_equal(n_records, 2 + 3);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lines_hold_the_values, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(a_resume_cuts_later_steps, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_drops_lines_only, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(too_many_values_are_counted, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(a_bad_folder_is_named, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(tensorboard_records_are_whole, support_setup,
                                        support_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The n-th allocation fails, for every n until the work succeeds: NOMEM each time, nothing leaks
 * (ASan looks), and a file that was there stays as it was. */
#define SUPPORT_FAIL_ALLOC
#include "support.h"

#include "commit.h"
#include "ddpm/config.h"
#include "metrics.h"
#include "safetensors.h"

typedef ddpm_status (*work)(const char *dir);

static char path[SUPPORT_PATH];

/* Runs `job` with the n-th allocation failing, alone or with all after it, for n = 1 .. until none
 * does. Returns how many runs failed. */
static int fail_every_alloc(work job, const char *dir)
{
    int n_failed = 0;
    for (int stays_out = 0; stays_out < 2; stays_out++) {
        for (long n = 1;; n++) {
            fail_nth_alloc(n, stays_out);
            const ddpm_status s = job(dir);
            fail_no_alloc();
            if (support_alloc_failures == 0) {
                assert_ok(s);
                break;
            }
            if (s != DDPM_NOMEM)
                fail_msg("allocation %ld fails: %s, expected NOMEM; message: %s", n,
                         ddpm_status_name(s), ddpm_last_error());
            n_failed++;
            if (n > 10000) fail_msg("no end");
        }
    }
    return n_failed;
}

static ddpm_status parse_config(const char *dir)
{
    (void)dir;
    static const char yaml[] =
        "model:\n  channel_mult: [1, 2]\n  attention_resolutions: 16\ndata:\n  pack: somewhere\n"
        "train:\n  ema:\n    - 0.99\n    - 0.999\n  batch: 32\n";
    static const char *const sets[] = {"sample.spacing=trailing:20", "train.ema=0.9,0.99"};
    ddpm_config c, copy;
    char *text = NULL, *diff = NULL;
    ddpm_status s = ddpm_config_parse(yaml, sizeof yaml - 1, "a.yaml", sets, 2, &c);
    if (s) return s;
    s = ddpm_config_copy(&c, &copy);
    if (!s) {
        s = ddpm_config_print(&copy, &text);
        copy.train.batch = 16;
        if (!s) s = ddpm_config_diff(&c, &copy, NULL, &diff);
        ddpm_config_free(&copy);
    }
    free(text);
    free(diff);
    ddpm_config_free(&c);
    return s;
}

static ddpm_status load_config(const char *dir)
{
    ddpm_config c;
    char file[SUPPORT_PATH];
    const ddpm_status s = ddpm_config_load(support_join(file, dir, "a.yaml"), NULL, 0, &c);
    if (!s) ddpm_config_free(&c);
    return s;
}

/* A file whose one value is `value`. */
static ddpm_status write_value(const char *name, int32_t value)
{
    st_writer *w;
    char key[32];
    ddpm_status s = st_writer_create(&w);
    if (s) return s;
    for (int i = 0; i < 70 && !s; i++) { /* beyond the first growth of each array */
        snprintf(key, sizeof key, "t%d", i);
        s = st_add(w, key, ST_I32, 0, NULL);
        if (!s) s = st_add_metadata(w, key, "some value");
    }
    if (!s) s = st_begin(w, name);
    for (int i = 0; i < 70 && !s; i++)
        s = st_put(w, &value, sizeof value);
    if (!s) return st_finish(w);
    st_writer_abandon(w);
    return s;
}

static ddpm_status rewrite(const char *dir)
{
    char file[SUPPORT_PATH];
    return write_value(support_join(file, dir, "a.safetensors"), 2);
}

static ddpm_status open_and_verify(const char *dir)
{
    char file[SUPPORT_PATH];
    st_file *f;
    ddpm_status s = st_open(support_join(file, dir, "a.safetensors"), &f);
    if (!s) s = st_verify(f);
    st_close(f); /* NULL where st_open failed */
    return s;
}

static ddpm_status commit_file(const char *dir)
{
    char file[SUPPORT_PATH];
    return commit_bytes(support_join(file, dir, "bytes"), "new", 3);
}

static ddpm_status use_folder(const char *dir)
{
    char inner[SUPPORT_PATH];
    run_lock *l;
    metrics *m;
    ddpm_status s = make_folder(support_join(inner, dir, "run/x"));
    if (!s) s = lock_acquire(inner, &l);
    if (s) return s;
    s = metrics_open(inner, 0, &m);
    if (!s) {
        metrics_put(m, "loss", 1);
        metrics_flush(m, 1);
        metrics_close(m);
    }
    lock_release(l);
    return s;
}

static void configuration(void **state)
{
    assert_in_range(fail_every_alloc(parse_config, *state), 60, 10000);
    support_write_file(support_join(path, *state, "a.yaml"), "train:\n  batch: 4\n", 18);
    assert_in_range(fail_every_alloc(load_config, *state), 20, 10000);
}

static void container_is_read(void **state)
{
    assert_ok(write_value(support_join(path, *state, "a.safetensors"), 1));
    assert_in_range(fail_every_alloc(open_and_verify, *state), 10, 10000);
}

static void container_is_written(void **state)
{
    char *before, *after;
    size_t n, m;
    assert_ok(write_value(support_join(path, *state, "a.safetensors"), 1));
    before = support_read_file(path, &n);
    for (long k = 1;; k++) {
        fail_nth_alloc(k, false);
        const ddpm_status s = rewrite(*state);
        fail_no_alloc();
        if (support_alloc_failures == 0) break;
        assert_status(s, DDPM_NOMEM);
        after = support_read_file(path, &m);
        assert_int_equal(n, m);
        assert_memory_equal(before, after, n);
        free(after);
        assert_int_equal(support_count_entries(*state), 1); /* no temporary is left */
    }
    free(before);
    assert_in_range(fail_every_alloc(rewrite, *state), 100, 10000);
}

static void small_files_and_folders(void **state)
{
    support_write_file(support_join(path, *state, "bytes"), "old", 3);
    assert_in_range(fail_every_alloc(commit_file, *state), 2, 100);
    assert_in_range(fail_every_alloc(use_folder, *state), 5, 100);
    assert_int_equal(support_count_entries(*state), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(configuration, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(container_is_read, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(container_is_written, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(small_files_and_folders, support_setup, support_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

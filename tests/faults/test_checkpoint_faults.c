/* test_checkpoint_faults.c - a damaged checkpoint never gives weights: any byte flipped, cut at any length, lengthened, or with
 * the tensors of another. */
#include "tiny_run.h"

#include <fcntl.h>

static char dir[SUPPORT_PATH], path[SUPPORT_PATH], other[SUPPORT_PATH];
static char *whole;
static size_t bytes;

static int setup(void **state)
{
    (void)state;
    ddpm_backend *be;
    static const char *const set[] = {"model.attention_resolutions=0", "model.channels=4", "model.channel_mult=1",
                                      "model.norm_groups=1"};
    support_make_folder(dir);
    support_join(path, dir, "checkpoint.safetensors");
    support_join(other, dir, "other.safetensors");
    assert_ok(ddpm_backend_create("cpu", 1, &be));
    ddpm_config cfg = tiny_config(4, set);
    tiny_checkpoint(be, path, &cfg, 7, 1);
    tiny_checkpoint(be, other, &cfg, 8, 2);
    ddpm_config_free(&cfg);
    ddpm_backend_free(be);
    whole = support_read_file(path, &bytes);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(whole);
    support_remove_tree(dir);
    return 0;
}

static ddpm_status open_once(void)
{
    st_file *f = NULL;
    ddpm_config cfg = {0};
    checkpoint_counters c;
    const ddpm_status s = checkpoint_open(path, &f, &cfg, &c);
    if (!s) {
        st_close(f);
        ddpm_config_free(&cfg);
    }
    return s;
}

static void put_at(int fd, size_t at, char byte)
{
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

/* Every byte of the first 8 KiB, which are header, and every seventh behind them; all with EVERY_BYTE=1 in the environment, for
 * minutes. */
static size_t step_at(size_t at)
{
    return at < 8192 || getenv("EVERY_BYTE") ? 1 : 7;
}

static void flipped_bytes_are_found(void **state)
{
    (void)state;
    const int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    for (size_t at = 0; at < bytes; at += step_at(at)) {
        put_at(fd, at, (char)(whole[at] ^ (1 << at % 8)));
        if (open_once() != DDPM_FORMAT) fail_msg("byte %zu of %zu: %s", at, bytes, ddpm_last_error());
        put_at(fd, at, whole[at]);
    }
    close(fd);
    assert_ok(open_once());
}

static void truncations_are_found(void **state)
{
    (void)state;
    for (size_t left = bytes - 1; left < bytes; left -= step_at(left)) {
        assert_int_equal(truncate(path, (off_t)left), 0);
        if (open_once() != DDPM_FORMAT) fail_msg("cut to %zu of %zu: %s", left, bytes, ddpm_last_error());
    }
    support_write_file(path, whole, bytes);
    assert_ok(open_once());
}

static void extra_bytes_are_found(void **state)
{
    (void)state;
    const int fd = open(path, O_WRONLY);
    put_at(fd, bytes, 0);
    close(fd);
    assert_status(open_once(), DDPM_FORMAT);
    support_write_file(path, whole, bytes);
}

/* The header of one run and the tensors of another: each is whole by itself. */
static void two_runs_mixed_are_found(void **state)
{
    (void)state;
    size_t n;
    char *second = support_read_file(other, &n);
    assert_int_equal(n, bytes);
    memcpy(second, whole, 4096);
    support_write_file(path, second, n);
    assert_status(open_once(), DDPM_FORMAT);
    support_write_file(path, whole, bytes);
    free(second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flipped_bytes_are_found),
        cmocka_unit_test(truncations_are_found),
        cmocka_unit_test(extra_bytes_are_found),
        cmocka_unit_test(two_runs_mixed_are_found),
    };
    return cmocka_run_group_tests_name("checkpoint faults", tests, setup, teardown);
}

/* Every system call on a file's way to the disk fails in turn, in each way it can, and the process
 * is killed at random moments: the old file or the new one is there, whole, and nothing else. */
#include "support.h"

#include "commit.h"
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

/* ---- the shim: the linker sends our objects' calls here (--wrap, see tests/CMakeLists.txt) ----
 */

enum fault { NO_FAULT, FAIL_CALL, SHORT_CALL, DO_AND_FAIL };

static struct {
    enum fault kind;
    int err;          /* errno of FAIL_CALL and DO_AND_FAIL */
    long at;          /* number of the call that fails, from 1 */
    long n_calls;     /* so far */
    const char *only; /* count calls of this name only; NULL: all */
    const char *hit;  /* name of the call that failed; NULL: none */
} shim;

static enum fault shim_next(const char *name)
{
    if (shim.kind == NO_FAULT || (shim.only && strcmp(shim.only, name) != 0)) return NO_FAULT;
    if (++shim.n_calls != shim.at) return NO_FAULT;
    shim.hit = name;
    errno = shim.err;
    return shim.kind;
}

ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __real_pwrite64(int fd, const void *p, size_t n, off64_t at);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_renameat(int a, const char *from, int b, const char *to);
int __real_fallocate64(int fd, int mode, off64_t at, off64_t n);
int __real_openat64(int dir, const char *name, int flags, mode_t mode);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off64_t at);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_renameat(int a, const char *from, int b, const char *to);
int __wrap_fallocate64(int fd, int mode, off64_t at, off64_t n);
int __wrap_openat64(int dir, const char *name, int flags, mode_t mode);

ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    const enum fault f = shim_next("write");
    if (f == FAIL_CALL) return -1;
    return __real_write(fd, p, f == SHORT_CALL && n > 1 ? n / 2 : n);
}

ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    const enum fault f = shim_next("pwrite");
    if (f == FAIL_CALL) return -1;
    return __real_pwrite64(fd, p, f == SHORT_CALL && n > 1 ? n / 2 : n, at);
}

int __wrap_fsync(int fd)
{
    return shim_next("fsync") == FAIL_CALL ? -1 : __real_fsync(fd);
}

int __wrap_close(int fd)
{
    /* A failing close has closed all the same. Only that of a file written to speaks for data. */
    const bool is_written = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
    const enum fault f = shim_next(is_written ? "close" : "close of a reader");
    const int r = __real_close(fd);
    if (f != FAIL_CALL) return r;
    errno = shim.err;
    return -1;
}

int __wrap_renameat(int a, const char *from, int b, const char *to)
{
    const enum fault f = shim_next("renameat");
    if (f == FAIL_CALL) return -1;
    const int r = __real_renameat(a, from, b, to);
    if (f != DO_AND_FAIL) return r;
    errno = shim.err;
    return -1;
}

int __wrap_fallocate64(int fd, int mode, off64_t at, off64_t n)
{
    return shim_next("fallocate") == FAIL_CALL ? -1 : __real_fallocate64(fd, mode, at, n);
}

int __wrap_openat64(int dir, const char *name, int flags, mode_t mode)
{
    return shim_next("openat") == FAIL_CALL ? -1 : __real_openat64(dir, name, flags, mode);
}

/* ---- the work ---- */

/* A file whose tensor holds `n` times `value`. */
static ddpm_status write_file(const char *path, int32_t value, int64_t n)
{
    int32_t piece[4096];
    st_writer *w;
    for (int i = 0; i < 4096; i++)
        piece[i] = value;
    ddpm_status s = st_writer_create(&w);
    if (s) return s;
    s = st_add(w, "x", ST_I32, 1, &n);
    if (!s) s = st_begin(w, path);
    for (int64_t left = n; left > 0 && !s;) {
        const int64_t take = left < 4096 ? left : 4096;
        s = st_put(w, piece, (uint64_t)take * sizeof *piece);
        left -= take;
    }
    if (!s) return st_finish(w);
    st_writer_abandon(w);
    return s;
}

/* The value that a whole, verifying file holds. */
static int32_t value_in(const char *path)
{
    st_file *f;
    int32_t value;
    assert_ok(st_open(path, &f));
    assert_ok(st_verify(f));
    assert_ok(st_read(f, st_find(f, "x"), 0, &value, sizeof value));
    st_close(f);
    return value;
}

enum { SMALL = 10000 };

static int n_folder_syncs; /* faults of the folder's sync that were reported */

/* Fails call k for k = 1 .. until the write needs no more calls. Returns how many faults were met.
 */
static int fail_every_call(const char *path, enum fault kind, int err, const char *only)
{
    int n_faults = 0;
    char dir[SUPPORT_PATH];
    snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path, '/') - path), path);
    for (long k = 1;; k++) {
        assert_ok(write_file(path, 1, SMALL));
        memset(&shim, 0, sizeof shim);
        shim.kind = kind;
        shim.err = err;
        shim.at = k;
        shim.only = only;
        const ddpm_status s = write_file(path, 2, SMALL);
        shim.kind = NO_FAULT;
        const int32_t left = value_in(path);
        assert_int_equal(support_count_entries(dir), 1); /* the temporary is gone */
        if (!shim.hit) {
            assert_ok(s);
            assert_int_equal(left, 2);
            return n_faults;
        }
        n_faults++;
        /* Short calls and EINTR are continued, and a close that reports after the sync of the
         * folder, or of a file that was only read, says nothing about the data. A rename that took
         * effect is done. */
        const bool is_close = strcmp(shim.hit, "close of a reader") == 0;
        const bool must_pass = kind == SHORT_CALL || kind == DO_AND_FAIL ||
                               (kind == FAIL_CALL && err == EINTR) ||
                               (strcmp(shim.hit, "fallocate") == 0 && err == EOPNOTSUPP);
        if (must_pass && s)
            fail_msg("%s, call %ld: %s: %s", shim.hit, k, ddpm_status_name(s), ddpm_last_error());
        if (s == DDPM_OK) {
            assert_int_equal(left, 2);
            if (!must_pass && !is_close)
                fail_msg("%s, call %ld, errno %d: no error was seen", shim.hit, k, err);
        } else if (s != DDPM_IO && !(err == EACCES && s == DDPM_PERM) &&
                   !(err == EROFS && s == DDPM_CANTCREAT) && !(err == EMFILE && s == DDPM_NOMEM)) {
            fail_msg("%s, call %ld, errno %d: %s", shim.hit, k, err, ddpm_status_name(s));
        } else if (left == 2) {
            /* The only failure after the rename: the folder's sync. */
            assert_string_equal(shim.hit, "fsync");
            assert_message("its folder could not be synced");
            n_folder_syncs++;
        }
    }
}

static char path[SUPPORT_PATH];

static void errors_at_every_call(void **state)
{
    static const int errors[] = {ENOSPC, EIO, EDQUOT};
    support_join(path, *state, "a.safetensors");
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        n_folder_syncs = 0;
        assert_in_range(fail_every_call(path, FAIL_CALL, errors[i], NULL), 10, 1000);
        assert_int_equal(n_folder_syncs, 1);
    }
}

static void interrupted_calls_go_on(void **state)
{
    support_join(path, *state, "a.safetensors");
    static const char *const names[] = {"write",  "pwrite",   "fsync", "fallocate",
                                        "openat", "renameat", "close"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_in_range(fail_every_call(path, FAIL_CALL, EINTR, names[i]), 1, 1000);
}

static void short_writes_go_on(void **state)
{
    support_join(path, *state, "a.safetensors");
    assert_in_range(fail_every_call(path, SHORT_CALL, 0, "write"), 4, 1000);
    assert_in_range(fail_every_call(path, SHORT_CALL, 0, "pwrite"), 1, 1000);
}

static void a_rename_that_took_effect_is_done(void **state)
{
    support_join(path, *state, "a.safetensors");
    assert_int_equal(fail_every_call(path, DO_AND_FAIL, EIO, "renameat"), 1);
}

static void failing_to_open_is_named(void **state)
{
    support_join(path, *state, "a.safetensors");
    static const int errors[] = {EACCES, EROFS, EMFILE};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        assert_int_equal(fail_every_call(path, FAIL_CALL, errors[i], "openat"), 1);
}

static void a_file_system_without_reservation_is_fine(void **state)
{
    support_join(path, *state, "a.safetensors");
    assert_int_equal(fail_every_call(path, FAIL_CALL, EOPNOTSUPP, "fallocate"), 1);
}

/* fsync is asked once: a second success would prove nothing. */
static void a_failed_sync_is_not_repeated(void **state)
{
    support_join(path, *state, "a.safetensors");
    memset(&shim, 0, sizeof shim);
    shim = (typeof(shim)){.kind = FAIL_CALL, .err = EIO, .at = 1, .only = "fsync"};
    assert_status(write_file(path, 1, SMALL), DDPM_IO);
    shim.kind = NO_FAULT;
    assert_int_equal(shim.n_calls, 1);
    assert_int_equal(support_count_entries(*state), 0);
}

/* A child writes a file of 1 MB again and again, values rising; it is killed at random moments. */
static void kills_lose_nothing(void **state)
{
    enum { KILLS = 200, VALUES = 1 << 18 };
    support_join(path, *state, "a.safetensors");
    int32_t held = 1;
    unsigned seed = 12345;
    assert_ok(write_file(path, held, VALUES));
    /* on a busy machine the child may get no write done in 12 ms: then later */
    for (int i = 0; i < KILLS || (held == 1 && i < 10 * KILLS); i++) {
        const long longest = 12000L * (1 + i / KILLS);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            for (int32_t v = held + 1;; v++)
                if (write_file(path, v, VALUES) != DDPM_OK) _exit(1);
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000 * (rand_r(&seed) % longest)}, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status)); /* it had no error of its own */
        const int32_t now = value_in(path);
        assert_true(now >= held); /* never an older one */
        held = now;
        assert_ok(commit_sweep(*state));
        assert_int_equal(support_count_entries(*state), 1);
    }
    assert_true(held > 1); /* the kills came late enough to meet writes */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(errors_at_every_call, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(interrupted_calls_go_on, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(short_writes_go_on, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(a_rename_that_took_effect_is_done, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(failing_to_open_is_named, support_setup, support_teardown),
        cmocka_unit_test_setup_teardown(a_file_system_without_reservation_is_fine, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(a_failed_sync_is_not_repeated, support_setup,
                                        support_teardown),
        cmocka_unit_test_setup_teardown(kills_lose_nothing, support_setup, support_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

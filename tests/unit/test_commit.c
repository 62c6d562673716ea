/* Files become final whole or not at all; folders, locks and leftovers. */
#include "support.h"

#include "commit.h"
#include "fail.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

static void assert_file(const char *path, const char *want)
{
    size_t n;
    char *got = support_read_file(path, &n);
    assert_int_equal(n, strlen(want));
    assert_string_equal(got, want);
    free(got);
}

static void file_is_replaced_only_at_the_end(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "a.bin");
    assert_ok(commit_bytes(path, "old", 3));
    commit *c;
    assert_ok(
        commit_begin(path, 1 << 20, &c)); /* more than comes: the length stays what was written */
    assert_ok(commit_write(c, "xxx ", 4));
    assert_ok(commit_write(c, "new", 3));
    assert_ok(commit_write_at(c, 0, "the", 3));
    assert_file(path, "old");
    assert_int_equal(access(commit_temp_path(c), F_OK), 0);
    assert_ok(commit_finish(c, NULL, NULL));
    assert_file(path, "the new");
    struct stat st;
    stat(path, &st);
    assert_true(st.st_blocks * 512 < 1 << 19); /* the reservation was given back */
    unlink(path);
    assert_int_equal(support_count_entries(*state), 0);
}

static void abandon_leaves_the_old(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "b.bin");
    assert_ok(commit_bytes(path, "old", 3));
    commit *c;
    assert_ok(commit_begin(path, 0, &c));
    assert_ok(commit_write(c, "new", 3));
    commit_abandon(c);
    commit_abandon(NULL);
    assert_file(path, "old");
    unlink(path);
    assert_int_equal(support_count_entries(*state), 0);
}

static ddpm_status refuse(const char *temp_path, void *user)
{
    assert_file(temp_path, "new");
    ++*(int *)user;
    return FAIL(FORMAT, "does not read back");
}

static void verify_decides(void **state)
{
    char path[SUPPORT_PATH];
    int calls = 0;
    support_join(path, *state, "c.bin");
    assert_ok(commit_bytes(path, "old", 3));
    commit *c;
    assert_ok(commit_begin(path, 0, &c));
    assert_ok(commit_write(c, "new", 3));
    assert_status(commit_finish(c, refuse, &calls), DDPM_FORMAT);
    assert_message("does not read back");
    assert_int_equal(calls, 1);
    assert_file(path, "old");
    unlink(path);
    assert_int_equal(support_count_entries(*state), 0);
}

static void bad_places_are_refused_at_once(void **state)
{
    char path[SUPPORT_PATH], inside[SUPPORT_PATH];
    commit *c = NULL;
    assert_status(commit_begin(support_join(path, *state, "no/such/folder"), 0, &c),
                  DDPM_CANTCREAT);
    assert_null(c);
    assert_message("does not exist");
    assert_status(commit_begin(*state, 0, &c), DDPM_CANTCREAT); /* a folder of that name */
    assert_status(commit_begin(support_join(path, *state, ""), 0, &c), DDPM_CANTCREAT);
    support_join(path, *state, "file");
    support_write_file(path, "x", 1);
    assert_status(commit_begin(support_join(inside, path, "y"), 0, &c), DDPM_CANTCREAT);
    assert_status(make_folder(inside), DDPM_CANTCREAT);
    assert_status(make_folder(path), DDPM_CANTCREAT);
    assert_message("in the way");
    char longest[400];
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    snprintf(inside, sizeof inside, "%s/%s", (char *)*state, longest);
    assert_status(commit_begin(inside, 0, &c), DDPM_CANTCREAT);
    unlink(path);
    assert_int_equal(support_count_entries(*state), 0);
}

static void a_link_is_replaced_and_not_followed(void **state)
{
    char target[SUPPORT_PATH], path[SUPPORT_PATH];
    support_join(target, *state, "target");
    support_join(path, *state, "link");
    support_write_file(target, "keep", 4);
    assert_int_equal(symlink(target, path), 0);
    assert_ok(commit_bytes(path, "new", 3));
    assert_file(target, "keep");
    assert_file(path, "new");
    unlink(path);
    unlink(target);
}

static void odd_names_work(void **state)
{
    static const char *const names[] = {"with space", "100%s",   "new\nline", "\xff\xfe",
                                        "'quote\"",   ".hidden", "-o"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[SUPPORT_PATH];
        support_join(path, *state, names[i]);
        assert_ok(commit_bytes(path, "x", 1));
        assert_file(path, "x");
        unlink(path);
    }
}

static void two_writers_of_one_name(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "d.bin");
    commit *a, *b;
    assert_ok(commit_begin(path, 0, &a));
    assert_ok(commit_begin(path, 0, &b));
    assert_ok(commit_write(a, "aaaa", 4));
    assert_ok(commit_write(b, "bb", 2));
    assert_ok(commit_finish(a, NULL, NULL));
    assert_file(path, "aaaa");
    assert_ok(commit_finish(b, NULL, NULL));
    assert_file(path, "bb");
    unlink(path);
}

static void sweep_removes_what_the_dead_left(void **state)
{
    char path[SUPPORT_PATH], other[SUPPORT_PATH];
    support_join(path, *state, "e.bin");
    const pid_t child = fork();
    if (child == 0) {
        commit *c;
        _exit(commit_begin(path, 0, &c) == DDPM_OK ? 0 : 1); /* leaves its temporary */
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    commit *mine;
    assert_ok(commit_begin(path, 0, &mine));
    /* Names that only look alike. */
    static const char *const keep[] = {".e.bin.tmp", ".e.bin.1-0@elsewhere.tmp",
                                       "e.bin.999999999-0@x.tmp"};
    for (int i = 0; i < 3; i++)
        support_write_file(support_join(other, *state, keep[i]), "", 0);
    assert_int_equal(support_count_entries(*state), 5);
    assert_ok(commit_sweep(*state));
    assert_int_equal(support_count_entries(*state), 4); /* the child's is gone */
    assert_ok(commit_write(mine, "mine", 4));
    assert_ok(commit_finish(mine, NULL, NULL));
    assert_file(path, "mine");
    for (int i = 0; i < 3; i++)
        unlink(support_join(other, *state, keep[i]));
    unlink(path);
    assert_status(commit_sweep(support_join(other, *state, "missing")), DDPM_NOINPUT);
}

static void folders_are_made_with_their_parents(void **state)
{
    char path[SUPPORT_PATH];
    support_join(path, *state, "a//b/c/");
    assert_ok(make_folder(path));
    assert_ok(make_folder(path));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    assert_status(make_folder(""), DDPM_CANTCREAT);
    support_remove_tree(support_join(path, *state, "a"));
}

static void the_lock_keeps_others_out(void **state)
{
    run_lock *mine = NULL, *other = NULL;
    assert_ok(lock_acquire(*state, &mine));
    assert_status(lock_acquire(*state, &other), DDPM_LOCKED);
    assert_null(other);
    char pid[32];
    snprintf(pid, sizeof pid, " %ld ", (long)getpid());
    assert_message(pid); /* names the holder */
    lock_release(mine);
    assert_ok(lock_acquire(*state, &other));
    lock_release(other);
    lock_release(NULL);
}

static void the_lock_dies_with_its_process(void **state)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) {
        run_lock *l;
        (void)!write(ready[1], lock_acquire(*state, &l) == DDPM_OK ? "y" : "n", 1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    run_lock *l;
    assert_status(lock_acquire(*state, &l), DDPM_LOCKED);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_ok(lock_acquire(*state, &l));
    lock_release(l);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_is_replaced_only_at_the_end),
        cmocka_unit_test(abandon_leaves_the_old),
        cmocka_unit_test(verify_decides),
        cmocka_unit_test(bad_places_are_refused_at_once),
        cmocka_unit_test(a_link_is_replaced_and_not_followed),
        cmocka_unit_test(odd_names_work),
        cmocka_unit_test(two_writers_of_one_name),
        cmocka_unit_test(sweep_removes_what_the_dead_left),
        cmocka_unit_test(folders_are_made_with_their_parents),
        cmocka_unit_test(the_lock_keeps_others_out),
        cmocka_unit_test(the_lock_dies_with_its_process),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}

/* support.h - what several test programs need: a folder of their own, whole files, and allocations
 * that fail on demand. Include cmocka.h (and what it needs) through this file.
 *
 * To fail the n-th allocation, a program under tests/faults named test_alloc_*.c defines
 * SUPPORT_FAIL_ALLOC before including this: the build then links it with --wrap for the allocation
 * functions, which reaches all of our own static libraries (but not the inside of shared ones). */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ddpm/status.h"

enum { SUPPORT_PATH = 512 };

/* Passes when `call` returns `status`; else shows both and the message. */
#define assert_status(call, status)                                                                \
    do {                                                                                           \
        const ddpm_status got_ = (call), want_ = (status);                                         \
        if (got_ != want_)                                                                         \
            fail_msg("%s: %s, expected %s; message: %s", #call, ddpm_status_name(got_),            \
                     ddpm_status_name(want_), ddpm_last_error());                                  \
    } while (0)
#define assert_ok(call) assert_status(call, DDPM_OK)
/* The last message contains `part`. */
#define assert_message(part)                                                                       \
    do {                                                                                           \
        if (!strstr(ddpm_last_error(), part))                                                      \
            fail_msg("'%s' is not in the message: %s", part, ddpm_last_error());                   \
    } while (0)

/* |got - want| <= eps, in double; NaN never passes. */
#define assert_near(got, want, eps)                                                                \
    do {                                                                                           \
        const double got_ = (got), want_ = (want), eps_ = (eps);                                   \
        if (!(fabs(got_ - want_) <= eps_))                                                         \
            fail_msg("%s: %.17g, expected %.17g within %g", #got, got_, want_, eps_);              \
    } while (0)

/* A new empty folder under $TMPDIR or /tmp. */
static inline void support_make_folder(char dst[SUPPORT_PATH])
{
    const char *parent = getenv("TMPDIR");
    snprintf(dst, SUPPORT_PATH, "%s/ddpm-test-XXXXXX", parent && *parent ? parent : "/tmp");
    assert_non_null(mkdtemp(dst));
}

static inline int support_remove_one(const char *path, const struct stat *st, int kind,
                                     struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

/* rm -r; a path that is not there is fine. */
static inline void support_remove_tree(const char *path)
{
    nftw(path, support_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Group setup and teardown: *state is the path of a folder. */
static inline int support_setup(void **state)
{
    char *path = test_malloc(SUPPORT_PATH);
    support_make_folder(path);
    *state = path;
    return 0;
}

static inline int support_teardown(void **state)
{
    support_remove_tree(*state);
    test_free(*state);
    return 0;
}

static inline const char *support_join(char dst[SUPPORT_PATH], const char *dir, const char *name)
{
    assert_in_range(snprintf(dst, SUPPORT_PATH, "%s/%s", dir, name), 1, SUPPORT_PATH - 1);
    return dst;
}

static inline void support_write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

/* The whole file, with a NUL behind it; the caller frees. */
static inline char *support_read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    const size_t n = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, n, f), n);
    data[n] = '\0';
    fclose(f);
    if (bytes) *bytes = n;
    return data;
}

/* Entries of a folder, hidden ones included, "." and ".." not. */
static inline int support_count_entries(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

#ifdef SUPPORT_FAIL_ALLOC

#include <errno.h>

/* Counts down; the allocation that meets 0 fails, as do all after it when support_alloc_stays_out
 * is set. Negative: all succeed. Counts over all threads. */
static long support_alloc_left = -1;
static bool support_alloc_stays_out;
static long support_alloc_failures;

static inline void fail_nth_alloc(long n, bool stays_out)
{
    support_alloc_failures = 0;
    support_alloc_stays_out = stays_out;
    __atomic_store_n(&support_alloc_left, n - 1, __ATOMIC_SEQ_CST);
}

static inline void fail_no_alloc(void)
{
    __atomic_store_n(&support_alloc_left, -1, __ATOMIC_SEQ_CST);
}

static inline bool support_alloc_fails(void)
{
    long left = __atomic_load_n(&support_alloc_left, __ATOMIC_SEQ_CST);
    if (left < 0) return false;
    left = __atomic_fetch_sub(&support_alloc_left, 1, __ATOMIC_SEQ_CST);
    if (left > 0) return false;
    if (support_alloc_stays_out) __atomic_store_n(&support_alloc_left, 0, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&support_alloc_failures, 1, __ATOMIC_SEQ_CST);
    errno = ENOMEM;
    return true;
}

/* The linker sends every call of NAME in our objects to __wrap_NAME; the original is __real_NAME.
 */
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
char *__real_strdup(const char *s);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **out, size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
char *__wrap_strdup(const char *s);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
int __wrap_posix_memalign(void **out, size_t align, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return support_alloc_fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return support_alloc_fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    return support_alloc_fails() ? NULL : __real_realloc(p, bytes);
}

char *__wrap_strdup(const char *s)
{
    return support_alloc_fails() ? NULL : __real_strdup(s);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return support_alloc_fails() ? NULL : __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
    return support_alloc_fails() ? ENOMEM : __real_posix_memalign(out, align, bytes);
}

#endif
#endif

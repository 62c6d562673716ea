/* fail.h - how the library's own code raises and passes on a fault (see include/ddpm/status.h). */
#ifndef CORE_FAIL_H
#define CORE_FAIL_H

#include "ddpm/status.h"

#include <errno.h> /* FAIL_ERRNO */

#if defined(__GNUC__)
#define FAIL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define FAIL_PRINTF(fmt, args)
#endif

/* Writes this thread's message and returns `code`. file and line are kept for --verbose. */
ddpm_status status_fail(ddpm_status code, const char *file, int line, const char *fmt, ...)
    FAIL_PRINTF(4, 5);

/* The status of a failed system call, by errno: ENOENT NOINPUT; EACCES EPERM PERM; ENOMEM EMFILE
 * ENFILE NOMEM; EROFS EEXIST ENAMETOOLONG ENOTDIR EISDIR CANTCREAT; the rest (ENOSPC, EDQUOT, EIO)
 * IO. */
ddpm_status status_from_errno(int err);

/* Puts "context: " before the current message, keeping the code: a caller that knows the file's
 * name adds it to the message of a callee that does not. Returns `code`. */
ddpm_status status_context(ddpm_status code, const char *fmt, ...) FAIL_PRINTF(2, 3);

/* A message taken from or given to another thread: workers hand their fault to the caller. */
void status_copy_message(char *dst, unsigned size);
void status_set_message(const char *text);

/* "file.c:123", where this thread's last failure was raised; "" when there was none. For --verbose.
 */
const char *status_where(void);

/* The comma tells the compiler that the value is not OK, so that it sees results as written wherever it goes on. */
#define FAIL(code, ...) (status_fail(DDPM_##code, __FILE__, __LINE__, __VA_ARGS__), DDPM_##code)
#define FAIL_ERRNO(...) status_fail(status_from_errno(errno), __FILE__, __LINE__, __VA_ARGS__)
#define REQUIRE(cond, code, ...)                                                                   \
    do {                                                                                           \
        if (!(cond)) return FAIL(code, __VA_ARGS__);                                               \
    } while (0)
#define TRY(call)                                                                                  \
    do {                                                                                           \
        ddpm_status s_ = (call);                                                                   \
        if (s_) return s_;                                                                         \
    } while (0)
#define TRY_GOTO(label, call)                                                                      \
    do {                                                                                           \
        if ((s = (call))) goto label;                                                              \
    } while (0)
#define FAIL_GOTO(label, code, ...)                                                                \
    do {                                                                                           \
        s = FAIL(code, __VA_ARGS__);                                                               \
        goto label;                                                                                \
    } while (0)

#endif

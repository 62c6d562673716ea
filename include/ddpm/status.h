/* status.h - what every fallible call returns, and the sentence that goes with it.
 *
 * A function that can fail returns ddpm_status and nothing else; results go through its last
 * parameters and are written only on success. The function that finds the fault writes the message
 * (what, where, with which numbers); callers pass the code up. The library never prints or exits.
 */
#ifndef DDPM_STATUS_H
#define DDPM_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* name, exit code of the program, sentence. Exit codes follow sysexits.h up to 78. */
#define DDPM_STATUS_LIST(X)                                                                        \
    X(OK, 0, "done")                                                                               \
    X(ARG, 64, "wrong usage")                                                                      \
    X(FORMAT, 65, "bad data or model file")                                                        \
    X(NOINPUT, 66, "input is missing")                                                             \
    X(BUG, 70, "a fault of this program")                                                          \
    X(SHAPE, 70, "shapes do not fit")                                                              \
    X(NOMEM, 71, "out of memory or a limit of the system")                                         \
    X(CANTCREAT, 73, "cannot create the output")                                                   \
    X(LOCKED, 73, "in use by another process")                                                     \
    X(IO, 74, "input or output error")                                                             \
    X(STOPPED, 75, "stopped before the end; run again to go on")                                   \
    X(PEER, 76, "a peer was lost; run again")                                                      \
    X(PERM, 77, "permission denied")                                                               \
    X(CONFIG, 78, "wrong configuration")                                                           \
    X(BACKEND, 79, "device fault; run again elsewhere")                                            \
    X(NUMERIC, 80, "diverged; do not run again")

typedef enum ddpm_status {
#define X(name, exit_code, sentence) DDPM_##name,
    DDPM_STATUS_LIST(X)
#undef X
} ddpm_status;

/* The message of the last failure on this thread; "" when there was none. One line, at most 1023
 * bytes, control characters escaped. Valid until the next failure on the same thread. */
const char *ddpm_last_error(void);

/* "FORMAT", "bad data or model file", 65. Never NULL; unknown values give "?" and 70. */
const char *ddpm_status_name(ddpm_status s);
const char *ddpm_status_sentence(ddpm_status s);
int ddpm_status_exit_code(ddpm_status s);

#ifdef __cplusplus
}
#endif
#endif

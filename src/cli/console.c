/* console.c - stderr and signals, so that no terminal, pipe or full disk can stop or spoil the
 * work.
 *
 * A line goes out by one write(2) after poll(2) said there is room: a pipe whose reader sleeps, a
 * terminal stopped by ^S and /dev/full cost a line, not the run. Lines lost are counted and told
 * with the next one that gets through. Rejected: O_NONBLOCK on stderr, which would change the
 * shell's own descriptor too; stdio, which keeps what it could not write and blocks later. */
#include "cli.h"

#include "fail.h"
#include "text.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    LINE_MAX_BYTES = 2048, /* below PIPE_BUF: a write of it to a pipe with room is whole */
    WAIT_MS = 50           /* for a line that must not be lost lightly */
};

static struct {
    unsigned long dropped;
    bool is_transient_shown; /* the terminal's last line is to be overwritten */
    bool is_quiet;
} console;

static bool console_write(const char *text, size_t bytes, int wait_ms)
{
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&p, 1, wait_ms) != 1 || !(p.revents & POLLOUT)) return false;
    return write(STDERR_FILENO, text, bytes) == (ssize_t)bytes;
}

/* On a terminal a transient line stays until the next one overwrites it: "\r", text, erase to the
 * end of line. */
static void console_line(void *user, const char *text, bool transient)
{
    const log_sink *sink = user;
    if (console.is_quiet) return;
    if (transient && !sink->is_terminal) return;

    char line[LINE_MAX_BYTES];
    size_t used = 0;
    if (console.dropped && !transient)
        used = (size_t)snprintf(line, sizeof line, "(%lu lines were lost before this one)\n",
                                console.dropped);
    const char *start = sink->is_terminal && console.is_transient_shown ? "\r\033[K" : "";
    const int n =
        snprintf(line + used, sizeof line - used, "%s%s%s", start, text, transient ? "" : "\n");
    used += (size_t)n < sizeof line - used ? (size_t)n : sizeof line - used - 1;
    if (!transient) line[used - 1] = '\n'; /* also where the text was cut */

    if (console_write(line, used, transient ? 0 : WAIT_MS)) {
        if (!transient) console.dropped = 0;
        console.is_transient_shown = transient;
    } else if (!transient) {
        console.dropped++;
    }
}

static bool stderr_has_color(void)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (no_color && *no_color) return false;
    return isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
}

const log_sink *cli_sink(bool quiet)
{
    static log_sink sink;
    struct winsize size = {0};
    sink = (log_sink){.line = console_line,
                      .user = &sink,
                      .is_terminal = isatty(STDERR_FILENO) == 1,
                      .has_color = stderr_has_color()};
    if (sink.is_terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0) sink.width = size.ws_col;
    console.is_quiet = quiet;
    return &sink;
}

/* ---- the line of a failure ---- */

/* What holds, and what to do, where the command knows nothing better. */
#define ADVICE_LIST(X)                                                                             \
    X(OK, "All is done", "Nothing is left to do")                                                  \
    X(ARG, "Nothing was changed", "See the command's --help")                                      \
    X(FORMAT, "No file was changed",                                                               \
      "`ddpm info --verify` says what a file is and where it is damaged; make or copy it again")   \
    X(NOINPUT, "Nothing was changed", "Check the path and run again")                              \
    X(BUG, "Files already committed are intact", "Please report this line")                        \
    X(SHAPE, "Files already committed are intact", "Please report this line")                      \
    X(NOMEM, "Files already committed are intact",                                                 \
      "Use a smaller train.micro_batch or sample.batch (`ddpm plan` gives the bytes), or raise "   \
      "the limit")                                                                                 \
    X(CANTCREAT, "What was there is untouched",                                                    \
      "Give another output, or clear what is in the way")                                          \
    X(LOCKED, "The other process goes on undisturbed", "Wait until it ends, or stop it first")     \
    X(IO, "Files already committed are intact",                                                    \
      "Make room or repair the disk, then run the same command again")                             \
    X(STOPPED, "What was done is saved", "Run the same command again to go on")                    \
    X(PEER, "Files already committed are intact", "Run the same command again")                    \
    X(PERM, "Nothing was changed", "Check owner and mode of the path")                             \
    X(CONFIG, "Nothing was changed", "Correct it and run again; `ddpm plan CONFIG` checks a file") \
    X(BACKEND, "Files already committed are intact",                                               \
      "Run again on another machine, or with --device cpu")                                        \
    X(NUMERIC, "The last good checkpoint is kept",                                                 \
      "Do not just run again: lower train.lr, or look for damaged images")

static const struct {
    const char *safe, *next;
} advice[] = {
#define X(name, safe_text, next_text) [DDPM_##name] = {safe_text, next_text},
    ADVICE_LIST(X)
#undef X
};

static const char *command_name(const char *command, char *dst, size_t size)
{
    const bool is_full = strncmp(command, "ddpm", 4) == 0;
    snprintf(dst, size, "%s%s", is_full ? "" : "ddpm ", command);
    return dst;
}

/* Bytes of a sentence without its full stop, which cli_fail sets itself. */
static int sentence_bytes(const char *s)
{
    const size_t n = strlen(s);
    return (int)(n && s[n - 1] == '.' ? n - 1 : n);
}

int cli_fail(const char *command, ddpm_status s, const char *safe, const char *next)
{
    const size_t known = sizeof advice / sizeof advice[0];
    const size_t row = (size_t)s < known ? (size_t)s : (size_t)DDPM_BUG;
    const char *what = *ddpm_last_error() ? ddpm_last_error() : ddpm_status_sentence(s);
    const char *where = row == DDPM_BUG || row == DDPM_SHAPE ? status_where() : "";
    char name[64], help[96], told[LINE_MAX_BYTES], escaped[LINE_MAX_BYTES - 128],
        line[LINE_MAX_BYTES];
    command_name(command, name, sizeof name);
    snprintf(help, sizeof help, "See `%s --help`", name);
    if (!safe) safe = advice[row].safe;
    if (!next) next = row == DDPM_ARG ? help : advice[row].next;
    snprintf(told, sizeof told, "%.*s%s%s%s. %.*s. %.*s.", sentence_bytes(what), what,
             *where ? " (" : "", where, *where ? ")" : "", sentence_bytes(safe), safe,
             sentence_bytes(next), next);
    text_escape(escaped, sizeof escaped, told, strlen(told));

    const bool color = stderr_has_color();
    const int n =
        snprintf(line, sizeof line, "%s%s%s:%s %s\n", console.is_transient_shown ? "\r\033[K" : "",
                 color ? "\033[1;31m" : "", name, color ? "\033[0m" : "", escaped);
    console.is_transient_shown = false;
    console_write(line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1, 10 * WAIT_MS);
    return ddpm_status_exit_code(s);
}

/* ---- signals ---- */

static volatile sig_atomic_t stop_requested;

static void on_signal(int sig)
{
    static const char text[] =
        "ddpm: stopped at once by a second signal. Files already committed are intact, work since "
        "the last checkpoint is lost. Run the same command again to go on.\n";
    if (stop_requested && sig != SIGUSR1) {
        console_write(text, sizeof text - 1, WAIT_MS);
        _exit(ddpm_status_exit_code(DDPM_STOPPED));
    }
    stop_requested = 1;
}

const volatile int *cli_stop_flag(void)
{
    static bool is_installed;
    if (!is_installed) {
        struct sigaction act = {.sa_handler = on_signal}; /* no SA_RESTART: waits end */
        sigemptyset(&act.sa_mask);
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        sigaction(SIGUSR1, &act, NULL);
        is_installed = true;
    }
    return &stop_requested;
}

/* ---- descriptors ---- */

void cli_prepare_streams(void)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit then fails the write, and the commit is undone */
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0) {
            /* the wrong way round on purpose: what is written or read there still fails */
            const int got = open("/dev/null", fd ? O_RDONLY : O_WRONLY);
            if (got >= 0 && got != fd) {
                dup2(got, fd);
                close(got);
            }
        }
}

ddpm_status cli_flush_output(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return DDPM_OK;
    if (errno == EPIPE) return DDPM_OK;
    return FAIL(IO, "standard output: %s", errno ? strerror(errno) : "not all could be written");
}

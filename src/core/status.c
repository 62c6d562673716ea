/* status.c - the codes' names and each thread's last message.
 *
 * A message is formatted, made safe for a terminal and a log (text_escape: names from files may
 * hold anything) and cut to 1023 bytes. No memory is taken, so that "out of memory" can be said.
 * Two buffers: arguments may point into the message that is being replaced. */
#include "fail.h"

#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_SIZE = 1024 };

static _Thread_local char last_message[MESSAGE_SIZE];
static _Thread_local char last_where[64];

static const struct {
    const char *name, *sentence;
    int exit_code;
} codes[] = {
#define X(name, exit_code, sentence) [DDPM_##name] = {#name, sentence, exit_code},
    DDPM_STATUS_LIST(X)
#undef X
};

static bool is_known(ddpm_status s)
{
    return (unsigned)s < sizeof codes / sizeof *codes;
}

const char *ddpm_last_error(void)
{
    return last_message;
}

const char *ddpm_status_name(ddpm_status s)
{
    return is_known(s) ? codes[s].name : "?";
}

const char *ddpm_status_sentence(ddpm_status s)
{
    return is_known(s) ? codes[s].sentence : "?";
}

int ddpm_status_exit_code(ddpm_status s)
{
    return is_known(s) ? codes[s].exit_code : 70;
}

const char *status_where(void)
{
    return last_where;
}

void status_set_message(const char *message)
{
    char copy[MESSAGE_SIZE];
    text_escape(copy, sizeof copy, message, strlen(message));
    memcpy(last_message, copy, strlen(copy) + 1);
}

void status_copy_message(char *dst, unsigned size)
{
    if (size > 0) snprintf(dst, size, "%s", last_message);
}

ddpm_status status_fail(ddpm_status code, const char *file, int line, const char *fmt, ...)
{
    /* One byte more than a message, so that text_escape sees that it was cut. */
    char raw[MESSAGE_SIZE + 1] = "";
    va_list args;
    va_start(args, fmt);
    vsnprintf(raw, sizeof raw, fmt, args); /* first: %m reads errno */
    va_end(args);
    status_set_message(raw);
    const char *slash = strrchr(file, '/');
    snprintf(last_where, sizeof last_where, "%s:%d", slash ? slash + 1 : file, line);
    return code;
}

ddpm_status status_context(ddpm_status code, const char *fmt, ...)
{
    char raw[2 * MESSAGE_SIZE] = "";
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(raw, MESSAGE_SIZE / 2, fmt, args);
    va_end(args);
    const size_t used = n < 0 ? 0 : n < MESSAGE_SIZE / 2 ? (size_t)n : MESSAGE_SIZE / 2 - 1;
    snprintf(raw + used, sizeof raw - used, ": %s", last_message);
    status_set_message(raw);
    return code;
}

ddpm_status status_from_errno(int err)
{
    switch (err) {
    case ENOENT:
        return DDPM_NOINPUT;
    case EACCES:
    case EPERM:
        return DDPM_PERM;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return DDPM_NOMEM;
    case EROFS:
    case EEXIST:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
        return DDPM_CANTCREAT;
    default:
        return DDPM_IO;
    }
}

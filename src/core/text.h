/* text.h - a string that grows, text that cannot hurt a terminal, and numbers that read back to the
 * same bits whatever the locale. */
#ifndef CORE_TEXT_H
#define CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Zero-initialised is empty. Once an allocation fails, `failed` stays set and further calls do
 * nothing: callers look once, at the end. */
typedef struct {
    char *data; /* owned; NUL-terminated, NULL while empty */
    size_t used, size;
    bool failed;
} text_buffer;

void text_add(text_buffer *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_add_bytes(text_buffer *t, const char *data, size_t bytes);
void text_release(text_buffer *t); /* frees; leaves it empty */

/* Bytes of the UTF-8 sequence (RFC 3629) at s, 1 to 4; 0 where it is not one. `bytes` is what there
 * is. */
unsigned utf8_step(const char *s, size_t bytes);
bool utf8_valid(const char *s, size_t bytes);

/* Copies into dst, at most size - 1 bytes, with control characters, stray bytes and bidirectional
 * marks as \xNN, so that foreign names can be shown; too long ends in "...". Returns dst. */
char *text_escape(char *dst, size_t size, const char *src, size_t bytes);

/* Shortest decimal text that reads back to the same double; `dst` of NUMBER_SIZE. Returns dst. */
#define NUMBER_SIZE 32
char *number_print(double value, char *dst);
/* Decimal, optional sign, fraction and exponent, nothing else (no hex, inf, nan, space). False
 * otherwise; a value beyond double gives infinity and true. */
bool number_read(const char *s, double *out);

#endif

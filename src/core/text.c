/* text.c - growing strings, UTF-8, safe display, and locale-free numbers.
 *
 * Numbers go through the C locale's strtod_l and, for printing, a per-thread switch to that locale:
 * setlocale of the host program (a decimal comma, say) cannot change what a file means. glibc hands
 * the "C" locale out without allocating. The shortest text is found by trying 1 to 17 digits: at
 * most 17 prints, and no second algorithm to trust. */
#include "text.h"

#include <locale.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` bytes and the NUL. */
static bool text_reserve(text_buffer *t, size_t more)
{
    if (t->failed) return false;
    if (more < t->size - t->used) return true;
    size_t size = t->size ? t->size : 256;
    while (size - t->used <= more) {
        if (size > SIZE_MAX / 2) {
            t->failed = true;
            return false;
        }
        size *= 2;
    }
    char *data = realloc(t->data, size);
    if (!data) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->size = size;
    return true;
}

void text_add_bytes(text_buffer *t, const char *data, size_t bytes)
{
    if (!text_reserve(t, bytes)) return;
    if (bytes) memcpy(t->data + t->used, data, bytes);
    t->used += bytes;
    t->data[t->used] = '\0';
}

void text_add(text_buffer *t, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        t->failed = true;
    else if (text_reserve(t, (size_t)n)) {
        vsnprintf(t->data + t->used, (size_t)n + 1, fmt, again);
        t->used += (size_t)n;
    }
    va_end(again);
}

void text_release(text_buffer *t)
{
    free(t->data);
    *t = (text_buffer){0};
}

unsigned utf8_step(const char *s, size_t bytes)
{
    const unsigned char *u = (const unsigned char *)s;
    if (bytes == 0) return 0;
    if (u[0] < 0x80) return 1;
    const unsigned n = u[0] >= 0xC2 && u[0] <= 0xDF   ? 2
                       : (u[0] & 0xF0) == 0xE0        ? 3
                       : u[0] >= 0xF0 && u[0] <= 0xF4 ? 4
                                                      : 0;
    if (n == 0 || n > bytes) return 0;
    for (unsigned i = 1; i < n; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    if (u[0] == 0xE0 && u[1] < 0xA0) return 0; /* longer than needed */
    if (u[0] == 0xED && u[1] > 0x9F) return 0; /* surrogate */
    if (u[0] == 0xF0 && u[1] < 0x90) return 0;
    if (u[0] == 0xF4 && u[1] > 0x8F) return 0; /* beyond U+10FFFF */
    return n;
}

bool utf8_valid(const char *s, size_t bytes)
{
    while (bytes > 0) {
        const unsigned n = utf8_step(s, bytes);
        if (n == 0) return false;
        s += n;
        bytes -= n;
    }
    return true;
}

/* Control characters of C0, DEL and C1, and the marks that reorder a line of text (U+202A-E,
 * U+2066-9). */
static bool is_unsafe(const unsigned char *u, unsigned n)
{
    if (n == 1) return u[0] < 0x20 || u[0] == 0x7F;
    if (n == 2) return u[0] == 0xC2 && u[1] < 0xA0;
    if (n == 3 && u[0] == 0xE2 && u[1] == 0x80) return u[2] >= 0xA8 && u[2] <= 0xAE;
    return n == 3 && u[0] == 0xE2 && u[1] == 0x81 && u[2] >= 0xA6 && u[2] <= 0xA9;
}

char *text_escape(char *dst, size_t size, const char *src, size_t bytes)
{
    size_t used = 0, fits = 0; /* `fits`: where "..." would still go behind */
    for (size_t i = 0; i < bytes;) {
        const unsigned char *u = (const unsigned char *)src + i;
        const unsigned n = utf8_step(src + i, bytes - i);
        const bool is_plain = n > 0 && !is_unsafe(u, n);
        const unsigned take = n > 0 ? n : 1, need = is_plain ? n : 4 * take;
        if (used + need + 1 > size) {
            if (size >= 4) {
                memcpy(dst + fits, "...", 3);
                used = fits + 3;
            }
            break;
        }
        for (unsigned k = 0; k < take; k++) {
            if (is_plain)
                dst[used++] = src[i + k];
            else
                used += (size_t)snprintf(dst + used, 5, "\\x%02x", u[k]);
        }
        if (used + 4 <= size) fits = used;
        i += take;
    }
    if (size) dst[used] = '\0';
    return dst;
}

static locale_t c_locale(void)
{
    return newlocale(LC_ALL_MASK, "C",
                     (locale_t)0); /* a constant of glibc: neither allocated nor freed */
}

char *number_print(double value, char *dst)
{
    const locale_t c = c_locale(), old = uselocale(c);
    int digits = 1;
    for (; digits <= 17; digits++) {
        snprintf(dst, NUMBER_SIZE, "%.*e", digits - 1, value);
        if (strtod_l(dst, NULL, c) == value) break;
    }
    /* As people write it: 10, not 1e+01; 0.0001, not 1e-04. */
    const char *e = strchr(dst, 'e');
    const int exponent = e ? atoi(e + 1) : 0;
    if (e && exponent >= -4 && exponent < 15)
        snprintf(dst, NUMBER_SIZE, "%.*f", digits - 1 > exponent ? digits - 1 - exponent : 0,
                 value);
    else if (e)
        snprintf(dst, NUMBER_SIZE, "%.*g", digits, value);
    uselocale(old);
    return dst;
}

bool number_read(const char *s, double *out)
{
    const char *p = s;
    if (*p == '-' || *p == '+') p++;
    size_t digits = strspn(p, "0123456789");
    p += digits;
    if (*p == '.') {
        const size_t fraction = strspn(++p, "0123456789");
        digits += fraction;
        p += fraction;
    }
    if (digits == 0) return false;
    if (*p == 'e' || *p == 'E') {
        p++;
        if (*p == '-' || *p == '+') p++;
        const size_t exponent = strspn(p, "0123456789");
        if (exponent == 0) return false;
        p += exponent;
    }
    if (*p) return false;
    *out = strtod_l(s, NULL, c_locale()) + 0.0; /* -0 becomes 0 */
    return true;
}

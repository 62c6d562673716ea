/* arena.c - bump allocation with a measuring mode (see arena.h).
 *
 * Sizes that wrap saturate while measuring: the peak then is a number no allocation grants, and the
 * fault shows where memory is asked for, with a message, instead of as a small block. */
#include "arena.h"

#include "checked.h"

#include <assert.h>
#include <stdint.h>

void *arena_take(arena *a, size_t bytes, size_t align)
{
    assert(align > 0 && (align & (align - 1)) == 0);
    size_t at = SIZE_MAX, end = SIZE_MAX;
    if (checked_add(a->used, align - 1, &at)) {
        at &= ~(align - 1);
        if (!checked_add(at, bytes, &end)) end = SIZE_MAX;
    }
    if (a->base && end > a->size) {
        assert(!"arena: more than was measured"); /* the measuring pass ran the same code */
        return NULL; /* a certain stop at the first use, where NDEBUG leaves out the line above */
    }
    a->used = end;
    if (a->used > a->peak) a->peak = a->used;
    return a->base ? a->base + at : NULL;
}

void arena_reset(arena *a)
{
    a->used = 0;
}

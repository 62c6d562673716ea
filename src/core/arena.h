/* arena.h - a region handed out front to back and taken back all at once.
 *
 * With base == NULL it measures: nothing is touched, only `used` and `peak` grow. Running the same
 * code twice, first measuring, then on a block of `peak` bytes, leaves no second formula to drift.
 */
#ifndef CORE_ARENA_H
#define CORE_ARENA_H

#include <stddef.h>

typedef struct {
    unsigned char *base; /* borrowed; NULL measures */
    size_t size, used, peak;
} arena;

/* `align` is a power of two. NULL while measuring. Asking for more than was measured is our bug. */
void *arena_take(arena *a, size_t bytes, size_t align);
void arena_reset(arena *a);

#endif

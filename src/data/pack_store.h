/* pack_store.h - what has been decoded: in memory, in the parts of OUTPUT.part, and at last in the
 * pack. */
#ifndef DATA_PACK_STORE_H
#define DATA_PACK_STORE_H

#include "pack_input.h"

typedef struct pack_store pack_store;

/* Makes and locks OUTPUT.part, and takes up the parts that an earlier run on the same input left
 * there; others are removed. LOCKED, CANTCREAT, PERM, IO, NOMEM. */
ddpm_status pack_store_open(const pack_input *in, const char *output, pack_store **out);
/* Accepts NULL. OUTPUT.part stays where it holds parts, unless is_done. */
void pack_store_close(pack_store *st, bool is_done);

int64_t pack_store_decided(
    const pack_store *st); /* images of the input, from the first, taken or rejected */
int64_t pack_store_taken(const pack_store *st);
int64_t pack_store_rejected(const pack_store *st);
/* Rejection i: which image, and why. */
const char *pack_store_reason(const pack_store *st, int64_t i, int64_t *image);

/* Where the next images go: room for *count of them, at least 1. */
uint8_t *pack_store_room(pack_store *st, int64_t *count);
/* Takes the first `count` of them: those with reasons[i] NULL stay, the others are noted.
 * reasons[i] become the store's. NOMEM. */
ddpm_status pack_store_take(pack_store *st, int64_t count, char **reasons);
/* Writes what is in memory as a part, when there is something, it is full, or `now`, or ten seconds
 * old. */
ddpm_status pack_store_flush(pack_store *st, bool now);

/* The pack itself: one file, or a folder of shards where it has more than shard_bytes. STOPPED when
 * *stop. */
ddpm_status pack_store_write(pack_store *st, uint64_t shard_bytes, const volatile int *stop,
                             uint64_t *bytes);

#endif

/* pack_pool.h - decoding processes at work in parallel. */
#ifndef DATA_PACK_POOL_H
#define DATA_PACK_POOL_H

#include "pack_input.h"

typedef struct pack_pool pack_pool;

/* Threads of this process, each with a decoder child of its own (image.h). threads 0: all cores.
 * NOMEM. */
ddpm_status pack_pool_create(const pack_input *in, int threads, int fit, pack_pool **out);
void pack_pool_free(pack_pool *p); /* accepts NULL */
/* Whether the system call filter holds in every child. */
bool pack_pool_is_confined(const pack_pool *p);

/* Decodes images first .. first+count-1 into images [count, H, W, C]; reasons[i] (malloc'd) where
 * image i is rejected. Ends early when *stop (may be NULL) is set: images first .. first+*done-1
 * are done in every case. `bar` is kept up to date. */
ddpm_status pack_pool_run(pack_pool *p, int64_t first, int64_t count, uint8_t *images,
                          char **reasons, const volatile int *stop, progress *bar, int64_t *done);

#endif

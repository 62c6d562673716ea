/* image_child.h - the decoder's process as pack_pool.c uses it: several small files in one turn. */
#ifndef DATA_IMAGE_CHILD_H
#define DATA_IMAGE_CHILD_H

#include "image.h"

#include <stdbool.h>

enum { IMAGE_TURN = 16, IMAGE_REASON = 240 };

typedef struct {
    const void *file;
    size_t bytes;       /* 1 or more; all of a turn together at most 256 MiB */
    uint8_t *dst;       /* [height, width, channels]; written where status is OK */
    ddpm_status status; /* OK or FORMAT */
    char reason[IMAGE_REASON];
} image_job;

/* Decodes and fits n files, 1 .. IMAGE_TURN; each job gets its own status. NOMEM where no child can
 * be started. */
ddpm_status image_child_decode_turn(image_child *c, image_job *jobs, int n, int height, int width,
                                    int channels, int fit);

/* Whether the system call filter holds in the child (sandbox.h). */
bool image_child_is_confined(const image_child *c);

#endif

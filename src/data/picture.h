/* picture.h - PNG grids and the animation, for people to look at. */
#ifndef DATA_PICTURE_H
#define DATA_PICTURE_H

#include "ddpm/status.h"

#include <stdint.h>

/* images U8 [n,h,w,c], c 1 or 3, into rows of `columns` (0: nearly square), 2 pixels apart, enlarged by whole
 * numbers until the grid is at least 512 wide. Committed whole. CANTCREAT, IO, NOMEM, SHAPE above 2^28 pixels. */
ddpm_status picture_grid(const char *path, const uint8_t *images, int n, int h, int w, int c, int columns);

/* An animation of such grids: frames are added, then committed. Animated WebP where built with libwebpmux, else
 * picture_animation_create returns DDPM_OK with *out NULL and the other calls accept NULL. */
typedef struct picture_animation picture_animation;
ddpm_status picture_animation_create(const char *path, int n, int h, int w, int c, int columns,
                                     picture_animation **out);
ddpm_status picture_animation_add(picture_animation *a, const uint8_t *images, int milliseconds);
ddpm_status picture_animation_finish(picture_animation *a); /* frees a in every case */
void picture_animation_abandon(picture_animation *a);

#endif

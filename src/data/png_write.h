/* png_write.h - pixels to PNG bytes. */
#ifndef DATA_PNG_WRITE_H
#define DATA_PNG_WRITE_H

#include "ddpm/status.h"

#include <stddef.h>
#include <stdint.h>

/* pixels U8 [h,w,c], c 1 or 3, to a whole PNG file: *png malloc'd, the caller frees it. The bytes
 * depend on the pixels and zlib's version alone. SHAPE: a side below 1 or above 2^24, more than
 * 2^28 pixels; NOMEM. */
ddpm_status png_encode(const uint8_t *pixels, int h, int w, int c, uint8_t **png, size_t *bytes);

#endif

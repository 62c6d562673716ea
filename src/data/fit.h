/* fit.h - an image to the pack's size: kept, cropped, padded or refused; and the reductions for it.
 */
#ifndef DATA_FIT_H
#define DATA_FIT_H

#include "ddpm/status.h"

#include <stdint.h>

enum fit_filter { FIT_BOX, FIT_BICUBIC };

/* src [sh, sw, c] to dst [h, w, c] by a filter whose support grows with the reduction
 * (antialiased), in 8-bit steps with 22-bit weights: the values of Pillow's Image.resize. NOMEM. */
ddpm_status fit_resize(const uint8_t *src, int sh, int sw, int c, uint8_t *dst, int h, int w,
                       enum fit_filter filter);

/* src [sh, sw, c] to dst [h, w, c] by `fit` (enum pack_fit of pack.h). FORMAT where it is REFUSE
 * and the size differs, NOMEM. */
ddpm_status fit_image(const uint8_t *src, int sh, int sw, int c, uint8_t *dst, int h, int w,
                      int fit);

/* n pixels of 1 .. 4 channels (grey, grey+alpha, RGB, RGBA) to 1 or 3, alpha composed on black;
 * grey of RGB is 0.299 R + 0.587 G + 0.114 B. dst may be src where `to` <= `from`. */
void fit_channels(const uint8_t *src, int from, uint8_t *dst, int to, int64_t n);

#endif

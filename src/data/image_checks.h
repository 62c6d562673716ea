/* image_checks.h - what stands between a stranger's file and stb_image. All functions are
 * memory-safe on any bytes. */
#ifndef DATA_IMAGE_CHECKS_H
#define DATA_IMAGE_CHECKS_H

#include "image.h"

enum {
    IMAGE_MAX_SIDE = 16384,
    IMAGE_MAX_AREA = 1 << 26,
    IMAGE_MAX_FILE = 256 << 20,
    IMAGE_MAX_SCANS = 64
};

/* Checks a whole PNG. With `plain`, also hands out a PNG of the same pixels made by us (malloc'd):
 * no chunks but the needed ones, and one IDAT of stored blocks, so that no compressed byte of the
 * file reaches the decoder. FORMAT with reason and offset, NOMEM. */
ddpm_status png_check(const uint8_t *file, size_t bytes, image_info *info, uint8_t **plain,
                      size_t *plain_bytes);

/* Checks a whole JPEG, its entropy-coded data to the last bit included: baseline, extended or
 * progressive Huffman, 8 bits, 1 or 3 components. FORMAT with reason and offset, NOMEM. */
ddpm_status jpeg_check(const uint8_t *file, size_t bytes, image_info *info);

/* The decoder itself (stb_image), for bytes that passed the checks: *pixels malloc'd [info's H, W,
 * channels], to be freed with free. FORMAT where it disagrees with the checks. */
ddpm_status stb_decode(const uint8_t *file, size_t bytes, const image_info *info, uint8_t **pixels);

#endif

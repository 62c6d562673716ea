/* image.h - PNG and JPEG bytes to pixels, in sandboxed child processes: the only unit that includes stb_image.
 *
 * A child has no file or network access (seccomp: read, write, memory, exit on two pipes), a memory limit and a CPU
 * limit; it serves many images, and dies with its parent. Before stb sees a byte, our own checks walk the file: PNG
 * signature, every chunk's length and CRC32, IHDR fields, side <= 16384, area <= 2^26, PLTE bounds, IDAT present and its
 * zlib stream of exactly the right inflated size with a right Adler32, IEND last; JPEG SOI..EOI, segment lengths, SOF
 * dimensions, at most 64 scans, entropy data ended by EOI. A palette index beyond PLTE is rejected. 8-bit API only. */
#ifndef DATA_IMAGE_H
#define DATA_IMAGE_H

#include "ddpm/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int height, width, channels; /* channels of the file: 1 grey, 2 grey+alpha, 3 RGB, 4 RGBA */
} image_info;

/* The checks alone, in this process; memory-safe on any bytes. FORMAT with the reason and the byte offset. */
ddpm_status image_check(const void *file, size_t bytes, image_info *info);
/* Decodes in this process, no sandbox (for the child itself and the fuzzer): checks first. *pixels malloc'd
 * [H,W,channels]; channels 1 or 3, alpha composed on black, grey/RGB converted. */
ddpm_status image_decode(const void *file, size_t bytes, int channels, image_info *info, uint8_t **pixels);
/* Decode plus fit to (height, width) by `fit` (enum pack_fit): what the child does for one file. dst [height,width,channels]. */
ddpm_status image_decode_fit(const void *file, size_t bytes, int height, int width, int channels, int fit, uint8_t *dst);

/* A sandboxed child. image_child_decode sends a file's bytes and waits for its pixels; a child that dies or
 * exceeds its limits is FORMAT for that file ("the decoder ran out of its 256 MiB") and is started anew. */
typedef struct image_child image_child;
ddpm_status image_child_start(image_child **out);
void image_child_stop(image_child *c); /* accepts NULL */
ddpm_status image_child_decode(image_child *c, const void *file, size_t bytes, int height, int width,
                               int channels, int fit, uint8_t *dst);

#endif

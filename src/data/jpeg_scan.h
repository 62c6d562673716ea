/* jpeg_scan.h - between image_jpeg.c, which walks the markers, and jpeg_scan.c, which walks the
 * bits of a scan. */
#ifndef DATA_JPEG_SCAN_H
#define DATA_JPEG_SCAN_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JPEG_FAST_BITS = 9 };

typedef struct {
    bool is_defined;
    uint8_t values[256];
    uint16_t fast[1 << JPEG_FAST_BITS]; /* length << 8 | value; 0: the code is longer */
    int32_t first[17], count[17],
        offset[17]; /* first code of a length, how many, where their values begin */
} jpeg_huffman;

typedef struct {
    int id, h, v, quant;
    int blocks_w, blocks_h; /* of this component alone */
    int stride, rows;       /* blocks with the padding of interleaved units */
    uint64_t *
        nonzero; /* progressive: [rows, stride], bit k: coefficient k (zigzag) is not zero; owned */
    int8_t low[64];         /* bits of each coefficient still to come; -1: none has come yet */
    int dc_table, ac_table; /* of the current scan */
    int dc;                 /* prediction */
} jpeg_component;

typedef struct {
    const uint8_t *file;
    size_t bytes, at;
    bool is_progressive, has_frame;
    int width, height, n_components, h_max, v_max, units_w,
        units_h; /* units: MCUs of an interleaved scan */
    jpeg_component component[3];
    bool has_quant[4];
    jpeg_huffman dc[4], ac[4];
    int restart; /* units between restart markers; 0: none */
    int n_scans;
    /* the current scan */
    int order[3], n_order, start, end, high, low;
} jpeg;

/* Walks the entropy-coded data at j->at to the marker that ends it and leaves j->at there. FORMAT
 * where the data ends early, goes on after the last unit, holds a code, length or run that cannot
 * be, or restarts at a wrong place. */
ddpm_status jpeg_scan_walk(jpeg *j);

#endif

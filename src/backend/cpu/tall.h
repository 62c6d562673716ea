/* tall.h - c[m,n] += a^T b, where a [rows,m] and b [rows,n] have many more rows than columns: the
 * gradient of few weights from many pixels. c has too few tiles to share out, so the rows are. */
#ifndef CPU_TALL_H
#define CPU_TALL_H

#include "cpu.h"

struct tall_piece {
    int64_t rows;
    const float *a, *b;
    int64_t a_row, b_row; /* from one row to the next */
};

struct tall {
    int64_t m, n;
    int64_t pieces; /* of the rows; how they are cut depends on shapes alone */
    /* The i-th, which may have been laid out in `room` [room_floats]. */
    struct tall_piece (*piece)(const void *context, int64_t i, float *room);
    const void *context;
    size_t room_floats;
    float *c;
    int64_t c_row;
};

enum {
    TALL_ROWS = 64
}; /* of a piece, at most: of a and b 64 columns each then fit the first-level cache */

/* Whether c is small enough for every group of pieces to have sums of its own. */
bool tall_fits(int64_t m, int64_t n);
/* Of scratch, for t's sizes; the rest of t is not read. */
size_t tall_floats(const ddpm_backend *be, const struct tall *t);
/* Groups' sums are added to c in their order, so the bits do not depend on the threads. */
void tall_run(ddpm_backend *be, const struct tall *t, float *scratch);

#endif

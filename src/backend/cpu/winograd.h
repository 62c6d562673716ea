/* winograd.h - the transforms of F(4x4, 3x3), apart from the convolution that uses them.
 *
 * A tile is 4x4 pixels of the result and the 6x6 pixels under it. With transformed pixels V, weights U and results M, each
 * an array over 36 points p:
 *     forward   M[p] = V[p] U[p],   y = A^T M A        data   the same with the kernel turned round
 *     filter    S[p] = W[p]^T V[p], dw = G^T S G,      W = A dy A^T
 * [Lavin & Gray 2016; Barabasz et al. 2020 on the choice of points]
 *
 * Channels are innermost everywhere and come in multiples of 16. */
#ifndef CPU_WINOGRAD_H
#define CPU_WINOGRAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WINOGRAD_TILE = 4, WINOGRAD_POINTS = 36 };

/* Where a tile lies: its first pixel in the image (may be outside), and which of its size x size pixels are inside. */
struct winograd_patch {
    int64_t row, column; /* strides, in floats */
    int row_begin, row_end, column_begin, column_end;
};

struct winograd {
    /* to[p * point + c / width * panel + c % width], p < 36, from the 6x6 patch at x (address of its first pixel, even where that
     * is outside). width: of the panels that a product reads, a multiple of 16; the number of channels for rows of all of them. */
    void (*input)(const float *x, const struct winograd_patch *at, int64_t channels, float *to, int64_t point, int64_t width,
                  int64_t panel);
    /* to[p * point + c], p < 36, from the 4x4 patch of a gradient dy. */
    void (*gradient)(const float *dy, const struct winograd_patch *at, int64_t channels, float *to, int64_t point);
    /* y of the 4x4 patch = transform of from[p * point + k] (+ offset[k]) (+ add, laid out as y; may be y). */
    void (*output)(const float *from, int64_t point, int64_t channels, const float *offset, const float *add,
                   const struct winograd_patch *at, float *y);
    /* Weights of 16 output channels and one input channel: u[p * point + j] for the j-th of them. w is the first one's centre-less
     * corner w[0][0]; `next` leads to the next output channel, `tap` to the next tap; turned: from the last tap to the first. */
    void (*weights)(const float *w, int64_t next, int64_t tap, bool turned, float *u, int64_t point);
    /* dw[tap * taps + c] += transform of s[p * point + c]. */
    void (*weight_gradient)(const float *s, int64_t point, int64_t channels, float *dw, int64_t tap);
};
const struct winograd *winograd(void);

/* Those of winograd_avx512.c, winograd_avx2.c and winograd_plain.c, all the same to the bit; the first two are NULL where this
 * processor has no such instructions. */
const struct winograd *winograd_avx512(void);
const struct winograd *winograd_avx2(void);
const struct winograd *winograd_plain(void);

#endif

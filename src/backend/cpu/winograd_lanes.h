/* winograd_lanes.h - the transforms of F(4x4, 3x3) at the points 0, +-1/sqrt(2), +-sqrt(2) and infinity, written once for every
 * vector width. The including file defines TARGET, the function attribute of its instruction set, and LANES, the floats of a
 * vector; a wider vector type than the registers would go through memory in pieces, three times slower.
 *
 * The usual points 0, +-1, +-2 need only small integers but lose a digit more: with 256 random channels the worst error is 1.1e-5
 * of the largest result, against 3e-6 here, where powers of the points stay near 1. As a^2 = 1/2 and b^2 = 2, each pair
 * of points +-p shares an even and an odd part. F(2x2,3x3) would be another digit better and 1.8 times slower.
 *
 * Each transform goes over LANES channels at once, first down the columns of a patch into a small array, then along its rows.
 * Multiplications by the constants below replace no division: 1/1.5 and 1/6 go to the weights, which are few. No instruction set
 * fuses a multiplication with an addition here, so all give the same bits. */
#ifndef CPU_WINOGRAD_LANES_H
#define CPU_WINOGRAD_LANES_H

#include "winograd.h"

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4))); /* in memory, anywhere */

#define INLINE static inline TARGET __attribute__((always_inline))
#define N      6

static const float A = 0.70710678118654752f, B = 1.41421356237309505f;
static const float A3 = 0.35355339059327376f, B3 = 2.82842712474619010f; /* A^3, B^3 */

/* B^T d, six values `step` apart */
INLINE void input_line(const lanes *d, int step, lanes *out, int out_step)
{
    const lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const lanes even_a = d4 - 2.0f * d2, odd_a = A * (d3 - 2.0f * d1);
    const lanes even_b = d4 - 0.5f * d2, odd_b = B * (d3 - 0.5f * d1);
    out[0] = d0 - 2.5f * d2 + d4;
    out[out_step] = even_a + odd_a;
    out[2 * out_step] = even_a - odd_a;
    out[3 * out_step] = even_b + odd_b;
    out[4 * out_step] = even_b - odd_b;
    out[5 * out_step] = d1 - 2.5f * d3 + d5;
}

/* A dy: six values from four */
INLINE void gradient_line(const lanes *d, int step, lanes *out, int out_step)
{
    const lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    const lanes even_a = d0 + 0.5f * d2, odd_a = A * d1 + A3 * d3;
    const lanes even_b = d0 + 2.0f * d2, odd_b = B * d1 + B3 * d3;
    out[0] = d0;
    out[out_step] = even_a + odd_a;
    out[2 * out_step] = even_a - odd_a;
    out[3 * out_step] = even_b + odd_b;
    out[4 * out_step] = even_b - odd_b;
    out[5 * out_step] = d3;
}

/* A^T m: four values from six */
INLINE void output_line(const lanes *m, int step, lanes *out, int out_step)
{
    const lanes sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const lanes sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum_a + sum_b;
    out[out_step] = A * difference_a + B * difference_b;
    out[2 * out_step] = 0.5f * sum_a + 2.0f * sum_b;
    out[3 * out_step] = A3 * difference_a + B3 * difference_b + m[5 * step];
}

/* G g: six values from three; 1 / M'(p) of the points is 1, -1/1.5, 1/6 */
INLINE void weight_line(const lanes *g, int step, lanes *out, int out_step)
{
    const lanes g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const lanes even_a = (g0 + 0.5f * g2) * (-2.0f / 3), odd_a = g1 * (A * (-2.0f / 3));
    const lanes even_b = (g0 + 2.0f * g2) * (1.0f / 6), odd_b = g1 * (B * (1.0f / 6));
    out[0] = g0;
    out[out_step] = even_a + odd_a;
    out[2 * out_step] = even_a - odd_a;
    out[3 * out_step] = even_b + odd_b;
    out[4 * out_step] = even_b - odd_b;
    out[5 * out_step] = g2;
}

/* G^T s: three values from six */
INLINE void weight_gradient_line(const lanes *s, int step, lanes *out, int out_step)
{
    const lanes sum_a = (s[step] + s[2 * step]) * (-2.0f / 3), sum_b = (s[3 * step] + s[4 * step]) * (1.0f / 6);
    const lanes difference_a = (s[step] - s[2 * step]) * (A * (-2.0f / 3));
    const lanes difference_b = (s[3 * step] - s[4 * step]) * (B * (1.0f / 6));
    out[0] = s[0] + sum_a + sum_b;
    out[out_step] = difference_a + difference_b;
    out[2 * out_step] = 0.5f * sum_a + 2.0f * sum_b + s[5 * step];
}

/* A patch of size x size pixels of 16 channels; zero outside the image. */
INLINE void load_patch(const float *x, const struct winograd_patch *at, const int size, lanes *out)
{
    if (at->row_begin == 0 && at->column_begin == 0 && at->row_end == size && at->column_end == size) {
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++)
                out[i * size + j] = *(const loose *)(x + i * at->row + j * at->column);
        return;
    }
    for (int i = 0; i < size * size; i++)
        out[i] = (lanes){0};
    for (int i = at->row_begin; i < at->row_end; i++)
        for (int j = at->column_begin; j < at->column_end; j++)
            out[i * size + j] = *(const loose *)(x + i * at->row + j * at->column);
}

static TARGET void input(const float *x, const struct winograd_patch *at, int64_t channels, float *to, int64_t point,
                               int64_t width, int64_t panel)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        float *out = to + c / width * panel + c % width;
        lanes d[N * N], t[N * N], v[N];
        load_patch(x + c, at, N, d);
#pragma GCC unroll 6
        for (int j = 0; j < N; j++)
            input_line(d + j, N, t + j, N);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++) {
            input_line(t + i * N, 1, v, 1);
            for (int j = 0; j < N; j++)
                *(loose *)(out + (i * N + j) * point) = v[j];
        }
    }
}

static TARGET void gradient(const float *dy, const struct winograd_patch *at, int64_t channels, float *to, int64_t point)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes d[4 * 4], t[N * 4], v[N];
        load_patch(dy + c, at, 4, d);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            gradient_line(d + j, 4, t + j, 4);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++) {
            gradient_line(t + i * 4, 1, v, 1);
            for (int j = 0; j < N; j++)
                *(loose *)(to + (i * N + j) * point + c) = v[j];
        }
    }
}

static TARGET void output(const float *from, int64_t point, int64_t channels, const float *offset, const float *add,
                          const struct winograd_patch *at, float *y)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes m[N * N], t[4 * N], r[4];
        const lanes plus = offset ? *(const loose *)(offset + c) : (lanes){0};
        for (int p = 0; p < N * N; p++)
            m[p] = *(const loose *)(from + p * point + c);
#pragma GCC unroll 6
        for (int j = 0; j < N; j++)
            output_line(m + j, N, t + j, N);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (i >= at->row_end) break;
            output_line(t + i * N, 1, r, 1);
            for (int j = 0; j < 4 && j < at->column_end; j++) {
                const int64_t place = i * at->row + j * at->column + c;
                lanes value = r[j] + plus;
                if (add) value += *(const loose *)(add + place);
                *(loose *)(y + place) = value;
            }
        }
    }
}

static TARGET void weights(const float *w, int64_t next, int64_t tap, bool turned, float *u, int64_t point)
{
    for (int first = 0; first < 16; first += LANES) {
        lanes g[9], t[N * 3], v[N];
        for (int i = 0; i < 9; i++) {
            const float *from = w + first * next + (turned ? 8 - i : i) * tap;
            float gathered[LANES];
            for (int j = 0; j < LANES; j++)
                gathered[j] = from[j * next];
            g[i] = *(const loose *)gathered;
        }
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++)
            weight_line(g + j, 3, t + j, 3);
#pragma GCC unroll 6
        for (int i = 0; i < N; i++) {
            weight_line(t + i * 3, 1, v, 1);
            for (int j = 0; j < N; j++)
                *(loose *)(u + (i * N + j) * point + first) = v[j];
        }
    }
}

static TARGET void weight_gradient(const float *s, int64_t point, int64_t channels, float *dw, int64_t tap)
{
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes m[N * N], t[3 * N], r[3];
        for (int p = 0; p < N * N; p++)
            m[p] = *(const loose *)(s + p * point + c);
#pragma GCC unroll 6
        for (int j = 0; j < N; j++)
            weight_gradient_line(m + j, N, t + j, N);
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++) {
            weight_gradient_line(t + i * N, 1, r, 1);
            for (int j = 0; j < 3; j++)
                *(loose *)(dw + (i * 3 + j) * tap + c) += r[j];
        }
    }
}

static const struct winograd transforms = {.input = input,
                                           .gradient = gradient,
                                           .output = output,
                                           .weights = weights,
                                           .weight_gradient = weight_gradient};

#endif

/* conv.cu - conv2d, conv2d_bwd_data, conv2d_bwd_filter as matrix products whose operands are gathered on the way.
 *
 * The fallback for what cuDNN has no engine for, or for its absence; CI runs it on the CPU. product.cuh is the core.
 *
 *                rows             columns          inner dimension
 *   forward      pixels of y      channels of y    taps x channels of x
 *   data         pixels of x      channels of x    taps x channels of y
 *   filter       channels of y    taps x channels of x    pixels of y
 *
 * Mapping  a block takes a 64 x 64 part of the result; blocks that share rows are neighbours in time. A table in shared
 *   memory says where each pixel of the tile lies. Packs of 16 bytes go along channels where those are a multiple of
 *   it, single elements elsewhere (the first and last convolution).
 * Cost  2 N Ho Wo K C kh kw operations at the rate of plain cores. Memory: results once; an operand once per 64 rows or
 *   columns of the other, from the L2 cache after the first. Data with stride 2 multiplies three zeros of four.
 * Order  forward and data sum over taps, then channels. Filter sums a part of the pixels in a block, as many parts as
 *   fill a GPU, and a second kernel adds the parts in order: the number of parts depends on shapes alone.
 * Rejected  an explicit matrix of patches (9 times the memory traffic); data with stride 2 by parity of pixels (four
 *   kernels' worth of code for three layers of a network). */
#include "product.cuh"

static constexpr int64_t WANT_BLOCKS = 1024; /* of the filter pass: two rounds of 4 blocks on each of 132 processors */
static constexpr int64_t LEAST_PIXELS = 512; /* of a part: 16 steps, worth its sums' trip to memory and back */
static constexpr int ADD_THREADS = 256;

struct conv_shape {
    int64_t n, h, w, c, ho, wo, k;
    int kernel, stride, pad_top, pad_left;
    int64_t x_n, x_h, x_w; /* strides of x, dx */
    int64_t y_pixel;       /* of y, dy; y's pixels lie in a row */
    int64_t w_row;         /* of w, dw */
};

/* ---- gathering ---- */

/* A pixel of a tile: its image, and the source's pixel of tap (0, 0), which may lie in the padding. */
struct alignas(16) place {
    int64_t image;
    int h, w;
};

/* A row that no tap leads back into the image: they are 2 further at most. Not far, for it is multiplied by a row's stride. */
static constexpr int OUTSIDE = -8;

/* Images to gather from. Tap (u, v) of a place is the pixel (h + step u, w + step v) / 2^half, if whole: step 1, half 0
 * for x; step -1, half 1 where the stride is 2, for dy. */
struct source {
    int64_t image, row, column; /* strides */
    int h, w;
    int step, half; /* half is its own mask */
};

template <int VEC, class T>
__device__ __forceinline__ pack<T, VEC> load_tap(const T *x, const source &s, place at, int u, int v, int64_t channel,
                                                 bool is_inside)
{
    const int h = at.h + s.step * u, w = at.w + s.step * v;
    const int i = h >> s.half, j = w >> s.half;
    is_inside = is_inside && ((h | w) & s.half) == 0 && (unsigned)i < (unsigned)s.h && (unsigned)j < (unsigned)s.w;
    return load_pack<VEC>(x + at.image * s.image + i * s.row + j * s.column + channel, is_inside);
}

/* Pixel p of y, read in x. */
__device__ __forceinline__ place place_in_x(const conv_shape &s, int64_t p, int64_t end)
{
    place at = {0, OUTSIDE, OUTSIDE};
    if (p >= end) return at;
    const int64_t row = p / s.wo;
    at.image = row / s.ho;
    at.h = (int)(row - at.image * s.ho) * s.stride - s.pad_top;
    at.w = (int)(p - row * s.wo) * s.stride - s.pad_left;
    return at;
}

/* Pixel p of x, read in dy. */
__device__ __forceinline__ place place_in_y(const conv_shape &s, int64_t p)
{
    place at = {0, OUTSIDE, OUTSIDE};
    if (p >= s.n * s.h * s.w) return at;
    const int64_t row = p / s.w;
    at.image = row / s.h;
    at.h = (int)(row - at.image * s.h) + s.pad_top;
    at.w = (int)(p - row * s.w) + s.pad_left;
    return at;
}

/* The inner dimension of forward and data: taps, and `channels` in each, DEPTH at a time. Few channels are spaced to
 * the next power of two, 2^shift, and then several taps share a step. */
struct inner {
    int64_t channels;
    int taps, kernel, shift;
    int tap; /* of the step */
    int64_t channel;
};

/* Element k of the step. */
struct inner_place {
    int tap, u, v;
    int64_t channel;
    bool is_inside;
};

__device__ __forceinline__ inner inner_begin(int kernel, int64_t channels)
{
    int shift = 0;
    while ((1 << shift) < DEPTH && (1 << shift) < channels)
        shift++;
    return {channels, kernel * kernel, kernel, shift, 0, 0};
}

__device__ __forceinline__ int64_t inner_steps(const inner &d)
{
    return (d.channels + DEPTH - 1) / DEPTH * (((d.taps << d.shift) + DEPTH - 1) / DEPTH);
}

__device__ __forceinline__ void inner_next(inner &d)
{
    d.channel += DEPTH;
    if (d.channel < d.channels) return;
    d.channel = 0;
    d.tap += DEPTH >> d.shift;
}

__device__ __forceinline__ inner_place inner_at(const inner &d, int k)
{
    inner_place at;
    at.tap = d.tap + (k >> d.shift);
    at.u = d.kernel == 3 ? at.tap / 3 : 0;
    at.v = at.tap - at.u * d.kernel;
    at.channel = d.channel + (k & ((1 << d.shift) - 1));
    at.is_inside = at.tap < d.taps && at.channel < d.channels;
    return at;
}

/* The gathered operand of forward and data. */
template <int VEC, class T>
__device__ __forceinline__ void load_gathered(const T *x, const source &s, const place *places, inner_place at,
                                              pack<T, VEC> held[along_k<VEC>::PACKS])
{
#pragma unroll
    for (int i = 0; i < along_k<VEC>::PACKS; i++)
        held[i] = load_tap<VEC>(x, s, places[along_k<VEC>::row(i)], at.u, at.v, at.channel, at.is_inside);
}

/* ---- forward ---- */

/* What is added to the product; each may be NULL. residual may be y. */
template <class T> struct epilogue {
    const float *bias, *emb;
    int64_t emb_row;
    const T *residual;
    int64_t residual_pixel;
    bool residual_is_wide, y_is_wide;
};

template <class T>
__device__ __forceinline__ void finish_forward(const conv_shape &s, const epilogue<T> &e, const place *places,
                                               int64_t m0, int64_t k0, float sum[SUM_ROWS][SUM_COLUMNS], T *y)
{
    const int64_t k = k0 + sum_column(), left = s.k - k;
    float bias[SUM_COLUMNS] = {};
    if (e.bias) add_columns(e.bias + k, bias, left, false);
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++) {
        const int row = sum_row(i);
        if (places[row].h == OUTSIDE) continue;
        float *x = sum[i];
#pragma unroll
        for (int j = 0; j < SUM_COLUMNS; j++)
            x[j] += bias[j];
        if (e.emb) add_columns(e.emb + places[row].image * e.emb_row + k, x, left, false);
        if (e.residual) add_columns(e.residual + (m0 + row) * e.residual_pixel + k, x, left, e.residual_is_wide);
        store_columns(y + (m0 + row) * s.y_pixel + k, x, left, e.y_is_wide);
    }
}

template <class T, int VEC>
__global__ void __launch_bounds__(PRODUCT_THREADS)
    conv2d_kernel(conv_shape s, source from, const T *__restrict__ x, const T *__restrict__ w, epilogue<T> e, T *y)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(place, places, TILE);
    const int64_t n_columns = (s.k + TILE - 1) / TILE;
    const int64_t m0 = blockIdx.x / n_columns * TILE, k0 = blockIdx.x % n_columns * TILE;
    if (threadIdx.x < TILE) places[threadIdx.x] = place_in_x(s, m0 + threadIdx.x, s.n * s.ho * s.wo);
    __syncthreads();
    float sum[SUM_ROWS][SUM_COLUMNS];
    clear_sums(sum);
    pack<T, VEC> next_a[along_k<VEC>::PACKS], next_b[along_k<VEC>::PACKS];
    inner d = inner_begin(s.kernel, s.c);
    const int64_t steps = inner_steps(d);
    for (int64_t step = 0; step <= steps; step++) {
        if (step < steps) {
            const inner_place at = inner_at(d, along_k<VEC>::k());
            load_gathered<VEC>(x, from, places, at, next_a);
#pragma unroll
            for (int i = 0; i < along_k<VEC>::PACKS; i++) {
                const int64_t k = k0 + along_k<VEC>::row(i);
                next_b[i] = load_pack<VEC>(w + k * s.w_row + at.tap * s.c + at.channel, at.is_inside && k < s.k);
            }
            inner_next(d);
        }
        if (step > 0) product_step(a[(step - 1) % 2], b[(step - 1) % 2], sum);
        if (step < steps) {
            along_k<VEC>::put(a[step % 2], next_a);
            along_k<VEC>::put(b[step % 2], next_b);
        }
        __syncthreads();
    }
    finish_forward(s, e, places, m0, k0, sum, y);
}

/* ---- data ---- */

template <class T, int VEC>
__global__ void __launch_bounds__(PRODUCT_THREADS)
    conv2d_bwd_data_kernel(conv_shape s, source from, const T *__restrict__ dy, const T *__restrict__ w,
                           bool accumulates, bool dx_is_wide, T *__restrict__ dx)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(place, places, TILE);
    const int64_t n_columns = (s.c + TILE - 1) / TILE;
    const int64_t m0 = blockIdx.x / n_columns * TILE, c0 = blockIdx.x % n_columns * TILE;
    if (threadIdx.x < TILE) places[threadIdx.x] = place_in_y(s, m0 + threadIdx.x);
    __syncthreads();
    float sum[SUM_ROWS][SUM_COLUMNS];
    clear_sums(sum);
    pack<T, VEC> next_a[along_k<VEC>::PACKS], next_b[along_rows<VEC>::PACKS];
    inner d = inner_begin(s.kernel, s.k);
    const int64_t steps = inner_steps(d), c = c0 + along_rows<VEC>::row();
    for (int64_t step = 0; step <= steps; step++) {
        if (step < steps) {
            load_gathered<VEC>(dy, from, places, inner_at(d, along_k<VEC>::k()), next_a);
#pragma unroll
            for (int i = 0; i < along_rows<VEC>::PACKS; i++) {
                const inner_place at = inner_at(d, along_rows<VEC>::k(i));
                next_b[i] = load_pack<VEC>(w + at.channel * s.w_row + at.tap * s.c + c, at.is_inside && c < s.c);
            }
            inner_next(d);
        }
        if (step > 0) product_step(a[(step - 1) % 2], b[(step - 1) % 2], sum);
        if (step < steps) {
            along_k<VEC>::put(a[step % 2], next_a);
            along_rows<VEC>::put(b[step % 2], next_b);
        }
        __syncthreads();
    }
    const int64_t column = c0 + sum_column(), left = s.c - column;
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++) {
        const place at = places[sum_row(i)];
        if (at.h == OUTSIDE) continue;
        T *out = dx + at.image * s.x_n + (at.h - s.pad_top) * s.x_h + (at.w - s.pad_left) * s.x_w + column;
        if (accumulates) add_columns(out, sum[i], left, dx_is_wide);
        store_columns(out, sum[i], left, dx_is_wide);
    }
}

/* ---- filter ---- */

/* Where a block's sums go: to a part of its own, or where there is one part alone, added to dw. */
struct filter_split {
    int64_t pixels; /* of a part, a multiple of DEPTH */
    int64_t parts;
    float *out;
    int64_t out_row, out_part; /* strides */
    bool accumulates, out_is_wide;
};

template <class T, int VEC>
__global__ void __launch_bounds__(PRODUCT_THREADS)
    conv2d_bwd_filter_kernel(conv_shape s, source from, const T *__restrict__ x, const T *__restrict__ dy,
                             filter_split split)
{
    SHARED(product_tile, a, 2);
    SHARED(product_tile, b, 2);
    SHARED(place, places, 2 * DEPTH);
    typedef along_rows<VEC> fill;
    const int64_t width = s.kernel * s.kernel * s.c; /* columns: of dw's rows */
    const int64_t n_columns = (width + TILE - 1) / TILE, n_rows = (s.k + TILE - 1) / TILE;
    const int64_t column0 = blockIdx.x % n_columns * TILE, k0 = blockIdx.x / n_columns % n_rows * TILE;
    const int64_t part = blockIdx.x / n_columns / n_rows, all = s.n * s.ho * s.wo, begin = part * split.pixels;
    const int64_t end = begin + split.pixels < all ? begin + split.pixels : all;
    const int64_t steps = (end - begin + DEPTH - 1) / DEPTH, k = k0 + fill::row(), column = column0 + fill::row();
    const int64_t tap = column / s.c, channel = column - tap * s.c;
    const int u = (int)tap / s.kernel, v = (int)tap - u * s.kernel;
    if (threadIdx.x < DEPTH) places[threadIdx.x] = place_in_x(s, begin + threadIdx.x, end);
    __syncthreads();
    float sum[SUM_ROWS][SUM_COLUMNS];
    clear_sums(sum);
    pack<T, VEC> next_a[fill::PACKS], next_b[fill::PACKS];
    for (int64_t step = 0; step <= steps; step++) {
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < fill::PACKS; i++) {
                const int64_t p = begin + step * DEPTH + fill::k(i);
                next_a[i] = load_pack<VEC>(dy + p * s.y_pixel + k, p < end && k < s.k);
                const place at = places[step % 2 * DEPTH + fill::k(i)];
                next_b[i] = load_tap<VEC>(x, from, at, u, v, channel, column < width);
            }
        }
        if (step + 1 < steps && threadIdx.x < DEPTH)
            places[(step + 1) % 2 * DEPTH + threadIdx.x] = place_in_x(s, begin + (step + 1) * DEPTH + threadIdx.x, end);
        if (step > 0) product_step(a[(step - 1) % 2], b[(step - 1) % 2], sum);
        if (step < steps) {
            fill::put(a[step % 2], next_a);
            fill::put(b[step % 2], next_b);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < SUM_ROWS; i++) {
        const int64_t row = k0 + sum_row(i), at = column0 + sum_column(), left = row < s.k ? width - at : 0;
        float *out = split.out + part * split.out_part + row * split.out_row + at;
        if (split.accumulates) add_columns(out, sum[i], left, split.out_is_wide);
        store_columns(out, sum[i], left, split.out_is_wide);
    }
}

/* dw += the parts, in order. */
__global__ void __launch_bounds__(ADD_THREADS)
    add_parts_kernel(int64_t rows, int64_t width, int64_t n_parts, const float *__restrict__ parts, int64_t dw_row,
                     float *__restrict__ dw)
{
    const int64_t all = rows * width, step = (int64_t)gridDim.x * ADD_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * ADD_THREADS + threadIdx.x; i < all; i += step) {
        float sum = parts[i];
        for (int64_t part = 1; part < n_parts; part++)
            sum += parts[part * all + i];
        dw[i / width * dw_row + i % width] += sum;
    }
}

/* ---- launches ---- */

/* Between the pixels of a tensor whose pixels lie in a row: dense images, and for linear.cu the rows of a matrix. */
static int64_t pixel_stride(const ddpm_tensor *t)
{
    for (int i = 2; i >= 0; i--)
        if (t->dim[i] > 1) return t->stride[i];
    return t->dim[3];
}

static conv_shape shape_of(const ddpm_tensor *x, const ddpm_tensor *w, const ddpm_tensor *y, int stride, int pad_top,
                           int pad_left)
{
    conv_shape s = {};
    s.n = x->dim[0], s.h = x->dim[1], s.w = x->dim[2], s.c = x->dim[3];
    s.ho = y->dim[1], s.wo = y->dim[2], s.k = y->dim[3];
    s.kernel = (int)w->dim[1], s.stride = stride, s.pad_top = pad_top, s.pad_left = pad_left;
    s.x_n = x->stride[0], s.x_h = x->stride[1], s.x_w = x->stride[2];
    s.y_pixel = pixel_stride(y);
    s.w_row = w->stride[0];
    return s;
}

static source x_of(const conv_shape &s)
{
    return {s.x_n, s.x_h, s.x_w, (int)s.h, (int)s.w, 1, 0};
}

static source dy_of(const conv_shape &s)
{
    return {s.ho * s.wo * s.y_pixel, s.wo * s.y_pixel, s.y_pixel, (int)s.ho, (int)s.wo, -1, s.stride - 1};
}

static int64_t tiles_for(int64_t rows, int64_t columns)
{
    return ceil_div(rows, TILE) * ceil_div(columns, TILE);
}

static unsigned blocks_for(int64_t rows, int64_t columns, int64_t parts)
{
    return grid_of_all(tiles_for(rows, columns) * parts);
}

template <class T> static cudaError_t launch_forward(cudaStream_t stream, const struct conv2d_args *a)
{
    constexpr int WIDTH = pack_of<T>::width;
    const conv_shape s = shape_of(a->x, a->w, a->y, a->stride, a->pad_top, a->pad_left);
    epilogue<T> e = {};
    e.bias = floats_of(a->bias), e.emb = floats_of(a->emb), e.y_is_wide = rows_fit(a->y, 4);
    e.emb_row = a->emb ? a->emb->stride[0] : 0;
    if (a->residual) {
        e.residual = (const T *)a->residual->data;
        e.residual_pixel = pixel_stride(a->residual);
        e.residual_is_wide = rows_fit(a->residual, 4);
    }
    const bool is_packed = rows_fit(a->x, WIDTH) && rows_fit(a->w, WIDTH);
    return launch_kernel(is_packed ? conv2d_kernel<T, WIDTH> : conv2d_kernel<T, 1>,
                         blocks_for(s.n * s.ho * s.wo, s.k, 1), PRODUCT_THREADS, 0, stream, s, x_of(s),
                         (const T *)a->x->data, (const T *)a->w->data, e, (T *)a->y->data);
}

template <class T> static cudaError_t launch_data(cudaStream_t stream, const struct conv2d_bwd_data_args *a)
{
    constexpr int WIDTH = pack_of<T>::width;
    const conv_shape s = shape_of(a->dx, a->w, a->dy, a->stride, a->pad_top, a->pad_left);
    const bool is_packed = rows_fit(a->dy, WIDTH) && rows_fit(a->w, WIDTH);
    return launch_kernel(is_packed ? conv2d_bwd_data_kernel<T, WIDTH> : conv2d_bwd_data_kernel<T, 1>,
                         blocks_for(s.n * s.h * s.w, s.c, 1), PRODUCT_THREADS, 0, stream, s, dy_of(s),
                         (const T *)a->dy->data, (const T *)a->w->data, a->accumulate, rows_fit(a->dx, 4),
                         (T *)a->dx->data);
}

template <class T>
static cudaError_t launch_filter(cudaStream_t stream, const struct conv2d_bwd_filter_args *a, filter_split split)
{
    constexpr int WIDTH = pack_of<T>::width;
    const conv_shape s = shape_of(a->x, a->dw, a->dy, a->stride, a->pad_top, a->pad_left);
    const bool is_packed = rows_fit(a->x, WIDTH) && rows_fit(a->dy, WIDTH);
    return launch_kernel(is_packed ? conv2d_bwd_filter_kernel<T, WIDTH> : conv2d_bwd_filter_kernel<T, 1>,
                         blocks_for(s.k, s.kernel * s.kernel * s.c, split.parts), PRODUCT_THREADS, 0, stream, s,
                         x_of(s), (const T *)a->x->data, (const T *)a->dy->data, split);
}

extern "C" size_t scratch_conv2d(const struct conv2d_args *)
{
    return 0;
}

extern "C" cudaError_t launch_conv2d(cudaStream_t stream, const struct conv2d_args *a, void *)
{
    WITH_TYPE(a->y->dtype, T, return launch_forward<T>(stream, a));
}

extern "C" size_t scratch_conv2d_bwd_data(const struct conv2d_bwd_data_args *)
{
    return 0;
}

extern "C" cudaError_t launch_conv2d_bwd_data(cudaStream_t stream, const struct conv2d_bwd_data_args *a, void *)
{
    WITH_TYPE(a->dy->dtype, T, return launch_data<T>(stream, a));
}

/* How the filter pass is cut, with its parts in scratch. */
static filter_split split_of(const struct conv2d_bwd_filter_args *a, void *scratch)
{
    const ddpm_tensor *dw = a->dw, *dy = a->dy;
    const int64_t rows = dw->dim[0], width = dw->dim[1] * dw->dim[2] * dw->dim[3];
    const int64_t pixels = dy->dim[0] * dy->dim[1] * dy->dim[2];
    const int64_t by_blocks = ceil_div(WANT_BLOCKS, tiles_for(rows, width));
    const int64_t by_pixels = ceil_div(pixels, LEAST_PIXELS);
    const int64_t parts = by_blocks < by_pixels ? by_blocks : by_pixels;
    filter_split split = {};
    split.pixels = ceil_div(ceil_div(pixels, parts), DEPTH) * DEPTH;
    split.parts = ceil_div(pixels, split.pixels);
    split.accumulates = split.parts == 1;
    split.out = (float *)(split.accumulates ? dw->data : scratch);
    split.out_row = split.accumulates ? dw->stride[0] : width;
    split.out_part = rows * width;
    split.out_is_wide = width % 4 == 0 && split.out_row % 4 == 0 && is_aligned(split.out, 4 * sizeof(float));
    return split;
}

static size_t parts_bytes(const filter_split &split)
{
    return split.parts > 1 ? (size_t)(split.parts * split.out_part) * sizeof(float) : 0;
}

extern "C" size_t scratch_conv2d_bwd_filter(const struct conv2d_bwd_filter_args *a)
{
    const size_t parts = parts_bytes(split_of(a, NULL)), sums = scratch_conv_sums(a);
    return parts > sums ? parts : sums; /* one after the other */
}

extern "C" cudaError_t launch_conv2d_bwd_filter(cudaStream_t stream, const struct conv2d_bwd_filter_args *a,
                                                void *scratch)
{
    const filter_split split = split_of(a, scratch);
    cudaError_t e = cudaSuccess;
    WITH_TYPE(a->dy->dtype, T, e = launch_filter<T>(stream, a, split));
    if (!e && split.parts > 1) {
        const int64_t rows = a->dw->dim[0], width = split.out_part / rows;
        e = launch_kernel(add_parts_kernel, grid_for(split.out_part, ADD_THREADS), ADD_THREADS, 0, stream, rows, width,
                          split.parts, (const float *)scratch, a->dw->stride[0], (float *)a->dw->data);
    }
    return e ? e : launch_conv_sums(stream, a, scratch);
}

/* groupnorm.cuh - what GroupNorm and its gradient share: the call, the two ways of cutting an image, the line of a
 * channel, and dropout's bits.
 *
 * Sliced   for images of any size: a block takes a slice of an image's pixels and a tile of its channels, 16 packs wide
 *          (256 bytes of each pixel). What a slice sums goes to scratch, a second kernel merges, a third streams.
 * Held     for small images: a block takes all pixels of a tile made of whole groups, keeps them in shared memory
 *          through sums and use, and global memory is read once.
 *
 * Where y has another size than x, images are sliced, and the smaller of the two is what slices are cut from.
 *
 * In both a thread stays with one pack of channels and walks over pixels, so that a channel's numbers are read once,
 * and neighbouring threads read neighbouring packs. Cuts depend on the shape of one image alone: the bits of an image's
 * result are the same in every batch. */
#ifndef KERNELS_GROUPNORM_CUH
#define KERNELS_GROUPNORM_CUH

#include "common.cuh"

static constexpr int NORM_TILE = 16; /* packs, at most, of a sliced image's tile */
/* A held tile's piece of a pixel, at least: two sectors, what HBM fetches at a time. */
static constexpr int64_t NORM_PIECE_BYTES = 64;
/* Shared memory of a held tile, at most: any device of compute capability 8.0 and later gives it to a block, 8.0 to two
 * on an SM and 9.0 to three of the 69 KiB that 32x32 pixels of 64 bytes want. */
static constexpr int64_t NORM_HELD_BYTES = 80 * 1024;
/* A held tile widens while its values stay below this, a few packs for each thread. */
static constexpr int64_t NORM_WIDEN_BYTES = 16 * 1024;

/* ---- the call ---- */

struct norm_shape {
    int64_t n, pixels, c1, c2, c; /* c2 = 0 without a second source; c = c1 + c2 */
    int64_t groups, group;        /* group: channels of one */
};

struct norm_affine {
    const float *gamma, *beta, *scale, *shift; /* scale, shift: or NULL */
    int64_t scale_step, shift_step;            /* from one image to the next */
};

struct norm_dropout {
    float p, inverse_keep; /* p == 0: none */
    uint32_t layer;
    const step_state *state;
    const uint64_t *index;
};

/* Where a pixel of x has its value of y, or of dy: `pixels` of an image of y, w of a row of the smaller of x and y. */
struct norm_resize {
    norm_resample kind;
    int64_t pixels, w;
};

template <class T> struct norm_call {
    norm_shape shape;
    norm_resize resize;
    const T *x1, *x2;
    norm_affine affine;
    norm_dropout dropout;
    bool silu;
};

/* A is groupnorm_args or groupnorm_bwd_args: these fields have the same names in both. */
template <class A> static inline norm_shape norm_shape_of(const A *a)
{
    norm_shape s = {};
    s.n = a->x1->dim[0];
    s.pixels = a->x1->dim[1] * a->x1->dim[2];
    s.c1 = a->x1->dim[3];
    s.c2 = a->x2 ? a->x2->dim[3] : 0;
    s.c = s.c1 + s.c2;
    s.groups = a->groups;
    s.group = s.c / s.groups;
    return s;
}

/* A has gamma, beta, scale and shift. */
template <class A> static inline norm_affine norm_affine_of(const A *a)
{
    norm_affine affine = {floats_of(a->gamma), floats_of(a->beta), floats_of(a->scale), floats_of(a->shift), 0, 0};
    if (a->scale) affine.scale_step = a->scale->stride[0];
    if (a->shift) affine.shift_step = a->shift->stride[0];
    return affine;
}

template <class T, class A> static inline norm_call<T> norm_call_of(const A *a)
{
    norm_call<T> call = {};
    call.shape = norm_shape_of(a);
    const bool halves = a->resample == NORM_MEAN2;
    call.resize.kind = a->resample;
    call.resize.pixels = halves ? call.shape.pixels / 4 : call.shape.pixels * (a->resample == NORM_UP2 ? 4 : 1);
    call.resize.w = halves ? a->x1->dim[2] / 2 : a->x1->dim[2];
    call.x1 = static_cast<const T *>(a->x1->data);
    call.x2 = a->x2 ? static_cast<const T *>(a->x2->data) : nullptr;
    call.affine = norm_affine_of(a);
    call.dropout.p = a->dropout;
    call.dropout.inverse_keep = 1.0f / (1.0f - a->dropout);
    call.dropout.layer = a->layer;
    call.dropout.state = a->state;
    call.dropout.index = a->index;
    call.silu = a->silu;
    return call;
}

/* Does a tensor with these channels, or no tensor, lie in whole packs? */
template <class T> static inline bool norm_packs(const ddpm_tensor *t)
{
    return !t || packs_fit<T>(t->data, t->dim[3]);
}

/* ---- cuts ---- */

/* Sliced: items in the order image, slice, tile; neighbouring blocks read neighbouring channels. */
struct norm_slices {
    int64_t pixels, per_image, tiles, items;
    int packs, rows; /* packs of a tile; pixels that a block reads at a time */
};

/* Short slices where images are few thousand pixels, so that a few images still fill the device. */
static inline int64_t norm_slice_pixels(int64_t pixels)
{
    return pixels > 4096 ? 256 : 128;
}

static inline norm_slices norm_slices_of(const norm_shape &s, int vec, int threads)
{
    norm_slices cut = {};
    cut.pixels = norm_slice_pixels(s.pixels);
    cut.per_image = ceil_div(s.pixels, cut.pixels);
    cut.tiles = ceil_div(s.c / vec, NORM_TILE);
    cut.packs = (int)ceil_div(s.c / vec, cut.tiles);
    cut.rows = threads / cut.packs;
    cut.items = s.n * cut.per_image * cut.tiles;
    return cut;
}

/* What a kernel keeps of a held tile: all its values, `entry_bytes` for each channel and row of threads, `line_bytes`
 * for each channel. */
struct norm_holding {
    int64_t value_bytes, entry_bytes, line_bytes;
    int threads;
};

/* Held: items in the order image, tile. channels == 0: not even the narrowest tile fits. */
struct norm_tiles {
    int64_t tiles, items;
    int channels, packs, rows, threads;
    int64_t entries_at, lines_at, bytes; /* in shared memory, where values come first; multiples of 16 */
};

static inline norm_tiles norm_tiles_with(const norm_shape &s, int vec, const norm_holding &h, int64_t channels)
{
    norm_tiles cut = {};
    const int64_t packs = channels / vec, useful = ceil_div(packs * s.pixels, 32) * 32;
    const int64_t threads = useful < h.threads ? useful : h.threads, rows = threads / packs;
    cut.tiles = ceil_div(s.c, channels);
    cut.items = s.n * cut.tiles;
    cut.entries_at = ceil_div(s.pixels * channels * h.value_bytes, 16) * 16;
    cut.lines_at = cut.entries_at + ceil_div(rows * channels * h.entry_bytes, 16) * 16;
    cut.bytes = cut.lines_at + ceil_div(channels * h.line_bytes, 16) * 16;
    if (rows == 0 || cut.bytes > NORM_HELD_BYTES) return norm_tiles{};
    cut.channels = (int)channels;
    cut.packs = (int)packs;
    cut.rows = (int)rows;
    cut.threads = (int)threads;
    return cut;
}

static inline norm_tiles norm_tiles_of(const norm_shape &s, int vec, size_t element_bytes, const norm_holding &h)
{
    int64_t unit = s.group; /* whole groups in whole packs */
    while (unit % vec != 0)
        unit += s.group;
    int64_t channels = unit * ceil_div(NORM_PIECE_BYTES / (int64_t)element_bytes, unit);
    if (channels > s.c) channels = s.c;
    norm_tiles cut = norm_tiles_with(s, vec, h, channels);
    while (cut.channels > 0 && channels < s.c) {
        channels = 2 * channels < s.c ? 2 * channels : s.c;
        if (s.pixels * channels * h.value_bytes > NORM_WIDEN_BYTES) break;
        const norm_tiles wider = norm_tiles_with(s, vec, h, channels);
        if (wider.channels == 0) break;
        cut = wider;
    }
    return cut;
}

/* More than 48 KiB of shared memory a kernel must ask for, once; asking is cheap. */
template <class... P> static inline cudaError_t norm_allow(void (*kernel)(P...), int64_t bytes)
{
    if (bytes <= 48 * 1024 || launch_is_counted(0)) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)NORM_HELD_BYTES);
}

/* Where a thread stands: it has `count` pixels, every rows-th from `pixel` on; its channels begin at `channel`, which
 * is `column` of a tile that has `channels`. Not active: a thread too many, or behind the last tile's channels. */
template <int VEC> struct norm_place {
    int64_t n, channel, pixel;
    int row, column, channels, count;
    bool active;
};

template <int VEC>
__device__ __forceinline__ norm_place<VEC> norm_place_in(int64_t n, int64_t first, int64_t left, int packs, int rows,
                                                         int64_t begin, int pixels)
{
    norm_place<VEC> at;
    at.n = n;
    at.row = (int)threadIdx.x / packs;
    at.column = (int)threadIdx.x % packs * VEC;
    at.channels = left < packs * VEC ? (int)left : packs * VEC;
    at.channel = first + at.column;
    at.pixel = begin + at.row;
    at.active = at.row < rows && at.column < at.channels;
    at.count = at.active && at.row < pixels ? (pixels - at.row + rows - 1) / rows : 0;
    return at;
}

template <int VEC>
__device__ __forceinline__ norm_place<VEC> norm_place_sliced(const norm_shape &s, const norm_slices &cut, int64_t item)
{
    const int64_t first = item % cut.tiles * (cut.packs * VEC), slice = item / cut.tiles;
    const int64_t begin = slice % cut.per_image * cut.pixels, rest = s.pixels - begin;
    return norm_place_in<VEC>(slice / cut.per_image, first, s.c - first, cut.packs, cut.rows, begin,
                              (int)(rest < cut.pixels ? rest : cut.pixels));
}

template <int VEC>
__device__ __forceinline__ norm_place<VEC> norm_place_held(const norm_shape &s, const norm_tiles &cut, int64_t item)
{
    const int64_t first = item % cut.tiles * cut.channels;
    return norm_place_in<VEC>(item / cut.tiles, first, s.c - first, cut.packs, cut.rows, 0, (int)s.pixels);
}

/* ---- memory ---- */

/* Which of two tensors has this channel: x1 or x2, dx1 or dx2, add1 or add2. */
template <class T> __device__ __forceinline__ T *norm_of(T *one, T *two, const norm_shape &s, int64_t channel)
{
    return channel < s.c1 ? one : two;
}

/* Where an element lies in the one that has its channel, and how far its next pixel is. */
__device__ __forceinline__ int64_t norm_offset(const norm_shape &s, int64_t n, int64_t pixel, int64_t channel)
{
    const int64_t p = n * s.pixels + pixel;
    return channel < s.c1 ? p * s.c1 + channel : p * s.c2 + (channel - s.c1);
}

__device__ __forceinline__ int64_t norm_step(const norm_shape &s, int64_t channel)
{
    return channel < s.c1 ? s.c1 : s.c2;
}

/* An element of x1 or x2. */
template <class T>
__device__ __forceinline__ const T *norm_at(const norm_call<T> &call, int64_t n, int64_t pixel, int64_t channel)
{
    return norm_of(call.x1, call.x2, call.shape, channel) + norm_offset(call.shape, n, pixel, channel);
}

template <int VEC, class T> __device__ __forceinline__ pack<T, VEC> norm_load(const T *p)
{
    return *reinterpret_cast<const pack<T, VEC> *>(p);
}

template <int VEC, class T> __device__ __forceinline__ void norm_store(T *p, const pack<T, VEC> &v)
{
    *reinterpret_cast<pack<T, VEC> *>(p) = v;
}

/* The first of the four pixels of the larger image under a pixel of the smaller; the others are 1, 2w and 2w + 1
 * further. Row and column doubled: 2 row 2w + 2 (pixel - row w). */
__device__ __forceinline__ int64_t norm_corner(const norm_resize &r, int64_t pixel)
{
    return 2 * (pixel + pixel / r.w * r.w);
}

__device__ __forceinline__ int64_t norm_corner_step(const norm_resize &r, int corner)
{
    return corner / 2 * 2 * r.w + corner % 2;
}

/* dy of a pack of x out of a resampled dy, `image` its first value of the image and channel: the sum of the four that
 * it went to, or a quarter of what it was averaged into. */
template <int VEC, class T>
__device__ __forceinline__ pack<float, VEC> norm_load_resized(const norm_resize &r, const T *image, int64_t c,
                                                              int64_t pixel)
{
    pack<float, VEC> sum;
    if (r.kind == NORM_UP2) {
        const int64_t first = norm_corner(r, pixel);
        float x[4][VEC];
#pragma unroll
        for (int k = 0; k < 4; k++)
            load_floats<VEC>(image + (first + norm_corner_step(r, k)) * c, x[k]);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            sum.v[i] = (x[0][i] + x[1][i]) + (x[2][i] + x[3][i]);
    } else {
        const int64_t row = pixel / (2 * r.w);
        load_floats<VEC>(image + (row / 2 * r.w + (pixel - row * 2 * r.w) / 2) * c, sum.v);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            sum.v[i] *= 0.25f;
    }
    return sum;
}

/* dy of a pack of x; RESIZED: out of a resampled dy, in f32. */
template <bool RESIZED, int VEC, class T>
__device__ __forceinline__ auto norm_load_dy(const norm_call<T> &call, const T *image, int64_t pixel)
{
    if constexpr (RESIZED)
        return norm_load_resized<VEC>(call.resize, image, call.shape.c, pixel);
    else
        return norm_load<VEC>(image + pixel * call.shape.c);
}

/* Packs that a thread has in flight while it fills shared memory: 64 bytes, times 512 threads and more of an SM. */
static constexpr int NORM_BATCH = 4;

/* `count` packs from global to shared memory, steps in elements and in packs. */
template <int VEC, class T>
__device__ __forceinline__ void norm_hold(const T *from, int64_t from_step, pack<T, VEC> *to, int to_step, int count)
{
#pragma unroll 1
    for (; count > 0; count -= NORM_BATCH) {
        pack<T, VEC> v[NORM_BATCH];
#pragma unroll
        for (int j = 0; j < NORM_BATCH; j++, from += from_step)
            if (j < count) v[j] = norm_load<VEC>(from);
#pragma unroll
        for (int j = 0; j < NORM_BATCH; j++, to += to_step)
            if (j < count) *to = v[j];
    }
}

/* Lines of channels in shared memory are read by fours: 16 bytes, as they are aligned to. */
typedef pack<float, 4> norm_four;

template <int VEC> __device__ __forceinline__ void norm_read(const float *from, float v[VEC])
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
#pragma unroll
    for (int i = 0; i < VEC; i += STEP)
        load_floats<STEP>(from + i, v + i);
}

template <int VEC> __device__ __forceinline__ void norm_write(float *to, const float v[VEC])
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
#pragma unroll
    for (int i = 0; i < VEC; i += STEP)
        store_floats<STEP>(to + i, v + i);
}

/* mean, slope and offset of VEC channels from `column` of a tile on; rows of `width`. */
template <int VEC> struct norm_lines {
    float mean[VEC], slope[VEC], offset[VEC];
    __device__ __forceinline__ norm_lines(const float *lines, int width, int column)
    {
        norm_read<VEC>(lines + column, mean);
        norm_read<VEC>(lines + width + column, slope);
        norm_read<VEC>(lines + 2 * width + column, offset);
    }
};

/* ---- arithmetic ---- */

__device__ __forceinline__ float norm_more(const norm_affine &a, int64_t n, int64_t channel)
{
    return a.scale ? 1.0f + a.scale[n * a.scale_step + channel] : 1.0f;
}

/* slope and offset of formula_norm */
__device__ __forceinline__ void norm_line(const norm_affine &a, int64_t n, int64_t channel, float rstd, float *slope,
                                          float *offset)
{
    const float more = norm_more(a, n, channel);
    *slope = rstd * a.gamma[channel] * more;
    *offset = fmaf(a.beta[channel], more, a.shift ? a.shift[n * a.shift_step + channel] : 0.0f);
}

/* mean, slope and offset of a tile's channels, each a row of `width` in shared memory, by the whole block. */
template <int VEC>
__device__ __forceinline__ void norm_fill_lines(const norm_shape &s, const norm_affine &a, const float *stats,
                                                const norm_place<VEC> &at, int width, float *lines)
{
    const int64_t first = at.channel - at.column;
    for (int i = (int)threadIdx.x; i < at.channels; i += (int)blockDim.x) {
        const float *group = stats + 2 * (at.n * s.groups + (first + i) / s.group);
        lines[i] = group[0];
        norm_line(a, at.n, first + i, group[1], &lines[width + i], &lines[2 * width + i]);
    }
}

/* The first of `rows` of `width` += the others, by the whole block: halves onto halves, an order fixed by `rows` alone.
 * A __syncthreads stands between their writers and the call; the sums may be read when it returns. */
template <class V> __device__ __forceinline__ void norm_add_rows(V *v, int rows, int width)
{
    while (rows > 1) {
        const int half = (rows + 1) / 2;
        for (int i = (int)threadIdx.x; i < (rows - half) * width; i += (int)blockDim.x)
            v[i] += v[half * width + i];
        __syncthreads();
        rows = half;
    }
}

/* ---- dropout ---- */

/* Of one image: the key of philox.h but the element. */
struct norm_key {
    uint64_t seed, index;
    uint32_t step;
};

__device__ __forceinline__ norm_key norm_key_of(const norm_dropout &d, int64_t n)
{
    norm_key key = {};
    if (d.p > 0) {
        key.seed = d.state->seed;
        key.index = (uint64_t)d.layer << 32 | d.index[n];
        key.step = d.state->step;
    }
    return key;
}

__device__ __forceinline__ uint32_t norm_kept_bit(uint32_t word, float p)
{
    return formula_dropout(word, p, 1.0f) > 0 ? 1 : 0;
}

/* Bit i: is element + i kept? Words come four at a time; a pack of 4 or 8 begins at a multiple of 4. */
template <int COUNT> __device__ __forceinline__ uint32_t norm_kept(const norm_key &key, float p, int64_t element)
{
    static_assert(COUNT == 1 || COUNT == 4, "one, or the words of one block");
    const uint32_t block = (uint32_t)((uint64_t)element >> 2);
    const philox4 w = philox_draw(key.seed, PHILOX_DROPOUT, key.step, key.index, block);
    if constexpr (COUNT == 1) {
        const int j = (int)(element & 3); /* compared, not indexed: words stay in registers */
        return norm_kept_bit(j == 0 ? w.v[0] : j == 1 ? w.v[1] : j == 2 ? w.v[2] : w.v[3], p);
    } else {
        uint32_t bits = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            bits |= norm_kept_bit(w.v[j], p) << j;
        return bits;
    }
}

__device__ __forceinline__ float norm_factor(uint32_t kept, int i, float inverse_keep)
{
    return (kept >> i & 1) != 0 ? inverse_keep : 0.0f;
}

#endif

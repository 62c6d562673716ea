/* groupnorm.cu - GroupNorm over one or two sources, with scale-shift, SiLU and dropout.
 *
 * Contract   ops.h, groupnorm.   Equations   formulas.h.   Mapping   groupnorm.cuh.
 * Held       small images, up to 32x32 where groups are not too wide: one kernel. Values stay in shared memory; their
 *            mean, then the squares of their distances from it, then the line of each channel.
 * Sliced     other images: sums of a slice about its first pixel, for each channel; one block per image and group
 *            merges them by Chan's rule in double; where the convolution before has left sums of the whole image, those
 *            are merged instead and x is not read for them; the last kernel applies lines, from the last image to the first,
 *            because what was read last is still in cache.
 * Resampled  as sliced, whatever the size: a thread has a pixel of the smaller of x and y, and its four of the larger.
 * Precision  nothing cancels, whatever the mean: sums are of differences from a value of the same channel (held: of the
 *            same group and thread), short and in f32; they meet in double. A first pixel that is far out costs at most
 *            its slice's pixels times f32's rounding: it is one of the values, and so part of the variance.
 *            Sums from outside are about 0: var = E[x^2] - mean^2, in double, of f32 sums.
 * Cost       bytes per value, bf16: held 4 (2 read, 2 written), the least possible, also with sums from outside; sliced 6,
 *            and 12 per channel and
 *            slice for sums, at most 5 % of a read. Resampled, per value of x: 12 to four pixels, 4.5 to a quarter;
 *            with an op of its own for that 14 (held) or 16, and 6.5 or 8.5.
 * Rejected   E[x^2] - E[x]^2 (useless at mean 1000); blocks of one image that wait for each other (no promise that all
 *            of them run); sums by atomics (not the same bits twice); values held in registers (eight packs a thread
 *            left too few for SiLU and dropout: spills, or one block on an SM). */
#include "groupnorm.cuh"

static constexpr int SLICE_THREADS = 256;
static constexpr int MERGE_THREADS = 128;
static constexpr int HELD_THREADS = 256;

/* ---- sliced ---- */

/* part [N,slices,3,C]: the slice's first pixel, and the sums of x - it and of (x - it)^2. */
template <class T, int VEC>
__global__ void __launch_bounds__(SLICE_THREADS) groupnorm_sums_kernel(norm_call<T> call, norm_slices cut, float *part)
{
    SHARED(norm_four, sums_room, SLICE_THREADS * 2 * VEC / 4);
    float *sums = sums_room[0].v; /* [rows,2,width] */
    const norm_shape &s = call.shape;
    const int width = cut.packs * VEC;
    for (int64_t item = blockIdx.x; item < cut.items; item += gridDim.x) {
        const norm_place<VEC> at = norm_place_sliced<VEC>(s, cut, item);
        float *out = part + item / cut.tiles * 3 * s.c + (at.channel - at.column);
        float sum[VEC] = {}, square[VEC] = {};
        if (at.active) {
            const int64_t step = norm_step(s, at.channel);
            const T *x = norm_at(call, at.n, at.pixel - at.row, at.channel);
            float pivot[VEC];
            load_floats<VEC>(x, pivot);
            x += at.row * step;
#pragma unroll 4
            for (int left = at.count; left > 0; left--, x += cut.rows * step) {
                float v[VEC];
                load_floats<VEC>(x, v);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    const float d = v[i] - pivot[i];
                    sum[i] += d;
                    square[i] = fmaf(d, d, square[i]);
                }
            }
            for (int i = 0; i < VEC && at.row == 0; i++)
                out[at.column + i] = pivot[i];
        }
        if (at.row < cut.rows) {
            norm_write<VEC>(sums + at.row * 2 * width + at.column, sum);
            norm_write<VEC>(sums + (at.row * 2 + 1) * width + at.column, square);
        }
        __syncthreads();
        norm_add_rows(sums, cut.rows, 2 * width);
        for (int i = (int)threadIdx.x; i < 2 * width; i += SLICE_THREADS)
            if (i % width < at.channels) out[(1 + i / width) * s.c + i % width] = sums[i];
        __syncthreads();
    }
}

/* Mean and variance of a group from the sums of its channels in every slice. */
__global__ void __launch_bounds__(MERGE_THREADS)
groupnorm_merge_kernel(norm_shape s, int64_t slice_pixels, int64_t slices, const float *part, float eps,
                       float *stats)
{
    SHARED(double, room_mean, MERGE_THREADS / 32);
    SHARED(double, room_square, MERGE_THREADS / 32);
    const double all = (double)(s.pixels * s.group);
    for (int64_t item = blockIdx.x; item < s.n * s.groups; item += gridDim.x) {
        const float *first = part + item / s.groups * slices * 3 * s.c + item % s.groups * s.group;
        double mean = 0, square = 0;
        for (int64_t i = threadIdx.x; i < slices * s.group; i += MERGE_THREADS) {
            const int64_t slice = i / s.group, rest = s.pixels - slice * slice_pixels;
            const float *p = first + slice * 3 * s.c + i % s.group;
            mean += fma((double)(rest < slice_pixels ? rest : slice_pixels), (double)p[0], (double)p[s.c]);
        }
        mean = block_sum<MERGE_THREADS>(mean, room_mean) / all;
        for (int64_t i = threadIdx.x; i < slices * s.group; i += MERGE_THREADS) {
            const int64_t slice = i / s.group, rest = s.pixels - slice * slice_pixels;
            const float *p = first + slice * 3 * s.c + i % s.group;
            const double count = (double)(rest < slice_pixels ? rest : slice_pixels), sum = (double)p[s.c];
            const double d = ((double)p[0] - mean) + sum / count;
            square += fma(count * d, d, fma(-sum / count, sum, (double)p[2 * s.c]));
        }
        square = block_sum<MERGE_THREADS>(square, room_square) / all;
        if (threadIdx.x == 0) {
            stats[2 * item] = (float)mean;
            stats[2 * item + 1] = (float)(1.0 / sqrt((square < 0 ? 0 : square) + (double)eps));
        }
    }
}

/* sum and square [N,C] of a source, from outside. */
struct norm_given {
    const float *sum1, *square1, *sum2, *square2;
};

/* Mean and variance of a group from the sums of its channels over the whole image. A warp a group. */
__global__ void __launch_bounds__(MERGE_THREADS)
groupnorm_given_kernel(norm_shape s, norm_given given, float eps, float *stats)
{
    const double all = (double)(s.pixels * s.group);
    const int64_t warps = (int64_t)gridDim.x * (MERGE_THREADS / 32);
    const int lane = (int)threadIdx.x % 32;
    for (int64_t item = blockIdx.x * (MERGE_THREADS / 32) + threadIdx.x / 32; item < s.n * s.groups; item += warps) {
        const int64_t n = item / s.groups, first = item % s.groups * s.group;
        double sum = 0, square = 0;
        for (int64_t i = first + lane; i < first + s.group; i += 32) {
            const bool is_first = i < s.c1;
            const int64_t at = is_first ? n * s.c1 + i : n * s.c2 + i - s.c1;
            sum += (double)(is_first ? given.sum1 : given.sum2)[at];
            square += (double)(is_first ? given.square1 : given.square2)[at];
        }
        const double mean = warp_sum(sum) / all, variance = warp_sum(square) / all - mean * mean;
        if (lane == 0) {
            stats[2 * item] = (float)mean;
            stats[2 * item + 1] = (float)(1.0 / sqrt((variance < 0 ? 0 : variance) + (double)eps));
        }
    }
}

/* A pack of y from one of x, which may be the same, that begins at `element` of the image. Lines stay in shared memory
 * and are read by fours: in registers those of eight channels would halve the warps of an SM. */
template <int VEC, class T, class U>
__device__ __forceinline__ void norm_apply(const pack<T, VEC> &x, pack<U, VEC> &y, const float *lines, int width,
                                           int column, bool silu, const norm_dropout &drop, const norm_key &key,
                                           int64_t element)
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
#pragma unroll
    for (int q = 0; q < VEC; q += STEP) {
        const norm_lines<STEP> line(lines, width, column + q);
        const uint32_t kept = drop.p > 0 ? norm_kept<STEP>(key, drop.p, element + q) : 0;
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            float u = formula_norm(to_float(x.v[q + i]), line.mean[i], line.slope[i], line.offset[i]);
            if (silu) u = formula_silu(u);
            if (drop.p > 0) u *= norm_factor(kept, i, drop.inverse_keep);
            y.v[q + i] = from_float<U>(u);
        }
    }
}

/* y may be x1. */
template <class T, int VEC>
__global__ void __launch_bounds__(SLICE_THREADS, 3)
groupnorm_apply_kernel(norm_call<T> call, norm_slices cut, const float *stats, T *y)
{
    static constexpr int WIDTH = NORM_TILE * VEC;
    SHARED(norm_four, lines_room, 3 * WIDTH / 4);
    float *lines = lines_room[0].v;
    const norm_shape &s = call.shape;
    for (int64_t item = cut.items - 1 - blockIdx.x; item >= 0; item -= gridDim.x) {
        const norm_place<VEC> at = norm_place_sliced<VEC>(s, cut, item);
        norm_fill_lines(s, call.affine, stats, at, WIDTH, lines);
        __syncthreads();
        if (at.active) {
            const norm_key key = norm_key_of(call.dropout, at.n);
            const int64_t next = cut.rows * norm_step(s, at.channel);
            const T *x = norm_at(call, at.n, at.pixel, at.channel);
            T *to = y + at.n * s.pixels * s.c;
            int64_t element = at.pixel * s.c + at.channel;
            pack<T, VEC> v = {}, ahead = {};
            if (at.count > 0) v = norm_load<VEC>(x);
#pragma unroll 1
            for (int left = at.count; left > 0; left--, element += cut.rows * s.c) {
                /* read ahead by hand: y may be x, so the compiler cannot move a load over a store */
                x += next;
                if (left > 1) ahead = norm_load<VEC>(x);
                norm_apply(v, v, lines, WIDTH, at.column, call.silu, call.dropout, key, element);
                norm_store<VEC>(to + element, v);
                v = ahead;
            }
        }
        __syncthreads();
    }
}

/* The pack of a small pixel: y of x's pack four times, or the mean of y of x's four. */
template <int VEC, class T>
__device__ __forceinline__ void norm_apply_resized(const norm_call<T> &call, const float *lines,
                                                   const norm_place<VEC> &at, int64_t pixel, T *y)
{
    const norm_resize &r = call.resize;
    const norm_dropout none = {};
    const norm_key no_key = {};
    const int64_t first = norm_corner(r, pixel);
    if (r.kind == NORM_UP2) {
        pack<T, VEC> v = norm_load<VEC>(norm_at(call, at.n, pixel, at.channel));
        norm_apply(v, v, lines, NORM_TILE * VEC, at.column, call.silu, none, no_key, 0);
#pragma unroll
        for (int k = 0; k < 4; k++)
            norm_store<VEC>(y + (first + norm_corner_step(r, k)) * call.shape.c, v);
        return;
    }
    const T *x = norm_at(call, at.n, first, at.channel);
    const int64_t step = norm_step(call.shape, at.channel);
    pack<T, VEC> v[4];
    pack<float, VEC> u[4];
#pragma unroll
    for (int k = 0; k < 4; k++)
        v[k] = norm_load<VEC>(x + norm_corner_step(r, k) * step);
#pragma unroll
    for (int k = 0; k < 4; k++)
        norm_apply(v[k], u[k], lines, NORM_TILE * VEC, at.column, call.silu, none, no_key, 0);
    float mean[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++)
        mean[i] = 0.25f * ((u[0].v[i] + u[1].v[i]) + (u[2].v[i] + u[3].v[i]));
    store_floats<VEC>(y + pixel * call.shape.c, mean);
}

/* `small` has the pixels of the smaller of x and y, which cut is made for. */
template <class T, int VEC>
__global__ void __launch_bounds__(SLICE_THREADS, 2)
groupnorm_resample_kernel(norm_call<T> call, norm_shape small, norm_slices cut, const float *stats, T *y)
{
    SHARED(norm_four, lines_room, 3 * NORM_TILE * VEC / 4);
    float *lines = lines_room[0].v;
    for (int64_t item = cut.items - 1 - blockIdx.x; item >= 0; item -= gridDim.x) {
        const norm_place<VEC> at = norm_place_sliced<VEC>(small, cut, item);
        norm_fill_lines(small, call.affine, stats, at, NORM_TILE * VEC, lines);
        __syncthreads();
        T *to = y + at.n * call.resize.pixels * small.c + at.channel;
#pragma unroll 1
        for (int k = 0; k < at.count; k++)
            norm_apply_resized(call, lines, at, at.pixel + k * cut.rows, to);
        __syncthreads();
    }
}

/* ---- held ---- */

/* Is channel i of a pack the first of 2^bits side by side that are summed together? */
__device__ __forceinline__ bool held_first(int i, int bits)
{
    return (i & ((1 << bits) - 1)) == 0;
}

/* Sums of 2^bits channels side by side, into the first of them. */
template <int VEC> __device__ __forceinline__ void held_fold(float sum[VEC], int bits)
{
#pragma unroll
    for (int step = 1; step < VEC; step *= 2)
        if (step < 1 << bits) {
#pragma unroll
            for (int i = 0; i < VEC; i += 2 * step)
                sum[i] += sum[i + step];
        }
}

/* Leaves an entry for each 2^bits of a thread's channels: the sum of its values, which begin at `values` and stand
 * rows * packs apart. Entries [channels >> bits, rows]. */
template <class T, int VEC>
__device__ __forceinline__ void held_sums(const norm_tiles &cut, const norm_place<VEC> &at, int bits,
                                          const pack<T, VEC> *values, double *entries)
{
    const int step = cut.rows * cut.packs;
    float pivot[VEC] = {}, sum[VEC] = {};
    if (at.count > 0) { /* of one group: what suits the first channel suits all */
#pragma unroll
        for (int i = 0; i < VEC; i++)
            pivot[i] = held_first(i, bits) ? to_float(values->v[i]) : pivot[i > 0 ? i - 1 : 0];
    }
#pragma unroll 2
    for (int k = 0; k < at.count; k++) {
        const pack<T, VEC> v = values[k * step];
#pragma unroll
        for (int i = 0; i < VEC; i++)
            sum[i] += to_float(v.v[i]) - pivot[i];
    }
    held_fold<VEC>(sum, bits);
    entries += (at.column >> bits) * cut.rows + at.row;
#pragma unroll
    for (int i = 0; i < VEC; i++)
        if (held_first(i, bits)) {
            *entries = fma((double)(at.count << bits), (double)pivot[i], (double)sum[i]);
            entries += cut.rows;
        }
}

/* Likewise of (x - mean)^2. */
template <class T, int VEC>
__device__ __forceinline__ void held_squares(const norm_tiles &cut, const norm_place<VEC> &at, int bits,
                                             const pack<T, VEC> *values, const float *means, float *entries)
{
    const int step = cut.rows * cut.packs;
    float mean[VEC], square[VEC] = {};
    norm_read<VEC>(means + at.column, mean);
#pragma unroll 2
    for (int k = 0; k < at.count; k++) {
        const pack<T, VEC> v = values[k * step];
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float d = to_float(v.v[i]) - mean[i];
            square[i] = fmaf(d, d, square[i]);
        }
    }
    held_fold<VEC>(square, bits);
    entries += (at.column >> bits) * cut.rows + at.row;
#pragma unroll
    for (int i = 0; i < VEC; i++)
        if (held_first(i, bits)) {
            *entries = square[i];
            entries += cut.rows;
        }
}

template <class V> __device__ __forceinline__ double held_lane_sum(const V *entries, int count)
{
    double sum = 0;
    for (int i = (int)threadIdx.x % 32; i < count; i += 32)
        sum += (double)entries[i];
    return sum;
}

/* The mean of each of the tile's groups into the lines of its channels, a warp a group. What f32 loses of it waits in
 * the slope of the group's first channel. */
__device__ __forceinline__ void held_means(const norm_shape &s, const norm_tiles &cut, int channels, int bits,
                                           const double *entries, float *lines)
{
    const int group = (int)s.group, count = (group >> bits) * cut.rows, lane = (int)threadIdx.x % 32;
    for (int g = (int)threadIdx.x / 32; g < channels / group; g += (int)blockDim.x / 32) {
        const double mean = warp_sum(held_lane_sum(entries + g * count, count)) / (double)(s.pixels * s.group);
        for (int i = lane; i < group; i += 32)
            lines[g * group + i] = (float)mean;
        if (lane == 0) lines[cut.channels + g * group] = (float)(mean - (double)(float)mean);
    }
}

/* stats and the lines. The same warps have the same groups as in held_means, and lane 0 finds there what it left. */
template <class T, int VEC>
__device__ __forceinline__ void held_lines(const norm_call<T> &call, const norm_tiles &cut, const norm_place<VEC> &at,
                                           int bits, const float *entries, float eps, float *lines, float *stats)
{
    const norm_shape &s = call.shape;
    const int group = (int)s.group, count = (group >> bits) * cut.rows, width = cut.channels;
    const int lane = (int)threadIdx.x % 32;
    const double all = (double)(s.pixels * s.group);
    const int64_t first = at.channel - at.column;
    for (int g = (int)threadIdx.x / 32; g < at.channels / group; g += (int)blockDim.x / 32) {
        float *line = lines + g * group;
        double square = held_lane_sum(entries + g * count, count);
        if (lane == 0) square = fma(-all * (double)line[width], (double)line[width], square);
        square = warp_sum(square) / all;
        const float rstd = (float)(1.0 / sqrt((square < 0 ? 0 : square) + (double)eps));
        for (int i = lane; i < group; i += 32)
            norm_line(call.affine, at.n, first + g * group + i, rstd, &line[width + i], &line[2 * width + i]);
        if (lane == 0) {
            float *out = stats + 2 * (at.n * s.groups + first / s.group + g);
            out[0] = line[0];
            out[1] = rstd;
        }
    }
}

template <class T, int VEC>
__device__ __forceinline__ void held_apply(const norm_call<T> &call, const norm_tiles &cut, const norm_place<VEC> &at,
                                           const pack<T, VEC> *values, const float *lines, T *y)
{
    const norm_shape &s = call.shape;
    const norm_key key = norm_key_of(call.dropout, at.n);
    int64_t element = at.row * s.c + at.channel;
    y += at.n * s.pixels * s.c;
#pragma unroll 1
    for (int left = at.count; left > 0; left--, element += cut.rows * s.c) {
        pack<T, VEC> v = *values;
        values += cut.rows * cut.packs;
        norm_apply(v, v, lines, cut.channels, at.column, call.silu, call.dropout, key, element);
        norm_store<VEC>(y + element, v);
    }
}

/* y may be x1: a tile is read before it is written, and tiles share nothing. */
template <class T, int VEC>
__global__ void __launch_bounds__(HELD_THREADS, 3)
groupnorm_held_kernel(norm_call<T> call, norm_tiles cut, int bits, float eps, float *stats, T *y)
{
    SHARED_DYNAMIC(unsigned char, room);
    const norm_shape &s = call.shape;
    pack<T, VEC> *values = reinterpret_cast<pack<T, VEC> *>(room);
    double *sums = reinterpret_cast<double *>(room + cut.entries_at);
    float *squares = reinterpret_cast<float *>(sums), *lines = reinterpret_cast<float *>(room + cut.lines_at);
    for (int64_t item = blockIdx.x; item < cut.items; item += gridDim.x) {
        const norm_place<VEC> at = norm_place_held<VEC>(s, cut, item);
        pack<T, VEC> *mine = values + (at.row * cut.packs + at.column / VEC); /* and every rows-th pixel's after it */
        if (at.active) {
            norm_hold<VEC>(norm_at(call, at.n, at.row, at.channel), cut.rows * norm_step(s, at.channel), mine,
                           cut.rows * cut.packs, at.count);
            held_sums(cut, at, bits, mine, sums);
        }
        __syncthreads();
        held_means(s, cut, at.channels, bits, sums, lines);
        __syncthreads();
        if (at.active) held_squares(cut, at, bits, mine, lines, squares);
        __syncthreads();
        held_lines(call, cut, at, bits, squares, eps, lines, stats);
        __syncthreads();
        if (at.active) held_apply(call, cut, at, mine, lines, y);
        /* Values are a thread's own. The next item's sums meet no reader, and its lines wait behind a __syncthreads. */
    }
}

/* ---- launches ---- */

/* 2^bits channels are summed before they are written: a pack and a group both consist of such runs. */
static int fold_bits(int64_t group, int vec)
{
    int bits = 0;
    while (2 << bits <= vec && group % (2 << bits) == 0)
        bits++;
    return bits;
}

template <class T, int VEC>
static cudaError_t launch_apply(cudaStream_t stream, const norm_call<T> &call, const float *stats, T *y)
{
    norm_shape s = call.shape;
    if (call.resize.kind == NORM_MEAN2) s.pixels = call.resize.pixels;
    const norm_slices cut = norm_slices_of(s, VEC, SLICE_THREADS);
    const dim3 grid(grid_for(cut.items, 1)), block(SLICE_THREADS);
    if (call.resize.kind == NORM_SAME)
        return launch_kernel(groupnorm_apply_kernel<T, VEC>, grid, block, 0, stream, call, cut, stats, y);
    return launch_kernel(groupnorm_resample_kernel<T, VEC>, grid, block, 0, stream, call, s, cut, stats, y);
}

/* stats of sliced images: from what was given, else from x. */
template <class T, int VEC>
static cudaError_t launch_stats(cudaStream_t stream, const groupnorm_args *a, const norm_call<T> &call, float *part,
                                float *stats)
{
    const norm_shape &s = call.shape;
    if (a->sum1 && (a->sum2 || !a->x2)) {
        const norm_given given = {floats_of(a->sum1), floats_of(a->square1), floats_of(a->sum2), floats_of(a->square2)};
        const dim3 grid(grid_for(s.n * s.groups, MERGE_THREADS / 32));
        return launch_kernel(groupnorm_given_kernel, grid, dim3(MERGE_THREADS), 0, stream, s, given, a->eps, stats);
    }
    const norm_slices cut = norm_slices_of(s, VEC, SLICE_THREADS);
    const cudaError_t e = launch_kernel(groupnorm_sums_kernel<T, VEC>, dim3(grid_for(cut.items, 1)), dim3(SLICE_THREADS), 0,
                                        stream, call, cut, part);
    if (e != cudaSuccess) return e;
    return launch_kernel(groupnorm_merge_kernel, dim3(grid_for(s.n * s.groups, 1)), dim3(MERGE_THREADS), 0, stream, s,
                         cut.pixels, cut.per_image, part, a->eps, stats);
}

template <class T, int VEC> static cudaError_t launch_vec(cudaStream_t stream, const groupnorm_args *a, float *part)
{
    const norm_call<T> call = norm_call_of<T>(a);
    const norm_shape &s = call.shape;
    float *stats = static_cast<float *>(a->stats->data);
    T *y = static_cast<T *>(a->y->data);
    const int bits = fold_bits(s.group, VEC);
    const norm_holding holding = {sizeof(T), (int64_t)sizeof(double) >> bits, 3 * sizeof(float), HELD_THREADS};
    const norm_tiles held = norm_tiles_of(s, VEC, sizeof(T), holding);
    if (held.channels > 0 && a->resample == NORM_SAME) {
        const cudaError_t e = norm_allow(groupnorm_held_kernel<T, VEC>, held.bytes);
        if (e != cudaSuccess) return e;
        return launch_kernel(groupnorm_held_kernel<T, VEC>, dim3(grid_for(held.items, 1)), dim3((unsigned)held.threads),
                             (size_t)held.bytes, stream, call, held, bits, a->eps, stats, y);
    }
    const cudaError_t e = launch_stats<T, VEC>(stream, a, call, part, stats);
    return e == cudaSuccess ? launch_apply<T, VEC>(stream, call, stats, y) : e;
}

template <class T> static cudaError_t launch_typed(cudaStream_t stream, const groupnorm_args *a, float *part)
{
    const bool packs = norm_packs<T>(a->x1) && norm_packs<T>(a->x2) && norm_packs<T>(a->y);
    return packs ? launch_vec<T, pack_of<T>::width>(stream, a, part) : launch_vec<T, 1>(stream, a, part);
}

/* Sums of slices, wanted by most shapes; whether packs fit, and so whether an image is held, pointers decide later. */
extern "C" size_t scratch_groupnorm(const struct groupnorm_args *a)
{
    const norm_shape s = norm_shape_of(a);
    return (size_t)(s.n * ceil_div(s.pixels, norm_slice_pixels(s.pixels)) * 3 * s.c) * sizeof(float);
}

extern "C" cudaError_t launch_groupnorm(cudaStream_t stream, const struct groupnorm_args *a, void *scratch)
{
    WITH_TYPE(a->x1->dtype, T, return launch_typed<T>(stream, a, static_cast<float *>(scratch)));
}

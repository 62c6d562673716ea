/* groupnorm_bwd.cu - the gradient of GroupNorm, scale-shift, SiLU and dropout.
 *
 * Contract   ops.h, groupnorm_bwd.   Equations   formulas.h.   Mapping   groupnorm.cuh.
 * Method     with u = (x - mean) slope + offset and du = dy * mask * silu'(u), per image and channel A = sum du and
 *            B = sum du (x - mean) rstd give
 *              dshift = A, dscale = gamma B + beta A, dgamma += (1 + scale) B, dbeta += (1 + scale) A
 *            and per group m1 = mean of gamma (1 + scale) A, m2 = mean of gamma (1 + scale) B, which give
 *              dx = du slope - rstd m1 - (x - mean) rstd^2 m2 (+ add)
 * Held       small images: x and dy, where dropped values have become 0, stay in shared memory between the sums and dx.
 * Sliced     other images: sums of slices, one block per image and group for what follows from them, then dx, from
 *            the last image to the first, because what was read last is still in cache. du is computed twice.
 * Given      the sums of sliced images may come from whoever made dy: of dy and of dy x, and then B = (sum dy x - mean
 *            sum dy) rstd. du is read once.
 * Resampled  as sliced, whatever the size; dy is brought to x's size as it is read, twice.
 * Both end with dgamma and dbeta, added over images in a fixed order. Sums are f32 within a slice, then double.
 * Cost       bytes per value, bf16: held 6 (8 with add), the least possible; sliced 10 (12), and 8 per channel and
 *            slice; given 6 (8).
 * Rejected   writing du for the second sweep, as the CPU does: 2 bytes more each way to save arithmetic, and dx may be
 *            the tensor that is added; atomics for dgamma and dbeta (not the same bits twice). */
#include "groupnorm.cuh"

/* SiLU's gradient and Philox over packs of eight want 90 registers and more: of small blocks the most fit an SM. */
static constexpr int THREADS = 128;
static constexpr int MERGE_THREADS = 128;
/* dgamma and dbeta: a block has 32 channels, and 16 rows of threads that share the images. */
static constexpr int PARAMETER_COLUMNS = 32;
static constexpr int PARAMETER_ROWS = 16;

/* What leaves for each image and channel: sums [N,2,C], (1 + scale) times A and B, on their way to dbeta and dgamma. */
struct norm_gradients {
    float *sums, *dscale, *dshift; /* dscale, dshift: or NULL */
    int64_t dscale_step, dshift_step;
};

template <class T> struct norm_images {
    const T *dy, *add1, *add2; /* add1, add2: or NULL */
    T *dx1, *dx2;
};

/* Dropped values of dy become 0, for a pack that begins at `element` of the image; those kept wait for norm_du. */
template <int VEC, class T>
__device__ __forceinline__ void norm_mask(const norm_dropout &drop, const norm_key &key, int64_t element,
                                          pack<T, VEC> &dy)
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
    if (drop.p <= 0) return;
#pragma unroll
    for (int q = 0; q < VEC; q += STEP) {
        const uint32_t kept = norm_kept<STEP>(key, drop.p, element + q);
#pragma unroll
        for (int i = 0; i < STEP; i++)
            if ((kept >> i & 1) == 0) dy.v[q + i] = from_float<T>(0.0f);
    }
}

/* du of COUNT values; factor: dropout's for those kept. D is T, or float for a resampled dy. */
template <int COUNT, class T, class D>
__device__ __forceinline__ void norm_du(const T x[COUNT], const D dy[COUNT], const norm_lines<COUNT> &line, bool silu,
                                        float factor, float du[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        du[i] = to_float(dy[i]) * factor;
        if (silu) du[i] *= formula_silu_grad(formula_norm(to_float(x[i]), line.mean[i], line.slope[i], line.offset[i]));
    }
}

/* sum += du and product += du (x - mean) of a pack. Lines are [3,width] in shared memory, read by fours to spare
 * registers. */
template <int VEC, class T, class D>
__device__ __forceinline__ void norm_add_pack(const norm_call<T> &call, const pack<T, VEC> &x, const pack<D, VEC> &dy,
                                              const float *lines, int width, int column, float sum[VEC],
                                              float product[VEC])
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
#pragma unroll
    for (int q = 0; q < VEC; q += STEP) {
        const norm_lines<STEP> line(lines, width, column + q);
        float du[STEP];
        norm_du<STEP>(x.v + q, dy.v + q, line, call.silu, call.dropout.inverse_keep, du);
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            sum[q + i] += du[i];
            product[q + i] = fmaf(du[i], to_float(x.v[q + i]) - line.mean[i], product[q + i]);
        }
    }
}

/* dx of a pack over x. Lines are [5,width]: behind the three, rstd m1 and rstd^2 m2. */
template <int VEC, class T, class D>
__device__ __forceinline__ void norm_dx_pack(const norm_call<T> &call, pack<T, VEC> &x, const pack<D, VEC> &dy,
                                             const float *lines, int width, int column, const T *add)
{
    static constexpr int STEP = VEC < 4 ? VEC : 4;
#pragma unroll
    for (int q = 0; q < VEC; q += STEP) {
        const norm_lines<STEP> line(lines, width, column + q);
        float du[STEP], a[STEP], b[STEP], more[STEP] = {};
        norm_du<STEP>(x.v + q, dy.v + q, line, call.silu, call.dropout.inverse_keep, du);
        norm_read<STEP>(lines + 3 * width + column + q, a);
        norm_read<STEP>(lines + 4 * width + column + q, b);
        if (add) load_floats<STEP>(add + q, more);
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            const float d = formula_norm_bwd(du[i], to_float(x.v[q + i]), line.mean[i], line.slope[i], a[i], b[i]);
            x.v[q + i] = from_float<T>(add ? d + more[i] : d);
        }
    }
}

/* All that A and B of one image and channel give, and their part of the group's m1 and m2. */
__device__ __forceinline__ void norm_channel(const norm_shape &s, const norm_affine &affine, const norm_gradients &to,
                                             int64_t n, int64_t channel, double a, double b, double *m1, double *m2)
{
    const double gamma = (double)affine.gamma[channel], more = (double)norm_more(affine, n, channel);
    if (to.dscale) to.dscale[n * to.dscale_step + channel] = (float)fma(gamma, b, (double)affine.beta[channel] * a);
    if (to.dshift) to.dshift[n * to.dshift_step + channel] = (float)a;
    to.sums[2 * n * s.c + channel] = (float)(more * a);
    to.sums[(2 * n + 1) * s.c + channel] = (float)(more * b);
    *m1 = fma(gamma * more, a, *m1);
    *m2 = fma(gamma * more, b, *m2);
}

/* ---- sliced ---- */

/* part [N,slices,2,C]: sums of du and of du (x - mean). */
template <class T, int VEC, bool RESIZED>
__global__ void __launch_bounds__(THREADS, 4)
groupnorm_bwd_sums_kernel(norm_call<T> call, norm_slices cut, const T *dy_all, const float *stats, float *part)
{
    static constexpr int WIDTH = NORM_TILE * VEC;
    SHARED(norm_four, lines_room, 3 * WIDTH / 4);
    SHARED(norm_four, sums_room, THREADS * 2 * VEC / 4);
    float *lines = lines_room[0].v, *sums = sums_room[0].v; /* sums [rows,2,width] */
    const norm_shape &s = call.shape;
    const int width = cut.packs * VEC;
    for (int64_t item = blockIdx.x; item < cut.items; item += gridDim.x) {
        const norm_place<VEC> at = norm_place_sliced<VEC>(s, cut, item);
        norm_fill_lines(s, call.affine, stats, at, WIDTH, lines);
        __syncthreads();
        float sum[VEC] = {}, product[VEC] = {};
        if (at.active) {
            const norm_key key = norm_key_of(call.dropout, at.n);
            const int64_t next = cut.rows * norm_step(s, at.channel);
            const T *x = norm_at(call, at.n, at.pixel, at.channel);
            const T *dy = dy_all + at.n * call.resize.pixels * s.c + at.channel;
            int64_t pixel = at.pixel;
            pack<T, VEC> v = {}, v_ahead = {};
            decltype(norm_load_dy<RESIZED, VEC>(call, dy, pixel)) d = {}, d_ahead = {};
            if (at.count > 0) v = norm_load<VEC>(x);
            if (at.count > 0) d = norm_load_dy<RESIZED, VEC>(call, dy, pixel);
#pragma unroll 1
            for (int left = at.count; left > 0; left--) {
                /* read ahead by hand: dropout's branch keeps the compiler from it */
                const int64_t here = pixel * s.c + at.channel;
                x += next;
                pixel += cut.rows;
                if (left > 1) v_ahead = norm_load<VEC>(x);
                if (left > 1) d_ahead = norm_load_dy<RESIZED, VEC>(call, dy, pixel);
                if constexpr (!RESIZED) norm_mask(call.dropout, key, here, d);
                norm_add_pack(call, v, d, lines, WIDTH, at.column, sum, product);
                v = v_ahead;
                d = d_ahead;
            }
        }
        if (at.row < cut.rows) {
            norm_write<VEC>(sums + at.row * 2 * width + at.column, sum);
            norm_write<VEC>(sums + (at.row * 2 + 1) * width + at.column, product);
        }
        __syncthreads();
        norm_add_rows(sums, cut.rows, 2 * width);
        float *out = part + item / cut.tiles * 2 * s.c + (at.channel - at.column);
        for (int i = (int)threadIdx.x; i < 2 * width; i += THREADS)
            if (i % width < at.channels) out[i / width * s.c + i % width] = sums[i];
    }
}

/* Sums of du and of du (x - mean), or of du x, by channel: `step` floats from one slice of an image to the next, and from
 * an image's last to the next one's first. */
struct norm_parts {
    const float *sum, *product;
    int64_t slices, step;
    bool is_centred;
};

/* A and B of every channel of a group from its slices; terms [N,groups,2]: rstd m1, rstd^2 m2. */
__global__ void __launch_bounds__(MERGE_THREADS)
groupnorm_bwd_merge_kernel(norm_shape s, norm_affine affine, norm_gradients to, norm_parts part, const float *stats,
                           float *terms)
{
    SHARED(double, room, 2 * MERGE_THREADS); /* [rows,2,columns] */
    SHARED(double, room1, MERGE_THREADS / 32);
    SHARED(double, room2, MERGE_THREADS / 32);
    const int columns = s.group < MERGE_THREADS ? (int)s.group : MERGE_THREADS, rows = MERGE_THREADS / columns;
    const int column = (int)threadIdx.x % columns, row = (int)threadIdx.x / columns;
    const double all = (double)(s.pixels * s.group);
    for (int64_t item = blockIdx.x; item < s.n * s.groups; item += gridDim.x) {
        const int64_t n = item / s.groups;
        const double rstd = (double)stats[2 * item + 1], off = part.is_centred ? 0.0 : (double)stats[2 * item];
        double m1 = 0, m2 = 0;
        for (int64_t first = 0; first < s.group; first += columns) {
            const int64_t channel = item % s.groups * s.group + first + column;
            const bool mine = first + column < s.group;
            double a = 0, b = 0;
            for (int64_t slice = row; slice < part.slices && mine && row < rows; slice += rows) {
                const int64_t from = (n * part.slices + slice) * part.step + channel;
                a += (double)part.sum[from];
                b += (double)part.product[from];
            }
            b = fma(-off, a, b);
            if (row < rows) {
                room[row * 2 * columns + column] = a;
                room[(row * 2 + 1) * columns + column] = b;
            }
            __syncthreads();
            norm_add_rows(room, rows, 2 * columns);
            if (row == 0 && mine)
                norm_channel(s, affine, to, n, channel, room[column], room[columns + column] * rstd, &m1, &m2);
        }
        m1 = block_sum<MERGE_THREADS>(m1, room1) / all;
        m2 = block_sum<MERGE_THREADS>(m2, room2) / all;
        if (threadIdx.x == 0) {
            terms[2 * item] = (float)(rstd * m1);
            terms[2 * item + 1] = (float)(rstd * rstd * m2);
        }
    }
}

/* dx1 may be dy or add1, dx2 may be add2: a value is read by the thread that then writes it. */
template <class T, int VEC, bool RESIZED>
__global__ void __launch_bounds__(THREADS, 5)
groupnorm_bwd_dx_kernel(norm_call<T> call, norm_slices cut, norm_images<T> images, const float *stats,
                        const float *terms)
{
    static constexpr int WIDTH = NORM_TILE * VEC;
    SHARED(norm_four, lines_room, 5 * WIDTH / 4);
    float *lines = lines_room[0].v;
    const norm_shape &s = call.shape;
    for (int64_t item = cut.items - 1 - blockIdx.x; item >= 0; item -= gridDim.x) {
        const norm_place<VEC> at = norm_place_sliced<VEC>(s, cut, item);
        norm_fill_lines(s, call.affine, stats, at, WIDTH, lines);
        for (int i = (int)threadIdx.x; i < 2 * at.channels; i += THREADS) {
            const int column = i >> 1;
            const int64_t group = (at.channel - at.column + column) / s.group;
            lines[(3 + (i & 1)) * WIDTH + column] = terms[2 * (at.n * s.groups + group) + (i & 1)];
        }
        __syncthreads();
        if (at.active) {
            const norm_key key = norm_key_of(call.dropout, at.n);
            const T *x = norm_of(call.x1, call.x2, s, at.channel);
            const T *dy = images.dy + at.n * call.resize.pixels * s.c + at.channel;
            const T *add = norm_of(images.add1, images.add2, s, at.channel);
            T *dx = norm_of(images.dx1, images.dx2, s, at.channel);
            int64_t i = norm_offset(s, at.n, at.pixel, at.channel);
            int64_t pixel = at.pixel;
            const int64_t next = cut.rows * norm_step(s, at.channel);
#pragma unroll 1
            for (int left = at.count; left > 0; left--, i += next, pixel += cut.rows) {
                pack<T, VEC> v = norm_load<VEC>(x + i);
                auto d = norm_load_dy<RESIZED, VEC>(call, dy, pixel);
                if constexpr (!RESIZED) norm_mask(call.dropout, key, pixel * s.c + at.channel, d);
                norm_dx_pack(call, v, d, lines, WIDTH, at.column, add ? add + i : nullptr);
                norm_store<VEC>(dx + i, v);
            }
        }
        __syncthreads();
    }
}

/* ---- held ---- */

/* A thread's packs of x and dy into shared memory, where dropped values of dy become 0; its sums into entries
 * [rows,2,channels]. `x` and `dy` are its first packs there, the next stand rows * packs further. */
template <class T, int VEC>
__device__ __forceinline__ void held_sums(const norm_call<T> &call, const norm_tiles &cut, const norm_place<VEC> &at,
                                          const T *dy_all, pack<T, VEC> *x, pack<T, VEC> *dy, const float *lines,
                                          float *entries)
{
    const norm_shape &s = call.shape;
    float sum[VEC] = {}, product[VEC] = {};
    if (at.active) {
        const int step = cut.rows * cut.packs;
        int64_t element = at.row * s.c + at.channel;
        norm_hold<VEC>(norm_at(call, at.n, at.row, at.channel), cut.rows * norm_step(s, at.channel), x, step, at.count);
        norm_hold<VEC>(dy_all + (at.n * s.pixels * s.c + element), cut.rows * s.c, dy, step, at.count);
        const norm_key key = norm_key_of(call.dropout, at.n);
#pragma unroll 1
        for (int k = 0; k < at.count; k++, element += cut.rows * s.c) {
            pack<T, VEC> d = dy[k * step];
            norm_mask(call.dropout, key, element, d);
            dy[k * step] = d;
            norm_add_pack(call, x[k * step], d, lines, cut.channels, at.column, sum, product);
        }
    }
    if (at.row < cut.rows) {
        norm_write<VEC>(entries + at.row * 2 * cut.channels + at.column, sum);
        norm_write<VEC>(entries + (at.row * 2 + 1) * cut.channels + at.column, product);
    }
}

/* From the sums of the tile's channels [2,channels] all that leaves, and the last two lines; a warp a group. */
template <int VEC>
__device__ __forceinline__ void held_terms(const norm_shape &s, const norm_affine &affine, const norm_gradients &to,
                                           const norm_tiles &cut, const norm_place<VEC> &at, const float *stats,
                                           const float *entries, float *lines)
{
    const int group = (int)s.group, lane = (int)threadIdx.x % 32, width = cut.channels;
    const double all = (double)(s.pixels * s.group);
    const int64_t first = at.channel - at.column;
    for (int g = (int)threadIdx.x / 32; g < at.channels / group; g += (int)blockDim.x / 32) {
        const double rstd = (double)stats[2 * (at.n * s.groups + first / s.group + g) + 1];
        double m1 = 0, m2 = 0;
        for (int i = g * group + lane; i < (g + 1) * group; i += 32)
            norm_channel(s, affine, to, at.n, first + i, (double)entries[i], (double)entries[width + i] * rstd, &m1,
                         &m2);
        const float a = (float)(rstd * (warp_sum(m1) / all)), b = (float)(rstd * rstd * (warp_sum(m2) / all));
        for (int i = g * group + lane; i < (g + 1) * group; i += 32) {
            lines[3 * width + i] = a;
            lines[4 * width + i] = b;
        }
    }
}

template <class T, int VEC>
__device__ __forceinline__ void held_dx(const norm_call<T> &call, const norm_tiles &cut, const norm_place<VEC> &at,
                                        const norm_images<T> &images, const pack<T, VEC> *x, const pack<T, VEC> *dy,
                                        const float *lines)
{
    const norm_shape &s = call.shape;
    const T *add = norm_of(images.add1, images.add2, s, at.channel);
    T *dx = norm_of(images.dx1, images.dx2, s, at.channel);
    int64_t i = norm_offset(s, at.n, at.row, at.channel);
    const int64_t next = cut.rows * norm_step(s, at.channel);
#pragma unroll 1
    for (int left = at.count; left > 0; left--, i += next) {
        pack<T, VEC> v = *x;
        norm_dx_pack(call, v, *dy, lines, cut.channels, at.column, add ? add + i : nullptr);
        norm_store<VEC>(dx + i, v);
        x += cut.rows * cut.packs;
        dy += cut.rows * cut.packs;
    }
}

/* dx1 may be dy or add1, dx2 may be add2: a tile of dy is read before dx of it is written, and tiles share nothing. */
template <class T, int VEC>
__global__ void __launch_bounds__(THREADS, 4)
groupnorm_bwd_held_kernel(norm_call<T> call, norm_tiles cut, norm_images<T> images, norm_gradients to,
                          const float *stats)
{
    SHARED_DYNAMIC(unsigned char, room);
    const norm_shape &s = call.shape;
    pack<T, VEC> *x = reinterpret_cast<pack<T, VEC> *>(room), *dy = x + s.pixels * cut.packs;
    float *entries = reinterpret_cast<float *>(room + cut.entries_at);
    float *lines = reinterpret_cast<float *>(room + cut.lines_at);
    for (int64_t item = blockIdx.x; item < cut.items; item += gridDim.x) {
        const norm_place<VEC> at = norm_place_held<VEC>(s, cut, item);
        norm_fill_lines(s, call.affine, stats, at, cut.channels, lines);
        __syncthreads();
        const int mine = at.row * cut.packs + at.column / VEC;
        held_sums(call, cut, at, images.dy, x + mine, dy + mine, lines, entries);
        __syncthreads();
        norm_add_rows(entries, cut.rows, 2 * cut.channels);
        held_terms(s, call.affine, to, cut, at, stats, entries, lines);
        __syncthreads();
        if (at.active) held_dx(call, cut, at, images, x + mine, dy + mine, lines);
        __syncthreads(); /* before the next item's lines */
    }
}

/* ---- parameters ---- */

/* dgamma and dbeta += the images' sums; rows of threads take every 16th image, and are added by halves. */
__global__ void __launch_bounds__(PARAMETER_COLUMNS *PARAMETER_ROWS)
groupnorm_bwd_parameters_kernel(int64_t n_images, int64_t c, const float *sums, float *dgamma, float *dbeta)
{
    SHARED(double, room, PARAMETER_ROWS * 2 * PARAMETER_COLUMNS);
    const int column = (int)threadIdx.x % PARAMETER_COLUMNS, row = (int)threadIdx.x / PARAMETER_COLUMNS;
    for (int64_t first = (int64_t)blockIdx.x * PARAMETER_COLUMNS; first < c;
         first += (int64_t)gridDim.x * PARAMETER_COLUMNS) {
        const int64_t channel = first + column;
        double a = 0, b = 0;
#pragma unroll 4
        for (int64_t n = row; n < n_images && channel < c; n += PARAMETER_ROWS) {
            a += (double)sums[2 * n * c + channel];
            b += (double)sums[(2 * n + 1) * c + channel];
        }
        room[row * 2 * PARAMETER_COLUMNS + column] = a;
        room[(row * 2 + 1) * PARAMETER_COLUMNS + column] = b;
        __syncthreads();
        norm_add_rows(room, PARAMETER_ROWS, 2 * PARAMETER_COLUMNS);
        if (row == 0 && channel < c) {
            dbeta[channel] += (float)room[column];
            dgamma[channel] += (float)room[PARAMETER_COLUMNS + column];
        }
    }
}

/* ---- launches ---- */

/* Scratch: sums [N,2,C], and for slices terms [N,groups,2] and part [N,slices,2,C]. */
static size_t scratch_floats(const norm_shape &s, size_t *terms_at, size_t *part_at)
{
    *terms_at = (size_t)(s.n * 2 * s.c);
    *part_at = *terms_at + (size_t)(s.n * s.groups * 2);
    return *part_at + (size_t)(s.n * ceil_div(s.pixels, norm_slice_pixels(s.pixels)) * 2 * s.c);
}

template <class T> static norm_images<T> images_of(const groupnorm_bwd_args *a)
{
    norm_images<T> images = {};
    images.dy = static_cast<const T *>(a->dy->data);
    images.add1 = a->add1 ? static_cast<const T *>(a->add1->data) : nullptr;
    images.add2 = a->x2 && a->add2 ? static_cast<const T *>(a->add2->data) : nullptr;
    images.dx1 = static_cast<T *>(a->dx1->data);
    images.dx2 = a->x2 ? static_cast<T *>(a->dx2->data) : nullptr;
    return images;
}

static norm_gradients gradients_of(const groupnorm_bwd_args *a, float *sums)
{
    norm_gradients to = {};
    to.sums = sums;
    to.dscale = a->scale ? static_cast<float *>(a->dscale->data) : nullptr;
    to.dshift = a->shift ? static_cast<float *>(a->dshift->data) : nullptr;
    to.dscale_step = a->scale ? a->dscale->stride[0] : 0;
    to.dshift_step = a->shift ? a->dshift->stride[0] : 0;
    return to;
}

/* The sums of sliced images: those that were given, else of slices, into `part`. */
template <class T, int VEC, bool RESIZED>
static cudaError_t launch_sums(cudaStream_t stream, const groupnorm_bwd_args *a, const norm_call<T> &call,
                               const norm_slices &cut, float *part, norm_parts *out)
{
    const int64_t c = call.shape.c;
    if (a->dy_sum) {
        *out = norm_parts{floats_of(a->dy_sum), floats_of(a->dy_x), 1, c, false};
        return cudaSuccess;
    }
    *out = norm_parts{part, part + c, cut.per_image, 2 * c, true};
    return launch_kernel(groupnorm_bwd_sums_kernel<T, VEC, RESIZED>, dim3(grid_for(cut.items, 1)), dim3(THREADS), 0, stream,
                         call, cut, static_cast<const T *>(a->dy->data), static_cast<const float *>(a->stats->data), part);
}

template <class T, int VEC, bool RESIZED>
static cudaError_t launch_sliced(cudaStream_t stream, const groupnorm_bwd_args *a, const norm_call<T> &call,
                                 float *scratch)
{
    const norm_shape &s = call.shape;
    const norm_slices cut = norm_slices_of(s, VEC, THREADS);
    const norm_images<T> images = images_of<T>(a);
    const float *stats = static_cast<const float *>(a->stats->data);
    size_t terms_at, part_at;
    scratch_floats(s, &terms_at, &part_at);
    float *terms = scratch + terms_at;
    norm_parts part;
    cudaError_t e = launch_sums<T, VEC, RESIZED>(stream, a, call, cut, scratch + part_at, &part);
    if (e == cudaSuccess)
        e = launch_kernel(groupnorm_bwd_merge_kernel, dim3(grid_for(s.n * s.groups, 1)), dim3(MERGE_THREADS), 0, stream,
                          s, call.affine, gradients_of(a, scratch), part, stats, terms);
    if (e == cudaSuccess)
        e = launch_kernel(groupnorm_bwd_dx_kernel<T, VEC, RESIZED>, dim3(grid_for(cut.items, 1)), dim3(THREADS), 0, stream,
                          call, cut, images, stats, terms);
    return e;
}

template <class T, int VEC>
static cudaError_t launch_vec(cudaStream_t stream, const groupnorm_bwd_args *a, float *scratch)
{
    const norm_call<T> call = norm_call_of<T>(a);
    if (a->resample != NORM_SAME) return launch_sliced<T, VEC, true>(stream, a, call, scratch);
    const norm_holding holding = {2 * sizeof(T), 2 * sizeof(float), 5 * sizeof(float), THREADS};
    const norm_tiles held = norm_tiles_of(call.shape, VEC, sizeof(T), holding);
    if (held.channels == 0) return launch_sliced<T, VEC, false>(stream, a, call, scratch);
    const cudaError_t e = norm_allow(groupnorm_bwd_held_kernel<T, VEC>, held.bytes);
    if (e != cudaSuccess) return e;
    return launch_kernel(groupnorm_bwd_held_kernel<T, VEC>, dim3(grid_for(held.items, 1)), dim3((unsigned)held.threads),
                         (size_t)held.bytes, stream, call, held, images_of<T>(a), gradients_of(a, scratch),
                         static_cast<const float *>(a->stats->data));
}

template <class T> static cudaError_t launch_typed(cudaStream_t stream, const groupnorm_bwd_args *a, float *scratch)
{
    const bool first = norm_packs<T>(a->x1) && norm_packs<T>(a->dx1) && norm_packs<T>(a->add1) && norm_packs<T>(a->dy);
    const bool second = !a->x2 || (norm_packs<T>(a->x2) && norm_packs<T>(a->dx2) && norm_packs<T>(a->add2));
    return first && second ? launch_vec<T, pack_of<T>::width>(stream, a, scratch)
                           : launch_vec<T, 1>(stream, a, scratch);
}

extern "C" size_t scratch_groupnorm_bwd(const struct groupnorm_bwd_args *a)
{
    size_t terms_at, part_at;
    return scratch_floats(norm_shape_of(a), &terms_at, &part_at) * sizeof(float);
}

extern "C" cudaError_t launch_groupnorm_bwd(cudaStream_t stream, const struct groupnorm_bwd_args *a, void *scratch)
{
    float *sums = static_cast<float *>(scratch);
    cudaError_t e = cudaSuccess;
    WITH_TYPE(a->x1->dtype, T, e = launch_typed<T>(stream, a, sums));
    if (e != cudaSuccess) return e;
    const norm_shape s = norm_shape_of(a);
    return launch_kernel(groupnorm_bwd_parameters_kernel, dim3(grid_for(s.c, PARAMETER_COLUMNS)),
                         dim3(PARAMETER_COLUMNS * PARAMETER_ROWS), 0, stream, s.n, s.c,
                         static_cast<const float *>(sums), static_cast<float *>(a->dgamma->data),
                         static_cast<float *>(a->dbeta->data));
}

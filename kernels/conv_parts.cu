/* conv_parts.cu - what a convolution adds to every pixel of a channel, and what its gradient sums from them.
 *
 *   conv_epilogue   y += (bias[k] + emb[n,k]) + residual, each where given
 *   conv_sums       demb[n,k] = sum over pixels of dy; db[k] += sum over images and pixels
 *
 * Mapping    both see an image as a matrix of pixels by packs of channels, cut into slices of pixels by blocks of up
 *            to 64 packs (struct tiling). In a block a thread keeps its pack of channels and walks down the pixels:
 *            the offset of the epilogue is computed once a walk, and a sum is one register a channel. Consecutive
 *            threads take consecutive packs of a pixel, then the next pixel.
 * Sums       in three levels, all in an order fixed by the shapes: a thread's walk, the block's threads of one
 *            column, then the slices, added by fold_kernel: of an image for demb, of all images for db. With walks of
 *            16 pixels a large image's rounding error grows with the length of the levels and not with their product.
 * Cost       bytes per bf16 (f32) element: epilogue 4 (8), with a residual 6 (12), each operand once; sums 2 (4), dy
 *            once. The slices' sums are f32, one per channel and 16 pixels a thread: at most 3 % of dy, written once
 *            and read once or twice.
 * Rejected   sums as a product with a row of ones: another library's order of sums. One kernel that ends with the
 *            last block to arrive: a counter in memory that must be zero before, to save a launch. */
#include "common.cuh"

static constexpr int THREADS = 256;
static constexpr int MOST_PACKS = 64;          /* of a pixel in one block: 1 KB in a row, and four pixels at a time */
static constexpr int EPILOGUE_WALK = 8;        /* pixels a thread: enough to forget the cost of its offset */
static constexpr int SUMS_WALK = 16;           /* and to make the slices' sums small against dy */
static constexpr int64_t MOST_SLICES = 64;     /* of an image in the sums; larger images have longer walks */
static constexpr int64_t MOST_BLOCKS = 8192;   /* dozens per processor; blocks stride over the rest */
static constexpr int BATCH = 4;                /* loads a thread has under way in a sum */
static constexpr int FOLD_ROWS = 32;           /* warps of a block of fold_kernel at most */

/* ---- the cut ---- */

struct tiling {
    int64_t n, pixels, packs;      /* images, pixels of an image, packs of a pixel */
    int width, rows;               /* packs and pixels that a block's threads take at a time */
    int64_t columns;               /* blocks beside each other: ceil(packs / width) */
    int64_t slice, slices;         /* pixels of a slice, slices of an image */
};

static struct tiling tiling_of(const ddpm_tensor *y, int vec, int walk, int64_t most_slices)
{
    struct tiling t;
    t.n = y->dim[0];
    t.pixels = y->dim[1] * y->dim[2];
    t.packs = y->dim[3] / vec;
    t.width = (int)ceil_div(t.packs, ceil_div(t.packs, MOST_PACKS)); /* even blocks, not 64 and a rest */
    t.rows = THREADS / t.width;
    t.columns = ceil_div(t.packs, t.width);
    const int64_t slices = ceil_div(t.pixels, t.rows * walk);
    t.slice = ceil_div(t.pixels, slices < most_slices ? slices : most_slices);
    t.slices = ceil_div(t.pixels, t.slice);
    return t;
}

static int64_t tiles(const struct tiling &t)
{
    return t.n * t.slices * t.columns;
}

/* What a block does now, and a thread of it. */
struct tile {
    int64_t image, slice; /* and the slice's number over all images is image * slices + slice */
    int64_t column;       /* first pack */
    int64_t begin, end;   /* this thread's first pixel, and the slice's last + 1 */
    int64_t pack;         /* this thread's pack */
    bool has_pack;
};

__device__ __forceinline__ struct tile tile_at(const struct tiling &t, int64_t i)
{
    struct tile at;
    const int64_t strip = i / t.columns;
    const int row = (int)threadIdx.x / t.width;
    at.image = strip / t.slices;
    at.slice = strip - at.image * t.slices;
    at.column = (i - strip * t.columns) * t.width;
    at.begin = at.slice * t.slice + row;
    at.end = at.slice * t.slice + t.slice;
    at.end = at.end < t.pixels ? at.end : t.pixels;
    at.pack = at.column + ((int)threadIdx.x - row * t.width);
    at.has_pack = row < t.rows && at.pack < t.packs;
    return at;
}

/* VEC elements in accesses of LOAD: the full pack, or one by one where the pointer lies askew. Which of the two does
 * not change who adds what: the order of sums is the shape's alone. */
template <int VEC, int LOAD, class T> __device__ __forceinline__ void load_in_parts(const T *p, float x[VEC])
{
#pragma unroll
    for (int i = 0; i < VEC; i += LOAD)
        load_floats<LOAD>(p + i, x + i);
}

/* ---- kernels ---- */

/* residual may be y */
template <class T, int VEC>
__global__ void __launch_bounds__(THREADS)
    conv_epilogue_kernel(struct tiling t, const float *__restrict__ bias, const float *__restrict__ emb,
                         int64_t emb_stride, const T *residual, T *y)
{
    for (int64_t i = blockIdx.x; i < t.n * t.slices * t.columns; i += gridDim.x) {
        const struct tile at = tile_at(t, i);
        if (!at.has_pack) continue;
        float offset[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const int64_t k = at.pack * VEC + j;
            offset[j] = (bias ? bias[k] : 0.0f) + (emb ? emb[at.image * emb_stride + k] : 0.0f);
        }
        for (int64_t p = at.begin; p < at.end; p += t.rows) {
            const int64_t where = ((at.image * t.pixels + p) * t.packs + at.pack) * VEC;
            float x[VEC], add[VEC] = {};
            load_floats<VEC>(y + where, x);
            if (residual) load_floats<VEC>(residual + where, add);
#pragma unroll
            for (int j = 0; j < VEC; j++)
                x[j] = (x[j] + offset[j]) + add[j];
            store_floats<VEC>(y + where, x);
        }
    }
}

/* Adds one thread's walk down its pack; `from` is the image's pixel 0. Loads go out BATCH at a time. */
template <int VEC, int LOAD, class T>
__device__ __forceinline__ void add_walk(const struct tiling &t, const struct tile &at, const T *from, float sum[VEC])
{
    const int64_t pixel = t.packs * VEC;
    int64_t p = at.begin;
    for (; p + (BATCH - 1) * t.rows < at.end; p += BATCH * t.rows) {
        float x[BATCH][VEC];
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            load_in_parts<VEC, LOAD>(from + (p + b * t.rows) * pixel, x[b]);
#pragma unroll
        for (int b = 0; b < BATCH; b++)
#pragma unroll
            for (int j = 0; j < VEC; j++)
                sum[j] += x[b][j];
    }
    for (; p < at.end; p += t.rows) {
        float x[VEC];
        load_in_parts<VEC, LOAD>(from + p * pixel, x);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            sum[j] += x[j];
    }
}

/* sums [n, slices, k] */
template <class T, int VEC, int LOAD>
__global__ void __launch_bounds__(THREADS)
    conv_sums_kernel(struct tiling t, const T *__restrict__ dy, float *__restrict__ sums)
{
    SHARED(float, room, THREADS * VEC);
    for (int64_t i = blockIdx.x; i < t.n * t.slices * t.columns; i += gridDim.x) {
        const struct tile at = tile_at(t, i);
        float sum[VEC] = {};
        if (at.has_pack)
            add_walk<VEC, LOAD>(t, at, dy + (at.image * t.pixels * t.packs + at.pack) * VEC, sum);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            room[threadIdx.x * VEC + j] = sum[j];
        __syncthreads();
        const int64_t k = t.packs * VEC, first = at.column * VEC;
        const int row = t.width * VEC;
        for (int j = (int)threadIdx.x; j < row && first + j < k; j += THREADS) {
            float all = room[j];
            for (int r = 1; r < t.rows; r++)
                all += room[r * row + j];
            sums[(at.image * t.slices + at.slice) * k + first + j] = all;
        }
        __syncthreads();
    }
}

/* out[g,k] = (or +=) sum over r of x[g,r,k]. A block takes 32 columns of one g; a warp adds every blockDim.y-th row,
 * then the first warp adds the warps' sums in order. */
__global__ void __launch_bounds__(32 * FOLD_ROWS)
    fold_kernel(int64_t groups, int64_t rows, int64_t k, const float *__restrict__ x, float *__restrict__ out,
                int64_t out_stride, bool accumulate)
{
    SHARED(float, room, 32 * FOLD_ROWS);
    const int64_t columns = (k + 31) / 32;
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, warps = (int)blockDim.y;
    for (int64_t i = blockIdx.x; i < groups * columns; i += gridDim.x) {
        const int64_t g = i / columns, column = (i - g * columns) * 32 + lane;
        float sum = 0.0f;
        for (int64_t first = warp; column < k && first < rows; first += BATCH * warps) {
            float part[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int64_t r = first + b * warps;
                part[b] = r < rows ? x[(g * rows + r) * k + column] : 0.0f;
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                sum += part[b];
        }
        room[warp * 32 + lane] = sum;
        __syncthreads();
        if (warp == 0 && column < k) {
            for (int w = 1; w < warps; w++)
                sum += room[w * 32 + lane];
            float *to = out + g * out_stride + column;
            *to = accumulate ? *to + sum : sum;
        }
        __syncthreads();
    }
}

/* ---- launchers ---- */

template <class T> static cudaError_t epilogue(cudaStream_t stream, const struct conv2d_args *a)
{
    constexpr int VEC = pack_of<T>::width;
    const T *residual = a->residual ? static_cast<const T *>(a->residual->data) : nullptr;
    T *y = static_cast<T *>(a->y->data);
    const int64_t k = a->y->dim[3];
    const bool fits = packs_fit<T>(y, k) && packs_fit<T>(residual, k);
    const struct tiling t = tiling_of(a->y, fits ? VEC : 1, EPILOGUE_WALK, INT64_MAX);
    return launch_kernel(fits ? conv_epilogue_kernel<T, VEC> : conv_epilogue_kernel<T, 1>,
                         grid_for(tiles(t), 1, MOST_BLOCKS), THREADS, 0, stream, t, floats_of(a->bias),
                         floats_of(a->emb), a->emb ? a->emb->stride[0] : 0, residual, y);
}

extern "C" cudaError_t launch_conv_epilogue(cudaStream_t stream, const struct conv2d_args *a)
{
    if (!a->bias && !a->emb && !a->residual) return cudaSuccess;
    WITH_TYPE(a->y->dtype, T, return epilogue<T>(stream, a));
}

/* By shape and dtype, not by the pointer: scratch is asked for while there is none. */
template <class T> static struct tiling sums_tiling(const ddpm_tensor *dy)
{
    return tiling_of(dy, packs_fit<T>(nullptr, dy->dim[3]) ? pack_of<T>::width : 1, SUMS_WALK, MOST_SLICES);
}

extern "C" size_t scratch_conv_sums(const struct conv2d_bwd_filter_args *a)
{
    if (!a->db && !a->demb) return 0;
    struct tiling t;
    WITH_TYPE(a->dy->dtype, T, t = sums_tiling<T>(a->dy));
    return (size_t)(t.n * t.slices * a->dy->dim[3]) * sizeof(float);
}

template <class T>
static cudaError_t sums_of_slices(cudaStream_t stream, const struct tiling &t, const ddpm_tensor *dy, float *sums)
{
    constexpr int VEC = pack_of<T>::width;
    const T *from = static_cast<const T *>(dy->data);
    void (*kernel)(struct tiling, const T *, float *) = conv_sums_kernel<T, 1, 1>;
    if (dy->dim[3] % VEC == 0)
        kernel = packs_fit<T>(from, dy->dim[3]) ? conv_sums_kernel<T, VEC, VEC> : conv_sums_kernel<T, VEC, 1>;
    return launch_kernel(kernel, grid_for(tiles(t), 1, MOST_BLOCKS), THREADS, 0, stream, t, from, sums);
}

static cudaError_t fold(cudaStream_t stream, int64_t groups, int64_t rows, int64_t k, const float *x, float *out,
                        int64_t out_stride, bool accumulate)
{
    const dim3 block(32, (unsigned)(rows < FOLD_ROWS ? rows : FOLD_ROWS));
    return launch_kernel(fold_kernel, grid_for(groups * ceil_div(k, 32), 1, MOST_BLOCKS), block, 0, stream, groups,
                         rows, k, x, out, out_stride, accumulate);
}

extern "C" cudaError_t launch_conv_sums(cudaStream_t stream, const struct conv2d_bwd_filter_args *a, void *scratch)
{
    if (!a->db && !a->demb) return cudaSuccess;
    const int64_t k = a->dy->dim[3];
    float *sums = static_cast<float *>(scratch);
    struct tiling t;
    cudaError_t e;
    WITH_TYPE(a->dy->dtype, T, t = sums_tiling<T>(a->dy); e = sums_of_slices<T>(stream, t, a->dy, sums));
    if (!e && a->demb)
        e = fold(stream, t.n, t.slices, k, sums, static_cast<float *>(a->demb->data), a->demb->stride[0], false);
    if (!e && a->db) e = fold(stream, 1, t.n * t.slices, k, sums, static_cast<float *>(a->db->data), k, true);
    return e;
}

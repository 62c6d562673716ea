/* pack.cu - the same values laid out otherwise: channels padded for tensor cores, and the layouts of files.
 *
 *   pack_channels    pixels of c channels to pixels of c_padded, zeros added or channels dropped
 *   nhwc_to_nchw     for each image the transpose of pixels by channels, and back
 *
 * Mapping    pack_channels: a thread writes 16 bytes, which for three channels padded to eight is a pixel in bf16;
 *            what it reads one by one are neighbours of what the next thread reads, in the same lines of the cache.
 *            The transposes: a block moves a tile of up to 1024 values through shared memory, read and written in
 *            runs along the innermost dimension of either side. A tile is 32 by 32, or all of a side shorter than
 *            that by as much as fits of the other: images have 3 channels by many pixels, filters 9 pixels by many
 *            channels.
 * Cost       each value is read once and written once, the minimum. For 3 of 8 channels the memory moves whole pixels
 *            of 16 bytes either way.
 * Rejected   a transpose without a tile: one of its sides would move 32 bytes for 4. */
#include "common.cuh"

static constexpr int THREADS = 256;
static constexpr int TILE = 1024;             /* values: four a thread */
static constexpr int SIDE = 32;
static constexpr int64_t MOST_BLOCKS = 4096; /* dozens per processor; blocks stride over the rest */

/* ---- padding of channels ---- */

/* VEC elements of `to` a thread, all of one pixel. */
template <class From, class To, int VEC>
__global__ void __launch_bounds__(THREADS)
    pack_channels_kernel(int64_t packs, int64_t packs_per_pixel, int64_t c, const From *__restrict__ from,
                         To *__restrict__ to)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        const int64_t pixel = i / packs_per_pixel, first = (i - pixel * packs_per_pixel) * VEC;
        float x[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++)
            x[j] = first + j < c ? to_float(from[pixel * c + first + j]) : 0.0f;
        store_floats<VEC>(to + i * VEC, x);
    }
}

template <class From, class To>
static cudaError_t pack_channels(cudaStream_t stream, int64_t pixels, const void *from, int64_t c, void *to,
                                 int64_t c_padded)
{
    constexpr int VEC = pack_of<To>::width;
    const bool fits = packs_fit<To>(to, c_padded);
    const int64_t per_pixel = fits ? c_padded / VEC : c_padded;
    return launch_kernel(fits ? pack_channels_kernel<From, To, VEC> : pack_channels_kernel<From, To, 1>,
                         grid_for(pixels * per_pixel, THREADS), THREADS, 0, stream, pixels * per_pixel, per_pixel, c,
                         static_cast<const From *>(from), static_cast<To *>(to));
}

extern "C" cudaError_t launch_pack_channels(cudaStream_t stream, int64_t pixels, const void *from,
                                            ddpm_dtype from_dtype, int64_t c, void *to, ddpm_dtype to_dtype,
                                            int64_t c_padded)
{
    WITH_TYPE(from_dtype, From,
              WITH_TYPE(to_dtype, To, return pack_channels<From, To>(stream, pixels, from, c, to, c_padded)));
}

/* ---- transposes ---- */

/* n matrices of rows by columns, in tiles of tile_rows by tile_columns <= TILE values. */
struct matrices {
    int64_t n, rows, columns;
    int tile_rows, tile_columns;
};

static struct matrices matrices_of(int64_t n, int64_t rows, int64_t columns)
{
    struct matrices m = {n, rows, columns, SIDE, SIDE};
    if (columns <= SIDE) {
        m.tile_columns = (int)columns;
        m.tile_rows = (int)(rows < TILE / columns ? rows : TILE / columns);
    } else if (rows <= SIDE) {
        m.tile_rows = (int)rows;
        m.tile_columns = (int)(columns < TILE / rows ? columns : TILE / rows);
    }
    return m;
}

/* to[n, column, row] = from[n, row, column]. In shared memory a column has one place more than rows, so that both the
 * threads of a row and those of a column reach different banks; with one row a column that makes 2 TILE places. */
template <class From, class To>
__global__ void __launch_bounds__(THREADS)
    transpose_kernel(struct matrices m, const From *__restrict__ from, To *__restrict__ to)
{
    SHARED(float, tile, 2 * TILE);
    const int64_t down = (m.rows + m.tile_rows - 1) / m.tile_rows;
    const int64_t across = (m.columns + m.tile_columns - 1) / m.tile_columns;
    const int size = m.tile_rows * m.tile_columns, pitch = m.tile_rows + 1;
    for (int64_t i = blockIdx.x; i < m.n * down * across; i += gridDim.x) {
        const int64_t strip = i / across, n = strip / down;
        const int64_t row = (strip - n * down) * m.tile_rows, column = (i - strip * across) * m.tile_columns;
        const int64_t base = n * m.rows * m.columns;
        for (int e = (int)threadIdx.x; e < size; e += THREADS) {
            const int r = e / m.tile_columns, c = e - r * m.tile_columns;
            if (row + r < m.rows && column + c < m.columns)
                tile[c * pitch + r] = to_float(from[base + (row + r) * m.columns + column + c]);
        }
        __syncthreads();
        for (int e = (int)threadIdx.x; e < size; e += THREADS) {
            const int c = e / m.tile_rows, r = e - c * m.tile_rows;
            if (row + r < m.rows && column + c < m.columns)
                to[base + (column + c) * m.rows + row + r] = from_float<To>(tile[c * pitch + r]);
        }
        __syncthreads();
    }
}

template <class From, class To>
static cudaError_t transpose(cudaStream_t stream, const struct matrices &m, const From *from, To *to)
{
    const int64_t tiles = m.n * ceil_div(m.rows, m.tile_rows) * ceil_div(m.columns, m.tile_columns);
    return launch_kernel(transpose_kernel<From, To>, grid_for(tiles, 1, MOST_BLOCKS), THREADS, 0, stream, m, from, to);
}

extern "C" cudaError_t launch_nhwc_to_nchw(cudaStream_t stream, int64_t n, int64_t pixels, int64_t c, const void *from,
                                           ddpm_dtype dtype, float *to)
{
    WITH_TYPE(dtype, T,
              return transpose(stream, matrices_of(n, pixels, c), static_cast<const T *>(from), to));
}

extern "C" cudaError_t launch_nchw_to_nhwc(cudaStream_t stream, int64_t n, int64_t pixels, int64_t c, const float *from,
                                           void *to, ddpm_dtype dtype)
{
    WITH_TYPE(dtype, T,
              return transpose(stream, matrices_of(n, c, pixels), from, static_cast<T *>(to)));
}

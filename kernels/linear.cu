/* linear.cu - dense layers: convolutions of 1x1 images by 1x1 kernels, an image a row.
 *
 * The fallback where cuBLASLt is not at hand. Products are those of conv.cu, whose launchers take the pixels of y, and
 * here the rows of a view, by their own stride. db is a kernel of its own: dy is a view, and a column's sum has M terms
 * for I products each, so reading dy once more costs 1/I of the filter pass.
 * Cost  2 M I O operations each pass; with the few rows of a time embedding (M < 64) the passes read w once, 2 or 4 I O
 *   bytes, which is the minimum, but with O / 64 blocks and not a whole GPU. Rejected: cutting the inner dimension
 *   there, for a network has two such layers of a few microseconds each. */
#include "common.cuh"

static constexpr int COLUMNS = 32; /* of a block of column sums: a warp's width of dy */
static constexpr int LINES = 8;    /* threads of a column */

/* [rows, columns] as rows images of one pixel. */
static ddpm_tensor as_images(const ddpm_tensor *t)
{
    ddpm_tensor images = *t;
    images.rank = 4;
    for (int i = 1; i < 4; i++) {
        images.dim[i] = i < 3 ? 1 : t->dim[1];
        images.stride[i] = i < 3 ? t->stride[0] : 1;
    }
    return images;
}

/* db[o] += the sum over m of dy[m,o]: every LINES-th row in order, then the lines in order. */
template <class T>
__global__ void __launch_bounds__(COLUMNS *LINES)
    column_sums_kernel(int64_t rows, int64_t columns, const T *__restrict__ dy, int64_t dy_row, float *__restrict__ db)
{
    SHARED(float, sums, LINES *COLUMNS);
    const int line = (int)threadIdx.x / COLUMNS, lane = (int)threadIdx.x % COLUMNS;
    const int64_t o = (int64_t)blockIdx.x * COLUMNS + lane;
    float sum = 0.0f;
    if (o < columns)
        for (int64_t m = line; m < rows; m += LINES)
            sum += to_float(dy[m * dy_row + o]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (line > 0 || o >= columns) return;
    for (int i = 1; i < LINES; i++)
        sum += sums[i * COLUMNS + lane];
    db[o] += sum;
}

template <class T> static cudaError_t launch_column_sums(cudaStream_t stream, const ddpm_tensor *dy, ddpm_tensor *db)
{
    const int64_t rows = dy->dim[0], columns = dy->dim[1];
    return launch_kernel(column_sums_kernel<T>, grid_of_all(ceil_div(columns, COLUMNS)), COLUMNS * LINES, 0, stream, rows,
                         columns, (const T *)dy->data, dy->stride[0], (float *)db->data);
}

extern "C" size_t scratch_linear(const struct linear_args *)
{
    return 0;
}

extern "C" cudaError_t launch_linear(cudaStream_t stream, const struct linear_args *a, void *scratch)
{
    const ddpm_tensor x = as_images(a->x), w = as_images(a->w);
    ddpm_tensor y = as_images(a->y);
    struct conv2d_args conv = {};
    conv.x = &x, conv.w = &w, conv.bias = a->bias, conv.stride = 1, conv.y = &y;
    return launch_conv2d(stream, &conv, scratch);
}

/* The filter pass of a layer, without db. */
struct filter_call {
    ddpm_tensor x, dy, dw;
    struct conv2d_bwd_filter_args args;
};

static void filter_of(const struct linear_bwd_args *a, struct filter_call *call)
{
    call->x = as_images(a->x);
    call->dy = as_images(a->dy);
    call->dw = as_images(a->dw);
    call->args = {};
    call->args.x = &call->x, call->args.dy = &call->dy, call->args.stride = 1, call->args.dw = &call->dw;
}

extern "C" size_t scratch_linear_bwd(const struct linear_bwd_args *a)
{
    struct filter_call call;
    filter_of(a, &call);
    return scratch_conv2d_bwd_filter(&call.args);
}

extern "C" cudaError_t launch_linear_bwd(cudaStream_t stream, const struct linear_bwd_args *a, void *scratch)
{
    struct filter_call call;
    filter_of(a, &call);
    cudaError_t e = launch_conv2d_bwd_filter(stream, &call.args, scratch);
    if (!e && a->dx) {
        const ddpm_tensor w = as_images(a->w);
        ddpm_tensor dx = as_images(a->dx);
        struct conv2d_bwd_data_args data = {};
        data.dy = &call.dy, data.w = &w, data.stride = 1, data.accumulate = a->accumulate, data.dx = &dx;
        e = launch_conv2d_bwd_data(stream, &data, NULL);
    }
    if (!e && a->db) WITH_TYPE(a->dy->dtype, T, e = launch_column_sums<T>(stream, a->dy, a->db));
    return e;
}

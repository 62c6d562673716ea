/* groupnorm_lines.cu - GroupNorm as a line of x for each image and channel, for products that go through it on the way.
 *
 * Contract   launch.h, launch_groupnorm_lines.
 * Method     u = (x - mean) slope + offset = slope x + (offset - mean slope), slope and offset as groupnorm.cu has them.
 * Cost       8 bytes a channel and image, a few kilobytes in all: the time of a launch. */
#include "groupnorm.cuh"

static constexpr int THREADS = 128;

/* a and b [N,C] */
__global__ void __launch_bounds__(THREADS)
groupnorm_lines_kernel(norm_shape s, norm_affine affine, const float *stats, float *a, float *b)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < s.n * s.c; i += step) {
        const int64_t n = i / s.c, channel = i % s.c;
        const float *group = stats + 2 * (n * s.groups + channel / s.group);
        float slope, offset;
        norm_line(affine, n, channel, group[1], &slope, &offset);
        a[i] = slope;
        b[i] = fmaf(-group[0], slope, offset);
    }
}

extern "C" cudaError_t launch_groupnorm_lines(cudaStream_t stream, const struct norm_ref *norm, float *a, float *b)
{
    norm_shape s = {};
    s.n = norm->x->dim[0];
    s.c = norm->x->dim[3];
    s.groups = norm->groups;
    s.group = s.c / s.groups;
    return launch_kernel(groupnorm_lines_kernel, dim3(grid_for(s.n * s.c, THREADS)), dim3(THREADS), 0, stream, s,
                         norm_affine_of(norm), static_cast<const float *>(norm->stats->data), a, b);
}

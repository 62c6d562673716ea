/* launch.h - the C interface of kernels/: for each op of ops.h how much scratch it wants, and its launch.
 *
 *   scratch_<op>   bytes of device scratch for this call, by shapes alone; 0 for most. Reads no tensor data.
 *   launch_<op>    enqueues the op on `stream` and returns the launch's own status (faults inside kernels arrive at a later
 *                  synchronisation). The arguments have passed expect_<op> (contracts.h) and lie on the device; `scratch` is
 *                  256-byte aligned, scratch_<op> bytes, contents undefined, free again once the op has run.
 *
 * Every launch depends on shapes alone, never on the device: grids, splits and orders of sums are the same on every GPU, so
 * results are too. Nothing here allocates, synchronises or reads device memory on the host; all of it may be captured into
 * a CUDA graph. Activations are f32 or bf16 (ops.h, "dtype"), arithmetic is f32 at least.
 * Bound: a tensor has fewer than 2^62 elements; element offsets are 64-bit everywhere. A launch of more than 2^31 - 1
 * blocks (2^43 results of a product) gives cudaErrorInvalidConfiguration. */
#ifndef KERNELS_LAUNCH_H
#define KERNELS_LAUNCH_H

#include "ops.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define X(op)                                                                                                             \
    size_t scratch_##op(const struct op##_args *a);                                                                       \
    cudaError_t launch_##op(cudaStream_t stream, const struct op##_args *a, void *scratch);
OP_LIST(X)
#undef X

/* ---- parts of ops, for backends that do the product itself elsewhere ---- */

/* What conv2d adds to its product: y += bias[k] + emb[n,k] + residual, each where given, in one pass. x and w are not read. */
cudaError_t launch_conv_epilogue(cudaStream_t stream, const struct conv2d_args *a);
/* db and demb of conv2d_bwd_filter, each where given: column sums of dy in a fixed order. x and dw are not read. */
size_t scratch_conv_sums(const struct conv2d_bwd_filter_args *a);
cudaError_t launch_conv_sums(cudaStream_t stream, const struct conv2d_bwd_filter_args *a, void *scratch);

/* What a norm makes of x before SiLU, as lines: u = a x + b for each image and channel. a, b [N,C] dense. */
cudaError_t launch_groupnorm_lines(cudaStream_t stream, const struct norm_ref *norm, float *a, float *b);

/* Pixels of c channels to pixels of c_padded >= c channels (the added ones zero), or back (the last ones dropped) where
 * c_padded < c; f32 or bf16 on either side. For the first and last convolution, whose 1 or 3 channels tensor cores cannot
 * take. from [pixels, c], to [pixels, c_padded]. */
cudaError_t launch_pack_channels(cudaStream_t stream, int64_t pixels, const void *from, ddpm_dtype from_dtype, int64_t c,
                                 void *to, ddpm_dtype to_dtype, int64_t c_padded);
/* [n, h*w, c] f32 or bf16 to [n, c, h*w] f32 and back, through tiles in shared memory: the layouts of files. */
cudaError_t launch_nhwc_to_nchw(cudaStream_t stream, int64_t n, int64_t pixels, int64_t c, const void *from,
                                ddpm_dtype dtype, float *to);
cudaError_t launch_nchw_to_nhwc(cudaStream_t stream, int64_t n, int64_t pixels, int64_t c, const float *from, void *to,
                                ddpm_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif

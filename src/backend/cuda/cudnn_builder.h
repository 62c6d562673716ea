/* cudnn_builder.h - the descriptors a graph is made of; for cudnn_*.c alone.
 *
 * A builder collects. The first fault stays in `s` and every later call does nothing, so that a graph reads as the list
 * of its operations and looks once, in builder_finish. */
#ifndef BACKEND_CUDA_CUDNN_BUILDER_H
#define BACKEND_CUDA_CUDNN_BUILDER_H

#include "cudnn_graph.h"

#include "fail.h"
#include "text.h"

typedef cudnnBackendDescriptor_t cudnn_descriptor;

enum { BUILDER_OPERATIONS = 24, BUILDER_DESCRIPTORS = 96 };

struct cudnn_builder {
    struct cudnn_graph *g;
    ddpm_status s;
    cudnn_descriptor operation[BUILDER_OPERATIONS];
    int n_operations;
    int64_t next_virtual;
    text_buffer name;
};

/* A tensor's extents and strides in cuDNN's order of dimensions: images N, C, H, W. */
struct cudnn_shape {
    int rank;
    int64_t dim[4], stride[4];
};

void builder_begin(struct cudnn_builder *b, ddpm_dtype dtype);
/* Finalises the graph, or frees it and gives the first fault. */
ddpm_status builder_finish(struct cudnn_builder *b, struct cudnn_graph **out);

/* Shapes of views: an image or kernel [N,H,W,C]; a row of channels per image [N,C] or one for all [C]. */
struct cudnn_shape shape_image(const ddpm_tensor *t);
struct cudnn_shape shape_rows(const ddpm_tensor *t);
/* Dense, channels innermost. */
struct cudnn_shape shape_dense(int64_t n, int64_t c, int64_t h, int64_t w);

/* A tensor of the caller's, an input or an output. */
cudnn_descriptor builder_given(struct cudnn_builder *b, int64_t uid, bool is_output, const ddpm_tensor *t,
                               struct cudnn_shape shape);
/* f32 [N,C], written or read, dense. */
cudnn_descriptor builder_per_image(struct cudnn_builder *b, int64_t uid, bool is_output, int64_t n, int64_t c);
/* One that the plan keeps in its workspace: f32. */
cudnn_descriptor builder_kept(struct cudnn_builder *b, int64_t uid, enum cudnn_place place, struct cudnn_shape shape);
cudnn_descriptor builder_constant(struct cudnn_builder *b, int64_t uid, float value);
/* A value that never reaches memory. */
cudnn_descriptor builder_virtual(struct cudnn_builder *b, ddpm_dtype dtype, struct cudnn_shape shape);

/* Operations. Attributes of a descriptor that has no name here are set by the caller. */
cudnn_descriptor builder_descriptor(struct cudnn_builder *b, cudnnBackendDescriptorType_t type);
void builder_set(struct cudnn_builder *b, cudnn_descriptor d, cudnnBackendAttributeName_t attribute,
                 cudnnBackendAttributeType_t type, int64_t n, const void *values);
void builder_link(struct cudnn_builder *b, cudnn_descriptor d, cudnnBackendAttributeName_t attribute,
                  cudnn_descriptor value);
void builder_finalize(struct cudnn_builder *b, const char *what, cudnn_descriptor d);
/* Finalises d and makes it the graph's next operation. */
void builder_operation(struct cudnn_builder *b, const char *what, cudnn_descriptor d);
/* y = x op operand, operand NULL for functions of x alone. */
void builder_pointwise(struct cudnn_builder *b, cudnnPointwiseMode_t mode, cudnn_descriptor x, cudnn_descriptor operand,
                       cudnn_descriptor y);
/* dx = dy * f'(x) */
void builder_pointwise_bwd(struct cudnn_builder *b, cudnnPointwiseMode_t mode, cudnn_descriptor x, cudnn_descriptor dy,
                           cudnn_descriptor dx);
/* y = sum of x over the dimensions in which y has extent 1. */
void builder_sum(struct cudnn_builder *b, cudnn_descriptor x, cudnn_descriptor y);
void builder_matmul(struct cudnn_builder *b, cudnn_descriptor x, cudnn_descriptor y, cudnn_descriptor product);

/* " what 128x32x32x3/s0,s1,s2,s3" into the name; strides only where the view is not dense, the dtype only where it is not
 * the graph's. */
void builder_describe(struct cudnn_builder *b, const char *what, const ddpm_tensor *t);
/* Adds the tensor's bytes to the name's graph: 2 per multiply-add. */
void builder_count_flops(struct cudnn_builder *b, double multiply_adds);

#endif

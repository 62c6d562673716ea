/* cudnn_graph.c - cuDNN's descriptors as a list of calls: tensors from views, operations from tensors, one graph.
 *
 * Every descriptor lives until the graph is freed: cuDNN does not say which of them it copies. Nothing here needs a
 * handle or a device; a graph that is refused is refused for its shapes, and the message carries cuDNN's own words. */
#include "cudnn_builder.h"

#include "views.h"

#include <stdlib.h>
#include <string.h>

ddpm_status cudnn_check(const char *what, cudnnStatus_t e)
{
    if (!e) return DDPM_OK;
    char why[512] = "";
    cudnnGetLastErrorString(why, sizeof why);
    if (e == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED || e == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)
        return FAIL(NOMEM, "%s: cuDNN has no memory (%s): %s", what, cudnnGetErrorString(e), why);
    return FAIL(BACKEND, "%s: %s: %s", what, cudnnGetErrorString(e), why);
}

/* ---- shapes ---- */

struct cudnn_shape shape_image(const ddpm_tensor *t)
{
    return (struct cudnn_shape){4,
                                {t->dim[0], t->dim[3], t->dim[1], t->dim[2]},
                                {t->stride[0], t->stride[3], t->stride[1], t->stride[2]}};
}

struct cudnn_shape shape_rows(const ddpm_tensor *t)
{
    const int64_t c = t->dim[t->rank - 1];
    if (t->rank == 1) return shape_dense(1, c, 1, 1);
    return (struct cudnn_shape){4, {t->dim[0], c, 1, 1}, {t->stride[0], 1, c, c}};
}

struct cudnn_shape shape_dense(int64_t n, int64_t c, int64_t h, int64_t w)
{
    return (struct cudnn_shape){4, {n, c, h, w}, {h * w * c, 1, w * c, c}};
}

/* The last element's end, counted from the first's begin. */
static size_t span_bytes(const struct cudnn_shape *shape, ddpm_dtype dtype)
{
    int64_t last = 0;
    for (int i = 0; i < shape->rank; i++)
        last += (shape->dim[i] - 1) * shape->stride[i];
    return (size_t)(last + 1) * ddpm_dtype_size(dtype);
}

/* A dense tensor begins where memory was given out, on 16 bytes at least. A view begins at any multiple of its own row
 * within steps of its strides, so it is aligned as the least of these. */
static int alignment_of(const ddpm_tensor *t)
{
    if (view_is_dense(t)) return 16;
    const int64_t unit = (int64_t)ddpm_dtype_size(t->dtype);
    int64_t steps = 16 | t->dim[t->rank - 1] * unit;
    for (int i = 0; i < t->rank; i++)
        if (t->stride[i] != 1) steps |= t->stride[i] * unit;
    return (int)(steps & -steps);
}

/* ---- descriptors ---- */

void builder_begin(struct cudnn_builder *b, ddpm_dtype dtype)
{
    *b = (struct cudnn_builder){.next_virtual = CUDNN_UID_VIRTUAL};
    b->g = calloc(1, sizeof *b->g);
    if (b->g) b->g->owned = calloc(BUILDER_DESCRIPTORS, sizeof *b->g->owned);
    if (!b->g || !b->g->owned) b->s = FAIL(NOMEM, "cuDNN graph: no memory for its descriptors");
    if (b->g) b->g->dtype = dtype;
}

cudnn_descriptor builder_descriptor(struct cudnn_builder *b, cudnnBackendDescriptorType_t type)
{
    if (b->s) return NULL;
    if (b->g->n_owned == BUILDER_DESCRIPTORS) {
        b->s = FAIL(BUG, "cuDNN graph: more than %d descriptors", BUILDER_DESCRIPTORS);
        return NULL;
    }
    cudnn_descriptor d = NULL;
    b->s = cudnn_check("cuDNN graph", cudnnBackendCreateDescriptor(type, &d));
    if (!b->s) b->g->owned[b->g->n_owned++] = d;
    return b->s ? NULL : d;
}

void builder_set(struct cudnn_builder *b, cudnn_descriptor d, cudnnBackendAttributeName_t attribute,
                 cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (!b->s) b->s = cudnn_check("cuDNN graph", cudnnBackendSetAttribute(d, attribute, type, n, values));
}

void builder_link(struct cudnn_builder *b, cudnn_descriptor d, cudnnBackendAttributeName_t attribute,
                  cudnn_descriptor value)
{
    builder_set(b, d, attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void builder_finalize(struct cudnn_builder *b, const char *what, cudnn_descriptor d)
{
    if (!b->s) b->s = cudnn_check(what, cudnnBackendFinalize(d));
}

void builder_operation(struct cudnn_builder *b, const char *what, cudnn_descriptor d)
{
    builder_finalize(b, what, d);
    if (b->s) return;
    if (b->n_operations == BUILDER_OPERATIONS)
        b->s = FAIL(BUG, "cuDNN graph: more than %d operations", BUILDER_OPERATIONS);
    else
        b->operation[b->n_operations++] = d;
}

/* ---- tensors ---- */

static cudnnDataType_t data_type(ddpm_dtype dtype)
{
    return dtype == DDPM_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

static cudnn_descriptor describe_tensor(struct cudnn_builder *b, int64_t uid, ddpm_dtype dtype,
                                        const struct cudnn_shape *shape, int alignment, bool is_virtual, bool by_value)
{
    const cudnnDataType_t type = data_type(dtype);
    const int64_t bytes = alignment;
    cudnn_descriptor d = builder_descriptor(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    builder_set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    builder_set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    builder_set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, shape->rank, shape->dim);
    builder_set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, shape->rank, shape->stride);
    builder_set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &bytes);
    builder_set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    builder_set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    builder_finalize(b, "cuDNN tensor", d);
    return d;
}

static void note_tensor(struct cudnn_builder *b, const struct cudnn_graph_tensor *t)
{
    if (b->s) return;
    if (b->g->n_tensors == CUDNN_GRAPH_TENSORS) {
        b->s = FAIL(BUG, "cuDNN graph: more than %d tensors", CUDNN_GRAPH_TENSORS);
        return;
    }
    b->g->tensor[b->g->n_tensors++] = *t;
}

cudnn_descriptor builder_given(struct cudnn_builder *b, int64_t uid, bool is_output, const ddpm_tensor *t,
                               struct cudnn_shape shape)
{
    const struct cudnn_graph_tensor noted = {.uid = uid,
                                             .place = CUDNN_GIVEN,
                                             .is_output = is_output,
                                             .alignment = alignment_of(t),
                                             .bytes = span_bytes(&shape, t->dtype)};
    note_tensor(b, &noted);
    if (b->s) return NULL;
    const double bytes = (double)ddpm_tensor_count(t) * (double)ddpm_dtype_size(t->dtype);
    b->g->bytes_moved += bytes;
    if (bytes > (double)b->g->largest) b->g->largest = (size_t)bytes;
    return describe_tensor(b, uid, t->dtype, &shape, noted.alignment, false, false);
}

cudnn_descriptor builder_per_image(struct cudnn_builder *b, int64_t uid, bool is_output, int64_t n, int64_t c)
{
    const ddpm_tensor t = ddpm_tensor_2d(NULL, n, c);
    return builder_given(b, uid, is_output, &t, shape_rows(&t));
}

cudnn_descriptor builder_kept(struct cudnn_builder *b, int64_t uid, enum cudnn_place place, struct cudnn_shape shape)
{
    const struct cudnn_graph_tensor noted = {
        .uid = uid, .place = place, .is_output = true, .alignment = 16, .bytes = span_bytes(&shape, DDPM_F32)};
    note_tensor(b, &noted);
    return describe_tensor(b, uid, DDPM_F32, &shape, 16, false, false);
}

cudnn_descriptor builder_constant(struct cudnn_builder *b, int64_t uid, float value)
{
    const struct cudnn_shape one = shape_dense(1, 1, 1, 1);
    const struct cudnn_graph_tensor noted = {
        .uid = uid, .place = CUDNN_BY_VALUE, .alignment = 4, .bytes = sizeof value, .value = value};
    note_tensor(b, &noted);
    return describe_tensor(b, uid, DDPM_F32, &one, 4, false, true);
}

cudnn_descriptor builder_virtual(struct cudnn_builder *b, ddpm_dtype dtype, struct cudnn_shape shape)
{
    return describe_tensor(b, b->next_virtual++, dtype, &shape, 16, true, false);
}

/* ---- operations ---- */

static cudnn_descriptor pointwise_of(struct cudnn_builder *b, cudnnPointwiseMode_t mode)
{
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    cudnn_descriptor how = builder_descriptor(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    builder_set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    builder_set(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    builder_finalize(b, "cuDNN pointwise", how);
    cudnn_descriptor op = builder_descriptor(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    return op;
}

void builder_pointwise(struct cudnn_builder *b, cudnnPointwiseMode_t mode, cudnn_descriptor x, cudnn_descriptor operand,
                       cudnn_descriptor y)
{
    cudnn_descriptor op = pointwise_of(b, mode);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (operand) builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, operand);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    builder_operation(b, "cuDNN pointwise", op);
}

void builder_pointwise_bwd(struct cudnn_builder *b, cudnnPointwiseMode_t mode, cudnn_descriptor x, cudnn_descriptor dy,
                           cudnn_descriptor dx)
{
    cudnn_descriptor op = pointwise_of(b, mode);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, dy);
    builder_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_DXDESC, dx);
    builder_operation(b, "cuDNN pointwise gradient", op);
}

void builder_sum(struct cudnn_builder *b, cudnn_descriptor x, cudnn_descriptor y)
{
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    const cudnnReduceTensorOp_t add = CUDNN_REDUCE_TENSOR_ADD;
    cudnn_descriptor how = builder_descriptor(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    builder_set(b, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &add);
    builder_set(b, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    builder_finalize(b, "cuDNN sum", how);
    cudnn_descriptor op = builder_descriptor(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    builder_link(b, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    builder_link(b, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    builder_link(b, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    builder_operation(b, "cuDNN sum", op);
}

void builder_matmul(struct cudnn_builder *b, cudnn_descriptor x, cudnn_descriptor y, cudnn_descriptor product)
{
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    cudnn_descriptor how = builder_descriptor(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    builder_set(b, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    builder_finalize(b, "cuDNN matmul", how);
    cudnn_descriptor op = builder_descriptor(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    builder_link(b, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, x);
    builder_link(b, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, y);
    builder_link(b, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, product);
    builder_link(b, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    builder_operation(b, "cuDNN matmul", op);
}

/* ---- the graph ---- */

void builder_describe(struct cudnn_builder *b, const char *what, const ddpm_tensor *t)
{
    text_add(&b->name, " %s ", what);
    for (int i = 0; i < t->rank; i++)
        text_add(&b->name, "%s%lld", i ? "x" : "", (long long)t->dim[i]);
    for (int i = 0; !view_is_dense(t) && i < t->rank; i++)
        text_add(&b->name, "%c%lld", i ? ',' : '/', (long long)t->stride[i]);
    if (!b->s && t->dtype != b->g->dtype) text_add(&b->name, ":%s", t->dtype == DDPM_F32 ? "f32" : "bf16");
}

void builder_count_flops(struct cudnn_builder *b, double multiply_adds)
{
    if (!b->s) b->g->flops += 2 * multiply_adds;
}

static void finish_name(struct cudnn_builder *b)
{
    if (b->s) return;
    if (b->name.failed)
        b->s = FAIL(NOMEM, "cuDNN graph: no memory for its name");
    else if (b->name.used >= CUDNN_GRAPH_NAME)
        b->s = FAIL(BUG, "cuDNN graph: a name of %zu characters", b->name.used);
    else
        memcpy(b->g->name, b->name.data, b->name.used + 1);
}

ddpm_status builder_finish(struct cudnn_builder *b, struct cudnn_graph **out)
{
    finish_name(b);
    text_release(&b->name);
    cudnn_descriptor graph = builder_descriptor(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    builder_set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, b->n_operations, b->operation);
    builder_finalize(b, "cuDNN graph", graph);
    if (b->s) {
        cudnn_graph_free(b->g);
        return b->s;
    }
    b->g->operations = graph;
    *out = b->g;
    return DDPM_OK;
}

void cudnn_graph_free(struct cudnn_graph *g)
{
    if (!g) return;
    for (int i = g->n_owned; i-- > 0;) /* users before what they use */
        (void)cudnnBackendDestroyDescriptor(g->owned[i]);
    free(g->owned);
    free(g);
}

const struct cudnn_graph_tensor *cudnn_graph_tensor(const struct cudnn_graph *g, int64_t uid)
{
    for (int i = 0; i < g->n_tensors; i++)
        if (g->tensor[i].uid == uid) return &g->tensor[i];
    return NULL;
}

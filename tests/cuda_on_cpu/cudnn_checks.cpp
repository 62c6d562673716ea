/* cudnn_checks.cpp - what the parts of a descriptor must be for each other, as cuDNN refuses it otherwise. */
#include "cudnn_parts.h"

#include <algorithm>
#include <set>

namespace cuda_on_cpu {

#define A(name) CUDNN_ATTR_##name
#define OP(name) CUDNN_BACKEND_OPERATION_##name##_DESCRIPTOR

typedef std::vector<int64_t> extents;

/* ---- tensors ---- */

size_t size_of_type(cudnnDataType_t type)
{
    switch (type) {
    case CUDNN_DATA_FLOAT:
    case CUDNN_DATA_INT32:
        return 4;
    case CUDNN_DATA_BFLOAT16:
    case CUDNN_DATA_HALF:
        return 2;
    case CUDNN_DATA_DOUBLE:
    case CUDNN_DATA_INT64:
        return 8;
    default:
        return 0;
    }
}

tensor tensor_of(const descriptor &d)
{
    return {value_of<int64_t>(d, A(TENSOR_UNIQUE_ID), 0),
            value_of<int64_t>(d, A(TENSOR_BYTE_ALIGNMENT), 1),
            value_of(d, A(TENSOR_DATA_TYPE), CUDNN_DATA_FLOAT),
            values_of<int64_t>(d, A(TENSOR_DIMENSIONS)),
            values_of<int64_t>(d, A(TENSOR_STRIDES)),
            value_of(d, A(TENSOR_IS_VIRTUAL), false),
            value_of(d, A(TENSOR_IS_BY_VALUE), false)};
}

int64_t count_of(const tensor &t)
{
    int64_t n = 1;
    for (int64_t d : t.dim)
        n *= d;
    return n;
}

static cudnnStatus_t check_tensor(const descriptor &d)
{
    const tensor t = tensor_of(d);
    if (t.dim.size() != t.stride.size())
        return refuse(CUDNN_STATUS_BAD_PARAM, "tensor %ld: %zu extents, %zu strides", (long)t.uid, t.dim.size(),
                      t.stride.size());
    for (size_t i = 0; i < t.dim.size(); i++)
        if (t.dim[i] < 1 || t.stride[i] < 0)
            return refuse(CUDNN_STATUS_BAD_PARAM, "tensor %ld: extent %ld, stride %ld", (long)t.uid, (long)t.dim[i],
                          (long)t.stride[i]);
    const size_t size = size_of_type(t.type);
    if (!size) return refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "tensor %ld: type %d", (long)t.uid, t.type);
    if (t.alignment < (int64_t)size || (t.alignment & (t.alignment - 1)))
        return refuse(CUDNN_STATUS_BAD_PARAM, "tensor %ld: alignment %ld", (long)t.uid, (long)t.alignment);
    if (t.is_virtual && t.is_by_value) return refuse(CUDNN_STATUS_BAD_PARAM, "tensor %ld: virtual and by value", (long)t.uid);
    if (t.is_by_value && count_of(t) != 1) return refuse(CUDNN_STATUS_BAD_PARAM, "tensor %ld: by value", (long)t.uid);
    return CUDNN_STATUS_SUCCESS;
}

/* The tensor of an attribute; false where it is no tensor. */
static bool get_tensor(const descriptor &d, int name, tensor *out)
{
    const part p = part_of(d, name);
    if (!p || p->type != CUDNN_BACKEND_TENSOR_DESCRIPTOR) return false;
    *out = tensor_of(*p);
    return true;
}

static cudnnStatus_t mismatch(const char *what)
{
    return refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "%s", what);
}

/* ---- convolutions ---- */

static cudnnStatus_t check_convolution(const descriptor &d)
{
    const int64_t n = value_of<int64_t>(d, A(CONVOLUTION_SPATIAL_DIMS), 0);
    for (int name : {A(CONVOLUTION_DILATIONS), A(CONVOLUTION_FILTER_STRIDES), A(CONVOLUTION_PRE_PADDINGS),
                     A(CONVOLUTION_POST_PADDINGS)})
        if ((int64_t)values_of<int64_t>(d, name).size() != n)
            return refuse(CUDNN_STATUS_BAD_PARAM, "convolution: attribute %d has not %ld elements", name, (long)n);
    if (n != 2 || value_of(d, A(CONVOLUTION_CONV_MODE), CUDNN_CONVOLUTION) != CUDNN_CROSS_CORRELATION)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "convolution: only correlations of images");
    if (value_of(d, A(CONVOLUTION_COMP_TYPE), CUDNN_DATA_HALF) != CUDNN_DATA_FLOAT)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "convolution: computes in float alone");
    return CUDNN_STATUS_SUCCESS;
}

struct conv_names {
    int x, w, y, convolution;
};

static conv_names names_of(int type)
{
    if (type == OP(CONVOLUTION_FORWARD))
        return {A(OPERATION_CONVOLUTION_FORWARD_X), A(OPERATION_CONVOLUTION_FORWARD_W), A(OPERATION_CONVOLUTION_FORWARD_Y),
                A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC)};
    if (type == OP(CONVOLUTION_BACKWARD_DATA))
        return {A(OPERATION_CONVOLUTION_BWD_DATA_DX), A(OPERATION_CONVOLUTION_BWD_DATA_W),
                A(OPERATION_CONVOLUTION_BWD_DATA_DY), A(OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC)};
    return {A(OPERATION_CONVOLUTION_BWD_FILTER_X), A(OPERATION_CONVOLUTION_BWD_FILTER_DW),
            A(OPERATION_CONVOLUTION_BWD_FILTER_DY), A(OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC)};
}

static cudnnStatus_t check_conv_operation(const descriptor &d)
{
    const conv_names names = names_of(d.type);
    const part c = part_of(d, names.convolution);
    tensor x, w, y;
    if (!get_tensor(d, names.x, &x) || !get_tensor(d, names.w, &w) || !get_tensor(d, names.y, &y) ||
        c->type != CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "convolution: a part is of another type");
    if (x.dim.size() != 4 || w.dim.size() != 4 || y.dim.size() != 4) return mismatch("convolution: a tensor is not 4-d");
    if (x.dim[1] != w.dim[1] || y.dim[1] != w.dim[0] || x.dim[0] != y.dim[0]) return mismatch("convolution: N, C or K");
    const extents before = values_of<int64_t>(*c, A(CONVOLUTION_PRE_PADDINGS)),
                  after = values_of<int64_t>(*c, A(CONVOLUTION_POST_PADDINGS)),
                  stride = values_of<int64_t>(*c, A(CONVOLUTION_FILTER_STRIDES)),
                  dilation = values_of<int64_t>(*c, A(CONVOLUTION_DILATIONS));
    for (size_t i = 0; i < 2; i++) {
        const int64_t reach = x.dim[2 + i] + before[i] + after[i] - (w.dim[2 + i] - 1) * dilation[i] - 1;
        if (reach < 0 || stride[i] < 1 || y.dim[2 + i] != reach / stride[i] + 1) return mismatch("convolution: pixels");
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the other operations ---- */

static bool broadcasts_to(const tensor &from, const tensor &to)
{
    if (from.dim.size() != to.dim.size()) return false;
    for (size_t i = 0; i < to.dim.size(); i++)
        if (from.dim[i] != to.dim[i] && from.dim[i] != 1) return false;
    return true;
}

static int operands_of(int mode)
{
    switch (mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_NEG:
    case CUDNN_POINTWISE_SQRT:
    case CUDNN_POINTWISE_RSQRT:
    case CUDNN_POINTWISE_RECIPROCAL:
    case CUDNN_POINTWISE_IDENTITY:
    case CUDNN_POINTWISE_RELU_FWD:
    case CUDNN_POINTWISE_SIGMOID_FWD:
    case CUDNN_POINTWISE_SWISH_FWD:
        return 1;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_MIN:
    case CUDNN_POINTWISE_MAX:
        return 2;
    case CUDNN_POINTWISE_SWISH_BWD:
        return -1; /* a gradient */
    default:
        return 0;
    }
}

static cudnnStatus_t check_pointwise(const descriptor &d)
{
    const part p = part_of(d, A(OPERATION_POINTWISE_PW_DESCRIPTOR));
    if (p->type != CUDNN_BACKEND_POINTWISE_DESCRIPTOR) return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "pointwise");
    const int mode = value_of(*p, A(POINTWISE_MODE), CUDNN_POINTWISE_ADD), operands = operands_of(mode);
    if (!operands) return refuse(CUDNN_STATUS_NOT_SUPPORTED, "pointwise: mode %d", mode);
    const bool is_gradient = operands < 0;
    tensor x, b, y;
    if (!get_tensor(d, A(OPERATION_POINTWISE_XDESC), &x)) return refuse(CUDNN_STATUS_BAD_PARAM, "pointwise: no x");
    if (!get_tensor(d, is_gradient ? A(OPERATION_POINTWISE_DXDESC) : A(OPERATION_POINTWISE_YDESC), &y))
        return refuse(CUDNN_STATUS_BAD_PARAM, "pointwise: no result");
    const bool has_b = get_tensor(d, is_gradient ? A(OPERATION_POINTWISE_DYDESC) : A(OPERATION_POINTWISE_BDESC), &b);
    if (has_b != (operands != 1)) return refuse(CUDNN_STATUS_BAD_PARAM, "pointwise: mode %d has other operands", mode);
    if (!broadcasts_to(x, y) || (has_b && !broadcasts_to(b, y))) return mismatch("pointwise: an operand");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_matmul(const descriptor &d)
{
    tensor a, b, c;
    const part p = part_of(d, A(OPERATION_MATMUL_DESC));
    if (!get_tensor(d, A(OPERATION_MATMUL_ADESC), &a) || !get_tensor(d, A(OPERATION_MATMUL_BDESC), &b) ||
        !get_tensor(d, A(OPERATION_MATMUL_CDESC), &c) || p->type != CUDNN_BACKEND_MATMUL_DESCRIPTOR)
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "matmul: a part is of another type");
    const size_t n = c.dim.size();
    if (n < 2 || a.dim.size() != n || b.dim.size() != n) return mismatch("matmul: ranks");
    for (size_t i = 0; i + 2 < n; i++)
        if ((a.dim[i] != c.dim[i] && a.dim[i] != 1) || (b.dim[i] != c.dim[i] && b.dim[i] != 1)) return mismatch("matmul: batch");
    if (a.dim[n - 2] != c.dim[n - 2] || b.dim[n - 1] != c.dim[n - 1] || a.dim[n - 1] != b.dim[n - 2])
        return mismatch("matmul: M, N or K");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_reduction(const descriptor &d)
{
    tensor x, y;
    const part p = part_of(d, A(OPERATION_REDUCTION_DESC));
    if (!get_tensor(d, A(OPERATION_REDUCTION_XDESC), &x) || !get_tensor(d, A(OPERATION_REDUCTION_YDESC), &y) ||
        p->type != CUDNN_BACKEND_REDUCTION_DESCRIPTOR)
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "reduction: a part is of another type");
    return broadcasts_to(y, x) ? CUDNN_STATUS_SUCCESS : mismatch("reduction: the result");
}

/* The same memory under other extents and strides, so the counts agree. */
static cudnnStatus_t check_reshape(const descriptor &d)
{
    tensor x, y;
    if (!get_tensor(d, A(OPERATION_RESHAPE_XDESC), &x) || !get_tensor(d, A(OPERATION_RESHAPE_YDESC), &y))
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "reshape: a part is of another type");
    return count_of(x) == count_of(y) ? CUDNN_STATUS_SUCCESS : mismatch("reshape: the counts");
}

static cudnnStatus_t check_attention(const descriptor &d)
{
    tensor q, k, v, o, stats, scale;
    if (!get_tensor(d, A(OPERATION_SDPA_FWD_QDESC), &q) || !get_tensor(d, A(OPERATION_SDPA_FWD_KDESC), &k) ||
        !get_tensor(d, A(OPERATION_SDPA_FWD_VDESC), &v) || !get_tensor(d, A(OPERATION_SDPA_FWD_ODESC), &o))
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "attention: a part is of another type");
    if (q.dim.size() != 4 || k.dim != v.dim || o.dim != q.dim || k.dim.size() != 4) return mismatch("attention: q, k, v, o");
    if (k.dim[0] != q.dim[0] || k.dim[1] != q.dim[1] || k.dim[3] != q.dim[3]) return mismatch("attention: q and k");
    if (get_tensor(d, A(OPERATION_SDPA_FWD_STATSDESC), &stats) && stats.dim != extents{q.dim[0], q.dim[1], q.dim[2], 1})
        return mismatch("attention: stats");
    if (get_tensor(d, A(OPERATION_SDPA_FWD_SCALEDESC), &scale) && count_of(scale) != 1) return mismatch("attention: scale");
    return CUDNN_STATUS_SUCCESS;
}

/* ---- graphs ---- */

operation operation_of(const part &d)
{
    std::vector<int> reads, writes;
    switch ((int)d->type) {
    case OP(CONVOLUTION_FORWARD):
        reads = {A(OPERATION_CONVOLUTION_FORWARD_X), A(OPERATION_CONVOLUTION_FORWARD_W)};
        writes = {A(OPERATION_CONVOLUTION_FORWARD_Y)};
        break;
    case OP(CONVOLUTION_BACKWARD_DATA):
        reads = {A(OPERATION_CONVOLUTION_BWD_DATA_W), A(OPERATION_CONVOLUTION_BWD_DATA_DY)};
        writes = {A(OPERATION_CONVOLUTION_BWD_DATA_DX)};
        break;
    case OP(CONVOLUTION_BACKWARD_FILTER):
        reads = {A(OPERATION_CONVOLUTION_BWD_FILTER_X), A(OPERATION_CONVOLUTION_BWD_FILTER_DY)};
        writes = {A(OPERATION_CONVOLUTION_BWD_FILTER_DW)};
        break;
    case OP(POINTWISE):
        reads = {A(OPERATION_POINTWISE_XDESC), A(OPERATION_POINTWISE_BDESC), A(OPERATION_POINTWISE_DYDESC)};
        writes = {A(OPERATION_POINTWISE_YDESC), A(OPERATION_POINTWISE_DXDESC)};
        break;
    case OP(MATMUL):
        reads = {A(OPERATION_MATMUL_ADESC), A(OPERATION_MATMUL_BDESC)};
        writes = {A(OPERATION_MATMUL_CDESC)};
        break;
    case OP(REDUCTION):
        reads = {A(OPERATION_REDUCTION_XDESC)};
        writes = {A(OPERATION_REDUCTION_YDESC)};
        break;
    case OP(RESHAPE):
        reads = {A(OPERATION_RESHAPE_XDESC)};
        writes = {A(OPERATION_RESHAPE_YDESC)};
        break;
    case OP(SDPA_FWD):
        reads = {A(OPERATION_SDPA_FWD_QDESC), A(OPERATION_SDPA_FWD_KDESC), A(OPERATION_SDPA_FWD_VDESC),
                 A(OPERATION_SDPA_FWD_SCALEDESC)};
        writes = {A(OPERATION_SDPA_FWD_ODESC), A(OPERATION_SDPA_FWD_STATSDESC)};
        break;
    default:
        break;
    }
    const auto is_missing = [&](int name) { return !part_of(*d, name); };
    reads.erase(std::remove_if(reads.begin(), reads.end(), is_missing), reads.end());
    writes.erase(std::remove_if(writes.begin(), writes.end(), is_missing), writes.end());
    return {d, reads, writes};
}

int64_t graph::uid(const operation &o, int name) const
{
    return value_of<int64_t>(*part_of(*o.d, name), A(TENSOR_UNIQUE_ID), 0);
}

static cudnnStatus_t collect(const operation &o, const std::vector<int> &names, graph *g)
{
    for (int name : names) {
        const tensor t = tensor_of(*part_of(*o.d, name));
        const auto added = g->tensors.emplace(t.uid, t);
        const tensor &known = added.first->second;
        if (known.dim != t.dim || known.stride != t.stride || known.type != t.type || known.is_virtual != t.is_virtual)
            return refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "two tensors have the uid %ld", (long)t.uid);
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t graph_of(const descriptor &d, graph *g)
{
    std::vector<operation> waiting;
    std::set<int64_t> written, done;
    for (const part &p : parts_of(d, A(OPERATIONGRAPH_OPS))) {
        const operation o = operation_of(p);
        if (o.writes.empty()) return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "graph: type %d is no operation", p->type);
        cudnnStatus_t s = collect(o, o.reads, g);
        if (!s) s = collect(o, o.writes, g);
        if (s) return s;
        for (int name : o.writes)
            if (!written.insert(g->uid(o, name)).second)
                return refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "graph: %ld is written twice", (long)g->uid(o, name));
        waiting.push_back(o);
    }
    for (const auto &entry : g->tensors)
        if (entry.second.is_virtual && !written.count(entry.first))
            return refuse(CUDNN_STATUS_BAD_PARAM, "graph: virtual %ld is written by none", (long)entry.first);
    while (!waiting.empty()) {
        const auto is_ready = [&](const operation &o) {
            return std::all_of(o.reads.begin(), o.reads.end(), [&](int name) {
                const int64_t uid = g->uid(o, name);
                return !written.count(uid) || done.count(uid);
            });
        };
        const auto next = std::find_if(waiting.begin(), waiting.end(), is_ready);
        if (next == waiting.end()) return refuse(CUDNN_STATUS_BAD_PARAM, "graph: operations wait for each other");
        for (int name : next->writes)
            done.insert(g->uid(*next, name));
        g->operations.push_back(*next);
        waiting.erase(next);
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_graph(descriptor *d)
{
    graph g;
    const cudnnStatus_t s = graph_of(*d, &g);
    const int64_t engines = 100;
    if (!s) give(d, A(OPERATIONGRAPH_ENGINE_GLOBAL_COUNT), CUDNN_TYPE_INT64, &engines, sizeof engines, 1);
    return s;
}

static cudnnStatus_t check_variant_pack(const descriptor &d)
{
    std::vector<int64_t> uids = values_of<int64_t>(d, A(VARIANT_PACK_UNIQUE_IDS));
    if (uids.size() != values_of<void *>(d, A(VARIANT_PACK_DATA_POINTERS)).size())
        return refuse(CUDNN_STATUS_BAD_PARAM, "variant pack: as many pointers as uids are wanted");
    std::sort(uids.begin(), uids.end());
    if (std::adjacent_find(uids.begin(), uids.end()) != uids.end())
        return refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "variant pack: a uid twice");
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_descriptor(descriptor *d)
{
    switch ((int)d->type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
        return check_tensor(*d);
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR:
        return check_convolution(*d);
    case OP(CONVOLUTION_FORWARD):
    case OP(CONVOLUTION_BACKWARD_DATA):
    case OP(CONVOLUTION_BACKWARD_FILTER):
        return check_conv_operation(*d);
    case OP(POINTWISE):
        return check_pointwise(*d);
    case OP(MATMUL):
        return check_matmul(*d);
    case OP(REDUCTION):
        return check_reduction(*d);
    case OP(RESHAPE):
        return check_reshape(*d);
    case OP(SDPA_FWD):
        return check_attention(*d);
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        return check_graph(d);
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
        return check_variant_pack(*d);
    default:
        return finalize_engine_part(d);
    }
}

} // namespace cuda_on_cpu

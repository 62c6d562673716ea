/* cudnn_descriptors.cpp - descriptors of cuDNN's backend API: a type, attributes by name, and whether it is final.
 *
 * Which attributes a type has, of what type and how many, stands in one table. As the library documents: what is final
 * cannot be set (NOT_INITIALIZED) and what is not final cannot be read or be part of another (NOT_FINALIZED). Stricter
 * than the library where it leaves things open: a destroyed descriptor is found out, and a part is shared, so that
 * what a caller does with his handle afterwards changes nothing. */
#include "cudnn_parts.h"

#include <algorithm>
#include <set>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace cuda_on_cpu {

struct handle_box {
    part d;
};

static std::set<handle_box *> &boxes = *new std::set<handle_box *>;
static std::set<cudnnHandle_t> &handles = *new std::set<cudnnHandle_t>;
static thread_local std::string last_message;

/* Made for its effect at the start. */
static const bool is_counted __attribute__((used)) = count_live([] { return boxes.size() + handles.size(); });

bool is_handle(cudnnHandle_t handle)
{
    return handles.count(handle) > 0;
}

/* ---- status ---- */

cudnnStatus_t refuse(cudnnStatus_t status, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    last_message = text;
    return status;
}

static cudnnStatus_t status_of(cudaError_t e)
{
    if (e == cudaErrorNoDevice) return CUDNN_STATUS_NOT_INITIALIZED;
    if (e == cudaErrorMemoryAllocation) return CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
    return CUDNN_STATUS_EXECUTION_FAILED_CUDART;
}

cudnnStatus_t cudnn_enter(entry_kind kind, const std::function<cudnnStatus_t()> &body)
{
    cudnnStatus_t s = CUDNN_STATUS_SUCCESS;
    last_message.clear();
    const cudaError_t e = enter(kind, [&] {
        s = body();
        return cudaSuccess;
    });
    return e ? refuse(status_of(e), "CUDA: %s", cudaGetErrorName(e)) : s;
}

/* ---- the attributes of each type ---- */

enum use { MUST, MAY, GIVEN }; /* to be final; if wanted; by the library */

struct rule {
    int descriptor, attribute;
    cudnnBackendAttributeType_t type;
    int64_t least, most;
    use how;
};

#define D(name) CUDNN_BACKEND_##name##_DESCRIPTOR
#define A(name) CUDNN_ATTR_##name
#define T(name) CUDNN_TYPE_##name
#define TENSOR_PART(op, name, how) {D(op), A(name), T(BACKEND_DESCRIPTOR), 1, 1, how}
#define SCALES(op, name)                                                                                               \
    {D(op), A(name##_ALPHA), T(FLOAT), 1, 1, MUST}, {D(op), A(name##_ALPHA), T(DOUBLE), 1, 1, MUST},                   \
        {D(op), A(name##_BETA), T(FLOAT), 1, 1, MUST}, {D(op), A(name##_BETA), T(DOUBLE), 1, 1, MUST}

static const int64_t ANY = INT32_MAX;
static const rule rules[] = {
    {D(TENSOR), A(TENSOR_DATA_TYPE), T(DATA_TYPE), 1, 1, MUST},
    {D(TENSOR), A(TENSOR_DIMENSIONS), T(INT64), 1, CUDNN_DIM_MAX, MUST},
    {D(TENSOR), A(TENSOR_STRIDES), T(INT64), 1, CUDNN_DIM_MAX, MUST},
    {D(TENSOR), A(TENSOR_UNIQUE_ID), T(INT64), 1, 1, MUST},
    {D(TENSOR), A(TENSOR_BYTE_ALIGNMENT), T(INT64), 1, 1, MUST},
    {D(TENSOR), A(TENSOR_IS_VIRTUAL), T(BOOLEAN), 1, 1, MAY},
    {D(TENSOR), A(TENSOR_IS_BY_VALUE), T(BOOLEAN), 1, 1, MAY},

    {D(CONVOLUTION), A(CONVOLUTION_SPATIAL_DIMS), T(INT64), 1, 1, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_COMP_TYPE), T(DATA_TYPE), 1, 1, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_CONV_MODE), T(CONVOLUTION_MODE), 1, 1, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_DILATIONS), T(INT64), 1, 6, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_FILTER_STRIDES), T(INT64), 1, 6, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_PRE_PADDINGS), T(INT64), 1, 6, MUST},
    {D(CONVOLUTION), A(CONVOLUTION_POST_PADDINGS), T(INT64), 1, 6, MUST},

    TENSOR_PART(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_X, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_W, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_Y, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_CONV_DESC, MUST),
    SCALES(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_DATA, OPERATION_CONVOLUTION_BWD_DATA_DX, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_DATA, OPERATION_CONVOLUTION_BWD_DATA_W, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_DATA, OPERATION_CONVOLUTION_BWD_DATA_DY, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_DATA, OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, MUST),
    SCALES(OPERATION_CONVOLUTION_BACKWARD_DATA, OPERATION_CONVOLUTION_BWD_DATA),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_FILTER, OPERATION_CONVOLUTION_BWD_FILTER_X, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_FILTER, OPERATION_CONVOLUTION_BWD_FILTER_DW, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_FILTER, OPERATION_CONVOLUTION_BWD_FILTER_DY, MUST),
    TENSOR_PART(OPERATION_CONVOLUTION_BACKWARD_FILTER, OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, MUST),
    SCALES(OPERATION_CONVOLUTION_BACKWARD_FILTER, OPERATION_CONVOLUTION_BWD_FILTER),

    {D(POINTWISE), A(POINTWISE_MODE), T(POINTWISE_MODE), 1, 1, MUST},
    {D(POINTWISE), A(POINTWISE_MATH_PREC), T(DATA_TYPE), 1, 1, MUST},
    {D(POINTWISE), A(POINTWISE_SWISH_BETA), T(DOUBLE), 1, 1, MAY},
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_PW_DESCRIPTOR, MUST),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_XDESC, MAY),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_BDESC, MAY),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_TDESC, MAY),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_YDESC, MAY),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_DXDESC, MAY),
    TENSOR_PART(OPERATION_POINTWISE, OPERATION_POINTWISE_DYDESC, MAY),
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_ALPHA1), T(FLOAT), 1, 1, MAY},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_ALPHA1), T(DOUBLE), 1, 1, MAY},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_ALPHA2), T(FLOAT), 1, 1, MAY},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_ALPHA2), T(DOUBLE), 1, 1, MAY},

    {D(MATMUL), A(MATMUL_COMP_TYPE), T(DATA_TYPE), 1, 1, MUST},
    {D(MATMUL), A(MATMUL_PADDING_VALUE), T(DOUBLE), 1, 1, MAY},
    TENSOR_PART(OPERATION_MATMUL, OPERATION_MATMUL_ADESC, MUST),
    TENSOR_PART(OPERATION_MATMUL, OPERATION_MATMUL_BDESC, MUST),
    TENSOR_PART(OPERATION_MATMUL, OPERATION_MATMUL_CDESC, MUST),
    TENSOR_PART(OPERATION_MATMUL, OPERATION_MATMUL_DESC, MUST),

    {D(REDUCTION), A(REDUCTION_OPERATOR), T(REDUCTION_OPERATOR_TYPE), 1, 1, MUST},
    {D(REDUCTION), A(REDUCTION_COMP_TYPE), T(DATA_TYPE), 1, 1, MUST},
    {D(REDUCTION), A(REDUCTION_IS_DETERMINISTIC), T(BOOLEAN), 1, 1, MAY},
    TENSOR_PART(OPERATION_REDUCTION, OPERATION_REDUCTION_XDESC, MUST),
    TENSOR_PART(OPERATION_REDUCTION, OPERATION_REDUCTION_YDESC, MUST),
    TENSOR_PART(OPERATION_REDUCTION, OPERATION_REDUCTION_DESC, MUST),

    TENSOR_PART(OPERATION_RESHAPE, OPERATION_RESHAPE_XDESC, MUST),
    TENSOR_PART(OPERATION_RESHAPE, OPERATION_RESHAPE_YDESC, MUST),

    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_QDESC, MUST),
    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_KDESC, MUST),
    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_VDESC, MUST),
    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_ODESC, MUST),
    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_STATSDESC, MAY),
    TENSOR_PART(OPERATION_SDPA_FWD, OPERATION_SDPA_FWD_SCALEDESC, MAY),

    {D(OPERATIONGRAPH), A(OPERATIONGRAPH_OPS), T(BACKEND_DESCRIPTOR), 1, ANY, MUST},
    {D(OPERATIONGRAPH), (int)800 /* the deprecated handle */, T(HANDLE), 1, 1, MAY},
    {D(OPERATIONGRAPH), A(OPERATIONGRAPH_ENGINE_GLOBAL_COUNT), T(INT64), 1, 1, GIVEN},

    {D(DEVICEPROP), A(DEVICEPROP_DEVICE_ID), T(INT32), 1, 1, MAY},
    {D(DEVICEPROP), A(DEVICEPROP_HANDLE), T(HANDLE), 1, 1, MAY},
    {D(DEVICEPROP), A(DEVICEPROP_JSON_REPRESENTATION), T(CHAR), 1, ANY, MAY},

    {D(ENGINEHEUR), A(ENGINEHEUR_OPERATION_GRAPH), T(BACKEND_DESCRIPTOR), 1, 1, MUST},
    {D(ENGINEHEUR), A(ENGINEHEUR_MODE), T(HEUR_MODE), 1, 1, MUST},
    {D(ENGINEHEUR), A(ENGINEHEUR_SM_COUNT_TARGET), T(INT32), 1, 1, MAY},
    {D(ENGINEHEUR), A(ENGINEHEUR_DEVICEPROP), T(BACKEND_DESCRIPTOR), 1, 1, MAY},
    {D(ENGINEHEUR), A(ENGINEHEUR_RESULTS), T(BACKEND_DESCRIPTOR), 0, ANY, GIVEN},

    {D(ENGINE), A(ENGINE_OPERATION_GRAPH), T(BACKEND_DESCRIPTOR), 1, 1, MUST},
    {D(ENGINE), A(ENGINE_GLOBAL_INDEX), T(INT64), 1, 1, MUST},
    {D(ENGINE), A(ENGINE_DEVICEPROP), T(BACKEND_DESCRIPTOR), 1, 1, MAY},
    {D(ENGINE), A(ENGINE_NUMERICAL_NOTE), T(NUMERICAL_NOTE), 0, ANY, GIVEN},
    {D(ENGINE), A(ENGINE_BEHAVIOR_NOTE), T(BEHAVIOR_NOTE), 0, ANY, GIVEN},
    {D(ENGINE), A(ENGINE_KNOB_INFO), T(BACKEND_DESCRIPTOR), 0, ANY, GIVEN},

    {D(KNOB_CHOICE), A(KNOB_CHOICE_KNOB_TYPE), T(KNOB_TYPE), 1, 1, MUST},
    {D(KNOB_CHOICE), A(KNOB_CHOICE_KNOB_VALUE), T(INT64), 1, 1, MUST},
    {D(ENGINECFG), A(ENGINECFG_ENGINE), T(BACKEND_DESCRIPTOR), 1, 1, MUST},
    {D(ENGINECFG), A(ENGINECFG_KNOB_CHOICES), T(BACKEND_DESCRIPTOR), 0, ANY, MAY},
    {D(ENGINECFG), A(ENGINECFG_WORKSPACE_SIZE), T(INT64), 1, 1, GIVEN},

    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_ENGINE_CONFIG), T(BACKEND_DESCRIPTOR), 1, 1, MAY},
    {D(EXECUTION_PLAN), (int)400 /* the deprecated handle */, T(HANDLE), 1, 1, MAY},
    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_DEVICEPROP), T(BACKEND_DESCRIPTOR), 1, 1, MAY},
    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_JSON_REPRESENTATION), T(CHAR), 1, ANY, MAY},
    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_WORKSPACE_SIZE), T(INT64), 1, 1, GIVEN},

    {D(VARIANT_PACK), A(VARIANT_PACK_UNIQUE_IDS), T(INT64), 1, ANY, MUST},
    {D(VARIANT_PACK), A(VARIANT_PACK_DATA_POINTERS), T(VOID_PTR), 1, ANY, MUST},
    {D(VARIANT_PACK), A(VARIANT_PACK_WORKSPACE), T(VOID_PTR), 1, 1, MAY},
};

static size_t size_of_attribute(int type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
        return sizeof(bool);
    case CUDNN_TYPE_CHAR:
        return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
        return 8;
    default:
        return 4; /* enumerations, FLOAT, INT32 */
    }
}

static const rule *rule_of(int descriptor_type, int name, int type)
{
    for (const rule &r : rules)
        if (r.descriptor == descriptor_type && r.attribute == name && r.type == type) return &r;
    return nullptr;
}

static bool is_known(int descriptor_type)
{
    return std::any_of(std::begin(rules), std::end(rules), [=](const rule &r) { return r.descriptor == descriptor_type; });
}

/* ---- parts ---- */

std::vector<part> parts_of(const descriptor &d, int name)
{
    const auto found = d.attributes.find(name);
    return found == d.attributes.end() ? std::vector<part>{} : found->second.parts;
}

part part_of(const descriptor &d, int name)
{
    const std::vector<part> all = parts_of(d, name);
    return all.empty() ? nullptr : all[0];
}

void give(descriptor *d, int name, int type, const void *bytes, size_t size, int64_t count)
{
    d->attributes[name] = {type, count, std::string(static_cast<const char *>(bytes), size), {}};
}

void give_parts(descriptor *d, int name, const std::vector<part> &parts)
{
    d->attributes[name] = {CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)parts.size(), {}, parts};
}

part make_descriptor(int type)
{
    return std::make_shared<descriptor>(descriptor{type, false, {}, nullptr});
}

static handle_box *box_of(cudnnBackendDescriptor_t handle)
{
    handle_box *box = static_cast<handle_box *>(handle);
    return boxes.count(box) ? box : nullptr;
}

const descriptor *descriptor_of(cudnnBackendDescriptor_t handle)
{
    const handle_box *box = box_of(handle);
    return box ? box->d.get() : nullptr;
}

/* ---- set, get, finalize ---- */

static cudnnStatus_t set_parts(descriptor *d, int name, int64_t count, const void *elements)
{
    std::vector<part> parts;
    for (int64_t i = 0; i < count; i++) {
        const handle_box *box = box_of(static_cast<const cudnnBackendDescriptor_t *>(elements)[i]);
        if (!box) return refuse(CUDNN_STATUS_BAD_PARAM, "attribute %d: element %ld is no descriptor", name, (long)i);
        if (!box->d->is_final)
            return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "attribute %d: element %ld is not final", name, (long)i);
        parts.push_back(box->d);
    }
    give_parts(d, name, parts);
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t set(cudnnBackendDescriptor_t handle, int name, cudnnBackendAttributeType_t type, int64_t count,
                         const void *elements)
{
    const handle_box *box = box_of(handle);
    if (!box) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no such descriptor");
    descriptor *d = box->d.get();
    if (d->is_final) return refuse(CUDNN_STATUS_NOT_INITIALIZED, "attribute %d: the descriptor is final", name);
    const rule *r = rule_of(d->type, name, type);
    if (!r || r->how == GIVEN)
        return refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "descriptor type %d takes no attribute %d of type %d", d->type,
                      name, type);
    if (count < r->least || count > r->most)
        return refuse(CUDNN_STATUS_BAD_PARAM, "attribute %d: %ld elements", name, (long)count);
    if (!elements && count) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "attribute %d: no elements", name);
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) return set_parts(d, name, count, elements);
    give(d, name, type, elements, (size_t)count * size_of_attribute(type), count);
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t get_parts(const attribute &a, int64_t room, int64_t *count, void *elements)
{
    const int64_t n = std::min(room, a.count);
    for (int64_t i = 0; i < n; i++) {
        handle_box *box = box_of(static_cast<cudnnBackendDescriptor_t *>(elements)[i]);
        if (!box) return refuse(CUDNN_STATUS_BAD_PARAM, "element %ld: no descriptor to be filled", (long)i);
        if (box->d->type != a.parts[(size_t)i]->type)
            return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "element %ld: type %d", (long)i, box->d->type);
        box->d = a.parts[(size_t)i];
    }
    *count = room ? n : a.count;
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t get(cudnnBackendDescriptor_t handle, int name, cudnnBackendAttributeType_t type, int64_t room,
                         int64_t *count, void *elements)
{
    const handle_box *box = box_of(handle);
    if (!box) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no such descriptor");
    const descriptor *d = box->d.get();
    if (!d->is_final) return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "attribute %d: not final", name);
    if (!rule_of(d->type, name, type))
        return refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "descriptor type %d has no attribute %d of type %d", d->type,
                      name, type);
    if (room < 0 || (room && !elements)) return refuse(CUDNN_STATUS_BAD_PARAM, "attribute %d: no room", name);
    int64_t own_count;
    if (!count) count = &own_count;
    const auto found = d->attributes.find(name);
    if (found == d->attributes.end()) {
        *count = 0;
        return CUDNN_STATUS_SUCCESS;
    }
    const attribute &a = found->second;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) return get_parts(a, room, count, elements);
    const int64_t n = std::min(room, a.count);
    if (n) memcpy(elements, a.bytes.data(), (size_t)n * size_of_attribute(type));
    *count = room ? n : a.count;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize_descriptor(descriptor *d)
{
    if (!is_known(d->type)) return refuse(CUDNN_STATUS_NOT_SUPPORTED, "descriptor type %d", d->type);
    for (const auto &entry : d->attributes) {
        const attribute &a = entry.second;
        const bool has_parts = a.type == CUDNN_TYPE_BACKEND_DESCRIPTOR;
        const size_t size = has_parts ? a.parts.size() : a.bytes.size() / size_of_attribute(a.type);
        if (!rule_of(d->type, entry.first, a.type) || size != (size_t)a.count)
            return refuse(CUDNN_STATUS_BAD_PARAM, "descriptor type %d: attribute %d", d->type, entry.first);
    }
    for (const rule &r : rules)
        if (r.descriptor == d->type && r.how == MUST && !d->attributes.count(r.attribute))
            return refuse(CUDNN_STATUS_BAD_PARAM, "descriptor type %d: attribute %d is not set", d->type, r.attribute);
    const cudnnStatus_t s = check_descriptor(d);
    d->is_final = s == CUDNN_STATUS_SUCCESS;
    return s;
}

static cudnnStatus_t finalize(cudnnBackendDescriptor_t handle)
{
    const handle_box *box = box_of(handle);
    if (!box) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no such descriptor");
    return box->d->is_final ? CUDNN_STATUS_SUCCESS : finalize_descriptor(box->d.get());
}

static cudnnStatus_t create(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out)
{
    if (!out) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no place for the descriptor");
    if (!is_known(type)) return refuse(CUDNN_STATUS_NOT_SUPPORTED, "descriptor type %d", type);
    handle_box *box = new handle_box{make_descriptor(type)};
    boxes.insert(box);
    *out = box;
    return CUDNN_STATUS_SUCCESS;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

/* ---- descriptors: host memory alone, so they need no device ---- */

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out)
{
    return cudnn_enter(NEEDS_NO_GPU, [&] { return create(type, out); });
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle)
{
    return cudnn_enter(FREES, [&] {
        handle_box *box = box_of(handle);
        if (!box) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no such descriptor");
        boxes.erase(box);
        delete box;
        return CUDNN_STATUS_SUCCESS;
    });
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *elements)
{
    return cudnn_enter(NEEDS_NO_GPU, [&] { return set(d, name, type, count, elements); });
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room, int64_t *count, void *elements)
{
    return cudnn_enter(NEEDS_NO_GPU, [&] { return get(d, name, type, room, count, elements); });
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d)
{
    return cudnn_enter(NEEDS_NO_GPU, [&] { return finalize(d); });
}

/* ---- handles ---- */

cudnnStatus_t cudnnCreate(cudnnHandle_t *out)
{
    return cudnn_enter(ORDINARY, [&] {
        if (!out) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no place for the handle");
        if (capture_forbids()) return refuse(CUDNN_STATUS_INTERNAL_ERROR, "cudnnCreate while a stream is captured");
        *out = new cudnnContext{nullptr};
        handles.insert(*out);
        return CUDNN_STATUS_SUCCESS;
    });
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    return cudnn_enter(FREES, [&] {
        if (!handles.erase(handle)) return refuse(CUDNN_STATUS_BAD_PARAM, "no such handle");
        delete handle;
        return CUDNN_STATUS_SUCCESS;
    });
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    return cudnn_enter(ORDINARY, [&] {
        if (!is_handle(handle)) return refuse(CUDNN_STATUS_BAD_PARAM, "no such handle");
        handle->stream = stream;
        return CUDNN_STATUS_SUCCESS;
    });
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream)
{
    return cudnn_enter(ORDINARY, [&] {
        if (!is_handle(handle) || !stream) return refuse(CUDNN_STATUS_BAD_PARAM, "no such handle");
        *stream = handle->stream;
        return CUDNN_STATUS_SUCCESS;
    });
}

/* ---- versions and words ---- */

size_t cudnnGetVersion(void)
{
    return (size_t)cudnn_version();
}

size_t cudnnGetCudartVersion(void)
{
    return CUDART_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t s)
{
    switch (CUDNN_STATUS_CATEGORY(s)) {
    case 0:
        return "CUDNN_STATUS_SUCCESS";
    case 1000:
        return "CUDNN_STATUS_NOT_INITIALIZED";
    case 2000:
        return "CUDNN_STATUS_BAD_PARAM";
    case 3000:
        return "CUDNN_STATUS_NOT_SUPPORTED";
    case 4000:
        return "CUDNN_STATUS_INTERNAL_ERROR";
    default:
        return "CUDNN_STATUS_EXECUTION_FAILED";
    }
}

void cudnnGetLastErrorString(char *message, size_t size)
{
    if (message && size) snprintf(message, size, "%s", last_message.c_str());
}

} /* extern "C" */

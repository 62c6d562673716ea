/* test_cudnn.h - what the tests of cuDNN's stand-in share: descriptors in a line each, data, a convolution solved in double. */
#ifndef CUDA_ON_CPU_TEST_CUDNN_H
#define CUDA_ON_CPU_TEST_CUDNN_H

#include "test_support.h"

#include "float_products.h"

#include <cudnn.h>
#include <math.h>
#include <string>
#include <vector>

typedef cudnnBackendDescriptor_t D;
typedef std::vector<int64_t> extents;
#define A(name) CUDNN_ATTR_##name

#define OK(call) assert_int_equal((call), CUDNN_STATUS_SUCCESS)

/* All descriptors of a test; freed by finish(). */
static std::vector<D> all;

static inline D make(cudnnBackendDescriptorType_t type)
{
    D d = nullptr;
    OK(cudnnBackendCreateDescriptor(type, &d));
    all.push_back(d);
    return d;
}

static inline void set(D d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n, const void *from)
{
    const cudnnStatus_t s = cudnnBackendSetAttribute(d, name, type, n, from);
    if (s) fail_msg("attribute %d: %d", name, s);
}

static inline void set(D d, cudnnBackendAttributeName_t name, D part)
{
    set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static inline void set(D d, cudnnBackendAttributeName_t name, const extents &x)
{
    set(d, name, CUDNN_TYPE_INT64, (int64_t)x.size(), x.data());
}

static inline void set_type(D d, cudnnBackendAttributeName_t name, cudnnDataType_t type)
{
    set(d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static inline D finalized(D d)
{
    const cudnnStatus_t s = cudnnBackendFinalize(d);
    char why[200];
    cudnnGetLastErrorString(why, sizeof why);
    if (s) fail_msg("%s", why);
    return d;
}

static inline D tensor(int64_t uid, cudnnDataType_t type, const extents &dim, const extents &stride, bool is_virtual = false,
                bool is_by_value = false)
{
    D d = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set_type(d, A(TENSOR_DATA_TYPE), type);
    set(d, A(TENSOR_DIMENSIONS), dim);
    set(d, A(TENSOR_STRIDES), stride);
    set(d, A(TENSOR_UNIQUE_ID), extents{uid});
    set(d, A(TENSOR_BYTE_ALIGNMENT), extents{4});
    set(d, A(TENSOR_IS_VIRTUAL), CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(d, A(TENSOR_IS_BY_VALUE), CUDNN_TYPE_BOOLEAN, 1, &is_by_value);
    return finalized(d);
}

static inline D images(int64_t uid, cudnnDataType_t type, int64_t n, int64_t c, int64_t h, int64_t w, bool is_virtual = false)
{
    return tensor(uid, type, {n, c, h, w}, {h * w * c, 1, w * c, c}, is_virtual);
}

static inline D convolution(int64_t stride, int64_t before, int64_t after)
{
    D d = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    set(d, A(CONVOLUTION_SPATIAL_DIMS), extents{2});
    set_type(d, A(CONVOLUTION_COMP_TYPE), CUDNN_DATA_FLOAT);
    set(d, A(CONVOLUTION_CONV_MODE), CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(d, A(CONVOLUTION_DILATIONS), extents{1, 1});
    set(d, A(CONVOLUTION_FILTER_STRIDES), extents{stride, stride});
    set(d, A(CONVOLUTION_PRE_PADDINGS), extents{before, before});
    set(d, A(CONVOLUTION_POST_PADDINGS), extents{after, after});
    return finalized(d);
}

enum pass { FORWARD, DATA, FILTER };

static inline D conv_operation(pass p, D x, D w, D y, D c)
{
    static const cudnnBackendDescriptorType_t types[] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                                                         CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                                                         CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR};
    static const cudnnBackendAttributeName_t names[][6] = {
        {A(OPERATION_CONVOLUTION_FORWARD_X), A(OPERATION_CONVOLUTION_FORWARD_W), A(OPERATION_CONVOLUTION_FORWARD_Y),
         A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC), A(OPERATION_CONVOLUTION_FORWARD_ALPHA),
         A(OPERATION_CONVOLUTION_FORWARD_BETA)},
        {A(OPERATION_CONVOLUTION_BWD_DATA_DX), A(OPERATION_CONVOLUTION_BWD_DATA_W), A(OPERATION_CONVOLUTION_BWD_DATA_DY),
         A(OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC), A(OPERATION_CONVOLUTION_BWD_DATA_ALPHA),
         A(OPERATION_CONVOLUTION_BWD_DATA_BETA)},
        {A(OPERATION_CONVOLUTION_BWD_FILTER_X), A(OPERATION_CONVOLUTION_BWD_FILTER_DW),
         A(OPERATION_CONVOLUTION_BWD_FILTER_DY), A(OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC),
         A(OPERATION_CONVOLUTION_BWD_FILTER_ALPHA), A(OPERATION_CONVOLUTION_BWD_FILTER_BETA)}};
    const float one = 1, zero = 0;
    D d = make(types[p]);
    const D parts[] = {x, w, y, c};
    for (int i = 0; i < 4; i++)
        set(d, names[p][i], parts[i]);
    set(d, names[p][4], CUDNN_TYPE_FLOAT, 1, &one);
    set(d, names[p][5], CUDNN_TYPE_FLOAT, 1, &zero);
    return d;
}

static inline D pointwise(cudnnPointwiseMode_t mode, D x, D b, D y)
{
    D p = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), d = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set(p, A(POINTWISE_MODE), CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(p, A(POINTWISE_MATH_PREC), CUDNN_DATA_FLOAT);
    set(d, A(OPERATION_POINTWISE_PW_DESCRIPTOR), finalized(p));
    set(d, A(OPERATION_POINTWISE_XDESC), x);
    const bool is_gradient = mode == CUDNN_POINTWISE_SWISH_BWD;
    if (b) set(d, is_gradient ? A(OPERATION_POINTWISE_DYDESC) : A(OPERATION_POINTWISE_BDESC), b);
    set(d, is_gradient ? A(OPERATION_POINTWISE_DXDESC) : A(OPERATION_POINTWISE_YDESC), y);
    return finalized(d);
}

static inline D device()
{
    D d = make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    const int32_t ordinal = 0;
    set(d, A(DEVICEPROP_DEVICE_ID), CUDNN_TYPE_INT32, 1, &ordinal);
    return finalized(d);
}

static inline D graph(const std::vector<D> &operations)
{
    D d = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(d, A(OPERATIONGRAPH_OPS), CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)operations.size(), operations.data());
    return finalized(d);
}

/* The configurations that the heuristics offer. */
static inline std::vector<D> configurations(D g, D dev)
{
    D h = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    set(h, A(ENGINEHEUR_OPERATION_GRAPH), g);
    set(h, A(ENGINEHEUR_MODE), CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set(h, A(ENGINEHEUR_DEVICEPROP), dev);
    finalized(h);
    std::vector<D> found(8);
    for (D &d : found)
        d = make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(h, A(ENGINEHEUR_RESULTS), CUDNN_TYPE_BACKEND_DESCRIPTOR, 8, &n, found.data()));
    found.resize((size_t)n);
    return found;
}

static inline std::vector<int> notes_of(D configuration)
{
    D e = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    OK(cudnnBackendGetAttribute(configuration, A(ENGINECFG_ENGINE), CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, nullptr, &e));
    std::vector<int> notes(8);
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(e, A(ENGINE_NUMERICAL_NOTE), CUDNN_TYPE_NUMERICAL_NOTE, 8, &n, notes.data()));
    notes.resize((size_t)n);
    return notes;
}

static inline D plan_of(D configuration)
{
    D p = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set(p, A(EXECUTION_PLAN_ENGINE_CONFIG), configuration);
    return finalized(p);
}

static inline int64_t workspace_of(D plan)
{
    int64_t bytes = -1;
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_WORKSPACE_SIZE), CUDNN_TYPE_INT64, 1, nullptr, &bytes));
    return bytes;
}

static inline D pack_of(const extents &uids, const std::vector<void *> &pointers, void *workspace)
{
    D d = make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(d, A(VARIANT_PACK_UNIQUE_IDS), uids);
    set(d, A(VARIANT_PACK_DATA_POINTERS), CUDNN_TYPE_VOID_PTR, (int64_t)pointers.size(), pointers.data());
    set(d, A(VARIANT_PACK_WORKSPACE), CUDNN_TYPE_VOID_PTR, 1, &workspace);
    return finalized(d);
}

/* ---- data ---- */

static std::vector<void *> blocks;
static cudnnHandle_t handle;
static cudaStream_t stream;

static inline void *block(size_t bytes)
{
    void *p = nullptr;
    CUDA(cudaMalloc(&p, bytes));
    blocks.push_back(p);
    return p;
}

/* Small numbers that bf16 holds. */
static inline std::vector<float> numbers(size_t n, unsigned seed)
{
    std::vector<float> x(n);
    for (float &v : x) {
        seed = seed * 1664525u + 1013904223u;
        v = (float)((int)(seed >> 24) - 128) / 64.0f;
    }
    return x;
}

static inline void *upload(const std::vector<float> &x, cudnnDataType_t type)
{
    std::vector<uint16_t> halves;
    for (float v : x)
        halves.push_back(cuda_on_cpu::bf16_of_float(v));
    const bool is_float = type == CUDNN_DATA_FLOAT;
    const size_t bytes = x.size() * (is_float ? 4 : 2);
    void *p = block(bytes);
    CUDA(cudaMemcpy(p, is_float ? (const void *)x.data() : halves.data(), bytes, cudaMemcpyHostToDevice));
    return p;
}

static inline std::vector<float> download(const void *p, size_t n, cudnnDataType_t type)
{
    std::vector<float> x(n);
    std::vector<uint16_t> halves(n);
    const bool is_float = type == CUDNN_DATA_FLOAT;
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(is_float ? (void *)x.data() : halves.data(), p, n * (is_float ? 4 : 2), cudaMemcpyDeviceToHost));
    for (size_t i = 0; !is_float && i < n; i++)
        x[i] = cuda_on_cpu::float_of_bf16(halves[i]);
    return x;
}

static inline void assert_near(const std::vector<float> &got, const std::vector<double> &want, double tolerance)
{
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs(want[i]))))
            fail_msg("element %zu: %g, expected %g", i, (double)got[i], want[i]);
}

static inline int begin(void **)
{
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudnnCreate(&handle));
    OK(cudnnSetStream(handle, stream));
    return 0;
}

static inline int finish(void **state)
{
    for (D d : all)
        OK(cudnnBackendDestroyDescriptor(d));
    all.clear();
    for (void *p : blocks)
        CUDA(cudaFree(p));
    blocks.clear();
    OK(cudnnDestroy(handle));
    CUDA(cudaStreamDestroy(stream));
    cuda_on_cpu_engines(true);
    return nothing_left(state);
}

/* ---- convolutions ---- */

static const int64_t N_ = 2, C_ = 8, H_ = 5, W_ = 6, K_ = 9;
static const size_t X_COUNT = (size_t)(N_ * H_ * W_ * C_), W_COUNT = (size_t)(K_ * 9 * C_);

struct problem {
    int64_t stride, before, after, ho, wo;
    std::vector<float> x, w, dy;
    std::vector<double> y, dx, dw;
};

/* 3x3, sums in double of the definition. */
static inline problem solve(int64_t stride, int64_t before, int64_t after)
{
    problem p = {stride, before, after, (H_ + before + after - 3) / stride + 1, (W_ + before + after - 3) / stride + 1,
                 numbers(X_COUNT, 1), numbers(W_COUNT, 2), {}, {}, {}, {}};
    const size_t y_count = (size_t)(N_ * p.ho * p.wo * K_);
    p.dy = numbers(y_count, 3);
    p.y.assign(y_count, 0);
    p.dx.assign(X_COUNT, 0);
    p.dw.assign(W_COUNT, 0);
    for (int64_t n = 0; n < N_; n++)
        for (int64_t i = 0; i < p.ho; i++)
            for (int64_t j = 0; j < p.wo; j++)
                for (int64_t k = 0; k < K_; k++)
                    for (int64_t u = 0; u < 3; u++)
                        for (int64_t v = 0; v < 3; v++) {
                            const int64_t h = i * stride - before + u, w = j * stride - before + v;
                            if (h < 0 || h >= H_ || w < 0 || w >= W_) continue;
                            for (int64_t c = 0; c < C_; c++) {
                                const size_t in_x = (size_t)(((n * H_ + h) * W_ + w) * C_ + c),
                                             in_w = (size_t)(((k * 3 + u) * 3 + v) * C_ + c),
                                             in_y = (size_t)(((n * p.ho + i) * p.wo + j) * K_ + k);
                                p.y[in_y] += (double)p.x[in_x] * (double)p.w[in_w];
                                p.dx[in_x] += (double)p.dy[in_y] * (double)p.w[in_w];
                                p.dw[in_w] += (double)p.dy[in_y] * (double)p.x[in_x];
                            }
                        }
    return p;
}

static inline D conv_graph(pass which, const problem &p, cudnnDataType_t type)
{
    D x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3), y = images(3, type, N_, K_, p.ho, p.wo);
    return graph({finalized(conv_operation(which, x, w, y, convolution(p.stride, p.before, p.after)))});
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, begin, finish)

#endif

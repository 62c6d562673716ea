/* test_cudnn.cpp - cuDNN's stand-in against sums in double, and what it refuses. */
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

static D make(cudnnBackendDescriptorType_t type)
{
    D d = nullptr;
    OK(cudnnBackendCreateDescriptor(type, &d));
    all.push_back(d);
    return d;
}

static void set(D d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n, const void *from)
{
    const cudnnStatus_t s = cudnnBackendSetAttribute(d, name, type, n, from);
    if (s) fail_msg("attribute %d: %d", name, s);
}

static void set(D d, cudnnBackendAttributeName_t name, D part)
{
    set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void set(D d, cudnnBackendAttributeName_t name, const extents &x)
{
    set(d, name, CUDNN_TYPE_INT64, (int64_t)x.size(), x.data());
}

static void set_type(D d, cudnnBackendAttributeName_t name, cudnnDataType_t type)
{
    set(d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static D finalized(D d)
{
    const cudnnStatus_t s = cudnnBackendFinalize(d);
    char why[200];
    cudnnGetLastErrorString(why, sizeof why);
    if (s) fail_msg("%s", why);
    return d;
}

static D tensor(int64_t uid, cudnnDataType_t type, const extents &dim, const extents &stride, bool is_virtual = false,
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

static D images(int64_t uid, cudnnDataType_t type, int64_t n, int64_t c, int64_t h, int64_t w, bool is_virtual = false)
{
    return tensor(uid, type, {n, c, h, w}, {h * w * c, 1, w * c, c}, is_virtual);
}

static D convolution(int64_t stride, int64_t before, int64_t after)
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

static D conv_operation(pass p, D x, D w, D y, D c)
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

static D pointwise(cudnnPointwiseMode_t mode, D x, D b, D y)
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

static D device()
{
    D d = make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    const int32_t ordinal = 0;
    set(d, A(DEVICEPROP_DEVICE_ID), CUDNN_TYPE_INT32, 1, &ordinal);
    return finalized(d);
}

static D graph(const std::vector<D> &operations)
{
    D d = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(d, A(OPERATIONGRAPH_OPS), CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)operations.size(), operations.data());
    return finalized(d);
}

/* The configurations that the heuristics offer. */
static std::vector<D> configurations(D g, D dev)
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

static std::vector<int> notes_of(D configuration)
{
    D e = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    OK(cudnnBackendGetAttribute(configuration, A(ENGINECFG_ENGINE), CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, nullptr, &e));
    std::vector<int> notes(8);
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(e, A(ENGINE_NUMERICAL_NOTE), CUDNN_TYPE_NUMERICAL_NOTE, 8, &n, notes.data()));
    notes.resize((size_t)n);
    return notes;
}

static D plan_of(D configuration)
{
    D p = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set(p, A(EXECUTION_PLAN_ENGINE_CONFIG), configuration);
    return finalized(p);
}

static int64_t workspace_of(D plan)
{
    int64_t bytes = -1;
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_WORKSPACE_SIZE), CUDNN_TYPE_INT64, 1, nullptr, &bytes));
    return bytes;
}

static D pack_of(const extents &uids, const std::vector<void *> &pointers, void *workspace)
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

static void *block(size_t bytes)
{
    void *p = nullptr;
    CUDA(cudaMalloc(&p, bytes));
    blocks.push_back(p);
    return p;
}

/* Small numbers that bf16 holds. */
static std::vector<float> numbers(size_t n, unsigned seed)
{
    std::vector<float> x(n);
    for (float &v : x) {
        seed = seed * 1664525u + 1013904223u;
        v = (float)((int)(seed >> 24) - 128) / 64.0f;
    }
    return x;
}

static void *upload(const std::vector<float> &x, cudnnDataType_t type)
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

static std::vector<float> download(const void *p, size_t n, cudnnDataType_t type)
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

static void assert_near(const std::vector<float> &got, const std::vector<double> &want, double tolerance)
{
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs(want[i]))))
            fail_msg("element %zu: %g, expected %g", i, (double)got[i], want[i]);
}

static int begin(void **)
{
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudnnCreate(&handle));
    OK(cudnnSetStream(handle, stream));
    return 0;
}

static int finish(void **state)
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
static problem solve(int64_t stride, int64_t before, int64_t after)
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

static D conv_graph(pass which, const problem &p, cudnnDataType_t type)
{
    D x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3), y = images(3, type, N_, K_, p.ho, p.wo);
    return graph({finalized(conv_operation(which, x, w, y, convolution(p.stride, p.before, p.after)))});
}

/* Every engine's result of a pass; those that are exact to the tolerance, the others to TF32's. */
static void check_pass(pass which, const problem &p, cudnnDataType_t type)
{
    const bool is_float = type == CUDNN_DATA_FLOAT;
    const std::vector<double> &want = which == FORWARD ? p.y : which == DATA ? p.dx : p.dw;
    const std::vector<D> configs = configurations(conv_graph(which, p, type), device());
    assert_in_range(configs.size(), 2, 4);
    for (D config : configs) {
        D plan = plan_of(config);
        void *out = block(want.size() * 4), *const workspace = block((size_t)workspace_of(plan));
        void *x = which == DATA ? out : upload(p.x, type), *w = which == FILTER ? out : upload(p.w, type);
        void *y = which == FORWARD ? out : upload(p.dy, type);
        OK(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {x, w, y}, workspace)));
        /* bf16 inputs are exact; TF32 has the same mantissa and more */
        assert_near(download(out, want.size(), type), want, is_float ? 1e-5 : 5e-3);
    }
}

static void convolutions_are_right(void **)
{
    const int64_t cases[][3] = {{1, 1, 1}, {2, 1, 1}, {2, 0, 1}, {1, 0, 0}};
    for (const int64_t *c : cases) {
        const problem p = solve(c[0], c[1], c[2]);
        for (cudnnDataType_t type : {CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16})
            for (pass which : {FORWARD, DATA, FILTER})
                check_pass(which, p, type);
    }
}

/* conv + bias[K] + emb[N,K] + residual, then silu, in one graph. */
static void epilogues_are_right(void **)
{
    const problem p = solve(1, 1, 1);
    const cudnnDataType_t type = CUDNN_DATA_BFLOAT16, real = CUDNN_DATA_FLOAT;
    const int64_t ho = p.ho, wo = p.wo;
    D x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3), y = images(3, type, N_, K_, ho, wo);
    D bias = images(4, real, 1, K_, 1, 1), emb = images(5, real, N_, K_, 1, 1), more = images(6, type, N_, K_, ho, wo);
    D t[4];
    for (int i = 0; i < 4; i++)
        t[i] = images(10 + i, real, N_, K_, ho, wo, true);
    D g = graph({pointwise(CUDNN_POINTWISE_SWISH_FWD, t[3], nullptr, y), /* in any order */
                 finalized(conv_operation(FORWARD, x, w, t[0], convolution(1, 1, 1))),
                 pointwise(CUDNN_POINTWISE_ADD, t[0], bias, t[1]), pointwise(CUDNN_POINTWISE_ADD, t[1], emb, t[2]),
                 pointwise(CUDNN_POINTWISE_ADD, t[2], more, t[3])});
    const std::vector<D> configs = configurations(g, device());
    assert_int_equal(configs.size(), 1);
    const std::vector<float> b = numbers((size_t)K_, 5), e = numbers((size_t)(N_ * K_), 6), r = numbers(p.y.size(), 7);
    std::vector<double> want;
    for (size_t i = 0; i < p.y.size(); i++) {
        const size_t k = i % (size_t)K_, n = i / (p.y.size() / (size_t)N_);
        const double s = p.y[i] + (double)b[k] + (double)e[n * (size_t)K_ + k] + (double)r[i];
        want.push_back(s / (1 + exp(-s)));
    }
    void *out = upload(r, type); /* the residual is where the result goes */
    OK(cudnnBackendExecute(handle, plan_of(configs[0]),
                           pack_of({1, 2, 3, 4, 5, 6}, {upload(p.x, type), upload(p.w, type), out, upload(b, real), upload(e, real), out},
                                   nullptr)));
    assert_near(download(out, want.size(), type), want, 5e-3);
}

/* ---- attention ---- */

/* As one operation, q, k and v being slices of one packed tensor. */
static void attention_is_right(void **)
{
    const int64_t n = 2, heads = 2, t = 5, d = 8, row = 3 * heads * d;
    const cudnnDataType_t type = CUDNN_DATA_BFLOAT16;
    const extents dim = {n, heads, t, d}, stride = {t * row, d, row, 1}, packed = {t * heads * d, d, heads * d, 1};
    D q = tensor(1, type, dim, stride), k = tensor(2, type, dim, stride), v = tensor(3, type, dim, stride),
      o = tensor(4, type, dim, packed), lse = tensor(5, CUDNN_DATA_FLOAT, {n, heads, t, 1}, {heads * t, t, 1, 1}),
      scale = tensor(6, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
    D op = make(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set(op, A(OPERATION_SDPA_FWD_QDESC), q);
    set(op, A(OPERATION_SDPA_FWD_KDESC), k);
    set(op, A(OPERATION_SDPA_FWD_VDESC), v);
    set(op, A(OPERATION_SDPA_FWD_ODESC), o);
    set(op, A(OPERATION_SDPA_FWD_STATSDESC), lse);
    set(op, A(OPERATION_SDPA_FWD_SCALEDESC), scale);
    D plan = plan_of(configurations(graph({finalized(op)}), device())[0]);
    const std::vector<float> qkv = numbers((size_t)(n * t * row), 9);
    std::vector<double> want_o((size_t)(n * t * heads * d), 0), want_lse;
    const float factor = 0.25f;
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t a = 0; a < t; a++) {
                const auto at = [&](int64_t part, int64_t pixel, int64_t c) {
                    return (double)qkv[(size_t)((i * t + pixel) * row + part * heads * d + h * d + c)];
                };
                std::vector<double> p;
                double sum = 0;
                for (int64_t b = 0; b < t; b++) {
                    double dot = 0;
                    for (int64_t c = 0; c < d; c++)
                        dot += at(0, a, c) * at(1, b, c);
                    p.push_back(exp(dot * (double)factor));
                    sum += p.back();
                }
                want_lse.push_back(log(sum));
                for (int64_t b = 0; b < t; b++)
                    for (int64_t c = 0; c < d; c++)
                        want_o[(size_t)(((i * t + a) * heads + h) * d + c)] += p[(size_t)b] / sum * at(2, b, c);
            }
    uint16_t *in = static_cast<uint16_t *>(upload(qkv, type));
    void *out = block(want_o.size() * 2), *sums = block(want_lse.size() * 4);
    OK(cudnnBackendExecute(handle, plan,
                           pack_of({1, 2, 3, 4, 5, 6}, {in, in + heads * d, in + 2 * heads * d, out, sums, (void *)&factor},
                                   block((size_t)workspace_of(plan)))));
    assert_near(download(out, want_o.size(), type), want_o, 5e-3);
    assert_near(download(sums, want_lse.size(), CUDNN_DATA_FLOAT), want_lse, 1e-5);
}

/* ---- engines ---- */

static void engines_differ(void **)
{
    const problem p = solve(1, 1, 1);
    const std::vector<D> configs = configurations(conv_graph(FILTER, p, CUDNN_DATA_FLOAT), device());
    assert_int_equal(configs.size(), 4);
    const std::vector<int> first = notes_of(configs[0]), second = notes_of(configs[1]);
    assert_true(first == (std::vector<int>{CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS}));
    assert_true(second == (std::vector<int>{CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}));
    assert_true(notes_of(configs[2]).empty());
    assert_in_range(workspace_of(plan_of(configs[3])), X_COUNT * 4, 100000); /* a tensor's size */

    /* TF32 shows on numbers of more than 10 bits; the order of sums does on some. */
    std::vector<float> x = p.x, dy = p.dy;
    for (size_t i = 0; i < dy.size(); i++) {
        dy[i] = sinf((float)i);
        if (i < x.size()) x[i] = cosf((float)i);
    }
    std::vector<std::vector<float>> results;
    for (int i : {0, 1, 1, 2, 2}) {
        void *out = block(W_COUNT * 4);
        D plan = plan_of(configs[(size_t)i]);
        OK(cudnnBackendExecute(handle, plan,
                               pack_of({1, 2, 3}, {upload(x, CUDNN_DATA_FLOAT), out, upload(dy, CUDNN_DATA_FLOAT)},
                                       block((size_t)workspace_of(plan)))));
        results.push_back(download(out, W_COUNT, CUDNN_DATA_FLOAT));
    }
    assert_true(results[0] != results[3]);
    assert_true(results[1] != results[2]);
    assert_true(results[3] == results[4]);

    cuda_on_cpu_engines(false);
    assert_int_equal(configurations(conv_graph(FILTER, p, CUDNN_DATA_FLOAT), device()).size(), 0);
}

/* A plan's text makes the same plan again; damage is noticed. */
static void plans_come_back_from_text(void **)
{
    const problem p = solve(2, 1, 1);
    D plan = plan_of(configurations(conv_graph(FORWARD, p, CUDNN_DATA_FLOAT), device())[1]);
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, 0, &n, nullptr));
    std::string text((size_t)n, ' ');
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, n, &n, &text[0]));
    for (int damage = 0; damage < 40; damage++) {
        std::string changed = text;
        if (damage) changed.erase((size_t)(damage * 37) % changed.size(), 3);
        D again = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(again, A(EXECUTION_PLAN_DEVICEPROP), device());
        set(again, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, (int64_t)changed.size(), changed.data());
        const cudnnStatus_t s = cudnnBackendFinalize(again);
        if (damage && s) continue;
        assert_int_equal(s, CUDNN_STATUS_SUCCESS);
        if (damage) continue; /* in the kernel's name, say */
        void *out = block(p.y.size() * 4);
        OK(cudnnBackendExecute(handle, again,
                               pack_of({1, 2, 3}, {upload(p.x, CUDNN_DATA_FLOAT), upload(p.w, CUDNN_DATA_FLOAT), out},
                                       block((size_t)workspace_of(again)))));
        assert_near(download(out, p.y.size(), CUDNN_DATA_FLOAT), p.y, 1e-5);
    }
}

/* ---- order and faults ---- */

/* Queued, captured and replayed as any kernel. */
static void runs_are_queued(void **)
{
    const problem p = solve(1, 1, 1);
    D plan = plan_of(configurations(conv_graph(FORWARD, p, CUDNN_DATA_FLOAT), device())[1]);
    float *const x = static_cast<float *>(block(X_COUNT * 4));
    void *out = block(p.y.size() * 4);
    D pack = pack_of({1, 2, 3}, {x, upload(p.w, CUDNN_DATA_FLOAT), out}, block((size_t)workspace_of(plan)));
    const long before = cuda_on_cpu_graph_runs();
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(cudnnBackendExecute(handle, plan, pack));
    cudaGraph_t g;
    cudaGraphExec_t executable;
    CUDA(cudaStreamEndCapture(stream, &g));
    CUDA(cudaGraphInstantiate(&executable, g, 0));
    assert_int_equal(cuda_on_cpu_graph_runs(), before);
    CUDA(cudaMemcpy(x, p.x.data(), X_COUNT * 4, cudaMemcpyHostToDevice));
    CUDA(cudaGraphLaunch(executable, stream));
    assert_int_equal(cuda_on_cpu_graph_runs(), before);
    assert_near(download(out, p.y.size(), CUDNN_DATA_FLOAT), p.y, 1e-5);
    assert_int_equal(cuda_on_cpu_graph_runs(), before + 1);
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(g));
}

static void assert_refused(cudnnStatus_t s, cudnnStatus_t want, const char *words)
{
    char why[256];
    cudnnGetLastErrorString(why, sizeof why);
    if (s != want) fail_msg("status %d, expected %d: %s", s, want, why);
    if (!strstr(why, words)) fail_msg("'%s' is not in: %s", words, why);
}

static void what_is_wrong_is_refused(void **)
{
    const problem p = solve(1, 1, 1);
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    D open = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR), x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3);
    assert_refused(cudnnBackendFinalize(open), CUDNN_STATUS_BAD_PARAM, "not set");
    const int64_t eight = 8;
    assert_refused(cudnnBackendSetAttribute(x, A(TENSOR_UNIQUE_ID), CUDNN_TYPE_INT64, 1, &eight), CUDNN_STATUS_NOT_INITIALIZED,
                   "final");
    assert_refused(cudnnBackendSetAttribute(open, A(MATMUL_COMP_TYPE), CUDNN_TYPE_INT64, 1, &eight),
                   CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "no attribute");
    assert_refused(cudnnBackendGetAttribute(open, A(TENSOR_UNIQUE_ID), CUDNN_TYPE_INT64, 1, nullptr, nullptr),
                   CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not final");
    D op = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    assert_refused(cudnnBackendSetAttribute(op, A(OPERATION_RESHAPE_XDESC), CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &open),
                   CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not final");
    assert_refused(cudnnBackendFinalize(conv_operation(FORWARD, x, w, images(3, type, N_, K_, p.ho + 1, p.wo), convolution(1, 1, 1))),
                   CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "pixels");
    D virtual_y = images(3, type, N_, K_, p.ho, p.wo, true), g = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    D lonely = pointwise(CUDNN_POINTWISE_EXP, virtual_y, nullptr, images(4, type, N_, K_, p.ho, p.wo));
    set(g, A(OPERATIONGRAPH_OPS), lonely);
    assert_refused(cudnnBackendFinalize(g), CUDNN_STATUS_BAD_PARAM, "written by none");

    D h = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    D good = conv_graph(FORWARD, p, type);
    set(h, A(ENGINEHEUR_OPERATION_GRAPH), good);
    set(h, A(ENGINEHEUR_MODE), CUDNN_TYPE_HEUR_MODE, 1, &mode);
    assert_refused(cudnnBackendFinalize(h), CUDNN_STATUS_BAD_PARAM, "neither a device");
    D plan = plan_of(configurations(good, device())[1]);
    void *a = upload(p.x, type), *b = upload(p.w, type), *c = block(p.y.size() * 4), *scratch = block((size_t)workspace_of(plan));
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2}, {a, b}, scratch)), CUDNN_STATUS_BAD_PARAM, "no pointer");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, nullptr}, scratch)),
                   CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "NULL");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, (char *)c + 2}, scratch)),
                   CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "aligned");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, c}, nullptr)),
                   CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "workspace");
    D pack = pack_of({1, 2, 3}, {a, b, c}, scratch);
    cuda_on_cpu_fail_call(1, cudaErrorIllegalAddress, false);
    assert_refused(cudnnBackendExecute(handle, plan, pack), CUDNN_STATUS_EXECUTION_FAILED_CUDART, "IllegalAddress");
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    OK(cudnnBackendExecute(handle, plan, pack));
}

static void calls_fail_on_demand(void **)
{
    D d = nullptr;
    cuda_on_cpu_fail_call(1, cudaErrorMemoryAllocation, false);
    assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &d),
                     CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED);
    assert_null(d);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    cuda_on_cpu_devices(0);
    cudnnHandle_t none = nullptr;
    assert_int_equal(cudnnCreate(&none), CUDNN_STATUS_NOT_INITIALIZED);
    cuda_on_cpu_devices(1);
    (void)cudaGetLastError();
    const size_t live = cuda_on_cpu_live();
    make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    assert_int_equal(cuda_on_cpu_live(), live + 1);
}

int main()
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, begin, finish)
    const struct CMUnitTest tests[] = {
        CASE(convolutions_are_right), CASE(epilogues_are_right), CASE(attention_is_right),       CASE(engines_differ),
        CASE(plans_come_back_from_text), CASE(runs_are_queued),  CASE(what_is_wrong_is_refused), CASE(calls_fail_on_demand),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

/* test_cublaslt.cpp - cuBLASLt's stand-in against sums in double, and what it refuses. */
#include "test_support.h"

#include "float_products.h"

#include <cublasLt.h>
#include <math.h>
#include <vector>

#define OK(call) assert_int_equal((call), CUBLAS_STATUS_SUCCESS)

static const int M_ = 5, N_ = 18, K_ = 7, PAD = 3; /* leading dimensions are longer than the columns */

struct sides {
    bool a_is_half, d_is_half, transposes_a, transposes_b, has_bias;
    float beta;
};

static cublasLtHandle_t handle;
static cudaStream_t stream;

static int begin(void **)
{
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cublasLtCreate(&handle));
    return 0;
}

static int finish(void **state)
{
    OK(cublasLtDestroy(handle));
    CUDA(cudaStreamDestroy(stream));
    cuda_on_cpu_engines(true);
    return nothing_left(state);
}

/* Column-major, with NaN below each column. */
struct matrix {
    int rows, columns, ld;
    bool is_half;
    std::vector<float> x;
    void *device;
    cublasLtMatrixLayout_t layout;
};

static matrix make(int rows, int columns, bool is_half, unsigned seed)
{
    matrix m = {rows, columns, rows + PAD, is_half, {}, nullptr, nullptr};
    m.x.assign((size_t)(m.ld * columns), NAN);
    for (int j = 0; j < columns; j++)
        for (int i = 0; i < rows; i++) {
            seed = seed * 1664525u + 1013904223u;
            m.x[(size_t)(j * m.ld + i)] = (float)((int)(seed >> 25) - 64) / 32.0f;
        }
    std::vector<uint16_t> halves;
    for (float v : m.x)
        halves.push_back(cuda_on_cpu::bf16_of_float(v));
    const size_t bytes = m.x.size() * (is_half ? 2 : 4);
    CUDA(cudaMalloc(&m.device, bytes));
    CUDA(cudaMemcpy(m.device, is_half ? (const void *)halves.data() : m.x.data(), bytes, cudaMemcpyHostToDevice));
    OK(cublasLtMatrixLayoutCreate(&m.layout, is_half ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)rows, (uint64_t)columns, m.ld));
    return m;
}

static void drop(const matrix &m)
{
    CUDA(cudaFree(m.device));
    OK(cublasLtMatrixLayoutDestroy(m.layout));
}

static double at(const matrix &m, bool transposes, int i, int j)
{
    return (double)m.x[(size_t)(transposes ? i * m.ld + j : j * m.ld + i)];
}

static std::vector<float> download(const matrix &m)
{
    std::vector<float> x(m.x.size());
    std::vector<uint16_t> halves(m.x.size());
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(m.is_half ? (void *)halves.data() : x.data(), m.device, x.size() * (m.is_half ? 2 : 4),
                    cudaMemcpyDeviceToHost));
    for (size_t i = 0; m.is_half && i < x.size(); i++)
        x[i] = cuda_on_cpu::float_of_bf16(halves[i]);
    return x;
}

struct call {
    cublasLtMatmulDesc_t d;
    cublasLtMatmulPreference_t wish;
    matrix a, b, to, bias;
};

static call prepare(const sides &s)
{
    call c;
    c.a = make(s.transposes_a ? K_ : M_, s.transposes_a ? M_ : K_, s.a_is_half, 1);
    c.b = make(s.transposes_b ? N_ : K_, s.transposes_b ? K_ : N_, s.a_is_half, 2);
    c.to = make(M_, N_, s.d_is_half, 3);
    c.bias = make(M_, 1, s.d_is_half, 4);
    const cublasOperation_t flip = CUBLAS_OP_T;
    OK(cublasLtMatmulDescCreate(&c.d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    if (s.transposes_a) OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_TRANSA, &flip, sizeof flip));
    if (s.transposes_b) OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_TRANSB, &flip, sizeof flip));
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    if (s.has_bias) {
        OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &c.bias.device, sizeof c.bias.device));
    }
    OK(cublasLtMatmulPreferenceCreate(&c.wish));
    const size_t most = 1 << 20;
    OK(cublasLtMatmulPreferenceSetAttribute(c.wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most));
    return c;
}

static void drop(const call &c)
{
    OK(cublasLtMatmulDescDestroy(c.d));
    OK(cublasLtMatmulPreferenceDestroy(c.wish));
    for (const matrix *m : {&c.a, &c.b, &c.to, &c.bias})
        drop(*m);
}

static int algorithms(const call &c, cublasLtMatmulHeuristicResult_t *found)
{
    int n = 0;
    const cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(handle, c.d, c.a.layout, c.b.layout, c.to.layout, c.to.layout,
                                                            c.wish, 4, found, &n);
    return s ? -(int)s : n;
}

static cublasStatus_t run(const call &c, float beta, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes)
{
    const float one = 1;
    return cublasLtMatmul(handle, c.d, &one, c.a.device, c.a.layout, c.b.device, c.b.layout, &beta, c.to.device, c.to.layout,
                          c.to.device, c.to.layout, algo, workspace, bytes, stream);
}

static void check(const sides &s, int which)
{
    call c = prepare(s);
    cublasLtMatmulHeuristicResult_t found[4];
    assert_int_equal(algorithms(c, found), 2);
    void *workspace;
    CUDA(cudaMalloc(&workspace, 1 << 20));
    OK(run(c, s.beta, &found[which].algo, workspace, found[which].workspaceSize));
    const std::vector<float> got = download(c.to);
    for (int j = 0; j < N_; j++)
        for (int i = 0; i < c.to.ld; i++) {
            const size_t here = (size_t)(j * c.to.ld + i);
            if (i >= M_) {
                assert_true(isnan(got[here]));
                continue;
            }
            double want = s.beta ? (double)s.beta * (double)c.to.x[here] : 0;
            for (int k = 0; k < K_; k++)
                want += at(c.a, s.transposes_a, i, k) * at(c.b, s.transposes_b, k, j);
            if (s.has_bias) want += (double)c.bias.x[(size_t)i];
            if (!(fabs((double)got[here] - want) <= (s.d_is_half ? 4e-3 : 1e-6) * (1 + fabs(want))))
                fail_msg("[%d,%d]: %g, expected %g", i, j, (double)got[here], want);
        }
    CUDA(cudaFree(workspace));
    drop(c);
}

static void products_are_right(void **)
{
    for (int i = 0; i < 16; i++) {
        const bool a_is_half = i & 4, d_is_half = a_is_half && (i & 8);
        check({a_is_half, d_is_half, (i & 1) != 0, (i & 2) != 0, (i & 3) == 1, i % 3 ? 1.0f : 0.0f}, i % 2);
    }
}

static void what_is_wrong_is_refused(void **)
{
    call c = prepare({false, false, false, false, false, 0});
    cublasLtMatmulHeuristicResult_t found[4];
    assert_int_equal(algorithms(c, found), 2);
    assert_true(found[0].workspaceSize > 0 && found[1].workspaceSize == 0);
    assert_int_equal(run(c, 0, &found[0].algo, nullptr, 0), CUBLAS_STATUS_INVALID_VALUE); /* no workspace */
    call other = prepare({false, false, true, false, false, 0});
    OK(run(other, 0, &found[1].algo, nullptr, 0)); /* as large */
    drop(other);
    c.a.device = (char *)c.a.device + 4; /* chosen for 256 bytes */
    assert_int_equal(run(c, 0, &found[1].algo, nullptr, 0), CUBLAS_STATUS_INVALID_VALUE);
    const uint32_t four = 4;
    OK(cublasLtMatmulPreferenceSetAttribute(c.wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &four, sizeof four));
    assert_int_equal(algorithms(c, found), 2);
    c.a.device = (char *)c.a.device - 4;
    OK(run(c, 0, &found[1].algo, nullptr, 0));
    const size_t none = 0;
    OK(cublasLtMatmulPreferenceSetAttribute(c.wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &none, sizeof none));
    assert_int_equal(algorithms(c, found), 1);
    assert_int_equal(cublasLtMatmulPreferenceSetAttribute(c.wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &four, sizeof four),
                     CUBLAS_STATUS_INVALID_VALUE);

    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t half = CUDA_R_16BF;
    OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    OK(cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &half, sizeof half));
    assert_int_equal(algorithms(c, found), -(int)CUBLAS_STATUS_NOT_SUPPORTED); /* a bias of another type than D */
    drop(c);

    c = prepare({false, false, false, false, false, 0});
    cuda_on_cpu_engines(false);
    assert_int_equal(algorithms(c, found), -(int)CUBLAS_STATUS_NOT_SUPPORTED);
    cuda_on_cpu_engines(true);
    assert_int_equal(algorithms(c, found), 2);
    cuda_on_cpu_fail_call(1, cudaErrorMemoryAllocation, false);
    assert_int_equal(run(c, 0, &found[1].algo, nullptr, 0), CUBLAS_STATUS_ALLOC_FAILED);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    drop(c);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(products_are_right, begin, finish),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_refused, begin, finish),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

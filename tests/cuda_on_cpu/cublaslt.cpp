/* cublaslt.cpp - the calls of cuBLASLt that the device layer makes, by plain loops on the stand-in's streams.
 *
 * D = alpha op(A) op(B) + beta C (+ bias along D's columns), column-major matrices in float or bf16, sums in float. What
 * cuBLASLt documents as refused is refused: a bias of another type than D, leading dimensions below the rows, an algorithm
 * used for other sizes, with less workspace, or with pointers aligned worse than it was chosen for (256 bytes where the
 * preference does not say otherwise). Of the algorithms offered the first wants a workspace, which is filled with NaN. */
#include "float_products.h"
#include "runtime.h"

#include <algorithm>
#include <set>
#include <string.h>

#include <cublasLt.h>

struct cublasLtContext {
    int unused;
};

namespace cuda_on_cpu {

typedef std::vector<float> buffer;

struct layout {
    int32_t type, batch;
    uint64_t rows, columns;
    int64_t ld, batch_stride;
};

struct description {
    int32_t compute, scale, transposes_a, transposes_b, bias_type; /* bias_type < 0: D's */
    uint32_t epilogue;
    const void *bias;
};

struct preference {
    uint64_t workspace;
    uint32_t alignment[4];
};

struct choice {
    uint32_t id, alignment[4];
    uint64_t workspace;
    uint32_t m, n, k;
};

static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(description) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");
static_assert(sizeof(choice) <= sizeof(cublasLtMatmulAlgo_t), "");

static std::set<const void *> &live = *new std::set<const void *>; /* handles and descriptors */
static long runs;
static const bool is_counted __attribute__((used)) = count_live([] { return live.size(); });

static cublasStatus_t lt_enter(entry_kind kind, const std::function<cublasStatus_t()> &body)
{
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    const cudaError_t e = enter(kind, [&] {
        s = body();
        return cudaSuccess;
    });
    if (e == cudaErrorMemoryAllocation) return CUBLAS_STATUS_ALLOC_FAILED;
    if (e == cudaErrorNoDevice) return CUBLAS_STATUS_NOT_INITIALIZED;
    return e ? CUBLAS_STATUS_EXECUTION_FAILED : s;
}

template <class O, class T> static cublasStatus_t create(O **out, const T &x)
{
    return lt_enter(NEEDS_NO_GPU, [&] {
        if (!out) return CUBLAS_STATUS_INVALID_VALUE;
        *out = new O();
        memcpy(*out, &x, sizeof x);
        live.insert(*out);
        return CUBLAS_STATUS_SUCCESS;
    });
}

template <class O> static cublasStatus_t destroy(O *one)
{
    return lt_enter(FREES, [&] {
        if (!live.erase(one)) return CUBLAS_STATUS_INVALID_VALUE;
        delete one;
        return CUBLAS_STATUS_SUCCESS;
    });
}

template <class T, class O> static T read(const O *opaque)
{
    T x;
    memcpy(&x, opaque, sizeof x);
    return x;
}

/* Sets one field of a T inside its opaque form. */
template <class T, class O, class F>
static cublasStatus_t set(O *opaque, F T::*field, const void *from, size_t bytes)
{
    if (!live.count(opaque) || !from || bytes != sizeof(F)) return CUBLAS_STATUS_INVALID_VALUE;
    T x = read<T>(opaque);
    memcpy(&(x.*field), from, bytes);
    memcpy(opaque, &x, sizeof x);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- a product ---- */

static bool is_type(int32_t type)
{
    return type == CUDA_R_32F || type == CUDA_R_16BF;
}

static bool is_layout(const layout &l)
{
    return is_type(l.type) && l.rows && l.columns && l.ld >= (int64_t)l.rows && l.batch == 1;
}

static size_t size_of(const layout &l)
{
    return l.type == CUDA_R_32F ? 4 : 2;
}

struct product {
    description d;
    layout a, b, c, to;
    int64_t m, n, k;
};

/* Whether it is one. */
static cublasStatus_t check(const product &p)
{
    const description &d = p.d;
    if (d.scale != CUDA_R_32F || (d.compute != CUBLAS_COMPUTE_32F && d.compute != CUBLAS_COMPUTE_32F_FAST_TF32))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const layout *l : {&p.a, &p.b, &p.c, &p.to})
        if (!is_layout(*l)) return CUBLAS_STATUS_INVALID_VALUE;
    if (p.a.type != p.b.type || p.c.type != p.to.type || (p.a.type == CUDA_R_32F && p.to.type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.c.rows != p.to.rows || p.c.columns != p.to.columns) return CUBLAS_STATUS_INVALID_VALUE;
    const uint64_t k = d.transposes_b ? p.b.columns : p.b.rows;
    if ((int64_t)(d.transposes_a ? p.a.columns : p.a.rows) != p.m || (int64_t)k != p.k ||
        (int64_t)(d.transposes_b ? p.b.rows : p.b.columns) != p.n)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && d.epilogue != CUBLASLT_EPILOGUE_BIAS) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d.epilogue == CUBLASLT_EPILOGUE_BIAS && d.bias_type >= 0 && d.bias_type != p.to.type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static bool get_product(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                        cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to, product *out)
{
    for (const void *one : {(const void *)d, (const void *)a, (const void *)b, (const void *)c, (const void *)to})
        if (!live.count(one)) return false;
    *out = {read<description>(d), read<layout>(a), read<layout>(b), read<layout>(c), read<layout>(to), 0, 0, 0};
    out->m = (int64_t)out->to.rows;
    out->n = (int64_t)out->to.columns;
    out->k = (int64_t)(out->d.transposes_a ? out->a.rows : out->a.columns);
    return true;
}

static float load(const layout &l, const void *from, int64_t row, int64_t column)
{
    const int64_t at = column * l.ld + row;
    if (l.type == CUDA_R_32F) return static_cast<const float *>(from)[at];
    return float_of_bf16(static_cast<const uint16_t *>(from)[at]);
}

/* op(l)^T row by row; inner columns of it in the order of the sum. */
static buffer gather(const layout &l, bool transposes, bool narrow, const void *from, int64_t rows, int64_t columns)
{
    buffer all((size_t)(rows * columns));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const float x = transposes ? load(l, from, i, j) : load(l, from, j, i);
            all[(size_t)(i * columns + j)] = narrow ? tf32_of_float(x) : x;
        }
    return all;
}

static void run(const product &p, float alpha, const void *a, const void *b, float beta, const void *c, void *to)
{
    runs++;
    charge_library();
    const bool narrow = p.d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    const buffer left = gather(p.b, p.d.transposes_b, narrow, b, p.n, p.k), right = gather(p.a, p.d.transposes_a, narrow, a, p.k, p.m);
    buffer sum((size_t)(p.m * p.n), 0.0f);
    add_product(p.n, p.m, p.k, left.data(), p.k, right.data(), p.m, sum.data(), p.m);
    const layout bias = {p.to.type, 1, (uint64_t)p.m, 1, p.m, 0};
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            float x = alpha * sum[(size_t)(j * p.m + i)];
            if (beta != 0) x += beta * load(p.c, c, i, j);
            if (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS) x += load(bias, p.d.bias, i, 0);
            const int64_t at = j * p.to.ld + i;
            if (p.to.type == CUDA_R_32F) static_cast<float *>(to)[at] = x;
            else static_cast<uint16_t *>(to)[at] = bf16_of_float(x);
        }
}

static bool is_aligned(const void *p, size_t to)
{
    return (uintptr_t)p % to == 0;
}

/* What the pointers of a call must be. */
static cublasStatus_t check_pointers(const product &p, const choice &algo, const void *const pointers[4], const void *workspace,
                                     size_t bytes)
{
    const layout *const layouts[] = {&p.a, &p.b, &p.c, &p.to};
    for (int i = 0; i < 4; i++)
        if (!pointers[i] || !is_aligned(pointers[i], std::max((size_t)algo.alignment[i], size_of(*layouts[i]))))
            return CUBLAS_STATUS_INVALID_VALUE;
    if (algo.workspace > bytes || (algo.workspace && (!workspace || !is_aligned(workspace, 16))))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (pointers[2] == pointers[3] && p.c.ld != p.to.ld) return CUBLAS_STATUS_INVALID_VALUE;
    return p.d.epilogue == CUBLASLT_EPILOGUE_BIAS && !p.d.bias ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t choose(const product &p, const preference &wish, int room, cublasLtMatmulHeuristicResult_t *out, int *count)
{
    *count = 0;
    if (!engines_exist()) return CUBLAS_STATUS_NOT_SUPPORTED;
    const uint64_t workspaces[] = {(uint64_t)(p.m * p.n) * 4 + 1024, 0};
    for (uint32_t id = 0; id < 2 && *count < room; id++) {
        if (workspaces[id] > wish.workspace) continue;
        choice x = {id, {}, workspaces[id], (uint32_t)p.m, (uint32_t)p.n, (uint32_t)p.k};
        memcpy(x.alignment, wish.alignment, sizeof x.alignment);
        cublasLtMatmulHeuristicResult_t *r = &out[(*count)++];
        memset(r, 0, sizeof *r);
        memcpy(&r->algo, &x, sizeof x);
        r->workspaceSize = workspaces[id];
        r->state = CUBLAS_STATUS_SUCCESS;
        r->wavesCount = 1;
    }
    return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    return lt_enter(ORDINARY, [&] {
        if (!out) return CUBLAS_STATUS_INVALID_VALUE;
        if (capture_forbids()) return CUBLAS_STATUS_NOT_SUPPORTED;
        *out = new cublasLtContext();
        live.insert(*out);
        return CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return destroy(handle);
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusName(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t ld)
{
    return create(out, layout{type, 1, rows, columns, ld, 0});
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    return destroy(l);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    return create(out, description{compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, -1, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    return destroy(d);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name, const void *from,
                                              size_t bytes)
{
    return lt_enter(NEEDS_NO_GPU, [&] {
        switch (name) {
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return set(d, &description::transposes_a, from, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return set(d, &description::transposes_b, from, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return set(d, &description::epilogue, from, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return set(d, &description::bias, from, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return set(d, &description::bias_type, from, bytes);
        default:
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    return create(out, preference{0, {256, 256, 256, 256}});
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    return destroy(p);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *from, size_t bytes)
{
    return lt_enter(NEEDS_NO_GPU, [&] {
        if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return set(p, &preference::workspace, from, bytes);
        const int i = name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
        if (i < 0 || i > 3 || !live.count(p) || !from || bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
        preference x = read<preference>(p);
        memcpy(&x.alignment[i], from, bytes);
        memcpy(p, &x, sizeof x);
        return CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to,
                                              cublasLtMatmulPreference_t wish, int room,
                                              cublasLtMatmulHeuristicResult_t results[], int *count)
{
    return lt_enter(ORDINARY, [&] {
        product p;
        if (!live.count(handle) || !live.count(wish) || room < 1 || !results || !count || !get_product(d, a, b, c, to, &p))
            return CUBLAS_STATUS_INVALID_VALUE;
        const cublasStatus_t s = check(p);
        return s ? s : choose(p, read<preference>(wish), room, results, count);
    });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t to, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    return lt_enter(ORDINARY, [&] {
        product p;
        if (!live.count(handle) || !alpha || !beta || !algo || !get_product(d, a, b, c, to, &p))
            return CUBLAS_STATUS_INVALID_VALUE;
        const choice x = read<choice>(algo);
        const void *const pointers[] = {A, B, C, D};
        cublasStatus_t s = check(p);
        if (!s) s = check_pointers(p, x, pointers, workspace, workspace_bytes);
        if (s) return s;
        if (x.m != p.m || x.n != p.n || x.k != p.k) return CUBLAS_STATUS_NOT_SUPPORTED;
        float scale, keep;
        memcpy(&scale, alpha, sizeof scale);
        memcpy(&keep, beta, sizeof keep);
        const cudaError_t e = stream_submit(stream, WORK_KERNEL, [=] {
            if (x.workspace) memset(workspace, 0xFF, x.workspace);
            run(p, scale, A, B, keep, C, D);
            if (x.workspace) memset(workspace, 0xFF, x.workspace);
        });
        return e ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
    });
}

long cuda_on_cpu_matmul_runs(void)
{
    return runs;
}

} /* extern "C" */

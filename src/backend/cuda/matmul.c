/* matmul.c - products of matrices by cuBLASLt.
 *
 * cuBLASLt's matrices are column-major, ours row-major: c = a b is computed as c^T = b^T a^T, which is the same memory. A
 * view whose rows are not contiguous but whose columns are is the other operand form. Results do not depend on the run: a
 * workspace of our own, and algorithms whose partial sums meet in a fixed order.
 *
 * Alignment. An algorithm is chosen for pointers of at least the alignment that a row's stride has, 16 bytes at most. */
#include "matmul.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ALIGNMENT = 16 };
static const size_t MOST_WORKSPACE = (size_t)32 << 20; /* what NVIDIA recommends for Hopper */

struct matmul_library {
    struct cuda_backend *be; /* borrowed */
    cublasLtHandle_t handle;
};

struct matmul {
    struct matmul_shape shape; /* uids and, for alignments, strides */
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; /* of cuBLASLt: a is our b */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
};

/* ---- status ---- */

static ddpm_status check(const char *what, cublasStatus_t e)
{
    if (!e) return DDPM_OK;
    if (e == CUBLAS_STATUS_ALLOC_FAILED) return FAIL(NOMEM, "%s: %s", what, cublasLtGetStatusName(e));
    return FAIL(BACKEND, "%s: %s", what, cublasLtGetStatusName(e));
}

ddpm_status matmul_library_create(struct cuda_backend *be, struct matmul_library **out)
{
    struct matmul_library *l = calloc(1, sizeof *l);
    REQUIRE(l, NOMEM, "cuBLASLt: %zu bytes", sizeof *l);
    l->be = be;
    const ddpm_status s = check("cuBLASLt", cublasLtCreate(&l->handle));
    if (s) {
        free(l);
        return s;
    }
    *out = l;
    return DDPM_OK;
}

void matmul_library_free(struct matmul_library *l)
{
    if (!l) return;
    (void)cublasLtDestroy(l->handle);
    free(l);
}

size_t matmul_library_version(void)
{
    return cublasLtGetVersion();
}

/* ---- shapes ---- */

static cudaDataType_t type_of(const ddpm_tensor *t)
{
    return t->dtype == DDPM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Columns lie apart, rows together: the transpose of what cuBLASLt reads without. */
static bool is_flipped(const ddpm_tensor *t)
{
    return t->stride[1] != 1 && t->dim[1] > 1;
}

static int64_t leading(const ddpm_tensor *t)
{
    const int along = is_flipped(t) ? 0 : 1; /* the dimension that is contiguous */
    const int64_t least = t->dim[along], stride = t->stride[1 - along];
    return t->dim[1 - along] > 1 ? stride : (stride > least ? stride : least);
}

static bool is_usable(const ddpm_tensor *t)
{
    const int along = is_flipped(t) ? 0 : 1;
    return (t->stride[along] == 1 || t->dim[along] == 1) && leading(t) >= t->dim[along] && t->dim[0] <= INT32_MAX &&
           t->dim[1] <= INT32_MAX;
}

static int alignment_of(const ddpm_tensor *t)
{
    size_t n = MOST_ALIGNMENT;
    while (n > ddpm_dtype_size(t->dtype) && (size_t)leading(t) * ddpm_dtype_size(t->dtype) % n != 0)
        n /= 2;
    return (int)n;
}

/* ---- descriptors ---- */

static ddpm_status make_layout(const ddpm_tensor *t, cublasLtMatrixLayout_t *out)
{
    const bool flipped = is_flipped(t);
    return check("cuBLASLt", cublasLtMatrixLayoutCreate(out, type_of(t), (uint64_t)t->dim[flipped ? 0 : 1],
                                                        (uint64_t)t->dim[flipped ? 1 : 0], leading(t)));
}

static ddpm_status set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name, const void *value, size_t bytes)
{
    return check("cuBLASLt", cublasLtMatmulDescSetAttribute(d, name, value, bytes));
}

static ddpm_status describe(struct matmul *m, bool uses_tf32)
{
    const struct matmul_shape *s = &m->shape;
    const bool tf32 = uses_tf32 && s->a.dtype == DDPM_F32;
    const cublasOperation_t flip = CUBLAS_OP_T;
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    TRY(check("cuBLASLt", cublasLtMatmulDescCreate(&m->operation, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                                   CUDA_R_32F)));
    if (is_flipped(&s->b)) TRY(set(m->operation, CUBLASLT_MATMUL_DESC_TRANSA, &flip, sizeof flip));
    if (is_flipped(&s->a)) TRY(set(m->operation, CUBLASLT_MATMUL_DESC_TRANSB, &flip, sizeof flip));
    if (s->bias_uid) TRY(set(m->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias));
    TRY(make_layout(&s->b, &m->a));
    TRY(make_layout(&s->a, &m->b));
    return make_layout(&s->c, &m->c);
}

static ddpm_status matmul_create(const struct matmul_shape *s, bool uses_tf32, struct matmul **out)
{
    struct matmul *m = calloc(1, sizeof *m);
    REQUIRE(m, NOMEM, "cuBLASLt: %zu bytes", sizeof *m);
    m->shape = *s;
    const ddpm_status status = describe(m, uses_tf32);
    if (status) {
        matmul_free(m);
        return status;
    }
    *out = m;
    return DDPM_OK;
}

void matmul_free(struct matmul *m)
{
    if (!m) return;
    if (m->operation) (void)cublasLtMatmulDescDestroy(m->operation);
    if (m->a) (void)cublasLtMatrixLayoutDestroy(m->a);
    if (m->b) (void)cublasLtMatrixLayoutDestroy(m->b);
    if (m->c) (void)cublasLtMatrixLayoutDestroy(m->c);
    free(m);
}

/* ---- algorithms ---- */

static ddpm_status make_preference(const struct matmul_shape *s, cublasLtMatmulPreference_t *out)
{
    const uint32_t a = (uint32_t)alignment_of(&s->b), b = (uint32_t)alignment_of(&s->a), c = (uint32_t)alignment_of(&s->c);
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &MOST_WORKSPACE, sizeof MOST_WORKSPACE},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c}};
    TRY(check("cuBLASLt", cublasLtMatmulPreferenceCreate(out)));
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        TRY(check("cuBLASLt",
                  cublasLtMatmulPreferenceSetAttribute(*out, wishes[i].name, wishes[i].value, wishes[i].bytes)));
    return DDPM_OK;
}

static ddpm_status ask(struct matmul_library *l, const struct matmul *m, cublasLtMatmulHeuristicResult_t *found, int *n)
{
    cublasLtMatmulPreference_t preference = NULL;
    ddpm_status s = make_preference(&m->shape, &preference);
    if (!s) {
        const cublasStatus_t e = cublasLtMatmulAlgoGetHeuristic(l->handle, m->operation, m->a, m->b, m->c, m->c, preference,
                                                                MATMUL_ALGORITHMS, found, n);
        if (e == CUBLAS_STATUS_NOT_SUPPORTED) *n = 0;
        else s = check("cuBLASLt", e);
    }
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    return s;
}

static ddpm_status copy_algorithms(const struct matmul_shape *s, bool uses_tf32, const cublasLtMatmulHeuristicResult_t *found,
                                   int n_found, struct matmul **out, int *n)
{
    for (int i = 0; i < n_found; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        TRY(matmul_create(s, uses_tf32, &out[*n]));
        out[*n]->algorithm = found[i].algo;
        out[*n]->workspace = found[i].workspaceSize;
        (*n)++;
    }
    return DDPM_OK;
}

ddpm_status matmul_list(struct matmul_library *l, const struct matmul_shape *s, bool uses_tf32, struct matmul **out, int *n)
{
    cublasLtMatmulHeuristicResult_t found[MATMUL_ALGORITHMS];
    struct matmul *first = NULL;
    int n_found = 0;
    *n = 0;
    if (!is_usable(&s->a) || !is_usable(&s->b) || !is_usable(&s->c) || is_flipped(&s->c)) return DDPM_OK;
    TRY(matmul_create(s, uses_tf32, &first));
    ddpm_status status = ask(l, first, found, &n_found);
    if (!status) status = copy_algorithms(s, uses_tf32, found, n_found, out, n);
    matmul_free(first);
    for (; status && *n > 0; (*n)--)
        matmul_free(out[*n - 1]);
    return status;
}

size_t matmul_workspace(const struct matmul *m)
{
    return m->workspace;
}

int matmul_alignment(const struct matmul *m, int64_t uid)
{
    const struct matmul_shape *s = &m->shape;
    if (uid == s->a_uid) return alignment_of(&s->a);
    if (uid == s->b_uid) return alignment_of(&s->b);
    if (uid == s->c_uid || uid == s->residual_uid) return alignment_of(&s->c);
    return 1;
}

/* ---- running ---- */

ddpm_status matmul_run(struct matmul_library *l, const struct matmul *m, void *(*find)(const void *from, int64_t uid),
                       const void *from, void *workspace, cudaStream_t stream)
{
    const struct matmul_shape *s = &m->shape;
    const float one = 1, beta = s->residual_uid ? 1 : 0;
    void *const c = find(from, s->c_uid), *const residual = s->residual_uid ? find(from, s->residual_uid) : c;
    if (s->bias_uid) {
        const void *bias = find(from, s->bias_uid);
        TRY(set(m->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    return check("cuBLASLt",
                 cublasLtMatmul(l->handle, m->operation, &one, find(from, s->b_uid), m->a, find(from, s->a_uid), m->b, &beta,
                                residual, m->c, c, m->c, &m->algorithm, workspace, m->workspace, stream));
}

/* ---- text ---- */

/* The algorithm's bytes and its workspace. */
struct kept {
    cublasLtMatmulAlgo_t algorithm;
    uint64_t workspace;
};

ddpm_status matmul_to_text(const struct matmul *m, char **out)
{
    const struct kept k = {m->algorithm, m->workspace};
    char *text = malloc(2 * sizeof k + 1);
    REQUIRE(text, NOMEM, "cuBLASLt: %zu bytes", 2 * sizeof k + 1);
    for (size_t i = 0; i < sizeof k; i++)
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)&k)[i]);
    *out = text;
    return DDPM_OK;
}

static bool read_bytes(const char *text, unsigned char *to, size_t n)
{
    if (strlen(text) != 2 * n || strspn(text, "0123456789abcdef") != 2 * n) return false;
    for (size_t i = 0; i < n; i++) {
        const char digits[] = {text[2 * i], text[2 * i + 1], '\0'};
        to[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    return true;
}

/* Only an algorithm that cuBLASLt still offers for the shape is taken: a damaged one must not reach it. */
ddpm_status matmul_from_text(struct matmul_library *l, const struct matmul_shape *s, bool uses_tf32, const char *text,
                             struct matmul **out)
{
    struct kept k;
    struct matmul *offered[MATMUL_ALGORITHMS];
    int n = 0;
    *out = NULL;
    if (!read_bytes(text, (unsigned char *)&k, sizeof k)) return DDPM_OK;
    TRY(matmul_list(l, s, uses_tf32, offered, &n));
    for (int i = 0; i < n; i++) {
        const bool is_it = !*out && memcmp(&offered[i]->algorithm, &k.algorithm, sizeof k.algorithm) == 0;
        if (is_it) *out = offered[i];
        else matmul_free(offered[i]);
    }
    return DDPM_OK;
}

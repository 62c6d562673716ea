/* products.c - the table of products: which way a call takes, and running it with all its remainders.
 *
 * A call's signature is its kind, the dtype, extents and strides of its tensors, its numbers, and the options; not its
 * pointers. Where a pointer lies worse than an engine wants it (a slice at an odd channel), that one call goes to kernels/.
 *
 * Scratch of an entry: the engine's workspace, then what the remainders want. Remainders are kernels of kernels/ behind the
 * engine on the same stream: an epilogue, sums of dy, a rounded gradient of weights added to the f32 one. A plain
 * convolution whose residual is y keeps y aside first; where SiLU's gradient is in the product, the norm's lines come first. */
#include "products.h"

#include "launch.h"

#include <stdlib.h>
#include <string.h>

enum { SCRATCH_ALIGN = 256 };

static size_t align_up(size_t n)
{
    return (n + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
}

struct cudnn_plan_rules product_rules(const struct products *all)
{
    const ddpm_backend_options *o = &all->be->base.options;
    return (struct cudnn_plan_rules){.is_deterministic = o->is_deterministic, .uses_tf32 = o->uses_tf32};
}

/* ---- life ---- */

/* A library that cannot start on this machine (of another version, without one of its parts) leaves its work to kernels/,
 * and says so. */
static ddpm_status start_cudnn(struct products *all)
{
    struct cuda_backend *be = all->be;
    const cudnnStatus_t e = cudnnCreate(&all->cudnn);
    if (CUDNN_STATUS_CATEGORY(e) == CUDNN_STATUS_SUCCESS && !e) {
        TRY(cudnn_check("cuDNN", cudnnSetStream(all->cudnn, be->stream)));
        return cudnn_device_from_gpu(be->ordinal, &all->device);
    }
    cuda_note(be, "cuDNN", cudaPeekAtLastError()); /* where it was the device that failed */
    REQUIRE(!be->is_sick, BACKEND, "%s", be->first_fault);
    if (e / 1000 != 1) return cudnn_check("cuDNN", e);
    backend_note(&be->base, "cuDNN cannot be used (%s): convolutions are computed by slower kernels", cudnnGetErrorString(e));
    return DDPM_OK;
}

ddpm_status products_create(struct cuda_backend *be)
{
    const char *libraries = getenv("DDPM_LIBRARIES");
    if (libraries && strcmp(libraries, "0") == 0) return DDPM_OK;
    struct products *all = be->products = calloc(1, sizeof *all);
    REQUIRE(all, NOMEM, "products: %zu bytes", sizeof *all);
    all->be = be;
    TRY(start_cudnn(all));
    if (!all->cudnn) {
        products_free(be);
        return DDPM_OK;
    }
    TRY(matmul_library_create(be, &all->matmuls));
    if (!be->syncs_each_op) TRY(cuda_side_create(be));
    return tune_cache_open(all, &all->cache);
}

static void way_release(struct product_way *w)
{
    cudnn_plan_free(w->plan);
    matmul_free(w->matmul);
}

static void product_free(struct product *p)
{
    for (int i = 0; i < p->n_ways; i++)
        way_release(&p->way[i]);
    cudnn_forms_release(&p->forms);
    free(p->args);
    free(p);
}

void products_free(struct cuda_backend *be)
{
    struct products *all = be->products;
    if (!all) return;
    for (int i = 0; i < PRODUCT_BUCKETS; i++)
        while (all->bucket[i]) {
            struct product *p = all->bucket[i];
            all->bucket[i] = p->next;
            product_free(p);
        }
    tune_cache_free(all->cache);
    matmul_library_free(all->matmuls);
    cudnn_device_free(all->device);
    if (all->cudnn) (void)cudnnDestroy(all->cudnn);
    free(all);
    be->products = NULL;
}

/* ---- signatures ---- */

static bool adds_to_y(enum product_kind_name kind, const void *args)
{
    const struct conv2d_args *a = args;
    return kind == PRODUCT_CONV && a->residual && (a->residual == a->y || (a->y->data && a->residual->data == a->y->data));
}

static int write_key(const struct products *all, enum product_kind_name kind, const void *args, int64_t *key)
{
    const struct product_kind *k = &product_kinds[kind];
    const struct cudnn_plan_rules rules = product_rules(all);
    int n = 0;
    key[n++] = kind;
    key[n++] = rules.is_deterministic + 2 * rules.uses_tf32 + 4 * adds_to_y(kind, args);
    for (int i = 0; i < k->n_fields; i++) {
        const ddpm_tensor *t = product_tensor(k, args, i);
        key[n++] = t ? 16 * (int64_t)t->dtype + t->rank : -1;
        for (int d = 0; t && d < t->rank; d++) {
            key[n++] = t->dim[d];
            key[n++] = t->stride[d];
        }
    }
    for (int i = 0; i < k->n_numbers; i++) {
        key[n] = 0;
        memcpy(&key[n++], (const unsigned char *)args + k->number[i].at, k->number[i].bytes);
    }
    return n;
}

static unsigned hash(const int64_t *key, int n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < n; i++)
        h = (h ^ (uint64_t)key[i]) * 0x100000001b3u;
    return (unsigned)(h >> 32) % PRODUCT_BUCKETS;
}

/* The arguments again, with tensors of their own that have no data. */
static ddpm_status keep_args(struct product *p, const void *args)
{
    const struct product_kind *k = &product_kinds[p->kind];
    p->args = malloc(k->args_bytes);
    REQUIRE(p->args, NOMEM, "products: %zu bytes", k->args_bytes);
    memcpy(p->args, args, k->args_bytes);
    for (int i = 0; i < k->n_fields; i++) {
        const ddpm_tensor *t = product_tensor(k, args, i);
        if (!t) continue;
        p->tensors[i] = *t;
        p->tensors[i].data = NULL;
        *(const ddpm_tensor **)((unsigned char *)p->args + k->field[i].at) = &p->tensors[i];
    }
    return DDPM_OK;
}

static ddpm_status add_product(struct products *all, enum product_kind_name kind, const void *args, const int64_t *key, int n,
                               struct product **out)
{
    struct product *p = calloc(1, sizeof *p);
    REQUIRE(p, NOMEM, "products: %zu bytes", sizeof *p);
    p->kind = kind;
    p->n_key = n;
    p->adds_to_y = adds_to_y(kind, args);
    memcpy(p->key, key, (size_t)n * sizeof *key);
    ddpm_status s = keep_args(p, args);
    if (!s) s = tune_first(all, p);
    if (s) {
        product_free(p);
        return s;
    }
    p->next = all->bucket[hash(key, n)];
    all->bucket[hash(key, n)] = p;
    if (!p->is_tuned) all->n_untuned++;
    *out = p;
    return DDPM_OK;
}

static struct product *find(const struct products *all, const int64_t *key, int n)
{
    struct product *p = all->bucket[hash(key, n)];
    while (p && (p->n_key != n || memcmp(p->key, key, (size_t)n * sizeof *key) != 0))
        p = p->next;
    return p;
}

/* ---- running ---- */

static size_t tensor_bytes(const ddpm_tensor *t)
{
    return (size_t)ddpm_tensor_count(t) * ddpm_dtype_size(t->dtype);
}

/* db of linear_bwd as that of a convolution whose images have one pixel. dy is dense (product_kinds.c). */
struct rows {
    ddpm_tensor dy;
    struct conv2d_bwd_filter_args args;
};

static void rows_of(const struct linear_bwd_args *a, struct rows *out)
{
    out->dy = ddpm_tensor_4d(a->dy->data, a->dy->dim[0], 1, 1, a->dy->dim[1]);
    out->dy.dtype = a->dy->dtype;
    out->args = (struct conv2d_bwd_filter_args){.dy = &out->dy, .stride = 1, .db = a->db};
}

bool product_gives_sums(const struct product_way *way)
{
    return way->plan && cudnn_form_gives_sums(way->form);
}

/* Of a norm's SCALE, or of its SHIFT. */
static size_t lines_bytes(const struct conv2d_bwd_data_args *a)
{
    return align_up(tensor_bytes(a->sum));
}

/* Behind the engine's workspace. */
static size_t remainder_bytes(const struct product *p, const struct product_way *way)
{
    size_t n = 0;
    if (p->kind == PRODUCT_CONV && (way->left & CUDNN_LEFT_EPILOGUE) && p->adds_to_y) {
        const struct conv2d_args *a = p->args;
        n += align_up(tensor_bytes(a->y));
    }
    if (p->kind == PRODUCT_CONV_DATA && product_gives_sums(way)) n += 2 * lines_bytes(p->args);
    if (p->kind == PRODUCT_CONV_FILTER && (way->left & CUDNN_LEFT_SUMS)) n += align_up(scratch_conv_sums(p->args));
    if (p->kind == PRODUCT_LINEAR_WEIGHTS && (way->left & CUDNN_LEFT_SUMS)) {
        struct rows sums;
        rows_of(p->args, &sums);
        n += align_up(scratch_conv_sums(&sums.args));
    }
    if (way->left & CUDNN_LEFT_ADD) {
        const struct conv2d_bwd_filter_args *a = p->args;
        n += align_up(tensor_bytes(a->dw)) * 2; /* in bf16, and again in f32 */
    }
    return n;
}

static size_t workspace_bytes(const struct product_way *way)
{
    return align_up(way->plan ? way->plan->workspace_bytes : matmul_workspace(way->matmul));
}

static void *scratch_behind(void *scratch, const struct product_way *way)
{
    return (unsigned char *)scratch + workspace_bytes(way);
}

static bool is_own(const struct product_way *way)
{
    return !way->plan && !way->matmul;
}

size_t product_scratch(const struct product *p, const struct product_way *way)
{
    if (is_own(way)) return align_up(product_kinds[p->kind].own_scratch(p->args));
    return workspace_bytes(way) + remainder_bytes(p, way);
}

/* The call's own, and two more. */
struct pointers {
    int n;
    struct cudnn_pointer at[PRODUCT_TENSORS * PRODUCT_UIDS + 2];
};

static void *find_pointer(const void *from, int64_t uid)
{
    const struct pointers *p = from;
    for (int i = 0; i < p->n; i++)
        if (p->at[i].uid == uid) return p->at[i].data;
    return NULL;
}

bool product_fits(const struct product *p, const struct product_way *way, const void *args)
{
    struct pointers all;
    if (is_own(way)) return true;
    all.n = product_pointers(&product_kinds[p->kind], args, all.at);
    for (int i = 0; i < all.n; i++) {
        const struct cudnn_pointer *x = &all.at[i];
        int alignment = way->matmul ? matmul_alignment(way->matmul, x->uid) : 1;
        for (int j = 0; way->plan && j < way->plan->n_tensors; j++)
            if (way->plan->tensor[j].uid == x->uid) alignment = way->plan->tensor[j].alignment;
        if ((uintptr_t)x->data % (uintptr_t)alignment != 0) return false;
    }
    return true;
}

static void set_pointer(struct pointers *all, int64_t uid, void *data)
{
    for (int i = 0; i < all->n; i++)
        if (all->at[i].uid == uid) all->at[i].data = data;
}

static ddpm_status run_engine(struct products *all, const struct product_way *way, const struct pointers *at,
                              cudaStream_t stream, void *workspace)
{
    if (way->matmul) return matmul_run(all->matmuls, way->matmul, find_pointer, at, workspace, stream);
    if (stream != all->be->stream) TRY(cudnn_check("cuDNN", cudnnSetStream(all->cudnn, stream)));
    const ddpm_status s = cudnn_plan_run(way->plan, all->cudnn, stream, at->at, at->n, workspace);
    if (stream != all->be->stream && !s) return cudnn_check("cuDNN", cudnnSetStream(all->cudnn, all->be->stream));
    return s;
}

/* dw += the rounded gradient. */
static cudaError_t add_rounded(cudaStream_t stream, const ddpm_tensor *dw, const void *rounded, void *wide)
{
    const int64_t n = ddpm_tensor_count(dw);
    const ddpm_tensor more = ddpm_tensor_1d(wide, n);
    ddpm_tensor sum = ddpm_tensor_1d(dw->data, n);
    const cudaError_t e = launch_pack_channels(stream, 1, rounded, DDPM_BF16, n, wide, DDPM_F32, n);
    return e ? e : launch_add(stream, &(struct add_args){.a = &sum, .b = &more, .y = &sum}, NULL);
}

/* Engines may add to what is there: what they are documented to do about it is nothing. */
static cudaError_t clear_sums(cudaStream_t stream, const ddpm_tensor *a, const ddpm_tensor *b)
{
    const cudaError_t e = cudaMemsetAsync(a->data, 0, tensor_bytes(a), stream);
    return e ? e : cudaMemsetAsync(b->data, 0, tensor_bytes(b), stream);
}

static ddpm_status run_conv(struct products *all, const struct product *p, const struct product_way *way,
                            const struct conv2d_args *a, struct pointers *at, cudaStream_t stream, unsigned char *scratch)
{
    if (product_gives_sums(way)) TRY(cuda_check(all->be, "conv2d", clear_sums(stream, a->sum, a->square)));
    if (!(way->left & CUDNN_LEFT_EPILOGUE)) return run_engine(all, way, at, stream, scratch);
    ddpm_tensor kept;
    struct conv2d_args rest = *a;
    if (p->adds_to_y) {
        kept = *a->y;
        kept.data = scratch_behind(scratch, way);
        rest.residual = &kept;
        TRY(cuda_check(all->be, "conv2d",
                       cudaMemcpyAsync(kept.data, a->y->data, tensor_bytes(a->y), cudaMemcpyDefault, stream)));
    }
    TRY(run_engine(all, way, at, stream, scratch));
    return cuda_check(all->be, "conv2d", launch_conv_epilogue(stream, &rest));
}

static ddpm_status run_data(struct products *all, const struct product_way *way, const struct conv2d_bwd_data_args *a,
                            struct pointers *at, cudaStream_t stream, unsigned char *scratch)
{
    if (!product_gives_sums(way)) return run_engine(all, way, at, stream, scratch);
    void *scale = scratch_behind(scratch, way), *shift = (unsigned char *)scale + lines_bytes(a);
    at->at[at->n++] = (struct cudnn_pointer){CUDNN_UID_SCALE, scale};
    at->at[at->n++] = (struct cudnn_pointer){CUDNN_UID_SHIFT, shift};
    TRY(cuda_check(all->be, "conv2d_bwd_data", clear_sums(stream, a->sum, a->product)));
    TRY(cuda_check(all->be, "conv2d_bwd_data", launch_groupnorm_lines(stream, &a->norm, scale, shift)));
    return run_engine(all, way, at, stream, scratch);
}

static ddpm_status run_filter(struct products *all, const struct product_way *way, const struct conv2d_bwd_filter_args *a,
                              struct pointers *at, cudaStream_t stream, unsigned char *scratch)
{
    unsigned char *next = scratch_behind(scratch, way), *rounded = NULL;
    if (way->left & CUDNN_LEFT_ADD) {
        rounded = next;
        next += 2 * align_up(tensor_bytes(a->dw));
        set_pointer(at, CUDNN_UID_DW, rounded);
    }
    TRY(run_engine(all, way, at, stream, scratch));
    if (rounded)
        TRY(cuda_check(all->be, "conv2d_bwd_filter",
                       add_rounded(stream, a->dw, rounded, rounded + align_up(tensor_bytes(a->dw)))));
    if (!(way->left & CUDNN_LEFT_SUMS)) return DDPM_OK;
    return cuda_check(all->be, "conv2d_bwd_filter", launch_conv_sums(stream, a, next));
}

ddpm_status product_run(struct products *all, const struct product *p, const struct product_way *way, const void *args,
                        cudaStream_t stream, void *scratch)
{
    const struct product_kind *k = &product_kinds[p->kind];
    struct pointers at;
    if (is_own(way)) return cuda_check(all->be, k->op, k->own(stream, args, scratch));
    at.n = product_pointers(k, args, at.at);
    if (p->kind == PRODUCT_CONV) return run_conv(all, p, way, args, &at, stream, scratch);
    if (p->kind == PRODUCT_CONV_DATA) return run_data(all, way, args, &at, stream, scratch);
    if (p->kind == PRODUCT_CONV_FILTER) return run_filter(all, way, args, &at, stream, scratch);
    TRY(run_engine(all, way, &at, stream, scratch));
    if (!(way->left & CUDNN_LEFT_SUMS)) return DDPM_OK;
    struct rows sums;
    rows_of(args, &sums);
    return cuda_check(all->be, "linear_bwd", launch_conv_sums(stream, &sums.args, scratch_behind(scratch, way)));
}

/* ---- calls ---- */

/* The entry of a call; made where it is new and may be made now, else none. */
static ddpm_status look_up(struct products *all, enum product_kind_name kind, const void *args, struct product **out)
{
    int64_t key[PRODUCT_KEY_NUMBERS];
    const int n = write_key(all, kind, args, key);
    *out = find(all, key, n);
    if (*out) return DDPM_OK;
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (!all->be->base.is_measuring)
        TRY(cuda_check(all->be, "capture", cudaStreamIsCapturing(all->be->stream, &capture)));
    return capture == cudaStreamCaptureStatusNone ? add_product(all, kind, args, key, n, out) : DDPM_OK;
}

/* Whether the chosen way of the entry can take this call. */
static bool takes(const struct product *p, const void *args)
{
    return p && p->chosen >= 0 && product_fits(p, &p->way[p->chosen], args);
}

/* Gradients of weights go to the side, where there is one. */
static bool runs_aside(const struct products *all, enum product_kind_name kind)
{
    return kind == PRODUCT_CONV_FILTER && all->be->side;
}

/* While measuring, also what tuning may take beyond it. */
static ddpm_status take_scratch(struct products *all, const struct product *p, void **out)
{
    if (!p->is_tuned) *(runs_aside(all, p->kind) ? &all->be->side_spare : &all->be->scratch_spare) = TUNE_MORE_SCRATCH;
    return runs_aside(all, p->kind) ? cuda_side_scratch(all->be, p->scratch_bytes, out)
                                    : cuda_scratch(all->be, p->scratch_bytes, out);
}

static ddpm_status enqueue(struct products *all, const struct product *p, const void *args, void *scratch)
{
    const struct product_way *way = &p->way[p->chosen];
    cudaStream_t stream = all->be->stream;
    if (!runs_aside(all, p->kind)) return product_run(all, p, way, args, stream, scratch);
    TRY(cuda_side_fork(all->be, &stream));
    cuda_side_keeps(all->be, args);
    return product_run(all, p, way, args, stream, scratch);
}

static ddpm_status run(struct products *all, const struct product *p, const void *args)
{
    const char *op = product_kinds[p->kind].op;
    void *scratch;
    TRY(take_scratch(all, p, &scratch));
    cuda_range_begin(op);
    const ddpm_status s = enqueue(all, p, args, scratch);
    cuda_range_end();
    TRY(s);
    return all->be->syncs_each_op ? cuda_check(all->be, op, cudaStreamSynchronize(all->be->stream)) : DDPM_OK;
}

/* Times what has been seen, before the first call that counts. */
static ddpm_status settle(struct products *all)
{
    if (all->n_untuned == 0) return DDPM_OK;
    enum cudaStreamCaptureStatus capture;
    TRY(cuda_check(all->be, "capture", cudaStreamIsCapturing(all->be->stream, &capture)));
    return capture == cudaStreamCaptureStatusNone ? tune_all(all) : DDPM_OK;
}

static void tell_sums(const struct product *p, const void *args)
{
    if (!product_gives_sums(&p->way[p->chosen])) return;
    if (p->kind == PRODUCT_CONV)
        *((const struct conv2d_args *)args)->has_sums = true;
    else
        *((const struct conv2d_bwd_data_args *)args)->has_gradient = true;
}

/* Done where all entries of the call are there and take it. */
static ddpm_status try_kinds(struct products *all, const enum product_kind_name *kinds, int n, const void *args, bool *is_done)
{
    struct product *p[2];
    void *none;
    bool fits = true;
    for (int i = 0; i < n; i++)
        TRY(look_up(all, kinds[i], args, &p[i]));
    for (int i = 0; all->be->base.is_measuring && i < n; i++)
        TRY(take_scratch(all, p[i], &none));
    if (all->be->base.is_measuring) return DDPM_OK;
    TRY(settle(all));
    for (int i = 0; i < n; i++)
        fits = fits && takes(p[i], args);
    for (int i = 0; fits && i < n; i++)
        TRY(run(all, p[i], args));
    if (fits) tell_sums(p[0], args);
    *is_done = fits;
    return DDPM_OK;
}

static ddpm_status try_op(struct cuda_backend *be, int op, const void *args, bool *is_done)
{
    static const enum product_kind_name single[OP_COUNT] = {
        [OP_conv2d] = PRODUCT_CONV + 1,
        [OP_conv2d_bwd_data] = PRODUCT_CONV_DATA + 1,
        [OP_conv2d_bwd_filter] = PRODUCT_CONV_FILTER + 1,
        [OP_linear] = PRODUCT_LINEAR + 1,
        [OP_linear_bwd] = PRODUCT_LINEAR_WEIGHTS + 1,
        [OP_attention] = PRODUCT_ATTENTION + 1,
        [OP_attention_bwd] = PRODUCT_ATTENTION_BWD + 1,
    };
    if (!single[op]) return DDPM_OK;
    TRY(cuda_enter(be));
    const enum product_kind_name kinds[] = {single[op] - 1, PRODUCT_LINEAR_DATA};
    const bool has_data = op == OP_linear_bwd && ((const struct linear_bwd_args *)args)->dx;
    return try_kinds(be->products, kinds, has_data ? 2 : 1, args, is_done);
}

ddpm_status products_try(struct cuda_backend *be, int op, const void *args, bool *is_done)
{
    *is_done = false;
    if (!be->products) return DDPM_OK;
    be->passes_side = op == OP_conv2d_bwd_data && cuda_side_lets_pass(be, args);
    const ddpm_status s = cuda_fault(be, try_op(be, op, args, is_done));
    be->passes_side = false;
    return s;
}

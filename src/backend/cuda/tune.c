/* tune.c - which way a product takes: what the libraries offer for it, timed on the device.
 *
 * An entry begins with one way, so that its scratch is known: what the cache has from an earlier run, else the first plan
 * that can be built. Before the first call that counts all other ways of all new entries are built in threads (compiling one
 * takes up to some seconds, and there are dozens) and timed one after another on memory of their own that is given back
 * afterwards; our own kernel is one of them, and the fastest stays. Where determinism is asked for the first way stays, for
 * which one is fastest changes from run to run.
 *
 * Which form is tried first: with cuDNN before 9.26 the engines that compute epilogues on Hopper are those of the generation
 * before, so the plainest form leads; later the most fused one. */
#include "products.h"

#include "launch.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    FUSED_FIRST = 92600,  /* versions of cuDNN from here on */
    MOST_COMPILED = 4,    /* plans of a form that are compiled at run time */
    MOST_PRECOMPILED = 12,
    MOST_THREADS = 16,
    RUNS = 3,
    HOPELESS = 4, /* a way whose first run takes so many times the best one's is not run again */
};

static const char OWN[] = "own";

/* ---- the ways of an entry ---- */

/* The form that is tried i-th. */
static const struct cudnn_form *form_at(const struct product *p, int i)
{
    return &p->forms.form[cudnnGetVersion() >= FUSED_FIRST ? i : p->forms.n - 1 - i];
}

static bool is_same_plan(const struct cudnn_plan *a, const struct cudnn_plan *b)
{
    return a->engine == b->engine && a->workspace_bytes == b->workspace_bytes && strcmp(a->kernel, b->kernel) == 0;
}

static bool has_plan(const struct product *p, const struct cudnn_form *f, const struct cudnn_plan *plan)
{
    for (int i = 0; i < p->n_ways; i++)
        if (p->way[i].plan && p->way[i].form == f->name && is_same_plan(p->way[i].plan, plan)) return true;
    return false;
}

/* A form or an engine that cannot be had is passed over; a device that is gone is a failure. */
static ddpm_status passed_over(ddpm_status s)
{
    return s == DDPM_BACKEND && !cuda_is_lost() ? DDPM_OK : s;
}

/* Plans of one form, in the order of the heuristics: at most `most` more. What cannot be built is passed over. */
static ddpm_status add_plans(struct products *all, struct product *p, const struct cudnn_form *f, int most)
{
    const struct cudnn_plan_rules rules = product_rules(all);
    struct cudnn_plan_list list;
    ddpm_status s = cudnn_plan_list(f->graph, all->device, &rules, &list);
    for (int i = 0, built = 0; !s && i < list.n && built < most && p->n_ways < PRODUCT_WAYS; i++) {
        struct cudnn_plan *plan = NULL;
        s = passed_over(cudnn_plan_build(f->graph, &list, i, &plan));
        if (!plan) continue;
        if (has_plan(p, f, plan)) {
            cudnn_plan_free(plan);
            continue;
        }
        p->way[p->n_ways++] = (struct product_way){.form = f->name, .left = f->left, .plan = plan};
        built++;
        if (plan->is_compiled && most > MOST_COMPILED) most = MOST_COMPILED;
    }
    cudnn_plan_list_release(&list);
    return s;
}

static ddpm_status add_matmuls(struct products *all, struct product *p, int most)
{
    struct matmul_shape shape;
    unsigned left = 0;
    struct matmul *found[MATMUL_ALGORITHMS];
    int n = 0;
    if (!all->matmuls || !product_kinds[p->kind].matrices(p->args, &shape, &left)) return DDPM_OK;
    TRY(matmul_list(all->matmuls, &shape, product_rules(all).uses_tf32, found, &n));
    for (int i = 0; i < n; i++)
        if (i < most && p->n_ways < PRODUCT_WAYS)
            p->way[p->n_ways++] = (struct product_way){.form = "cublaslt", .left = left, .matmul = found[i]};
        else
            matmul_free(found[i]);
    return DDPM_OK;
}

static void add_own(struct product *p)
{
    p->way[p->n_ways++] = (struct product_way){.form = OWN};
}

static void choose(struct product *p, int i)
{
    p->chosen = i;
    p->scratch_bytes = i < 0 ? 0 : product_scratch(p, &p->way[i]);
}

/* Gives back what was not chosen. */
static void drop_others(struct product *p)
{
    for (int i = 0; i < p->n_ways; i++) {
        if (i == p->chosen) continue;
        cudnn_plan_free(p->way[i].plan);
        matmul_free(p->way[i].matmul);
    }
    if (p->chosen > 0) p->way[0] = p->way[p->chosen];
    p->n_ways = p->chosen >= 0 ? 1 : 0;
    if (p->chosen > 0) p->chosen = 0;
    cudnn_forms_release(&p->forms);
}

/* ---- the cache ---- */

enum { KEY_BYTES = 64 };

static const char *write_cache_key(const struct product *p, char key[KEY_BYTES])
{
    const XXH128_hash_t h = XXH3_128bits(p->key, (size_t)p->n_key * sizeof *p->key);
    snprintf(key, KEY_BYTES, "%s %016llx%016llx", product_kinds[p->kind].op, (unsigned long long)h.high64,
             (unsigned long long)h.low64);
    return key;
}

/* The way of an earlier run, where it is good still. */
static ddpm_status recall(struct products *all, struct product *p)
{
    char key[KEY_BYTES];
    const char *form = NULL, *text = tune_cache_find(all->cache, write_cache_key(p, key), &form);
    struct product_way w = {0};
    struct matmul_shape shape;
    ddpm_status s = DDPM_OK;
    if (!text) return DDPM_OK;
    if (strcmp(form, OWN) == 0) {
        add_own(p);
        choose(p, 0);
        p->is_tuned = true;
        return DDPM_OK;
    }
    if (strcmp(form, "cublaslt") == 0 && all->matmuls && product_kinds[p->kind].matrices(p->args, &shape, &w.left)) {
        w.form = "cublaslt";
        s = matmul_from_text(all->matmuls, &shape, product_rules(all).uses_tf32, text, &w.matmul);
    }
    for (int i = 0; !s && i < p->forms.n; i++) {
        const struct cudnn_form *f = &p->forms.form[i];
        if (strcmp(form, f->name) != 0) continue;
        w = (struct product_way){.form = f->name, .left = f->left};
        s = cudnn_plan_from_json(f->graph, all->device, text, &w.plan);
    }
    if (s == DDPM_FORMAT) s = DDPM_OK; /* chosen anew */
    TRY(s);
    if (!w.plan && !w.matmul) return DDPM_OK;
    p->way[p->n_ways++] = w;
    choose(p, 0);
    p->is_tuned = true;
    return DDPM_OK;
}

static ddpm_status remember(struct products *all, const struct product *p)
{
    char key[KEY_BYTES], *text = NULL;
    write_cache_key(p, key);
    const struct product_way *w = p->chosen < 0 ? NULL : &p->way[p->chosen];
    if (!w || w->form == OWN) return tune_cache_put(all->cache, key, OWN, "");
    TRY(w->plan ? cudnn_plan_to_json(w->plan, &text) : matmul_to_text(w->matmul, &text));
    const ddpm_status s = tune_cache_put(all->cache, key, w->form, text);
    free(text);
    return s;
}

/* ---- the first way ---- */

ddpm_status tune_first(struct products *all, struct product *p)
{
    const struct cudnn_plan_rules rules = product_rules(all);
    choose(p, -1);
    const ddpm_status s = product_kinds[p->kind].forms(p->args, &rules, &p->forms);
    if (s != DDPM_SHAPE) TRY(passed_over(s)); /* those two: nothing that cuDNN could describe */
    if (!rules.is_deterministic) TRY(recall(all, p));
    if (p->is_tuned) {
        cudnn_forms_release(&p->forms);
        return DDPM_OK;
    }
    for (int i = 0; i < p->forms.n && !p->n_ways; i++)
        TRY(add_plans(all, p, form_at(p, i), 1));
    if (!p->n_ways) TRY(add_matmuls(all, p, 1));
    choose(p, p->n_ways ? 0 : -1);
    p->is_tuned = rules.is_deterministic || p->chosen < 0;
    if (p->is_tuned) drop_others(p);
    return DDPM_OK;
}

/* ---- building in threads ---- */

struct builders {
    struct products *all;
    struct product **product;
    int n;
    atomic_int next;
    pthread_mutex_t lock;
    ddpm_status status; /* the first fault, with its message */
    char message[1024];
};

static void build_some(struct builders *b)
{
    for (int i; (i = atomic_fetch_add(&b->next, 1)) < b->n;) {
        struct product *p = b->product[i];
        ddpm_status s = DDPM_OK;
        for (int f = 0; f < p->forms.n && !s; f++)
            s = add_plans(b->all, p, form_at(p, f), MOST_PRECOMPILED);
        if (!s) continue;
        pthread_mutex_lock(&b->lock);
        if (!b->status) {
            b->status = s;
            status_copy_message(b->message, sizeof b->message);
        }
        pthread_mutex_unlock(&b->lock);
    }
}

static void *builder(void *b)
{
    build_some(b);
    return NULL;
}

static ddpm_status build_all(struct products *all, struct product **product, int n)
{
    struct builders b = {.all = all, .product = product, .n = n, .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread[MOST_THREADS];
    cpu_set_t set; /* those this process may run on */
    const int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int started = 0;
    for (int i = 0; i < n; i++)
        add_own(product[i]); /* behind its first way */
    while (started < MOST_THREADS && started + 1 < cpus && started + 1 < n &&
           pthread_create(&thread[started], NULL, builder, &b) == 0)
        started++;
    build_some(&b);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    if (b.status) status_set_message(b.message);
    TRY(b.status);
    for (int i = 0; i < n; i++)
        TRY(add_matmuls(all, product[i], MATMUL_ALGORITHMS));
    return DDPM_OK;
}

/* ---- timing ---- */

struct bench {
    struct products *all;
    unsigned char *memory; /* of tensors and scratch; NULL: there is none */
    size_t bytes;
    cudaEvent_t begin, end;
};

static size_t align_up(size_t n)
{
    return (n + 255) / 256 * 256;
}

/* From the first element to behind the last. */
static size_t span_bytes(const ddpm_tensor *t)
{
    int64_t last = 1;
    for (int i = 0; i < t->rank; i++)
        last += (t->dim[i] - 1) * t->stride[i];
    return (size_t)last * ddpm_dtype_size(t->dtype);
}

static size_t tensors_bytes(const struct product *p)
{
    size_t n = 0;
    for (int i = 0; i < product_kinds[p->kind].n_fields; i++)
        if (product_tensor(&product_kinds[p->kind], p->args, i)) n += align_up(span_bytes(&p->tensors[i]));
    return n;
}

static bool is_worth_it(const struct product *p, const struct product_way *w)
{
    return product_scratch(p, w) <= p->scratch_bytes + TUNE_MORE_SCRATCH;
}

static size_t bench_bytes(const struct product *p)
{
    size_t scratch = 0;
    for (int i = 0; i < p->n_ways; i++)
        if (is_worth_it(p, &p->way[i]) && product_scratch(p, &p->way[i]) > scratch) scratch = product_scratch(p, &p->way[i]);
    return tensors_bytes(p) + align_up(scratch);
}

/* Lays the tensors of the entry's arguments into the memory, or takes them out. */
static unsigned char *place(struct product *p, unsigned char *at)
{
    const struct product_kind *k = &product_kinds[p->kind];
    for (int i = 0; i < k->n_fields; i++) {
        if (!product_tensor(k, p->args, i)) continue;
        p->tensors[i].data = at;
        if (at) at += align_up(span_bytes(&p->tensors[i]));
    }
    return at;
}

/* What a way without sums costs later: GroupNorm reads a convolution's y once more, and its gradient dx and x. Copies move as much:
 * of the one half of y onto the other, of x onto dx. */
static cudaError_t read_again(cudaStream_t stream, const struct product *p, const struct product_way *w)
{
    if (product_gives_sums(w)) return cudaSuccess;
    if (p->kind == PRODUCT_CONV) {
        const struct conv2d_args *a = p->args;
        const size_t half = (size_t)ddpm_tensor_count(a->y) * ddpm_dtype_size(a->y->dtype) / 2;
        if (a->sum) return cudaMemcpyAsync((unsigned char *)a->y->data + half, a->y->data, half, cudaMemcpyDefault, stream);
    } else if (p->kind == PRODUCT_CONV_DATA) {
        const struct conv2d_bwd_data_args *a = p->args;
        const size_t all = (size_t)ddpm_tensor_count(a->dx) * ddpm_dtype_size(a->dx->dtype);
        if (a->norm.x) return cudaMemcpyAsync(a->dx->data, a->norm.x->data, all, cudaMemcpyDefault, stream);
    }
    return cudaSuccess;
}

/* Milliseconds of one of n runs. */
static ddpm_status time_runs(struct bench *b, struct product *p, const struct product_way *w, void *scratch, int n, float *each)
{
    struct cuda_backend *be = b->all->be;
    float all;
    TRY(cuda_check(be, "tuning", cudaEventRecord(b->begin, be->stream)));
    for (int i = 0; i < n; i++) {
        TRY(product_run(b->all, p, w, p->args, be->stream, scratch));
        TRY(cuda_check(be, "tuning", read_again(be->stream, p, w)));
    }
    TRY(cuda_check(be, "tuning", cudaEventRecord(b->end, be->stream)));
    TRY(cuda_check(be, "tuning", cudaEventSynchronize(b->end)));
    TRY(cuda_check(be, "tuning", cudaEventElapsedTime(&all, b->begin, b->end)));
    *each = all / (float)n;
    return DDPM_OK;
}

/* least: of the ways before, 0: none. */
static ddpm_status time_way(struct bench *b, struct product *p, struct product_way *w, void *scratch, float least)
{
    TRY(product_run(b->all, p, w, p->args, b->all->be->stream, scratch)); /* warms up: code may be loaded only now */
    TRY(time_runs(b, p, w, scratch, 1, &w->milliseconds));
    if (least > 0 && w->milliseconds > HOPELESS * least) return DDPM_OK;
    return time_runs(b, p, w, scratch, RUNS, &w->milliseconds);
}

static ddpm_status time_product(struct bench *b, struct product *p)
{
    struct cuda_backend *be = b->all->be;
    const size_t bytes = bench_bytes(p);
    if (p->n_ways < 2 || bytes > b->bytes) return DDPM_OK;
    /* 0x3c: 0.01 in both types, for the speed of some engines depends on the data */
    TRY(cuda_check(be, "tuning", cudaMemsetAsync(b->memory, 0x3c, bytes, be->stream)));
    unsigned char *const scratch = place(p, b->memory);
    int best = p->chosen;
    float least = 0;
    ddpm_status s = DDPM_OK;
    for (int i = 0; i < p->n_ways && !s; i++) {
        struct product_way *w = &p->way[i];
        if (!is_worth_it(p, w)) continue;
        s = cuda_fault(be, time_way(b, p, w, scratch, least));
        if (s == DDPM_BACKEND && !be->is_sick) { /* this way does not run here */
            s = DDPM_OK;
            if (i == best) best = -1;
            continue;
        }
        if (best >= 0 && least > 0 && w->milliseconds >= least) continue;
        best = i;
        least = w->milliseconds;
    }
    place(p, NULL);
    TRY(s);
    choose(p, best);
    return DDPM_OK;
}

/* Memory for the entry that wants most; where there is not as much, the larger ones keep their first way. */
static ddpm_status bench_create(struct products *all, struct product **product, int n, struct bench *b)
{
    struct cuda_backend *be = all->be;
    size_t available = 0, total = 0;
    for (int i = 0; i < n; i++)
        if (bench_bytes(product[i]) > b->bytes) b->bytes = bench_bytes(product[i]);
    TRY(cuda_check(be, "tuning", cudaMemGetInfo(&available, &total)));
    if (b->bytes > available / 2) {
        backend_note(&be->base, "%.1f GiB are not free: the largest layers run by engines that were not timed",
                     2 * (double)b->bytes / 0x1p30);
        b->bytes = available / 2;
    }
    void *memory = NULL;
    TRY(cuda_check(be, "tuning", cudaMalloc(&memory, b->bytes)));
    b->memory = memory;
    TRY(cuda_check(be, "tuning", cudaEventCreate(&b->begin)));
    return cuda_check(be, "tuning", cudaEventCreate(&b->end));
}

static void bench_free(struct bench *b)
{
    struct cuda_backend *be = b->all->be;
    if (b->begin) cuda_note(be, "tuning", cudaEventDestroy(b->begin));
    if (b->end) cuda_note(be, "tuning", cudaEventDestroy(b->end));
    if (b->memory) {
        cuda_note(be, "tuning", cudaStreamSynchronize(be->stream));
        cuda_note(be, "tuning", cudaFree(b->memory));
    }
}

/* ---- all of it ---- */

static int collect(struct products *all, struct product **product)
{
    int n = 0;
    for (int i = 0; i < PRODUCT_BUCKETS; i++)
        for (struct product *p = all->bucket[i]; p; p = p->next)
            if (!p->is_tuned) product[n++] = p;
    return n;
}

static void note_copies(struct products *all, struct product **product, int n)
{
    int copies = 0;
    size_t most = 0;
    for (int i = 0; i < n; i++) {
        const struct cudnn_plan *plan = product[i]->chosen >= 0 ? product[i]->way[product[i]->chosen].plan : NULL;
        if (!plan || !plan->copies_tensor) continue;
        copies++;
        if (plan->workspace_bytes > most) most = plan->workspace_bytes;
    }
    if (copies)
        backend_note(&all->be->base, "cuDNN copies a whole tensor first in %d of %d products (workspace up to %.1f MiB)",
                     copies, n, (double)most / 0x1p20);
}

static ddpm_status time_all(struct products *all, struct product **product, int n)
{
    struct bench b = {.all = all};
    ddpm_status s = build_all(all, product, n);
    if (!s) s = bench_create(all, product, n, &b);
    for (int i = 0; i < n && !s; i++)
        s = time_product(&b, product[i]);
    bench_free(&b);
    for (int i = 0; i < n && !s; i++) {
        s = remember(all, product[i]);
        product[i]->is_tuned = true;
    }
    if (s) return s;
    note_copies(all, product, n);
    for (int i = 0; i < n; i++)
        drop_others(product[i]);
    all->n_untuned = 0;
    all->be->scratch_spare = all->be->side_spare = 0; /* nothing is open any more */
    tune_cache_save(all, all->cache);
    return DDPM_OK;
}

ddpm_status tune_all(struct products *all)
{
    struct product **product = malloc((size_t)all->n_untuned * sizeof *product);
    REQUIRE(product, NOMEM, "tuning: %d products", all->n_untuned);
    const int n = collect(all, product);
    const ddpm_status s = time_all(all, product, n);
    free(product);
    return s;
}

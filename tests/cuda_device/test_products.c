/* test_products.c - convolutions, dense layers and attention through cuDNN's and cuBLASLt's stand-ins: the same numbers as
 * the CPU backend's, which way a call takes, what is kept on disk, and every call of a library failing. */
#include "device_support.h"

#include "products.h"

#include "ops.h"
#include "philox.h"

#include <math.h>

enum { TENSORS = 9 };

/* ---- calls ---- */

/* A tensor of a call: its view, and what it is. */
struct slot {
    ddpm_tensor t;
    bool is_f32, is_output; /* f32 whatever the activations are; compared */
};

struct call {
    const char *name;
    ddpm_status (*run)(ddpm_backend *be, ddpm_tensor *t);
    int n;
    struct slot slot[TENSORS];
};

static int64_t span(const ddpm_tensor *t)
{
    int64_t last = 1;
    for (int i = 0; i < t->rank; i++)
        last += (t->dim[i] - 1) * t->stride[i];
    return last;
}

static struct slot image(int64_t n, int64_t h, int64_t w, int64_t c)
{
    return (struct slot){.t = ddpm_tensor_4d(NULL, n, h, w, c)};
}

static struct slot rows(int64_t m, int64_t n)
{
    return (struct slot){.t = ddpm_tensor_2d(NULL, m, n)};
}

static struct slot f32(struct slot s)
{
    s.is_f32 = true;
    return s;
}

static struct slot out(struct slot s)
{
    s.is_output = true;
    return s;
}

/* The first c of its channels, the strides of all. */
static struct slot sliced(struct slot s, int64_t c)
{
    s.t = ddpm_tensor_slice(&s.t, 0, c);
    return s;
}

static struct slot vector(int64_t n)
{
    return f32((struct slot){.t = ddpm_tensor_1d(NULL, n)});
}

#define OPS backend_ops(be)
#define PADS(n) .pad_top = n, .pad_left = n, .pad_bottom = n, .pad_right = n

static ddpm_status run_conv(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .stride = 1, PADS(1), .y = &t[2]});
}

static ddpm_status run_conv_all(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .bias = &t[3], .emb = &t[4], .residual = &t[5],
                                                 .stride = 2, .pad_bottom = 1, .pad_right = 1, .y = &t[2]});
}

static ddpm_status run_conv_onto(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .bias = &t[3], .residual = &t[2], .stride = 1,
                                                 PADS(1), .y = &t[2]});
}

static ddpm_status run_pointwise_onto(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .residual = &t[2], .stride = 1, .y = &t[2]});
}

static ddpm_status run_data(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_data(
        be, &(struct conv2d_bwd_data_args){.dy = &t[0], .w = &t[1], .stride = 1, PADS(1), .accumulate = true, .dx = &t[2]});
}

static ddpm_status run_pointwise_data(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_data(be, &(struct conv2d_bwd_data_args){.dy = &t[0], .w = &t[1], .stride = 1, .dx = &t[2]});
}

static ddpm_status run_filter(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_filter(be, &(struct conv2d_bwd_filter_args){.x = &t[0], .dy = &t[1], .stride = 1, PADS(1),
                                                                       .dw = &t[2], .db = &t[3], .demb = &t[4]});
}

static ddpm_status run_pointwise_filter(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){.x = &t[0], .dy = &t[1], .stride = 1, .dw = &t[2], .db = &t[3]});
}

static ddpm_status run_linear(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->linear(be, &(struct linear_args){.x = &t[0], .w = &t[1], .bias = &t[3], .y = &t[2]});
}

static ddpm_status run_linear_bwd(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->linear_bwd(be, &(struct linear_bwd_args){.x = &t[0], .w = &t[1], .dy = &t[2], .accumulate = true, .dx = &t[3],
                                                         .dw = &t[4], .db = &t[5]});
}

static ddpm_status run_attention(ddpm_backend *be, ddpm_tensor *t)
{
    TRY(OPS->attention(be, &(struct attention_args){.q = &t[0], .k = &t[1], .v = &t[2], .scale = 0.3f, .o = &t[3], .lse = &t[4]}));
    return OPS->attention_bwd(be, &(struct attention_bwd_args){.q = &t[0], .k = &t[1], .v = &t[2], .o = &t[3], .lse = &t[4],
                                                               .d_o = &t[5], .scale = 0.3f, .dq = &t[6], .dk = &t[7],
                                                               .dv = &t[8]});
}

/* Slices of one joint projection would overlap here: they are slices of three. */
static struct slot heads(int64_t n, int64_t t, int64_t h, int64_t d)
{
    struct slot s = image(n, t, h, d);
    s.t.stride[1] = 3 * h * d;
    s.t.stride[0] = t * s.t.stride[1];
    return s;
}

static int all_calls(struct call *c)
{
    const struct slot lse = f32((struct slot){.t = {.dtype = DDPM_F32, .rank = 3, .dim = {2, 2, 9}, .stride = {18, 9, 1}}});
    const struct slot dwide = out(f32(sliced(image(8, 1, 1, 24), 16)));
    int n = 0;
    c[n++] = (struct call){"conv", run_conv, 3, {sliced(image(2, 6, 5, 24), 16), image(8, 3, 3, 16), out(image(2, 6, 5, 8))}};
    c[n++] = (struct call){"conv, everything added", run_conv_all, 6,
                           {image(2, 6, 6, 8), image(16, 3, 3, 8), out(image(2, 3, 3, 16)), vector(16),
                            f32(sliced(rows(2, 24), 16)), image(2, 3, 3, 16)}};
    c[n++] = (struct call){"conv onto y", run_conv_onto, 4,
                           {image(2, 4, 4, 8), image(8, 3, 3, 8), out(image(2, 4, 4, 8)), vector(8)}};
    c[n++] = (struct call){"1x1 conv onto y, sliced weights", run_pointwise_onto, 3,
                           {image(2, 4, 4, 16), sliced(image(8, 1, 1, 24), 16), out(image(2, 4, 4, 8))}};
    c[n++] = (struct call){"data", run_data, 3, {image(2, 5, 5, 8), image(8, 3, 3, 16), out(sliced(image(2, 5, 5, 24), 16))}};
    c[n++] = (struct call){"1x1 data", run_pointwise_data, 3,
                           {image(2, 5, 5, 8), sliced(image(8, 1, 1, 24), 16), out(image(2, 5, 5, 16))}};
    c[n++] = (struct call){"filter", run_filter, 5,
                           {image(2, 5, 5, 16), image(2, 5, 5, 8), out(f32(image(8, 3, 3, 16))), out(vector(8)),
                            out(f32(rows(2, 8)))}};
    c[n++] = (struct call){"1x1 filter", run_pointwise_filter, 4,
                           {image(2, 5, 5, 16), image(2, 5, 5, 8), dwide, out(vector(8))}};
    c[n++] = (struct call){"linear", run_linear, 4,
                           {sliced(rows(5, 24), 16), rows(8, 16), out(sliced(rows(5, 16), 8)), vector(8)}};
    c[n++] = (struct call){"linear_bwd", run_linear_bwd, 6,
                           {rows(5, 16), rows(8, 16), rows(5, 8), out(sliced(rows(5, 24), 16)), out(f32(rows(8, 16))),
                            out(vector(8))}};
    c[n++] = (struct call){"attention", run_attention, 9,
                           {heads(2, 9, 2, 16), heads(2, 9, 2, 16), heads(2, 9, 2, 16), out(image(2, 9, 2, 16)), out(lse),
                            image(2, 9, 2, 16), out(heads(2, 9, 2, 16)), out(heads(2, 9, 2, 16)), out(heads(2, 9, 2, 16))}};
    return n;
}

enum { CALLS = 16 };

/* ---- data ---- */

static float rounded(float x, bool to_half)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (to_half) u = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float *numbers(const struct slot *s, uint64_t which, bool is_half)
{
    const int64_t n = span(&s->t);
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        const float u = philox_uniform(philox_draw(3, PHILOX_TEST, 0, which, (uint32_t)i).v[0]);
        x[i] = rounded(2 * u - 1, is_half && !s->is_f32);
    }
    return x;
}

static void put(ddpm_backend *be, ddpm_tensor *t, const float *x, int64_t n)
{
    uint16_t *halves = malloc((size_t)n * sizeof *halves);
    assert_non_null(halves);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        halves[i] = (uint16_t)(u >> 16);
    }
    const void *from = t->dtype == DDPM_BF16 ? (const void *)halves : x;
    assert_ok(ddpm_backend_upload(be, t->data, from, (size_t)n * ddpm_dtype_size(t->dtype)));
    free(halves);
}

static void fetch(ddpm_backend *be, const ddpm_tensor *t, float *x, int64_t n)
{
    assert_ok(ddpm_backend_download(be, x, t->data, (size_t)n * ddpm_dtype_size(t->dtype)));
    for (int64_t i = n; t->dtype == DDPM_BF16 && i-- > 0;) {
        const uint32_t u = (uint32_t)((const uint16_t *)x)[i] << 16;
        memcpy(&x[i], &u, sizeof u);
    }
}

struct result {
    float *x[TENSORS];
};

static void result_free(struct result *r)
{
    for (int i = 0; i < TENSORS; i++)
        free(r->x[i]);
}

/* Tensors of the call on that backend, `askew` elements behind a good place. */
static void place(ddpm_backend *be, const struct call *c, bool is_half, int askew, ddpm_tensor *t, void **block)
{
    for (int i = 0; i < c->n; i++) {
        t[i] = c->slot[i].t;
        t[i].dtype = is_half && !c->slot[i].is_f32 ? DDPM_BF16 : DDPM_F32;
        const size_t size = ddpm_dtype_size(t[i].dtype);
        assert_ok(ddpm_backend_alloc(be, ((size_t)span(&t[i]) + 8) * size, &block[i]));
        t[i].data = (unsigned char *)block[i] + (size_t)askew * size;
    }
}

static ddpm_status measured(ddpm_backend *be, const struct call *c, const ddpm_tensor *t)
{
    ddpm_tensor none[TENSORS];
    for (int i = 0; i < c->n; i++) {
        none[i] = t[i];
        none[i].data = NULL;
    }
    ddpm_backend_measure(be, true);
    const ddpm_status s = c->run(be, none);
    ddpm_backend_measure(be, false);
    return s;
}

static struct result compute(ddpm_backend *be, const struct call *c, bool is_half, bool is_cpu, int askew, int times)
{
    struct result r = {{0}};
    ddpm_tensor t[TENSORS];
    void *block[TENSORS];
    place(be, c, is_half && !is_cpu, askew, t, block);
    assert_ok(measured(be, c, t));
    for (int round = 0; round < times; round++) {
        for (int i = 0; i < c->n; i++) {
            float *x = numbers(&c->slot[i], (uint64_t)i, is_half);
            put(be, &t[i], x, span(&t[i]));
            free(r.x[i]);
            r.x[i] = x;
        }
        const ddpm_status s = c->run(be, t);
        if (s) fail_msg("%s: %s", c->name, ddpm_last_error());
    }
    for (int i = 0; i < c->n; i++)
        fetch(be, &t[i], r.x[i], span(&t[i]));
    for (int i = 0; i < c->n; i++)
        ddpm_backend_release(be, block[i]);
    return r;
}

/* Largest difference over the largest value, of the outputs; what lies between a view's rows is the same in both. */
static double error_of(const struct call *c, const struct result *got, const struct result *want)
{
    double most = 0;
    for (int i = 0; i < c->n; i++) {
        double worst = 0, scale = 1e-30;
        for (int64_t j = 0; c->slot[i].is_output && j < span(&c->slot[i].t); j++) {
            const double d = fabs((double)got->x[i][j] - (double)want->x[i][j]);
            if (!(d <= worst)) worst = d;
            if (fabs((double)want->x[i][j]) > scale) scale = fabs((double)want->x[i][j]);
        }
        if (!(worst / scale <= most)) most = worst / scale;
    }
    return most;
}

static ddpm_backend *backend_with(ddpm_backend_options options)
{
    ddpm_backend *be = create();
    ddpm_backend_configure(be, &options);
    return be;
}

static long library_runs(void)
{
    return cuda_on_cpu_graph_runs() + cuda_on_cpu_matmul_runs();
}

/* ---- the same numbers ---- */

/* f32 sums in another order; bf16: results rounded to 8 bits, and probabilities before the second product. */
static double tolerance(bool is_half)
{
    return is_half ? 1.5e-2 : 1e-5;
}

/* libraries: whether they are expected to have computed it. */
static void check_all(ddpm_backend_options options, int askew, bool is_half, bool libraries)
{
    struct call calls[CALLS];
    const int n = all_calls(calls);
    ddpm_backend *cpu = NULL, *be = backend_with(options);
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    for (int i = 0; i < n; i++) {
        const long before = library_runs();
        struct result want = compute(cpu, &calls[i], is_half, true, 0, 1);
        struct result got = compute(be, &calls[i], is_half, false, askew, 1);
        const double error = error_of(&calls[i], &got, &want);
        if (!(error <= tolerance(is_half))) fail_msg("%s: error %g", calls[i].name, error);
        const bool has_engine = is_half || strcmp(calls[i].name, "attention") != 0; /* none in f32 */
        if (libraries && has_engine && library_runs() == before) fail_msg("%s: no library computed it", calls[i].name);
        if (!libraries && library_runs() != before) fail_msg("%s: a library computed it", calls[i].name);
        result_free(&want);
        result_free(&got);
    }
    ddpm_backend_free(cpu);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

static void libraries_give_the_cpus_numbers(void **state)
{
    (void)state;
    check_all((ddpm_backend_options){0}, 0, false, true);
    check_all((ddpm_backend_options){0}, 0, true, true);
    check_all((ddpm_backend_options){.is_deterministic = true}, 0, false, true);
    check_all((ddpm_backend_options){.is_deterministic = true}, 0, true, true);
}

static void kernels_take_over(void **state)
{
    (void)state;
    setenv("DDPM_LIBRARIES", "0", 1);
    check_all((ddpm_backend_options){0}, 0, true, false);
    unsetenv("DDPM_LIBRARIES");
    cuda_on_cpu_engines(false);
    check_all((ddpm_backend_options){0}, 0, false, false);
    cuda_on_cpu_engines(true);
}

/* Tuning runs on memory of its own; the call itself, whose pointers lie askew, must not reach an engine. */
static void pointers_that_lie_askew_go_to_the_kernels(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true}), *cpu = NULL;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    for (int i = 0; i < n; i++) {
        const long before = library_runs();
        struct result want = compute(cpu, &calls[i], true, true, 0, 1), got = compute(be, &calls[i], true, false, 1, 1);
        if (!(error_of(&calls[i], &got, &want) <= tolerance(true))) fail_msg("%s", calls[i].name);
        assert_int_equal(library_runs(), before);
        result_free(&want);
        result_free(&got);
    }
    ddpm_backend_free(be);
    ddpm_backend_free(cpu);
}

/* ---- which engines ---- */

/* The stand-in's other engines add in another order on every second run. */
static void deterministic_means_the_same_bits(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    for (int is_half = 0; is_half < 2; is_half++) {
        ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true});
        for (int i = 0; i < n; i++) {
            struct result a = compute(be, &calls[i], is_half, false, 0, 1), b = compute(be, &calls[i], is_half, false, 0, 2);
            for (int j = 0; j < calls[i].n; j++)
                assert_memory_equal(a.x[j], b.x[j], (size_t)span(&calls[i].slot[j].t) * sizeof(float));
            result_free(&a);
            result_free(&b);
        }
        ddpm_backend_free(be);
    }
}

/* Only where it is asked for are inputs rounded: to 11 bits, which the tolerance of full f32 would not let through. */
static void tf32_is_asked_for(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    double least = 1, most = 0;
    for (int try = 0; try < 8; try++) { /* tuning by time may choose another engine */
        ddpm_backend *be = backend_with((ddpm_backend_options){.uses_tf32 = true}), *cpu = NULL;
        assert_ok(ddpm_backend_create("cpu", 1, &cpu));
        struct result want = compute(cpu, &calls[8], false, true, 0, 1), got = compute(be, &calls[8], false, false, 0, 1);
        const double error = error_of(&calls[8], &got, &want);
        least = error < least ? error : least;
        most = error > most ? error : most;
        result_free(&want);
        result_free(&got);
        ddpm_backend_free(be);
        ddpm_backend_free(cpu);
    }
    assert_true(most > 1e-5);
    assert_true(most < 2e-3);
}

/* ---- steps ---- */

/* After the first call nothing is allocated, built or waited for; a recorded call is replayed; one that is new while its
 * stream is captured is left to kernels/. */
static void nothing_is_made_in_a_step(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    ddpm_backend *be = backend_with((ddpm_backend_options){0});
    cudaStream_t stream = cuda_of(be)->stream;
    ddpm_tensor t[TENSORS], other[TENSORS];
    void *block[TENSORS], *others[TENSORS];
    const struct call *conv = &calls[1], *unseen = &calls[2];
    place(be, conv, true, 0, t, block);
    place(be, unseen, true, 0, other, others);
    assert_ok(measured(be, conv, t));
    assert_ok(conv->run(be, t));
    assert_ok(ddpm_backend_sync(be));
    const size_t live = cuda_on_cpu_live(), memory = ddpm_backend_memory(be);
    const long runs = library_runs();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    void *scratch;
    assert_ok(cuda_scratch(cuda_of(be), 1 << 20, &scratch)); /* what kernels/ may want below */
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_ok(conv->run(be, t));
    assert_ok(unseen->run(be, other));
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    assert_int_equal(library_runs(), runs);
    assert_int_equal(cudaGraphLaunch(executable, stream), cudaSuccess);
    assert_ok(ddpm_backend_sync(be));
    assert_int_equal(library_runs(), runs + 1);
    assert_int_equal(cudaGraphExecDestroy(executable), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_true(cuda_on_cpu_live() <= live + 1 && ddpm_backend_memory(be) >= memory);
    for (int i = 0; i < conv->n; i++)
        ddpm_backend_release(be, block[i]);
    for (int i = 0; i < unseen->n; i++)
        ddpm_backend_release(be, others[i]);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* ---- the side stream ---- */

/* dw beside dx, then dw again: the same as one after the other, under every order of streams. */
static void weights_beside_inputs(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    const struct call *filter = &calls[6];
    ddpm_tensor t[TENSORS];
    void *block[TENSORS], *w_block, *dx_block;
    struct slot w = image(8, 3, 3, 16), dx = image(2, 5, 5, 16);
    float *first = NULL;
    for (int order = 0; order < 6; order++) {
        cuda_on_cpu_schedule(order < CUDA_ON_CPU_RANDOM ? (enum cuda_on_cpu_order)order : CUDA_ON_CPU_RANDOM, (uint64_t)order);
        ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true});
        place(be, filter, false, 0, t, block);
        assert_ok(ddpm_backend_alloc(be, (size_t)span(&w.t) * 4, &w_block));
        assert_ok(ddpm_backend_alloc(be, (size_t)span(&dx.t) * 4, &dx_block));
        w.t.data = w_block;
        dx.t.data = dx_block;
        for (int i = 0; i < filter->n; i++) {
            float *x = numbers(&filter->slot[i], (uint64_t)i, false);
            put(be, &t[i], x, span(&t[i]));
            free(x);
        }
        for (int i = 0; i < 3; i++) {
            assert_ok(filter->run(be, t));
            struct conv2d_bwd_data_args data = {.dy = &t[1], .w = &w.t, .stride = 1, PADS(1), .dx = i < 2 ? &dx.t : &t[0]};
            assert_ok(backend_ops(be)->conv2d_bwd_data(be, &data)); /* the last one onto x, which must wait */
        }
        float *got = malloc((size_t)span(&t[2]) * sizeof *got);
        assert_non_null(got);
        fetch(be, &t[2], got, span(&t[2]));
        if (first) assert_memory_equal(got, first, (size_t)span(&t[2]) * sizeof *got);
        if (!first) first = got;
        else free(got);
        for (int i = 0; i < filter->n; i++)
            ddpm_backend_release(be, block[i]);
        ddpm_backend_release(be, w_block);
        ddpm_backend_release(be, dx_block);
        ddpm_backend_free(be);
    }
    cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 1);
    free(first);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* ---- the cache ---- */

/* Runs of the libraries that one call takes, tuning included. */
static long runs_of(const struct call *c, char *notice, size_t size)
{
    ddpm_backend *be = backend_with((ddpm_backend_options){0});
    const long before = library_runs();
    struct result r = compute(be, c, true, false, 0, 1);
    result_free(&r);
    notice[0] = '\0';
    for (int i = 0; ddpm_backend_notice(be, i); i++)
        snprintf(notice + strlen(notice), size - strlen(notice), "%s\n", ddpm_backend_notice(be, i));
    ddpm_backend_free(be);
    return library_runs() - before;
}

static void only_file(const char *dir, char path[SUPPORT_PATH])
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            support_join(path, dir, e->d_name);
            n++;
        }
    closedir(d);
    assert_int_equal(n, 1);
}

static void choices_are_kept(void **state)
{
    char dir[SUPPORT_PATH], path[SUPPORT_PATH], notice[1024];
    struct call calls[CALLS];
    all_calls(calls);
    support_join(dir, *state, "cache");
    setenv("DDPM_CACHE", dir, 1);
    const struct call *const kept[] = {&calls[0], &calls[3]}; /* a plan of cuDNN; an algorithm of cuBLASLt or a plan */
    for (int i = 0; i < 2; i++) {
        assert_true(runs_of(kept[i], notice, sizeof notice) > 2); /* tuned */
        assert_int_equal(runs_of(kept[i], notice, sizeof notice), 1);
        assert_string_equal(notice, "");
    }
    only_file(dir, path);
    assert_non_null(strstr(path, "CPU-stand-in-cudnn-9"));

    size_t n;
    char *text = support_read_file(path, &n);
    for (size_t at = 0; at < n; at += n / 16 + 1) { /* cut anywhere: said, and tuned again */
        support_write_file(path, text, at);
        assert_true(runs_of(kept[0], notice, sizeof notice) > 2);
        assert_non_null(strstr(notice, "is damaged and ignored"));
    }
    char *digit = strstr(text, "\"plan\\\":\\\"4 ");
    if (digit) { /* one engine's text changed: that entry alone is chosen anew */
        digit[10] = '9';
        support_write_file(path, text, n);
        assert_true(runs_of(kept[0], notice, sizeof notice) >= 1);
        assert_string_equal(notice, "");
    }
    free(text);

    setenv("DDPM_CACHE", "/proc/nowhere", 1);
    assert_true(runs_of(kept[0], notice, sizeof notice) > 2);
    assert_non_null(strstr(notice, "cannot be written"));
    setenv("DDPM_CACHE", "", 1);
}

/* ---- faults ---- */

/* A life of one call, calls of CUDA, cuDNN and cuBLASLt failing in turn: its status, nothing left. Every call of the first,
 * every seventh of the others, whose descriptors are made by the same code. */
static ddpm_status life(const struct call *c, long *calls)
{
    ddpm_backend *be = NULL;
    ddpm_tensor t[TENSORS];
    void *block[TENSORS] = {NULL};
    TRY(ddpm_backend_create("cuda", 0, &be));
    ddpm_status s = DDPM_OK;
    for (int i = 0; i < c->n && !s; i++) {
        t[i] = c->slot[i].t;
        t[i].dtype = c->slot[i].is_f32 ? DDPM_F32 : DDPM_BF16;
        s = ddpm_backend_alloc(be, (size_t)span(&t[i]) * ddpm_dtype_size(t[i].dtype), &block[i]);
        t[i].data = block[i];
    }
    if (!s) s = measured(be, c, t);
    for (int i = 0; i < 2 && !s; i++)
        s = c->run(be, t);
    if (!s) s = ddpm_backend_sync(be);
    *calls = cuda_on_cpu_calls(); /* what fails behind these has nobody to tell */
    for (int i = 0; i < c->n; i++)
        ddpm_backend_release(be, block[i]);
    ddpm_backend_free(be);
    return s;
}

static void every_call_may_fail(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    cuda_on_cpu_guard(false); /* page tables are most of what a life costs */
    static const int chosen[] = {1, 6, 8}; /* an epilogue, a gradient on the side, cuBLASLt */
    long total = 0;
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++)
        for (long n = 1, reached = 1; reached; n += i ? 7 : 1, total++) {
            const bool is_fault = n % 2;
            const long before = cuda_on_cpu_calls();
            cuda_on_cpu_fail_call(n, is_fault ? cudaErrorLaunchFailure : cudaErrorMemoryAllocation, is_fault);
            long told = 0;
            const ddpm_status s = life(&calls[chosen[i]], &told);
            reached = cuda_on_cpu_calls() - before >= n;
            cuda_on_cpu_fail_call(0, cudaSuccess, false);
            /* an engine that cannot be built is passed over, so a lost allocation there may be no failure at all */
            if (s && s != (is_fault ? DDPM_BACKEND : DDPM_NOMEM) && !(s == DDPM_BACKEND && !is_fault))
                fail_msg("call %ld: %s: %s", n, ddpm_status_name(s), ddpm_last_error());
            if (is_fault && !s && told - before >= n) fail_msg("call %ld: a lost device went unnoticed", n);
            device_heal();
            assert_int_equal(cuda_on_cpu_live(), 0);
        }
    cuda_on_cpu_guard(true);
    assert_true(total > 300);
}

static int begin(void **state)
{
    device_begin(state);
    setenv("DDPM_CACHE", "", 1);
    return support_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(libraries_give_the_cpus_numbers),
        cmocka_unit_test(kernels_take_over),
        cmocka_unit_test(pointers_that_lie_askew_go_to_the_kernels),
        cmocka_unit_test(deterministic_means_the_same_bits),
        cmocka_unit_test(tf32_is_asked_for),
        cmocka_unit_test(nothing_is_made_in_a_step),
        cmocka_unit_test(weights_beside_inputs),
        cmocka_unit_test(choices_are_kept),
        cmocka_unit_test(every_call_may_fail),
    };
    return cmocka_run_group_tests(tests, begin, support_teardown);
}

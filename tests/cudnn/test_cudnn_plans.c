/* test_cudnn_plans.c - graphs and plans by the real cuDNN, for devices that are not there. Engines that are compiled at run
 * time take seconds each, so few of them are built. */
#include "support.h"

#include "cudnn_forms.h"

#include <pthread.h>

static const struct cudnn_plan_rules any = {0};

static struct cudnn_device *device(const char *name)
{
    char path[SUPPORT_PATH];
    size_t bytes;
    struct cudnn_device *d;
    snprintf(path, sizeof path, "%s/%s.json", DEVICES, name);
    char *json = support_read_file(path, &bytes);
    assert_ok(cudnn_device_from_json(json, &d));
    free(json);
    return d;
}

static ddpm_tensor image(ddpm_dtype dtype, int64_t n, int64_t h, int64_t c)
{
    ddpm_tensor t = ddpm_tensor_4d(NULL, n, h, h, c);
    t.dtype = dtype;
    return t;
}

static ddpm_tensor kernel(ddpm_dtype dtype, int64_t k, int64_t size, int64_t c)
{
    ddpm_tensor t = ddpm_tensor_4d(NULL, k, size, size, c);
    t.dtype = dtype;
    return t;
}

/* A 3x3 convolution of its neighbourhood. */
static struct cudnn_conv_args conv_of(const ddpm_tensor *x, const ddpm_tensor *w, const ddpm_tensor *y)
{
    return (struct cudnn_conv_args){
        .x = x, .w = w, .y = y, .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
}

static struct cudnn_graph *graph_of(const struct cudnn_conv_args *a)
{
    struct cudnn_graph *g;
    assert_ok(cudnn_graph_conv(a, &g));
    return g;
}

/* ---- graphs ---- */

static void test_tensors_of_a_graph(void **state)
{
    (void)state;
    const ddpm_tensor x = image(DDPM_BF16, 2, 8, 32), w = kernel(DDPM_BF16, 64, 3, 32), y = image(DDPM_BF16, 2, 8, 64);
    const ddpm_tensor bias = ddpm_tensor_1d(NULL, 64);
    struct cudnn_conv_args a = conv_of(&x, &w, &y);
    struct cudnn_graph *plain = graph_of(&a);
    a.bias = &bias;
    struct cudnn_graph *g = graph_of(&a);
    assert_true(plain->is_plain_conv);
    assert_false(g->is_plain_conv);
    assert_int_equal(g->n_tensors, 4);
    assert_null(cudnn_graph_tensor(plain, CUDNN_UID_BIAS));
    const struct cudnn_graph_tensor *t = cudnn_graph_tensor(g, CUDNN_UID_Y);
    assert_non_null(t);
    assert_true(t->is_output);
    assert_int_equal(t->bytes, 2 * 8 * 8 * 64 * 2);
    assert_int_equal(g->largest, 64 * 3 * 3 * 32 * 2); /* of w here */
    assert_near(g->flops, 2.0 * 2 * 8 * 8 * 64 * 32 * 9, 0);
    assert_near(g->bytes_moved, 2.0 * (2 * 8 * 8 * 96 + 64 * 32 * 9) + 4 * 64, 0);
    cudnn_graph_free(plain);
    cudnn_graph_free(g);
}

/* Whatever distinguishes two graphs stands in their names. */
static void test_names_differ(void **state)
{
    (void)state;
    enum { FORMS = 9 };
    const ddpm_tensor x = image(DDPM_F32, 2, 8, 32), w = kernel(DDPM_F32, 32, 3, 32), bias = ddpm_tensor_1d(NULL, 32);
    const ddpm_tensor emb = ddpm_tensor_2d(NULL, 2, 32), wide = image(DDPM_F32, 2, 8, 64), part = ddpm_tensor_slice(&wide, 0, 32);
    ddpm_tensor emb_view = emb;
    emb_view.stride[0] = 96;
    const struct cudnn_conv_args base = conv_of(&x, &w, &x);
    struct cudnn_conv_args a[FORMS];
    for (int i = 0; i < FORMS; i++)
        a[i] = base;
    a[1].bias = &bias;
    a[2].emb = &emb;
    a[3].emb = &emb_view;
    a[4].residual = &x;
    a[5].residual = &part;
    a[6].silu = true;
    a[7].sums = true;
    a[8].x = &part;
    struct cudnn_graph *g[FORMS];
    for (int i = 0; i < FORMS; i++) {
        g[i] = graph_of(&a[i]);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(g[i]->name, g[k]->name);
    }
    for (int i = 0; i < FORMS; i++)
        cudnn_graph_free(g[i]);
}

static void test_alignment_of_views(void **state)
{
    (void)state;
    const ddpm_tensor wide = image(DDPM_BF16, 2, 8, 40), w = kernel(DDPM_BF16, 8, 3, 36), y = image(DDPM_BF16, 2, 8, 8);
    const ddpm_tensor part = ddpm_tensor_slice(&wide, 4, 36);
    const struct cudnn_conv_args a = conv_of(&part, &w, &y);
    struct cudnn_graph *g = graph_of(&a);
    assert_int_equal(cudnn_graph_tensor(g, CUDNN_UID_X)->alignment, 8); /* rows of 72 bytes, a pixel every 80 */
    assert_int_equal(cudnn_graph_tensor(g, CUDNN_UID_Y)->alignment, 16);
    cudnn_graph_free(g);
}

static void test_shapes_that_disagree(void **state)
{
    (void)state;
    const ddpm_tensor x = image(DDPM_F32, 2, 8, 32), w = kernel(DDPM_F32, 64, 3, 32), y = image(DDPM_F32, 2, 8, 64);
    const ddpm_tensor small = image(DDPM_F32, 2, 7, 64), bias = ddpm_tensor_1d(NULL, 63), narrow = image(DDPM_F32, 2, 8, 31);
    struct cudnn_graph *g = NULL;
    struct cudnn_conv_args a = conv_of(&x, &w, &small);
    assert_status(cudnn_graph_conv(&a, &g), DDPM_SHAPE);
    a = conv_of(&narrow, &w, &y);
    assert_status(cudnn_graph_conv(&a, &g), DDPM_SHAPE);
    a = conv_of(&x, &w, &y);
    a.bias = &bias;
    assert_status(cudnn_graph_conv(&a, &g), DDPM_SHAPE);
    a.bias = NULL;
    a.residual = &x;
    assert_status(cudnn_graph_conv(&a, &g), DDPM_SHAPE);
    assert_status(cudnn_graph_attention(&(struct cudnn_attention_args){&x, &x, &x, &x, 1, false}, &g), DDPM_SHAPE);
    const ddpm_tensor m = ddpm_tensor_2d(NULL, 4, 5);
    assert_status(cudnn_graph_matmul(&(struct cudnn_matmul_args){.a = &m, .b = &m, .c = &m}, &g), DDPM_SHAPE);
    assert_null(g);
}

/* ---- devices ---- */

static void test_devices(void **state)
{
    (void)state;
    struct cudnn_device *d = NULL;
    char *json;
    assert_status(cudnn_device_from_json("{}", &d), DDPM_FORMAT);
    assert_status(cudnn_device_from_json("none", &d), DDPM_FORMAT);
    assert_null(d);
    d = device("h200");
    assert_ok(cudnn_device_json(d, &json));
    assert_non_null(strstr(json, "NVIDIA H200"));
    free(json);
    cudnn_device_free(d);
    cudnn_device_free(NULL);
}

/* ---- plans ---- */

static void test_plan_and_its_text(void **state)
{
    (void)state;
    const ddpm_tensor x = image(DDPM_BF16, 8, 16, 128), w = kernel(DDPM_BF16, 128, 3, 128);
    const struct cudnn_conv_args a = conv_of(&x, &w, &x);
    struct cudnn_graph *g = graph_of(&a);
    struct cudnn_device *d = device("h100"), *other = device("a100");
    struct cudnn_plan_list list;
    struct cudnn_plan *p, *q = NULL;
    char *json;
    assert_ok(cudnn_plan_list(g, d, &any, &list));
    assert_in_range(list.n, 2, CUDNN_PLANS_MAX);
    assert_ok(cudnn_plan_first(g, &list, &p));
    assert_non_null(p);
    assert_true(p->uses_tensor_cores);
    assert_true(p->is_deterministic);
    assert_false(p->is_compiled);
    assert_false(p->copies_tensor);
    assert_true(strlen(p->kernel) > 0);
    cudnn_plan_list_release(&list); /* a plan needs neither its list nor its graph */

    assert_ok(cudnn_plan_to_json(p, &json));
    assert_ok(cudnn_plan_from_json(g, d, json, &q));
    assert_int_equal(q->engine, p->engine);
    assert_int_equal(q->workspace_bytes, p->workspace_bytes);
    assert_string_equal(q->kernel, p->kernel);
    assert_int_equal(q->is_deterministic, p->is_deterministic);
    cudnn_plan_free(q);
    q = NULL;
    json[strlen(json) / 2] = '\0';
    assert_status(cudnn_plan_from_json(g, d, json, &q), DDPM_FORMAT);
    assert_status(cudnn_plan_from_json(g, d, "", &q), DDPM_FORMAT);
    assert_null(q);
    free(json);
    cudnn_plan_free(p);
    cudnn_plan_free(NULL);
    cudnn_device_free(other);
    cudnn_device_free(d);
    cudnn_graph_free(g);
}

/* Full f32 without tensor cores, TF32 with them. */
static void test_rules_of_precision(void **state)
{
    (void)state;
    const ddpm_tensor x = image(DDPM_F32, 8, 16, 128), w = kernel(DDPM_F32, 128, 3, 128);
    const struct cudnn_conv_args a = conv_of(&x, &w, &x);
    const struct cudnn_plan_rules tf32 = {.uses_tf32 = true};
    struct cudnn_graph *g = graph_of(&a);
    struct cudnn_device *d = device("h100");
    struct cudnn_plan_list strict, relaxed;
    struct cudnn_engine_notes notes;
    assert_ok(cudnn_plan_list(g, d, &any, &strict));
    assert_ok(cudnn_plan_list(g, d, &tf32, &relaxed));
    assert_true(strict.n > 0 && strict.n_refused > 0 && relaxed.n > strict.n);
    for (int i = 0; i < strict.n; i++) {
        assert_ok(cudnn_plan_list_notes(&strict, i, &notes));
        assert_false(notes.uses_tensor_cores);
        assert_false(notes.rounds_inputs);
    }
    assert_ok(cudnn_plan_list_notes(&relaxed, 0, &notes));
    assert_true(notes.uses_tensor_cores);
    cudnn_plan_list_release(&strict);
    cudnn_plan_list_release(&relaxed);
    cudnn_device_free(d);
    cudnn_graph_free(g);
}

static void test_rules_of_order(void **state)
{
    (void)state;
    const struct cudnn_plan_rules in_order = {.is_deterministic = true};
    const ddpm_tensor x = image(DDPM_F32, 8, 16, 128), dw = kernel(DDPM_F32, 128, 3, 128);
    const struct cudnn_conv_bwd_filter_args a = {
        .x = &x, .dw = &dw, .dy = &x, .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1, .beta = 1};
    struct cudnn_graph *g;
    struct cudnn_device *d = device("a100");
    struct cudnn_plan_list all, ordered;
    struct cudnn_engine_notes notes;
    assert_ok(cudnn_graph_conv_bwd_filter(&a, &g));
    assert_ok(cudnn_plan_list(g, d, &any, &all));
    assert_ok(cudnn_plan_list(g, d, &in_order, &ordered));
    assert_true(all.n > ordered.n); /* some engines add in the order of arrival */
    for (int i = 0; i < ordered.n; i++) {
        assert_ok(cudnn_plan_list_notes(&ordered, i, &notes));
        assert_true(notes.is_deterministic);
    }
    cudnn_plan_list_release(&all);
    cudnn_plan_list_release(&ordered);
    cudnn_graph_free(g);

    /* a graph with sums has no order, whatever its engines are */
    struct cudnn_conv_args sums = conv_of(&x, &dw, &x);
    sums.sums = true;
    g = graph_of(&sums);
    assert_true(g->any_order);
    assert_ok(cudnn_plan_list(g, d, &in_order, &ordered));
    assert_int_equal(ordered.n, 0);
    cudnn_plan_list_release(&ordered);
    cudnn_graph_free(g);
    cudnn_device_free(d);
}

/* A slice of channels as input: every precompiled engine packs it first. */
static void test_hidden_copy_is_told(void **state)
{
    (void)state;
    const ddpm_tensor wide = image(DDPM_BF16, 8, 16, 384), part = ddpm_tensor_slice(&wide, 0, 128);
    const ddpm_tensor w = kernel(DDPM_BF16, 128, 3, 128), y = image(DDPM_BF16, 8, 16, 128);
    const struct cudnn_conv_args a = conv_of(&part, &w, &y);
    struct cudnn_graph *g = graph_of(&a);
    struct cudnn_device *d = device("h100");
    struct cudnn_plan_list list;
    struct cudnn_plan *p;
    assert_ok(cudnn_plan_list_best(g, d, &any, &list));
    assert_ok(cudnn_plan_first(g, &list, &p));
    assert_non_null(p);
    assert_true(p->copies_tensor);
    assert_true(p->workspace_bytes >= 8 * 16 * 16 * 128 * 2);
    cudnn_plan_free(p);
    cudnn_plan_list_release(&list);
    cudnn_device_free(d);
    cudnn_graph_free(g);
}

struct build {
    const struct cudnn_device *device;
    int64_t channels;
    struct cudnn_plan *plan;
    ddpm_status s;
};

static void *build_one(void *to)
{
    struct build *b = to;
    struct cudnn_graph *g = NULL;
    struct cudnn_plan_list list = {0};
    const ddpm_tensor x = image(DDPM_BF16, 8, 16, b->channels), w = kernel(DDPM_BF16, b->channels, 3, b->channels);
    const ddpm_tensor bias = ddpm_tensor_1d(NULL, b->channels);
    struct cudnn_conv_args a = conv_of(&x, &w, &x);
    a.bias = &bias;
    b->s = cudnn_graph_conv(&a, &g);
    if (!b->s) b->s = cudnn_plan_list_best(g, b->device, &any, &list);
    if (!b->s) b->s = cudnn_plan_first(g, &list, &b->plan);
    cudnn_plan_list_release(&list);
    cudnn_graph_free(g);
    return NULL;
}

/* Engines that are compiled at run time, by two threads at once. */
static void test_plans_in_threads(void **state)
{
    (void)state;
    struct cudnn_device *d = device("h100");
    struct build b[2] = {{.device = d, .channels = 64}, {.device = d, .channels = 128}};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, build_one, &b[1]), 0);
    build_one(&b[0]);
    assert_int_equal(pthread_join(thread, NULL), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(b[i].s, DDPM_OK);
        assert_non_null(b[i].plan);
        assert_true(b[i].plan->is_compiled);
        assert_non_null(strstr(b[i].plan->kernel, "cudnn_generated"));
        cudnn_plan_free(b[i].plan);
    }
    cudnn_device_free(d);
}

/* Attention's gradient keeps a number a query, and the sum of dq's parts, in front of cuDNN's workspace. */
static void test_attention_keeps_its_sums(void **state)
{
    (void)state;
    enum { N = 2, T = 64, HEADS = 2, D = 64 };
    ddpm_tensor q = ddpm_tensor_4d(NULL, N, T, HEADS, D), o = q;
    q.dtype = o.dtype = DDPM_BF16;
    q.stride[0] = T * 3 * HEADS * D;
    q.stride[1] = 3 * HEADS * D;
    struct cudnn_attention_bwd_args a = {&q, &q, &q, &o, &o, &q, &q, &q, 0.125f, false};
    struct cudnn_device *d = device("h100");
    struct cudnn_graph *g;
    struct cudnn_plan_list list;
    struct cudnn_plan *p;
    assert_ok(cudnn_graph_attention_bwd(&a, &g));
    assert_int_equal(cudnn_graph_tensor(g, CUDNN_UID_DQ_SUM)->place, CUDNN_ZEROED);
    assert_int_equal(cudnn_graph_tensor(g, CUDNN_UID_ROW_SUM)->bytes, N * T * HEADS * 4);
    assert_ok(cudnn_plan_list_best(g, d, &any, &list));
    assert_ok(cudnn_plan_first(g, &list, &p));
    assert_non_null(p);
    assert_false(p->is_deterministic);
    assert_int_equal(p->inner_bytes, N * T * HEADS * 4 + N * T * HEADS * D * 4); /* both are multiples of 256 */
    assert_true(p->workspace_bytes >= p->inner_bytes);

    /* pointers are looked at before anything is enqueued */
    const struct cudnn_pointer one = {CUDNN_UID_Q, (void *)(uintptr_t)256};
    const struct cudnn_pointer odd = {CUDNN_UID_Q, (void *)(uintptr_t)257};
    assert_status(cudnn_plan_run(p, NULL, NULL, &one, 1, NULL), DDPM_BUG);
    assert_status(cudnn_plan_run(p, NULL, NULL, &one, 1, (void *)(uintptr_t)512), DDPM_BUG);
    assert_message("no pointer");
    assert_status(cudnn_plan_run(p, NULL, NULL, &odd, 1, (void *)(uintptr_t)512), DDPM_BUG);
    assert_message("aligned");
    cudnn_plan_free(p);
    cudnn_plan_list_release(&list);
    cudnn_graph_free(g);

    a.deterministic = true;
    assert_ok(cudnn_graph_attention_bwd(&a, &g));
    assert_null(cudnn_graph_tensor(g, CUDNN_UID_DQ_SUM));
    cudnn_graph_free(g);
    cudnn_device_free(d);
}

/* ---- forms ---- */

/* The shortcut over a skip connection: a slice of a 1x1 kernel is a product over pixels. */
static void test_forms_of_sliced_kernels(void **state)
{
    (void)state;
    ddpm_tensor x = image(DDPM_BF16, 2, 8, 32), y = image(DDPM_BF16, 2, 8, 64), w = kernel(DDPM_BF16, 64, 1, 32);
    ddpm_tensor dw = kernel(DDPM_F32, 64, 1, 32);
    for (int i = 0; i < 3; i++)
        w.stride[i] = dw.stride[i] = 96;
    struct cudnn_forms f;
    const struct conv2d_args conv = {.x = &x, .w = &w, .y = &y, .residual = &y, .stride = 1};
    assert_ok(cudnn_forms_conv2d(&conv, &any, &f));
    assert_int_equal(f.n, 1);
    assert_string_equal(f.form[0].name, "matmul");
    assert_int_equal(f.form[0].left, 0);
    assert_non_null(cudnn_graph_tensor(f.form[0].graph, CUDNN_UID_RESIDUAL));
    assert_near(f.form[0].graph->flops, 2.0 * 2 * 8 * 8 * 64 * 32, 0);
    cudnn_forms_release(&f);
    const struct conv2d_bwd_filter_args filter = {.x = &x, .dy = &y, .dw = &dw, .stride = 1};
    assert_ok(cudnn_forms_conv2d_bwd_filter(&filter, &any, &f));
    assert_int_equal(f.n, 1);
    assert_string_equal(f.form[0].name, "matmul");
    cudnn_forms_release(&f);
    x.stride[1] += 32; /* rows of pixels with a gap */
    assert_status(cudnn_forms_conv2d(&conv, &any, &f), DDPM_SHAPE);
}

static void test_forms_of_convolutions(void **state)
{
    (void)state;
    const ddpm_tensor x = image(DDPM_F32, 2, 8, 32), w = kernel(DDPM_F32, 32, 3, 32), bias = ddpm_tensor_1d(NULL, 32);
    struct conv2d_args a = {.x = &x, .w = &w, .y = (ddpm_tensor *)(uintptr_t)&x, .bias = &bias, .residual = &x,
                            .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
    const struct cudnn_plan_rules tf32 = {.uses_tf32 = true};
    struct cudnn_forms f;
    assert_ok(cudnn_forms_conv2d(&a, &any, &f)); /* full f32: what takes a minute to compile is not offered */
    assert_int_equal(f.n, 1);
    assert_int_equal(f.form[0].left, CUDNN_LEFT_EPILOGUE);
    cudnn_forms_release(&f);
    assert_ok(cudnn_forms_conv2d(&a, &tf32, &f));
    assert_int_equal(f.n, 2);
    assert_string_equal(f.form[0].name, "fused");
    assert_int_equal(f.form[0].left, 0);
    cudnn_forms_release(&f);
    a.bias = a.residual = NULL;
    assert_ok(cudnn_forms_conv2d(&a, &tf32, &f));
    assert_int_equal(f.n, 1);
    assert_int_equal(f.form[0].left, 0);
    cudnn_forms_release(&f);
}

/* Sums are offered where GroupNorm would read y for them, and where there may be an engine: images above 32x32, channels by eight,
 * not in full f32. */
static void test_forms_with_sums(void **state)
{
    (void)state;
    static const struct {
        ddpm_dtype dtype;
        int64_t side, channels;
        bool has_sums;
    } cases[] = {{DDPM_BF16, 33, 32, true}, {DDPM_BF16, 32, 32, false}, {DDPM_BF16, 33, 3, false}, {DDPM_F32, 33, 32, false}};
    const ddpm_tensor bias = ddpm_tensor_1d(NULL, 32);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ddpm_tensor x = image(cases[i].dtype, 2, cases[i].side, cases[i].channels), y = image(cases[i].dtype, 2, cases[i].side, 32);
        const ddpm_tensor w = kernel(cases[i].dtype, 32, 3, cases[i].channels);
        ddpm_tensor sum = ddpm_tensor_2d(NULL, 2, 32), square = sum;
        bool has_sums = false;
        struct conv2d_args a = {.x = &x, .w = &w, .y = &y, .bias = &bias, .sum = &sum, .square = &square, .has_sums = &has_sums,
                                .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
        struct cudnn_forms f;
        assert_ok(cudnn_forms_conv2d(&a, &any, &f));
        assert_int_equal(strcmp(f.form[0].name, CUDNN_FORM_SUMS) == 0, cases[i].has_sums);
        assert_int_equal(cudnn_graph_tensor(f.form[0].graph, CUDNN_UID_SUM_SQUARES) != NULL, cases[i].has_sums);
        for (int k = 1; k < f.n; k++)
            assert_null(cudnn_graph_tensor(f.form[k].graph, CUDNN_UID_SUM));
        cudnn_forms_release(&f);
        a.sum = a.square = NULL;
        a.has_sums = NULL;
        assert_ok(cudnn_forms_conv2d(&a, &any, &f));
        assert_null(cudnn_graph_tensor(f.form[0].graph, CUDNN_UID_SUM));
        cudnn_forms_release(&f);
    }
}

/* SiLU's gradient is offered where GroupNorm's would read dx and x for its sums, and where there may be an engine. */
static void test_forms_with_gradient(void **state)
{
    (void)state;
    static const struct {
        ddpm_dtype dtype;
        int64_t side, channels;
        bool has_gradient;
    } cases[] = {{DDPM_BF16, 24, 32, true}, {DDPM_BF16, 22, 32, false}, {DDPM_BF16, 24, 3, false}, {DDPM_F32, 24, 32, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t c = cases[i].channels;
        const ddpm_tensor dy = image(cases[i].dtype, 2, cases[i].side, 32), x = image(cases[i].dtype, 2, cases[i].side, c);
        const ddpm_tensor w = kernel(cases[i].dtype, 32, 3, c), gamma = ddpm_tensor_1d(NULL, c);
        ddpm_tensor dx = x, sum = ddpm_tensor_2d(NULL, 2, c), product = sum;
        bool has_gradient = false;
        struct conv2d_bwd_data_args a = {.dy = &dy, .w = &w, .dx = &dx, .sum = &sum, .product = &product,
                                         .norm = {.x = &x, .gamma = &gamma, .beta = &gamma, .groups = 1},
                                         .has_gradient = &has_gradient,
                                         .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
        struct cudnn_forms f;
        assert_ok(cudnn_forms_conv2d_bwd_data(&a, &any, &f));
        assert_int_equal(strcmp(f.form[0].name, CUDNN_FORM_GRADIENT) == 0, cases[i].has_gradient);
        assert_int_equal(cudnn_graph_tensor(f.form[0].graph, CUDNN_UID_SHIFT) != NULL, cases[i].has_gradient);
        assert_int_equal(f.n, cases[i].has_gradient ? 2 : 1);
        assert_null(cudnn_graph_tensor(f.form[f.n - 1].graph, CUDNN_UID_X));
        assert_string_equal(f.form[f.n - 1].name, "plain");
        cudnn_forms_release(&f);
        a.norm = (struct norm_ref){0};
        a.sum = a.product = NULL;
        a.has_gradient = NULL;
        assert_ok(cudnn_forms_conv2d_bwd_data(&a, &any, &f));
        assert_int_equal(f.n, 1);
        cudnn_forms_release(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_of_a_graph),      cmocka_unit_test(test_names_differ),
        cmocka_unit_test(test_alignment_of_views),      cmocka_unit_test(test_shapes_that_disagree),
        cmocka_unit_test(test_devices),                 cmocka_unit_test(test_plan_and_its_text),
        cmocka_unit_test(test_rules_of_precision),      cmocka_unit_test(test_rules_of_order),
        cmocka_unit_test(test_hidden_copy_is_told),     cmocka_unit_test(test_plans_in_threads),
        cmocka_unit_test(test_attention_keeps_its_sums), cmocka_unit_test(test_forms_of_sliced_kernels),
        cmocka_unit_test(test_forms_of_convolutions),    cmocka_unit_test(test_forms_with_sums),
        cmocka_unit_test(test_forms_with_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

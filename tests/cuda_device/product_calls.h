/* product_calls.h - calls of every kind that the libraries may take over, each with its tensors, and what it takes to make
 * them on a device and compare the results. */
#ifndef TESTS_PRODUCT_CALLS_H
#define TESTS_PRODUCT_CALLS_H

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

static inline int64_t span(const ddpm_tensor *t)
{
    int64_t last = 1;
    for (int i = 0; i < t->rank; i++)
        last += (t->dim[i] - 1) * t->stride[i];
    return last;
}

static inline struct slot image(int64_t n, int64_t h, int64_t w, int64_t c)
{
    return (struct slot){.t = ddpm_tensor_4d(NULL, n, h, w, c)};
}

static inline struct slot rows(int64_t m, int64_t n)
{
    return (struct slot){.t = ddpm_tensor_2d(NULL, m, n)};
}

static inline struct slot f32(struct slot s)
{
    s.is_f32 = true;
    return s;
}

static inline struct slot out(struct slot s)
{
    s.is_output = true;
    return s;
}

/* The first c of its channels, the strides of all. */
static inline struct slot sliced(struct slot s, int64_t c)
{
    s.t = ddpm_tensor_slice(&s.t, 0, c);
    return s;
}

static inline struct slot vector(int64_t n)
{
    return f32((struct slot){.t = ddpm_tensor_1d(NULL, n)});
}

#define OPS     backend_ops(be)
#define PADS(n) .pad_top = n, .pad_left = n, .pad_bottom = n, .pad_right = n

static inline ddpm_status run_conv(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .stride = 1, PADS(1), .y = &t[2]});
}

static inline ddpm_status run_conv_all(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .bias = &t[3], .emb = &t[4], .residual = &t[5],
                                                 .stride = 2, .pad_bottom = 1, .pad_right = 1, .y = &t[2]});
}

static inline ddpm_status run_conv_onto(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .bias = &t[3], .residual = &t[2], .stride = 1,
                                                 PADS(1), .y = &t[2]});
}

static inline ddpm_status run_pointwise_onto(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d(be, &(struct conv2d_args){.x = &t[0], .w = &t[1], .residual = &t[2], .stride = 1, .y = &t[2]});
}

static inline ddpm_status run_data(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_data(
        be, &(struct conv2d_bwd_data_args){.dy = &t[0], .w = &t[1], .stride = 1, PADS(1), .accumulate = true, .dx = &t[2]});
}

static inline ddpm_status run_pointwise_data(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_data(be, &(struct conv2d_bwd_data_args){.dy = &t[0], .w = &t[1], .stride = 1, .dx = &t[2]});
}

static inline ddpm_status run_filter(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_filter(be, &(struct conv2d_bwd_filter_args){.x = &t[0], .dy = &t[1], .stride = 1, PADS(1),
                                                                       .dw = &t[2], .db = &t[3], .demb = &t[4]});
}

static inline ddpm_status run_pointwise_filter(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->conv2d_bwd_filter(
        be, &(struct conv2d_bwd_filter_args){.x = &t[0], .dy = &t[1], .stride = 1, .dw = &t[2], .db = &t[3]});
}

static inline ddpm_status run_linear(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->linear(be, &(struct linear_args){.x = &t[0], .w = &t[1], .bias = &t[3], .y = &t[2]});
}

static inline ddpm_status run_linear_bwd(ddpm_backend *be, ddpm_tensor *t)
{
    return OPS->linear_bwd(be, &(struct linear_bwd_args){.x = &t[0], .w = &t[1], .dy = &t[2], .accumulate = true, .dx = &t[3],
                                                         .dw = &t[4], .db = &t[5]});
}

static inline ddpm_status run_attention(ddpm_backend *be, ddpm_tensor *t)
{
    TRY(OPS->attention(be, &(struct attention_args){.q = &t[0], .k = &t[1], .v = &t[2], .scale = 0.3f, .o = &t[3], .lse = &t[4]}));
    return OPS->attention_bwd(be, &(struct attention_bwd_args){.q = &t[0], .k = &t[1], .v = &t[2], .o = &t[3], .lse = &t[4],
                                                               .d_o = &t[5], .scale = 0.3f, .dq = &t[6], .dk = &t[7],
                                                               .dv = &t[8]});
}

/* Slices of one joint projection would overlap here: they are slices of three. */
static inline struct slot heads(int64_t n, int64_t t, int64_t h, int64_t d)
{
    struct slot s = image(n, t, h, d);
    s.t.stride[1] = 3 * h * d;
    s.t.stride[0] = t * s.t.stride[1];
    return s;
}

static inline int all_calls(struct call *c)
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

static inline float rounded(float x, bool to_half)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (to_half) u = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float *numbers(const struct slot *s, uint64_t which, bool is_half)
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

static inline ddpm_status put(ddpm_backend *be, ddpm_tensor *t, const float *x, int64_t n)
{
    uint16_t *halves = malloc((size_t)n * sizeof *halves);
    assert_non_null(halves);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        halves[i] = (uint16_t)(u >> 16);
    }
    const void *from = t->dtype == DDPM_BF16 ? (const void *)halves : x;
    const ddpm_status s = ddpm_backend_upload(be, t->data, from, (size_t)n * ddpm_dtype_size(t->dtype));
    free(halves);
    return s;
}

static inline ddpm_status fetch(ddpm_backend *be, const ddpm_tensor *t, float *x, int64_t n)
{
    TRY(ddpm_backend_download(be, x, t->data, (size_t)n * ddpm_dtype_size(t->dtype)));
    for (int64_t i = n; t->dtype == DDPM_BF16 && i-- > 0;) {
        const uint32_t u = (uint32_t)((const uint16_t *)x)[i] << 16;
        memcpy(&x[i], &u, sizeof u);
    }
    return DDPM_OK;
}

struct result {
    float *x[TENSORS];
};

static inline void result_free(struct result *r)
{
    for (int i = 0; i < TENSORS; i++)
        free(r->x[i]);
}

/* Tensors of the call on that backend, `askew` elements behind a good place. */
static inline ddpm_status place(ddpm_backend *be, const struct call *c, bool is_half, int askew, ddpm_tensor *t, void **block)
{
    for (int i = 0; i < c->n; i++) {
        t[i] = c->slot[i].t;
        t[i].dtype = is_half && !c->slot[i].is_f32 ? DDPM_BF16 : DDPM_F32;
        const size_t size = ddpm_dtype_size(t[i].dtype);
        TRY(ddpm_backend_alloc(be, ((size_t)span(&t[i]) + 8) * size, &block[i]));
        t[i].data = (unsigned char *)block[i] + (size_t)askew * size;
    }
    return DDPM_OK;
}

static inline ddpm_status measured(ddpm_backend *be, const struct call *c, const ddpm_tensor *t)
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

static inline struct result compute(ddpm_backend *be, const struct call *c, bool is_half, bool is_cpu, int askew, int times)
{
    struct result r = {{0}};
    ddpm_tensor t[TENSORS];
    void *block[TENSORS];
    assert_ok(place(be, c, is_half && !is_cpu, askew, t, block));
    assert_ok(measured(be, c, t));
    for (int round = 0; round < times; round++) {
        for (int i = 0; i < c->n; i++) {
            float *x = numbers(&c->slot[i], (uint64_t)i, is_half);
            assert_ok(put(be, &t[i], x, span(&t[i])));
            free(r.x[i]);
            r.x[i] = x;
        }
        const ddpm_status s = c->run(be, t);
        if (s) fail_msg("%s: %s", c->name, ddpm_last_error());
    }
    for (int i = 0; i < c->n; i++)
        assert_ok(fetch(be, &t[i], r.x[i], span(&t[i])));
    for (int i = 0; i < c->n; i++)
        ddpm_backend_release(be, block[i]);
    return r;
}

/* Largest difference over the largest value, of the outputs; what lies between a view's rows is the same in both. */
static inline double error_of(const struct call *c, const struct result *got, const struct result *want)
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

/* f32 sums in another order; bf16: results rounded to 8 bits, and probabilities before the second product. */
static inline double tolerance(bool is_half)
{
    return is_half ? 1.5e-2 : 1e-5;
}

static inline ddpm_backend *backend_with(ddpm_backend_options options)
{
    ddpm_backend *be = create();
    ddpm_backend_configure(be, &options);
    return be;
}

static inline long library_runs(void)
{
    return cuda_on_cpu_graph_runs() + cuda_on_cpu_matmul_runs();
}

#endif

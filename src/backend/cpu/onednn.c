/* onednn.c - see onednn.h. Versions 2 and 3 differ in how a descriptor is made (a struct filled in place, then an operation
 * descriptor, against objects made in one call), and in nothing else that is used here: the four functions under #if.
 *
 * Primitives are created while OpenMP shows one thread, so the library plans for one; the backend's tasks are the parallelism,
 * and how the work is cut depends on shapes alone. Scratch is the caller's (user mode), so threads can share a
 * primitive. Each thread has memory objects of its own, made with the primitive: running only sets their pointers. */
#include "onednn.h"

#include "fail.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_SIZE 4096 /* shapes; a network has about a hundred */

enum { ARG_X, ARG_W, ARG_B, ARG_Y, ARG_SCRATCH, ARG_COUNT };

struct onednn_conv {
    struct onednn_key key;
    dnnl_primitive_t primitive, pack;
    size_t packed_bytes, scratch_bytes;
    dnnl_memory_t *memory;             /* [threads][ARG_COUNT] */
    dnnl_memory_t plain, packed, work; /* of pack */
};

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t *stream; /* [threads] */
    int threads, n_conv;
    struct onednn_conv *table[TABLE_SIZE];
};

struct shapes {
    dnnl_dims_t x, w, b, y, stride, dilation, before, after;
};

static struct shapes shapes_of(const struct onednn_key *k)
{
    const int ho = (k->h + k->pad_top + k->pad_bottom - k->kh) / k->stride + 1;
    const int wo = (k->w + k->pad_left + k->pad_right - k->kw) / k->stride + 1;
    return (struct shapes){.x = {k->n, k->c, k->h, k->w},
                           .w = {k->k, k->c, k->kh, k->kw},
                           .b = {k->k},
                           .y = {k->n, k->k, ho, wo},
                           .stride = {k->stride, k->stride},
                           .dilation = {0, 0},
                           .before = {k->pad_top, k->pad_left},
                           .after = {k->pad_bottom, k->pad_right}};
}

#if DNNL_VERSION_MAJOR >= 3

typedef dnnl_memory_desc_t desc;
typedef const_dnnl_memory_desc_t desc_ref;
#define AT(d)     (d)
#define FREE_D(d) dnnl_memory_desc_destroy(d)

static dnnl_status_t make_desc(desc *d, int rank, const dnnl_dims_t dims, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(d, rank, dims, dnnl_f32, tag);
}

static dnnl_status_t make_conv(dnnl_primitive_desc_t *out, dnnl_engine_t engine, int pass, const struct shapes *s, desc x,
                               desc w, desc b, desc y, dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr)
{
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;
    if (pass == ONEDNN_DATA)
        return dnnl_convolution_backward_data_primitive_desc_create(out, engine, alg, x, w, y, s->stride, s->dilation,
                                                                    s->before, s->after, hint, attr);
    return dnnl_convolution_forward_primitive_desc_create(out, engine, dnnl_forward_training, alg, x, w, b, y, s->stride,
                                                          s->dilation, s->before, s->after, attr);
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}

#else

typedef dnnl_memory_desc_t desc;
typedef const dnnl_memory_desc_t *desc_ref;
#define AT(d)     (&(d))
#define FREE_D(d) ((void)(d))

static dnnl_status_t make_desc(desc *d, int rank, const dnnl_dims_t dims, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(d, rank, dims, dnnl_f32, tag);
}

static dnnl_status_t make_conv(dnnl_primitive_desc_t *out, dnnl_engine_t engine, int pass, const struct shapes *s, desc x,
                               desc w, desc b, desc y, dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr)
{
    dnnl_convolution_desc_t op;
    dnnl_status_t e;
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;
    const dnnl_memory_desc_t *bias = b.ndims ? &b : NULL;
    if (pass == ONEDNN_DATA)
        e = dnnl_convolution_backward_data_desc_init(&op, alg, &x, &w, &y, s->stride, s->before, s->after);
    else
        e = dnnl_convolution_forward_desc_init(&op, dnnl_forward_training, alg, &x, &w, bias, &y, s->stride, s->before,
                                               s->after);
    return e ? e : dnnl_primitive_desc_create(out, &op, attr, engine, hint);
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f);
}

#endif

const char *onednn_version(void)
{
    static char text[32];
    if (!text[0]) {
        const dnnl_version_t *v = dnnl_version();
        snprintf(text, sizeof text, "%d.%d.%d", v->major, v->minor, v->patch);
    }
    return text;
}

ddpm_status onednn_create(int threads, struct onednn **out)
{
    struct onednn *o = calloc(1, sizeof *o);
    *out = NULL;
    REQUIRE(o, NOMEM, "oneDNN: %zu bytes", sizeof *o);
    o->threads = threads;
    ddpm_status s = DDPM_OK;
    o->stream = calloc((size_t)threads, sizeof(dnnl_stream_t));
    if (!o->stream) FAIL_GOTO(fail, NOMEM, "oneDNN: %d streams", threads);
    if (dnnl_engine_create(&o->engine, dnnl_cpu, 0)) FAIL_GOTO(fail, BACKEND, "oneDNN: no CPU engine");
    for (int i = 0; i < threads; i++)
        if (dnnl_stream_create(&o->stream[i], o->engine, dnnl_stream_default_flags))
            FAIL_GOTO(fail, BACKEND, "oneDNN: cannot create a stream");
    *out = o;
    return DDPM_OK;
fail:
    onednn_free(o);
    return s;
}

static void drop_memory(dnnl_memory_t m)
{
    if (m) dnnl_memory_destroy(m);
}

static void conv_free(struct onednn_conv *c, int threads)
{
    if (!c) return;
    for (int i = 0; c->memory && i < threads * ARG_COUNT; i++)
        drop_memory(c->memory[i]);
    free(c->memory);
    drop_memory(c->plain);
    drop_memory(c->packed);
    drop_memory(c->work);
    if (c->primitive) dnnl_primitive_destroy(c->primitive);
    if (c->pack) dnnl_primitive_destroy(c->pack);
    free(c);
}

void onednn_free(struct onednn *o)
{
    if (!o) return;
    for (int i = 0; i < TABLE_SIZE; i++)
        conv_free(o->table[i], o->threads);
    for (int i = 0; o->stream && i < o->threads; i++)
        if (o->stream[i]) dnnl_stream_destroy(o->stream[i]);
    free(o->stream);
    if (o->engine) dnnl_engine_destroy(o->engine);
    free(o);
}

/* Attributes: scratch from the caller; forward may add to what stands in y. */
static dnnl_status_t make_attr(bool adds, dnnl_primitive_attr_t *out)
{
    dnnl_status_t e = dnnl_primitive_attr_create(out);
    if (!e) e = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    if (e || !adds) return e;
    dnnl_post_ops_t ops = NULL;
    e = dnnl_post_ops_create(&ops);
    if (!e) e = append_sum(ops);
    if (!e) e = dnnl_primitive_attr_set_post_ops(*out, ops);
    if (ops) dnnl_post_ops_destroy(ops);
    return e;
}

static dnnl_status_t make_descriptor(struct onednn *o, const struct onednn_key *k, dnnl_primitive_desc_t *out)
{
    const struct shapes s = shapes_of(k);
    desc x, w, y, b;
    memset(&b, 0, sizeof b);
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t hint = NULL;
    dnnl_status_t e = make_desc(&x, 4, s.x, dnnl_nhwc);
    if (e) return e;
    e = make_desc(&w, 4, s.w, dnnl_format_tag_any);
    if (!e) e = make_desc(&y, 4, s.y, dnnl_nhwc);
    if (!e && k->has_bias) e = make_desc(&b, 1, s.b, dnnl_a);
    if (!e) e = make_attr(k->adds, &attr);
    if (!e && k->pass != ONEDNN_FORWARD)
        e = make_conv(&hint, o->engine, ONEDNN_FORWARD, &s, x, w, b, y, NULL, attr);
    if (!e) e = make_conv(out, o->engine, k->pass, &s, x, w, b, y, hint, attr);
    if (hint) dnnl_primitive_desc_destroy(hint);
    if (attr) dnnl_primitive_attr_destroy(attr);
    FREE_D(x);
    FREE_D(w);
    FREE_D(y);
    if (k->has_bias) FREE_D(b);
    return e;
}

static dnnl_status_t make_memories(struct onednn *o, struct onednn_conv *c, const_dnnl_primitive_desc_t pd)
{
    static const dnnl_query_t ask[2][ARG_COUNT] = {
        [ONEDNN_FORWARD] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_weights_md, dnnl_query_dst_md,
                            dnnl_query_scratchpad_md},
        [ONEDNN_DATA] = {dnnl_query_diff_src_md, dnnl_query_weights_md, dnnl_query_weights_md, dnnl_query_diff_dst_md,
                         dnnl_query_scratchpad_md}};
    for (int t = 0; t < o->threads; t++)
        for (int i = 0; i < ARG_COUNT; i++) {
            if (i == ARG_B && !c->key.has_bias) continue;
            const dnnl_status_t e =
                dnnl_memory_create(&c->memory[t * ARG_COUNT + i],
                                   dnnl_primitive_desc_query_md(pd, ask[c->key.pass][i], i == ARG_B), o->engine,
                                   DNNL_MEMORY_NONE);
            if (e) return e;
        }
    return dnnl_success;
}

/* The reorder of plain weights to the primitive's. */
static dnnl_status_t make_reorder(struct onednn *o, struct onednn_conv *c, const_dnnl_primitive_desc_t pd)
{
    const struct shapes s = shapes_of(&c->key);
    desc_ref packed = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    desc plain;
    dnnl_primitive_desc_t reorder = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t e = make_desc(&plain, 4, s.w, dnnl_ohwi);
    if (e) return e;
    c->packed_bytes = dnnl_memory_desc_get_size(packed);
    e = make_attr(false, &attr);
    if (!e) e = dnnl_reorder_primitive_desc_create(&reorder, AT(plain), o->engine, packed, o->engine, attr);
    if (!e) e = dnnl_primitive_create(&c->pack, reorder);
    if (!e) e = dnnl_memory_create(&c->plain, AT(plain), o->engine, DNNL_MEMORY_NONE);
    if (!e) e = dnnl_memory_create(&c->packed, packed, o->engine, DNNL_MEMORY_NONE);
    if (!e)
        e = dnnl_memory_create(&c->work, dnnl_primitive_desc_query_md(reorder, dnnl_query_scratchpad_md, 0), o->engine,
                               DNNL_MEMORY_ALLOCATE);
    if (reorder) dnnl_primitive_desc_destroy(reorder);
    if (attr) dnnl_primitive_attr_destroy(attr);
    FREE_D(plain);
    return e;
}

static ddpm_status conv_create(struct onednn *o, const struct onednn_key *key, struct onednn_conv **out)
{
    struct onednn_conv *c = calloc(1, sizeof *c);
    REQUIRE(c, NOMEM, "oneDNN: %zu bytes", sizeof *c);
    ddpm_status s = DDPM_OK;
    dnnl_primitive_desc_t pd = NULL;
    c->key = *key;
    c->memory = calloc((size_t)o->threads * ARG_COUNT, sizeof(dnnl_memory_t));
    if (!c->memory) FAIL_GOTO(fail, NOMEM, "oneDNN: %d memory objects", o->threads * ARG_COUNT);
    dnnl_status_t e = make_descriptor(o, key, &pd);
    if (!e) {
        const int64_t bytes = (int64_t)dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
        c->scratch_bytes = ((size_t)bytes + 63) / 64 * 64;
        e = make_memories(o, c, pd);
    }
    if (!e) e = make_reorder(o, c, pd);
    if (!e) e = dnnl_primitive_create(&c->primitive, pd);
    if (e == dnnl_out_of_memory) FAIL_GOTO(fail, NOMEM, "oneDNN: out of memory for a convolution");
    if (e)
        FAIL_GOTO(fail, BACKEND, "oneDNN %s: no convolution (status %d) for pass %d of [%d,%d,%d,%d] by %dx%dx%d",
                  onednn_version(), (int)e, key->pass, key->n, key->h, key->w, key->c, key->k, key->kh, key->kw);
    dnnl_primitive_desc_destroy(pd);
    *out = c;
    return DDPM_OK;
fail:
    if (pd) dnnl_primitive_desc_destroy(pd);
    conv_free(c, o->threads);
    return s;
}

ddpm_status onednn_conv(struct onednn *o, const struct onednn_key *key, struct onednn_conv **out)
{
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a over the words */
    int32_t words[sizeof *key / sizeof(int32_t)];
    memcpy(words, key, sizeof *key);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        hash = (hash ^ (uint32_t)words[i]) * 0x100000001B3u;
    size_t at = (hash ^ hash >> 32) % TABLE_SIZE;
    while (o->table[at] && memcmp(&o->table[at]->key, key, sizeof *key) != 0)
        at = (at + 1) % TABLE_SIZE;
    if (!o->table[at]) {
        REQUIRE(o->n_conv < TABLE_SIZE / 2, BACKEND, "oneDNN: more than %d shapes of convolutions", o->n_conv);
        const int before = omp_get_max_threads();
        omp_set_num_threads(1);
        const ddpm_status s = conv_create(o, key, &o->table[at]);
        omp_set_num_threads(before);
        TRY(s);
        o->n_conv++;
    }
    *out = o->table[at];
    return DDPM_OK;
}

size_t onednn_packed_bytes(const struct onednn_conv *c)
{
    return (c->packed_bytes + 63) / 64 * 64;
}

bool onednn_same_weights(const struct onednn_conv *a, const struct onednn_conv *b)
{
    desc_ref p = NULL, q = NULL;
    return dnnl_memory_get_memory_desc(a->packed, &p) == dnnl_success &&
           dnnl_memory_get_memory_desc(b->packed, &q) == dnnl_success && dnnl_memory_desc_equal(p, q) != 0;
}

size_t onednn_scratch_bytes(const struct onednn_conv *c)
{
    return c->scratch_bytes;
}

ddpm_status onednn_pack(struct onednn *o, struct onednn_conv *c, const float *w, void *packed)
{
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_FROM, c->plain}, {DNNL_ARG_TO, c->packed}, {DNNL_ARG_SCRATCHPAD, c->work}};
    const int before = omp_get_max_threads();
    dnnl_memory_set_data_handle(c->plain, (void *)(uintptr_t)w);
    dnnl_memory_set_data_handle(c->packed, packed);
    omp_set_num_threads(1);
    const dnnl_status_t e = dnnl_primitive_execute(c->pack, o->stream[0], 3, args);
    omp_set_num_threads(before);
    REQUIRE(!e, BACKEND, "oneDNN: packing weights failed (status %d)", (int)e);
    return DDPM_OK;
}

bool onednn_run(struct onednn *o, struct onednn_conv *c, int thread, const struct onednn_run *r)
{
    static const int id[2][ARG_COUNT] = {
        [ONEDNN_FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD},
        [ONEDNN_DATA] = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DIFF_DST, DNNL_ARG_SCRATCHPAD}};
    void *const data[ARG_COUNT] = {r->x, r->w, (void *)(uintptr_t)r->bias, r->y, r->scratch};
    dnnl_memory_t *memory = c->memory + (size_t)thread * ARG_COUNT;
    dnnl_exec_arg_t args[ARG_COUNT];
    int n = 0;
    for (int i = 0; i < ARG_COUNT; i++) {
        if (!memory[i]) continue;
        dnnl_memory_set_data_handle(memory[i], data[i]);
        args[n].arg = id[c->key.pass][i];
        args[n++].memory = memory[i];
    }
    return dnnl_primitive_execute(c->primitive, o->stream[thread], n, args) == dnnl_success;
}

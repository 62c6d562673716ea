/* planning.c - the device that notes calls. See planning.h. */
#include "planning.h"

#include "backend_internal.h"
#include "fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks lie where no process of Linux has memory of its own on any machine this runs on, 64 KiB apart: a stray read of
 * one faults. */
static const uintptr_t FIRST_ADDRESS = (uintptr_t)1 << 52, BLOCK_ALIGN = 65536;

struct planning_block {
    void *address;
    size_t bytes;
};

struct planning_backend {
    ddpm_backend base;
    struct planning_options options;
    size_t largest_upload; /* reserved */
    uintptr_t next;
    int n_blocks, cap_blocks;
    struct planning_block *blocks;
    int n_calls, cap_calls;
    struct planning_call **calls;
};

static struct planning_backend *planning_of(const ddpm_backend *be)
{
    return (struct planning_backend *)(uintptr_t)be;
}

/* ---- memory ---- */

static ddpm_status planning_alloc(ddpm_backend *be, size_t bytes, void **out)
{
    struct planning_backend *p = planning_of(be);
    if (p->n_blocks == p->cap_blocks) {
        const int wanted = p->cap_blocks ? 2 * p->cap_blocks : 16;
        struct planning_block *grown = realloc(p->blocks, (size_t)wanted * sizeof *grown);
        REQUIRE(grown, NOMEM, "planning: no memory to note a block");
        p->blocks = grown;
        p->cap_blocks = wanted;
    }
    *out = (void *)p->next;
    p->next += (bytes + BLOCK_ALIGN) / BLOCK_ALIGN * BLOCK_ALIGN;
    p->blocks[p->n_blocks++] = (struct planning_block){*out, bytes};
    backend_count(be, bytes);
    return DDPM_OK;
}

static void planning_release(ddpm_backend *be, void *block)
{
    struct planning_backend *p = planning_of(be);
    for (int i = 0; i < p->n_blocks; i++) {
        if (p->blocks[i].address != block) continue;
        backend_uncount(be, p->blocks[i].bytes);
        p->blocks[i] = p->blocks[--p->n_blocks];
        return;
    }
}

static ddpm_status planning_upload(ddpm_backend *be, void *device, const void *host, size_t bytes)
{
    (void)be, (void)device, (void)host, (void)bytes;
    return DDPM_OK;
}

static ddpm_status planning_reserve_uploads(ddpm_backend *be, size_t bytes)
{
    struct planning_backend *p = planning_of(be);
    if (bytes > p->largest_upload) p->largest_upload = bytes;
    return DDPM_OK;
}

size_t planning_staging_bytes(const ddpm_backend *be)
{
    return planning_staging(planning_of(be)->largest_upload);
}

static ddpm_status planning_download(ddpm_backend *be, void *host, const void *device, size_t bytes)
{
    (void)be, (void)device;
    memset(host, 0, bytes);
    return DDPM_OK;
}

static ddpm_status planning_zero(ddpm_backend *be, void *device, size_t bytes)
{
    (void)be, (void)device, (void)bytes;
    return DDPM_OK;
}

static ddpm_status planning_sync(ddpm_backend *be)
{
    (void)be;
    return DDPM_OK;
}

static ddpm_status planning_available(ddpm_backend *be, size_t *out)
{
    const struct planning_backend *p = planning_of(be);
    const size_t all = p->options.memory_bytes ? p->options.memory_bytes : SIZE_MAX;
    *out = all > be->memory ? all - be->memory : 0;
    return DDPM_OK;
}

static void planning_freeze(ddpm_backend *be, bool on)
{
    (void)be, (void)on;
}

/* ---- calls ---- */

void planning_forget(ddpm_backend *be)
{
    struct planning_backend *p = planning_of(be);
    for (int i = 0; i < p->n_calls; i++)
        free(p->calls[i]);
    p->n_calls = 0;
}

static struct planning_call *find_call(const struct planning_backend *p, const struct planning_call *like)
{
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i]->op == like->op && strcmp(p->calls[i]->text, like->text) == 0) return p->calls[i];
    return NULL;
}

static bool make_room(struct planning_backend *p)
{
    if (p->n_calls < p->cap_calls) return true;
    const int wanted = p->cap_calls ? 2 * p->cap_calls : 256;
    struct planning_call **grown = realloc(p->calls, (size_t)wanted * sizeof *grown);
    if (!grown) return false;
    p->calls = grown;
    p->cap_calls = wanted;
    return true;
}

/* The most that any call needs, also of those that only measure. */
static void note_scratch(struct planning_backend *p, const struct planning_call *c)
{
    struct planning_own own;
    planning_own_kernels(c, &own);
    if (own.scratch > p->base.scratch_bytes) p->base.scratch_bytes = own.scratch;
}

/* Where a convolution tells that it has left sums; NULL: it cannot. */
static bool *told_sums(const struct planning_call *c)
{
    if (c->op == OP_conv2d) return c->args.conv2d.has_sums;
    return c->op == OP_conv2d_bwd_data ? c->args.conv2d_bwd_data.has_gradient : NULL;
}

/* Takes over `c`, whose args are set. */
static ddpm_status note_call(struct planning_backend *p, struct planning_call *c)
{
    bool *const told = p->base.is_measuring || !p->options.leaves_sums ? NULL : told_sums(c);
    ddpm_status s = planning_describe(c);
    if (!s && told) *told = p->options.leaves_sums(p->options.from, c);
    struct planning_call *same = s ? NULL : find_call(p, c);
    if (!s && !same) note_scratch(p, c);
    if (!s && !same && !make_room(p)) s = FAIL(NOMEM, "planning: no memory for %d calls", p->n_calls);
    if (s || same || p->base.is_measuring) {
        if (same && !p->base.is_measuring) same->calls++;
        free(c);
        return s;
    }
    c->flops = profile_flops(c->op, &c->args);
    p->calls[p->n_calls++] = c;
    return DDPM_OK;
}

#define X(op_)                                                                                                       \
    static ddpm_status planning_##op_(ddpm_backend *be, const struct op_##_args *a)                                  \
    {                                                                                                                \
        struct planning_call *c = calloc(1, sizeof *c);                                                              \
        REQUIRE(c, NOMEM, "planning: no memory to note a call");                                                     \
        c->op = OP_##op_;                                                                                            \
        c->name = #op_;                                                                                              \
        c->calls = 1;                                                                                                \
        c->args.op_ = *a;                                                                                            \
        return note_call(planning_of(be), c);                                                                        \
    }
OP_LIST(X)
#undef X

static const struct ops planning_ops = {
#define X(op) .op = planning_##op,
    OP_LIST(X)
#undef X
};

int planning_call_count(const ddpm_backend *be)
{
    return planning_of(be)->n_calls;
}

const struct planning_call *planning_call_at(const ddpm_backend *be, int i)
{
    return planning_of(be)->calls[i];
}

/* ---- the object ---- */

static void planning_free(ddpm_backend *be)
{
    struct planning_backend *p = planning_of(be);
    planning_forget(be);
    free(p->calls);
    free(p->blocks);
    free(p);
}

static const struct backend_device planning_device = {
    .free = planning_free,
    .alloc = planning_alloc,
    .release = planning_release,
    .upload = planning_upload,
    .reserve_uploads = planning_reserve_uploads,
    .download = planning_download,
    .zero = planning_zero,
    .sync = planning_sync,
    .available = planning_available,
    .freeze_weights = planning_freeze,
};

ddpm_status planning_create(const struct planning_options *o, ddpm_backend **out)
{
    struct planning_backend *p = calloc(1, sizeof *p);
    REQUIRE(p, NOMEM, "planning: %zu bytes", sizeof *p);
    p->base.device = &planning_device;
    p->base.table = &planning_ops;
    p->base.threads = 1;
    p->base.takes_bf16 = true;
    p->options = *o;
    p->next = FIRST_ADDRESS;
    snprintf(p->base.name, sizeof p->base.name, "plan for %.100s", o->name);
    *out = &p->base;
    return DDPM_OK;
}

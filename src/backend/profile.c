/* profile.c - the table callers get: each op, its arguments checked, timed when asked.
 *
 * Every op goes through one wrapper made from OP_LIST. It holds the call against its contract, so that the ops of every
 * backend begin with their work. When nobody takes the time that costs one test more per op; when somebody
 * does, the wrapper waits for the device after the op, so that the time is the op's own. FLOPs are those of the definition,
 * so that a faster algorithm shows as a higher rate. */
#include "profile.h"

#include "backend_internal.h"
#include "contracts.h"
#include "fail.h"

#include <string.h>
#include <time.h>

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double count(const ddpm_tensor *t)
{
    return t ? (double)ddpm_tensor_count(t) : 0;
}

/* Of a convolution with this kernel and this many output pixels. */
static double conv_flops(const ddpm_tensor *w, const ddpm_tensor *y)
{
    return 2 * count(w) * (double)(y->dim[0] * y->dim[1] * y->dim[2]);
}

/* 2 T^2 D for each product of one head */
static double attention_product(const ddpm_tensor *q)
{
    return 2 * count(q) * (double)q->dim[1];
}

double profile_flops(int op, const void *args)
{
    switch (op) {
    case OP_conv2d: {
        const struct conv2d_args *a = args;
        return conv_flops(a->w, a->y);
    }
    case OP_conv2d_bwd_data: {
        const struct conv2d_bwd_data_args *a = args;
        return conv_flops(a->w, a->dy);
    }
    case OP_conv2d_bwd_filter: {
        const struct conv2d_bwd_filter_args *a = args;
        return conv_flops(a->dw, a->dy);
    }
    case OP_linear: {
        const struct linear_args *a = args;
        return 2 * count(a->w) * (double)a->x->dim[0];
    }
    case OP_linear_bwd: {
        const struct linear_bwd_args *a = args;
        return (a->dx ? 4 : 2) * count(a->dw) * (double)a->x->dim[0];
    }
    case OP_attention: return 2 * attention_product(((const struct attention_args *)args)->q);
    case OP_attention_bwd:
        return 5 * attention_product(((const struct attention_bwd_args *)args)->q);
    default: return 0;
    }
}

static ddpm_status note(ddpm_backend *be, int op, const void *args, double begin, ddpm_status s)
{
    const ddpm_status late = s ? s : be->device->sync(be);
    struct profile_row *row = &be->profile[op];
    row->calls++;
    row->seconds += seconds_now() - begin;
    if (!late) row->flops += profile_flops(op, args);
    return late;
}

#define X(op)                                                                                      \
    static ddpm_status call_##op(ddpm_backend *be, const struct op##_args *a)                      \
    {                                                                                              \
        TRY(expect_##op(be, a));                                                                   \
        if (!be->is_profiling || be->is_measuring) return be->table->op(be, a);                    \
        const double begin = seconds_now();                                                        \
        return note(be, OP_##op, a, begin, be->table->op(be, a));                                  \
    }
OP_LIST(X)
#undef X

static const struct ops calls = {
#define X(op) .op = call_##op,
    OP_LIST(X)
#undef X
};

const struct ops *backend_ops(const ddpm_backend *be)
{
    (void)be; /* the wrappers find the device's table in the object */
    return &calls;
}

void backend_profile(ddpm_backend *be, bool on)
{
    if (on) memset(be->profile, 0, sizeof be->profile);
    be->is_profiling = on;
}

bool backend_profile_at(const ddpm_backend *be, int i, struct profile_entry *out)
{
    static const char *const names[] = {
#define X(op) #op,
        OP_LIST(X)
#undef X
    };
    if (i < 0 || i >= OP_COUNT) return false;
    const struct profile_row *row = &be->profile[i];
    *out = (struct profile_entry){.name = names[i],
                                  .calls = row->calls,
                                  .seconds = row->seconds,
                                  .flops = row->flops};
    return true;
}

/* planning_ops.c - which tensors each op reads and writes: one line an op, complete by OP_LIST (an op without a line does
 * not link).
 *
 * From these lines come the least bytes a call moves (each tensor once; one that is added to, twice), and the text that
 * tells two calls apart. What a call reads besides tensors (keys, rows of a schedule, labels) is a few bytes an image and
 * not counted. Scratch that an implementation passes through memory is not either: that is what a kernel is measured
 * against. */
#include "planning.h"

#include "backend_internal.h"
#include "fail.h"
#include "views.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct describing {
    struct planning_call *c;
    size_t used; /* of c->text */
    bool is_full;
    const ddpm_tensor *first, *result, *kernel; /* for c->shape */
};

enum use { READS = 1, WRITES = 2 };

static void add_text(struct describing *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add_text(struct describing *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(d->c->text + d->used, PLANNING_TEXT - d->used, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= PLANNING_TEXT - d->used)
        d->is_full = true;
    else
        d->used += (size_t)n;
}

static void add_tensor(struct describing *d, const char *name, const ddpm_tensor *t)
{
    static const char *const dtypes[] = {"f32", "bf16", "u8", "i32", "i64"};
    add_text(d, "%s%s ", d->used ? " " : "", name);
    for (int i = 0; i < t->rank; i++)
        add_text(d, "%s%lld", i ? "x" : "", (long long)t->dim[i]);
    for (int i = 0; !view_is_dense(t) && i < t->rank; i++)
        add_text(d, "%c%lld", i ? ',' : '/', (long long)t->stride[i]);
    if (t->dtype != DDPM_F32) add_text(d, ":%s", dtypes[t->dtype]);
}

/* The call's own copy of one tensor; NULL stays NULL. */
static ddpm_tensor *note(struct describing *d, const char *name, const ddpm_tensor *t, unsigned use)
{
    if (!t) return NULL;
    struct planning_call *c = d->c;
    if (c->n_tensors == PLANNING_TENSORS) {
        d->is_full = true;
        return NULL;
    }
    ddpm_tensor *own = &c->tensor[c->n_tensors++];
    *own = *t;
    const double bytes = (double)ddpm_tensor_count(own) * (double)ddpm_dtype_size(own->dtype);
    c->bytes += (use & READS ? bytes : 0) + (use & WRITES ? bytes : 0);
    add_tensor(d, name, own);
    if (!d->first) d->first = own;
    if (!d->result && use & WRITES) d->result = own;
    if (own->rank == 4 && (strcmp(name, "w") == 0 || strcmp(name, "dw") == 0)) d->kernel = own;
    return own;
}

static void note_number(struct describing *d, const char *name, double value)
{
    if (value != 0) add_text(d, " %s=%.9g", name, value);
}

#define IN(t)       a->t = note(d, #t, a->t, READS)
#define OUT(t)      a->t = note(d, #t, a->t, WRITES)
#define SEEN(t)     a->t = note(d, #t, a->t, 0) /* by some implementations alone */
#define ADDED(t)    a->t = note(d, #t, a->t, READS | WRITES)
#define MAYBE_ADDED(t, flag) a->t = note(d, #t, a->t, (flag) ? READS | WRITES : WRITES)
#define NUMBER(v)   note_number(d, #v, (double)a->v)
#define PADS        NUMBER(stride), NUMBER(pad_top), NUMBER(pad_left), NUMBER(pad_bottom), NUMBER(pad_right)

#define OP(op, ...)                                                                                                  \
    static void describe_##op(struct describing *d, struct op##_args *a)                                             \
    {                                                                                                                \
        __VA_ARGS__;                                                                                                 \
    }

/* clang-format off */
OP(conv2d, IN(x), IN(w), IN(bias), IN(emb), IN(residual), OUT(y), OUT(sum), OUT(square), PADS, a->has_sums = NULL)
OP(conv2d_bwd_data, IN(dy), IN(w), MAYBE_ADDED(dx, a->accumulate), SEEN(norm.x), SEEN(norm.gamma), SEEN(norm.beta),
   SEEN(norm.scale), SEEN(norm.shift), SEEN(norm.stats), SEEN(sum), SEEN(product), PADS, NUMBER(accumulate),
   NUMBER(norm.groups), a->has_gradient = NULL)
OP(conv2d_bwd_filter, IN(x), IN(dy), ADDED(dw), ADDED(db), OUT(demb), PADS)
OP(linear, IN(x), IN(w), IN(bias), OUT(y))
OP(linear_bwd, IN(x), IN(w), IN(dy), MAYBE_ADDED(dx, a->accumulate), ADDED(dw), ADDED(db), NUMBER(accumulate))
OP(groupnorm, IN(x1), IN(x2), IN(gamma), IN(beta), IN(scale), IN(shift), IN(sum1), IN(square1), IN(sum2),
   IN(square2), OUT(y), OUT(stats),
   NUMBER(groups), NUMBER(silu), NUMBER(dropout), NUMBER(resample))
OP(groupnorm_bwd, IN(dy), IN(x1), IN(x2), IN(gamma), IN(beta), IN(scale), IN(shift), IN(stats), IN(dy_sum),
   IN(dy_x), IN(add1), IN(add2), OUT(dx1), OUT(dx2), ADDED(dgamma), ADDED(dbeta), OUT(dscale), OUT(dshift),
   NUMBER(groups), NUMBER(silu), NUMBER(dropout), NUMBER(resample))
OP(attention, IN(q), IN(k), IN(v), OUT(o), OUT(lse), NUMBER(scale))
OP(attention_bwd, IN(q), IN(k), IN(v), IN(o), IN(lse), IN(d_o), OUT(dq), OUT(dk), OUT(dv),
   NUMBER(scale))
OP(softmax, IN(x), OUT(y), NUMBER(log))
OP(softmax_bwd, IN(y), IN(dy), OUT(dx), NUMBER(log))
OP(silu, IN(x), OUT(y))
OP(silu_bwd, IN(x), IN(dy), MAYBE_ADDED(dx, a->accumulate), NUMBER(accumulate))
OP(upsample2, IN(x), OUT(y))
OP(upsample2_bwd, IN(dy), MAYBE_ADDED(dx, a->accumulate), NUMBER(accumulate))
OP(avgpool2, IN(x), OUT(y))
OP(avgpool2_bwd, IN(dy), MAYBE_ADDED(dx, a->accumulate), NUMBER(accumulate))
OP(time_embedding, IN(t), OUT(y), NUMBER(sin_cos))
OP(embedding, IN(table), ADDED(y))
OP(embedding_bwd, IN(dy), ADDED(dtable))
OP(add, IN(a), IN(b), OUT(y))
OP(gaussian, OUT(x), NUMBER(purpose))
OP(q_sample, IN(x0), IN(eps), OUT(xt))
OP(diffusion_loss, IN(x0), IN(eps), IN(out), OUT(loss), OUT(dout), ADDED(quartiles))
OP(reverse_step, IN(out), IN(noise), ADDED(x), OUT(x0_hat))
OP(sum_squares, IN(x))
OP(to_u8, IN(x), OUT(y))
OP(open_step, OUT(time))
OP(close_step, IN(loss))
OP(open_sample, OUT(time))
OP(cast, IN(x), OUT(y))
/* clang-format on */

/* Of x the rows that make up y are read. */
static void describe_gather(struct describing *d, struct gather_args *a)
{
    a->x = note(d, "x", a->x, 0);
    a->y = note(d, "y", a->y, READS | WRITES);
}

static void describe_adamw(struct describing *d, struct adamw_args *a)
{
    ADDED(p), ADDED(g), ADDED(m), ADDED(v);
    for (int k = 0; k < a->n_ema; k++)
        a->ema[k] = note(d, "ema", a->ema[k], READS | WRITES);
    OUT(half);
}

/* "128x32x32x128 > 128x16x16x256 3x3" */
static void shape_for_eyes(const struct describing *d)
{
    char *to = d->c->shape;
    size_t used = 0;
    const ddpm_tensor *const shown[] = {d->first, d->result == d->first ? NULL : d->result};
    for (int k = 0; k < 2; k++)
        for (int i = 0; shown[k] && i < shown[k]->rank && used < PLANNING_SHAPE; i++)
            used += (size_t)snprintf(to + used, PLANNING_SHAPE - used, "%s%lld", i ? "x" : k ? " > " : "",
                                     (long long)shown[k]->dim[i]);
    if (d->kernel && used < PLANNING_SHAPE)
        snprintf(to + used, PLANNING_SHAPE - used, " %lldx%lld", (long long)d->kernel->dim[1], (long long)d->kernel->dim[2]);
}

ddpm_status planning_describe(struct planning_call *c)
{
    struct describing d = {.c = c};
    switch (c->op) {
#define X(op)                                                                                                        \
    case OP_##op:                                                                                                    \
        describe_##op(&d, &c->args.op);                                                                              \
        break;
        OP_LIST(X)
#undef X
    default:
        break;
    }
    REQUIRE(!d.is_full, BUG, "planning: a call of %s has more than can be noted", c->name);
    shape_for_eyes(&d);
    return DDPM_OK;
}

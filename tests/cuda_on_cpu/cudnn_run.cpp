/* cudnn_run.cpp - a graph's operations one after another; every result is rounded to the type of its tensor. An engine that
 * is not deterministic adds images, or what a reduction sums, the other way round on every second run. */
#include "cudnn_values.h"
#include "float_products.h"

namespace cuda_on_cpu {

#define OP(name) CUDNN_BACKEND_OPERATION_##name##_DESCRIPTOR

extents broadcast(const tensor &from, const tensor &to)
{
    extents s = from.stride;
    for (size_t i = 0; i < s.size(); i++)
        if (from.dim[i] == 1 && to.dim[i] != 1) s[i] = 0;
    return s;
}

int64_t span_of(const tensor &t)
{
    int64_t span = 1;
    for (size_t i = 0; i < t.dim.size(); i++)
        span += (t.dim[i] - 1) * t.stride[i];
    return span;
}

/* ---- types ---- */

static bool is_bf16(const tensor &t)
{
    return t.type == CUDNN_DATA_BFLOAT16;
}

static void load(value *v, const void *from)
{
    const tensor &t = *v->t;
    if (t.type == CUDNN_DATA_FLOAT) {
        v->data = static_cast<float *>(const_cast<void *>(from));
        return;
    }
    v->own.assign((size_t)span_of(t), NOTHING);
    v->data = v->own.data();
    if (!is_bf16(t)) return; /* of no other type: what is computed from it is NaN */
    const uint16_t *halves = static_cast<const uint16_t *>(from);
    walk(t.dim, {t.stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            v->data[at[0] + i * step[0]] = float_of_bf16(halves[at[0] + i * step[0]]);
    });
}

/* What an operation left in `v`, in the precision of its type. */
static void round_values(const value &v)
{
    if (!is_bf16(*v.t)) return;
    walk(v.t->dim, {v.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++) {
            float *const x = v.data + at[0] + i * step[0];
            *x = float_of_bf16(bf16_of_float(*x));
        }
    });
}

static void store(const value &v, void *to)
{
    if (v.own.empty()) return;
    uint16_t *halves = static_cast<uint16_t *>(to);
    walk(v.t->dim, {v.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            halves[at[0] + i * step[0]] = bf16_of_float(v.data[at[0] + i * step[0]]);
    });
}

/* ---- a run ---- */

/* What an operation reads. */
value &run::get(const operation &o, int name)
{
    const int64_t uid = g.uid(o, name);
    const auto found = values.find(uid);
    if (found != values.end()) return found->second;
    value &v = values[uid];
    v.t = &g.tensors.at(uid);
    if (v.t->is_by_value) {
        v.own = {given.at(uid)};
        v.data = v.own.data();
    } else {
        load(&v, at.at(uid));
    }
    return v;
}

/* What it writes. With beta the old values count, so they are loaded. */
value &run::result(const operation &o, int name)
{
    const int64_t uid = g.uid(o, name);
    value &v = values[uid];
    v.t = &g.tensors.at(uid);
    if (!v.t->is_virtual) {
        load(&v, at.at(uid));
    } else {
        v.own.assign((size_t)span_of(*v.t), NOTHING);
        v.data = v.own.data();
    }
    return v;
}

static void run_operation(run *r, const operation &o)
{
    switch ((int)o.d->type) {
    case OP(CONVOLUTION_FORWARD):
        return run_forward(r, o);
    case OP(CONVOLUTION_BACKWARD_DATA):
        return run_backward_data(r, o);
    case OP(CONVOLUTION_BACKWARD_FILTER):
        return run_backward_filter(r, o);
    case OP(POINTWISE):
        return run_pointwise(r, o);
    case OP(MATMUL):
        return run_matmul(r, o);
    case OP(REDUCTION):
        return run_reduction(r, o);
    case OP(SDPA_FWD):
        return run_attention(r, o);
    default:
        return run_reshape(r, o);
    }
}

void run_graph(const graph &g, const engine &e, const places &at, const scalars &given)
{
    static long runs_in_any_order;
    run r = {g, e, at, given, !e.is_deterministic && runs_in_any_order++ % 2 == 1, {}};
    for (const operation &o : g.operations) {
        run_operation(&r, o);
        for (int name : o.writes) {
            const value &v = r.values.at(g.uid(o, name));
            round_values(v);
            if (!v.t->is_virtual) store(v, at.at(v.t->uid));
        }
    }
}

} // namespace cuda_on_cpu

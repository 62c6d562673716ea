/* cudnn_pointwise.cpp - functions of single elements, reductions and reshapes. */
#include "cudnn_values.h"

#include <math.h>

namespace cuda_on_cpu {

#define A(name) CUDNN_ATTR_##name

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

template <class F> static void map1(const value &x, const value &y, F f)
{
    walk(y.t->dim, {broadcast(*x.t, *y.t), y.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            y.data[at[1] + i * step[1]] = f(x.data[at[0] + i * step[0]]);
    });
}

template <class F> static void map2(const value &x, const value &b, const value &y, F f)
{
    walk(y.t->dim, {broadcast(*x.t, *y.t), broadcast(*b.t, *y.t), y.t->stride},
         [&](const int64_t *at, int64_t n, const int64_t *step) {
             for (int64_t i = 0; i < n; i++)
                 y.data[at[2] + i * step[2]] = f(x.data[at[0] + i * step[0]], b.data[at[1] + i * step[1]]);
         });
}

static void run_unary(int mode, float beta, const value &x, const value &y)
{
    switch (mode) {
    case CUDNN_POINTWISE_EXP:
        return map1(x, y, [](float v) { return expf(v); });
    case CUDNN_POINTWISE_LOG:
        return map1(x, y, [](float v) { return logf(v); });
    case CUDNN_POINTWISE_NEG:
        return map1(x, y, [](float v) { return -v; });
    case CUDNN_POINTWISE_SQRT:
        return map1(x, y, [](float v) { return sqrtf(v); });
    case CUDNN_POINTWISE_RSQRT:
        return map1(x, y, [](float v) { return 1.0f / sqrtf(v); });
    case CUDNN_POINTWISE_RECIPROCAL:
        return map1(x, y, [](float v) { return 1.0f / v; });
    case CUDNN_POINTWISE_RELU_FWD:
        return map1(x, y, [](float v) { return v > 0 ? v : 0; });
    case CUDNN_POINTWISE_SIGMOID_FWD:
        return map1(x, y, sigmoid);
    case CUDNN_POINTWISE_SWISH_FWD:
        return map1(x, y, [=](float v) { return v * sigmoid(beta * v); });
    default:
        return map1(x, y, [](float v) { return v; });
    }
}

static void run_binary(int mode, float beta, const value &x, const value &b, const value &y)
{
    switch (mode) {
    case CUDNN_POINTWISE_ADD:
        return map2(x, b, y, [](float v, float w) { return v + w; });
    case CUDNN_POINTWISE_SUB:
        return map2(x, b, y, [](float v, float w) { return v - w; });
    case CUDNN_POINTWISE_MUL:
        return map2(x, b, y, [](float v, float w) { return v * w; });
    case CUDNN_POINTWISE_DIV:
        return map2(x, b, y, [](float v, float w) { return v / w; });
    case CUDNN_POINTWISE_MIN:
        return map2(x, b, y, [](float v, float w) { return std::min(v, w); });
    case CUDNN_POINTWISE_MAX:
        return map2(x, b, y, [](float v, float w) { return std::max(v, w); });
    default: /* the gradient of swish: b is dy */
        return map2(x, b, y, [=](float v, float dy) {
            const float s = sigmoid(beta * v);
            return dy * (s + beta * v * s * (1.0f - s));
        });
    }
}

void run_pointwise(run *r, const operation &o)
{
    const part p = part_of(*o.d, A(OPERATION_POINTWISE_PW_DESCRIPTOR));
    const int mode = value_of(*p, A(POINTWISE_MODE), CUDNN_POINTWISE_IDENTITY);
    const float beta = (float)value_of<double>(*p, A(POINTWISE_SWISH_BETA), 1);
    const value &x = r->get(o, A(OPERATION_POINTWISE_XDESC));
    if (o.reads.size() == 1) return run_unary(mode, beta, x, r->result(o, o.writes[0]));
    const value &b = r->get(o, o.reads[1]);
    run_binary(mode, beta, x, b, r->result(o, o.writes[0]));
}

static double reduce(int operation, double sum, double x)
{
    switch (operation) {
    case CUDNN_REDUCE_TENSOR_MUL:
        return sum * x;
    case CUDNN_REDUCE_TENSOR_MIN:
        return std::min(sum, x);
    case CUDNN_REDUCE_TENSOR_MAX:
        return std::max(sum, x);
    case CUDNN_REDUCE_TENSOR_AMAX:
        return std::max(sum, fabs(x));
    case CUDNN_REDUCE_TENSOR_NORM1:
        return sum + fabs(x);
    case CUDNN_REDUCE_TENSOR_NORM2:
        return sum + x * x;
    default:
        return sum + x;
    }
}

static double start_of(int operation)
{
    switch (operation) {
    case CUDNN_REDUCE_TENSOR_MUL:
        return 1;
    case CUDNN_REDUCE_TENSOR_MIN:
        return INFINITY;
    case CUDNN_REDUCE_TENSOR_MAX:
        return -INFINITY;
    default:
        return 0;
    }
}

/* Sums in double; reversed, in float, so that the order shows. */
void run_reduction(run *r, const operation &o)
{
    const value &x = r->get(o, A(OPERATION_REDUCTION_XDESC));
    const value &y = r->result(o, A(OPERATION_REDUCTION_YDESC));
    const int kind = value_of(*part_of(*o.d, A(OPERATION_REDUCTION_DESC)), A(REDUCTION_OPERATOR), CUDNN_REDUCE_TENSOR_ADD);
    std::vector<double> sums((size_t)span_of(*y.t), start_of(kind));
    walk(x.t->dim, {broadcast(*y.t, *x.t), x.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++) {
            double &sum = sums[(size_t)(at[0] + i * step[0])];
            sum = reduce(kind, sum, (double)x.data[at[1] + i * step[1]]);
            if (r->is_reversed) sum = (double)(float)sum;
        }
    });
    const double terms = (double)count_of(*x.t) / (double)count_of(*y.t);
    walk(y.t->dim, {y.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++) {
            const double sum = sums[(size_t)(at[0] + i * step[0])];
            y.data[at[0] + i * step[0]] = (float)(kind == CUDNN_REDUCE_TENSOR_AVG     ? sum / terms
                                                  : kind == CUDNN_REDUCE_TENSOR_NORM2 ? sqrt(sum)
                                                                                      : sum);
        }
    });
}

/* The same memory by other strides. */
void run_reshape(run *r, const operation &o)
{
    const value x = r->get(o, A(OPERATION_RESHAPE_XDESC));
    value &y = r->values[r->g.uid(o, A(OPERATION_RESHAPE_YDESC))];
    y.t = &r->g.tensors.at(r->g.uid(o, A(OPERATION_RESHAPE_YDESC)));
    const int64_t span = std::min(span_of(*x.t), span_of(*y.t));
    y.own.assign((size_t)span_of(*y.t), NOTHING);
    y.data = y.own.data();
    walk(x.t->dim, {x.t->stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            if (at[0] + i * step[0] < span) y.data[at[0] + i * step[0]] = x.data[at[0] + i * step[0]];
    });
}

} // namespace cuda_on_cpu

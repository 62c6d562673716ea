/* cudnn_values.h - tensors of a graph while it runs, in float, and walks over them.
 *
 * A tensor is a pointer to floats and the strides of its own descriptor: float tensors are read and written where they
 * lie, others are converted on the way in and out, virtual ones live in buffers that begin as NaN.
 *
 * cudnn_run.cpp        values in and out, a graph's operations one after another
 * cudnn_products.cpp   convolutions, matrix products, attention
 * cudnn_pointwise.cpp  functions of elements, reductions, reshapes */
#ifndef CUDA_ON_CPU_CUDNN_VALUES_H
#define CUDA_ON_CPU_CUDNN_VALUES_H

#include "cudnn_parts.h"

#include <algorithm>
#include <limits>

namespace cuda_on_cpu {

typedef std::vector<float> buffer;
static const float NOTHING = std::numeric_limits<float>::quiet_NaN();

struct value {
    const tensor *t;
    float *data;
    buffer own; /* where data does not point into the device */
};

/* Four offsets that advance together over the extents, dimensions in the order of the last tensor's strides, so that the
 * innermost loop is over its neighbours: body(offsets, n, steps). */
typedef std::vector<int64_t> extents;

template <size_t N, class F> static void walk(const extents &dim, const extents (&stride)[N], F body)
{
    std::vector<size_t> order(dim.size());
    for (size_t i = 0; i < order.size(); i++)
        order[i] = i;
    const extents &last = stride[N - 1];
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return last[a] > last[b]; });
    while (order.size() > 1 && dim[order.back()] == 1)
        order.pop_back();
    const size_t inner = order.back();
    int64_t steps[N], at[N] = {};
    for (size_t k = 0; k < N; k++)
        steps[k] = stride[k][inner];
    extents counter(dim.size(), 0);
    for (;;) {
        body(at, dim[inner], steps);
        size_t i = order.size() - 1;
        for (;;) {
            if (i-- == 0) return;
            const size_t d = order[i];
            for (size_t k = 0; k < N; k++)
                at[k] += stride[k][d];
            if (++counter[d] < dim[d]) break;
            for (size_t k = 0; k < N; k++)
                at[k] -= counter[d] * stride[k][d];
            counter[d] = 0;
        }
    }
}

/* Strides of `from` as a walk over `to` takes them: 0 where it is broadcast. */
extents broadcast(const tensor &from, const tensor &to);
/* Elements from the first to behind the last. */
int64_t span_of(const tensor &t);

/* ---- a run ---- */

struct run {
    const graph &g;
    const engine &e;
    const places &at;
    const scalars &given;
    bool is_reversed; /* the order of sums */
    std::map<int64_t, value> values;

    value &get(const operation &o, int name);
    value &result(const operation &o, int name);
};

/* The operations of one kind, each what its descriptor says. */
void run_forward(run *r, const operation &o);
void run_backward_data(run *r, const operation &o);
void run_backward_filter(run *r, const operation &o);
void run_matmul(run *r, const operation &o);
void run_attention(run *r, const operation &o);
void run_pointwise(run *r, const operation &o);
void run_reduction(run *r, const operation &o);
void run_reshape(run *r, const operation &o);

} // namespace cuda_on_cpu

#endif

/* cudnn_products.cpp - convolutions, matrix products and attention by plain loops, in float. Convolutions are products with
 * matrices of patches, an image at a time. */
#include "cudnn_values.h"
#include "float_products.h"

#include <math.h>

namespace cuda_on_cpu {

#define A(name) CUDNN_ATTR_##name

static double scale_of(const operation &o, int name, double otherwise)
{
    const auto found = o.d->attributes.find(name);
    if (found == o.d->attributes.end()) return otherwise;
    return found->second.type == CUDNN_TYPE_DOUBLE ? value_of<double>(*o.d, name, 0) : value_of<float>(*o.d, name, 0);
}

/* In a reversed run the second half of the inner dimension comes first. */
static void add_in_order(const run &r, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c)
{
    const int64_t first = r.is_reversed ? k / 2 : 0;
    add_product(m, n, k - first, a + first, k, b + first * n, n, c, n);
    if (first) add_product(m, n, first, a, k, b, n, c, n);
}

/* ---- convolutions ---- */

struct conv {
    int64_t n, c, h, w, k, kh, kw, ho, wo;
    extents before, stride, dilation;
    int64_t pixels() const
    {
        return ho * wo;
    }
    int64_t patch() const
    {
        return kh * kw * c;
    }
};

static conv conv_of(const tensor &x, const tensor &w, const tensor &y, const descriptor &d)
{
    return {x.dim[0],
            x.dim[1],
            x.dim[2],
            x.dim[3],
            w.dim[0],
            w.dim[2],
            w.dim[3],
            y.dim[2],
            y.dim[3],
            values_of<int64_t>(d, A(CONVOLUTION_PRE_PADDINGS)),
            values_of<int64_t>(d, A(CONVOLUTION_FILTER_STRIDES)),
            values_of<int64_t>(d, A(CONVOLUTION_DILATIONS))};
}

/* For every pixel of y and tap of the kernel that lies in the image: f(row of patches, column, offset in x). */
template <class F> static void for_each_tap(const conv &c, const tensor &x, F f)
{
    for (int64_t i = 0; i < c.ho; i++)
        for (int64_t j = 0; j < c.wo; j++)
            for (int64_t u = 0; u < c.kh; u++)
                for (int64_t v = 0; v < c.kw; v++) {
                    const int64_t h = i * c.stride[0] - c.before[0] + u * c.dilation[0];
                    const int64_t w = j * c.stride[1] - c.before[1] + v * c.dilation[1];
                    if (h < 0 || h >= c.h || w < 0 || w >= c.w) continue;
                    f(i * c.wo + j, (u * c.kw + v) * c.c, h * x.stride[2] + w * x.stride[3]);
                }
}

/* Rounded as the engine's tensor cores do. */
static void narrow(const engine &e, buffer *b)
{
    if (!e.uses_tf32) return;
    for (float &x : *b)
        x = tf32_of_float(x);
}

static buffer patches_of(const conv &c, const engine &e, const value &x, int64_t image)
{
    buffer all((size_t)(c.pixels() * c.patch()), 0.0f);
    const float *const from = x.data + image * x.t->stride[0];
    const int64_t step = x.t->stride[1];
    for_each_tap(c, *x.t, [&](int64_t row, int64_t column, int64_t offset) {
        float *const to = &all[(size_t)(row * c.patch() + column)];
        for (int64_t i = 0; i < c.c; i++)
            to[i] = from[offset + i * step];
    });
    narrow(e, &all);
    return all;
}

/* [k, kh, kw, c], or its transpose [kh, kw, c, k]. */
static buffer weights_of(const conv &c, const engine &e, const value &w, bool is_transposed)
{
    buffer all((size_t)(c.k * c.patch()));
    const extents rows = {c.patch(), 1, c.kw * c.c, c.c}, columns = {1, c.k, c.kw * c.c * c.k, c.c * c.k};
    walk(w.t->dim, {w.t->stride, is_transposed ? columns : rows}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            all[(size_t)(at[1] + i * step[1])] = w.data[at[0] + i * step[0]];
    });
    narrow(e, &all);
    return all;
}

/* An image of y as [pixels, k], or transposed. */
static buffer image_of(const conv &c, const engine &e, const value &y, int64_t image, bool is_transposed)
{
    buffer all((size_t)(c.pixels() * c.k));
    const tensor &t = *y.t;
    const extents dim = {1, c.k, c.ho, c.wo}, rows = {0, 1, c.wo * c.k, c.k}, columns = {0, c.pixels(), c.wo, 1};
    const float *const from = y.data + image * t.stride[0];
    walk(dim, {t.stride, is_transposed ? columns : rows}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++)
            all[(size_t)(at[1] + i * step[1])] = from[at[0] + i * step[0]];
    });
    narrow(e, &all);
    return all;
}

/* y = alpha sum + beta y, sum with strides of its own. */
static void finish(const operation &o, int alpha, int beta, const buffer &sum, const extents &strides, const extents &dim,
                   const tensor &t, float *y)
{
    const float a = (float)scale_of(o, alpha, 1), b = (float)scale_of(o, beta, 0);
    walk(dim, {strides, t.stride}, [&](const int64_t *at, int64_t n, const int64_t *step) {
        for (int64_t i = 0; i < n; i++) {
            float *const to = y + at[1] + i * step[1];
            const float x = a * sum[(size_t)(at[0] + i * step[0])];
            *to = b != 0 ? x + b * *to : x;
        }
    });
}

void run_forward(run *r, const operation &o)
{
    const value &x = r->get(o, A(OPERATION_CONVOLUTION_FORWARD_X)), &w = r->get(o, A(OPERATION_CONVOLUTION_FORWARD_W));
    const value &y = r->result(o, A(OPERATION_CONVOLUTION_FORWARD_Y));
    const conv c = conv_of(*x.t, *w.t, *y.t, *part_of(*o.d, A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC)));
    const buffer weights = weights_of(c, r->e, w, true);
    for (int64_t i = 0; i < c.n; i++) {
        const buffer patches = patches_of(c, r->e, x, i);
        buffer sum((size_t)(c.pixels() * c.k), 0.0f);
        add_product(c.pixels(), c.k, c.patch(), patches.data(), c.patch(), weights.data(), c.k, sum.data(), c.k);
        finish(o, A(OPERATION_CONVOLUTION_FORWARD_ALPHA), A(OPERATION_CONVOLUTION_FORWARD_BETA), sum,
               {0, 1, c.wo * c.k, c.k}, {1, c.k, c.ho, c.wo}, *y.t, y.data + i * y.t->stride[0]);
    }
}

void run_backward_data(run *r, const operation &o)
{
    const value &dy = r->get(o, A(OPERATION_CONVOLUTION_BWD_DATA_DY)), &w = r->get(o, A(OPERATION_CONVOLUTION_BWD_DATA_W));
    const value &dx = r->result(o, A(OPERATION_CONVOLUTION_BWD_DATA_DX));
    const conv c = conv_of(*dx.t, *w.t, *dy.t, *part_of(*o.d, A(OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC)));
    const buffer weights = weights_of(c, r->e, w, false);
    tensor packed = *dx.t;
    packed.stride = {0, 1, c.w * c.c, c.c};
    for (int64_t i = 0; i < c.n; i++) {
        const buffer gradient = image_of(c, r->e, dy, i, false);
        buffer patches((size_t)(c.pixels() * c.patch()), 0.0f), sum((size_t)(c.h * c.w * c.c), 0.0f);
        add_in_order(*r, c.pixels(), c.patch(), c.k, gradient.data(), weights.data(), patches.data());
        for_each_tap(c, packed, [&](int64_t row, int64_t column, int64_t offset) {
            const float *const from = &patches[(size_t)(row * c.patch() + column)];
            float *const to = &sum[(size_t)offset];
            for (int64_t j = 0; j < c.c; j++)
                to[j] += from[j];
        });
        finish(o, A(OPERATION_CONVOLUTION_BWD_DATA_ALPHA), A(OPERATION_CONVOLUTION_BWD_DATA_BETA), sum, packed.stride,
               {1, c.c, c.h, c.w}, *dx.t, dx.data + i * dx.t->stride[0]);
    }
}

void run_backward_filter(run *r, const operation &o)
{
    const value &x = r->get(o, A(OPERATION_CONVOLUTION_BWD_FILTER_X)), &dy = r->get(o, A(OPERATION_CONVOLUTION_BWD_FILTER_DY));
    const value &dw = r->result(o, A(OPERATION_CONVOLUTION_BWD_FILTER_DW));
    const conv c = conv_of(*x.t, *dw.t, *dy.t, *part_of(*o.d, A(OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC)));
    buffer sum((size_t)(c.k * c.patch()), 0.0f);
    for (int64_t i = 0; i < c.n; i++) {
        const int64_t image = r->is_reversed ? c.n - 1 - i : i;
        const buffer patches = patches_of(c, r->e, x, image), gradient = image_of(c, r->e, dy, image, true);
        add_product(c.k, c.patch(), c.pixels(), gradient.data(), c.pixels(), patches.data(), c.patch(), sum.data(),
                    c.patch());
    }
    finish(o, A(OPERATION_CONVOLUTION_BWD_FILTER_ALPHA), A(OPERATION_CONVOLUTION_BWD_FILTER_BETA), sum,
           {c.patch(), 1, c.kw * c.c, c.c}, dw.t->dim, *dw.t, dw.data);
}

/* ---- products ---- */

/* Two dimensions of a tensor at `from` as [rows, columns]. */
static buffer matrix_of(const engine &e, const float *from, int64_t rows, int64_t columns, int64_t row, int64_t column)
{
    buffer all((size_t)(rows * columns));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            all[(size_t)(i * columns + j)] = from[i * row + j * column];
    narrow(e, &all);
    return all;
}

void run_matmul(run *r, const operation &o)
{
    const value &a = r->get(o, A(OPERATION_MATMUL_ADESC)), &b = r->get(o, A(OPERATION_MATMUL_BDESC));
    const value &c = r->result(o, A(OPERATION_MATMUL_CDESC));
    const size_t rank = c.t->dim.size(), row = rank - 2, column = rank - 1;
    const int64_t m = c.t->dim[row], n = c.t->dim[column], k = a.t->dim[column];
    extents batch = c.t->dim;
    batch[row] = batch[column] = 1;
    walk(batch, {broadcast(*a.t, *c.t), broadcast(*b.t, *c.t), c.t->stride},
         [&](const int64_t *at, int64_t count, const int64_t *step) {
             for (int64_t i = 0; i < count; i++) {
                 const buffer left = matrix_of(r->e, a.data + at[0] + i * step[0], m, k, a.t->stride[row], a.t->stride[column]);
                 const buffer right = matrix_of(r->e, b.data + at[1] + i * step[1], k, n, b.t->stride[row], b.t->stride[column]);
                 buffer sum((size_t)(m * n), 0.0f);
                 add_in_order(*r, m, n, k, left.data(), right.data(), sum.data());
                 float *const to = c.data + at[2] + i * step[2];
                 for (int64_t p = 0; p < m; p++)
                     for (int64_t q = 0; q < n; q++)
                         to[p * c.t->stride[row] + q * c.t->stride[column]] = sum[(size_t)(p * n + q)];
             }
         });
}

/* Rows of scores to probabilities; the log of the sum of exponentials of each. */
static void softmax_rows(float *s, int64_t rows, int64_t columns, float scale, float *lse)
{
    for (int64_t i = 0; i < rows; i++, s += columns) {
        float most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < columns; j++)
            most = std::max(most, s[j] *= scale);
        for (int64_t j = 0; j < columns; j++)
            sum += s[j] = expf(s[j] - most);
        for (int64_t j = 0; j < columns; j++)
            s[j] /= sum;
        lse[i] = most + logf(sum);
    }
}

void run_attention(run *r, const operation &o)
{
    const value &q = r->get(o, A(OPERATION_SDPA_FWD_QDESC)), &k = r->get(o, A(OPERATION_SDPA_FWD_KDESC)),
                &v = r->get(o, A(OPERATION_SDPA_FWD_VDESC)), &to = r->result(o, A(OPERATION_SDPA_FWD_ODESC));
    const bool has_scale = part_of(*o.d, A(OPERATION_SDPA_FWD_SCALEDESC)) != nullptr;
    const bool has_stats = part_of(*o.d, A(OPERATION_SDPA_FWD_STATSDESC)) != nullptr;
    const float scale = has_scale ? r->get(o, A(OPERATION_SDPA_FWD_SCALEDESC)).data[0] : 1.0f;
    const value *stats = has_stats ? &r->result(o, A(OPERATION_SDPA_FWD_STATSDESC)) : nullptr;
    const int64_t rows = q.t->dim[2], columns = k.t->dim[2], depth = q.t->dim[3];
    for (int64_t i = 0; i < q.t->dim[0] * q.t->dim[1]; i++) {
        const int64_t n = i / q.t->dim[1], head = i % q.t->dim[1];
        const auto place = [&](const value &x) { return x.data + n * x.t->stride[0] + head * x.t->stride[1]; };
        const buffer left = matrix_of(r->e, place(q), rows, depth, q.t->stride[2], q.t->stride[3]);
        const buffer keys = matrix_of(r->e, place(k), depth, columns, k.t->stride[3], k.t->stride[2]);
        const buffer last = matrix_of(r->e, place(v), columns, depth, v.t->stride[2], v.t->stride[3]);
        buffer scores((size_t)(rows * columns), 0.0f), sum((size_t)(rows * depth), 0.0f), lse((size_t)rows);
        add_product(rows, columns, depth, left.data(), depth, keys.data(), columns, scores.data(), columns);
        softmax_rows(scores.data(), rows, columns, scale, lse.data());
        add_product(rows, depth, columns, scores.data(), columns, last.data(), depth, sum.data(), depth);
        for (int64_t p = 0; p < rows; p++) {
            for (int64_t d = 0; d < depth; d++)
                place(to)[p * to.t->stride[2] + d * to.t->stride[3]] = sum[(size_t)(p * depth + d)];
            if (stats) place(*stats)[p * stats->t->stride[2]] = lse[(size_t)p];
        }
    }
}

} // namespace cuda_on_cpu

/* views.h - tensors seen another way: what every reader of strides asks. No data is touched. */
#ifndef BACKEND_VIEWS_H
#define BACKEND_VIEWS_H

#include "ddpm/backend.h"

/* Contiguous in the order of its dimensions. */
static inline bool view_is_dense(const ddpm_tensor *t)
{
    int64_t stride = 1;
    for (int i = t->rank; i-- > 0; stride *= t->dim[i])
        if (t->stride[i] != stride && t->dim[i] != 1) return false;
    return true;
}

static inline ddpm_tensor view_matrix(const ddpm_tensor *t, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride)
{
    return (ddpm_tensor){
        .data = t->data, .dtype = t->dtype, .rank = 2, .dim = {rows, columns}, .stride = {row_stride, column_stride}};
}

/* Rows and columns change places. */
static inline ddpm_tensor view_flipped(const ddpm_tensor *t)
{
    return view_matrix(t, t->dim[1], t->dim[0], t->stride[1], t->stride[0]);
}

/* [K,1,1,C] as [K,C]. */
static inline ddpm_tensor view_kernel(const ddpm_tensor *w)
{
    return view_matrix(w, w->dim[0], w->dim[3], w->stride[0], 1);
}

/* [N,H,W,C] as [N*H*W,C]; whether pixels are evenly spaced, so that it is. */
static inline bool view_pixels(const ddpm_tensor *t, ddpm_tensor *out)
{
    const int64_t step = t->stride[2];
    *out = view_matrix(t, t->dim[0] * t->dim[1] * t->dim[2], t->dim[3], step, 1);
    return (t->dim[1] == 1 || t->stride[1] == t->dim[2] * step) &&
           (t->dim[0] == 1 || t->stride[0] == t->dim[1] * t->dim[2] * step);
}

#endif

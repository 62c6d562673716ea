/* tensor.c - shapes over borrowed memory: contiguous tensors and slices of channels. Nothing here touches data. */
#include "ddpm/backend.h"

#include <assert.h>

ddpm_tensor ddpm_tensor_1d(void *data, int64_t n)
{
    return (ddpm_tensor){.data = data, .dtype = DDPM_F32, .rank = 1, .dim = {n}, .stride = {1}};
}

ddpm_tensor ddpm_tensor_2d(void *data, int64_t rows, int64_t columns)
{
    return (ddpm_tensor){.data = data,
                         .dtype = DDPM_F32,
                         .rank = 2,
                         .dim = {rows, columns},
                         .stride = {columns, 1}};
}

ddpm_tensor ddpm_tensor_4d(void *data, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return (ddpm_tensor){.data = data,
                         .dtype = DDPM_F32,
                         .rank = 4,
                         .dim = {n, h, w, c},
                         .stride = {h * w * c, w * c, c, 1}};
}

ddpm_tensor ddpm_tensor_slice(const ddpm_tensor *t, int64_t begin, int64_t count)
{
    ddpm_tensor view = *t;
    const int last = t->rank - 1;
    assert(begin >= 0 && count >= 0 && begin + count <= t->dim[last]);
    view.dim[last] = count;
    if (t->data) /* NULL while measuring */
        view.data = (unsigned char *)t->data +
                    (size_t)(begin * t->stride[last]) * ddpm_dtype_size(t->dtype);
    return view;
}

int64_t ddpm_tensor_count(const ddpm_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    return n;
}

size_t ddpm_dtype_size(ddpm_dtype d)
{
    switch (d) {
    case DDPM_F32: return 4;
    case DDPM_BF16: return 2;
    case DDPM_U8: return 1;
    case DDPM_I32: return 4;
    case DDPM_I64: return 8;
    }
    return 0;
}

/* check.c - one tensor against what is expected of it. The answer names the op, the tensor and both
 * shapes, because whoever built the network wrong sees nothing else. */
#include "check.h"

#include <stdio.h>
#include <string.h>

/* "[2,32,32,128]", "?" where any extent will do */
static const char *shape_text(char *out, size_t size, int rank, const int64_t *dim)
{
    size_t at = 0;
    for (int i = 0; i < rank && at < size; i++) {
        const char *before = i ? "," : "[";
        const int n = dim[i] < 0
                          ? snprintf(out + at, size - at, "%s?", before)
                          : snprintf(out + at, size - at, "%s%lld", before, (long long)dim[i]);
        at += (size_t)n;
    }
    if (at < size) snprintf(out + at, size - at, "]");
    return out;
}

static bool same_shape(const ddpm_tensor *t, int rank, const int64_t *dim)
{
    if (t->rank != rank) return false;
    for (int i = 0; i < rank; i++)
        if (t->dim[i] < 1 || (dim[i] >= 0 && t->dim[i] != dim[i])) return false;
    return true;
}

static bool layout_fits(const ddpm_tensor *t, enum op_layout layout)
{
    const int last = t->rank - 1;
    if (t->stride[last] != 1 && t->dim[last] != 1) return false;
    for (int i = last - 1; i >= 0 && layout != OP_STRIDED; i--) {
        const int64_t step = t->dim[i + 1] * t->stride[i + 1];
        if (layout == OP_DENSE && t->stride[i] != step && t->dim[i] != 1) return false;
        if (layout == OP_VIEW && t->stride[i] < step && t->dim[i] != 1) return false;
    }
    return true;
}

ddpm_status op_expect(const ddpm_backend *be, const char *op, const char *what,
                      const ddpm_tensor *t, ddpm_dtype dtype, enum op_layout layout, int rank,
                      const int64_t dim[])
{
    static const char *const dtypes[] = {"f32", "bf16", "u8", "i32", "i64"};
    char want[96], got[96];
    if (strncmp(what, "a->", 3) == 0) what += 3; /* the macros give the expression */
    REQUIRE(t, SHAPE, "%s: %s is missing", op, what);
    REQUIRE(t->rank >= 1 && t->rank <= 4, SHAPE, "%s: %s has rank %d", op, what, t->rank);
    REQUIRE(t->dtype == dtype, SHAPE, "%s: %s is %s, expected %s", op, what, dtypes[t->dtype],
            dtypes[dtype]);
    REQUIRE(same_shape(t, rank, dim), SHAPE, "%s: %s is %s, expected %s", op, what,
            shape_text(got, sizeof got, t->rank, t->dim), shape_text(want, sizeof want, rank, dim));
    REQUIRE(layout_fits(t, layout), SHAPE, "%s: %s %s has strides %s, %s", op, what,
            shape_text(want, sizeof want, t->rank, t->dim),
            shape_text(got, sizeof got, t->rank, t->stride),
            layout == OP_DENSE ? "which is not contiguous" : "which is no slice of channels");
    REQUIRE(t->data || be->is_measuring, SHAPE, "%s: %s has no data", op, what);
    return DDPM_OK;
}

ddpm_dtype op_activation(const ddpm_backend *be, const ddpm_tensor *first)
{
    return be->takes_bf16 && first && first->dtype == DDPM_BF16 ? DDPM_BF16 : DDPM_F32;
}

/* contracts.h - is a call what its op's contract in ops.h says? One function per op, for every
 * backend; profile.c asks before each call, so that no backend's op does. */
#ifndef BACKEND_CONTRACTS_H
#define BACKEND_CONTRACTS_H

#include "ops.h"

/* SHAPE, with both sides, unless the shapes, dtypes, strides, numbers and missing pointers of the
 * call are as the contract has them. Reads no memory of the device: what stands behind t, label,
 * rows, index or state stays the caller's duty, or the op's. */
#define X(op) ddpm_status expect_##op(const ddpm_backend *be, const struct op##_args *a);
OP_LIST(X)
#undef X

/* What the three passes of a convolution have in common besides tensors. */
struct conv_pads {
    int stride, top, left, bottom, right;
};
#define CONV_PADS(a)                                                                               \
    ((struct conv_pads){(a)->stride, (a)->pad_top, (a)->pad_left, (a)->pad_bottom, (a)->pad_right})

#endif

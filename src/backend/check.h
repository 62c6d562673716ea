/* check.h - is one tensor of a call what its op's contract says? The contract_*.c files are made of
 * these. */
#ifndef BACKEND_CHECK_H
#define BACKEND_CHECK_H

#include "backend_internal.h"
#include "fail.h"

/* How the strides of a tensor may look. */
enum op_layout {
    OP_DENSE,   /* contiguous */
    OP_VIEW,    /* a slice of channels: stride of the last dimension 1, the others at least the
                   extent they step over */
    OP_STRIDED, /* stride of the last dimension 1, the others free */
};

/* SHAPE unless t is there and has this dtype, rank, extents (-1: any) and layout; the message
 * begins "op: what", with a leading "a->" of `what` dropped. data may be NULL while measuring. */
ddpm_status op_expect(const ddpm_backend *be, const char *op, const char *what,
                      const ddpm_tensor *t, ddpm_dtype dtype, enum op_layout layout, int rank,
                      const int64_t dim[]);

/* The extents as arguments, the tensor's name from the expression. */
#define OP_EXPECT(be, op, t, dtype, layout, ...)                                                   \
    TRY(op_expect(be, op, #t, t, dtype, layout,                                                    \
                  (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                       \
                  (int64_t[]){__VA_ARGS__}))
#define OP_EXPECT_OR_NULL(be, op, t, dtype, layout, ...)                                           \
    do {                                                                                           \
        if (t) OP_EXPECT(be, op, t, dtype, layout, __VA_ARGS__);                                   \
    } while (0)
/* Contiguous, of any rank and extents. */
#define OP_EXPECT_ANY(be, op, t, dtype)                                                            \
    TRY(op_expect(be, op, #t, t, dtype, OP_DENSE, (t) ? (t)->rank : 1, (int64_t[]){-1, -1, -1, -1}))
/* Contiguous, with the extents of `like`, which has been checked. */
#define OP_EXPECT_LIKE(be, op, t, dtype, like)                                                     \
    TRY(op_expect(be, op, #t, t, dtype, OP_DENSE, (like)->rank, (like)->dim))

/* What the activations of a call are to be, by the first of them (which may be NULL): bf16 where it
 * is and the backend takes it, else f32. */
ddpm_dtype op_activation(const ddpm_backend *be, const ddpm_tensor *first);

#endif

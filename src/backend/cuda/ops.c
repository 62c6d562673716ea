/* ops.c - the CUDA table. An op is taken by a library (products.h), or it is: its scratch, its launch, its status. Its
 * arguments are checked (contracts.h). */
#include "cuda_backend.h"
#include "launch.h"

/* Waits after an op where DDPM_SYNC asks for it, so that a fault inside a kernel names the op. */
static ddpm_status op_done(struct cuda_backend *be, const char *op, cudaError_t e)
{
    if (!e && be->syncs_each_op) e = cudaStreamSynchronize(be->stream);
    return cuda_check(be, op, e);
}

#define X(op)                                                                                                        \
    static ddpm_status cuda_##op(ddpm_backend *base, const struct op##_args *a)                                      \
    {                                                                                                                \
        struct cuda_backend *be = cuda_of(base);                                                                     \
        void *scratch;                                                                                               \
        bool is_done;                                                                                                \
        TRY(products_try(be, OP_##op, a, &is_done));                                                                 \
        if (is_done) return DDPM_OK;                                                                                 \
        TRY(cuda_scratch(be, scratch_##op(a), &scratch));                                                            \
        if (base->is_measuring) return DDPM_OK;                                                                      \
        cuda_range_begin(#op);                                                                                       \
        const cudaError_t e = launch_##op(be->stream, a, scratch);                                                   \
        cuda_range_end();                                                                                            \
        return op_done(be, #op, e);                                                                                  \
    }
OP_LIST(X)
#undef X

const struct ops cuda_ops = {
#define X(op) .op = cuda_##op,
    OP_LIST(X)
#undef X
};

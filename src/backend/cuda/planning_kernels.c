/* planning_kernels.c - how many own kernels a call launches and how much scratch it wants, by their own launch code. */
#include "planning.h"

#include "cuda_backend.h"
#include "launch.h"
#include "launch_count.h"

/* Of a library's product: what is added behind it by kernels of ours. */
static void launch_left(const struct planning_call *c)
{
    switch (c->op) {
    case OP_conv2d:
        if (c->args.conv2d.bias || c->args.conv2d.emb || c->args.conv2d.residual)
            (void)launch_conv_epilogue(NULL, &c->args.conv2d);
        break;
    case OP_conv2d_bwd_filter:
        if (c->args.conv2d_bwd_filter.db || c->args.conv2d_bwd_filter.demb)
            (void)launch_conv_sums(NULL, &c->args.conv2d_bwd_filter, NULL);
        break;
    case OP_linear_bwd: {
        const struct linear_bwd_args *l = &c->args.linear_bwd;
        if (!l->db) break;
        ddpm_tensor rows = ddpm_tensor_4d(NULL, 1, 1, l->dy->dim[0], l->dy->dim[1]);
        rows.dtype = l->dy->dtype;
        (void)launch_conv_sums(NULL, &(struct conv2d_bwd_filter_args){.dy = &rows, .db = l->db}, NULL);
        break;
    }
    default:
        break;
    }
}

size_t planning_staging(size_t largest)
{
    return cuda_staging_bytes(largest);
}

void planning_own_kernels(const struct planning_call *c, struct planning_own *out)
{
    *out = (struct planning_own){.is_known = true};
    launch_count(&out->launches);
    switch (c->op) {
#define X(op)                                                                                                        \
    case OP_##op:                                                                                                    \
        out->scratch = scratch_##op(&c->args.op);                                                                    \
        (void)launch_##op(NULL, &c->args.op, NULL);                                                                  \
        break;
        OP_LIST(X)
#undef X
    default:
        break;
    }
    launch_count(&out->left);
    launch_left(c);
    launch_count(NULL);
}

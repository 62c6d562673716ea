/* conv.c - the three passes of a convolution: which way to go.
 *
 *   1x1 without padding      a product over pixels (conv_1x1.c)
 *   3x3 of stride 1          Winograd's F(4x4, 3x3) (conv_winograd.c)
 *   the rest                 oneDNN's direct convolution (conv_onednn.c); its filter gradient by patches (conv_patches.c) */
#include "conv.h"

#include "contracts.h"

/* x is dx, w dw and y dy where they are asked for. */
static struct conv shape_of(const ddpm_tensor *x, const ddpm_tensor *w, const ddpm_tensor *y, struct conv_pads p)
{
    const int64_t k = w->dim[0], size = w->dim[1], c = w->dim[3];
    return (struct conv){.n = x->dim[0], .h = x->dim[1], .w = x->dim[2], .c = c, .ho = y->dim[1], .wo = y->dim[2],
                         .k = k, .kernel = size, .stride = p.stride,
                         .pad_top = p.top, .pad_left = p.left, .pad_bottom = p.bottom, .pad_right = p.right,
                         .w_row = k == 1 ? size * size * c : w->stride[0]};
}

ddpm_status cpu_conv2d(ddpm_backend *be, const struct conv2d_args *a)
{
    const struct conv s = shape_of(a->x, a->w, a->y, CONV_PADS(a));
    if (conv_1x1_fits(&s)) return conv_1x1(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd(be, &s, a);
    return conv_onednn(be, &s, a);
}

ddpm_status cpu_conv2d_bwd_data(ddpm_backend *be, const struct conv2d_bwd_data_args *a)
{
    const struct conv s = shape_of(a->dx, a->w, a->dy, CONV_PADS(a));
    if (conv_1x1_fits(&s)) return conv_1x1_data(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd_data(be, &s, a);
    return conv_onednn_data(be, &s, a);
}

ddpm_status cpu_conv2d_bwd_filter(ddpm_backend *be, const struct conv2d_bwd_filter_args *a)
{
    const struct conv s = shape_of(a->x, a->dw, a->dy, CONV_PADS(a));
    if (conv_1x1_fits(&s)) return conv_1x1_filter(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd_filter(be, &s, a);
    return conv_patches_filter(be, &s, a);
}

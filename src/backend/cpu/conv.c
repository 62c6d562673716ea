/* conv.c - the three passes of a convolution: arguments checked, way chosen.
 *
 *   1x1 without padding      a product over pixels (conv_1x1.c)
 *   3x3 of stride 1          Winograd's F(4x4, 3x3) (conv_winograd.c)
 *   the rest                 oneDNN's direct convolution (conv_onednn.c); its filter gradient by patches (conv_patches.c) */
#include "conv.h"

struct pads {
    int stride, top, left, bottom, right;
};

static ddpm_status shape_of(const ddpm_backend *be, const char *op, const ddpm_tensor *x, const ddpm_tensor *w,
                            const ddpm_tensor *y, struct pads p, struct conv *out)
{
    CPU_EXPECT(be, op, x, CPU_VIEW, -1, -1, -1, -1);
    TRY(cpu_expect(be, op, "w", w, DDPM_F32, CPU_VIEW, 4, (int64_t[]){-1, -1, -1, x->dim[3]}));
    const int64_t k = w->dim[0], size = w->dim[1], c = w->dim[3], row = size * size * c;
    REQUIRE(size == w->dim[2] && (size == 1 || size == 3), SHAPE, "%s: kernel %lldx%lld, must be 1x1 or 3x3", op,
            (long long)size, (long long)w->dim[2]);
    REQUIRE(size == 1 || w->stride[0] == row || k == 1, SHAPE, "%s: a 3x3 kernel must be contiguous", op);
    REQUIRE(size == 1 || (w->stride[1] == size * c && w->stride[2] == c), SHAPE,
            "%s: a 3x3 kernel must be contiguous", op);
    REQUIRE(p.stride == 1 || p.stride == 2, SHAPE, "%s: stride %d, must be 1 or 2", op, p.stride);
    REQUIRE(p.top >= 0 && p.top <= 2 && p.left >= 0 && p.left <= 2 && p.bottom >= 0 && p.bottom <= 2 && p.right >= 0 &&
                p.right <= 2,
            SHAPE, "%s: pads %d,%d,%d,%d, must be 0 to 2", op, p.top, p.left, p.bottom, p.right);
    const int64_t h = x->dim[1] + p.top + p.bottom - size, width = x->dim[2] + p.left + p.right - size;
    REQUIRE(h >= 0 && width >= 0, SHAPE, "%s: a %lldx%lld image is smaller than the kernel", op,
            (long long)x->dim[1], (long long)x->dim[2]);
    *out = (struct conv){.n = x->dim[0], .h = x->dim[1], .w = x->dim[2], .c = c, .ho = h / p.stride + 1,
                         .wo = width / p.stride + 1, .k = k, .kernel = size, .stride = p.stride,
                         .pad_top = p.top, .pad_left = p.left, .pad_bottom = p.bottom, .pad_right = p.right,
                         .w_row = k == 1 ? row : w->stride[0]};
    REQUIRE(out->n <= INT32_MAX && out->h <= INT32_MAX && out->w <= INT32_MAX && c <= INT32_MAX && k <= INT32_MAX, SHAPE,
            "%s: an extent above 2^31", op);
    return cpu_expect(be, op, "y", y, DDPM_F32, CPU_DENSE, 4, (int64_t[]){out->n, out->ho, out->wo, k});
}

#define PADS(a) ((struct pads){(a)->stride, (a)->pad_top, (a)->pad_left, (a)->pad_bottom, (a)->pad_right})

ddpm_status cpu_conv2d(ddpm_backend *be, const struct conv2d_args *a)
{
    struct conv s;
    TRY(shape_of(be, "conv2d", a->x, a->w, a->y, PADS(a), &s));
    CPU_EXPECT_OR_NULL(be, "conv2d", a->bias, CPU_DENSE, s.k);
    CPU_EXPECT_OR_NULL(be, "conv2d", a->emb, CPU_VIEW, s.n, s.k);
    CPU_EXPECT_OR_NULL(be, "conv2d", a->residual, CPU_DENSE, s.n, s.ho, s.wo, s.k);
    if (conv_1x1_fits(&s)) return conv_1x1(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd(be, &s, a);
    return conv_onednn(be, &s, a);
}

ddpm_status cpu_conv2d_bwd_data(ddpm_backend *be, const struct conv2d_bwd_data_args *a)
{
    struct conv s;
    TRY(shape_of(be, "conv2d_bwd_data", a->dx, a->w, a->dy, PADS(a), &s));
    if (conv_1x1_fits(&s)) return conv_1x1_data(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd_data(be, &s, a);
    return conv_onednn_data(be, &s, a);
}

ddpm_status cpu_conv2d_bwd_filter(ddpm_backend *be, const struct conv2d_bwd_filter_args *a)
{
    struct conv s;
    TRY(shape_of(be, "conv2d_bwd_filter", a->x, a->dw, a->dy, PADS(a), &s));
    CPU_EXPECT_OR_NULL(be, "conv2d_bwd_filter", a->db, CPU_DENSE, s.k);
    CPU_EXPECT_OR_NULL(be, "conv2d_bwd_filter", a->demb, CPU_VIEW, s.n, s.k);
    if (conv_1x1_fits(&s)) return conv_1x1_filter(be, &s, a);
    if (conv_winograd_fits(&s)) return conv_winograd_filter(be, &s, a);
    return conv_patches_filter(be, &s, a);
}

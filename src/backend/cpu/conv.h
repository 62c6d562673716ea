/* conv.h - what the ways to compute a convolution share. conv.c chooses; conv_1x1.c, conv_winograd.c,
 * conv_onednn.c and conv_patches.c compute. Each pass of each way asks for scratch, returns while measuring, and computes all of its op. */
#ifndef CPU_CONV_H
#define CPU_CONV_H

#include "cpu_backend.h"

/* How weights may be packed (cpu_packed.form). */
enum conv_form {
    FORM_GEMM_FORWARD,
    FORM_GEMM_DATA,
    FORM_WINOGRAD_FORWARD,
    FORM_WINOGRAD_DATA,
    FORM_ONEDNN,
    FORM_ONEDNN_DATA
};

struct conv {
    int64_t n, h, w, c;   /* x */
    int64_t ho, wo, k;    /* y */
    int64_t kernel;       /* 1 or 3 */
    int64_t stride, pad_top, pad_left, pad_bottom, pad_right;
    int64_t w_row;        /* from one output channel's weights to the next's; kernel * kernel * c unless a view */
};

static inline const float *conv_f32(const ddpm_tensor *t)
{
    return t->data;
}

static inline int64_t conv_blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

static inline size_t conv_line(size_t bytes) /* rounded up to whole cache lines */
{
    return (bytes + CPU_ALIGN - 1) / CPU_ALIGN * CPU_ALIGN;
}

/* 1x1 without padding, any stride, any view. */
bool conv_1x1_fits(const struct conv *s);
ddpm_status conv_1x1(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a);
ddpm_status conv_1x1_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a);
ddpm_status conv_1x1_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a);

/* 3x3, stride 1, channels in multiples of 16, images of more than 4x4 pixels. */
bool conv_winograd_fits(const struct conv *s);
ddpm_status conv_winograd(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a);
ddpm_status conv_winograd_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a);
ddpm_status conv_winograd_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a);

/* Everything. */
ddpm_status conv_onednn(ddpm_backend *be, const struct conv *s, const struct conv2d_args *a);
ddpm_status conv_onednn_data(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_data_args *a);
ddpm_status conv_patches_filter(ddpm_backend *be, const struct conv *s, const struct conv2d_bwd_filter_args *a);

/* conv_sums.c: db[k] += and demb[n,k] = sums of dy over pixels; either may be NULL. sums: n * k floats of scratch. */
void conv_sums(ddpm_backend *be, const struct conv *s, const ddpm_tensor *dy, ddpm_tensor *db, ddpm_tensor *demb,
               float *sums);
/* out[0..k) = bias + emb[n], zero where both are missing. */
void conv_offsets(const struct conv *s, const ddpm_tensor *bias, const ddpm_tensor *emb, int64_t n, float *out);

#endif

/* ops.h - every op of a backend: one list, one args struct and one contract each.
 *
 * The list makes the table type, both backends' tables, the checks of a call's arguments
 * (contracts.h), the parity tests and the bench rows; a backend that lacks an op does not link.
 * Common to all:
 *
 *   layout    images [N,H,W,C], channels innermost (stride[3] = 1). Unless a line says "view", a
 *             tensor is contiguous. "view": a slice of channels of a wider tensor, i.e. strides of
 *             dims 0..2 may be larger.
 *   dtype     f32, unless a line says otherwise. Where the backend takes bf16 (the CPU does not),
 *             the activations of a call may be bf16 instead, all of one call alike: x, w, residual,
 *             y, dx, dy of conv2d and linear; x1, x2, y, dy, dx*, add* of groupnorm; q, k, v, o and
 *             their gradients; all of silu, add, upsample2, avgpool2; xt of q_sample; out and dout
 *             of diffusion_loss; out of reverse_step. Everything else stays f32: parameters but
 *             those w, gradients of parameters, emb, scale, shift and their gradients, embeddings,
 *             stats, lse, softmax, the loss, noise, samples (x and x0_hat of reverse_step, x of
 *             to_u8) and all that the optimiser touches.
 *   nullable  a pointer may be NULL only where "or NULL" is written.
 *   aliasing  none between an output and an input unless a line allows it.
 *   fails     SHAPE when extents disagree, with both sides; NOMEM for scratch; BACKEND for a
 *             library's fault. While the backend measures, data pointers may be NULL and nothing is
 *             written.
 *   order     enqueued on the backend's stream; the bits do not depend on the number of threads.
 *   "+="      accumulates into what is there (gradients of weights); otherwise outputs are
 *             overwritten.
 *   random    keyed by philox.h; `index` is a device array [N] of the images' numbers (position in
 *             the global batch, or sample number), so no result depends on how a batch is cut. */
#ifndef BACKEND_OPS_H
#define BACKEND_OPS_H

#include "ddpm/backend.h"

#define OP_LIST(X)                                                                                 \
    X(conv2d)                                                                                      \
    X(conv2d_bwd_data) X(conv2d_bwd_filter) X(linear) X(linear_bwd) X(groupnorm) X(groupnorm_bwd)  \
        X(attention) X(attention_bwd) X(softmax) X(softmax_bwd) X(silu) X(silu_bwd) X(upsample2)   \
            X(upsample2_bwd) X(avgpool2) X(avgpool2_bwd) X(time_embedding) X(embedding)            \
                X(embedding_bwd) X(add) X(gaussian) X(q_sample) X(diffusion_loss) X(reverse_step)  \
                    X(sum_squares) X(adamw) X(to_u8) X(open_step) X(close_step)  \
                        X(open_sample) X(cast) X(gather)

#define OPS_EMA_MAX 4

/* What changes from step to step. It lives in device memory, so that a captured graph can be
 * replayed; open_step writes it in training, the host or open_sample in sampling. */
struct step_state {
    uint64_t seed;
    uint32_t step;      /* training step, or sampler step counted down: S .. 1 */
    float lr;           /* after warm-up and decay */
    float bias1, bias2; /* 1 - beta1^k, 1 - beta2^k, k the number of updates with this one */
    float ema_decay[OPS_EMA_MAX];
};

/* y = x * w (+ bias[k]) (+ emb[n,k]) (+ residual); correlation, zero padding.
 *   x         [N,H,W,C] view
 *   w         [K,kh,kw,C], kh = kw in {1, 3}; for kh = 1 w may be a view of some of the input
 *             channels of a wider 1x1 kernel (stride[0] > C)
 *   bias      [K] or NULL
 *   emb       [N,K] view or NULL
 *   residual  [N,Ho,Wo,K] or NULL; may be y itself
 *   stride    1 or 2; pads 0..2; Ho = (H + pad_top + pad_bottom - kh) / stride + 1
 *   y         [N,Ho,Wo,K]
 *   sum, square  [N,K] both or NULL: room for the sums over pixels of y, as it is stored, and of its
 *             squares. A backend whose product gives them on the way writes them and sets
 *             *has_sums, on the host, at the call (in a recording: for every launch of it); else,
 *             and while measuring, it leaves all three alone
 * No extent is above 2^31 - 1. */
struct conv2d_args {
    const ddpm_tensor *x, *w, *bias, *emb, *residual;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    ddpm_tensor *y, *sum, *square;
    bool *has_sums;
};
/* A GroupNorm with SiLU and nothing behind it, as groupnorm_args have it: silu(u), u of x. */
struct norm_ref {
    const ddpm_tensor *x; /* x1, the only source; NULL: there is no norm */
    const ddpm_tensor *gamma, *beta, *scale, *shift, *stats;
    int groups;
};
/* dx = the transpose of conv2d in x applied to dy; with accumulate, dx +=.
 *   dx        [N,H,W,C] view
 *   norm      the norm whose y the convolution read; then dx is contiguous, and not accumulated
 *   sum, product  [N,C] given with norm, else NULL: room for the sums over pixels of g, as it is
 *             stored, and of g * norm.x, where g = dx * silu'(u). A backend whose product gives g on
 *             the way writes it in dx's place, the sums, and sets *has_gradient, on the host, at the
 *             call (in a recording: for every launch of it): groupnorm_bwd takes it on without silu.
 *             Else, and while measuring, dx is what it is without norm, and the three are left alone */
struct conv2d_bwd_data_args {
    const ddpm_tensor *dy, *w;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    bool accumulate;
    ddpm_tensor *dx;
    struct norm_ref norm;
    ddpm_tensor *sum, *product;
    bool *has_gradient;
};
/* dw += ; db[k] += sum over n, pixels of dy (or NULL); demb[n,k] = sum over pixels of dy (view, or
 * NULL). x view; dw as conv2d's w, view for kh = 1. Sums over images in a fixed order. */
struct conv2d_bwd_filter_args {
    const ddpm_tensor *x, *dy;
    int stride, pad_top, pad_left, pad_bottom, pad_right;
    ddpm_tensor *dw, *db, *demb;
};

/* y[m,o] = sum_i x[m,i] w[o,i] + bias[o].
 *   x         [M,I] view
 *   w         [O,I]
 *   bias      [O] or NULL
 *   y         [M,O] view */
struct linear_args {
    const ddpm_tensor *x, *w, *bias;
    ddpm_tensor *y;
};
/* dx = dy w (with accumulate +=), dw += dy^T x, db += column sums of dy. x, dy, dx views; dx or
 * NULL, and then w is not read; db or NULL. */
struct linear_bwd_args {
    const ddpm_tensor *x, *w, *dy;
    bool accumulate;
    ddpm_tensor *dx, *dw, *db;
};

/* What GroupNorm's result becomes on its way to y: itself; four times each pixel, by nearest
 * neighbour; the mean of each 2x2 pixels. */
enum norm_resample { NORM_SAME, NORM_UP2, NORM_MEAN2 };

/* GroupNorm over the channels of x1 and, behind them, x2 (a skip connection that is never copied
 * together):
 *   u = (x - mean) * rstd * gamma + beta      per image and group, rstd = 1/sqrt(var + eps), biased
 *                                             var
 *   u = u * (1 + scale[n,c]) + shift[n,c]     where given (FiLM; guided-diffusion's scale-shift)
 *   u = u * sigmoid(u)                        with silu
 *   u = keep(n, element) ? u / (1 - p) : 0    dropout p > 0: philox DROPOUT, step_state.step,
 *                                             index = layer << 32 | index[n],
 *                                             element = (h*W + w)*C + c, keep when uniform >= p;
 *                                             with p > 0, state and index are needed
 *
 *   x1        [N,H,W,C1]
 *   x2        [N,H,W,C2] or NULL
 *   gamma, beta   [C1+C2]
 *   scale, shift  [N,C1+C2] views or NULL
 *   groups    divides C1+C2; a group may straddle x1 and x2
 *   stats     [N,groups,2] written: mean, rstd
 *   y         [N,H,W,C1+C2]; may be x1 when x2 is NULL
 *             with NORM_UP2 [N,2H,2W,C1+C2], with NORM_MEAN2 [N,H/2,W/2,C1+C2], H and W even: as
 *             upsample2 or avgpool2 of the former, rounded once; then not x1, and no dropout
 *   sum1, square1  [N,C1] both or NULL: sums of x1 over pixels and of its squares, by whoever made
 *             x1; sum2, square2 [N,C2] the same of x2, both or NULL. Where they are there for every
 *             source a backend may take the statistics from them
 * Statistics by a two-pass or shifted sum: as good for a mean of 1000 and a deviation of 1 as for a
 * mean of 0. From given sums: var = sum x^2 / n - mean^2, whose error is 1e-7 (mean^2 + var). */
struct groupnorm_args {
    const ddpm_tensor *x1, *x2, *gamma, *beta, *scale, *shift;
    const ddpm_tensor *sum1, *square1, *sum2, *square2;
    int groups;
    float eps;
    bool silu;
    enum norm_resample resample;
    float dropout;
    uint32_t layer;
    const struct step_state *state; /* device */
    const uint64_t *index;          /* device [N] */
    ddpm_tensor *stats, *y;
};
/* From dy, of y's extents: dx1 = ... (+ add1), dx2 = ... (+ add2); dgamma, dbeta +=. The normalised
 * values are computed again from x and stats.
 *   dy_sum, dy_x  [N,C1] both or NULL: sums over pixels of dy and of dy * x1, by whoever made dy; not
 *             with x2, silu, dropout or a resampled y. A backend may take its own sums over dy from
 *             them: that of dy (x1 - mean) with an error of 1e-7 (|dy_x| + |mean dy_sum|)
 *   add1      [N,H,W,C1] or NULL; may be dx1
 *   add2      [N,H,W,C2] or NULL; may be dx2
 *   dx1, dx2  as x1, x2; dx1 may be dy when x2 is NULL and nothing is resampled
 *   dscale, dshift  [N,C1+C2] views, written where scale and shift are given */
struct groupnorm_bwd_args {
    const ddpm_tensor *dy, *x1, *x2, *gamma, *beta, *scale, *shift, *stats;
    int groups;
    bool silu;
    enum norm_resample resample;
    float dropout;
    uint32_t layer;
    const struct step_state *state;
    const uint64_t *index;
    const ddpm_tensor *dy_sum, *dy_x;
    const ddpm_tensor *add1, *add2;
    ddpm_tensor *dx1, *dx2, *dgamma, *dbeta, *dscale, *dshift;
};

/* o = softmax(scale * q k^T) v for each image and head.
 *   q, k, v, o  [N,T,heads,D] views: stride[3] = 1, other strides free (slices of a joint
 *               projection, either order)
 *   lse         [N,heads,T] written or NULL: log of the sum of exponentials, for backward */
struct attention_args {
    const ddpm_tensor *q, *k, *v;
    float scale;
    ddpm_tensor *o, *lse;
};
/* dq, dk, dv (views, overwritten) from do, the saved o and lse; the probabilities are computed
 * again. */
struct attention_bwd_args {
    const ddpm_tensor *q, *k, *v, *o, *lse, *d_o;
    float scale;
    ddpm_tensor *dq, *dk, *dv;
};

/* Rows [M,C]: y = softmax(x), or log softmax with `log`. Backward from y: dx may be dy. */
struct softmax_args {
    const ddpm_tensor *x;
    bool log;
    ddpm_tensor *y;
};
struct softmax_bwd_args {
    const ddpm_tensor *y, *dy;
    bool log;
    ddpm_tensor *dx;
};

/* y = x * sigmoid(x); dx = dy * silu'(x), with accumulate dx +=. Any shape; y may be x, dx may be
 * dy. */
struct silu_args {
    const ddpm_tensor *x;
    ddpm_tensor *y;
};
struct silu_bwd_args {
    const ddpm_tensor *x, *dy;
    bool accumulate;
    ddpm_tensor *dx;
};

/* Nearest neighbour: y[n,h,w,c] = x[n,h/2,w/2,c]; backward sums the four.
 *   x         [N,H,W,C]
 *   y         [N,2H,2W,C] */
struct upsample2_args {
    const ddpm_tensor *x;
    ddpm_tensor *y;
};
struct upsample2_bwd_args {
    const ddpm_tensor *dy;
    bool accumulate;
    ddpm_tensor *dx;
};
/* Mean of 2x2; H and W even. x [N,H,W,C], y [N,H/2,W/2,C]. */
struct avgpool2_args {
    const ddpm_tensor *x;
    ddpm_tensor *y;
};
struct avgpool2_bwd_args {
    const ddpm_tensor *dy;
    bool accumulate;
    ddpm_tensor *dx;
};

/* y[n,:] of width D: f_i = exp(-ln(10000) i / (D/2 - shift)) in float, i < D/2; sin_cos:
 * [sin(t f) | cos(t f)], else [cos | sin]; an odd D ends with a zero. t f32 device [N] (may be
 * fractional). D/2 is above shift.             [DDPM 2020, section 3.3; Vaswani 2017] */
struct time_embedding_args {
    const ddpm_tensor *t; /* [N] */
    bool sin_cos;
    float shift;
    ddpm_tensor *y; /* [N,D] */
};

/* y[n,:] += table[label[n],:]. label i32 device [N], 0 <= label < V (the caller's duty). Backward:
 * dtable[label[n],:] += dy[n,:] in the order of n. table [V,D], y [N,D]. */
struct embedding_args {
    const ddpm_tensor *table;
    const int32_t *label;
    ddpm_tensor *y;
};
struct embedding_bwd_args {
    const ddpm_tensor *dy;
    const int32_t *label;
    ddpm_tensor *dtable;
};

/* y = a + b; y may be either. */
struct add_args {
    const ddpm_tensor *a, *b;
    ddpm_tensor *y;
};

/* x[n,...] ~ N(0, I), keyed (state->seed, purpose, use_step ? state->step : 0, index[n], element).
 * Four normals a Philox call by Box-Muller, formulas.h. */
struct gaussian_args {
    const struct step_state *state;
    const uint64_t *index;
    uint32_t purpose;
    bool use_step;
    ddpm_tensor *x;
};

/* x_t = sqrt(abar[t]) x0 + sqrt(1 - abar[t]) eps         [DDPM 2020, eq. 4]
 *   x0     f32 in [-1,1], or u8 taken as u/127.5 - 1;  [N,H,W,C]
 *   flip   u8 device [N] or NULL: 1 mirrors that image left to right (both dtypes)
 *   t      i32 device [N], 1 <= t <= T (the caller's duty)
 *   coef   f32 device [T+1,2]: rows { sqrt(abar), sqrt(1 - abar) }
 *   eps    f32 [N,H,W,C]; or NULL: drawn as by gaussian (purpose, use_step, state, index)
 *   xt     [N,H,W,C] written */
struct q_sample_args {
    const ddpm_tensor *x0, *eps;
    const uint8_t *flip;
    const int32_t *t;
    const float *coef;
    const struct step_state *state;
    const uint64_t *index;
    uint32_t purpose;
    bool use_step;
    ddpm_tensor *xt;
};

/* Value and gradient in one pass. target = tcoef[t][0] x0 + tcoef[t][1] eps: (0,1) eps, (1,0) x0,
 * (-sqrt(1-abar), sqrt(abar)) v. x0, flip, eps, t and the key as in q_sample.
 *                                              [DDPM 2020, eq. 14; Salimans & Ho 2022]
 *   out    [N,H,W,C] the network's answer
 *   tcoef  f32 device [T+1,2]
 *   weight f32 device [N] or NULL: of each image
 *   loss   f32 [N] = weight * mean over H,W,C of (out - target)^2, summed in a fixed order
 *   dout   [N,H,W,C] = scale * weight * 2 (out - target) / (H*W*C); may be out; or NULL */
struct diffusion_loss_args {
    const ddpm_tensor *x0, *eps, *out;
    const uint8_t *flip;
    const int32_t *t;
    const float *tcoef;
    const float *weight;
    const struct step_state *state;
    const uint64_t *index;
    uint32_t purpose;
    bool use_step;
    float scale;
    ddpm_tensor *loss, *dout;
    /* f32 [4,2] or NULL: += { sum of loss, count } of the images whose t lies in each quarter of 1 .. T, quarter
     * (t - 1) * 4 / T, in the order of n. T is read with it alone. */
    ddpm_tensor *quartiles;
    int32_t T;
};

/* One step back, for every sampler that is linear in (x0_hat, x_t, out, z):
 *   x0_hat = clamp(x0_x * x_t + x0_out * out, lo, hi)
 *   x'     = to_x0 * x0_hat + to_x * x_t + to_out * out + sigma * z
 *
 *   rows   f32 device [N,8] { x0_x, x0_out, lo, hi, to_x0, to_x, to_out, sigma }, one per image
 *   noise  z [N,H,W,C]; or NULL: drawn as by gaussian with PHILOX_REVERSE, use_step; not drawn
 *          where sigma == 0
 *   x      [N,H,W,C] x_t, and x' in place
 *   x0_hat [N,H,W,C] written, or NULL
 *   bad    i32 device [N] or NULL: where an element of image n of out is not finite, and bad[n] is
 *          0, bad[n] = state->step; with bad, state is needed
 * Ancestral [DDPM 2020, eq. 6, 7, algorithm 2] and DDIM [Song 2021, eq. 12] differ in the rows
 * alone (sampler.h). */
struct reverse_step_args {
    const ddpm_tensor *out, *noise;
    const float *rows;
    const struct step_state *state;
    const uint64_t *index;
    ddpm_tensor *x, *x0_hat;
    int32_t *bad;
};

/* *sum (f64, device) = sum of x[i]^2: float64 chunks of 65536 elements added in order. x [n]. */
struct sum_squares_args {
    const ddpm_tensor *x;
    double *sum;
};

/* Clip by global norm, AdamW, every EMA, and g = 0, in one pass.
 *                                              [Kingma & Ba 2015; Loshchilov & Hutter 2019]
 *   c   = clip_norm > 0 ? min(1, clip_norm / (sqrt(*sum) + 1e-6)) : 1
 *                                              (as torch.nn.utils.clip_grad_norm_)
 *   g'  = c g
 *   m   = m + (1-beta1)(g' - m);  v = beta2 v + (1-beta2) g'^2
 *   p   = p (1 - lr wd) - lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)
 *   ema_k += (1 - decay_k)(p - ema_k)
 * Where *sum is not finite nothing but g = 0 happens: the step is skipped. p, g, m, v, ema[k] f32
 * [n]. */
struct adamw_args {
    ddpm_tensor *p, *g, *m, *v;
    ddpm_tensor *ema[OPS_EMA_MAX]; /* the first n_ema */
    int n_ema;
    float beta1, beta2, eps, weight_decay, clip_norm;
    const double *sum; /* device; of sum_squares */
    const struct step_state *state;
    ddpm_tensor *half; /* bf16 [n] or NULL: p rounded to nearest even, written in the same pass; also where the step is skipped */
};

/* y = u8(clamp((x + 1) * 127.5, 0, 255)), truncated, as guided-diffusion. Same shape. */
struct to_u8_args {
    const ddpm_tensor *x;
    ddpm_tensor *y;
};

/* ---- a training step without the host (equations: step_rates.h) ---- */

/* How the numbers of a step follow from its counters. Constant over a run, passed by value. */
struct step_rates {
    double lr, beta1, beta2, ema[OPS_EMA_MAX]; /* the first n_ema */
    int64_t warmup, steps;                     /* of the learning rate's schedule */
    uint64_t seed;
    int32_t decay; /* enum ddpm_lr_decay */
    int32_t n_ema;
    int32_t is_ema_warm;  /* the averages' rates begin lower */
    int32_t is_key_fixed; /* times and noise are those of step 0 every time */
};

/* Counters of a run, in device memory. */
struct step_counters {
    int64_t step;           /* steps done, skipped ones included */
    int64_t updates;        /* steps that changed the weights */
    int64_t skipped_in_row; /* up to now */
};

/* What a step leaves for the host to read later. */
struct step_figures {
    struct step_counters after; /* after.step: this step's number, from 1 */
    double loss;                /* mean over the batch */
    double quartile_sum[4];     /* of the losses of the images whose t lies in each quarter of 1 .. T */
    int64_t quartile_count[4];
    double sum; /* of squares of the gradient, before clipping */
    float lr;
    int32_t is_skipped;
};

/* The beginning of the step after counters->step steps: *state from the rates; for each image of
 * the batch its time, keyed (seed, PHILOX_T, state->step, index[n]):
 *   t      i32 device [N] written, uniform in 1..T
 *   time   f32 [N] written: model_time[t], what the network is told
 *   model_time   f32 device [T+1]
 *   index, counters, state   device */
struct open_step_args {
    struct step_rates rates;
    const struct step_counters *counters;
    const float *model_time;
    const uint64_t *index;
    int32_t T; /* at least 1 */
    struct step_state *state;
    int32_t *t;
    ddpm_tensor *time;
};

/* The end of the step whose losses and gradients are there, before adamw: its figures to
 * ring[counters->step % slots], and the counters moved on. A step whose sum or mean loss is not
 * finite is skipped: a finite *sum becomes NaN, so that adamw skips too, and updates stays.
 *   loss   f32 [N], added up in double in the order of n; t i32 device [N], quarter (t-1) * 4 / T
 *   sum    f64 device, of sum_squares over the gradient; ring device [slots] */
struct close_step_args {
    const ddpm_tensor *loss;
    const int32_t *t;
    int32_t T, slots; /* at least 1 */
    const struct step_state *state;
    double *sum;
    struct step_counters *counters;
    struct step_figures *ring;
};

/* The beginning of a sampler's step: state->step, at most S+1 (the caller's duty), counts down by one to
 * s, not below 1, and each image gets the numbers of that step.
 *   table  f32 device [S+1,8], row s for reverse_step; times f32 device [S+1]
 *   rows   f32 device [N,8] written; time f32 [N] written */
struct open_sample_args {
    const float *table, *times;
    struct step_state *state;
    float *rows;
    ddpm_tensor *time;
};

/* y = x in the other type, f32 to bf16 (to nearest, ties to even; NaN stays one) or bf16 to f32. Any
 * shape; on every backend. */
struct cast_args {
    const ddpm_tensor *x;
    ddpm_tensor *y;
};

/* A batch out of a data set that lies on the device: image n of y is image number[n] of x.
 *   x      u8 [M,H,W,C]; y u8 [N,H,W,C] written
 *   number i32 device [N], 0 <= number < M (the caller's duty)
 *   label  i32 device [N] written = labels[number[n]], labels i32 device [M]; or both NULL */
struct gather_args {
    const ddpm_tensor *x;
    const int32_t *number, *labels;
    ddpm_tensor *y;
    int32_t *label;
};

struct ops {
#define X(op) ddpm_status (*op)(ddpm_backend * be, const struct op##_args *a);
    OP_LIST(X)
#undef X
};

/* The backend's table; a call reads TRY(ops->conv2d(be, &(struct conv2d_args){ ... })). */
const struct ops *backend_ops(const ddpm_backend *be);

#endif

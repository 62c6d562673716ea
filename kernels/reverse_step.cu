/* reverse_step.cu - one step of the reverse process for every image of a batch, and images to bytes.
 *
 * Contracts  ops.h, reverse_step and to_u8.   Equations  formulas.h; the CPU's numbers, bit for bit (out in f32).
 * Mapping    as q_sample: a thread takes one quad of x and of out, a block a run of one image. What a sampler is (its
 *            x0 from eps, x0 or v, its mean, its noise, its clamp) stands in the image's eight coefficients, read once
 *            by a block: images of one batch may stand at different steps, and a new linear sampler needs no new
 *            kernel. Noise is drawn only where sigma != 0, the same in a whole block.
 * Cost       bytes moved an element, all of them necessary: x 8, out 2 or 4, x0_hat 4 where asked for, noise 4 where
 *            given. Drawing the noise takes about as long (noising.cu), where sigma asks for it. to_u8: 4 + 1.
 * Rejected   x_t in bf16 beside the f32 one: the network's first op reads f32 samples of 3 channels at little cost. */
#include "noise.cuh"

static constexpr int ROW = 8; /* coefficients of an image */
static constexpr int U8_THREADS = 256;

/* ---- reverse_step ---- */

struct reverse_call {
    image_cut cut;
    noise_source noise;
    const float *rows; /* [N, ROW] */
    float *x, *x0_hat; /* x0_hat may be NULL */
    int32_t *bad;      /* [N] or NULL */
};

__device__ __forceinline__ formula_reverse_row row_of(const float *rows, int64_t n)
{
    const float *r = rows + ROW * n;
    const formula_reverse_row row = {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]};
    return row;
}

/* x += sigma z. Without noise and without a key nothing can be drawn, which the host could not see, for sigma lies
 * here: the sample becomes NaN rather than one of another process. */
template <int VEC>
__device__ __forceinline__ void add_noise(const noise_source &noise, const quad_place &q, float sigma, float x[QUAD])
{
    float z[QUAD] = {NAN, NAN, NAN, NAN};
    if (noise.given || (noise.state && noise.index)) noise_quad<VEC>(noise, q, z);
#pragma unroll
    for (int i = 0; i < QUAD; i++)
        x[i] = fmaf(sigma, z[i], x[i]);
}

/* Threads of one image may find it together: they write the same number. */
__device__ __forceinline__ void mark_bad(const reverse_call &a, const quad_place &q, const float answer[QUAD])
{
    float zero = 0; /* infinity times 0 is NaN, as is NaN times 0 */
#pragma unroll
    for (int i = 0; i < QUAD; i++)
        zero += answer[i] * 0.0f;
    if (zero != 0.0f && a.bad[q.n] == 0) a.bad[q.n] = (int32_t)a.noise.state->step;
}

template <int VEC, class T>
__global__ void __launch_bounds__(NOISE_THREADS) reverse_step_kernel(reverse_call a, const T *out)
{
    for (int64_t task = blockIdx.x; task < a.cut.images * a.cut.runs; task += gridDim.x) {
        const quad_place q = quad_of(a.cut, task);
        if (q.left <= 0) continue;
        const formula_reverse_row row = row_of(a.rows, q.n);
        float x[QUAD], answer[QUAD], x0_hat[QUAD];
        load_quad<VEC>(out + q.element, q.left, answer);
        if (a.bad) mark_bad(a, q, answer);
        load_quad<VEC>(a.x + q.element, q.left, x);
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            x0_hat[i] = formula_reverse_x0(row, x[i], answer[i]);
            x[i] = formula_reverse_mean(row, x0_hat[i], x[i], answer[i]);
        }
        if (row.sigma != 0.0f) add_noise<VEC>(a.noise, q, row.sigma, x);
        store_quad<VEC>(a.x + q.element, q.left, x);
        if (a.x0_hat) store_quad<VEC>(a.x0_hat + q.element, q.left, x0_hat);
    }
}

/* ---- to_u8 ---- */

template <int VEC>
__global__ void __launch_bounds__(U8_THREADS) to_u8_kernel(int64_t n, const float *x, uint8_t *y)
{
    const int64_t stride = (int64_t)gridDim.x * U8_THREADS * VEC;
    for (int64_t at = ((int64_t)blockIdx.x * U8_THREADS + threadIdx.x) * VEC; at < n; at += stride) {
        float v[VEC];
        pack<uint8_t, VEC> bytes;
        load_floats<VEC>(x + at, v);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            bytes.v[i] = formula_to_u8(v[i]);
        *reinterpret_cast<pack<uint8_t, VEC> *>(y + at) = bytes;
    }
}

/* ---- launches ---- */

extern "C" size_t scratch_reverse_step(const struct reverse_step_args *)
{
    return 0;
}

template <class T> static cudaError_t run_reverse(cudaStream_t stream, const reverse_call &c, const T *out)
{
    const bool fit = quads_fit(c.x, c.cut.size) && quads_fit(c.x0_hat, c.cut.size) && quads_fit(out, c.cut.size) &&
                     quads_fit(c.noise.given, c.cut.size);
    WITH_QUADS(fit, VEC,
               return launch_kernel(reverse_step_kernel<VEC, T>, grid_of(c.cut), dim3(NOISE_THREADS), 0, stream, c,
                                    out));
}

extern "C" cudaError_t launch_reverse_step(cudaStream_t stream, const struct reverse_step_args *a, void *)
{
    reverse_call c;
    c.cut = cut_images(a->x);
    c.noise = noise_of(a->noise, a->state, a->index, PHILOX_REVERSE, true);
    c.rows = a->rows;
    c.x = static_cast<float *>(a->x->data);
    c.x0_hat = a->x0_hat ? static_cast<float *>(a->x0_hat->data) : NULL;
    c.bad = a->bad;
    WITH_TYPE(a->out->dtype, T, return run_reverse(stream, c, static_cast<const T *>(a->out->data)));
}

extern "C" size_t scratch_to_u8(const struct to_u8_args *)
{
    return 0;
}

extern "C" cudaError_t launch_to_u8(cudaStream_t stream, const struct to_u8_args *a, void *)
{
    const int64_t n = ddpm_tensor_count(a->x);
    const float *x = static_cast<const float *>(a->x->data);
    uint8_t *y = static_cast<uint8_t *>(a->y->data);
    WITH_QUADS(quads_fit(x, n) && quads_fit(y, n), VEC,
               return launch_kernel(to_u8_kernel<VEC>, dim3(grid_for(n, U8_THREADS * VEC)), dim3(U8_THREADS), 0, stream,
                                    n, x, y));
}

/* noising.cu - standard normals by key, and the forward process q(x_t | x_0) with its noise drawn inside.
 *
 * Contracts  ops.h, gaussian and q_sample.   Equations  formulas.h; the CPU's numbers, bit for bit.
 * Mapping    a thread takes one quad (noise.cuh), a block 256 of them of one image, tasks = images x runs along x.
 * Cost       bytes moved an element, all of them necessary: gaussian 4; q_sample 1 or 4 for x0 and 2 or 4 for x_t (and
 *            4 for eps where it is given). Ten rounds of Philox and two Box-Mullers are about 75 instructions an
 *            element: beside 8 bytes or less arithmetic is the limit.
 * Rejected   Noise kept for the loss: 4 bytes an element written and read again, and 4 held for the length of a step;
 *            it is redrawn instead. libm's log, sin and cos, or the fast ones: other bits than the CPU's. Eight bf16 a
 *            thread: no fewer transactions, for a warp's accesses are whole lines already, and twice the registers.
 *            Mirrored rows through shared memory: their bytes come from the same lines, one access each. */
#include "noise.cuh"

/* ---- gaussian ---- */

template <int VEC>
__global__ void __launch_bounds__(NOISE_THREADS) gaussian_kernel(image_cut cut, noise_source noise, float *x)
{
    for (int64_t task = blockIdx.x; task < cut.images * cut.runs; task += gridDim.x) {
        const quad_place q = quad_of(cut, task);
        if (q.left <= 0) continue;
        float z[QUAD];
        noise_quad<VEC>(noise, q, z);
        store_quad<VEC>(x + q.element, q.left, z);
    }
}

/* ---- q_sample ---- */

struct q_sample_call {
    image_cut cut;
    image_source images;
    noise_source noise;
    const int32_t *t;
    const float *coef; /* [T+1,2] */
};

template <int VEC, class P, class T>
__global__ void __launch_bounds__(NOISE_THREADS) q_sample_kernel(q_sample_call a, T *xt)
{
    for (int64_t task = blockIdx.x; task < a.cut.images * a.cut.runs; task += gridDim.x) {
        const quad_place q = quad_of(a.cut, task);
        if (q.left <= 0) continue;
        const float *c = a.coef + 2 * (int64_t)a.t[q.n];
        const float c0 = c[0], c1 = c[1];
        float x0[QUAD], eps[QUAD];
        pixel_quad<VEC, P>(a.images, q, x0);
        noise_quad<VEC>(a.noise, q, eps);
#pragma unroll
        for (int i = 0; i < QUAD; i++)
            x0[i] = formula_mix(c0, c1, x0[i], eps[i]);
        store_quad<VEC>(xt + q.element, q.left, x0);
    }
}

/* ---- launches ---- */

extern "C" size_t scratch_gaussian(const struct gaussian_args *)
{
    return 0;
}

extern "C" cudaError_t launch_gaussian(cudaStream_t stream, const struct gaussian_args *a, void *)
{
    const image_cut cut = cut_images(a->x);
    const noise_source noise = noise_of(NULL, a->state, a->index, a->purpose, a->use_step);
    float *x = static_cast<float *>(a->x->data);
    WITH_QUADS(quads_fit(x, cut.size), VEC,
               return launch_kernel(gaussian_kernel<VEC>, grid_of(cut), dim3(NOISE_THREADS), 0, stream, cut, noise, x));
}

extern "C" size_t scratch_q_sample(const struct q_sample_args *)
{
    return 0;
}

template <class P, class T>
static cudaError_t run_q_sample(cudaStream_t stream, const q_sample_call &c, bool fit, T *xt)
{
    WITH_QUADS(fit && quads_fit(xt, c.cut.size), VEC,
               return launch_kernel(q_sample_kernel<VEC, P, T>, grid_of(c.cut), dim3(NOISE_THREADS), 0, stream, c, xt));
}

extern "C" cudaError_t launch_q_sample(cudaStream_t stream, const struct q_sample_args *a, void *)
{
    q_sample_call c;
    c.cut = cut_images(a->x0);
    c.images = images_of(a->x0, a->flip);
    c.noise = noise_of(a->eps, a->state, a->index, a->purpose, a->use_step);
    c.t = a->t;
    c.coef = a->coef;
    const bool fit = sources_fit(a->x0, c.noise, c.cut.size);
    WITH_TYPE(a->xt->dtype, T,
              WITH_PIXELS(a->x0->dtype, P, return run_q_sample<P>(stream, c, fit, static_cast<T *>(a->xt->data))));
}

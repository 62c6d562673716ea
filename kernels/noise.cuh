/* noise.cuh - what the method's own kernels share: images cut into quads, a quad's noise, and its pixels.
 *
 * A quad is four consecutive elements of one image, the first a multiple of 4: the elements of one Philox block. A
 * thread takes one quad, draws its noise by one call, and moves it by one access of 16, 8 or 4 bytes where images are
 * whole quads and pointers are aligned (VEC 4), element by element elsewhere (VEC 1): the numbers are the same. A block
 * takes a run of one image, so that t, coefficients and the key of the noise are the same in a block. */
#ifndef KERNELS_NOISE_CUH
#define KERNELS_NOISE_CUH

#include "common.cuh"

static constexpr int QUAD = 4;
static constexpr int NOISE_THREADS = 256; /* three runs for an image of 32 x 32 x 3, one for 28 x 28 x 1 */
static constexpr int RUN = NOISE_THREADS * QUAD;

/* ---- images, runs, quads ---- */

struct image_cut {
    int64_t images, size, runs; /* size: elements of an image; runs of one */
};

static inline image_cut cut_images(const ddpm_tensor *x)
{
    image_cut c;
    c.images = x->dim[0];
    c.size = 1;
    for (int i = 1; i < x->rank; i++)
        c.size *= x->dim[i];
    c.runs = ceil_div(c.size, RUN);
    return c;
}

/* Where a thread stands in task `task` of images * runs. */
struct quad_place {
    int64_t n, at;   /* image; first element within it */
    int64_t element; /* the same, counted from the tensor's begin */
    int64_t left;    /* elements of the image from there on; <= 0: nothing to do */
};

__device__ __forceinline__ quad_place quad_of(const image_cut &c, int64_t task)
{
    quad_place q;
    q.n = task / c.runs;
    q.at = (task - q.n * c.runs) * RUN + (int64_t)threadIdx.x * QUAD;
    q.element = q.n * c.size + q.at;
    q.left = c.size - q.at;
    return q;
}

/* Do whole quads of T at p, image after image, lie on multiples of their size? NULL does. */
template <class T> static inline bool quads_fit(const T *p, int64_t size)
{
    return size % QUAD == 0 && is_aligned(p, QUAD * sizeof(T));
}

/* With VEC 1 only the first `left` elements are there; x is 0 beyond. */
template <int VEC, class T> __device__ __forceinline__ void load_quad(const T *p, int64_t left, float x[QUAD])
{
    if constexpr (VEC == QUAD) {
        load_floats<QUAD>(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++)
            x[i] = i < left ? to_float(p[i]) : 0.0f;
    }
}

template <int VEC, class T> __device__ __forceinline__ void store_quad(T *p, int64_t left, const float x[QUAD])
{
    if constexpr (VEC == QUAD) {
        store_floats<QUAD>(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++)
            if (i < left) p[i] = from_float<T>(x[i]);
    }
}

/* ---- noise ---- */

/* Given as a tensor, or drawn by key (ops.h, gaussian). */
struct noise_source {
    const float *given; /* or NULL */
    const step_state *state;
    const uint64_t *index;
    uint32_t purpose;
    bool use_step;
};

static inline noise_source noise_of(const ddpm_tensor *given, const step_state *state, const uint64_t *index,
                                    uint32_t purpose, bool use_step)
{
    noise_source s;
    s.given = given ? static_cast<const float *>(given->data) : NULL;
    s.state = state;
    s.index = index;
    s.purpose = purpose;
    s.use_step = use_step;
    return s;
}

template <int VEC> __device__ __forceinline__ void noise_quad(const noise_source &s, const quad_place &q, float z[QUAD])
{
    if (s.given) {
        load_quad<VEC>(s.given + q.element, q.left, z);
        return;
    }
    const uint32_t step = s.use_step ? s.state->step : 0;
    const formula_normal4 drawn =
        formula_normals(philox_draw(s.state->seed, s.purpose, step, s.index[q.n], (uint32_t)(q.at / QUAD)));
#pragma unroll
    for (int i = 0; i < QUAD; i++)
        z[i] = drawn.v[i];
}

/* ---- pixels ---- */

/* x0 of a call, f32 or u8, and which of its images are mirrored left to right. */
struct image_source {
    const void *x0;
    const uint8_t *flip; /* or NULL */
    int64_t width, channels;
};

static inline image_source images_of(const ddpm_tensor *x0, const uint8_t *flip)
{
    image_source s;
    s.x0 = x0->data;
    s.flip = flip;
    s.width = x0->dim[2];
    s.channels = x0->dim[3];
    return s;
}

__device__ __forceinline__ float pixel_value(float x)
{
    return x;
}

__device__ __forceinline__ float pixel_value(uint8_t u)
{
    return formula_from_u8(u);
}

/* Element (h, w, c) comes from (h, W-1-w, c): two divisions for the first element of a quad, steps for the others. */
template <class P>
__device__ __forceinline__ void mirrored_quad(const image_source &s, const P *image, const quad_place &q, P x[QUAD])
{
    const int64_t pixel = q.at / s.channels, row = pixel / s.width;
    int64_t c = q.at - pixel * s.channels, w = pixel - row * s.width;
    const P *begin = image + row * s.width * s.channels; /* of the row */
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        x[i] = i < q.left ? begin[(s.width - 1 - w) * s.channels + c] : P(0);
        if (++c < s.channels) continue;
        c = 0;
        if (++w < s.width) continue;
        w = 0;
        begin += s.width * s.channels;
    }
}

/* P is the type of x0's elements. */
template <int VEC, class P>
__device__ __forceinline__ void pixel_quad(const image_source &s, const quad_place &q, float x0[QUAD])
{
    const P *at = static_cast<const P *>(s.x0) + q.element;
    pack<P, QUAD> x;
    if (s.flip && s.flip[q.n]) {
        mirrored_quad(s, at - q.at, q, x.v);
    } else if (VEC == QUAD) {
        x = *reinterpret_cast<const pack<P, QUAD> *>(at);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++)
            x.v[i] = i < q.left ? at[i] : P(0);
    }
#pragma unroll
    for (int i = 0; i < QUAD; i++)
        x0[i] = pixel_value(x.v[i]);
}

/* Do x0, whatever its dtype, and the noise lie so that quads can be read whole? */
static inline bool sources_fit(const ddpm_tensor *x0, const noise_source &noise, int64_t size)
{
    const size_t unit = x0->dtype == DDPM_U8 ? sizeof(uint8_t) : sizeof(float);
    return is_aligned(x0->data, QUAD * unit) && quads_fit(noise.given, size);
}

/* ---- launches ---- */

/* One block a task: a grid's x takes 2^31 - 1 blocks, beyond which kernels stride. */
static inline dim3 grid_of(const image_cut &c)
{
    return dim3(grid_for(c.images * c.runs, 1, INT32_MAX));
}

/* Runs `statement` with the constant VEC as QUAD or 1. */
#define WITH_QUADS(fit, VEC, ...)                                                                                      \
    do {                                                                                                               \
        if (fit) {                                                                                                     \
            constexpr int VEC = QUAD;                                                                                  \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            constexpr int VEC = 1;                                                                                     \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* Runs `statement` with P as the C++ type of x0's elements. */
#define WITH_PIXELS(x0_dtype, P, ...)                                                                                  \
    do {                                                                                                               \
        if ((x0_dtype) == DDPM_U8) {                                                                                   \
            typedef uint8_t P;                                                                                         \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef float P;                                                                                           \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

#endif

/* diffusion.c - the method's own ops: q_sample, diffusion_loss, reverse_step.
 *
 * Each is one pass over images of a few channels; what they cost is the noise, drawn again wherever it is needed
 * instead of being kept: 2 ns an element against 4 bytes of memory for the length of a step. Work is cut into runs of an
 * image, a run into pieces that stay in the first-level cache: load x0 (u8 or f32, mirrored or not), draw eps, combine. The
 * loss of an image is the sum in double of its runs in order, each run summed over fixed lanes. */
#include "cpu.h"
#include "formulas.h"
#include "noise.h"
#include "vector.h"

#define RUN 8192 /* elements of a task */

/* x0 and eps of a call, which q_sample and diffusion_loss name alike */
struct source {
    const ddpm_tensor *x0, *eps;
    const uint8_t *flip;
    const struct step_state *state;
    const uint64_t *index;
    uint32_t purpose;
    bool use_step;
    int64_t size, row, channels, runs; /* elements of an image, of a row of pixels, of a pixel; runs of an image */
};

CPU_CLONES static void from_u8_row(int64_t n, const uint8_t *restrict u, float *restrict x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = formula_from_u8(u[i]);
}

/* Mirrored: element (h, w, c) comes from (h, W-1-w, c). */
static void gather_mirrored(const struct source *s, const unsigned char *image, size_t unit, int64_t first, int64_t count,
                            unsigned char *out)
{
    for (int64_t i = 0; i < count;) {
        const int64_t at = first + i, in_row = at % s->row, c = in_row % s->channels;
        const int64_t pixel = s->row - s->channels - (in_row - c);
        const int64_t n = cpu_min(s->channels - c, count - i);
        memcpy(out + (size_t)i * unit, image + (size_t)(at - in_row + pixel + c) * unit, (size_t)n * unit);
        i += n;
    }
}

/* Elements first .. first+count-1 of image n's x0; count <= NOISE_PIECE. */
static const float *load_x0(const struct source *s, int64_t n, int64_t first, int64_t count, float room[NOISE_PIECE])
{
    const bool is_u8 = s->x0->dtype == DDPM_U8, mirror = s->flip && s->flip[n];
    const size_t unit = is_u8 ? sizeof(uint8_t) : sizeof(float);
    const unsigned char *image = (const unsigned char *)s->x0->data + (size_t)(n * s->size) * unit;
    if (!is_u8 && !mirror) return (const float *)(const void *)image + first;
    if (!is_u8) {
        gather_mirrored(s, image, unit, first, count, (unsigned char *)room);
        return room;
    }
    uint8_t bytes[NOISE_PIECE];
    if (mirror) gather_mirrored(s, image, unit, first, count, bytes);
    from_u8_row(count, mirror ? bytes : image + first, room);
    return room;
}

static const float *load_eps(const struct source *s, int64_t n, int64_t first, int64_t count, float room[NOISE_ROOM])
{
    if (s->eps) return (const float *)s->eps->data + n * s->size + first;
    const struct noise_key key = noise_key_of(s->state, s->index, n, s->purpose, s->use_step);
    return noise_normals(&key, first, count, room);
}

static void cut_source(struct source *s)
{
    s->channels = s->x0->dim[3];
    s->row = s->x0->dim[2] * s->channels;
    s->size = s->x0->dim[1] * s->row;
    s->runs = cpu_ceil_div(s->size, RUN);
}

/* The part of either op's arguments that a source is. */
#define SOURCE_OF(a)                                                                                 \
    {                                                                                                \
        .x0 = (a)->x0, .eps = (a)->eps, .flip = (a)->flip, .state = (a)->state, .index = (a)->index, \
        .purpose = (a)->purpose, .use_step = (a)->use_step                                           \
    }

/* ---- q_sample ---- */

struct q_sample {
    struct source source;
    const int32_t *t;
    const float *coef;
    float *xt;
};

CPU_CLONES static void mix_row(int64_t n, float c0, float c1, const float *restrict x0, const float *restrict eps,
                               float *restrict xt)
{
    for (int64_t i = 0; i < n; i++)
        xt[i] = formula_mix(c0, c1, x0[i], eps[i]);
}

static void q_sample_task(void *context, int64_t task, int thread)
{
    const struct q_sample *q = context;
    const struct source *s = &q->source;
    const int64_t n = task / s->runs, begin = task % s->runs * RUN, end = cpu_min(s->size, begin + RUN);
    const float *c = q->coef + 2 * (int64_t)q->t[n];
    float x0_room[NOISE_PIECE], eps_room[NOISE_ROOM];
    (void)thread;
    for (int64_t at = begin; at < end; at += NOISE_PIECE) {
        const int64_t count = cpu_min(NOISE_PIECE, end - at);
        mix_row(count, c[0], c[1], load_x0(s, n, at, count, x0_room), load_eps(s, n, at, count, eps_room),
                q->xt + n * s->size + at);
    }
}

ddpm_status cpu_q_sample(ddpm_backend *be, const struct q_sample_args *a)
{
    struct q_sample q = {.source = SOURCE_OF(a), .t = a->t, .coef = a->coef, .xt = a->xt->data};
    cut_source(&q.source);
    if (!cpu_is_measuring(be)) cpu_run(be, a->x0->dim[0] * q.source.runs, q_sample_task, &q);
    return DDPM_OK;
}

/* ---- diffusion_loss ---- */

struct diffusion_loss {
    struct source source;
    const struct diffusion_loss_args *args;
    double *part; /* [N, runs] sums of squares */
};

/* Sum of squared differences; with dout, its gradient too, which may overwrite out. */
CPU_CLONES static double loss_row(int64_t n, float c0, float c1, float g, const float *x0, const float *eps,
                                  const float *out, float *dout)
{
    float d[NOISE_PIECE];
    for (int64_t i = 0; i < n; i++)
        d[i] = out[i] - formula_mix(c0, c1, x0[i], eps[i]);
    if (dout)
        for (int64_t i = 0; i < n; i++)
            dout[i] = formula_loss_grad(g, d[i]);
    double lane[CPU_LANES] = {0};
    int64_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int l = 0; l < CPU_LANES; l++)
            lane[l] = fma((double)d[i + l], (double)d[i + l], lane[l]);
    for (int l = 0; i + l < n; l++)
        lane[l] = fma((double)d[i + l], (double)d[i + l], lane[l]);
    return cpu_lanes_sum64(lane);
}

static void loss_task(void *context, int64_t task, int thread)
{
    const struct diffusion_loss *l = context;
    const struct diffusion_loss_args *a = l->args;
    const struct source *s = &l->source;
    const int64_t n = task / s->runs, begin = task % s->runs * RUN, end = cpu_min(s->size, begin + RUN);
    const float *c = a->tcoef + 2 * (int64_t)a->t[n];
    const float weight = a->weight ? a->weight[n] : 1.0f;
    const float g = (float)(2.0 * (double)a->scale * (double)weight / (double)s->size);
    const float *out = (const float *)a->out->data + n * s->size;
    float *dout = a->dout ? (float *)a->dout->data + n * s->size : NULL;
    float x0_room[NOISE_PIECE], eps_room[NOISE_ROOM];
    double sum = 0;
    (void)thread;
    for (int64_t at = begin; at < end; at += NOISE_PIECE) {
        const int64_t count = cpu_min(NOISE_PIECE, end - at);
        sum += loss_row(count, c[0], c[1], g, load_x0(s, n, at, count, x0_room),
                        load_eps(s, n, at, count, eps_room), out + at, dout ? dout + at : NULL);
    }
    l->part[task] = sum;
}

/* The images of each quarter in double, in the order of n, then added once. */
static void add_quartiles(const struct diffusion_loss_args *a)
{
    const float *loss = a->loss->data;
    float *quartiles = a->quartiles->data;
    double sum[4][2] = {{0}};
    for (int64_t n = 0; n < a->x0->dim[0]; n++) {
        const int64_t quarter = ((int64_t)a->t[n] - 1) * 4 / a->T;
        sum[quarter][0] += (double)loss[n];
        sum[quarter][1] += 1;
    }
    for (int i = 0; i < 8; i++)
        quartiles[i] = (float)((double)quartiles[i] + sum[i / 2][i % 2]);
}

ddpm_status cpu_diffusion_loss(ddpm_backend *be, const struct diffusion_loss_args *a)
{
    struct diffusion_loss l = {.source = SOURCE_OF(a), .args = a};
    cut_source(&l.source);
    const int64_t images = a->x0->dim[0], runs = l.source.runs;
    void *part;
    TRY(cpu_scratch(be, (size_t)(images * runs) * sizeof(double), &part));
    if (cpu_is_measuring(be)) return DDPM_OK;
    l.part = part;
    cpu_run(be, images * runs, loss_task, &l);
    for (int64_t n = 0; n < images; n++) {
        double sum = 0;
        for (int64_t r = 0; r < runs; r++)
            sum += l.part[n * runs + r];
        const double weight = a->weight ? (double)a->weight[n] : 1.0;
        ((float *)a->loss->data)[n] = (float)(weight * sum / (double)l.source.size);
    }
    if (a->quartiles) add_quartiles(a);
    return DDPM_OK;
}

/* ---- reverse_step ---- */

struct reverse_step {
    const struct reverse_step_args *args;
    int64_t size, runs;
};

/* z may be NULL (no noise), x0_hat too */
CPU_CLONES static void reverse_row(int64_t n, const float *row, const float *restrict out, const float *restrict z,
                                   float *restrict x, float *restrict x0_hat)
{
    const formula_reverse_row c = {row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]};
    if (x0_hat)
        for (int64_t i = 0; i < n; i++)
            x0_hat[i] = formula_reverse_x0(c, x[i], out[i]);
    for (int64_t i = 0; i < n; i++)
        x[i] = formula_reverse_mean(c, formula_reverse_x0(c, x[i], out[i]), x[i], out[i]);
    if (z)
        for (int64_t i = 0; i < n; i++)
            x[i] = fmaf(c.sigma, z[i], x[i]);
}

/* A NaN or an infinity in it? */
CPU_CLONES static bool has_bad(int64_t n, const float *out)
{
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = formula_bits(out[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest >= 0x7f800000u;
}

/* Pieces of one image may find it at the same time: the same number. */
static void mark_bad(const struct reverse_step_args *a, int64_t n)
{
    if (__atomic_load_n(a->bad + n, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(a->bad + n, (int32_t)a->state->step, __ATOMIC_RELAXED);
}

static void reverse_task(void *context, int64_t task, int thread)
{
    const struct reverse_step *r = context;
    const struct reverse_step_args *a = r->args;
    const int64_t n = task / r->runs, begin = task % r->runs * RUN, end = cpu_min(r->size, begin + RUN);
    const float *row = a->rows + 8 * n;
    const bool noisy = row[7] != 0.0f;
    float room[NOISE_ROOM];
    (void)thread;
    for (int64_t at = begin; at < end; at += NOISE_PIECE) {
        const int64_t count = cpu_min(NOISE_PIECE, end - at), i = n * r->size + at;
        const float *z = NULL;
        if (noisy && a->noise) {
            z = (const float *)a->noise->data + i;
        } else if (noisy) {
            const struct noise_key key = noise_key_of(a->state, a->index, n, PHILOX_REVERSE, true);
            z = noise_normals(&key, at, count, room);
        }
        if (a->bad && has_bad(count, (const float *)a->out->data + i)) mark_bad(a, n);
        reverse_row(count, row, (const float *)a->out->data + i, z, (float *)a->x->data + i,
                    a->x0_hat ? (float *)a->x0_hat->data + i : NULL);
    }
}

ddpm_status cpu_reverse_step(ddpm_backend *be, const struct reverse_step_args *a)
{
    if (cpu_is_measuring(be)) return DDPM_OK;
    for (int64_t n = 0; n < a->x->dim[0]; n++)
        REQUIRE(a->rows[8 * n + 7] == 0.0f || a->noise || (a->state && a->index), SHAPE,
                "reverse_step: image %lld has sigma %g: noise, or state and index, are needed", (long long)n,
                (double)a->rows[8 * n + 7]);
    const int64_t size = ddpm_tensor_count(a->x) / a->x->dim[0];
    struct reverse_step r = {.args = a, .size = size, .runs = cpu_ceil_div(size, RUN)};
    cpu_run(be, a->x->dim[0] * r.runs, reverse_task, &r);
    return DDPM_OK;
}

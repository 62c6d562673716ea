/* test_diffusion_kernels.c - noising.cu, mse_loss.cu and reverse_step.cu where the tests of ops do not go: bf16 network
 * tensors, images that are no whole quads or lie unaligned, sizes around a block's run, and the CPU's numbers to the
 * bit. */
#include "op_support.h"

#include "formulas.h"

static const struct step_state step = {.seed = 0x123456789abcdef0u, .step = 6};
enum { STEPS = 10 };

/* Whole quads or not, below, at and above one and two runs of 1024 (a block), one pixel, one channel, more images than
 * an image has runs. */
static const int64_t shapes[][4] = {{1, 1, 1, 1}, {2, 1, 1, 4}, {3, 1, 341, 3}, {2, 1, 256, 4}, {2, 5, 205, 1},
                                    {2, 1, 683, 3}, {1, 2, 512, 2}, {3, 9, 76, 3}, {70, 3, 2, 2}, {2, 32, 32, 3}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static uint16_t bf16_of(float x)
{
    const uint32_t bits = formula_bits(x);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float of_bf16(uint16_t x)
{
    return formula_float((uint32_t)x << 16);
}

/* What the ops of one test read. */
struct call {
    int64_t n, h, w, c, size, all;
    float *x0, *eps, *answer, *weight, *coef;
    uint8_t *x0_u8, *flip;
    uint16_t *answer_half;
    int32_t *t;
    uint64_t *index;
};

static struct call call_of(const int64_t shape[4])
{
    struct call k = {.n = shape[0], .h = shape[1], .w = shape[2], .c = shape[3]};
    k.size = k.h * k.w * k.c;
    k.all = k.n * k.size;
    k.x0 = uniforms(k.all, 1, -1, 1);
    k.eps = uniforms(k.all, 2, -2, 2);
    k.answer = uniforms(k.all, 3, -2, 2);
    k.weight = uniforms(k.n, 4, 0.5f, 2);
    k.coef = uniforms(2 * (STEPS + 1), 5, 0.1f, 0.9f);
    k.x0_u8 = take((size_t)k.all);
    k.flip = take((size_t)k.n);
    k.answer_half = take((size_t)k.all * sizeof(uint16_t));
    k.t = take((size_t)k.n * sizeof *k.t);
    k.index = indices(k.n, ((uint64_t)1 << 40) + 5);
    for (int64_t i = 0; i < k.all; i++) {
        k.x0_u8[i] = (uint8_t)(i * 37 + 11);
        k.answer_half[i] = bf16_of(k.answer[i]);
    }
    for (int64_t i = 0; i < k.n; i++) {
        k.flip[i] = i % 2 == 0;
        k.t[i] = (int32_t)(1 + 7 * i % STEPS);
    }
    return k;
}

static ddpm_tensor tensor_of(const struct call *k, const void *data, ddpm_dtype dtype)
{
    ddpm_tensor t = ddpm_tensor_4d((void *)data, k->n, k->h, k->w, k->c);
    t.dtype = dtype;
    return t;
}

static ddpm_backend *cpu, *cuda;

static int create_backends(void **state)
{
    (void)state;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    assert_ok(ddpm_backend_create("cuda", 1, &cuda));
    return 0;
}

static int free_backends(void **state)
{
    (void)state;
    ddpm_backend_free(cpu);
    ddpm_backend_free(cuda);
    return 0;
}

static void *away_from_16(size_t bytes, size_t by)
{
    return (char *)take(bytes + 16) + by;
}

/* ---- q_sample and gaussian ---- */

static void q_sample(ddpm_backend *be, const struct call *k, bool u8, bool given, ddpm_dtype dtype, void *out)
{
    const ddpm_tensor x0 = tensor_of(k, u8 ? (void *)k->x0_u8 : (void *)k->x0, u8 ? DDPM_U8 : DDPM_F32);
    const ddpm_tensor eps = tensor_of(k, k->eps, DDPM_F32);
    ddpm_tensor xt = tensor_of(k, out, dtype);
    assert_ok(backend_ops(be)->q_sample(be, &(struct q_sample_args){.x0 = &x0,
                                                                    .eps = given ? &eps : NULL,
                                                                    .flip = k->flip,
                                                                    .t = k->t,
                                                                    .coef = k->coef,
                                                                    .state = &step,
                                                                    .index = k->index,
                                                                    .purpose = PHILOX_EPS,
                                                                    .use_step = true,
                                                                    .xt = &xt}));
    assert_ok(ddpm_backend_sync(be));
}

/* The CPU's bits in f32, those rounded in bf16; from aligned and from odd addresses; nothing behind the last element.
 * */
static void test_q_sample(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++)
        for (int variant = 0; variant < 4; variant++) {
            const bool u8 = variant & 1, given = variant & 2;
            const struct call k = call_of(shapes[s]);
            float *want = zeros(k.all), *whole = zeros(k.all + 1);
            float *odd = away_from_16((size_t)k.all * sizeof(float), sizeof(float));
            uint16_t *half = away_from_16((size_t)(k.all + 1) * sizeof(uint16_t), variant % 2 ? 8 : 2);
            whole[k.all] = 42;
            half[k.all] = 42;
            q_sample(cpu, &k, u8, given, DDPM_F32, want);
            q_sample(cuda, &k, u8, given, DDPM_F32, whole);
            q_sample(cuda, &k, u8, given, DDPM_F32, odd);
            q_sample(cuda, &k, u8, given, DDPM_BF16, half);
            assert_bits(whole, want, k.all);
            assert_bits(odd, want, k.all);
            for (int64_t i = 0; i < k.all; i++)
                assert_int_equal(half[i], bf16_of(want[i]));
            assert_true(whole[k.all] == 42 && half[k.all] == 42);
        }
}

static void gaussian(ddpm_backend *be, const struct call *k, float *out)
{
    ddpm_tensor x = tensor_of(k, out, DDPM_F32);
    assert_ok(backend_ops(be)->gaussian(
        be, &(struct gaussian_args){.state = &step, .index = k->index, .purpose = PHILOX_PRIOR, .x = &x}));
    assert_ok(ddpm_backend_sync(be));
}

static void test_gaussian(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        const struct call k = call_of(shapes[s]);
        float *want = zeros(k.all), *whole = zeros(k.all);
        float *odd = away_from_16((size_t)k.all * sizeof(float), 2 * sizeof(float));
        gaussian(cpu, &k, want);
        gaussian(cuda, &k, whole);
        gaussian(cuda, &k, odd);
        assert_bits(whole, want, k.all);
        assert_bits(odd, want, k.all);
    }
}

/* ---- diffusion_loss ---- */

struct losses {
    float *loss, *quartiles;
    void *dout; /* of the dtype of out */
};

static void loss_of(ddpm_backend *be, const struct call *k, bool u8, const void *answer, ddpm_dtype dtype,
                    const struct losses *r)
{
    const ddpm_tensor x0 = tensor_of(k, u8 ? (void *)k->x0_u8 : (void *)k->x0, u8 ? DDPM_U8 : DDPM_F32);
    const ddpm_tensor out = tensor_of(k, answer, dtype);
    ddpm_tensor dout = tensor_of(k, r->dout, dtype), loss = ddpm_tensor_1d(r->loss, k->n);
    ddpm_tensor quartiles = ddpm_tensor_2d(r->quartiles, 4, 2);
    assert_ok(backend_ops(be)->diffusion_loss(be, &(struct diffusion_loss_args){.x0 = &x0,
                                                                                .out = &out,
                                                                                .flip = k->flip,
                                                                                .t = k->t,
                                                                                .tcoef = k->coef,
                                                                                .weight = k->weight,
                                                                                .state = &step,
                                                                                .index = k->index,
                                                                                .purpose = PHILOX_EPS,
                                                                                .use_step = true,
                                                                                .scale = 0.125f,
                                                                                .loss = &loss,
                                                                                .dout = r->dout ? &dout : NULL,
                                                                                .quartiles = &quartiles,
                                                                                .T = STEPS}));
    assert_ok(ddpm_backend_sync(be));
}

static struct losses losses_for(const struct call *k, void *dout)
{
    return (struct losses){.loss = zeros(k->n), .quartiles = zeros(8), .dout = dout};
}

/* Each value within `relative` of its own reference, and as finite: sums of squares have no cancellation. */
static void assert_relative(const float *got, const float *want, int64_t n, double relative)
{
    for (int64_t i = 0; i < n; i++)
        assert_near((double)got[i], (double)want[i], relative * fabs((double)want[i]));
}

/* Against the CPU: dout the same bits in f32, those rounded in bf16 (its answer is then the bf16 one, taken as f32);
 * loss to 7e-7, ten roundings to nearest in the trees of one block and one of the result. */
static void test_loss(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++)
        for (int u8 = 0; u8 < 2; u8++) {
            const struct call k = call_of(shapes[s]);
            float *rounded = zeros(k.all), *odd_out = away_from_16((size_t)k.all * sizeof(float), sizeof(float));
            for (int64_t i = 0; i < k.all; i++)
                rounded[i] = of_bf16(k.answer_half[i]);
            memcpy(odd_out, k.answer, (size_t)k.all * sizeof(float));
            const struct losses want = losses_for(&k, zeros(k.all)), whole = losses_for(&k, zeros(k.all));
            const struct losses odd = losses_for(&k, odd_out), half = losses_for(&k, k.answer_half);
            const struct losses want_half = losses_for(&k, zeros(k.all)), value = losses_for(&k, NULL);
            loss_of(cpu, &k, u8, k.answer, DDPM_F32, &want);
            loss_of(cuda, &k, u8, k.answer, DDPM_F32, &whole);
            loss_of(cuda, &k, u8, k.answer, DDPM_F32, &value);
            loss_of(cuda, &k, u8, odd_out, DDPM_F32, &odd); /* in place */
            loss_of(cpu, &k, u8, rounded, DDPM_F32, &want_half);
            loss_of(cuda, &k, u8, k.answer_half, DDPM_BF16, &half); /* in place */
            assert_bits((float *)whole.dout, (float *)want.dout, k.all);
            assert_bits((float *)odd.dout, (float *)want.dout, k.all);
            for (int64_t i = 0; i < k.all; i++)
                assert_int_equal(((uint16_t *)half.dout)[i], bf16_of(((float *)want_half.dout)[i]));
            assert_relative(whole.loss, want.loss, k.n, 7e-7);
            assert_relative(half.loss, want_half.loss, k.n, 7e-7);
            assert_bits(value.loss, whole.loss, k.n);
            assert_bits(odd.loss, whole.loss, k.n); /* quads are the same, however they are read */
            assert_relative(whole.quartiles, want.quartiles, 8, 1e-6);
        }
}

/* One answer that is not finite spoils its own image and quarter, and no other. */
static void test_loss_not_finite(void **state)
{
    (void)state;
    const struct call k = call_of((const int64_t[]){4, 8, 16, 3});
    for (int i = 0; i < 4; i++)
        k.t[i] = 1 + 3 * i; /* one in each quarter */
    k.answer[2 * k.size + 77] = NAN;
    const struct losses r = losses_for(&k, zeros(k.all));
    loss_of(cuda, &k, true, k.answer, DDPM_F32, &r);
    for (int i = 0; i < 4; i++)
        assert_true(isnan(r.loss[i]) == (i == 2) && isnan(r.quartiles[2 * i]) == (i == 2) &&
                    r.quartiles[2 * i + 1] == 1);
    const float *dout = r.dout;
    for (int64_t i = 0; i < k.all; i++)
        assert_true(isnan(dout[i]) == (i == 2 * k.size + 77));
}

/* ---- reverse_step ---- */

struct reverse {
    float *x, *x0_hat;
};

static struct reverse reverse(ddpm_backend *be, const struct call *k, const float *rows, const float *noise,
                              const void *answer, ddpm_dtype dtype, size_t away)
{
    struct reverse r = {away_from_16((size_t)k->all * sizeof(float), away),
                        away_from_16((size_t)k->all * sizeof(float), 0)};
    memcpy(r.x, k->x0, (size_t)k->all * sizeof(float));
    const ddpm_tensor out = tensor_of(k, answer, dtype), z = tensor_of(k, noise, DDPM_F32);
    ddpm_tensor x = tensor_of(k, r.x, DDPM_F32), x0_hat = tensor_of(k, r.x0_hat, DDPM_F32);
    assert_ok(backend_ops(be)->reverse_step(be, &(struct reverse_step_args){.out = &out,
                                                                            .noise = noise ? &z : NULL,
                                                                            .rows = rows,
                                                                            .state = &step,
                                                                            .index = k->index,
                                                                            .x = &x,
                                                                            .x0_hat = &x0_hat}));
    assert_ok(ddpm_backend_sync(be));
    return r;
}

/* The CPU's bits: drawn and given noise, every third image without any, f32 and bf16 answers, aligned or not. */
static void test_reverse(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++)
        for (int given = 0; given < 2; given++) {
            const struct call k = call_of(shapes[s]);
            float *rows = uniforms(8 * k.n, 6, -1, 1), *rounded = zeros(k.all);
            for (int64_t i = 0; i < k.n; i++) {
                rows[8 * i + 2] = i ? -0.5f : -INFINITY;
                rows[8 * i + 3] = i ? 0.5f : INFINITY;
                if (i % 3 == 2) rows[8 * i + 7] = 0;
            }
            for (int64_t i = 0; i < k.all; i++)
                rounded[i] = of_bf16(k.answer_half[i]);
            const float *noise = given ? k.eps : NULL;
            const struct reverse want = reverse(cpu, &k, rows, noise, k.answer, DDPM_F32, 0);
            const struct reverse whole = reverse(cuda, &k, rows, noise, k.answer, DDPM_F32, 0);
            const struct reverse odd = reverse(cuda, &k, rows, noise, k.answer, DDPM_F32, 4);
            const struct reverse want_half = reverse(cpu, &k, rows, noise, rounded, DDPM_F32, 0);
            const struct reverse half = reverse(cuda, &k, rows, noise, k.answer_half, DDPM_BF16, 0);
            assert_bits(whole.x, want.x, k.all);
            assert_bits(whole.x0_hat, want.x0_hat, k.all);
            assert_bits(odd.x, want.x, k.all);
            assert_bits(odd.x0_hat, want.x0_hat, k.all);
            assert_bits(half.x, want_half.x, k.all);
            assert_bits(half.x0_hat, want_half.x0_hat, k.all);
        }
}

/* Without noise and key, which the device alone could refuse: NaN where sigma asks for noise, the mean elsewhere. */
static void test_reverse_without_key(void **state)
{
    (void)state;
    struct call k = call_of((const int64_t[]){2, 3, 5, 3});
    const float rows[16] = {0, 0, -1, 1, 0, 1, 0, 0.5f, 0, 0, -1, 1, 0, 1, 0, 0};
    k.index = NULL;
    const struct reverse r = reverse(cuda, &k, rows, NULL, k.answer, DDPM_F32, 0);
    for (int64_t i = 0; i < k.size; i++)
        assert_true(isnan(r.x[i]));
    assert_bits(r.x + k.size, k.x0 + k.size, k.size);
}

/* ---- to_u8 ---- */

static void test_to_u8(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 3, 4, 1020, 1023, 1024, 1025, 5000};
    const float special[] = {NAN, INFINITY, -INFINITY, -1, 1, 1.1f, -1.1f, 0};
    for (int s = 0; s < 8; s++)
        for (int odd = 0; odd < 2; odd++) {
            const int64_t n = sizes[s];
            float *x = uniforms(n, 1, -1.2f, 1.2f);
            for (int64_t i = 0; i < 8 && i < n; i++)
                x[n - 1 - i] = special[i];
            uint8_t *bytes = away_from_16((size_t)n + 1, (size_t)odd);
            bytes[n] = 42;
            const ddpm_tensor tx = ddpm_tensor_1d(x, n);
            ddpm_tensor y = ddpm_tensor_1d(bytes, n);
            y.dtype = DDPM_U8;
            assert_ok(backend_ops(cuda)->to_u8(cuda, &(struct to_u8_args){.x = &tx, .y = &y}));
            assert_ok(ddpm_backend_sync(cuda));
            for (int64_t i = 0; i < n; i++)
                assert_int_equal(bytes[i], formula_to_u8(x[i]));
            assert_int_equal(bytes[n], 42);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_q_sample), OP_TEST(test_gaussian),
                                       OP_TEST(test_loss),     OP_TEST(test_loss_not_finite),
                                       OP_TEST(test_reverse),  OP_TEST(test_reverse_without_key),
                                       OP_TEST(test_to_u8)};
    return cmocka_run_group_tests(tests, create_backends, free_backends);
}

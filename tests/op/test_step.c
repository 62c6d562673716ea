/* test_step.c - what lets a step run without the host: its numbers from its counters, its times, its figures, which steps are
 * skipped; a sampler's table; copies in another type; the batch out of a data set. */
#include "op_support.h"

#include "step_rates.h"

enum { T = 50, SLOTS = 4 };

struct step {
    int64_t n;
    struct step_counters *counters;
    struct step_state *state;
    struct step_figures *ring;
    uint64_t *index;
    int32_t *t;
    float *time, *model_time, *loss;
    double *sum;
};

static struct step make(int64_t n)
{
    struct step s = {.n = n,
                     .counters = take(sizeof *s.counters),
                     .state = take(sizeof *s.state),
                     .ring = take(SLOTS * sizeof *s.ring),
                     .index = indices(n, 3),
                     .t = take((size_t)n * sizeof *s.t),
                     .time = zeros(n),
                     .model_time = uniforms(T + 1, 5, 0, 1000),
                     .loss = uniforms(n, 6, 0, 2),
                     .sum = take(sizeof *s.sum)};
    return s;
}

static const struct step_rates rates = {.lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .ema = {0.9999, 0.5}, .n_ema = 2,
                                        .warmup = 10, .steps = 1000, .seed = 77, .decay = DDPM_DECAY_COSINE,
                                        .is_ema_warm = true};

static ddpm_status open_with(ddpm_backend *be, const struct step *s, struct step_rates r)
{
    ddpm_tensor time = ddpm_tensor_1d(s->time, s->n);
    return backend_ops(be)->open_step(be, &(struct open_step_args){.rates = r,
                                                                   .counters = s->counters,
                                                                   .model_time = s->model_time,
                                                                   .index = s->index,
                                                                   .T = T,
                                                                   .state = s->state,
                                                                   .t = s->t,
                                                                   .time = &time});
}

static ddpm_status close_with(ddpm_backend *be, const struct step *s)
{
    const ddpm_tensor loss = ddpm_tensor_1d(s->loss, s->n);
    return backend_ops(be)->close_step(be, &(struct close_step_args){.loss = &loss,
                                                                     .t = s->t,
                                                                     .T = T,
                                                                     .slots = SLOTS,
                                                                     .state = s->state,
                                                                     .sum = s->sum,
                                                                     .counters = s->counters,
                                                                     .ring = s->ring});
}

static void a_step_opens_with_the_rates_and_times_of_its_counters(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 8, 255, 256, 257, 1000};
    for (int i = 0; i < 6; i++) {
        ddpm_backend *be = cpu_with(1);
        const struct step s = make(sizes[i]);
        *s.counters = (struct step_counters){.step = 512, .updates = 500};
        assert_ok(open_with(be, &s, rates));
        assert_int_equal(s.state->seed, 77);
        assert_int_equal(s.state->step, 512);
        /* in double, then rounded: within two units of float of the rule, for a GPU's pow and cos are not libm's */
        const double pi = acos(-1.0), lr = 2e-4 * 0.5 * (1 + cos(pi * (512 - 10) / 990.0));
        assert_near(s.state->lr, lr, 2.5e-7 * lr);
        assert_near(s.state->bias1, 1 - pow(0.9, 501), 2.5e-7);
        assert_near(s.state->bias2, 1 - pow(0.999, 501), 2.5e-7);
        assert_float_equal(s.state->ema_decay[0], (float)(501.0 / 510.0), 0);
        assert_float_equal(s.state->ema_decay[1], 0.5f, 0);
        for (int64_t n = 0; n < s.n; n++) {
            const philox4 word = philox_draw(77, PHILOX_T, 512, 3 + (uint64_t)n, 0);
            const int32_t want = 1 + (int32_t)(((uint64_t)word.v[0] * T) >> 32);
            assert_int_equal(s.t[n], want);
            assert_float_equal(s.time[n], s.model_time[want], 0);
        }
        struct step_rates fixed = rates;
        fixed.is_key_fixed = true;
        assert_ok(open_with(be, &s, fixed));
        assert_int_equal(s.state->step, 0);
        assert_near(s.state->lr, lr, 2.5e-7 * lr);
        assert_int_equal(s.t[0], 1 + (int32_t)(((uint64_t)philox_draw(77, PHILOX_T, 0, 3, 0).v[0] * T) >> 32));
        ddpm_backend_free(be);
    }
}

/* The mean and the quarters in double, one after the other: the same bits on every device. */
static void check_figures(const struct step *s, const struct step_figures *f)
{
    double sum = 0, quarter[4] = {0};
    int64_t count[4] = {0};
    for (int64_t n = 0; n < s->n; n++) {
        const int q = s->t[n] <= 13 ? 0 : s->t[n] <= 25 ? 1 : s->t[n] <= 38 ? 2 : 3; /* (t - 1) * 4 / 50 */
        sum += (double)s->loss[n];
        quarter[q] += (double)s->loss[n];
        count[q]++;
    }
    const double mean = sum / (double)s->n;
    assert_memory_equal(&f->loss, &mean, sizeof mean);
    for (int q = 0; q < 4; q++) {
        if (isfinite(quarter[q])) assert_memory_equal(&f->quartile_sum[q], &quarter[q], sizeof *quarter);
        assert_int_equal(f->quartile_count[q], count[q]);
    }
}

static void figures_of_the_last_steps_stand_in_the_ring(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 8, 255, 256, 257, 700};
    for (int i = 0; i < 6; i++) {
        ddpm_backend *be = cpu_with(1);
        const struct step s = make(sizes[i]);
        for (int k = 0; k < 6; k++) {
            assert_ok(open_with(be, &s, rates));
            *s.sum = 3.5 + k;
            s.loss[0] = (float)k;
            assert_ok(close_with(be, &s));
            const struct step_figures *f = &s.ring[k % SLOTS];
            check_figures(&s, f);
            assert_true(f->sum == 3.5 + k && *s.sum == 3.5 + k);
            assert_float_equal(f->lr, s.state->lr, 0);
            assert_false(f->is_skipped);
            assert_int_equal(f->after.step, k + 1);
            assert_int_equal(f->after.updates, k + 1);
            assert_int_equal(f->after.skipped_in_row, 0);
            assert_memory_equal(&f->after, s.counters, sizeof f->after);
        }
        assert_int_equal(s.ring[2].after.step, 3); /* four slots: steps 5, 6, 3, 4 */
        ddpm_backend_free(be);
    }
}

static void what_is_not_finite_is_skipped(void **state)
{
    (void)state;
    static const struct {
        double sum;
        float loss;
        bool is_skipped;
    } steps[] = {{1, 1, false}, {INFINITY, 1, true}, {NAN, 1, true}, {2, INFINITY, true}, {2, NAN, true}, {1e300, 3e38f, false}};
    ddpm_backend *be = cpu_with(1);
    const struct step s = make(9);
    int64_t updates = 0, in_row = 0;
    for (int k = 0; k < 6; k++) {
        assert_ok(open_with(be, &s, rates));
        *s.sum = steps[k].sum;
        s.loss[4] = steps[k].loss;
        assert_ok(close_with(be, &s));
        const struct step_figures *f = &s.ring[k % SLOTS];
        updates += !steps[k].is_skipped;
        in_row = steps[k].is_skipped ? in_row + 1 : 0;
        assert_int_equal(f->is_skipped, steps[k].is_skipped);
        assert_int_equal(f->after.step, k + 1);
        assert_int_equal(f->after.updates, updates);
        assert_int_equal(f->after.skipped_in_row, in_row);
        assert_int_equal(isfinite(*s.sum), !steps[k].is_skipped); /* what adamw looks at */
        if (isinf(steps[k].sum)) assert_true(isinf(f->sum));
    }
    ddpm_backend_free(be);
}

static void a_sampler_counts_down_through_its_table(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 31, 300};
    for (int i = 0; i < 3; i++) {
        ddpm_backend *be = cpu_with(1);
        const int64_t n = sizes[i];
        float *table = uniforms(8 * (T + 1), 8, -1, 1), *times = uniforms(T + 1, 9, 0, 1000);
        float *rows = zeros(8 * n), *time = zeros(n);
        ddpm_tensor told = ddpm_tensor_1d(time, n);
        struct step_state *st = take(sizeof *st);
        *st = (struct step_state){.seed = 4, .step = T + 1};
        struct open_sample_args a = {.table = table, .times = times, .state = st, .rows = rows, .time = &told};
        for (uint32_t step = T; step >= T - 2; step--) {
            assert_ok(backend_ops(be)->open_sample(be, &a));
            assert_int_equal(st->step, step);
            assert_int_equal(st->seed, 4);
            for (int64_t k = 0; k < n; k++) {
                assert_bits(rows + 8 * k, table + 8 * step, 8);
                assert_bits(time + k, times + step, 1);
            }
        }
        a.rows = NULL;
        assert_status(backend_ops(be)->open_sample(be, &a), DDPM_SHAPE);
        ddpm_backend_free(be);
    }
}

/* Rounding to nearest, ties to even, and what is special; counts and pointers that packs do not fit. */
static void casts_round_to_nearest(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {{0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81},
                 {0x3f818000, 0x3f82}, {0x80000000, 0x8000}, {0x00000001, 0x0000}, {0x7f7fffff, 0x7f80},
                 {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fff}, {0xffc00000, 0x7fff}};
    const int64_t sizes[] = {1, 4, 12, 12, 1001, 40000};
    for (int threads = 1; threads <= 2; threads++)
        for (int i = 0; i < 6; i++) {
            ddpm_backend *be = cpu_with(threads);
            const int64_t n = sizes[i];
            float *x = uniforms(n + 1, 3, -9, 9) + i % 2, *back = zeros(n);
            uint16_t *half = (uint16_t *)take((size_t)(n + 1) * 2) + i % 2;
            for (int64_t k = 0; k < n && k < 12; k++)
                memcpy(x + k, &cases[k].from, 4);
            ddpm_tensor tx = ddpm_tensor_1d(x, n), th = ddpm_tensor_1d(half, n), tb = ddpm_tensor_1d(back, n);
            th.dtype = DDPM_BF16;
            assert_ok(backend_ops(be)->cast(be, &(struct cast_args){.x = &tx, .y = &th}));
            assert_ok(backend_ops(be)->cast(be, &(struct cast_args){.x = &th, .y = &tb}));
            for (int64_t k = 0; k < n; k++) {
                if (k < 12) assert_int_equal(half[k], cases[k].to);
                if (k >= 12) assert_true(fabs((double)back[k] - (double)x[k]) <= fabs((double)x[k]) / 256);
                const uint32_t wide = (uint32_t)half[k] << 16;
                assert_memory_equal(&wide, back + k, 4);
            }
            assert_status(backend_ops(be)->cast(be, &(struct cast_args){.x = &tx, .y = &tb}), DDPM_SHAPE);
            assert_status(backend_ops(be)->cast(be, &(struct cast_args){.x = &th, .y = &th}), DDPM_SHAPE);
            ddpm_backend_free(be);
        }
}

static void a_batch_is_gathered(void **state)
{
    (void)state;
    enum { M = 7, N = 5 };
    static const int32_t number[N] = {6, 0, 3, 3, 1}, labels[M] = {10, 11, 12, 13, 14, 15, 16};
    const int64_t shapes[][4] = {{4, 4, 3, 0}, {3, 5, 1, 0}, {4, 4, 1, 1}, {32, 32, 3, 0}}; /* last: off a pack's boundary */
    for (int i = 0; i < 4; i++) {
        ddpm_backend *be = cpu_with(1);
        const int64_t *s = shapes[i], size = s[0] * s[1] * s[2];
        uint8_t *x = (uint8_t *)take((size_t)(M * size + 64)) + s[3], *y = take((size_t)(N * size));
        int32_t *label = take(N * sizeof *label);
        for (int64_t k = 0; k < M * size; k++)
            x[k] = (uint8_t)(k * 7 + k / 251);
        ddpm_tensor tx = ddpm_tensor_4d(x, M, s[0], s[1], s[2]), ty = ddpm_tensor_4d(y, N, s[0], s[1], s[2]);
        tx.dtype = ty.dtype = DDPM_U8;
        struct gather_args a = {.x = &tx, .number = number, .labels = labels, .y = &ty, .label = label};
        assert_ok(backend_ops(be)->gather(be, &a));
        for (int n = 0; n < N; n++) {
            assert_memory_equal(y + n * size, x + number[n] * size, (size_t)size);
            assert_int_equal(label[n], labels[number[n]]);
        }
        a.label = NULL;
        assert_status(backend_ops(be)->gather(be, &a), DDPM_SHAPE);
        a.labels = NULL;
        assert_ok(backend_ops(be)->gather(be, &a));
        ty.dim[1]++;
        assert_status(backend_ops(be)->gather(be, &a), DDPM_SHAPE);
        ddpm_backend_free(be);
    }
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    struct step s = make(4);
    struct step_rates many = rates;
    many.n_ema = OPS_EMA_MAX + 1;
    assert_status(open_with(be, &s, many), DDPM_SHAPE);
    ddpm_tensor table = ddpm_tensor_2d(s.time, 2, 2), time = ddpm_tensor_1d(s.time, 4), loss = ddpm_tensor_1d(s.loss, 4);
    struct open_step_args o = {.rates = rates, .counters = s.counters, .model_time = s.model_time, .index = s.index,
                               .T = T, .state = s.state, .t = s.t, .time = &table};
    assert_status(backend_ops(be)->open_step(be, &o), DDPM_SHAPE);
    o.time = &time;
    o.T = 0;
    assert_status(backend_ops(be)->open_step(be, &o), DDPM_SHAPE);
    o.T = T;
    o.counters = NULL;
    assert_status(backend_ops(be)->open_step(be, &o), DDPM_SHAPE);
    struct close_step_args c = {.loss = &loss, .t = s.t, .T = T, .slots = 0, .state = s.state, .sum = s.sum,
                                .counters = s.counters, .ring = s.ring};
    assert_status(backend_ops(be)->close_step(be, &c), DDPM_SHAPE);
    c.slots = SLOTS;
    c.ring = NULL;
    assert_status(backend_ops(be)->close_step(be, &c), DDPM_SHAPE);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(a_step_opens_with_the_rates_and_times_of_its_counters),
        OP_TEST(figures_of_the_last_steps_stand_in_the_ring),
        OP_TEST(what_is_not_finite_is_skipped),
        OP_TEST(a_sampler_counts_down_through_its_table),
        OP_TEST(casts_round_to_nearest),
        OP_TEST(a_batch_is_gathered),
        OP_TEST(wrong_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

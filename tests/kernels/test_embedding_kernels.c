/* test_embedding_kernels.c - time steps and labels on the device: odd and tiny widths, blocks of 128 threads less
 * one, full and one more, rows off a pack's boundary, and gradients added in the order of n to the bit. */
#include "halves.h"

/* Absolute 1e-7 * max(t, 10), as in the op's own test: frequencies are floats, and t multiplies their error. */
static void check_time(ddpm_backend *be, int64_t n, int64_t width, bool sin_cos, float shift)
{
    float *t = uniforms(n, 1, 0, 1000), *y = uniforms(n * width, 2, 5, 6);
    ddpm_tensor tt = ddpm_tensor_1d(t, n), ty = ddpm_tensor_2d(y, n, width);
    assert_ok(backend_ops(be)->time_embedding(
        be, &(struct time_embedding_args){.t = &tt, .sin_cos = sin_cos, .shift = shift, .y = &ty}));
    const int64_t half = width / 2;
    for (int64_t i = 0; i < n * width; i++) {
        const int64_t j = i % width;
        const double at = (double)t[i / width];
        double want = 0;
        if (j < 2 * half) {
            const double f = exp(-log(10000.0) * (double)(j % half) / ((double)half - (double)shift));
            want = (j < half) == sin_cos ? sin(at * f) : cos(at * f);
        }
        assert_near((double)y[i], want, 1e-7 * fmax(at, 10));
    }
}

static void test_time(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 4, 5, 128, 254, 256, 258, 511};
    ddpm_backend *be = cpu_with(1);
    for (int k = 0; k < 8; k++)
        for (int64_t n = 1; n <= 3; n += 2) {
            check_time(be, n, widths[k], k % 2, 0);
            check_time(be, n, widths[k], !(k % 2), widths[k] < 4 ? 0 : 1);
        }
    ddpm_backend_free(be);
}

/* What label image n has. */
enum labels { ONE_FOR_ALL, ALL_DIFFERENT, SOME };

static int32_t label_of(enum labels kind, int64_t n, int64_t entries)
{
    if (kind == ONE_FOR_ALL) return (int32_t)(entries - 1);
    if (kind == ALL_DIFFERENT) return (int32_t)((n * 7 + 3) % entries);
    return (int32_t)(n * n % 5 % entries);
}

static void check_rows(ddpm_backend *be, int64_t n, int64_t width, int64_t entries, enum labels kind, int askew)
{
    const struct values table = random_values(entries * width, DDPM_F32, askew, 1, -1, 1);
    const struct values dtable = random_values(entries * width, DDPM_F32, askew, 2, -1, 1);
    const struct values y = random_values(n * width, DDPM_F32, askew, 3, -1, 1);
    const struct values dy = random_values(n * width, DDPM_F32, askew, 4, -1, 1);
    float *want_y = copy_of(y.data, n * width), *want_dtable = copy_of(dtable.data, entries * width);
    int32_t *label = take((size_t)n * sizeof *label);
    for (int64_t i = 0; i < n * width; i++) {
        label[i / width] = label_of(kind, i / width, entries);
        const int64_t at = label[i / width] * width + i % width;
        want_y[i] += ((const float *)table.data)[at];
        want_dtable[at] += ((const float *)dy.data)[i];
    }
    const ddpm_tensor rows = ddpm_tensor_2d(NULL, n, width), all = ddpm_tensor_2d(NULL, entries, width);
    ddpm_tensor tt = tensor_of(table, all), td = tensor_of(dtable, all);
    ddpm_tensor ty = tensor_of(y, rows), tdy = tensor_of(dy, rows);
    const struct ops *ops = backend_ops(be);
    assert_ok(ops->embedding(be, &(struct embedding_args){.table = &tt, .label = label, .y = &ty}));
    assert_ok(ops->embedding_bwd(be, &(struct embedding_bwd_args){.dy = &tdy, .label = label, .dtable = &td}));
    assert_bits((const float *)y.data, want_y, n * width);
    assert_bits((const float *)dtable.data, want_dtable, entries * width);
}

static void test_rows(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 3, 4, 124, 128, 130, 508, 512, 516};
    ddpm_backend *be = cpu_with(1);
    for (int k = 0; k < 9; k++)
        for (int kind = ONE_FOR_ALL; kind <= SOME; kind++)
            for (int askew = 0; askew < 2; askew++) {
                check_rows(be, 1, widths[k], 3, kind, askew);
                check_rows(be, 33, widths[k], 37, kind, askew);
            }
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_time), OP_TEST(test_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

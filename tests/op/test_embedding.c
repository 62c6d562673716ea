/* test_embedding.c - time_embedding against exact sinusoids, rows of a table, and the order of their gradient. */
#include "op_support.h"

/* Absolute 1e-7 * max(t, 10), as the golden files: frequencies are floats, and t multiplies their error. */
static void test_time(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    float t[] = {0, 1, 2.5f, 10, 499, 999};
    ddpm_tensor tt = ddpm_tensor_1d(t, 6);
    const int64_t widths[] = {1, 32, 33, 128};
    for (int k = 0; k < 4; k++)
        for (int order = 0; order < 2; order++)
            for (int shift = 0; shift < 2; shift++) {
                const int64_t width = widths[k], half = width / 2;
                float *y = uniforms(6 * width, 1, 5, 6);
                ddpm_tensor ty = ddpm_tensor_2d(y, 6, width);
                assert_ok(backend_ops(be)->time_embedding(
                    be, &(struct time_embedding_args){
                            .t = &tt, .sin_cos = order == 1, .shift = (float)shift, .y = &ty}));
                for (int64_t i = 0; i < 6 * width; i++) {
                    const int64_t n = i / width, j = i % width;
                    double want = 0;
                    if (j < 2 * half) {
                        const double f = exp(-log(10000.0) * (double)(j % half) / (double)(half - shift));
                        const double a = (double)t[n] * f;
                        want = (j < half) == (order == 1) ? sin(a) : cos(a);
                    }
                    assert_true(fabs((double)y[i] - want) <= 1e-7 * fmax((double)t[n], 10));
                }
            }
    float y[12];
    ddpm_tensor narrow = ddpm_tensor_2d(y, 6, 2), rows = ddpm_tensor_2d(y, 3, 4);
    assert_status(backend_ops(be)->time_embedding(
                      be, &(struct time_embedding_args){.t = &tt, .shift = 1, .y = &narrow}),
                  DDPM_SHAPE);
    assert_status(backend_ops(be)->time_embedding(be, &(struct time_embedding_args){.t = &tt, .y = &rows}), DDPM_SHAPE);
    ddpm_backend_free(be);
}

/* y += table rows; the gradient adds rows of one label in the order of n, so float32 sums have exact bits. */
static void test_rows(void **state)
{
    (void)state;
    const int64_t n = 9, width = 600, entries = 4;
    const int32_t label[] = {3, 0, 3, 3, 1, 0, 3, 1, 3};
    for (int i = 0; i < THREAD_COUNTS; i++) {
        ddpm_backend *be = cpu_with(thread_counts[i]);
        float *table = uniforms(entries * width, 1, -1, 1), *y = uniforms(n * width, 2, -1, 1);
        float *dtable = uniforms(entries * width, 3, -1, 1), *dy = uniforms(n * width, 4, -1, 1);
        float *want_y = copy_of(y, n * width), *want_table = copy_of(dtable, entries * width);
        for (int64_t k = 0; k < n * width; k++) {
            const int64_t at = label[k / width] * width + k % width;
            want_y[k] += table[at];
            want_table[at] += dy[k];
        }
        ddpm_tensor tt = ddpm_tensor_2d(table, entries, width), ty = ddpm_tensor_2d(y, n, width);
        ddpm_tensor td = ddpm_tensor_2d(dtable, entries, width), tdy = ddpm_tensor_2d(dy, n, width);
        assert_ok(backend_ops(be)->embedding(be, &(struct embedding_args){.table = &tt, .label = label, .y = &ty}));
        assert_ok(backend_ops(be)->embedding_bwd(
            be, &(struct embedding_bwd_args){.dy = &tdy, .label = label, .dtable = &td}));
        assert_bits(y, want_y, n * width);
        assert_bits(dtable, want_table, entries * width);
        ty = ddpm_tensor_2d(y, n * 2, width / 2);
        assert_status(
            backend_ops(be)->embedding(be, &(struct embedding_args){.table = &tt, .label = label, .y = &ty}),
            DDPM_SHAPE);
        assert_status(
            backend_ops(be)->embedding_bwd(be, &(struct embedding_bwd_args){.dy = &tdy, .dtable = &td}), DDPM_SHAPE);
        ddpm_backend_free(be);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {OP_TEST(test_time), OP_TEST(test_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

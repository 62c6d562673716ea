/* The generator against the published known-answer vectors (Random123, philox4x32 with 10 rounds),
 * and what the engine asks of it: distinct streams, open interval, even spread. */
#include "support.h"

#include "philox.h"

static void known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        philox4 c;
        memcpy(c.v, rows[i].counter, sizeof c.v);
        const philox4 got = philox((uint64_t)rows[i].key[1] << 32 | rows[i].key[0], c);
        assert_memory_equal(got.v, rows[i].want, sizeof got.v);
    }
}

static void every_part_of_the_key_matters(void **state)
{
    (void)state;
    const philox4 base = philox_draw(1, PHILOX_EPS, 2, 3, 4);
    const philox4 others[] = {
        philox_draw(2, PHILOX_EPS, 2, 3, 4),
        philox_draw(1, PHILOX_T, 2, 3, 4),
        philox_draw(1, PHILOX_EPS, 3, 3, 4),
        philox_draw(1, PHILOX_EPS, 2, 4, 4),
        philox_draw(1, PHILOX_EPS, 2, 3, 5),
        philox_draw((uint64_t)1 << 32 | 1, PHILOX_EPS, 2, 3, 4),
        philox_draw(1, PHILOX_EPS, 2, (uint64_t)1 << 32 | 3, 4),
        philox_draw(1, PHILOX_EPS, 2, (uint64_t)1 << 55 | 3, 4),
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_memory_not_equal(others[i].v, base.v, sizeof base.v);
}

static void uniforms_lie_inside(void **state)
{
    (void)state;
    assert_true(philox_uniform(0) > 0);
    assert_true(philox_uniform(UINT32_MAX) < 1);
    assert_true(philox_uniform(0x80000000u) == 0.5f + 0x1p-24f);
    double sum = 0, square = 0;
    const int n = 100000;
    for (int i = 0; i < n; i++) {
        const double u = philox_uniform(philox_draw(9, PHILOX_TEST, 0, 0, (uint32_t)i).v[0]);
        sum += u;
        square += u * u;
    }
    /* 5 standard errors: sqrt(1/12 / n) and sqrt(4/45 / n) */
    assert_true(sum / n > 0.5 - 5 * 0.00092 && sum / n < 0.5 + 5 * 0.00092);
    assert_true(square / n > 1.0 / 3 - 5 * 0.00095 && square / n < 1.0 / 3 + 5 * 0.00095);
}

static void below_covers_all_values(void **state)
{
    (void)state;
    int count[10] = {0};
    for (uint32_t i = 0; i < 10000; i++) {
        const uint32_t k = philox_below(philox_draw(3, PHILOX_TEST, 0, i, 0).v[1], 10);
        assert_in_range(k, 0, 9);
        count[k]++;
    }
    for (int k = 0; k < 10; k++)
        assert_in_range(count[k], 850, 1150); /* 5 of sqrt(10000 * 0.09) = 30 */
    assert_int_equal(philox_below(UINT32_MAX, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(every_part_of_the_key_matters),
        cmocka_unit_test(uniforms_lie_inside),
        cmocka_unit_test(below_covers_all_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Sizes against a 128-bit oracle. */
#include "support.h"

#include "checked.h"
#include "philox.h"

typedef unsigned __int128 wide;

/* Values of every magnitude, near powers of two most often. */
static size_t draw(uint32_t i)
{
    const philox4 r = philox_draw(1, PHILOX_TEST, 0, i, 0);
    const uint64_t bits = (uint64_t)r.v[0] << 32 | r.v[1];
    const unsigned shift = r.v[2] % 64;
    return r.v[3] % 2 ? (size_t)(bits >> shift) : ((size_t)1 << shift) - r.v[3] / 2 % 3;
}

static void sums_and_products_match_the_oracle(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        const size_t a = draw(2 * i), b = draw(2 * i + 1);
        size_t got = 77;
        assert_int_equal(checked_add(a, b, &got), (wide)a + b <= SIZE_MAX);
        assert_true(got == ((wide)a + b <= SIZE_MAX ? a + b : 77));
        got = 77;
        assert_int_equal(checked_mul(a, b, &got), (wide)a * b <= SIZE_MAX);
        assert_true(got == ((wide)a * b <= SIZE_MAX ? a * b : 77));
    }
}

static void products_of_shapes(void **state)
{
    (void)state;
    size_t got = 77;
    assert_true(checked_product((int64_t[]){2, 3, 5}, 3, 4, &got));
    assert_int_equal(got, 120);
    assert_true(checked_product(NULL, 0, 8, &got)); /* a scalar */
    assert_int_equal(got, 8);
    assert_true(checked_product((int64_t[]){1 << 20, 0, 1 << 20}, 3, 4, &got));
    assert_int_equal(got, 0);
    got = 77;
    assert_false(checked_product((int64_t[]){4, -1}, 2, 4, &got));
    assert_false(checked_product((int64_t[]){INT64_MAX, 3}, 2, 1, &got));
    assert_false(checked_product((int64_t[]){(int64_t)1 << 62}, 1, 4, &got));
    assert_int_equal(got, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_and_products_match_the_oracle),
        cmocka_unit_test(products_of_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

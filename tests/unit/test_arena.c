/* The measuring pass and the real one agree, and what was taken is aligned, apart and reusable. */
#include "support.h"

#include "arena.h"

static void take_all(arena *a, unsigned char *out[4])
{
    out[0] = arena_take(a, 10, 1);
    out[1] = arena_take(a, 100, 64);
    out[2] = arena_take(a, 0, 8);
    out[3] = arena_take(a, 7, 256);
}

static void measured_size_is_enough(void **state)
{
    (void)state;
    unsigned char *p[4];
    arena a = {0};
    take_all(&a, p);
    for (int i = 0; i < 4; i++)
        assert_null(p[i]);
    assert_int_equal(a.peak, 256 + 7);

    arena b = {.base = aligned_alloc(256, 512), .size = a.peak};
    assert_non_null(b.base);
    take_all(&b, p);
    assert_int_equal(b.peak, a.peak);
    assert_int_equal((uintptr_t)p[1] % 64, 0);
    assert_int_equal((uintptr_t)p[3] % 256, 0);
    assert_true(p[0] + 10 <= p[1] && p[1] + 100 <= p[3] && p[3] + 7 <= b.base + b.size);
    free(b.base);
}

static void reset_takes_all_back(void **state)
{
    (void)state;
    unsigned char block[64];
    arena a = {.base = block, .size = sizeof block};
    void *first = arena_take(&a, 48, 1);
    arena_reset(&a);
    assert_ptr_equal(arena_take(&a, 16, 1), first);
    assert_int_equal(a.used, 16);
    assert_int_equal(a.peak, 48);
}

static void a_size_that_wraps_is_never_small(void **state)
{
    (void)state;
    arena a = {0};
    arena_take(&a, SIZE_MAX - 100, 1);
    arena_take(&a, 4096, 64);
    assert_true(a.peak == SIZE_MAX);
    arena_take(&a, 1, 64);
    assert_true(a.peak == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_size_is_enough),
        cmocka_unit_test(reset_takes_all_back),
        cmocka_unit_test(a_size_that_wraps_is_never_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

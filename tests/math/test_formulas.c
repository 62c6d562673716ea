/* test_formulas.c - the elementary functions of formulas.h against double, over dense sweeps; the limits are those that
 * formulas.h promises. */
#include "support.h"

#include "formulas.h"

/* The error in units of the last place of the exact value's float. */
static double ulps(float got, double exact)
{
    const float f = fabsf((float)exact);
    return fabs((double)got - exact) / ((double)nextafterf(f, INFINITY) - (double)f);
}

/* Every 509th float of [lo, hi], both signs where lo < 0; |x| below 1e-9 is left out (exp is 1 there). */
static float worst_ulps(float (*f)(float), double (*exact)(double), float lo, float hi, float *at)
{
    double worst = 0;
    for (uint32_t bits = formula_bits(1e-9f); bits < formula_bits(128.0f); bits += 509)
        for (int sign = 0; sign < 2; sign++) {
            const float x = sign ? -formula_float(bits) : formula_float(bits);
            if (x < lo || x > hi) continue;
            const double e = ulps(f(x), exact((double)x));
            if (!(e <= worst)) {
                worst = e;
                *at = x;
            }
        }
    return (float)worst;
}

static float call_exp(float x)
{
    return formula_exp(x);
}

static float call_sigmoid(float x)
{
    return formula_sigmoid(x);
}

static float call_silu(float x)
{
    return formula_silu(x);
}

static double exact_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double exact_silu(double x)
{
    return x * exact_sigmoid(x);
}

#define assert_ulps(f, exact, lo, hi, limit)                                                       \
    do {                                                                                           \
        float at_ = 0;                                                                             \
        const float worst_ = worst_ulps(f, exact, lo, hi, &at_);                                   \
        if (!(worst_ <= (limit)))                                                                  \
            fail_msg("%s(%.9g): %.3f ulp, limit %g", #f, (double)at_, (double)worst_, (double)(limit)); \
    } while (0)

static void test_exp(void **state)
{
    (void)state;
    assert_ulps(call_exp, exp, -87.3f, 88.72f, 1.1f);
    for (float x = -104; x < -87.3f; x += 0.01f) /* gradual underflow: absolute, in the smallest step, 2^-149 */
        assert_true(fabs((double)formula_exp(x) - exp((double)x)) <= 0x1.2p-149);
    assert_true(formula_exp(0.0f) == 1.0f);
    assert_true(formula_exp(-105.0f) == 0.0f && formula_exp(-INFINITY) == 0.0f);
    assert_true(isinf(formula_exp(88.8f)) && isinf(formula_exp(INFINITY)));
    assert_true(isnan(formula_exp(NAN)));
}

static void test_log(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t k = 0; k < 1u << 23; k += 3) {
        const float u = philox_uniform(k << 9);
        worst = fmax(worst, ulps(formula_log01(u), log((double)u)));
    }
    worst = fmax(worst, ulps(formula_log01(1 - 0x1p-24f), log(1 - 0x1p-24)));
    worst = fmax(worst, ulps(formula_log01(0x1p-24f), log(0x1p-24)));
    assert_true(worst <= 1.0);
}

static void test_silu(void **state)
{
    (void)state;
    assert_ulps(call_sigmoid, exact_sigmoid, -87, 128, 2.5f);
    assert_ulps(call_silu, exact_silu, -87, 128, 2.5f);
    for (float x = -120; x < 120; x += 0.001f) {
        const double s = exact_sigmoid((double)x), want = s * (1 + (double)x * (1 - s));
        assert_true(fabs((double)formula_silu_grad(x) - want) <= 3e-7);
    }
    assert_true(formula_silu(0) == 0 && formula_silu_grad(0) == 0.5f);
    assert_true(fabsf(formula_silu(-1e38f)) < 1e-36f && formula_silu(1e38f) == 1e38f);
    assert_true(formula_silu_grad(INFINITY) == 1 && fabsf(formula_silu_grad(-INFINITY)) < 1e-30f);
    assert_true(isnan(formula_silu(NAN)) && isnan(formula_silu_grad(NAN)));
}

/* All 2^23 radii at one angle each, and all angles at a few radii. */
static void test_box_muller(void **state)
{
    (void)state;
    const double turn = 6.283185307179586476925;
    for (uint32_t k = 0; k < 1u << 23; k++) {
        const uint32_t other = k < 64 ? k << 26 : k * 2654435761u;
        for (int swap = 0; swap < 2; swap++) {
            const uint32_t w1 = swap ? other : k << 9, w2 = swap ? k << 9 : other;
            float z1, z2;
            if (swap && k % 8) continue;
            formula_box_muller(w1, w2, &z1, &z2);
            const double r = sqrt(-2 * log((double)philox_uniform(w1))), t = turn * (double)philox_uniform(w2);
            const double c = r * cos(t), s = r * sin(t);
            if (!(fabs((double)z1 - c) <= 3e-7 * fmax(1, fabs(c)) && fabs((double)z2 - s) <= 3e-7 * fmax(1, fabs(s))))
                fail_msg("words %u %u: %.9g %.9g, expected %.9g %.9g", w1, w2, (double)z1, (double)z2, c, s);
        }
    }
}

static void test_u8(void **state)
{
    (void)state;
    assert_true(formula_from_u8(0) == -1 && formula_from_u8(255) == 1);
    for (int u = 0; u < 256; u++) {
        const float x = formula_from_u8((uint8_t)u);
        assert_true(x == (float)(u / 127.5 - 1));
        assert_true(formula_from_u8((uint8_t)(255 - u)) == -x); /* symmetric about the middle */
        assert_in_range(formula_to_u8(x + 1e-5f), u, u); /* truncation: a hair above the value, for products round */
    }
    assert_int_equal(formula_to_u8(-5), 0);
    assert_int_equal(formula_to_u8(7), 255);
    assert_int_equal(formula_to_u8(0), 127);
    assert_int_equal(formula_to_u8(NAN), 0);
    assert_int_equal(formula_to_u8(INFINITY), 255);
}

static void test_clip(void **state)
{
    (void)state;
    assert_true(formula_clip(100.0, 0) == 1);                   /* off */
    assert_true(formula_clip(0.25, 1) == 1);                    /* short enough */
    assert_true(fabsf(formula_clip(100.0, 1) - 0.1f) < 1e-7f); /* norm 10 to norm 1 */
    assert_true(formula_clip(0.0, 1) == 1);
    assert_true(isnan(formula_clamp(NAN, -1, 1)) && formula_clamp(3, -1, 1) == 1 && formula_clamp(-3, -1, 1) == -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),        cmocka_unit_test(test_log), cmocka_unit_test(test_silu),
        cmocka_unit_test(test_box_muller), cmocka_unit_test(test_u8),  cmocka_unit_test(test_clip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

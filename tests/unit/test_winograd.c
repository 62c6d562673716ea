/* The Winograd transforms of each instruction set this processor has against the plain ones: the
 * same bits, so that results do not depend on the machine through them. */
#include "support.h"

#include "philox.h"
#include "winograd.h"

#include <stdlib.h>
#include <string.h>

enum { C = 48, SIDE = 8, POINT = C + 16, TILES = 3 };

static float image[SIDE * SIDE * C], matrices[36 * POINT], weights_in[9 * 16 * C];

static void fill(float *x, int n, uint32_t stream)
{
    for (int i = 0; i < n; i++)
        x[i] = philox_uniform(philox_draw(7, stream, 0, 0, (uint32_t)i).v[0]) - 0.5f;
}

/* Whole patches and those that hang over each edge. */
static struct winograd_patch patch(int i, int size)
{
    struct winograd_patch at = {.row = SIDE * C, .column = C, .row_end = size, .column_end = size};
    if (i == 1) at.row_begin = at.column_begin = 1;
    if (i == 2) at.row_end = at.column_end = size - 1;
    return at;
}

struct results {
    float input[TILES][36 * POINT], panels[36 * 4 * 32], gradient[TILES][36 * POINT],
        output[TILES][SIDE * SIDE * C];
    float weights[2][36 * 16], weight_gradient[9 * C];
};

static void run_all(const struct winograd *w, struct results *r)
{
    memset(r, 0, sizeof *r);
    for (int i = 0; i < TILES; i++) {
        const struct winograd_patch six = patch(i, 6), four = patch(i, 4);
        struct winograd_patch inside = four;
        inside.row_begin = inside.column_begin = 0; /* a result's patch begins in the image */
        w->input(image, &six, C, r->input[i], POINT, C, 0);
        w->gradient(image, &four, C, r->gradient[i], POINT);
        w->output(matrices, POINT, C, i ? image : NULL, i == 2 ? image : NULL, &inside,
                  r->output[i]);
    }
    const struct winograd_patch whole = patch(0, 6);
    w->input(image, &whole, C, r->panels, 4 * 32, 32, 64);
    for (int turned = 0; turned < 2; turned++)
        w->weights(weights_in, 9 * C, C, turned, r->weights[turned], 16);
    w->weight_gradient(matrices, POINT, C, r->weight_gradient, C);
}

static void instruction_sets_agree(void **state)
{
    (void)state;
    fill(image, SIDE * SIDE * C, 1);
    fill(matrices, 36 * POINT, 2);
    fill(weights_in, 9 * 16 * C, 3);
    struct results *plain = malloc(sizeof *plain), *other = malloc(sizeof *other);
    assert_true(plain && other);
    run_all(winograd_plain(), plain);
    assert_true(plain->output[2][0] != 0 && plain->weight_gradient[9 * C - 1] != 0);
    const struct winograd *sets[] = {winograd_avx2(), winograd_avx512(), winograd()};
    for (int i = 0; i < 3; i++) {
        if (!sets[i]) continue;
        run_all(sets[i], other);
        assert_memory_equal(plain, other, sizeof *plain);
    }
    free(plain);
    free(other);
}

/* Panels hold what rows hold, elsewhere: channel c at c / 32 * 64 + c % 32. */
static void panels_hold_the_same(void **state)
{
    (void)state;
    fill(image, SIDE * SIDE * C, 1);
    struct results *r = malloc(sizeof *r);
    assert_true(r != NULL);
    run_all(winograd(), r);
    for (int p = 0; p < 36; p++)
        for (int c = 0; c < C; c++)
            assert_true(r->panels[p * 128 + c / 32 * 64 + c % 32] == r->input[0][p * POINT + c]);
    free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(instruction_sets_agree),
                                       cmocka_unit_test(panels_hold_the_same)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

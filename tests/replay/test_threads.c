/* test_threads.c - the number of threads, of computing or of reading, changes no byte. */
#include "train_support.h"

static void any_number_of_threads_gives_the_same_bytes(void **state)
{
    static const char *const readers[] = {"data.threads=0", "data.threads=1", "data.threads=4"};
    static const int threads[] = {1, 2, 3, 5};
    struct trained one, many;
    train_open(*state, 1, readers, 1, &one);
    train_steps(&one, 5);
    for (int i = 1; i < 4; i++) {
        train_open(*state, threads[i], &readers[i % 3], 1, &many);
        train_steps(&many, 5);
        train_assert_same(&one, &many);
        train_close(&many);
    }
    train_close(&one);
}

static void the_same_again_gives_the_same_bytes(void **state)
{
    struct trained a, b;
    train_open(*state, 0, NULL, 0, &a);
    train_open(*state, 0, NULL, 0, &b);
    train_steps(&a, 5);
    train_steps(&b, 5);
    train_assert_same(&a, &b);
    train_close(&b);
    train_open(*state, 0, (const char *const[]){"train.seed=8"}, 1, &b);
    train_steps(&b, 5);
    assert_memory_not_equal(a.t->p, b.t->p, (size_t)a.t->count * sizeof(float));
    train_close(&b);
    train_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_threads_gives_the_same_bytes),
        cmocka_unit_test(the_same_again_gives_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}

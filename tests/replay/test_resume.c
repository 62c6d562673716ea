/* test_resume.c - stopping and going on is not to be seen in a single byte. */
#include "train_support.h"

static const char *path_of(char dst[SUPPORT_PATH], void **state, const char *name)
{
    return support_join(dst, *state, name);
}

/* 20 steps at once, and 10 + save + another trainer + load + 10, with the keys of `set`. */
static void compare_halves(void **state, const char *const *set, int n)
{
    struct trained whole, first, second;
    char a[SUPPORT_PATH], b[SUPPORT_PATH], half[SUPPORT_PATH];
    path_of(a, state, "whole.safetensors");
    path_of(b, state, "halves.safetensors");
    path_of(half, state, "half.safetensors");

    train_open(*state, 0, set, n, &whole);
    train_steps(&whole, 20);
    assert_ok(ddpm_trainer_save(whole.t, a));

    train_open(*state, 0, set, n, &first);
    train_steps(&first, 10);
    assert_ok(ddpm_trainer_save(first.t, half));
    train_close(&first);

    train_open(*state, 0, set, n, &second);
    assert_ok(ddpm_trainer_load(second.t, half));
    assert_int_equal(ddpm_trainer_step_number(second.t), 10);
    train_steps(&second, 10);
    assert_ok(ddpm_trainer_save(second.t, b));

    train_assert_same(&whole, &second);
    train_assert_same_files(a, b);
    train_close(&second);
    train_close(&whole);
}

static void ten_and_ten_is_twenty(void **state)
{
    compare_halves(state, NULL, 0);
}

static void also_conditional_with_decay_and_reading_threads(void **state)
{
    static const char *const set[] = {"model.num_classes=2", "train.lr_decay=cosine", "train.steps=30",
                                      "train.weight_decay=0.01", "data.threads=3"};
    compare_halves(state, set, 5);
}

static void also_from_disk_without_data_in_memory(void **state)
{
    const char *const set[] = {"data.memory_mib=0", "diffusion.objective=v"};
    struct trained x;
    const int64_t *labels;
    train_open(*state, 1, set, 2, &x);
    assert_null(ddpm_dataset_memory(x.t->data, &labels));
    train_close(&x);
    compare_halves(state, set, 2);
}

static void saving_does_not_disturb(void **state)
{
    struct trained x, y;
    char path[SUPPORT_PATH];
    path_of(path, state, "often.safetensors");
    train_open(*state, 0, NULL, 0, &x);
    train_open(*state, 0, NULL, 0, &y);
    for (int i = 0; i < 5; i++) {
        train_steps(&x, 1);
        train_steps(&y, 1);
        assert_ok(ddpm_trainer_save(y.t, path));
    }
    train_assert_same(&x, &y);
    train_close(&y);
    train_close(&x);
}

static void a_checkpoint_of_another_network_or_pack_is_refused(void **state)
{
    struct trained x, y;
    char path[SUPPORT_PATH], other[SUPPORT_PATH], key[SUPPORT_PATH + 16];
    path_of(path, state, "x.safetensors");
    train_open(*state, 0, NULL, 0, &x);
    train_steps(&x, 1);
    assert_ok(ddpm_trainer_save(x.t, path));
    train_close(&x);

    train_open(*state, 0, (const char *const[]){"model.channels=16"}, 1, &y);
    assert_status(ddpm_trainer_load(y.t, path), DDPM_CONFIG);
    assert_message("model.channels");
    train_close(&y);

    train_open(*state, 0, (const char *const[]){"diffusion.steps=60"}, 1, &y);
    assert_status(ddpm_trainer_load(y.t, path), DDPM_CONFIG);
    assert_message("diffusion.steps");
    train_close(&y);

    train_write_pack(path_of(other, state, "other.safetensors"), 1);
    snprintf(key, sizeof key, "data.pack=%s", other);
    train_open(*state, 0, (const char *const[]){key}, 1, &y);
    assert_status(ddpm_trainer_load(y.t, path), DDPM_CONFIG);
    assert_message("other images");
    train_close(&y);
}

static void a_new_ema_rate_starts_from_the_weights(void **state)
{
    struct trained x, y;
    char path[SUPPORT_PATH];
    path_of(path, state, "ema.safetensors");
    train_open(*state, 0, NULL, 0, &x);
    train_steps(&x, 3);
    assert_ok(ddpm_trainer_save(x.t, path));
    train_open(*state, 0, (const char *const[]){"train.ema=0.99,0.5"}, 1, &y);
    assert_ok(ddpm_trainer_load(y.t, path));
    const size_t bytes = (size_t)x.t->count * sizeof(float);
    assert_memory_equal(y.t->ema[0], x.t->ema[1], bytes);
    assert_memory_equal(y.t->ema[1], x.t->p, bytes);
    train_close(&y);
    train_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_and_ten_is_twenty),
        cmocka_unit_test(also_conditional_with_decay_and_reading_threads),
        cmocka_unit_test(also_from_disk_without_data_in_memory),
        cmocka_unit_test(saving_does_not_disturb),
        cmocka_unit_test(a_checkpoint_of_another_network_or_pack_is_refused),
        cmocka_unit_test(a_new_ema_rate_starts_from_the_weights),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}

/* test_cuda_training.c - what training asks of the device layer: a run that cannot fit is refused with a size that does. */
#include "device_support.h"
#include "train_support.h"

static const size_t MEMORY = (size_t)256 << 20;

static ddpm_status start(const char *dir, const char *const *set, int n, struct trained *out)
{
    *out = (struct trained){0};
    train_config(dir, set, n, &out->cfg);
    assert_ok(ddpm_backend_create("cuda", 0, &out->be));
    return ddpm_trainer_create(out->be, &out->cfg, &out->t);
}

static void what_does_not_fit_is_refused_with_a_size_that_does(void **state)
{
    static const char *const set[] = {"train.batch=4096", "train.micro_batch=0", "model.channels=32"};
    struct trained x;
    cuda_on_cpu_memory(MEMORY);
    assert_status(start(*state, set, 3, &x), DDPM_NOMEM);
    assert_message("training 4096 images at a time needs");
    assert_message("available are");
    assert_message("cuda:0 ");
    assert_message("train.micro_batch=");
    assert_int_equal(ddpm_backend_memory(x.be), 0); /* refused before anything was allocated */
    train_close(&x);
    long long fits = 0;
    assert_int_equal(sscanf(strstr(ddpm_last_error(), "micro_batch="), "micro_batch=%lld", &fits), 1);
    assert_true(fits >= 1 && fits < 4096 && 4096 % fits == 0);

    char micro[48];
    snprintf(micro, sizeof micro, "train.micro_batch=%lld", fits);
    const char *const advised[] = {set[0], micro, set[2]};
    assert_ok(start(*state, advised, 3, &x));
    assert_in_range(ddpm_backend_memory(x.be), 1, MEMORY);
    train_close(&x);

    cuda_on_cpu_memory((size_t)9 << 20); /* of which copies take 8 */
    assert_status(start(*state, set, 3, &x), DDPM_NOMEM);
    assert_message("not even one image");
    train_close(&x);
    assert_int_equal(cuda_on_cpu_live(), 0);
    cuda_on_cpu_memory(MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_is_refused_with_a_size_that_does),
    };
    return cmocka_run_group_tests(tests, device_begin_with_folder, support_teardown);
}

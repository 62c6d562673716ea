/* test_cuda_training.c - what training asks of the device layer: a run that cannot fit is refused with a size that
 * does, and nothing that lies on a failed device is saved. */
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

    cuda_on_cpu_memory((size_t)1 << 20);
    assert_status(start(*state, set, 3, &x), DDPM_NOMEM);
    assert_message("not even one image");
    train_close(&x);
    assert_int_equal(cuda_on_cpu_live(), 0);
    cuda_on_cpu_memory(MEMORY);
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Saves with each call of the runtime failing in turn: a whole file or none. */
static void a_failed_device_is_not_saved(void **state)
{
    char path[SUPPORT_PATH], whole[SUPPORT_PATH];
    struct trained x;
    cuda_on_cpu_memory(MEMORY);
    setenv("DDPM_LIBRARIES", "0", 1); /* no plans for every life */
    support_join(path, *state, "faulty.safetensors");
    support_join(whole, *state, "whole.safetensors");
    assert_ok(start(*state, NULL, 0, &x));
    assert_ok(ddpm_trainer_save(x.t, whole));
    train_close(&x);
    for (long n = 1;; n++) {
        assert_ok(start(*state, NULL, 0, &x));
        const long before = cuda_on_cpu_calls();
        cuda_on_cpu_fail_call(n, cudaErrorIllegalAddress, true);
        const ddpm_status s = ddpm_trainer_save(x.t, path);
        const bool reached = cuda_on_cpu_calls() - before >= n;
        cuda_on_cpu_fail_call(0, cudaSuccess, false);
        if (reached) {
            assert_status(s, DDPM_BACKEND);
            assert_false(is_there(path));
            assert_status(ddpm_trainer_save(x.t, path), DDPM_BACKEND); /* nor when tried again */
            assert_false(is_there(path));
            assert_int_equal(ddpm_status_exit_code(s), 79);
        } else {
            assert_ok(s);
        }
        train_close(&x);
        assert_int_equal(cuda_on_cpu_live(), 0);
        device_heal();
        if (reached) continue;
        assert_true(n > 10);
        unsetenv("DDPM_LIBRARIES");
        train_assert_same_files(path, whole);
        return;
    }
}

/* Every call of a run's creation failing in turn, out of memory and a fault by turns: its status, and nothing left. Without
 * the libraries, which go on with another engine after many of their failures. */
static void creation_fails_well(void **state)
{
    setenv("DDPM_LIBRARIES", "0", 1);
    for (long n = 1;; n++) {
        const bool is_fault = n % 2;
        struct trained x = {0};
        train_config(*state, NULL, 0, &x.cfg);
        const long before = cuda_on_cpu_calls();
        cuda_on_cpu_fail_call(n, is_fault ? cudaErrorLaunchFailure : cudaErrorMemoryAllocation, is_fault);
        ddpm_status s = ddpm_backend_create("cuda", 0, &x.be);
        if (!s) s = ddpm_trainer_create(x.be, &x.cfg, &x.t);
        const bool reached = cuda_on_cpu_calls() - before >= n;
        if (reached) assert_status(s, is_fault ? DDPM_BACKEND : DDPM_NOMEM);
        if (!reached) assert_ok(s);
        cuda_on_cpu_fail_call(0, cudaSuccess, false);
        train_close(&x);
        assert_int_equal(cuda_on_cpu_live(), 0);
        device_heal();
        if (reached) continue;
        assert_true(n > 30);
        unsetenv("DDPM_LIBRARIES");
        return;
    }
}

/* The same with them, for calls all over it: a lost device is a fault, a failed allocation at worst one of memory. */
static void creation_with_libraries_fails_well(void **state)
{
    int failures = 0;
    for (long n = 1;; n += 1 + n / 3) {
        const bool is_fault = failures++ % 2;
        struct trained x = {0};
        train_config(*state, NULL, 0, &x.cfg);
        const long before = cuda_on_cpu_calls();
        cuda_on_cpu_fail_call(n, is_fault ? cudaErrorLaunchFailure : cudaErrorMemoryAllocation, is_fault);
        ddpm_status s = ddpm_backend_create("cuda", 0, &x.be);
        if (!s) s = ddpm_trainer_create(x.be, &x.cfg, &x.t);
        if (!s) s = ddpm_backend_sync(x.be);
        const bool reached = cuda_on_cpu_calls() - before >= n;
        if (reached && is_fault) assert_status(s, DDPM_BACKEND);
        if (reached && !is_fault && s) assert_status(s, DDPM_NOMEM);
        if (!reached) assert_ok(s);
        cuda_on_cpu_fail_call(0, cudaSuccess, false);
        train_close(&x);
        assert_int_equal(cuda_on_cpu_live(), 0);
        device_heal();
        if (reached) continue;
        assert_true(failures > 15);
        return;
    }
}

/* A step, its tuning included, with calls all over it failing: 79 and nothing saved where the device was lost; else a status
 * or, where another engine took over, a step as good as any. */
static void a_step_fails_well(void **state)
{
    char path[SUPPORT_PATH];
    int lives = 0;
    support_join(path, *state, "step.safetensors");
    for (long n = 1;; n += 1 + n / 2) {
        const bool is_fault = lives++ % 2;
        struct trained x;
        ddpm_step_result r = {0};
        assert_ok(start(*state, NULL, 0, &x));
        const long before = cuda_on_cpu_calls();
        cuda_on_cpu_fail_call(n, is_fault ? cudaErrorIllegalAddress : cudaErrorMemoryAllocation, is_fault);
        const ddpm_status s = ddpm_trainer_step(x.t, &r);
        const bool reached = cuda_on_cpu_calls() - before >= n;
        if (reached && is_fault) {
            assert_status(s, DDPM_BACKEND);
            assert_int_equal(ddpm_status_exit_code(s), 79);
            assert_status(ddpm_trainer_save(x.t, path), DDPM_BACKEND);
            assert_false(is_there(path));
        } else if (s) {
            assert_true(reached && (s == DDPM_NOMEM || s == DDPM_BACKEND));
        } else {
            assert_true(isfinite(r.loss));
        }
        cuda_on_cpu_fail_call(0, cudaSuccess, false);
        train_close(&x);
        assert_int_equal(cuda_on_cpu_live(), 0);
        device_heal();
        if (reached) continue;
        assert_true(lives > 10);
        return;
    }
}

static int begin(void **state)
{
    device_begin(state);
    setenv("DDPM_CACHE", "", 1);
    return support_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_is_refused_with_a_size_that_does),
        cmocka_unit_test(a_failed_device_is_not_saved),
        cmocka_unit_test(creation_fails_well),
        cmocka_unit_test(creation_with_libraries_fails_well),
        cmocka_unit_test(a_step_fails_well),
    };
    return cmocka_run_group_tests(tests, begin, support_teardown);
}

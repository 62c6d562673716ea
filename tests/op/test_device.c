/* test_device.c - the backend object: names, memory and its accounting, tensors as views, the op table's timer. */
#include "op_support.h"
#include "profile.h"

#include <malloc.h>
#include <sched.h>

static void names_choose_devices(void **state)
{
    (void)state;
    ddpm_backend *be = NULL;
    assert_ok(ddpm_backend_create("cpu", 2, &be));
    assert_true(ddpm_backend_is_cpu(be));
    assert_int_equal(ddpm_backend_threads(be), 2);
    assert_int_equal(strncmp(ddpm_backend_name(be), "cpu: ", 5), 0);
    assert_non_null(strstr(ddpm_backend_name(be), ", 2 threads, oneDNN "));
    ddpm_backend_free(be);
    static const char *const wrong[] = {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:99999", "cpu:0"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_status(ddpm_backend_create(wrong[i], 0, &be), DDPM_ARG);
        assert_null(be);
    }
    assert_status(ddpm_backend_create("cpu", -1, &be), DDPM_ARG);
    assert_status(ddpm_backend_create("cpu", 1000000, &be), DDPM_ARG);
    ddpm_backend_free(NULL);
}

/* What a name means where there is a GPU, tests/cuda_device asks. */
static void without_a_gpu_no_name_is_the_cpu_and_cuda_is_refused(void **state)
{
    (void)state;
    ddpm_backend *be = NULL;
    if (strcmp(op_device(), "cpu") != 0) skip();
    assert_ok(ddpm_backend_create(NULL, 1, &be));
    assert_true(ddpm_backend_is_cpu(be));
    assert_non_null(strstr(ddpm_backend_name(be), ", 1 thread, "));
    ddpm_backend_free(be);
    assert_status(ddpm_backend_create("cuda", 0, &be), DDPM_BACKEND);
    assert_status(ddpm_backend_create("cuda:1", 0, &be), DDPM_BACKEND);
    assert_non_null(strstr(ddpm_last_error(), "--device cpu"));
}

static void threads_are_those_of_the_affinity_mask(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    ddpm_backend *be = cpu_with(0);
    assert_in_range(ddpm_backend_threads(be), 1, CPU_COUNT(&all));
    ddpm_backend_free(be);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all)) {
            CPU_SET(i, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    be = cpu_with(0);
    assert_int_equal(ddpm_backend_threads(be), 1);
    ddpm_backend_free(be);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static void memory_is_aligned_zeroed_and_counted(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    const size_t sizes[] = {1, 63, 64, 100000};
    void *block[4];
    size_t sum = 0;
    for (int i = 0; i < 4; i++) {
        assert_ok(ddpm_backend_alloc(be, sizes[i], &block[i]));
        assert_ok(ddpm_backend_sync(be)); /* the zeros are written in the stream's order */
        assert_int_equal((uintptr_t)block[i] % 64, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(((unsigned char *)block[i])[j], 0);
        sum += sizes[i];
        assert_int_equal(ddpm_backend_memory(be), sum);
    }
    ddpm_backend_release(be, block[3]);
    assert_int_equal(ddpm_backend_memory(be), sum - 100000);
    assert_int_equal(ddpm_backend_memory_peak(be), sum);
    char there[5] = "four", back[5] = "";
    assert_ok(ddpm_backend_upload(be, block[1], there, sizeof there));
    assert_ok(ddpm_backend_download(be, back, block[1], sizeof back));
    assert_string_equal(back, "four");
    assert_ok(ddpm_backend_zero(be, block[1], sizeof there));
    assert_ok(ddpm_backend_download(be, back, block[1], sizeof back));
    assert_string_equal(back, "");
    assert_ok(ddpm_backend_sync(be));
    assert_ok(ddpm_backend_upload(be, NULL, NULL, 0));
    void *none = &sum;
    assert_status(ddpm_backend_alloc(be, SIZE_MAX - 100, &none), DDPM_NOMEM);
    assert_null(none);
    assert_status(ddpm_backend_alloc(be, SIZE_MAX, &none), DDPM_NOMEM);
    for (int i = 0; i < 3; i++)
        ddpm_backend_release(be, block[i]);
    ddpm_backend_release(be, NULL);
    assert_int_equal(ddpm_backend_memory(be), 0);
    ddpm_backend_free(be);
}

static void tensors_and_slices(void **state)
{
    (void)state;
    float data[120];
    const ddpm_tensor t = ddpm_tensor_4d(data, 1, 2, 6, 10), s = ddpm_tensor_slice(&t, 4, 3);
    assert_int_equal(ddpm_tensor_count(&t), 120);
    assert_int_equal(ddpm_tensor_count(&s), 36);
    assert_ptr_equal(s.data, data + 4);
    assert_int_equal(s.stride[2], 10);
    assert_int_equal(s.stride[3], 1);
    const ddpm_tensor measured = ddpm_tensor_4d(NULL, 1, 2, 6, 10), none = ddpm_tensor_slice(&measured, 4, 3);
    assert_null(none.data);
    const ddpm_dtype dtypes[] = {DDPM_F32, DDPM_BF16, DDPM_U8, DDPM_I32, DDPM_I64};
    const size_t sizes[] = {4, 2, 1, 4, 8};
    for (int i = 0; i < 5; i++)
        assert_int_equal(ddpm_dtype_size(dtypes[i]), sizes[i]);
}

/* One step of small ops over and over: nothing is allocated after the first. */
static void ops_keep_no_new_memory(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(2);
    const struct ops *ops = backend_ops(be);
    float *p = uniforms(1 << 16, 1, -1, 1);
    const ddpm_tensor x = ddpm_tensor_4d(p, 3, 8, 8, 16), w = ddpm_tensor_4d(p + 8192, 32, 3, 3, 16);
    const ddpm_tensor rows = ddpm_tensor_2d(p, 40, 64), dense = ddpm_tensor_2d(p + 8192, 48, 64);
    ddpm_tensor y = ddpm_tensor_4d(p + 16384, 3, 4, 4, 32), dx = ddpm_tensor_4d(p + 32768, 3, 8, 8, 16);
    ddpm_tensor dw = ddpm_tensor_4d(p + 40960, 32, 3, 3, 16), out = ddpm_tensor_2d(p + 49152, 40, 48);
    struct mallinfo2 first = {0};
    for (int step = 0; step < 1000; step++) {
        assert_ok(ops->conv2d(be, &(struct conv2d_args){.x = &x, .w = &w, .stride = 2, .pad_bottom = 1, .pad_right = 1, .y = &y}));
        assert_ok(ops->conv2d_bwd_data(be, &(struct conv2d_bwd_data_args){.dy = &y, .w = &w, .stride = 2, .pad_bottom = 1,
                                                                      .pad_right = 1, .dx = &dx}));
        assert_ok(ops->conv2d_bwd_filter(be, &(struct conv2d_bwd_filter_args){.x = &x, .dy = &y, .stride = 2, .pad_bottom = 1,
                                                                          .pad_right = 1, .dw = &dw}));
        assert_ok(ops->linear(be, &(struct linear_args){.x = &rows, .w = &dense, .y = &out}));
        if (step == 1) first = mallinfo2();
    }
    /* A kept 16-byte object a call would show as 1000 * 16 and more. What libraries keep for a thread comes with its first
     * task, which may be late, and once. */
    const struct mallinfo2 last = mallinfo2();
    assert_true(last.uordblks <= first.uordblks + 8192);
    ddpm_backend_free(be);
}

static void the_timer_counts_calls_and_flops(void **state)
{
    (void)state;
    ddpm_backend *be = cpu_with(1);
    float *p = uniforms(4096, 1, -1, 1);
    const ddpm_tensor x = ddpm_tensor_2d(p, 4, 8), w = ddpm_tensor_2d(p, 16, 8);
    ddpm_tensor y = ddpm_tensor_2d(p + 1024, 4, 16);
    const struct linear_args a = {.x = &x, .w = &w, .y = &y};
    struct profile_entry e;
    assert_ok(backend_ops(be)->linear(be, &a)); /* not counted */
    backend_profile(be, true);
    for (int i = 0; i < 3; i++)
        assert_ok(backend_ops(be)->linear(be, &a));
    backend_profile(be, false);
    assert_ok(backend_ops(be)->linear(be, &a)); /* nor this */
    int rows = 0, counted = 0;
    for (; backend_profile_at(be, rows, &e); rows++) {
        if (strcmp(e.name, "linear") != 0) {
            assert_int_equal(e.calls, 0);
            continue;
        }
        counted++;
        assert_int_equal(e.calls, 3);
        assert_true(e.seconds > 0 && e.seconds < 60);
        assert_true(e.flops == 3.0 * 2 * 4 * 8 * 16);
    }
    assert_int_equal(counted, 1);
    assert_true(rows > 20);
    assert_false(backend_profile_at(be, -1, &e));
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OP_TEST(names_choose_devices),
        OP_TEST(without_a_gpu_no_name_is_the_cpu_and_cuda_is_refused),
        OP_TEST(threads_are_those_of_the_affinity_mask),
        OP_TEST(memory_is_aligned_zeroed_and_counted),
        OP_TEST(tensors_and_slices),
        OP_TEST(ops_keep_no_new_memory),
        OP_TEST(the_timer_counts_calls_and_flops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_memory.cpp - memory and errors of the runtime's stand-in: it runs out, overruns are named, the host is kept
 * out, calls fail on demand with CUDA's codes. */
#include "test_support.h"

/* ---- memory ---- */

static void test_memory_runs_out(void **)
{
    size_t before, after, total;
    void *p, *q;
    cuda_on_cpu_memory(1 << 20);
    CUDA(cudaMemGetInfo(&before, &total));
    assert_int_equal(before, 1 << 20);
    assert_cuda(cudaMalloc(&p, (1 << 20) + 1), cudaErrorMemoryAllocation);
    assert_null(p);
    CUDA(cudaMalloc(&p, 1 << 19));
    assert_cuda(cudaMalloc(&q, (1 << 19) + 1), cudaErrorMemoryAllocation);
    CUDA(cudaMemGetInfo(&after, &total));
    assert_int_equal(after, 1 << 19);
    CUDA(cudaMallocHost(&q, 1 << 21)); /* the host's, not the device's */
    CUDA(cudaFreeHost(q));
    CUDA(cudaFree(p));
    CUDA(cudaMalloc(&p, 1 << 20));
    CUDA(cudaFree(p));
    CUDA(cudaMalloc(&p, 0));
    CUDA(cudaFree(p));
    cuda_on_cpu_memory((size_t)4096 << 20);
    assert_cuda(cudaGetLastError(), cudaErrorMemoryAllocation);
}

static void test_bad_pointers(void **)
{
    int local[N] = {0}, *const x = device_ints(), *const y = device_ints(), *const host = pinned_ints();
    assert_cuda(cudaFree(local), cudaErrorInvalidValue);
    assert_cuda(cudaFree(host), cudaErrorInvalidValue);
    assert_cuda(cudaFreeHost(x), cudaErrorInvalidValue);
    assert_cuda(cudaFree(x + 1), cudaErrorInvalidValue);
    assert_cuda(cudaMemcpy(x, local, BYTES + 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_cuda(cudaMemcpy(x + 1, y, BYTES, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    assert_cuda(cudaMemcpy(local, y, BYTES, cudaMemcpyHostToHost), cudaErrorInvalidValue);
    assert_cuda(cudaMemcpy(local, y, BYTES, (enum cudaMemcpyKind)7), cudaErrorInvalidMemcpyDirection);
    assert_cuda(cudaMemset(local, 0, BYTES), cudaErrorInvalidValue);
    CUDA(cudaMemcpy(local, y, BYTES, cudaMemcpyDefault));
    assert_int_equal(local[0], -1); /* new memory is all ones */
    void *p;
    CUDA(cudaMalloc(&p, 4));
    CUDA(cudaFree(p));
    assert_cuda(cudaFree(p), cudaErrorInvalidValue);
    CUDA(cudaFree(x));
    CUDA(cudaFree(y));
    CUDA(cudaFreeHost(host));
    cudaGetLastError();
}

static void test_overruns_are_named(void **)
{
    const auto overrun = [](int by, bool frees) {
        int *p = device_ints();
        launch_kernel(set_kernel, dim3(1), dim3(32), 0, nullptr, p - (by < 0), by < 0 ? (int)N : N + by, 1);
        if (frees) cudaFree(p);
        else cudaDeviceSynchronize();
    };
    assert_death([&] { overrun(3, false); }, HAS_ASAN ? "use-after-poison" : "its byte 400 was written");
    assert_death([&] { overrun(3, true); }, HAS_ASAN ? "use-after-poison" : "a device block of 400 bytes was overrun");
    assert_death([&] { overrun(-1, true); }, HAS_ASAN ? "use-after-poison" : "its byte -4 was written");
}

static void test_guard(void **)
{
    cuda_on_cpu_guard(true);
    int *p = device_ints();
    cuda_on_cpu_guard(false);
    set(nullptr, p, 3);
    assert_int_equal(first_of(p), 3);
    assert_death([&] { *(volatile int *)p = 1; }, "");
    CUDA(cudaFree(p));
}

/* ---- failures on demand ---- */

static void test_nth_call_fails(void **)
{
    void *p = nullptr, *q = nullptr;
    const long calls = cuda_on_cpu_calls();
    cuda_on_cpu_fail_call(2, cudaErrorMemoryAllocation, false);
    CUDA(cudaMalloc(&p, 4));
    assert_cuda(cudaMalloc(&q, 4), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cuda_on_cpu_calls(), calls + 2);
    assert_cuda(cudaGetLastError(), cudaErrorMemoryAllocation);
    CUDA(cudaGetLastError());
    cuda_on_cpu_fail_call(1, cudaErrorLaunchFailure, false);
    assert_cuda(cudaFree(p), cudaErrorLaunchFailure); /* freed all the same */
    cudaGetLastError();
    cuda_on_cpu_fail_call(1, cudaErrorLaunchFailure, false);
    assert_cuda(launch_kernel(set_kernel, dim3(1), dim3(1), 0, nullptr, (int *)nullptr, 0, 0), cudaErrorLaunchFailure);
    cuda_on_cpu_fail_call(1, cudaErrorLaunchFailure, false);
    cuda_on_cpu_fail_call(0, cudaSuccess, false); /* off again */
    CUDA(cudaDeviceSynchronize());
    cudaGetLastError();
}

static void test_sticky_error(void **)
{
    void *p;
    cudaStream_t stream;
    CUDA(cudaMalloc(&p, 4));
    CUDA(cudaStreamCreate(&stream));
    cuda_on_cpu_fail_call(2, cudaErrorIllegalAddress, true);
    CUDA(cudaStreamQuery(stream));
    assert_cuda(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
    assert_cuda(cudaMalloc(&p, 4), cudaErrorIllegalAddress);
    assert_cuda(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_cuda(cudaGetLastError(), cudaErrorIllegalAddress);
    assert_cuda(cudaGetLastError(), cudaErrorIllegalAddress); /* not cleared by being read */
    assert_cuda(cudaStreamDestroy(stream), cudaErrorIllegalAddress);
    assert_int_equal(cuda_on_cpu_live(), 1); /* the memory */
    CUDA(cudaDeviceReset());
    assert_int_equal(cuda_on_cpu_live(), 0);
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());
}

static void test_device_numbers(void **)
{
    int count = -1, value;
    struct cudaDeviceProp p;
    CUDA(cudaGetDeviceCount(&count));
    assert_int_equal(count, 1);
    assert_cuda(cudaSetDevice(1), cudaErrorInvalidDevice);
    CUDA(cudaGetDeviceProperties(&p, 0));
    assert_string_equal(p.name, "CPU stand-in");
    CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    assert_int_equal(value, p.multiProcessorCount);
    cuda_on_cpu_devices(0);
    assert_cuda(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    assert_int_equal(count, 0);
    assert_cuda(cudaSetDevice(0), cudaErrorNoDevice);
    cuda_on_cpu_devices(1);
    assert_string_equal(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
    assert_string_equal(cudaGetErrorString((cudaError_t)12345), "unrecognized error code");
    cudaGetLastError();
}

int main()
{
    const struct CMUnitTest tests[] = {
        TEST(test_memory_runs_out),
        TEST(test_bad_pointers),
        TEST(test_overruns_are_named),
        TEST(test_guard),
        TEST(test_nth_call_fails),
        TEST(test_sticky_error),
        TEST(test_device_numbers),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

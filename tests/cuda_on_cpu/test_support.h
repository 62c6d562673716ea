/* test_support.h - for the self-tests: cmocka in C++, CUDA calls that must succeed, deaths in a child, all schedules,
 * and a kernel to fill N integers on the device. */
#ifndef CUDA_ON_CPU_TEST_SUPPORT_H
#define CUDA_ON_CPU_TEST_SUPPORT_H

#include "control.h"
#include "device.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <cmocka.h>
}

#define assert_cuda(call, code)                                                                                        \
    do {                                                                                                               \
        const cudaError_t got_ = (call), want_ = (code);                                                               \
        if (got_ != want_) fail_msg("%s: %s, expected %s", #call, cudaGetErrorName(got_), cudaGetErrorName(want_));    \
    } while (0)
#define CUDA(call) assert_cuda(call, cudaSuccess)

/* Runs the statement under forward, reverse, and a few random schedules; forward again at the end. */
#define FOR_EACH_SCHEDULE(...)                                                                                         \
    do {                                                                                                               \
        for (int schedule_ = 0; schedule_ < 6; schedule_++) {                                                          \
            const int order_ = schedule_ < CUDA_ON_CPU_RANDOM ? schedule_ : CUDA_ON_CPU_RANDOM;                        \
            cuda_on_cpu_schedule((enum cuda_on_cpu_order)order_, (uint64_t)schedule_);                                 \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
        cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 1);                                                                  \
    } while (0)

/* Passes when body() in a child process ends by a signal or a non-zero status, with `message` on its standard error. */
template <class F> static inline void assert_death(F body, const char *message)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        body();
        _exit(0);
    }
    close(ends[1]);
    char text[65536];
    size_t used = 0;
    for (ssize_t n = 1; n > 0 && used < sizeof text - 1; used += n > 0 ? (size_t)n : 0)
        n = read(ends[0], text + used, sizeof text - 1 - used);
    text[used] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && !WEXITSTATUS(status)) fail_msg("it lived; standard error: %s", text);
    if (!strstr(text, message)) fail_msg("'%s' is not in: %s", message, text);
}

#ifdef __SANITIZE_ADDRESS__
static const bool HAS_ASAN = true;
#else
static const bool HAS_ASAN = false;
#endif

enum { N = 100 };
static const size_t BYTES = N * sizeof(int);

static inline __global__ void set_kernel(int *p, int n, int value)
{
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        p[i] = value;
}

static inline void set(cudaStream_t stream, int *p, int value)
{
    CUDA(launch_kernel(set_kernel, dim3(1), dim3(32), 0, stream, p, (int)N, value));
}

static inline int *device_ints()
{
    int *p;
    CUDA(cudaMalloc(reinterpret_cast<void **>(&p), BYTES));
    return p;
}

static inline int *pinned_ints()
{
    int *p;
    CUDA(cudaMallocHost(reinterpret_cast<void **>(&p), BYTES));
    return p;
}

/* All N are the same; the value. */
static inline int first_of(const int *device)
{
    int x[N];
    CUDA(cudaMemcpy(x, device, BYTES, cudaMemcpyDeviceToHost));
    for (int i = 1; i < N; i++)
        assert_int_equal(x[i], x[0]);
    return x[0];
}

/* After each test: nothing lives, and no error was left unread. */
static inline int nothing_left(void **)
{
    const size_t live = cuda_on_cpu_live();
    const cudaError_t e = cudaGetLastError();
    if (live || e) print_error("%zu objects left, last error %s\n", live, cudaGetErrorName(e));
    return live || e;
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)

#endif

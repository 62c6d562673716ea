/* test_block.cpp - the block runner does what CUDA says of threads, warps, barriers and shared memory, in every
 * schedule, and planted bugs are caught. Compiled a second time with -fsanitize=thread, it holds the race checker to
 * the same. */
#include "test_support.h"

#include <vector>

#ifdef __SANITIZE_THREAD__
static const bool IS_CHECKED = true; /* these kernels; cuda_on_cpu_races_checked() speaks of the whole program */
#else
static const bool IS_CHECKED = false;
#endif

typedef __nv_bfloat16 bf16;

/* Device memory of n elements for a test, from and to the host. */
template <class T> struct device_array {
    T *p;
    size_t n;

    explicit device_array(const std::vector<T> &from) : p(nullptr), n(from.size())
    {
        CUDA(cudaMalloc(reinterpret_cast<void **>(&p), n * sizeof(T)));
        CUDA(cudaMemcpy(p, from.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~device_array()
    {
        cudaFree(p);
    }
    std::vector<T> host() const
    {
        std::vector<T> to(n);
        CUDA(cudaMemcpy(to.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return to;
    }
};

static std::vector<float> ramp(size_t n)
{
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(i % 1000);
    return x;
}

/* ---- kernels that are right ---- */

__global__ void __launch_bounds__(256) sum_kernel(const float *x, float *sums)
{
    SHARED(float, room, 8);
    float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        sum += room[w];
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

static void test_block_sums(void **)
{
    const std::vector<float> x = ramp(64 * 256);
    const device_array<float> from(x);
    FOR_EACH_SCHEDULE({
        const device_array<float> to(std::vector<float>(64));
        CUDA(launch_kernel(sum_kernel, dim3(64), dim3(256), 0, nullptr, from.p, to.p));
        const std::vector<float> sums = to.host();
        for (size_t b = 0; b < 64; b++) {
            float want = 0;
            for (size_t i = 0; i < 256; i++)
                want += x[b * 256 + i];
            assert_true(sums[b] == want); /* integers below 2^24: exact in any order */
        }
    });
}

template <int TILE> __global__ void transpose_kernel(const bf16 *from, bf16 *to, int rows, int columns)
{
    SHARED_DYNAMIC(bf16, tile);
    const int x = (int)(blockIdx.x * TILE + threadIdx.x), y = (int)(blockIdx.y * TILE + threadIdx.y);
    if (x < columns && y < rows) tile[threadIdx.y * (TILE + 1) + threadIdx.x] = from[y * columns + x];
    __syncthreads();
    const int to_x = (int)(blockIdx.y * TILE + threadIdx.x), to_y = (int)(blockIdx.x * TILE + threadIdx.y);
    if (to_x < rows && to_y < columns) to[to_y * rows + to_x] = tile[threadIdx.x * (TILE + 1) + threadIdx.y];
}

static void test_transpose(void **)
{
    const int rows = 70, columns = 45;
    std::vector<bf16> x((size_t)rows * columns);
    for (int i = 0; i < rows * columns; i++)
        x[(size_t)i] = __float2bfloat16_rn((float)(i % 256));
    const device_array<bf16> from(x);
    FOR_EACH_SCHEDULE({
        const device_array<bf16> to(x);
        CUDA(launch_kernel(transpose_kernel<16>, dim3(3, 5), dim3(16, 16), 16 * 17 * sizeof(bf16), nullptr, from.p, to.p, rows,
                           columns));
        const std::vector<bf16> y = to.host();
        for (int i = 0; i < rows * columns; i++)
            assert_true(__bfloat162float(y[(size_t)(i % columns * rows + i / columns)]) == (float)(i % 256));
    });
}

__global__ void histogram_kernel(const int *x, int n, unsigned *counts, float *total)
{
    SHARED(unsigned, bins, 16);
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        atomicAdd(&bins[x[i] % 16], 1);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
    atomicAdd(total, 0.5f);
    atomicMax(&counts[16], threadIdx.x);
}

static void test_atomics(void **)
{
    std::vector<int> x(1000);
    for (int i = 0; i < 1000; i++)
        x[(size_t)i] = i * 7;
    const device_array<int> from(x);
    FOR_EACH_SCHEDULE({
        const device_array<unsigned> counts(std::vector<unsigned>(17));
        const device_array<float> total(std::vector<float>(1));
        CUDA(launch_kernel(histogram_kernel, dim3(3), dim3(96), 0, nullptr, from.p, 1000, counts.p, total.p));
        unsigned sum = 0;
        for (int i = 0; i < 16; i++)
            sum += counts.host()[(size_t)i];
        assert_int_equal(sum, 3000);
        assert_int_equal(counts.host()[16], 95);
        assert_true(total.host()[0] == 144);
    });
}

__global__ void shuffle_kernel(int *out)
{
    const int lane = (int)threadIdx.x, half = lane < 16 ? 0 : 16;
    const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
    int *mine = out + lane * 8;
    mine[0] = __shfl_sync(0xffffffffu, lane, 5);
    mine[1] = __shfl_sync(0xffffffffu, lane, 3, 8);
    mine[2] = __shfl_up_sync(0xffffffffu, lane, 2, 8);
    mine[3] = __shfl_down_sync(0xffffffffu, lane, 3, 16);
    mine[4] = __shfl_xor_sync(0xffffffffu, lane, 9);
    mine[5] = __shfl_sync(mask, lane, half + 1); /* the halves meet apart */
    mine[6] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    mine[7] = 10 * __any_sync(mask, lane == 3) + __all_sync(mask, lane >= 16);
}

static void test_shuffles(void **)
{
    FOR_EACH_SCHEDULE({
        const device_array<int> out(std::vector<int>(32 * 8));
        CUDA(launch_kernel(shuffle_kernel, dim3(1), dim3(32), 0, nullptr, out.p));
        const std::vector<int> got = out.host();
        for (int lane = 0; lane < 32; lane++) {
            const int *mine = &got[(size_t)lane * 8];
            assert_int_equal(mine[0], 5);
            assert_int_equal(mine[1], lane / 8 * 8 + 3);
            assert_int_equal(mine[2], lane % 8 >= 2 ? lane - 2 : lane);
            assert_int_equal(mine[3], lane % 16 < 13 ? lane + 3 : lane);
            assert_int_equal(mine[4], lane ^ 9);
            assert_int_equal(mine[5], lane < 16 ? 1 : 17);
            assert_int_equal(mine[6], 0x49249249);
            assert_int_equal(mine[7], lane < 16 ? 10 : 1);
        }
    });
}

__global__ void ends_early_kernel(int *out)
{
    const int votes = __syncthreads_count(threadIdx.x % 2 == 0);
    if (threadIdx.x >= 40) return; /* in the middle of a warp: they count as arrived from here on */
    const int all = __syncthreads_and(threadIdx.x < 40), any = __syncthreads_or(threadIdx.x == 39);
    const unsigned ballot = __ballot_sync(0xffffffffu, 1);
    out[threadIdx.x] = votes * 100 + all * 10 + any + (ballot == (threadIdx.x < 32 ? 0xffffffffu : 0xffu) ? 0 : 1000000);
}

static void test_threads_that_end(void **)
{
    FOR_EACH_SCHEDULE({
        const device_array<int> out(std::vector<int>(40));
        CUDA(launch_kernel(ends_early_kernel, dim3(4), dim3(50), 0, nullptr, out.p));
        for (int x : out.host())
            assert_int_equal(x, 2511);
    });
}

__global__ void index_kernel(unsigned *seen)
{
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    seen[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

static void test_every_thread_once(void **)
{
    FOR_EACH_SCHEDULE({
        const device_array<unsigned> seen(std::vector<unsigned>(3 * 5 * 2 * 60));
        CUDA(launch_kernel(index_kernel, dim3(3, 5, 2), dim3(5, 4, 3), 0, nullptr, seen.p));
        for (unsigned times : seen.host())
            assert_int_equal(times, 1);
    });
}

/* ---- launches that are refused ---- */

__global__ void nothing_kernel(int)
{
}

static void test_launch_checks(void **)
{
#define LAUNCH(grid, block, bytes) launch_kernel(nothing_kernel, grid, block, bytes, nullptr, 1)
    assert_cuda(LAUNCH(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(1), dim3(32, 33), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(1), dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(1), dim3(0), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(0), dim3(1), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(0x80000000u), dim3(1), 0), cudaErrorInvalidConfiguration);
    assert_cuda(LAUNCH(dim3(1), dim3(1), 48 * 1024 + 1), cudaErrorInvalidValue);
    assert_cuda(cudaGetLastError(), cudaErrorInvalidValue);
    CUDA(cudaGetLastError());
    CUDA(LAUNCH(dim3(1), dim3(1024), 48 * 1024));
    assert_cuda(cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024),
                cudaErrorInvalidValue);
    CUDA(cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CUDA(LAUNCH(dim3(1), dim3(1), 227 * 1024));
    struct cudaFuncAttributes a;
    CUDA(cudaFuncGetAttributes(&a, nothing_kernel));
    assert_int_equal(a.maxDynamicSharedSizeBytes, 227 * 1024);
    assert_cuda(launch_kernel(nothing_kernel, dim3(1), dim3(1), 0, (cudaStream_t)&a, 1), cudaErrorInvalidResourceHandle);
    cudaGetLastError();
    CUDA(cudaDeviceSynchronize());
#undef LAUNCH
}

/* ---- planted bugs ---- */

__global__ void mirror_kernel(float *out, bool forgets)
{
    SHARED(float, room, 64);
    room[threadIdx.x] = (float)threadIdx.x;
    if (!forgets) __syncthreads();
    out[threadIdx.x] = room[63 - threadIdx.x];
}

static size_t mirror_errors(bool forgets)
{
    const device_array<float> out(std::vector<float>(64));
    CUDA(launch_kernel(mirror_kernel, dim3(1), dim3(64), 0, nullptr, out.p, forgets));
    const std::vector<float> got = out.host();
    size_t wrong = 0;
    for (size_t i = 0; i < 64; i++)
        wrong += !(got[i] == (float)(63 - i)); /* NaN where not yet written */
    return wrong;
}

static void test_missing_barrier(void **)
{
    cuda_on_cpu_races_abort(false);
    FOR_EACH_SCHEDULE({
        const long races = cuda_on_cpu_races();
        assert_int_equal(mirror_errors(false), 0);
        assert_int_equal(cuda_on_cpu_races(), races);
        assert_true(mirror_errors(true) > 0);
        assert_true(!IS_CHECKED || cuda_on_cpu_races() > races);
    });
    cuda_on_cpu_races_abort(true);
    if (IS_CHECKED) {
        assert_death([] { mirror_errors(true); }, "room");
    }
}

__global__ void partly_written_kernel(float *out)
{
    SHARED(float, room, 32);
    SHARED_DYNAMIC(float, dynamic);
    if (threadIdx.x != 7) room[threadIdx.x] = dynamic[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = room[threadIdx.x];
    out[32 + threadIdx.x] = dynamic[threadIdx.x];
}

static void test_unwritten_shared_memory(void **)
{
    cuda_on_cpu_races_abort(false);
    const long before = cuda_on_cpu_unwritten_reads();
    const device_array<float> out(std::vector<float>(64));
    CUDA(launch_kernel(partly_written_kernel, dim3(2), dim3(32), 32 * sizeof(float), nullptr, out.p));
    const std::vector<float> got = out.host();
    for (int i = 0; i < 64; i++)
        assert_int_equal(got[(size_t)i] != got[(size_t)i], i % 32 == 7);
    assert_int_equal(cuda_on_cpu_unwritten_reads() - before, IS_CHECKED ? 4 : 0);
    cuda_on_cpu_races_abort(true);
}

enum { DIVERGENT, WRONG_MASK, NOT_IN_MASK, OTHER_COLLECTIVE, TOO_MUCH_SHARED };

__global__ void stuck_kernel(int how)
{
    const int lane = (int)threadIdx.x;
    if (how == DIVERGENT && lane < 16) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    if (how == DIVERGENT && lane >= 16) __syncthreads();
    if (how == WRONG_MASK) __syncwarp(lane == 3 ? 0xffff000fu : 0xffffffffu);
    if (how == NOT_IN_MASK) __syncwarp(0xfffffffeu);
    if (how == OTHER_COLLECTIVE && lane < 16) __ballot_sync(0xffffffffu, 1);
    if (how == OTHER_COLLECTIVE && lane >= 16) __any_sync(0xffffffffu, 1);
    if (how == TOO_MUCH_SHARED) {
        SHARED(float, large, 12 * 1024);
        SHARED(float, one_more, 1);
        large[lane] = one_more[0] = 1;
    }
}

static void run_stuck(int how)
{
    launch_kernel(stuck_kernel, dim3(1), dim3(32), 0, nullptr, how);
    cudaDeviceSynchronize();
}

static void test_threads_that_cannot_meet(void **)
{
    FOR_EACH_SCHEDULE({
        assert_death([] { run_stuck(DIVERGENT); }, "deadlock in block (0,0,0)");
        assert_death([] { run_stuck(DIVERGENT); }, "waits in __shfl_xor_sync, mask 0xffffffff");
        assert_death([] { run_stuck(DIVERGENT); }, "waits in __syncthreads");
        assert_death([] { run_stuck(WRONG_MASK); }, "mask");
        assert_death([] { run_stuck(NOT_IN_MASK); }, "thread 0: the lane is not in the mask it gives to __syncwarp");
        assert_death([] { run_stuck(OTHER_COLLECTIVE); }, "lanes of a warp meet in");
    });
    assert_death([] { run_stuck(TOO_MUCH_SHARED); }, "one_more");
}

__global__ void overrun_kernel(float *out, int by)
{
    SHARED(float, room, 64);
    SHARED_DYNAMIC(float, dynamic);
    const int i = (int)threadIdx.x + by;
    (by % 2 ? room : dynamic)[i] = 1;
    out[threadIdx.x] = (by % 2 ? room : dynamic)[threadIdx.x];
}

__global__ void overrun_global_kernel(float *out, int n)
{
    if ((int)threadIdx.x <= n) out[threadIdx.x] = 1;
}

static void test_overruns(void **)
{
    const device_array<float> out(std::vector<float>(64));
    const auto overrun_shared = [&](int by) {
        launch_kernel(overrun_kernel, dim3(1), dim3(64), 64 * sizeof(float), nullptr, out.p, by);
        cudaDeviceSynchronize();
    };
    if (HAS_ASAN) {
        assert_death([&] { overrun_shared(1); }, "overrun_kernel");
        assert_death([&] { overrun_shared(2); }, "overrun_kernel");
    }
    assert_death(
        [&] {
            launch_kernel(overrun_global_kernel, dim3(1), dim3(128), 0, nullptr, out.p, 64);
            cudaDeviceSynchronize();
        },
        HAS_ASAN ? "use-after-poison" : "a device block of 256 bytes was overrun: its byte 256 was written");
}

/* ---- the race checker, where the kernels are instrumented ---- */

enum { SAME_WARP, BY_SYNCWARP, BY_PART_OF_WARP, BY_SHUFFLE, NEIGHBOUR_BYTES, ATOMICS, ATOMIC_AND_PLAIN, WRITE_AFTER_READ,
       WRITE_AFTER_READ_SYNCED, SAME_THREAD, TWO_BARRIERS };

__global__ void racy_kernel(int how, float *out)
{
    SHARED(float, room, 64);
    SHARED(bf16, halves, 64);
    const unsigned t = threadIdx.x, other = t ^ 1;
    room[t] = 0;
    halves[t] = __float2bfloat16_rn(0);
    __syncthreads();
    switch (how) {
    case WRITE_AFTER_READ:
    case WRITE_AFTER_READ_SYNCED:
        out[t] = room[0];
        if (how == WRITE_AFTER_READ_SYNCED) __syncthreads();
        if (t == 40) room[0] = 1;
        return;
    case NEIGHBOUR_BYTES:
        halves[t] = __float2bfloat16_rn(1);
        return;
    case ATOMICS:
    case ATOMIC_AND_PLAIN:
        atomicAdd(&room[0], 1.0f);
        if (how == ATOMIC_AND_PLAIN && t == 9) room[0] = 1;
        return;
    default:
        break;
    }
    room[t] = (float)t;
    if (how == BY_SYNCWARP) __syncwarp();
    if (how == BY_PART_OF_WARP) __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);
    if (how == BY_SHUFFLE) out[0] = __shfl_sync(0xffffffffu, 1.0f, 0);
    if (how == TWO_BARRIERS) __syncthreads();
    if (how != SAME_THREAD) out[t] = room[how == BY_PART_OF_WARP && t == 63 ? 32 : other];
}

static void test_races(void **)
{
    assert_true(cuda_on_cpu_races_checked() || !IS_CHECKED);
    if (!IS_CHECKED) skip();
    static const struct {
        int how;
        bool is_race;
    } cases[] = {{SAME_WARP, true},       {BY_SYNCWARP, false},    {BY_PART_OF_WARP, true},
                 {BY_SHUFFLE, true},      {NEIGHBOUR_BYTES, false}, {ATOMICS, false},
                 {ATOMIC_AND_PLAIN, true}, {WRITE_AFTER_READ, true}, {WRITE_AFTER_READ_SYNCED, false},
                 {SAME_THREAD, false},    {TWO_BARRIERS, false}};
    cuda_on_cpu_races_abort(false);
    const device_array<float> out(std::vector<float>(64));
    for (const auto &c : cases) {
        FOR_EACH_SCHEDULE({
            const long before = cuda_on_cpu_races();
            CUDA(launch_kernel(racy_kernel, dim3(1), dim3(64), 0, nullptr, c.how, out.p));
            CUDA(cudaDeviceSynchronize());
            if ((cuda_on_cpu_races() > before) != c.is_race) fail_msg("case %d, schedule %d", c.how, schedule_);
        });
    }
    cuda_on_cpu_races_abort(true);
}

int main()
{
    const struct CMUnitTest tests[] = {
        TEST(test_block_sums),
        TEST(test_transpose),
        TEST(test_atomics),
        TEST(test_shuffles),
        TEST(test_threads_that_end),
        TEST(test_every_thread_once),
        TEST(test_launch_checks),
        TEST(test_missing_barrier),
        TEST(test_unwritten_shared_memory),
        TEST(test_threads_that_cannot_meet),
        TEST(test_overruns),
        TEST(test_races),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

/* test_streams.cpp - streams and graphs of the runtime's stand-in: what a program forgets to wait for is old, streams
 * keep CUDA's order and no more, captures become graphs that replay, and what CUDA forbids while capturing is
 * refused. */
#include "test_support.h"

/* to = 10 from + add: the order of two of them shows in the result. */
__global__ void append_kernel(const int *from, int *to, int n, int add)
{
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        to[i] = 10 * from[i] + add;
}

static void append(cudaStream_t stream, const int *from, int *to, int add)
{
    CUDA(launch_kernel(append_kernel, dim3(1), dim3(32), 0, stream, from, to, (int)N, add));
}

/* What each test starts with, and has to give back. */
struct fixture {
    cudaStream_t a, b; /* not blocking */
    cudaEvent_t event, event2;
    int *x, *y; /* on the device */
    int *host;  /* pinned */

    fixture()
    {
        CUDA(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
        CUDA(cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, 0));
        CUDA(cudaEventCreate(&event));
        CUDA(cudaEventCreateWithFlags(&event2, cudaEventDisableTiming));
        x = device_ints();
        y = device_ints();
        host = pinned_ints();
    }
    ~fixture()
    {
        cudaFree(x);
        cudaFree(y);
        cudaFreeHost(host);
        cudaEventDestroy(event);
        cudaEventDestroy(event2);
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
    }
};

/* ---- waiting ---- */

static void test_nothing_runs_before_a_wait(void **)
{
    fixture f;
    f.host[0] = 77;
    set(f.a, f.x, 5);
    CUDA(cudaMemcpyAsync(f.host, f.x, BYTES, cudaMemcpyDeviceToHost, f.a));
    assert_int_equal(f.host[0], 77);
    CUDA(cudaStreamSynchronize(f.b));
    assert_int_equal(f.host[0], 77);
    CUDA(cudaStreamSynchronize(f.a));
    assert_int_equal(f.host[0], 5);

    int pageable[N];
    set(f.a, f.x, 6);
    CUDA(cudaMemcpyAsync(pageable, f.x, BYTES, cudaMemcpyDeviceToHost, f.a)); /* waits by its nature */
    assert_int_equal(pageable[N - 1], 6);
    CUDA(cudaMemsetAsync(f.x, 0, BYTES, f.a));
    assert_int_equal(first_of(f.x), 6); /* the default stream does not wait for f.a */
    CUDA(cudaDeviceSynchronize());
    assert_int_equal(first_of(f.x), 0);
}

static void test_when_sources_are_read(void **)
{
    fixture f;
    int pageable[N];
    for (int i = 0; i < N; i++)
        pageable[i] = f.host[i] = 1;
    CUDA(cudaMemcpyAsync(f.x, pageable, BYTES, cudaMemcpyHostToDevice, f.a));
    CUDA(cudaMemcpyAsync(f.y, f.host, BYTES, cudaMemcpyHostToDevice, f.a));
    for (int i = 0; i < N; i++)
        pageable[i] = f.host[i] = 2;
    CUDA(cudaStreamSynchronize(f.a));
    assert_int_equal(first_of(f.x), 1);
    assert_int_equal(first_of(f.y), 2); /* overwritten too early */
}

static void test_queries_make_progress(void **)
{
    fixture f;
    set(f.a, f.x, 5);
    append(f.a, f.x, f.y, 1);
    CUDA(cudaEventRecord(f.event, f.a));
    assert_cuda(cudaStreamQuery(f.a), cudaErrorNotReady);
    int polls = 0;
    while (cudaEventQuery(f.event) == cudaErrorNotReady)
        polls++;
    assert_in_range(polls, 1, 5);
    assert_cuda(cudaGetLastError(), cudaErrorNotReady);
    CUDA(cudaStreamQuery(f.a));
    assert_int_equal(first_of(f.y), 51);
}

/* ---- order of streams ---- */

/* 51 where `a` ran before `b`. */
static int order_of_two_streams(fixture *f, bool by_event)
{
    CUDA(cudaMemset(f->x, 0, BYTES));
    CUDA(cudaDeviceSynchronize());
    set(f->a, f->x, 5);
    if (by_event) {
        CUDA(cudaEventRecord(f->event2, f->a));
        CUDA(cudaStreamWaitEvent(f->b, f->event2, 0));
    }
    append(f->b, f->x, f->y, 1);
    CUDA(cudaDeviceSynchronize());
    return first_of(f->y);
}

static void test_order_across_streams(void **)
{
    fixture f;
    int wrong = 0;
    FOR_EACH_SCHEDULE({
        assert_int_equal(order_of_two_streams(&f, true), 51);
        wrong += order_of_two_streams(&f, false) != 51;
    });
    assert_in_range(wrong, 1, 5);

    set(f.a, f.x, 7);
    CUDA(cudaEventRecord(f.event2, f.a));
    set(f.a, f.x, 8);
    CUDA(cudaEventSynchronize(f.event2));
    assert_int_equal(first_of(f.x), 7);
    CUDA(cudaDeviceSynchronize());
}

static void test_legacy_stream(void **)
{
    fixture f;
    cudaStream_t blocking;
    CUDA(cudaStreamCreate(&blocking));
    FOR_EACH_SCHEDULE({
        set(blocking, f.x, 1);
        append(nullptr, f.x, f.x, 2);
        append(blocking, f.x, f.x, 3);
        append(cudaStreamLegacy, f.x, f.x, 4);
        CUDA(cudaStreamSynchronize(blocking));
        CUDA(cudaStreamSynchronize(nullptr));
        assert_int_equal(first_of(f.x), 1234);
    });
    set(blocking, f.x, 6);
    CUDA(cudaStreamDestroy(blocking)); /* what is queued still runs */
    assert_cuda(cudaStreamSynchronize(blocking), cudaErrorInvalidResourceHandle);
    assert_int_equal(first_of(f.x), 6);
    cudaGetLastError();
}

static void store_error_of_call(void *to)
{
    *static_cast<cudaError_t *>(to) = cudaDeviceSynchronize();
}

static void test_host_functions_and_times(void **)
{
    fixture f;
    cudaError_t inside = cudaSuccess;
    float milliseconds = -1;
    CUDA(cudaEventRecord(f.event, f.a));
    CUDA(cudaLaunchHostFunc(f.a, store_error_of_call, &inside));
    cudaEvent_t end;
    CUDA(cudaEventCreate(&end));
    CUDA(cudaEventRecord(end, f.a));
    assert_cuda(cudaEventElapsedTime(&milliseconds, f.event, end), cudaErrorNotReady);
    CUDA(cudaEventSynchronize(end));
    assert_cuda(inside, cudaErrorNotPermitted);
    CUDA(cudaEventElapsedTime(&milliseconds, f.event, end));
    assert_true(milliseconds >= 0 && milliseconds < 10000);
    assert_cuda(cudaEventElapsedTime(&milliseconds, f.event2, end), cudaErrorInvalidResourceHandle);
    CUDA(cudaEventDestroy(end));
    cudaGetLastError();
}

/* ---- graphs ---- */

/* y = x with digits appended on two streams: 1 on `a`, then 2 on `b`, then 3 on `a`; the host's copy at the end. */
static void enqueue_fork_and_join(fixture *f, bool forks_late)
{
    CUDA(cudaMemcpyAsync(f->y, f->x, BYTES, cudaMemcpyDeviceToDevice, f->a));
    if (forks_late) CUDA(cudaEventRecord(f->event, f->a));
    append(f->a, f->y, f->y, 1);
    if (!forks_late) CUDA(cudaEventRecord(f->event, f->a));
    CUDA(cudaStreamWaitEvent(f->b, f->event, 0));
    append(f->b, f->y, f->y, 2);
    CUDA(cudaEventRecord(f->event2, f->b));
    CUDA(cudaStreamWaitEvent(f->a, f->event2, 0));
    append(f->a, f->y, f->y, 3);
    CUDA(cudaMemcpyAsync(f->host, f->y, BYTES, cudaMemcpyDeviceToHost, f->a));
}

static cudaGraphExec_t captured(fixture *f, bool forks_late)
{
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    enum cudaStreamCaptureStatus status;
    size_t nodes = 0;
    CUDA(cudaStreamBeginCapture(f->a, cudaStreamCaptureModeGlobal));
    enqueue_fork_and_join(f, forks_late);
    CUDA(cudaStreamIsCapturing(f->b, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    CUDA(cudaStreamEndCapture(f->a, &graph));
    CUDA(cudaStreamIsCapturing(f->b, &status));
    assert_int_equal(status, cudaStreamCaptureStatusNone);
    CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    assert_int_equal(nodes, 5);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return executable;
}

static void test_graph_equals_direct_run(void **)
{
    fixture f;
    CUDA(cudaMemset(f.x, 0, BYTES));
    CUDA(cudaMemset(f.y, 0, BYTES));
    CUDA(cudaDeviceSynchronize());
    const long kernels = cuda_on_cpu_kernels();
    cudaGraphExec_t executable = captured(&f, false);
    assert_int_equal(cuda_on_cpu_kernels(), kernels); /* capturing runs nothing */
    FOR_EACH_SCHEDULE({
        set(f.a, f.x, 4);
        enqueue_fork_and_join(&f, false);
        CUDA(cudaStreamSynchronize(f.a));
        assert_int_equal(f.host[0], 4123);
        f.host[0] = 0;
        for (int value = 5; value < 8; value++) {
            set(f.a, f.x, value);
            CUDA(cudaGraphLaunch(executable, f.a));
            CUDA(cudaStreamSynchronize(f.a));
            assert_int_equal(f.host[0], value * 1000 + 123);
        }
    });
    CUDA(cudaGraphExecDestroy(executable));
}

static void test_missing_edge_shows(void **)
{
    fixture f;
    int wrong = 0;
    cudaGraphExec_t executable = captured(&f, true);
    FOR_EACH_SCHEDULE({
        set(f.a, f.x, 4);
        CUDA(cudaGraphLaunch(executable, f.a));
        CUDA(cudaStreamSynchronize(f.a));
        wrong += f.host[0] != 4123;
    });
    assert_in_range(wrong, 1, 5);
    CUDA(cudaGraphExecDestroy(executable));
}

static void test_what_capture_forbids(void **)
{
    fixture f;
    cudaGraph_t graph;
    void *p;
    assert_cuda(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
    CUDA(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    assert_cuda(cudaMalloc(&p, 4), cudaErrorStreamCaptureUnsupported);
    assert_cuda(cudaMemsetAsync(f.x, 0, BYTES, f.a), cudaErrorStreamCaptureInvalidated);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);

    CUDA(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeRelaxed));
    CUDA(cudaMalloc(&p, 4)); /* allowed now; waiting for the captured stream never is */
    assert_cuda(cudaStreamSynchronize(f.a), cudaErrorStreamCaptureUnsupported);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureInvalidated);
    CUDA(cudaFree(p));

    CUDA(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    CUDA(cudaEventRecord(f.event, f.a));
    CUDA(cudaStreamWaitEvent(f.b, f.event, 0));
    set(f.b, f.x, 1);
    assert_cuda(cudaStreamEndCapture(f.b, &graph), cudaErrorStreamCaptureUnmatched);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureInvalidated);

    CUDA(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    CUDA(cudaEventRecord(f.event, f.a));
    CUDA(cudaStreamWaitEvent(f.b, f.event, 0));
    set(f.b, f.x, 1);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureUnjoined);
    assert_cuda(cudaEventSynchronize(f.event), cudaErrorCapturedEvent);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorIllegalState);

    CUDA(cudaEventRecord(f.event, f.b));
    CUDA(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    assert_cuda(cudaStreamWaitEvent(f.a, f.event, 0), cudaErrorStreamCaptureIsolation);
    assert_cuda(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
}

static void test_live_objects_are_counted(void **)
{
    assert_int_equal(cuda_on_cpu_live(), 0);
    fixture f;
    assert_int_equal(cuda_on_cpu_live(), 7);
    cudaGraphExec_t executable = captured(&f, false);
    assert_int_equal(cuda_on_cpu_live(), 8);
    CUDA(cudaGraphExecDestroy(executable));
    assert_cuda(cudaGraphExecDestroy(executable), cudaErrorInvalidValue);
    assert_int_equal(cuda_on_cpu_live(), 7);
    cudaGetLastError();
}

int main()
{
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_runs_before_a_wait),
        TEST(test_when_sources_are_read),
        TEST(test_queries_make_progress),
        TEST(test_order_across_streams),
        TEST(test_legacy_stream),
        TEST(test_host_functions_and_times),
        TEST(test_graph_equals_direct_run),
        TEST(test_missing_edge_shows),
        TEST(test_what_capture_forbids),
        TEST(test_live_objects_are_counted),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

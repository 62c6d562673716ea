/* test_cudnn_engines.cpp - engines and plans of cuDNN's stand-in, when they run, and what is refused. */
#include "test_cudnn.h"

/* ---- engines ---- */

static void engines_differ(void **)
{
    const problem p = solve(1, 1, 1);
    const std::vector<D> configs = configurations(conv_graph(FILTER, p, CUDNN_DATA_FLOAT), device());
    assert_int_equal(configs.size(), 4);
    const std::vector<int> first = notes_of(configs[0]), second = notes_of(configs[1]);
    assert_true(first == (std::vector<int>{CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS}));
    assert_true(second == (std::vector<int>{CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}));
    assert_true(notes_of(configs[2]).empty());
    assert_in_range(workspace_of(plan_of(configs[3])), X_COUNT * 4, 100000); /* a tensor's size */

    /* TF32 shows on numbers of more than 10 bits; the order of sums does on some. */
    std::vector<float> x = p.x, dy = p.dy;
    for (size_t i = 0; i < dy.size(); i++) {
        dy[i] = sinf((float)i);
        if (i < x.size()) x[i] = cosf((float)i);
    }
    std::vector<std::vector<float>> results;
    for (int i : {0, 1, 1, 2, 2}) {
        void *out = block(W_COUNT * 4);
        D plan = plan_of(configs[(size_t)i]);
        OK(cudnnBackendExecute(handle, plan,
                               pack_of({1, 2, 3}, {upload(x, CUDNN_DATA_FLOAT), out, upload(dy, CUDNN_DATA_FLOAT)},
                                       block((size_t)workspace_of(plan)))));
        results.push_back(download(out, W_COUNT, CUDNN_DATA_FLOAT));
    }
    assert_true(results[0] != results[3]);
    assert_true(results[1] != results[2]);
    assert_true(results[3] == results[4]);

    cuda_on_cpu_engines(false);
    assert_int_equal(configurations(conv_graph(FILTER, p, CUDNN_DATA_FLOAT), device()).size(), 0);
}

/* A plan's text makes the same plan again; damage is noticed. */
static void plans_come_back_from_text(void **)
{
    const problem p = solve(2, 1, 1);
    D plan = plan_of(configurations(conv_graph(FORWARD, p, CUDNN_DATA_FLOAT), device())[1]);
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, 0, &n, nullptr));
    std::string text((size_t)n, ' ');
    OK(cudnnBackendGetAttribute(plan, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, n, &n, &text[0]));
    for (int damage = 0; damage < 40; damage++) {
        std::string changed = text;
        if (damage) changed.erase((size_t)(damage * 37) % changed.size(), 3);
        D again = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(again, A(EXECUTION_PLAN_DEVICEPROP), device());
        set(again, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, (int64_t)changed.size(), changed.data());
        const cudnnStatus_t s = cudnnBackendFinalize(again);
        if (damage && s) continue;
        assert_int_equal(s, CUDNN_STATUS_SUCCESS);
        if (damage) continue; /* in the kernel's name, say */
        void *out = block(p.y.size() * 4);
        OK(cudnnBackendExecute(handle, again,
                               pack_of({1, 2, 3}, {upload(p.x, CUDNN_DATA_FLOAT), upload(p.w, CUDNN_DATA_FLOAT), out},
                                       block((size_t)workspace_of(again)))));
        assert_near(download(out, p.y.size(), CUDNN_DATA_FLOAT), p.y, 1e-5);
    }
}

/* ---- order and faults ---- */

/* Queued, captured and replayed as any kernel. */
static void runs_are_queued(void **)
{
    const problem p = solve(1, 1, 1);
    D plan = plan_of(configurations(conv_graph(FORWARD, p, CUDNN_DATA_FLOAT), device())[1]);
    float *const x = static_cast<float *>(block(X_COUNT * 4));
    void *out = block(p.y.size() * 4);
    D pack = pack_of({1, 2, 3}, {x, upload(p.w, CUDNN_DATA_FLOAT), out}, block((size_t)workspace_of(plan)));
    const long before = cuda_on_cpu_graph_runs();
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(cudnnBackendExecute(handle, plan, pack));
    cudaGraph_t g;
    cudaGraphExec_t executable;
    CUDA(cudaStreamEndCapture(stream, &g));
    CUDA(cudaGraphInstantiate(&executable, g, 0));
    assert_int_equal(cuda_on_cpu_graph_runs(), before);
    CUDA(cudaMemcpy(x, p.x.data(), X_COUNT * 4, cudaMemcpyHostToDevice));
    CUDA(cudaGraphLaunch(executable, stream));
    assert_int_equal(cuda_on_cpu_graph_runs(), before);
    assert_near(download(out, p.y.size(), CUDNN_DATA_FLOAT), p.y, 1e-5);
    assert_int_equal(cuda_on_cpu_graph_runs(), before + 1);
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(g));
}

static void assert_refused(cudnnStatus_t s, cudnnStatus_t want, const char *words)
{
    char why[256];
    cudnnGetLastErrorString(why, sizeof why);
    if (s != want) fail_msg("status %d, expected %d: %s", s, want, why);
    if (!strstr(why, words)) fail_msg("'%s' is not in: %s", words, why);
}

static void what_is_wrong_is_refused(void **)
{
    const problem p = solve(1, 1, 1);
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    D open = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR), x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3);
    assert_refused(cudnnBackendFinalize(open), CUDNN_STATUS_BAD_PARAM, "not set");
    const int64_t eight = 8;
    assert_refused(cudnnBackendSetAttribute(x, A(TENSOR_UNIQUE_ID), CUDNN_TYPE_INT64, 1, &eight), CUDNN_STATUS_NOT_INITIALIZED,
                   "final");
    assert_refused(cudnnBackendSetAttribute(open, A(MATMUL_COMP_TYPE), CUDNN_TYPE_INT64, 1, &eight),
                   CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "no attribute");
    assert_refused(cudnnBackendGetAttribute(open, A(TENSOR_UNIQUE_ID), CUDNN_TYPE_INT64, 1, nullptr, nullptr),
                   CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not final");
    D op = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    assert_refused(cudnnBackendSetAttribute(op, A(OPERATION_RESHAPE_XDESC), CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &open),
                   CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not final");
    assert_refused(cudnnBackendFinalize(conv_operation(FORWARD, x, w, images(3, type, N_, K_, p.ho + 1, p.wo), convolution(1, 1, 1))),
                   CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "pixels");
    D virtual_y = images(3, type, N_, K_, p.ho, p.wo, true), g = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    D lonely = pointwise(CUDNN_POINTWISE_EXP, virtual_y, nullptr, images(4, type, N_, K_, p.ho, p.wo));
    set(g, A(OPERATIONGRAPH_OPS), lonely);
    assert_refused(cudnnBackendFinalize(g), CUDNN_STATUS_BAD_PARAM, "written by none");

    D h = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    D good = conv_graph(FORWARD, p, type);
    set(h, A(ENGINEHEUR_OPERATION_GRAPH), good);
    set(h, A(ENGINEHEUR_MODE), CUDNN_TYPE_HEUR_MODE, 1, &mode);
    assert_refused(cudnnBackendFinalize(h), CUDNN_STATUS_BAD_PARAM, "neither a device");
    D plan = plan_of(configurations(good, device())[1]);
    void *a = upload(p.x, type), *b = upload(p.w, type), *c = block(p.y.size() * 4), *scratch = block((size_t)workspace_of(plan));
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2}, {a, b}, scratch)), CUDNN_STATUS_BAD_PARAM, "no pointer");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, nullptr}, scratch)),
                   CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "NULL");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, (char *)c + 2}, scratch)),
                   CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "aligned");
    assert_refused(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {a, b, c}, nullptr)),
                   CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "workspace");
    D pack = pack_of({1, 2, 3}, {a, b, c}, scratch);
    cuda_on_cpu_fail_call(1, cudaErrorIllegalAddress, false);
    assert_refused(cudnnBackendExecute(handle, plan, pack), CUDNN_STATUS_EXECUTION_FAILED_CUDART, "IllegalAddress");
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    OK(cudnnBackendExecute(handle, plan, pack));
}

static void calls_fail_on_demand(void **)
{
    D d = nullptr;
    cuda_on_cpu_fail_call(1, cudaErrorMemoryAllocation, false);
    assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &d),
                     CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED);
    assert_null(d);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    cuda_on_cpu_devices(0);
    cudnnHandle_t none = nullptr;
    assert_int_equal(cudnnCreate(&none), CUDNN_STATUS_NOT_INITIALIZED);
    cuda_on_cpu_devices(1);
    (void)cudaGetLastError();
    const size_t live = cuda_on_cpu_live();
    make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    assert_int_equal(cuda_on_cpu_live(), live + 1);
}

int main()
{
    const struct CMUnitTest tests[] = {CASE(engines_differ), CASE(plans_come_back_from_text), CASE(runs_are_queued),
                                       CASE(what_is_wrong_is_refused), CASE(calls_fail_on_demand)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

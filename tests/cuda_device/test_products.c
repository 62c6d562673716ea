/* test_products.c - convolutions, dense layers and attention through cuDNN's and cuBLASLt's stand-ins: the same numbers as
 * the CPU backend's, and which way a call takes. */
#include "product_calls.h"

/* ---- the same numbers ---- */

/* libraries: whether they are expected to have computed it. */
static void check_all(ddpm_backend_options options, int askew, bool is_half, bool libraries)
{
    struct call calls[CALLS];
    const int n = all_calls(calls);
    ddpm_backend *cpu = NULL, *be = backend_with(options);
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    for (int i = 0; i < n; i++) {
        const long before = library_runs();
        struct result want = compute(cpu, &calls[i], is_half, true, 0, 1);
        struct result got = compute(be, &calls[i], is_half, false, askew, 1);
        const double error = error_of(&calls[i], &got, &want);
        if (!(error <= tolerance(is_half))) fail_msg("%s: error %g", calls[i].name, error);
        const bool has_engine = is_half || strcmp(calls[i].name, "attention") != 0; /* none in f32 */
        if (libraries && has_engine && library_runs() == before) fail_msg("%s: no library computed it", calls[i].name);
        if (!libraries && library_runs() != before) fail_msg("%s: a library computed it", calls[i].name);
        result_free(&want);
        result_free(&got);
    }
    ddpm_backend_free(cpu);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

static void libraries_give_the_cpus_numbers(void **state)
{
    (void)state;
    check_all((ddpm_backend_options){0}, 0, false, true);
    check_all((ddpm_backend_options){0}, 0, true, true);
    check_all((ddpm_backend_options){.is_deterministic = true}, 0, false, true);
    check_all((ddpm_backend_options){.is_deterministic = true}, 0, true, true);
}

static void kernels_take_over(void **state)
{
    (void)state;
    setenv("DDPM_LIBRARIES", "0", 1);
    check_all((ddpm_backend_options){0}, 0, true, false);
    unsetenv("DDPM_LIBRARIES");
    cuda_on_cpu_engines(false);
    check_all((ddpm_backend_options){0}, 0, false, false);
    cuda_on_cpu_engines(true);
}

/* Tuning runs on memory of its own; the call itself, whose pointers lie askew, must not reach an engine. */
static void pointers_that_lie_askew_go_to_the_kernels(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true}), *cpu = NULL;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    for (int i = 0; i < n; i++) {
        const long before = library_runs();
        struct result want = compute(cpu, &calls[i], true, true, 0, 1), got = compute(be, &calls[i], true, false, 1, 1);
        if (!(error_of(&calls[i], &got, &want) <= tolerance(true))) fail_msg("%s", calls[i].name);
        assert_int_equal(library_runs(), before);
        result_free(&want);
        result_free(&got);
    }
    ddpm_backend_free(be);
    ddpm_backend_free(cpu);
}

/* ---- which engines ---- */

/* The stand-in's other engines add in another order on every second run. */
static void deterministic_means_the_same_bits(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    for (int is_half = 0; is_half < 2; is_half++) {
        ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true});
        for (int i = 0; i < n; i++) {
            struct result a = compute(be, &calls[i], is_half, false, 0, 1), b = compute(be, &calls[i], is_half, false, 0, 2);
            for (int j = 0; j < calls[i].n; j++)
                assert_memory_equal(a.x[j], b.x[j], (size_t)span(&calls[i].slot[j].t) * sizeof(float));
            result_free(&a);
            result_free(&b);
        }
        ddpm_backend_free(be);
    }
}

/* Only where it is asked for are inputs rounded: to 11 bits, which the tolerance of full f32 would not let through. */
static void tf32_is_asked_for(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    double least = 1, most = 0;
    for (int try = 0; try < 8; try++) { /* tuning by time may choose another engine */
        ddpm_backend *be = backend_with((ddpm_backend_options){.uses_tf32 = true}), *cpu = NULL;
        assert_ok(ddpm_backend_create("cpu", 1, &cpu));
        struct result want = compute(cpu, &calls[8], false, true, 0, 1), got = compute(be, &calls[8], false, false, 0, 1);
        const double error = error_of(&calls[8], &got, &want);
        least = error < least ? error : least;
        most = error > most ? error : most;
        result_free(&want);
        result_free(&got);
        ddpm_backend_free(be);
        ddpm_backend_free(cpu);
    }
    assert_true(most > 1e-5);
    assert_true(most < 2e-3);
}

/* ---- steps ---- */

/* After the first call nothing is allocated, built or waited for; a recorded call is replayed; one that is new while its
 * stream is captured is left to kernels/. */
static void nothing_is_made_in_a_step(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    ddpm_backend *be = backend_with((ddpm_backend_options){0});
    cudaStream_t stream = cuda_of(be)->stream;
    ddpm_tensor t[TENSORS], other[TENSORS];
    void *block[TENSORS], *others[TENSORS];
    const struct call *conv = &calls[1], *unseen = &calls[2];
    assert_ok(place(be, conv, true, 0, t, block));
    assert_ok(place(be, unseen, true, 0, other, others));
    assert_ok(measured(be, conv, t));
    assert_ok(conv->run(be, t));
    assert_ok(ddpm_backend_sync(be));
    const size_t live = cuda_on_cpu_live(), memory = ddpm_backend_memory(be);
    const long runs = library_runs();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    void *scratch;
    assert_ok(cuda_scratch(cuda_of(be), 1 << 20, &scratch)); /* what kernels/ may want below */
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_ok(conv->run(be, t));
    assert_ok(unseen->run(be, other));
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    assert_int_equal(library_runs(), runs);
    assert_int_equal(cudaGraphLaunch(executable, stream), cudaSuccess);
    assert_ok(ddpm_backend_sync(be));
    assert_int_equal(library_runs(), runs + 1);
    assert_int_equal(cudaGraphExecDestroy(executable), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_true(cuda_on_cpu_live() <= live + 1 && ddpm_backend_memory(be) >= memory);
    for (int i = 0; i < conv->n; i++)
        ddpm_backend_release(be, block[i]);
    for (int i = 0; i < unseen->n; i++)
        ddpm_backend_release(be, others[i]);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* ---- the side stream ---- */

/* dw beside dx, then dw again: the same as one after the other, under every order of streams. */
static void weights_beside_inputs(void **state)
{
    (void)state;
    struct call calls[CALLS];
    all_calls(calls);
    const struct call *filter = &calls[6];
    ddpm_tensor t[TENSORS];
    void *block[TENSORS], *w_block, *dx_block;
    struct slot w = image(8, 3, 3, 16), dx = image(2, 5, 5, 16);
    float *first = NULL;
    for (int order = 0; order < 6; order++) {
        cuda_on_cpu_schedule(order < CUDA_ON_CPU_RANDOM ? (enum cuda_on_cpu_order)order : CUDA_ON_CPU_RANDOM, (uint64_t)order);
        ddpm_backend *be = backend_with((ddpm_backend_options){.is_deterministic = true});
        assert_ok(place(be, filter, false, 0, t, block));
        assert_ok(ddpm_backend_alloc(be, (size_t)span(&w.t) * 4, &w_block));
        assert_ok(ddpm_backend_alloc(be, (size_t)span(&dx.t) * 4, &dx_block));
        w.t.data = w_block;
        dx.t.data = dx_block;
        for (int i = 0; i < filter->n; i++) {
            float *x = numbers(&filter->slot[i], (uint64_t)i, false);
            assert_ok(put(be, &t[i], x, span(&t[i])));
            free(x);
        }
        for (int i = 0; i < 3; i++) {
            assert_ok(filter->run(be, t));
            struct conv2d_bwd_data_args data = {.dy = &t[1], .w = &w.t, .stride = 1, PADS(1), .dx = i < 2 ? &dx.t : &t[0]};
            assert_ok(backend_ops(be)->conv2d_bwd_data(be, &data)); /* the last one onto x, which must wait */
        }
        assert_ok(filter->run(be, t));
        struct conv2d_bwd_data_args beside = {.dy = &t[1], .w = &w.t, .stride = 1, PADS(1), .dx = &dx.t};
        assert_true(cuda_side_lets_pass(cuda_of(be), &beside));
        const ddpm_tensor x_again = t[0];
        beside.norm.x = &x_again; /* is read there too */
        assert_true(cuda_side_lets_pass(cuda_of(be), &beside));
        beside.product = &t[0]; /* written while the side reads it */
        assert_false(cuda_side_lets_pass(cuda_of(be), &beside));
        beside.product = NULL;
        beside.norm.scale = &t[4]; /* read while the side writes it */
        assert_false(cuda_side_lets_pass(cuda_of(be), &beside));
        float *got = malloc((size_t)span(&t[2]) * sizeof *got);
        assert_non_null(got);
        assert_ok(fetch(be, &t[2], got, span(&t[2])));
        if (first) assert_memory_equal(got, first, (size_t)span(&t[2]) * sizeof *got);
        if (!first) first = got;
        else free(got);
        for (int i = 0; i < filter->n; i++)
            ddpm_backend_release(be, block[i]);
        ddpm_backend_release(be, w_block);
        ddpm_backend_release(be, dx_block);
        ddpm_backend_free(be);
    }
    cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 1);
    free(first);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(libraries_give_the_cpus_numbers),
        cmocka_unit_test(kernels_take_over),
        cmocka_unit_test(pointers_that_lie_askew_go_to_the_kernels),
        cmocka_unit_test(deterministic_means_the_same_bits),
        cmocka_unit_test(tf32_is_asked_for),
        cmocka_unit_test(nothing_is_made_in_a_step),
        cmocka_unit_test(weights_beside_inputs),
    };
    return cmocka_run_group_tests(tests, device_begin_with_folder, support_teardown);
}

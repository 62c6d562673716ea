/* test_cuda_faults.c - what happens when a call of CUDA fails, for every call: the right status, nothing left behind,
 * and no byte from a device that is sick. */
#include "device_support.h"

/* What a program does, stopped at the first status; frees everything whatever happens. */
struct life {
    ddpm_status status;
    bool has_data;
    float out[VALUES];
};

static void live(struct life *x)
{
    ddpm_backend *be = NULL;
    void *a = NULL, *b = NULL;
    float in[VALUES];
    for (int i = 0; i < VALUES; i++) {
        in[i] = (float)i;
        x->out[i] = -1;
    }
    ddpm_status s = ddpm_backend_create("cuda", 0, &be);
    if (!s) s = ddpm_backend_alloc(be, sizeof in, &a);
    if (!s) s = ddpm_backend_alloc(be, sizeof in, &b);
    if (!s) s = ddpm_backend_upload(be, a, in, sizeof in);
    if (!s) s = ddpm_backend_zero(be, b, sizeof in);
    void *scratch;
    if (!s) s = cuda_scratch(cuda_of(be), 100, &scratch);
    if (!s) s = cuda_scratch(cuda_of(be), 5000, &scratch);
    if (!s) s = add(be, a, b, b);
    if (!s) s = ddpm_backend_download(be, x->out, b, sizeof x->out);
    x->has_data = !s;
    size_t available;
    if (!s) s = ddpm_backend_memory_available(be, &available);
    if (!s) s = ddpm_backend_sync(be);
    x->status = s;
    if (a) ddpm_backend_release(be, a);
    if (b) ddpm_backend_release(be, b);
    ddpm_backend_free(be);
}

/* Returns whether the n-th call was reached. */
static bool fail_nth(long n, cudaError_t error, bool sticky, ddpm_status want)
{
    static struct life x;
    const long before = cuda_on_cpu_calls();
    cuda_on_cpu_fail_call(n, error, sticky);
    live(&x);
    const bool reached = cuda_on_cpu_calls() - before >= n;
    cuda_on_cpu_fail_call(0, cudaSuccess, false);
    if (cuda_on_cpu_live() != 0)
        fail_msg("call %ld, %s: %zu objects left", n, cudaGetErrorName(error), cuda_on_cpu_live());
    if (x.status && x.status != want)
        fail_msg("call %ld, %s: %s, expected %s: %s", n, cudaGetErrorName(error), ddpm_status_name(x.status),
                 ddpm_status_name(want), ddpm_last_error());
    for (int i = 0; i < VALUES; i++)
        if (x.out[i] != (x.has_data ? (float)i : -1.0f))
            fail_msg("call %ld, %s: value %d is %g", n, cudaGetErrorName(error), i, (double)x.out[i]);
    if (sticky) device_heal();
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    return reached;
}

/* The number of calls that failed; a life after them is whole again. */
static long fail_every(cudaError_t error, bool sticky, ddpm_status want)
{
    long n = 1;
    while (fail_nth(n, error, sticky, want))
        n++;
    static struct life x;
    live(&x);
    assert_int_equal(x.status, DDPM_OK);
    assert_true(x.has_data);
    return n - 1;
}

static void every_call_may_fail(void **state)
{
    (void)state;
    assert_in_range(fail_every(cudaErrorNotSupported, false, DDPM_BACKEND), 30, 200);
    assert_in_range(fail_every(cudaErrorMemoryAllocation, false, DDPM_NOMEM), 30, 200);
    assert_in_range(fail_every(cudaErrorIllegalAddress, true, DDPM_BACKEND), 30, 200);
    assert_in_range(fail_every(cudaErrorECCUncorrectable, true, DDPM_BACKEND), 30, 200);
}

/* A fault is seen once; after that every call repeats it, and no byte leaves the device. */
static void a_sick_device_gives_nothing_away(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    float values[VALUES] = {0};
    void *block = taken(be, sizeof values), *none = NULL;
    assert_ok(ddpm_backend_upload(be, block, values, sizeof values));
    assert_ok(ddpm_backend_sync(be));
    memset(values, 0x55, sizeof values);
    cuda_on_cpu_fail_call(1, cudaErrorIllegalAddress, false); /* even where the runtime itself would go on */
    assert_status(ddpm_backend_zero(be, block, sizeof values), DDPM_BACKEND);
    assert_message("IllegalAddress");
    assert_message("cuda:0");
    assert_message("DDPM_SYNC=1");
    char first[1024];
    snprintf(first, sizeof first, "%s", ddpm_last_error());
    size_t available;
    const long calls = cuda_on_cpu_calls();
    for (int i = 0; i < 9; i++) {
        ddpm_status s = DDPM_OK;
        switch (i) {
        case 0: s = ddpm_backend_download(be, values, block, sizeof values); break;
        case 1: s = ddpm_backend_download(be, values, block, 1); break;
        case 2: s = ddpm_backend_upload(be, block, values, sizeof values); break;
        case 3: s = ddpm_backend_zero(be, block, 1); break;
        case 4: s = ddpm_backend_alloc(be, 1, &none); break;
        case 5: s = ddpm_backend_memory_available(be, &available); break;
        case 6: s = add(be, block, block, block); break;
        case 7: s = cuda_scratch(cuda_of(be), 1, &none); break;
        case 8: s = ddpm_backend_sync(be); break;
        }
        assert_status(s, DDPM_BACKEND);
        assert_string_equal(ddpm_last_error(), first);
        assert_int_equal(ddpm_status_exit_code(s), 79);
    }
    assert_int_equal(cuda_on_cpu_calls(), calls); /* at once: CUDA is not even asked */
    assert_null(none);
    for (size_t i = 0; i < sizeof values; i++)
        assert_int_equal(((unsigned char *)values)[i], 0x55);
    ddpm_backend_release(be, block);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);

    be = create(); /* another backend of a device that is well is not concerned */
    assert_ok(ddpm_backend_sync(be));
    ddpm_backend_free(be);
}

/* An upload that failed half-way gives its slots back only when the copies before it have left them. */
static void a_failed_upload_spoils_no_other(void **state)
{
    (void)state;
    static float first[VALUES], second[VALUES], got[VALUES];
    for (int i = 0; i < VALUES; i++) {
        first[i] = (float)i;
        second[i] = (float)-i;
    }
    int failures = 0;
    for (long n = 1; n <= 10; n++) {
        ddpm_backend *be = create();
        void *a = taken(be, sizeof first), *b = taken(be, sizeof first), *c = taken(be, sizeof first);
        assert_ok(ddpm_backend_upload(be, a, first, sizeof first));
        const long before = cuda_on_cpu_calls();
        cuda_on_cpu_fail_call(n, cudaErrorInvalidValue, false);
        const ddpm_status s = ddpm_backend_upload(be, b, second, sizeof second);
        if (cuda_on_cpu_calls() - before >= n) assert_status(s, DDPM_BUG);
        failures += s != DDPM_OK;
        cuda_on_cpu_fail_call(0, cudaSuccess, false);
        assert_ok(ddpm_backend_upload(be, c, second, sizeof second));
        assert_ok(ddpm_backend_download(be, got, a, sizeof got));
        assert_memory_equal(got, first, sizeof got);
        assert_ok(ddpm_backend_download(be, got, c, sizeof got));
        assert_memory_equal(got, second, sizeof got);
        ddpm_backend_release(be, a);
        ddpm_backend_release(be, b);
        ddpm_backend_release(be, c);
        ddpm_backend_free(be);
    }
    assert_in_range(failures, 4, 9);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* Which codes make it sick: only those after which the context is lost. */
static void codes_that_are_not_sticky_do_no_harm(void **state)
{
    (void)state;
    static const cudaError_t well[] = {cudaErrorInvalidValue, cudaErrorNotSupported, cudaErrorInvalidConfiguration,
                                       cudaErrorMemoryAllocation};
    static const cudaError_t sick[] = {
        cudaErrorLaunchFailure, cudaErrorMisalignedAddress, cudaErrorIllegalInstruction,  cudaErrorHardwareStackError,
        cudaErrorLaunchTimeout, cudaErrorUnknown,           cudaErrorNvlinkUncorrectable, cudaErrorContained};
    for (size_t i = 0; i < sizeof well / sizeof *well + sizeof sick / sizeof *sick; i++) {
        const bool is_sick = i >= sizeof well / sizeof *well;
        const cudaError_t e = is_sick ? sick[i - sizeof well / sizeof *well] : well[i];
        ddpm_backend *be = create();
        cuda_on_cpu_fail_call(1, e, false);
        const bool is_bug = e == cudaErrorInvalidValue || e == cudaErrorInvalidConfiguration;
        assert_status(ddpm_backend_sync(be), e == cudaErrorMemoryAllocation ? DDPM_NOMEM : is_bug ? DDPM_BUG : DDPM_BACKEND);
        assert_message(cudaGetErrorName(e));
        assert_int_equal(cudaGetLastError(), cudaSuccess); /* does not meet the next launch */
        assert_status(ddpm_backend_sync(be), is_sick ? DDPM_BACKEND : DDPM_OK);
        ddpm_backend_free(be);
    }
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* With DDPM_SYNC=1 a fault is seen by the op it belongs to. */
static void sync_names_the_op(void **state)
{
    (void)state;
    setenv("DDPM_SYNC", "1", 1);
    ddpm_backend *be = create();
    unsetenv("DDPM_SYNC");
    void *a = taken(be, VALUES * sizeof(float));
    const long before = cuda_on_cpu_calls();
    assert_ok(add(be, a, a, a));
    const long calls = cuda_on_cpu_calls() - before; /* the last one waits */
    cuda_on_cpu_fail_call(calls, cudaErrorLaunchFailure, false);
    assert_status(add(be, a, a, a), DDPM_BACKEND);
    assert_int_equal(strncmp(ddpm_last_error(), "add: cudaErrorLaunchFailure", 27), 0);
    assert_null(strstr(ddpm_last_error(), "DDPM_SYNC"));
    ddpm_backend_release(be, a);
    ddpm_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(a_sick_device_gives_nothing_away),
        cmocka_unit_test(a_failed_upload_spoils_no_other),
        cmocka_unit_test(codes_that_are_not_sticky_do_no_harm),
        cmocka_unit_test(sync_names_the_op),
    };
    return cmocka_run_group_tests(tests, device_begin, NULL);
}

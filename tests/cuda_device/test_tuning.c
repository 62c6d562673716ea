/* test_tuning.c - which way a product takes, with how much scratch, and what of that is kept on disk. */
#include "product_calls.h"

static void only_file(const char *dir, char path[SUPPORT_PATH])
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            support_join(path, dir, e->d_name);
            n++;
        }
    closedir(d);
    assert_int_equal(n, 1);
}

/* ---- which way ---- */

enum { SLOW = 1000 }; /* milliseconds */

/* The call twice, tuned by the first: runs of the libraries in the second. */
static long settled_runs(ddpm_backend *be, const struct call *c, const struct result *want)
{
    struct result first = compute(be, c, true, false, 0, 1);
    const long before = library_runs();
    struct result got = compute(be, c, true, false, 0, 1);
    const double error = error_of(c, &got, want);
    if (!(error <= tolerance(true))) fail_msg("%s: error %g", c->name, error);
    result_free(&first);
    result_free(&got);
    return library_runs() - before;
}

/* Our own kernel where the libraries are slower, and the other way round; remembered under its name. */
static void the_faster_of_library_and_kernel_is_taken(void **state)
{
    char dir[SUPPORT_PATH], path[SUPPORT_PATH];
    struct call calls[CALLS];
    const int n = all_calls(calls);
    support_join(dir, *state, "own");
    setenv("DDPM_CACHE", dir, 1);
    ddpm_backend *cpu = NULL;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    for (int i = 0; i < n; i++) {
        struct result want = compute(cpu, &calls[i], true, true, 0, 1);
        cuda_on_cpu_charge(0, SLOW);
        ddpm_backend *be = backend_with((ddpm_backend_options){0});
        if (settled_runs(be, &calls[i], &want) != 0) fail_msg("%s: by a library, which is slower", calls[i].name);
        ddpm_backend_free(be);

        cuda_on_cpu_charge(SLOW, 0); /* by now; what was found out stays */
        be = backend_with((ddpm_backend_options){0});
        const long before = library_runs();
        settled_runs(be, &calls[i], &want);
        if (library_runs() != before) fail_msg("%s: chosen anew", calls[i].name);
        ddpm_backend_free(be);

        setenv("DDPM_CACHE", "", 1);
        be = backend_with((ddpm_backend_options){0});
        const long runs = settled_runs(be, &calls[i], &want);
        const bool leaves_as_much = strstr(calls[i].name, "filter"); /* to kernels: roundings and sums */
        if (runs == 0 && !leaves_as_much) fail_msg("%s: by kernels, which are slower", calls[i].name);
        ddpm_backend_free(be);
        setenv("DDPM_CACHE", dir, 1);
        result_free(&want);
    }
    cuda_on_cpu_charge(0, 0);
    ddpm_backend_free(cpu);
    only_file(dir, path);
    char *text = support_read_file(path, NULL);
    assert_non_null(strstr(text, "\"own\""));
    free(text);
    setenv("DDPM_CACHE", "", 1);
}

/* Scratch that training was promised at its start is never exceeded, whichever engine turns out to be the fastest. */
static void tuning_keeps_to_what_was_promised(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    bool was_raised = false;
    for (int round = 0; round < 20 && !was_raised; round++)
        for (int i = 0; i < n; i++) {
            ddpm_tensor t[TENSORS];
            ddpm_backend *be = backend_with((ddpm_backend_options){0});
            for (int j = 0; j < calls[i].n; j++) {
                t[j] = calls[i].slot[j].t;
                t[j].dtype = calls[i].slot[j].is_f32 ? DDPM_F32 : DDPM_BF16;
            }
            assert_ok(measured(be, &calls[i], t));
            const size_t promised = ddpm_backend_scratch_bytes(be), first = cuda_of(be)->scratch_wanted + cuda_of(be)->side_wanted;
            struct result r = compute(be, &calls[i], true, false, 0, 1);
            result_free(&r);
            if (ddpm_backend_memory(be) > promised || ddpm_backend_scratch_bytes(be) > promised)
                fail_msg("%s: %zu bytes promised, %zu taken", calls[i].name, promised, ddpm_backend_memory(be));
            was_raised = was_raised || ddpm_backend_scratch_bytes(be) > first;
            ddpm_backend_free(be);
        }
    assert_true(was_raised);
}

/* ---- the cache ---- */

/* Runs of the libraries that one call takes, tuning included. */
static long runs_of(const struct call *c, char *notice, size_t size)
{
    ddpm_backend *be = backend_with((ddpm_backend_options){0});
    const long before = library_runs();
    struct result r = compute(be, c, true, false, 0, 1);
    result_free(&r);
    notice[0] = '\0';
    for (int i = 0; ddpm_backend_notice(be, i); i++)
        snprintf(notice + strlen(notice), size - strlen(notice), "%s\n", ddpm_backend_notice(be, i));
    ddpm_backend_free(be);
    return library_runs() - before;
}

static void choices_are_kept(void **state)
{
    char dir[SUPPORT_PATH], path[SUPPORT_PATH], notice[1024];
    struct call calls[CALLS];
    all_calls(calls);
    support_join(dir, *state, "cache");
    setenv("DDPM_CACHE", dir, 1);
    cuda_on_cpu_charge(SLOW, 0);
    const struct call *const kept[] = {&calls[0], &calls[3]}; /* a plan of cuDNN; an algorithm of cuBLASLt or a plan */
    for (int i = 0; i < 2; i++) {
        assert_true(runs_of(kept[i], notice, sizeof notice) > 2); /* tuned */
        assert_int_equal(runs_of(kept[i], notice, sizeof notice), 1);
        assert_string_equal(notice, "");
    }
    only_file(dir, path);
    assert_non_null(strstr(path, "CPU-stand-in-cudnn-9"));

    size_t n;
    char *text = support_read_file(path, &n);
    for (size_t at = 0; at < n; at += n / 16 + 1) { /* cut anywhere: said, and tuned again */
        support_write_file(path, text, at);
        assert_true(runs_of(kept[0], notice, sizeof notice) > 2);
        assert_non_null(strstr(notice, "is damaged and ignored"));
    }
    char *digit = strstr(text, "\"plan\\\":\\\"4 ");
    if (digit) { /* one engine's text changed: that entry alone is chosen anew */
        digit[10] = '9';
        support_write_file(path, text, n);
        assert_true(runs_of(kept[0], notice, sizeof notice) >= 1);
        assert_string_equal(notice, "");
    }
    free(text);

    cuda_on_cpu_charge(0, 0);

    setenv("DDPM_CACHE", "/proc/nowhere", 1);
    assert_true(runs_of(kept[0], notice, sizeof notice) > 2);
    assert_non_null(strstr(notice, "cannot be written"));
    setenv("DDPM_CACHE", "", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_faster_of_library_and_kernel_is_taken),
        cmocka_unit_test(tuning_keeps_to_what_was_promised),
        cmocka_unit_test(choices_are_kept),
    };
    return cmocka_run_group_tests(tests, device_begin_with_folder, support_teardown);
}

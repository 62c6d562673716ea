/* test_recording.c - calls recorded and launched as one: the same results as one by one, made anew when memory moved, given up
 * with a notice where they cannot be recorded, and every fault on the way. */
#include "device_support.h"

struct sums {
    ddpm_backend *be;
    void *a, *b;
    int calls;       /* how often the calls were made */
    bool waits;      /* among the calls: what a recording forbids */
    ddpm_status end; /* what they end with */
};

/* a += b, twice */
static ddpm_status add_twice(void *user)
{
    struct sums *s = user;
    s->calls++;
    TRY(add(s->be, s->a, s->b, s->a));
    if (s->waits) TRY(ddpm_backend_sync(s->be));
    TRY(add(s->be, s->a, s->b, s->a));
    return s->end ? FAIL(SHAPE, "as asked for") : DDPM_OK;
}

static struct sums sums_of(ddpm_backend *be)
{
    float ones[VALUES];
    for (int i = 0; i < VALUES; i++)
        ones[i] = 1;
    struct sums s = {.be = be, .a = taken(be, sizeof ones), .b = taken(be, sizeof ones)};
    assert_ok(ddpm_backend_upload(be, s.b, ones, sizeof ones));
    return s;
}

static void assert_sum(struct sums *s, float want)
{
    float got[VALUES];
    assert_ok(ddpm_backend_download(s->be, got, s->a, sizeof got));
    for (int i = 0; i < VALUES; i++)
        assert_float_equal(got[i], want, 0);
}

static void sums_end(struct sums *s, ddpm_recording *r)
{
    ddpm_recording_free(r);
    ddpm_backend_release(s->be, s->a);
    ddpm_backend_release(s->be, s->b);
    ddpm_backend_free(s->be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

static void calls_are_recorded_once_and_launched(void **state)
{
    (void)state;
    ddpm_recording *r;
    struct sums s = sums_of(create());
    assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
    for (int i = 1; i <= 6; i++) {
        assert_ok(ddpm_recording_run(r));
        assert_int_equal(s.calls, i < 2 ? 1 : 2);
        assert_int_equal(ddpm_recording_launches(r), i - 1);
    }
    assert_sum(&s, 12);
    assert_null(ddpm_backend_notice(s.be, 0));

    void *other = taken(s.be, 64);
    assert_ok(ddpm_recording_run(r)); /* an allocation moves nothing */
    assert_int_equal(s.calls, 2);
    ddpm_backend_release(s.be, other);
    assert_ok(ddpm_recording_run(r)); /* a release may have: made, then recorded */
    assert_ok(ddpm_recording_run(r));
    assert_ok(ddpm_recording_run(r));
    assert_int_equal(s.calls, 4);
    ddpm_recording_reset(r);
    assert_ok(ddpm_recording_run(r));
    assert_int_equal(s.calls, 5);
    assert_sum(&s, 22);
    sums_end(&s, r);
}

static void calls_kept_apart_are_made_each_time(void **state)
{
    (void)state;
    ddpm_recording *r;
    struct sums s = sums_of(create());
    ddpm_backend_configure(s.be, &(ddpm_backend_options){.keeps_calls_apart = true});
    assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
    for (int i = 1; i <= 6; i++)
        assert_ok(ddpm_recording_run(r));
    assert_int_equal(s.calls, 6);
    assert_int_equal(ddpm_recording_launches(r), 0);
    assert_sum(&s, 12);
    sums_end(&s, r);

    setenv("DDPM_SYNC", "1", 1); /* nor where each op waits */
    s = sums_of(create());
    s.waits = true;
    assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
    for (int i = 1; i <= 3; i++)
        assert_ok(ddpm_recording_run(r));
    assert_int_equal(s.calls, 3);
    assert_sum(&s, 6);
    unsetenv("DDPM_SYNC");
    sums_end(&s, r);
}

static void calls_that_wait_are_made_one_by_one_with_a_notice(void **state)
{
    (void)state;
    ddpm_recording *r;
    struct sums s = sums_of(create());
    s.waits = true;
    assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
    for (int i = 1; i <= 4; i++)
        assert_ok(ddpm_recording_run(r));
    assert_int_equal(ddpm_recording_launches(r), 0);
    assert_int_equal(s.calls, 5); /* one was the attempt */
    assert_sum(&s, 8);
    const char *notice = ddpm_backend_notice(s.be, 0);
    assert_non_null(notice);
    assert_non_null(strstr(notice, "sync: among calls that are recorded"));
    assert_null(ddpm_backend_notice(s.be, 1));
    sums_end(&s, r);
}

/* What a recording forbids is refused, and nothing else than the recording suffers. */
static ddpm_status forbidden(void *user)
{
    struct sums *s = user;
    void *p;
    float x;
    if (s->calls++ == 0) return DDPM_OK;
    assert_status(ddpm_backend_alloc(s->be, 64, &p), DDPM_BUG);
    assert_status(ddpm_backend_upload(s->be, s->a, &x, sizeof x), DDPM_BUG);
    assert_status(ddpm_backend_download(s->be, &x, s->a, sizeof x), DDPM_BUG);
    assert_status(ddpm_backend_sync(s->be), DDPM_BUG);
    return add(s->be, s->a, s->b, s->a);
}

static void what_a_recording_forbids_is_refused(void **state)
{
    (void)state;
    ddpm_recording *r;
    struct sums s = sums_of(create());
    assert_ok(ddpm_recording_create(s.be, forbidden, &s, &r));
    for (int i = 1; i <= 4; i++)
        assert_ok(ddpm_recording_run(r));
    assert_int_equal(ddpm_recording_launches(r), 3);
    assert_sum(&s, 3);
    sums_end(&s, r);
}

static void failing_calls_fail(void **state)
{
    (void)state;
    ddpm_recording *r;
    struct sums s = sums_of(create());
    s.end = DDPM_SHAPE;
    assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
    assert_status(ddpm_recording_run(r), DDPM_SHAPE);
    s.end = DDPM_OK;
    assert_ok(ddpm_recording_run(r)); /* the first that succeeds counts as run 1 */
    s.end = DDPM_SHAPE;
    assert_status(ddpm_recording_run(r), DDPM_SHAPE); /* while recording, and again one by one */
    assert_message("as asked for");
    s.end = DDPM_OK;
    assert_ok(ddpm_recording_run(r));
    assert_int_equal(ddpm_recording_launches(r), 0);
    sums_end(&s, r);
}

/* Each call of the runtime failing in turn over four runs: passing faults cost the recording at most, lasting ones end it. */
static void every_fault_has_its_status(void **state)
{
    (void)state;
    for (int is_sticky = 0; is_sticky < 2; is_sticky++)
        for (long n = 1;; n++) {
            ddpm_recording *r;
            struct sums s = sums_of(create());
            assert_ok(ddpm_backend_sync(s.be));
            assert_ok(ddpm_recording_create(s.be, add_twice, &s, &r));
            const long before = cuda_on_cpu_calls();
            cuda_on_cpu_fail_call(n, is_sticky ? cudaErrorIllegalAddress : cudaErrorInvalidValue, is_sticky);
            ddpm_status st = DDPM_OK;
            for (int i = 0; i < 4 && !st; i++)
                st = ddpm_recording_run(r);
            const bool reached = cuda_on_cpu_calls() - before >= n;
            cuda_on_cpu_fail_call(0, cudaSuccess, false);
            if (st) assert_status(st, is_sticky ? DDPM_BACKEND : DDPM_BUG);
            if (reached && is_sticky) assert_status(st, DDPM_BACKEND);
            if (!st) assert_sum(&s, 8);
            sums_end(&s, r);
            device_heal();
            if (reached) continue;
            assert_true(n > 10);
            break;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_recorded_once_and_launched),
        cmocka_unit_test(calls_kept_apart_are_made_each_time),
        cmocka_unit_test(calls_that_wait_are_made_one_by_one_with_a_notice),
        cmocka_unit_test(what_a_recording_forbids_is_refused),
        cmocka_unit_test(failing_calls_fail),
        cmocka_unit_test(every_fault_has_its_status),
    };
    return cmocka_run_group_tests(tests, device_begin, NULL);
}

/* test_cuda_device.c - the device layer against the runtime's stand-in: which device a name means, memory, and its
 * order on the streams.
 *
 * The stand-in runs what is queued only when somebody waits, in the order it is told, and its device memory faults when
 * the host touches it: a copy that is not ordered, or a slot of the ring that is written too early, shows as wrong
 * bytes. */
#include "device_support.h"

static const size_t SLOT = (size_t)4 << 20; /* of the staging ring in staging.c */

/* Bytes that differ at every place and for every salt. */
static unsigned char *pattern(size_t bytes, unsigned salt)
{
    unsigned char *p = malloc(bytes ? bytes : 1);
    assert_non_null(p);
    uint32_t x = 2463534242u + salt * 2654435761u;
    for (size_t i = 0; i < bytes; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = (unsigned char)(x >> 24);
    }
    return p;
}

static void holds(ddpm_backend *be, const void *device, const unsigned char *want, size_t bytes)
{
    unsigned char *got = malloc(bytes);
    assert_non_null(got);
    memset(got, 0xA5, bytes);
    assert_ok(ddpm_backend_download(be, got, device, bytes));
    if (memcmp(got, want, bytes) != 0) {
        size_t at = 0;
        while (got[at] == want[at])
            at++;
        fail_msg("byte %zu of %zu is %d, expected %d", at, bytes, got[at], want[at]);
    }
    free(got);
}

/* Work of the main stream that reads `from`: waits in the queue like an op. */
static void queue_copy(ddpm_backend *be, void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream), cudaSuccess);
}

/* ---- which device ---- */

static void names_choose_devices(void **state)
{
    (void)state;
    ddpm_backend *be = NULL;
    cuda_on_cpu_devices(2);
    static const char *const names[] = {"cuda", "cuda:0", "cuda:1", NULL};
    for (int i = 0; i < 4; i++) {
        char begin[16];
        assert_ok(ddpm_backend_create(names[i], 3, &be));
        assert_false(ddpm_backend_is_cpu(be));
        assert_int_equal(ddpm_backend_threads(be), 3);
        snprintf(begin, sizeof begin, "cuda:%d ", i == 2);
        assert_int_equal(strncmp(ddpm_backend_name(be), begin, strlen(begin)), 0);
        assert_non_null(strstr(ddpm_backend_name(be), " SMs, "));
        assert_non_null(strstr(ddpm_backend_name(be), " GiB, CUDA "));
        assert_non_null(strstr(ddpm_backend_name(be), " driver "));
        ddpm_backend_free(be);
    }
    static const char *const wrong[] = {"cuda:", "cuda:x", "cuda:-1", "cuda:99999", "CUDA", "cuda0", "gpu"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_status(ddpm_backend_create(wrong[i], 0, &be), DDPM_ARG);
        assert_null(be);
    }
    assert_status(ddpm_backend_create("cuda:2", 0, &be), DDPM_BACKEND);
    assert_message("\"cuda:2\"");
    assert_message("sees 2 GPUs,");
    assert_null(be);
    cuda_on_cpu_devices(1);
    assert_status(ddpm_backend_create("cuda:9999", 0, &be), DDPM_BACKEND);
    assert_message("sees 1 GPU,");
    assert_int_equal(cuda_on_cpu_live(), 0);
}

static void without_a_device_the_cpu_is_taken_unless_asked_otherwise(void **state)
{
    (void)state;
    ddpm_backend *be = NULL;
    cuda_on_cpu_devices(0);
    assert_status(ddpm_backend_create("cuda", 0, &be), DDPM_BACKEND);
    assert_message("no GPU");
    assert_message("--device cpu");
    assert_int_equal(ddpm_status_exit_code(DDPM_BACKEND), 79);
    setenv("CUDA_VISIBLE_DEVICES", "7", 1);
    assert_status(ddpm_backend_create("cuda", 0, &be), DDPM_BACKEND);
    assert_message("CUDA_VISIBLE_DEVICES=\"7\"");
    unsetenv("CUDA_VISIBLE_DEVICES");
    assert_ok(ddpm_backend_create(NULL, 1, &be));
    assert_true(ddpm_backend_is_cpu(be));
    ddpm_backend_free(be);
    cuda_on_cpu_devices(1);

    cuda_on_cpu_fail_call(1, cudaErrorInsufficientDriver, false);
    assert_ok(ddpm_backend_create(NULL, 1, &be));
    assert_true(ddpm_backend_is_cpu(be));
    ddpm_backend_free(be);
    cuda_on_cpu_fail_call(1, cudaErrorInsufficientDriver, false);
    assert_status(ddpm_backend_create("cuda", 1, &be), DDPM_BACKEND);
    assert_message("driver");
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* ---- memory ---- */

static void memory_is_aligned_zeroed_and_counted(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    static const size_t sizes[] = {1, 255, 4096, 100001};
    void *block[4];
    size_t sum = 0;
    for (int i = 0; i < 4; i++) {
        block[i] = taken(be, sizes[i]);
        assert_int_equal((uintptr_t)block[i] % 256, 0);
        unsigned char *zeros = calloc(1, sizes[i]);
        holds(be, block[i], zeros, sizes[i]);
        free(zeros);
        sum += sizes[i];
        assert_int_equal(ddpm_backend_memory(be), sum);
    }
    ddpm_backend_release(be, block[3]);
    ddpm_backend_release(be, block[0]);
    ddpm_backend_release(be, block[1]);
    assert_int_equal(ddpm_backend_memory(be), 4096);
    assert_int_equal(ddpm_backend_memory_peak(be), sum);
    ddpm_backend_release(be, block[2]);
    ddpm_backend_release(be, NULL);
    assert_int_equal(ddpm_backend_memory(be), 0);
    assert_ok(ddpm_backend_upload(be, NULL, NULL, 0));
    assert_ok(ddpm_backend_download(be, NULL, NULL, 0));
    assert_ok(ddpm_backend_zero(be, NULL, 0));
    ddpm_backend_release(be, taken(be, 0));
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* A block is given back while queued work still reads it. */
static void release_waits(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    unsigned char *p = pattern(5000, 1);
    void *a = taken(be, 5000), *b = taken(be, 5000);
    assert_ok(ddpm_backend_upload(be, a, p, 5000));
    queue_copy(be, b, a, 5000);
    ddpm_backend_release(be, a);
    holds(be, b, p, 5000);
    ddpm_backend_release(be, b);
    ddpm_backend_free(be);
    free(p);
}

static void what_does_not_fit_is_said_with_numbers(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    size_t available, later;
    void *none = &available;
    cuda_on_cpu_memory((size_t)64 << 20);
    void *some = taken(be, (size_t)16 << 20);
    assert_ok(ddpm_backend_memory_available(be, &available));
    assert_in_range(available, 1, (size_t)48 << 20);
    assert_status(ddpm_backend_alloc(be, (size_t)1 << 30, &none), DDPM_NOMEM);
    char is_free[48];
    snprintf(is_free, sizeof is_free, ": %zu bytes", available);
    assert_message("cuda:0");
    assert_message("1073741824 bytes (1.00 GiB)");
    assert_message(is_free);
    assert_message("of 0.06 GiB are free");
    assert_null(none);
    assert_status(ddpm_backend_alloc(be, SIZE_MAX - 100, &none), DDPM_NOMEM);
    assert_status(ddpm_backend_alloc(be, SIZE_MAX, &none), DDPM_NOMEM);
    assert_status(cuda_scratch(cuda_of(be), (size_t)1 << 30, &none), DDPM_NOMEM);
    assert_message("scratch");
    void *more = taken(be, available / 2); /* a failure of this kind harms nothing */
    assert_ok(ddpm_backend_memory_available(be, &later));
    assert_true(later <= available - available / 2);
    ddpm_backend_release(be, more);
    ddpm_backend_release(be, some);
    ddpm_backend_free(be);
    cuda_on_cpu_memory((size_t)1 << 30);
    assert_int_equal(cuda_on_cpu_live(), 0);

    assert_ok(ddpm_backend_create("cpu", 1, &be));
    assert_ok(ddpm_backend_memory_available(be, &available));
    assert_int_equal(available, SIZE_MAX);
    ddpm_backend_free(be);
}

static void scratch_grows_and_stays(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    void *s, *again;
    ddpm_backend_measure(be, true);
    assert_ok(cuda_scratch(cuda_of(be), 3000, &s));
    assert_ok(cuda_scratch(cuda_of(be), 1000, &s));
    assert_null(s);
    ddpm_backend_measure(be, false);
    assert_int_equal(ddpm_backend_scratch_bytes(be), 3000);
    assert_int_equal(ddpm_backend_memory(be), 0);
    assert_ok(cuda_scratch(cuda_of(be), 0, &s));
    assert_null(s);
    assert_int_equal(ddpm_backend_memory(be), 0);
    assert_ok(cuda_scratch(cuda_of(be), 10, &s)); /* the first real call takes all that was measured */
    assert_non_null(s);
    assert_int_equal((uintptr_t)s % 256, 0);
    assert_int_equal(ddpm_backend_memory(be), 3000);
    const size_t objects = cuda_on_cpu_live();
    assert_ok(cuda_scratch(cuda_of(be), 3000, &again));
    assert_ptr_equal(again, s);
    assert_int_equal(cuda_on_cpu_live(), objects);

    unsigned char *p = pattern(3000, 2);
    void *b = taken(be, 3000);
    assert_ok(ddpm_backend_upload(be, s, p, 3000));
    queue_copy(be, b, s, 3000); /* still reads the old block when the new one is asked for */
    assert_ok(cuda_scratch(cuda_of(be), 70000, &s));
    assert_int_equal(ddpm_backend_scratch_bytes(be), 70000);
    assert_int_equal(ddpm_backend_memory(be), 73000);
    assert_int_equal(ddpm_backend_memory_peak(be), 73000);
    holds(be, b, p, 3000);
    ddpm_backend_release(be, b);
    free(p);
    ddpm_backend_free(be);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* ---- copies ---- */

static void sizes_across_slots_come_back(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    const size_t sizes[] = {1, 3, 255, 256, 257, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT - 1, 2 * SLOT + 3, 3 * SLOT + 7};
    unsigned char *p = pattern(3 * SLOT + 8, 3), *zeros = calloc(1, 3 * SLOT + 8);
    unsigned char *block = taken(be, 3 * SLOT + 8);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_ok(ddpm_backend_upload(be, block + 1, p + 1, sizes[i]));
        holds(be, block + 1, p + 1, sizes[i]);
        holds(be, block, zeros, 1); /* nothing beside it */
        if (sizes[i] < 3 * SLOT) holds(be, block + 1 + sizes[i], zeros, 5);
        assert_ok(ddpm_backend_zero(be, block + 1, sizes[i]));
        holds(be, block + 1, zeros, sizes[i]);
    }
    ddpm_backend_release(be, block);
    ddpm_backend_free(be);
    free(zeros);
    free(p);
}

/* Many uploads, none waited for: the ring comes round several times, with the caller's memory changed after each. A slot that is
 * filled on the device before its last bytes were put in place would spoil those. */
static void uploads_without_a_wait_share_the_ring(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    const size_t all = 13 * SLOT / 2;
    unsigned char *p = pattern(all, 4), *source = malloc(SLOT), *block = taken(be, all);
    assert_non_null(source);
    size_t at = 0;
    for (int i = 0; at < all; i++) {
        size_t n = (size_t[]){1, 70001, 300000, 13, SLOT / 2 + 5}[i % 5];
        if (n > all - at) n = all - at;
        memcpy(source, p + at, n);
        assert_ok(ddpm_backend_upload(be, block + at, source, n));
        memset(source, 0xEE, n);
        at += n;
    }
    holds(be, block, p, all);
    ddpm_backend_release(be, block);
    ddpm_backend_free(be);
    free(source);
    free(p);
}

/* Larger slots, with bytes under way in the smaller ones. */
static void room_for_larger_uploads(void **state)
{
    (void)state;
    ddpm_backend *be = create();
    const size_t all = 3 * SLOT + 5;
    unsigned char *p = pattern(all, 9), *q = pattern(all, 10), *a = taken(be, all), *b = taken(be, all);
    const size_t live = cuda_on_cpu_live();
    assert_ok(ddpm_backend_upload(be, a, p, 1000));
    assert_ok(ddpm_backend_reserve_uploads(be, 100)); /* there is as much */
    assert_ok(ddpm_backend_reserve_uploads(be, all));
    assert_int_equal(cuda_on_cpu_live(), live);
    holds(be, a, p, 1000);
    for (int i = 0; i < 5; i++) {
        assert_ok(ddpm_backend_upload(be, i % 2 ? b : a, i % 2 ? q : p, all));
        queue_copy(be, i % 2 ? a : b, i % 2 ? b : a, 1);
    }
    holds(be, a, p, all);
    holds(be, b + 1, q + 1, all - 1);
    cuda_on_cpu_memory((size_t)64 << 20);
    assert_status(ddpm_backend_reserve_uploads(be, (size_t)40 << 20), DDPM_NOMEM);
    assert_message("staging");
    assert_ok(ddpm_backend_upload(be, b, p, all)); /* by the slots there were */
    holds(be, b, p, all);
    cuda_on_cpu_memory((size_t)1 << 30);
    ddpm_backend_release(be, a);
    ddpm_backend_release(be, b);
    ddpm_backend_free(be);
    free(p);
    free(q);
    assert_int_equal(cuda_on_cpu_live(), 0);
}

/* upload, read, upload again, read again, zero, upload a part: everything takes effect in the order it was called. */
static void calls_take_effect_in_order(void **state)
{
    (void)state;
    const size_t n = 300001;
    unsigned char *first = pattern(n, 5), *second = pattern(n, 6), *mixed = calloc(1, n);
    memcpy(mixed + 1000, first + 1000, 5000);
    for (unsigned seed = 0; seed < 20; seed++) {
        cuda_on_cpu_schedule(seed < 2 ? (enum cuda_on_cpu_order)seed : CUDA_ON_CPU_RANDOM, seed);
        ddpm_backend *be = create();
        unsigned char *a = taken(be, n), *b = taken(be, n), *c = taken(be, n), *d = taken(be, n);
        assert_ok(ddpm_backend_upload(be, a, first, n));
        queue_copy(be, b, a, n);
        assert_ok(ddpm_backend_upload(be, a, second, n)); /* must not reach b */
        queue_copy(be, c, a, n);
        assert_ok(ddpm_backend_zero(be, a, n)); /* must not reach c */
        assert_ok(ddpm_backend_upload(be, a + 1000, first + 1000, 5000));
        queue_copy(be, d, a, n);
        if (seed % 2) assert_ok(ddpm_backend_sync(be));
        holds(be, d, mixed, n);
        holds(be, c, second, n);
        holds(be, b, first, n);
        void *const blocks[] = {a, b, c, d};
        for (int i = 0; i < 4; i++)
            ddpm_backend_release(be, blocks[i]);
        ddpm_backend_free(be);
    }
    cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 0);
    assert_int_equal(cuda_on_cpu_live(), 0);
    free(mixed);
    free(second);
    free(first);
}

/* ---- ops ---- */

static void ops_are_ordered_among_copies(void **state)
{
    (void)state;
    const size_t bytes = VALUES * sizeof(float);
    float one[VALUES], two[VALUES], three[VALUES], four[VALUES];
    for (int i = 0; i < VALUES; i++) {
        one[i] = (float)i;
        two[i] = (float)(2 * i);
        three[i] = (float)(3 * i);
        four[i] = (float)(4 * i);
    }
    for (unsigned seed = 0; seed < 5; seed++) {
        cuda_on_cpu_schedule(seed < 2 ? (enum cuda_on_cpu_order)seed : CUDA_ON_CPU_RANDOM, seed);
        ddpm_backend *be = create();
        void *a = taken(be, bytes), *b = taken(be, bytes), *y = taken(be, bytes), *z = taken(be, bytes);
        assert_ok(ddpm_backend_upload(be, a, one, bytes));
        assert_ok(ddpm_backend_upload(be, b, two, bytes));
        assert_ok(add(be, a, b, y)); /* 3 */
        assert_ok(ddpm_backend_upload(be, b, one, bytes));
        assert_ok(add(be, y, b, z)); /* 4 */
        assert_ok(ddpm_backend_zero(be, a, bytes));
        holds(be, z, (const unsigned char *)four, bytes);
        holds(be, y, (const unsigned char *)three, bytes);
        assert_ok(add(be, y, b, y)); /* in place, as the contract allows */
        holds(be, y, (const unsigned char *)four, bytes);
        void *const blocks[] = {a, b, y, z};
        for (int i = 0; i < 4; i++)
            ddpm_backend_release(be, blocks[i]);
        ddpm_backend_free(be);
    }
    cuda_on_cpu_schedule(CUDA_ON_CPU_FORWARD, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_choose_devices),
        cmocka_unit_test(without_a_device_the_cpu_is_taken_unless_asked_otherwise),
        cmocka_unit_test(memory_is_aligned_zeroed_and_counted),
        cmocka_unit_test(release_waits),
        cmocka_unit_test(what_does_not_fit_is_said_with_numbers),
        cmocka_unit_test(scratch_grows_and_stays),
        cmocka_unit_test(sizes_across_slots_come_back),
        cmocka_unit_test(uploads_without_a_wait_share_the_ring),
        cmocka_unit_test(room_for_larger_uploads),
        cmocka_unit_test(calls_take_effect_in_order),
        cmocka_unit_test(ops_are_ordered_among_copies),
    };
    return cmocka_run_group_tests(tests, device_begin, NULL);
}

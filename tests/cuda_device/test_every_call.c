/* test_every_call.c - every call of CUDA, cuDNN and cuBLASLt failing in turn: over a training run's creation, its steps and
 * its checkpoint, and over the life of each kind of product.
 *
 * The process forks in front of every call. In the child that call fails, and what the program then does is looked at; the
 * parent waits for it, makes the call and goes on to the next. So one life is the common beginning of all, and the n-th
 * failure costs a fork and what comes behind it. One thread, for a fork takes only the one that calls it along. */
#include "product_calls.h"
#include "train_support.h"

#include <sched.h>
#include <sys/wait.h>

/* Failures of neighbouring calls for one failure tried; EVERY_CALL=1 in the environment tries all, for minutes. */
#ifdef __SANITIZE_ADDRESS__
enum { USUALLY = 101 }; /* a fork takes several times as long there */
int __lsan_do_recoverable_leak_check(void);
#else
enum { USUALLY = 7 };
static int __lsan_do_recoverable_leak_check(void)
{
    return 0;
}
#endif

enum { LIFE_SECONDS = 120, MOST_WRONG = 5, LEAKS_EVERY = 61 /* the host's memory is searched in so many children */ };

static struct {
    cudaError_t error;
    bool sticks, is_child;
    bool is_told; /* what fails from here on has nobody to tell */
    long n;       /* the call at hand */
    int every;    /* so many calls one fails */
    int wrong;    /* children that ended badly */
} at;

static void fork_and_fail(void)
{
    if (++at.n % at.every != 0) return;
    const pid_t child = fork();
    if (child == 0) {
        at.is_child = true;
        alarm(LIFE_SECONDS);
        cuda_on_cpu_before_calls(NULL);
        cuda_on_cpu_fail_call(1, at.error, at.sticks);
        return;
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "call %ld: its child ended with status %#x\n", at.n, (unsigned)status);
        at.wrong++;
    }
    if (at.wrong == MOST_WRONG) cuda_on_cpu_before_calls(NULL);
}

/* n times as many where the same code is tried again and again. */
static int every(int n)
{
    const char *asked = getenv("EVERY_CALL");
    return asked && *asked ? atoi(asked) : n * USUALLY;
}

static void begin_life(cudaError_t error, bool sticks, int each)
{
    at.error = error;
    at.sticks = sticks;
    at.is_child = at.is_told = false;
    at.n = 0;
    at.every = each;
    at.wrong = 0;
    cuda_on_cpu_before_calls(fork_and_fail);
}

/* In a child, where cmocka's checks would go on with the next test. */
static void require(bool is_so, const char *what, ddpm_status s)
{
    if (is_so || !at.is_child) return;
    fprintf(stderr, "call %ld: not so: %s; %s: %s\n", at.n, what, ddpm_status_name(s), ddpm_last_error());
    _exit(1);
}

/* With everything freed; returns in the parent alone. */
static void end_life(long least)
{
    require(cuda_on_cpu_live() == 0, "nothing is left on the device", DDPM_OK);
    require(at.n % LEAKS_EVERY != 0 || __lsan_do_recoverable_leak_check() == 0, "nothing is left on the host", DDPM_OK);
    if (at.is_child) _exit(0);
    cuda_on_cpu_before_calls(NULL);
    assert_int_equal(at.wrong, 0);
    assert_int_equal(cuda_on_cpu_live(), 0);
    assert_true(at.n >= least);
}

/* ---- a training run ---- */

/* Everything that a network may have, as small as it goes. */
static const char *const smallest[] = {"model.channel_mult=[1]", "train.batch=2",        "train.micro_batch=0",
                                       "data.threads=0",         "model.num_classes=2", "model.attention_resolutions=[8]"};
/* Nor attention nor classes, for lives that often go on behind the failure. */
static const char *const plain[] = {"model.channel_mult=[1]", "train.batch=1", "train.micro_batch=0",
                                    "data.threads=0",         "model.num_classes=0", "model.attention_resolutions=[0]"};
enum { SETTINGS = 6, STEPS = 3 };

static const char old_text[] = "a checkpoint of before";

struct run {
    struct trained x;
    char fresh[SUPPORT_PATH], old[SUPPORT_PATH]; /* where nothing is, and where a file of before is */
    bool has_fresh;                              /* saved there */
    double loss[STEPS];
    ddpm_status status;
};

static void run_begin(const char *dir, const char *const *settings, struct run *r)
{
    memset(r, 0, sizeof *r);
    train_config(dir, settings, SETTINGS, &r->x.cfg);
    support_join(r->fresh, dir, "fresh.safetensors");
    support_join(r->old, dir, "old.safetensors");
    unlink(r->fresh);
    support_write_file(r->old, old_text, sizeof old_text);
}

/* A step made, one recorded, one launched again; saved where nothing is, and over what is there. A child that went on through
 * a failure in a step ends behind it. */
static ddpm_status run_through(struct run *r)
{
    ddpm_step_result result;
    TRY(ddpm_backend_create("cuda", 0, &r->x.be));
    TRY(ddpm_trainer_create(r->x.be, &r->x.cfg, &r->x.t));
    for (int i = 0; i < STEPS; i++) {
        TRY(ddpm_trainer_step(r->x.t, &result));
        r->loss[i] = result.loss;
        if (at.is_child) return DDPM_OK;
    }
    TRY(ddpm_trainer_save(r->x.t, r->fresh));
    r->has_fresh = true;
    return ddpm_trainer_save(r->x.t, r->old);
}

static bool holds(const char *path, const void *data, size_t bytes)
{
    size_t n;
    char *text = support_read_file(path, &n);
    const bool is_so = n == bytes && memcmp(text, data, n) == 0;
    free(text);
    return is_so;
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* A failed save leaves what was there; at the second one the first file is whole already. */
static void require_files_untouched(const struct run *r)
{
    require(is_there(r->fresh) == r->has_fresh, "no file where there was none", r->status);
    require(holds(r->old, old_text, sizeof old_text), "the file of before is untouched", r->status);
}

static void run_end(struct run *r, long least)
{
    if (r->status && !at.is_told) require_files_untouched(r);
    at.is_told = true;
    train_close(&r->x);
    end_life(least);
}

static void a_device_lost_at_any_call(void **state)
{
    struct run r;
    run_begin(*state, smallest, &r);
    begin_life(cudaErrorIllegalAddress, true, every(1));
    r.status = run_through(&r);
    if (at.is_child && !at.is_told) {
        require(r.status == DDPM_BACKEND && ddpm_status_exit_code(r.status) == 79, "a lost device is told as one", r.status);
        if (r.x.t) require(ddpm_trainer_save(r.x.t, r.old) == DDPM_BACKEND, "it is not saved from later either", r.status);
    }
    if (!at.is_child) assert_ok(r.status);
    run_end(&r, 3000);
    train_assert_same_files(r.fresh, r.old);
}

/* Whether the steps that were made gave the losses of `whole`. */
static bool has_losses_of(const struct run *r, const struct run *whole)
{
    for (int i = 0; i < STEPS; i++)
        if (r->loss[i] != 0 && r->loss[i] != whole->loss[i]) return false;
    return true;
}

/* Without the libraries, which go on with another engine after a failure. Calls that could not be recorded are made one by
 * one, with the same bits. */
static void fails_once(void **state, cudaError_t error, ddpm_status want)
{
    struct run r, whole;
    setenv("DDPM_LIBRARIES", "0", 1);
    run_begin(*state, plain, &whole);
    assert_ok(run_through(&whole));
    train_close(&whole.x);

    run_begin(*state, plain, &r);
    begin_life(error, false, every(1));
    r.status = run_through(&r);
    require(!r.status || r.status == want, "the status of this failure", r.status);
    require(has_losses_of(&r, &whole), "the losses of a life without failures", r.status);
    if (!at.is_child) assert_ok(r.status);
    run_end(&r, 400);
    unsetenv("DDPM_LIBRARIES");
}

static void memory_refused_at_any_call(void **state)
{
    fails_once(state, cudaErrorMemoryAllocation, DDPM_NOMEM);
}

static void any_call_with_a_wrong_argument(void **state)
{
    fails_once(state, cudaErrorInvalidValue, DDPM_BUG);
}

/* ---- each kind of product ---- */

struct product_life {
    const struct call *call;
    bool is_half;
    ddpm_backend *be;
    ddpm_tensor t[TENSORS];
    void *block[TENSORS];
};

/* Measured, timed, made, made again from the same numbers, fetched. */
static ddpm_status product_live(struct product_life *l, struct result *in, struct result *got)
{
    const struct call *c = l->call;
    TRY(ddpm_backend_create("cuda", 0, &l->be));
    TRY(place(l->be, c, l->is_half, 0, l->t, l->block));
    TRY(measured(l->be, c, l->t));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < c->n; i++)
            TRY(put(l->be, &l->t[i], in->x[i], span(&l->t[i])));
        TRY(c->run(l->be, l->t));
    }
    for (int i = 0; i < c->n; i++)
        TRY(fetch(l->be, &l->t[i], got->x[i], span(&l->t[i])));
    return DDPM_OK;
}

static void product_life_end(struct product_life *l)
{
    at.is_told = true;
    for (int i = 0; i < l->call->n; i++)
        ddpm_backend_release(l->be, l->block[i]);
    ddpm_backend_free(l->be);
    end_life(200);
}

/* An engine that cannot be built for want of memory is passed over: the numbers are right all the same, or it is told. */
static void check_product(const struct call *c, int each)
{
    ddpm_backend *cpu = NULL;
    assert_ok(ddpm_backend_create("cpu", 1, &cpu));
    const bool is_half = strcmp(c->name, "attention") == 0; /* which has no engine in f32 */
    struct result want = compute(cpu, c, is_half, true, 0, 1), in, got;
    ddpm_backend_free(cpu);
    for (int i = 0; i < c->n; i++) {
        in.x[i] = numbers(&c->slot[i], (uint64_t)i, is_half);
        got.x[i] = numbers(&c->slot[i], (uint64_t)i, is_half);
    }
    for (int i = c->n; i < TENSORS; i++)
        in.x[i] = got.x[i] = NULL;
    struct product_life l = {.call = c, .is_half = is_half};
    begin_life(cudaErrorMemoryAllocation, false, each);
    const ddpm_status s = product_live(&l, &in, &got);
    require(at.is_told || !s || s == DDPM_NOMEM, "no memory is told as that", s);
    require(at.is_told || s || error_of(c, &got, &want) <= tolerance(is_half), "the numbers are right", s);
    if (!at.is_child) assert_ok(s);
    product_life_end(&l);
    result_free(&want);
    result_free(&in);
    result_free(&got);
}

static void products_without_memory_at_any_call(void **state)
{
    (void)state;
    struct call calls[CALLS];
    const int n = all_calls(calls);
    for (int i = 0; i < n; i++)
        check_product(&calls[(i + 1) % n], every(i == 0 ? 1 : 7)); /* the others' descriptors are made by the same code */
}

static int begin(void **state)
{
    device_begin(state);
    cuda_on_cpu_guard(false); /* page tables are most of what a fork costs */
    setenv("DDPM_CACHE", "", 1);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0); /* plans are built by one thread then */
    return support_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_lost_at_any_call),
        cmocka_unit_test(memory_refused_at_any_call),
        cmocka_unit_test(any_call_with_a_wrong_argument),
        cmocka_unit_test(products_without_memory_at_any_call),
    };
    return cmocka_run_group_tests(tests, begin, support_teardown);
}

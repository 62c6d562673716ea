/* ops.c - `ddpm bench ops`: every op of the list at the levels of two networks.
 *
 * Shares: a product's rate against the largest matrix product measured on this machine, any other
 * op's traffic against a plain copy. Inputs that lie in a cache can exceed the latter; --batch
 * makes them larger. On a GPU a repeat is as many calls, one after another, as last SPAN_S
 * together, and one wait: a call alone would be timed with the way to the device and back. */
#include "bench.h"

#include "fail.h"
#include "op_rows.h"

#include <math.h>
#include <string.h>

enum { SPAN_CALLS_MAX = 200 };
static const double SPAN_S = 2e-3;

/* The CIFAR U-Net of Ho et al. and a small one for 28 x 28 grey images. */
static const op_level levels[] = {
    {8, 32, 32, 128}, {8, 16, 16, 256}, {8, 8, 8, 256}, {64, 28, 28, 32}, {64, 14, 14, 64},
};

struct ops_run {
    const bench_job *job;
    bench_peak peak;
};

/* Seconds of `calls` calls and the wait behind them. */
static ddpm_status time_calls(const op_bench *b, op_call call, const void *args, int calls,
                              double *seconds)
{
    const double start = monotonic_seconds();
    for (int i = 0; i < calls; i++)
        TRY(call(b->be, args));
    TRY(ddpm_backend_sync(b->be));
    *seconds = monotonic_seconds() - start;
    return DDPM_OK;
}

static ddpm_status repeat(const op_bench *b, op_call call, const void *args, bench_times *times)
{
    const bench_job *job = ((const struct ops_run *)b->owner)->job;
    double seconds = 0;
    int calls = 1;
    for (int i = 0; i < job->warmup; i++)
        TRY(time_calls(b, call, args, 1, &seconds));
    if (!ddpm_backend_is_cpu(b->be) && job->warmup > 0)
        calls = seconds * SPAN_CALLS_MAX < SPAN_S ? SPAN_CALLS_MAX : (int)ceil(SPAN_S / seconds);
    for (int i = 0; i < job->repeats; i++) {
        REQUIRE(!*job->stop, STOPPED, "stopped between two ops");
        TRY(time_calls(b, call, args, calls, &seconds));
        bench_times_add(times, seconds / calls);
    }
    return DDPM_OK;
}

static void report_times(report *r, const bench_peak *peak, bench_times *times, double flop,
                         double bytes)
{
    const double median = bench_times_quantile(times, 0.5);
    const double gflop_per_s = flop / median / 1e9, gb_per_s = bytes / median / 1e9;
    report_real(r, "median_ms", median * 1e3);
    report_real(r, "p99_ms", bench_times_quantile(times, 0.99) * 1e3);
    report_real(r, "gflop_per_s", flop > 0 ? gflop_per_s : NAN);
    report_real(r, "gb_per_s", gb_per_s);
    report_text(r, "share_of", "%s", flop > 0 ? "peak" : "copy");
    report_real(r, "share", flop > 0 ? gflop_per_s / peak->gflop_per_s : gb_per_s / peak->gb_per_s);
}

void op_time(op_bench *b, const char *op, const char *of, op_call call, const void *args,
             double flop, double bytes)
{
    const struct ops_run *run = b->owner;
    bench_times times = {0};
    if (b->s) return;
    b->s = bench_times_init(&times, run->job->repeats);
    if (!b->s) b->s = repeat(b, call, args, &times);
    if (b->s) {
        status_context(b->s, "%s, %s", op, of);
    } else {
        report *r = run->job->r;
        report_row(r, "ops");
        report_text(r, "op", "%s", op);
        report_text(r, "shape", "%s", of);
        report_times(r, &run->peak, &times, flop, bytes);
        report_close(r);
    }
    bench_times_release(&times);
}

static ddpm_status run_rows(const bench_job *job, op_bench *b)
{
    const int n_levels = sizeof levels / sizeof levels[0];
    progress p;
    progress_begin(&p, job->sink, "bench ops", "row", (int64_t)op_row_count * n_levels, 0);
    for (int i = 0; i < op_row_count * n_levels && !b->s; i++) {
        if (job->only_op && strcmp(job->only_op, op_rows[i / n_levels].name) != 0) continue;
        op_level level = levels[i % n_levels];
        if (job->batch) level.n = job->batch;
        op_rows[i / n_levels].run(b, &level);
        op_release(b);
        progress_update(&p, i + 1, op_rows[i / n_levels].name);
    }
    progress_end(&p, NULL);
    return b->s;
}

static ddpm_status expect_op(const char *name)
{
    bool is_known = !name;
    for (int i = 0; i < op_row_count && !is_known; i++)
        is_known = strcmp(name, op_rows[i].name) == 0;
    REQUIRE(is_known, ARG, "--op %.40s: no op of this name; `ddpm bench ops` lists them", name);
    return DDPM_OK;
}

ddpm_status bench_ops(bench_job *job)
{
    struct ops_run run = {.job = job};
    op_bench b = {.act = job->is_bf16 ? DDPM_BF16 : DDPM_F32, .owner = &run};
    report_text(job->r, "bench", "ops");
    report_text(job->r, "dtype", "%s", job->is_bf16 ? "bf16" : "f32");
    report_int(job->r, "warmup", job->warmup);
    report_int(job->r, "repeats", job->repeats);
    TRY(expect_op(job->only_op));
    ddpm_status s = bench_backend(job, &b.be);
    if (!s && job->is_bf16 && ddpm_backend_is_cpu(b.be))
        s = FAIL(CONFIG, "--dtype bf16: the CPU computes in f32 alone");
    if (!s) s = bench_measure_peak(job, b.be, &run.peak);
    if (!s) s = run_rows(job, &b);
    if (!s) report_int(job->r, "backend_peak_bytes", (int64_t)ddpm_backend_memory_peak(b.be));
    if (!s) report_int(job->r, "process_peak_bytes", bench_process_peak_bytes());
    if (!s) bench_report_machine(job->r, b.be, &run.peak);
    ddpm_backend_free(b.be);
    return s;
}

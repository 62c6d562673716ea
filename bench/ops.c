/* ops.c - `ddpm bench ops`: every op of the list at the levels of two networks.
 *
 * Shares: a product's rate against the largest matrix product measured on this machine, any other
 * op's traffic against a plain copy. Inputs that lie in a cache can exceed the latter. */
#include "bench.h"

#include "fail.h"
#include "op_rows.h"
#include "philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The CIFAR U-Net of Ho et al. and a small one for 28 x 28 grey images. */
static const op_level levels[] = {
    {8, 32, 32, 128}, {8, 16, 16, 256}, {8, 8, 8, 256}, {64, 28, 28, 32}, {64, 14, 14, 64},
};

static const struct {
    const char *name;
    void (*run)(op_bench *b, const op_level *l);
} rows[] = {
#define X(op) {#op, op_row_##op},
    OP_LIST(X)
#undef X
};

#define X(op)                                                                                      \
    ddpm_status op_call_##op(ddpm_backend *be, const void *args)                                   \
    {                                                                                              \
        return backend_ops(be)->op(be, args);                                                      \
    }
OP_LIST(X)
#undef X

/* ---- inputs ---- */

static ddpm_status upload_uniform(op_bench *b, void *device, size_t bytes)
{
    const size_t count = bytes / sizeof(float);
    float *host = malloc(bytes);
    REQUIRE(host, NOMEM, "%zu bytes of input", bytes);
    for (size_t i = 0; i < count; i += 4) {
        const philox4 words =
            philox_draw(0, PHILOX_TEST, (uint32_t)b->n_blocks, 0, (uint32_t)(i / 4));
        for (size_t k = 0; k < 4 && i + k < count; k++)
            host[i + k] = 2 * philox_uniform(words.v[k]) - 1;
    }
    const ddpm_status s = ddpm_backend_upload(b->be, device, host, bytes);
    free(host);
    return s;
}

void *op_block(op_bench *b, size_t bytes, bool fill)
{
    void *block = NULL;
    if (b->s) return NULL;
    if (b->n_blocks == OP_BLOCKS) {
        b->s = FAIL(BUG, "a row of the bench takes more than %d blocks", OP_BLOCKS);
        return NULL;
    }
    b->s = ddpm_backend_alloc(b->be, bytes, &block);
    if (b->s) return NULL;
    b->blocks[b->n_blocks++] = block;
    if (fill) b->s = upload_uniform(b, block, bytes);
    return block;
}

ddpm_tensor op_take(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return ddpm_tensor_4d(op_block(b, (size_t)(n * h * w * c) * sizeof(float), true), n, h, w, c);
}

ddpm_tensor op_take_2d(op_bench *b, int64_t rows_, int64_t columns)
{
    return ddpm_tensor_2d(op_block(b, (size_t)(rows_ * columns) * sizeof(float), true), rows_,
                          columns);
}

ddpm_tensor op_take_1d(op_bench *b, int64_t n)
{
    return ddpm_tensor_1d(op_block(b, (size_t)n * sizeof(float), true), n);
}

static void *take_copy(op_bench *b, const void *host, size_t bytes)
{
    void *device = op_block(b, bytes, false);
    if (!b->s) b->s = ddpm_backend_upload(b->be, device, host, bytes);
    return device;
}

int32_t *op_take_ints(op_bench *b, int64_t n, int32_t value)
{
    int32_t host[256];
    if (n > 256) n = 256;
    for (int64_t i = 0; i < n; i++)
        host[i] = value;
    return take_copy(b, host, (size_t)n * sizeof *host);
}

uint64_t *op_take_indices(op_bench *b, int64_t n)
{
    uint64_t host[256];
    if (n > 256) n = 256;
    for (int64_t i = 0; i < n; i++)
        host[i] = (uint64_t)i;
    return take_copy(b, host, (size_t)n * sizeof *host);
}

struct step_state *op_take_state(op_bench *b)
{
    const struct step_state state = {.seed = 1,
                                     .step = 1,
                                     .lr = 1e-4f,
                                     .bias1 = 0.1f,
                                     .bias2 = 0.001f,
                                     .ema_decay = {0.9999f, 0.999f, 0.99f, 0.9f}};
    return take_copy(b, &state, sizeof state);
}

/* ---- one row ---- */

static ddpm_status repeat(const op_bench *b, op_call call, const void *args, bench_times *times)
{
    for (int i = 0; i < b->job->warmup + b->job->repeats; i++) {
        REQUIRE(!*b->job->stop, STOPPED, "stopped between two ops");
        const double start = monotonic_seconds();
        TRY(call(b->be, args));
        TRY(ddpm_backend_sync(b->be));
        if (i >= b->job->warmup) bench_times_add(times, monotonic_seconds() - start);
    }
    return DDPM_OK;
}

void op_time(op_bench *b, const char *op, const char *of, op_call call, const void *args,
             double flop, double bytes)
{
    bench_times times = {0};
    if (b->s) return;
    b->s = bench_times_init(&times, b->job->repeats);
    if (!b->s) b->s = repeat(b, call, args, &times);
    if (b->s) {
        status_context(b->s, "%s, %s", op, of);
    } else {
        const double median = bench_times_quantile(&times, 0.5);
        const double gflop_per_s = flop / median / 1e9, gb_per_s = bytes / median / 1e9;
        report *r = b->job->r;
        report_row(r, "ops");
        report_text(r, "op", "%s", op);
        report_text(r, "shape", "%s", of);
        report_real(r, "median_ms", median * 1e3);
        report_real(r, "p99_ms", bench_times_quantile(&times, 0.99) * 1e3);
        report_real(r, "gflop_per_s", flop > 0 ? gflop_per_s : NAN);
        report_real(r, "gb_per_s", gb_per_s);
        report_text(r, "share_of", "%s", flop > 0 ? "peak" : "copy");
        report_real(r, "share",
                    flop > 0 ? gflop_per_s / b->peak.gflop_per_s : gb_per_s / b->peak.gb_per_s);
        report_close(r);
    }
    bench_times_release(&times);
}

static void release_blocks(op_bench *b)
{
    for (int i = 0; i < b->n_blocks; i++)
        ddpm_backend_release(b->be, b->blocks[i]);
    b->n_blocks = 0;
}

static ddpm_status run_rows(op_bench *b)
{
    const int n_rows = sizeof rows / sizeof rows[0], n_levels = sizeof levels / sizeof levels[0];
    progress p;
    progress_begin(&p, b->job->sink, "bench ops", "row", (int64_t)n_rows * n_levels, 0);
    for (int i = 0; i < n_rows * n_levels && !b->s; i++) {
        op_level level = levels[i % n_levels];
        if (b->job->batch) level.n = b->job->batch;
        rows[i / n_levels].run(b, &level);
        release_blocks(b);
        progress_update(&p, i + 1, rows[i / n_levels].name);
    }
    progress_end(&p, NULL);
    return b->s;
}

ddpm_status bench_ops(bench_job *job)
{
    op_bench b = {.job = job};
    report_text(job->r, "bench", "ops");
    report_int(job->r, "warmup", job->warmup);
    report_int(job->r, "repeats", job->repeats);
    ddpm_status s = ddpm_backend_create(job->device, job->threads, &b.be);
    if (!s) s = bench_measure_peak(b.be, &b.peak);
    if (!s) s = run_rows(&b);
    if (!s) report_int(job->r, "backend_peak_bytes", (int64_t)ddpm_backend_memory_peak(b.be));
    if (!s) report_int(job->r, "process_peak_bytes", bench_process_peak_bytes());
    if (!s) bench_report_machine(job->r, b.be, &b.peak);
    ddpm_backend_free(b.be);
    return s;
}

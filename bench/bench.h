/* bench.h - what the benches share. They are compiled into the program: a figure is taken with the
 * code that trains.
 *
 * Every bench warms up, repeats, and tells the median and the 99th percentile; rates are by the
 * median. Work is counted by definition (2 flop a multiply-add of the network, 3 forward passes a
 * training step), not by the algorithm. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "ddpm/backend.h"
#include "ddpm/config.h"
#include "progress.h"
#include "report.h"

typedef struct {
    const char *device, *configuration; /* name of the configuration, for the report */
    int threads;
    ddpm_backend_options options;
    ddpm_config cfg;
    int warmup, repeats;
    int batch;           /* ops: images per tensor; 0: the tables' own. train and sample: in cfg */
    bool profiles;       /* train: a table of time by op */
    bool is_bf16;        /* activations of ops are bf16 */
    bool skips_peak;     /* the machine's own peaks are not measured */
    const char *only_op; /* ops: this one; NULL: all */
    const log_sink *sink;
    const volatile int *stop; /* STOPPED when set */
    report *r;
} bench_job;

/* The job's device, with its options. */
ddpm_status bench_backend(const bench_job *job, ddpm_backend **out);

ddpm_status bench_train(bench_job *job);
ddpm_status bench_sample(bench_job *job);
ddpm_status bench_ops(bench_job *job);

/* ---- machine.c ---- */

/* What this machine can do at best, measured through the backend in the bench's dtype: the largest
 * of several matrix products, and a copy (bytes read and written); both NAN with skips_peak and
 * where no memory is left for them. And a GPU's rating for dense bf16 products by its maker, 0
 * where unknown. */
typedef struct {
    double gflop_per_s, gb_per_s, rated_gflop_per_s;
} bench_peak;
ddpm_status bench_measure_peak(const bench_job *job, ddpm_backend *be, bench_peak *out);
/* gflop_per_s; share_of_peak, of the product measured here; mfu, of the rating for bf16, whatever
 * the precision. */
void bench_report_shares(report *r, const bench_peak *peak, double gflop_per_s);
/* Object "machine" (processor, memory, system, peaks), "versions", "commit", "date". */
void bench_report_machine(report *r, const ddpm_backend *be, const bench_peak *peak);
/* The most memory the process has had (VmHWM), bytes. */
int64_t bench_process_peak_bytes(void);
/* Since the process was started by the kernel, to 10 ms. */
double bench_process_seconds(void);

/* ---- times.c ---- */

typedef struct {
    double *seconds; /* [size] owned */
    int n, size;
} bench_times;
ddpm_status bench_times_init(bench_times *t, int size);
void bench_times_release(bench_times *t);
void bench_times_add(bench_times *t, double seconds);
/* Nearest rank, q in (0, 1]: 0.5 the median. Sorts. */
double bench_times_quantile(bench_times *t, double q);

#endif

/* machine.c - the machine a figure was taken on, and what it could do at best.
 *
 * The peak is the best of several products through the backend's own `linear`: what this build
 * reaches on this machine when it does nothing else, so that a share says how much is lost outside
 * the products. A GPU's rating by its maker stands beside it, for it is what publications divide
 * by; for a CPU that was rejected: it knows neither the clock under load nor the neighbours. The
 * copy is an OpenMP loop of memcpy for the CPU; on another device `add` of a tensor and itself,
 * which reads one and writes one. */
#include "bench.h"

#include "build_info.h"
#include "fail.h"
#include "op_rows.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { COPY_REPEATS = 20, PRODUCTS = 4 };

/* Short products catch a moment in which a busy machine leaves all cores alone, long ones amortise
 * more. A GPU's caches hold what fits a CPU's, so its copy is longer. */
struct peak_sizes {
    struct {
        int64_t width;
        int repeats;
    } products[PRODUCTS];
    int64_t copy_bytes;
};
static const struct peak_sizes cpu_sizes = {{{512, 40}, {1024, 20}, {1536, 8}, {2048, 5}}, 1 << 26};
static const struct peak_sizes gpu_sizes = {{{2048, 20}, {4096, 20}, {8192, 10}}, 1 << 30};

static void time_product(op_bench *b, int64_t n, int repeats, double *gflop_per_s)
{
    ddpm_tensor x = op_act_2d(b, n, n), w = op_act_2d(b, n, n), y = op_act_2d(b, n, n);
    const struct linear_args args = {.x = &x, .w = &w, .y = &y};
    for (int i = 0; i < repeats && !b->s; i++) {
        const double start = monotonic_seconds();
        b->s = backend_ops(b->be)->linear(b->be, &args);
        if (!b->s) b->s = ddpm_backend_sync(b->be);
        const double rate =
            2.0 * (double)n * (double)n * (double)n / (monotonic_seconds() - start) / 1e9;
        if (rate > *gflop_per_s) *gflop_per_s = rate;
    }
    op_release(b);
}

static void copy_by_all(const ddpm_backend *be, char *to, const char *from, size_t bytes)
{
    const size_t n = (size_t)ddpm_backend_threads(be);
#pragma omp parallel for num_threads((int)n) schedule(static)
    for (size_t i = 0; i < n; i++) {
        const size_t begin = bytes * i / n, end = bytes * (i + 1) / n;
        memcpy(to + begin, from + begin, end - begin);
    }
}

static void time_copy(op_bench *b, int64_t bytes, double *gb_per_s)
{
    const int64_t n = bytes / (int64_t)sizeof(float);
    ddpm_tensor a = op_take_1d(b, n), y = op_take_zeros(b, n);
    if (!b->s) b->s = ddpm_backend_sync(b->be);
    for (int i = 0; i < COPY_REPEATS && !b->s; i++) {
        const double start = monotonic_seconds();
        if (ddpm_backend_is_cpu(b->be))
            copy_by_all(b->be, y.data, a.data, (size_t)bytes);
        else
            b->s = backend_ops(b->be)->add(b->be, &(struct add_args){.a = &a, .b = &a, .y = &y});
        if (!b->s) b->s = ddpm_backend_sync(b->be);
        const double rate = 2.0 * (double)bytes / (monotonic_seconds() - start) / 1e9;
        if (rate > *gb_per_s) *gb_per_s = rate;
    }
    op_release(b);
}

ddpm_status bench_backend(const bench_job *job, ddpm_backend **out)
{
    const ddpm_status s = ddpm_backend_create(job->device, job->threads, out);
    if (!s) ddpm_backend_configure(*out, &job->options);
    return s;
}

ddpm_status bench_measure_peak(const bench_job *job, ddpm_backend *be, bench_peak *out)
{
    const struct peak_sizes *sizes = ddpm_backend_is_cpu(be) ? &cpu_sizes : &gpu_sizes;
    op_bench b = {.be = be, .act = job->is_bf16 ? DDPM_BF16 : DDPM_F32};
    bench_peak peak = {.rated_gflop_per_s = ddpm_backend_rated_flops(be) / 1e9};
    *out = (bench_peak){NAN, NAN, peak.rated_gflop_per_s};
    if (job->skips_peak) return DDPM_OK;
    for (int i = 0; i < PRODUCTS && sizes->products[i].width; i++)
        time_product(&b, sizes->products[i].width, sizes->products[i].repeats, &peak.gflop_per_s);
    time_copy(&b, sizes->copy_bytes, &peak.gb_per_s);
    if (b.s == DDPM_NOMEM) return DDPM_OK; /* what is measured beside may fill the device */
    if (!b.s) *out = peak;
    return b.s;
}

void bench_report_shares(report *r, const bench_peak *peak, double gflop_per_s)
{
    report_real(r, "gflop_per_s", gflop_per_s);
    report_real(r, "share_of_peak", gflop_per_s / peak->gflop_per_s);
    report_real(r, "mfu",
                peak->rated_gflop_per_s > 0 ? gflop_per_s / peak->rated_gflop_per_s : NAN);
}

/* The value of the first line "KEY...: value" of a file of /proc; "" when there is none. */
static void proc_value(const char *path, const char *key, char *dst, size_t size)
{
    char line[512];
    FILE *f = fopen(path, "r");
    dst[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(dst, size, "%s", colon);
        break;
    }
    if (f) fclose(f);
}

int64_t bench_process_peak_bytes(void)
{
    char value[64];
    long long kib = 0;
    proc_value("/proc/self/status", "VmHWM", value, sizeof value);
    return sscanf(value, "%lld", &kib) == 1 ? kib * 1024 : 0;
}

double bench_process_seconds(void)
{
    char line[1024] = "";
    FILE *f = fopen("/proc/self/stat", "r");
    const size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f) fclose(f);
    line[n] = '\0';
    /* field 22, counted behind the name's ')', which may hold blanks */
    const char *p = strrchr(line, ')');
    unsigned long long ticks = 0;
    if (!p ||
        sscanf(p + 1,
               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &ticks) != 1)
        return 0;
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9 -
           (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

void bench_report_machine(report *r, const ddpm_backend *be, const bench_peak *peak)
{
    char processor[160], when[32] = "";
    struct utsname sys;
    const time_t now = time(NULL);
    struct tm tm;
    proc_value("/proc/cpuinfo", "model name", processor, sizeof processor);
    if (gmtime_r(&now, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (uname(&sys) != 0) sys = (struct utsname){0};

    report_open(r, "machine");
    report_text(r, "backend", "%s", ddpm_backend_name(be));
    report_text(r, "processor", "%s", processor);
    report_int(r, "threads", ddpm_backend_threads(be));
    report_int(r, "memory_bytes", (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
    report_text(r, "system", "%s %s %s", sys.sysname, sys.release, sys.machine);
    report_real(r, "peak_gflop_per_s", peak->gflop_per_s);
    report_real(r, "copy_gb_per_s", peak->gb_per_s);
    report_real(r, "rated_bf16_gflop_per_s",
                peak->rated_gflop_per_s > 0 ? peak->rated_gflop_per_s : NAN);
    report_close(r);
    for (int i = 0; ddpm_backend_notice(be, i); i++) {
        report_row(r, "notices");
        report_text(r, "notice", "%s", ddpm_backend_notice(be, i));
        report_close(r);
    }
    report_open(r, "versions");
    report_text(r, "ddpm", "%s", BUILD_VERSION);
    report_text(r, "commit", "%s", *BUILD_COMMIT ? BUILD_COMMIT : "unknown");
    report_text(r, "compiler", "%s, %s", BUILD_COMPILER, BUILD_TYPE);
    report_close(r);
    report_text(r, "date", "%s", when);
}

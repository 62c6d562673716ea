/* machine.c - the machine a figure was taken on, and what it could do at best.
 *
 * The peak is the best of several products through the backend's own `linear`: what this build
 * reaches on this machine when it does nothing else, so that a share says how much is lost outside
 * the products. The vendor's number was rejected: it knows neither the clock under load nor the
 * neighbours. The copy is an OpenMP loop of memcpy for the CPU; on another device `add`, which
 * reads two and writes one. */
#include "bench.h"

#include "build_info.h"
#include "fail.h"
#include "ops.h"
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { COPY_REPEATS = 20, COPY_BYTES = 1 << 26 };

/* Short products catch a moment in which a busy machine leaves all cores alone, long ones amortise
 * more. */
static const struct {
    int64_t width;
    int repeats;
} products[] = {{512, 40}, {1024, 20}, {1536, 8}, {2048, 5}};

static ddpm_status time_product(ddpm_backend *be, float *block, int64_t n, int repeats,
                                double *gflop_per_s)
{
    ddpm_tensor x = ddpm_tensor_2d(block, n, n), w = ddpm_tensor_2d(block + n * n, n, n);
    ddpm_tensor y = ddpm_tensor_2d(block + 2 * n * n, n, n);
    const struct linear_args args = {.x = &x, .w = &w, .y = &y};
    for (int i = 0; i < repeats; i++) {
        const double start = monotonic_seconds();
        TRY(backend_ops(be)->linear(be, &args));
        TRY(ddpm_backend_sync(be));
        const double rate =
            2.0 * (double)n * (double)n * (double)n / (monotonic_seconds() - start) / 1e9;
        if (rate > *gflop_per_s) *gflop_per_s = rate;
    }
    return DDPM_OK;
}

static void copy_by_all(const ddpm_backend *be, char *to, const char *from)
{
    const int n = ddpm_backend_threads(be);
#pragma omp parallel for num_threads(n) schedule(static)
    for (int i = 0; i < n; i++) {
        const size_t begin = (size_t)COPY_BYTES * (size_t)i / (size_t)n;
        const size_t end = (size_t)COPY_BYTES * ((size_t)i + 1) / (size_t)n;
        memcpy(to + begin, from + begin, end - begin);
    }
}

static ddpm_status time_copy(ddpm_backend *be, float *block, double *gb_per_s)
{
    const int64_t n = COPY_BYTES / (int64_t)sizeof(float);
    ddpm_tensor a = ddpm_tensor_1d(block, n), y = ddpm_tensor_1d(block + n, n);
    for (int i = 0; i < COPY_REPEATS; i++) {
        const double start = monotonic_seconds();
        if (ddpm_backend_is_cpu(be))
            copy_by_all(be, y.data, a.data);
        else
            TRY(backend_ops(be)->add(be, &(struct add_args){.a = &a, .b = &a, .y = &y}));
        TRY(ddpm_backend_sync(be));
        const double rate = 2.0 * COPY_BYTES / (monotonic_seconds() - start) / 1e9;
        if (rate > *gb_per_s) *gb_per_s = rate;
    }
    return DDPM_OK;
}

ddpm_status bench_measure_peak(ddpm_backend *be, bench_peak *out)
{
    const size_t bytes = (size_t)2 * COPY_BYTES; /* more than three matrices of 2048 x 2048 */
    void *block = NULL;
    bench_peak peak = {0};
    TRY(ddpm_backend_alloc(be, bytes, &block));
    ddpm_status s = DDPM_OK;
    for (size_t i = 0; i < sizeof products / sizeof products[0] && !s; i++)
        s = time_product(be, block, products[i].width, products[i].repeats, &peak.gflop_per_s);
    if (!s) s = time_copy(be, block, &peak.gb_per_s);
    ddpm_backend_release(be, block);
    if (!s) *out = peak;
    return s;
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
    report_close(r);
    report_open(r, "versions");
    report_text(r, "ddpm", "%s", BUILD_VERSION);
    report_text(r, "commit", "%s", *BUILD_COMMIT ? BUILD_COMMIT : "unknown");
    report_text(r, "compiler", "%s, %s", BUILD_COMPILER, BUILD_TYPE);
    report_close(r);
    report_text(r, "date", "%s", when);
}

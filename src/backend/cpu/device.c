/* device.c - the CPU as a device: its threads, its memory, the scratch its ops share.
 *
 * Threads: the number of cores this process may run on (its affinity mask, and the CPU quota of its control group, rounded up),
 * for a container with two cores of sixty-four must not start sixty-four threads. Work is cut into tasks by shapes alone
 * and taken as threads come (pool.c); OMP_NUM_THREADS is not read, --threads is the one way to say it. Denormals keep their IEEE meaning.
 *
 * Memory: mmap-backed by the C library at these sizes, so zeroing costs nothing until touched. Each block carries its
 * size in a header line of its own, for release() is told the pointer only. */
#include "cpu_backend.h"

#include "checked.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS_MAX 1024
#define HUGE_PAGE   ((uintptr_t)1 << 21)

static struct cpu_backend *cpu_of(ddpm_backend *be)
{
    return (struct cpu_backend *)be;
}

/* The control group's CPU quota in whole cores, or 0 where there is none (version 2: "max 100000" or "200000 100000"). */
static int quota_cores(void)
{
    long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%ld %ld", &quota, &period) != 2) quota = 0;
        fclose(f);
    } else {
        FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
        FILE *p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (!q || !p || fscanf(q, "%ld", &quota) != 1 || fscanf(p, "%ld", &period) != 1) quota = 0;
        if (q) fclose(q);
        if (p) fclose(p);
    }
    if (quota <= 0 || period <= 0) return 0;
    return (int)((quota + period - 1) / period);
}

static int usable_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
    const int quota = quota_cores();
    if (quota && quota < n) n = quota;
    return n < 1 ? 1 : n;
}

/* The processor's name by the kernel, "CPU" where it has none. */
static void processor_name(char *out, size_t size)
{
    snprintf(out, size, "CPU");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    char line[256];
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) != 0) continue;
        const char *at = strchr(line, ':');
        if (!at) continue;
        at += strspn(at, ": \t");
        snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
        break;
    }
    fclose(f);
}

static ddpm_status no_memory(const char *what, size_t bytes)
{
    const long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const double free_gib = pages > 0 ? (double)pages * (double)page / 0x1p30 : 0;
    return FAIL(NOMEM, "%s: cannot allocate %zu bytes (%.2f GiB); %.2f GiB are free", what, bytes,
                (double)bytes / 0x1p30, free_gib);
}

/* Large blocks on pages of 2 MiB where the kernel has them: the first step touches every page of weights, moments and
 * activations, and a fault for each 4 KiB was a fifth of its time. Elsewhere the advice is not taken, and nothing is lost. */
static void advise_huge_pages(unsigned char *data, size_t bytes)
{
    const uintptr_t begin = ((uintptr_t)data + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    const uintptr_t end = ((uintptr_t)data + bytes) & ~(HUGE_PAGE - 1);
    if (end > begin) (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

/* calloc gives zero pages untouched; one line more holds the size and one the alignment. */
static void *aligned_zeroed(size_t bytes)
{
    size_t all;
    if (!checked_add(bytes, 2 * CPU_ALIGN, &all)) return NULL;
    unsigned char *raw = calloc(1, all);
    if (!raw) return NULL;
    advise_huge_pages(raw, all);
    unsigned char *data = raw + CPU_ALIGN;
    data += CPU_ALIGN - 1 - ((uintptr_t)data + CPU_ALIGN - 1) % CPU_ALIGN;
    struct cpu_block *head = (struct cpu_block *)(data - sizeof *head);
    *head = (struct cpu_block){.raw = raw, .bytes = bytes};
    return data;
}

ddpm_status cpu_alloc(ddpm_backend *be, size_t bytes, void **out)
{
    void *data = aligned_zeroed(bytes);
    if (!data) return no_memory("memory", bytes);
    backend_count(be, bytes);
    *out = data;
    return DDPM_OK;
}

void cpu_release(ddpm_backend *be, void *block)
{
    if (!block) return;
    const struct cpu_block *head = (const struct cpu_block *)block - 1;
    backend_uncount(be, head->bytes);
    free(head->raw);
}

static ddpm_status cpu_upload(ddpm_backend *be, void *device, const void *host, size_t bytes)
{
    (void)be;
    memcpy(device, host, bytes);
    return DDPM_OK;
}

static ddpm_status cpu_download(ddpm_backend *be, void *host, const void *device, size_t bytes)
{
    (void)be;
    memcpy(host, device, bytes);
    return DDPM_OK;
}

static ddpm_status cpu_zero(ddpm_backend *be, void *device, size_t bytes)
{
    (void)be;
    memset(device, 0, bytes);
    return DDPM_OK;
}

static ddpm_status cpu_sync(ddpm_backend *be)
{
    (void)be; /* every op has ended when its call returns */
    return DDPM_OK;
}

/* Nothing of its own: what the process may still take is its system's and its limits' to say. */
static ddpm_status cpu_available(ddpm_backend *be, size_t *out)
{
    (void)be;
    *out = SIZE_MAX;
    return DDPM_OK;
}

static void cpu_free(ddpm_backend *be)
{
    struct cpu_backend *cpu = cpu_of(be);
    packed_clear(be);
    pool_free(cpu->pool);
    onednn_free(cpu->onednn);
    cpu_release(be, cpu->scratch);
    free(cpu);
}

static void cpu_freeze(ddpm_backend *be, bool on)
{
    (void)on; /* both ways the weights of before may not be those of after */
    packed_clear(be);
}

ddpm_status cpu_scratch(ddpm_backend *be, size_t bytes, void **out)
{
    struct cpu_backend *cpu = cpu_of(be);
    *out = NULL;
    if (bytes > be->scratch_bytes) be->scratch_bytes = bytes;
    if (cpu_is_measuring(be) || bytes == 0) return DDPM_OK;
    if (cpu->scratch_have < bytes) {
        cpu_release(be, cpu->scratch);
        cpu->scratch = NULL;
        cpu->scratch_have = 0;
        TRY(cpu_alloc(be, be->scratch_bytes, &cpu->scratch));
        cpu->scratch_have = be->scratch_bytes;
    }
    *out = cpu->scratch;
    return DDPM_OK;
}

void cpu_run(ddpm_backend *be, int64_t n, cpu_task task, void *context)
{
    pool_run(cpu_of(be)->pool, n, task, context);
}

static const struct backend_device cpu_device = {
    .free = cpu_free,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .available = cpu_available,
    .freeze_weights = cpu_freeze,
};

ddpm_status cpu_backend_create(int threads, ddpm_backend **out)
{
    REQUIRE(threads <= THREADS_MAX, ARG, "--threads %d: at most %d", threads, THREADS_MAX);
    struct cpu_backend *cpu = calloc(1, sizeof *cpu);
    REQUIRE(cpu, NOMEM, "CPU backend: %zu bytes", sizeof *cpu);
    ddpm_backend *be = &cpu->base;
    be->device = &cpu_device;
    be->table = &cpu_ops;
    be->is_cpu = true;
    be->threads = threads ? threads : usable_cores();
    ddpm_status s = pool_create(be->threads, &cpu->pool);
    if (!s) s = onednn_create(be->threads, &cpu->onednn);
    if (s) {
        cpu_free(be);
        return s;
    }
    char processor[96];
    processor_name(processor, sizeof processor);
    snprintf(be->name, sizeof be->name, "cpu: %s, %d thread%s, oneDNN %s", processor, be->threads,
             be->threads == 1 ? "" : "s", onednn_version());
    *out = be;
    return DDPM_OK;
}

/* memory.c - MemAvailable, RLIMIT_AS and the control groups' limits, as /proc and /sys have them.
 *
 * Read before anything large is allocated, since Linux promises memory it does not have: malloc
 * succeeds and the run is killed hours later without a word. A group's page cache is not counted as
 * used, for the kernel gives it up first. Files that are not there are no limits. */
#include "memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The number behind `key` at the start of a line; without a key the file's first number. */
static bool read_number(const char *path, const char *key, uint64_t *out)
{
    FILE *f = fopen(path, "re");
    if (!f) return false;
    char line[256];
    bool found = false;
    const size_t bytes = key ? strlen(key) : 0;
    while (!found && fgets(line, sizeof line, f))
        if (!key || strncmp(line, key, bytes) == 0)
            found = sscanf(line + bytes, "%" SCNu64, out) == 1;
    fclose(f);
    return found;
}

static uint64_t left(uint64_t limit, uint64_t used)
{
    return used < limit ? limit - used : 0;
}

/* Takes folder `dir` of a control group into account. "max" is not a number, hence no limit. */
static void group_limit(const char *dir, bool is_v2, uint64_t *least, const char **name)
{
    char path[PATH_MAX];
    uint64_t limit, used, active = 0, inactive = 0;
    snprintf(path, sizeof path, "%s/%s", dir, is_v2 ? "memory.max" : "memory.limit_in_bytes");
    if (!read_number(path, NULL, &limit)) return;
    snprintf(path, sizeof path, "%s/%s", dir, is_v2 ? "memory.current" : "memory.usage_in_bytes");
    if (!read_number(path, NULL, &used)) return;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    read_number(path, is_v2 ? "active_file " : "total_active_file ", &active);
    read_number(path, is_v2 ? "inactive_file " : "total_inactive_file ", &inactive);
    const uint64_t n = left(limit, left(used, active + inactive));
    if (n >= *least) return;
    *least = n;
    *name = "the control group's limit";
}

/* The group of this process and all above it. In a container the upper part of the path may be out
 * of sight; what is in sight counts. */
static void groups_limit(const char *root, const char *group, bool is_v2, uint64_t *least,
                         const char **name)
{
    char dir[PATH_MAX];
    const size_t root_bytes = strlen(root);
    if ((size_t)snprintf(dir, sizeof dir, "%s%s", root, group) >= sizeof dir) return;
    for (;;) {
        group_limit(dir, is_v2, least, name);
        char *slash = strrchr(dir, '/');
        if (!slash || (size_t)(slash - dir) < root_bytes) return;
        *slash = '\0';
    }
}

static void all_groups_limit(uint64_t *least, const char **name)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return;
    char line[PATH_MAX];
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        const char *v1 = strstr(line, ":memory:");
        if (strncmp(line, "0::", 3) == 0)
            groups_limit("/sys/fs/cgroup", line + 3, true, least, name);
        else if (v1)
            groups_limit("/sys/fs/cgroup/memory", v1 + strlen(":memory:"), false, least, name);
    }
    fclose(f);
}

uint64_t memory_available(const char **limit)
{
    uint64_t least = UINT64_MAX, n;
    *limit = "no limit is known";
    if (read_number("/proc/meminfo", "MemAvailable:", &n) && n < UINT64_MAX / 1024) {
        least = n * 1024;
        *limit = "the machine's free memory";
    }
    struct rlimit r;
    uint64_t pages;
    if (getrlimit(RLIMIT_AS, &r) == 0 && r.rlim_cur != RLIM_INFINITY &&
        read_number("/proc/self/statm", NULL, &pages)) {
        n = left(r.rlim_cur, pages * (uint64_t)sysconf(_SC_PAGESIZE));
        if (n < least) {
            least = n;
            *limit = "RLIMIT_AS (ulimit -v)";
        }
    }
    all_groups_limit(&least, limit);
    return least;
}

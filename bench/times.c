/* times.c - a list of times and its quantiles. The nearest rank is told, never a value between two
 * that were measured; of fewer than 100 times the 99th percentile is the slowest. */
#include "bench.h"

#include "fail.h"

#include <math.h>
#include <stdlib.h>

ddpm_status bench_times_init(bench_times *t, int size)
{
    *t = (bench_times){.seconds = calloc((size_t)size, sizeof *t->seconds), .size = size};
    REQUIRE(t->seconds, NOMEM, "%d times", size);
    return DDPM_OK;
}

void bench_times_release(bench_times *t)
{
    free(t->seconds);
    *t = (bench_times){0};
}

void bench_times_add(bench_times *t, double seconds)
{
    if (t->n < t->size) t->seconds[t->n++] = seconds;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_times_quantile(bench_times *t, double q)
{
    if (t->n == 0) return NAN;
    qsort(t->seconds, (size_t)t->n, sizeof *t->seconds, compare);
    int rank = (int)ceil(q * t->n);
    if (rank < 1) rank = 1;
    return t->seconds[rank - 1];
}

/* spacing.c - which steps of the schedule a sampler visits, by the rules of the two programs people know.
 *
 * Job      text to an ascending list of steps in 1..T.
 * Method   guided-diffusion's space_timesteps and diffusers' timestep_spacing, bit for bit: both round a half to the even
 *          neighbour and the former adds its stride up in floating point, so rint() and the same sums are used here.
 *          (Those rules count from 0; the step is that number plus 1.)
 * Note     "ddimN" exists only for some N (62 of them for T = 1000, for few of which one would guess); the plain "N" works for
 *          every N up to T and always ends at step T, so that is what `--steps N` uses. */
#include "ddpm/diffusion.h"

#include "fail.h"
#include "text.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SECTIONS_MAX 64

/* A whole decimal number 1 .. 10^9 at *s, moved past; 0 where there is none. */
static int read_count(const char **s)
{
    long long v = 0;
    const char *p = *s;
    while (*p >= '0' && *p <= '9' && v < 1000000000)
        v = v * 10 + (*p++ - '0');
    if (p == *s || (*p >= '0' && *p <= '9') || v > 1000000000) return 0;
    *s = p;
    return (int)v;
}

static bool read_whole(const char *s, int *count)
{
    *count = read_count(&s);
    return *count > 0 && !*s;
}

/* Steps of stride i: the smallest stride that gives exactly n of T (guided-diffusion's "ddimN"); 0 where none does. */
static int ddim_stride(int T, int n)
{
    for (int i = 1; i < T; i++) {
        const int steps = (T - 1) / i + 1;
        if (steps == n) return i;
        if (steps < n) break;
    }
    return 0;
}

static ddpm_status spacing_ddim(int T, int n, int *kept, int *n_kept)
{
    const int stride = ddim_stride(T, n);
    if (!stride) {
        int below = 0, above = 0;
        for (int m = n < T ? n - 1 : T; m >= 1 && !below; m--)
            below = ddim_stride(T, m) ? m : 0;
        for (int m = n + 1; m <= T && !above; m++)
            above = ddim_stride(T, m) ? m : 0;
        if (below && above)
            return FAIL(CONFIG, "sample.spacing: ddim%d: no whole stride gives %d of %d steps; the nearest that exist are "
                        "ddim%d and ddim%d, and \"%d\" works for any count", n, n, T, below, above, n);
        if (!below)
            return FAIL(CONFIG, "sample.spacing: ddim%d: no whole stride gives %d of %d steps; the nearest that exists is "
                        "ddim%d", n, n, T, above);
        return FAIL(CONFIG, "sample.spacing: ddim%d: no whole stride gives %d of %d steps; the nearest that exists is ddim%d",
                    n, n, T, below);
    }
    for (int t = 0; t < T; t += stride)
        kept[(*n_kept)++] = t + 1;
    return DDPM_OK;
}

/* "10,15,20": the T steps in equal sections (the first T % n one longer), so many steps from each, its ends included. */
static ddpm_status spacing_sections(const char *text, int T, int *kept, int *n_kept)
{
    int count[SECTIONS_MAX], n = 0;
    for (const char *s = text;; s++) {
        REQUIRE(n < SECTIONS_MAX, CONFIG, "sample.spacing: more than %d sections", SECTIONS_MAX);
        count[n] = read_count(&s);
        REQUIRE(count[n] > 0 && (*s == ',' || !*s), CONFIG,
                "sample.spacing: \"%.64s\" is not understood; allowed are \"\" (all steps), \"250\", \"10,15,20\", \"ddim50\", "
                "\"leading:20\", \"trailing:20\", \"linspace:20\"", text);
        n++;
        if (!*s) break;
    }
    int start = 0;
    for (int i = 0; i < n; i++) {
        const int size = T / n + (i < T % n);
        REQUIRE(count[i] <= size, CONFIG,
                "sample.spacing: \"%.64s\" asks for %d steps of section %d, which has %d of the schedule's %d; "
                "at most %d are possible", text, count[i], i + 1, size, T, size);
        const double stride = count[i] <= 1 ? 1 : (double)(size - 1) / (count[i] - 1);
        double at = 0;
        for (int k = 0; k < count[i]; k++, at += stride)
            kept[(*n_kept)++] = start + (int)rint(at) + 1;
        start += size;
    }
    return DDPM_OK;
}

static ddpm_status spacing_leading(int T, int n, int *kept, int *n_kept)
{
    for (int k = 0; k < n; k++)
        kept[(*n_kept)++] = k * (T / n) + 1;
    return DDPM_OK;
}

static ddpm_status spacing_trailing(int T, int n, int *kept, int *n_kept)
{
    const double stride = (double)T / n;
    for (int k = n - 1; k >= 0; k--)
        kept[(*n_kept)++] = (int)rint(T - k * stride);
    return DDPM_OK;
}

static ddpm_status spacing_linspace(int T, int n, int *kept, int *n_kept)
{
    const double stride = n > 1 ? (double)(T - 1) / (n - 1) : 0;
    for (int k = 0; k < n; k++)
        kept[(*n_kept)++] = (k && k == n - 1 ? T - 1 : (int)rint(k * stride)) + 1;
    return DDPM_OK;
}

static ddpm_status spacing_all(int T, int n, int *kept, int *n_kept)
{
    (void)n;
    for (int t = 1; t <= T; t++)
        kept[(*n_kept)++] = t;
    return DDPM_OK;
}

static const struct {
    const char *prefix;
    ddpm_status (*rule)(int T, int n, int *kept, int *n_kept);
} named[] = {
    {"ddim", spacing_ddim},
    {"leading:", spacing_leading},
    {"trailing:", spacing_trailing},
    {"linspace:", spacing_linspace},
};

static ddpm_status spacing_fill(const char *text, int T, int *kept, int *n_kept)
{
    if (!*text) return spacing_all(T, T, kept, n_kept);
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        const size_t length = strlen(named[i].prefix);
        if (strncmp(text, named[i].prefix, length) != 0) continue;
        int n;
        REQUIRE(read_whole(text + length, &n) && n <= T, CONFIG,
                "sample.spacing: \"%.64s\": behind \"%s\" a whole number from 1 to %d is needed", text,
                named[i].prefix, T);
        return named[i].rule(T, n, kept, n_kept);
    }
    return spacing_sections(text, T, kept, n_kept);
}

ddpm_status ddpm_spacing_parse(const char *text, int T, int **kept, int *n)
{
    REQUIRE(T >= 1 && T < INT_MAX, CONFIG, "sample.spacing for a schedule of %d steps", T);
    int *list = malloc((size_t)T * sizeof *list);
    REQUIRE(list, NOMEM, "list of %d steps: %zu bytes", T, (size_t)T * sizeof *list);
    int count = 0;
    const ddpm_status s = spacing_fill(text ? text : "", T, list, &count);
    if (s) {
        free(list);
        return s;
    }
    int unique = 0;
    for (int i = 0; i < count; i++)
        if (i == 0 || list[i] > list[unique - 1]) list[unique++] = list[i];
    *kept = list;
    *n = unique;
    return DDPM_OK;
}

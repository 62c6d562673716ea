/* config_check.c - what no single key can tell: whether the keys fit each other.
 *
 * The widths that GroupNorm and attention meet are found by walking the levels as the network does,
 * not by rules of thumb: the up path normalises concatenations, whose width belongs to two levels.
 */
#include "config_items.h"

#include "checked.h"
#include "fail.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_BLOCKS = 2 + DDPM_LIST_MAX * (16 + 2), MAX_EMA = 4 };

/* What the walk collects: the greatest common divisor of all widths of a kind, and the first that
 * does not fit. */
typedef struct {
    int64_t divisor, common, misfit;
    char place[48]; /* of the misfit */
} widths;

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static void meet(widths *w, int64_t width, const char *path, int level, int64_t block)
{
    w->common = gcd(w->common, width);
    if (w->misfit || width % w->divisor == 0) return;
    w->misfit = width;
    snprintf(w->place, sizeof w->place, "%s, level %d, block %lld", path, level, (long long)block);
}

int64_t ddpm_model_level_channels(const ddpm_model_config *m, int level)
{
    return llround((double)m->channels * m->channel_mult.v[level]);
}

static bool has_attention(const ddpm_model_config *m, int level)
{
    for (int i = 0; i < m->attention_resolutions.n; i++)
        if (m->attention_resolutions.v[i] == m->image_height >> level) return true;
    return false;
}

/* conv-in; down: blocks, each output kept, then downsample, kept too; middle; up: one block more,
 * each with a kept output beside its input; norm and conv-out. */
static void walk_levels(const ddpm_model_config *m, widths *norms, widths *heads)
{
    int64_t kept[MAX_BLOCKS], now = ddpm_model_level_channels(m, 0);
    int n = 0;
    kept[n++] = now;
    for (int l = 0; l < m->channel_mult.n; l++) {
        const int64_t out = ddpm_model_level_channels(m, l);
        for (int64_t b = 0; b < m->num_res_blocks; b++, now = out) {
            meet(norms, now, "down", l, b);
            meet(norms, out, "down", l, b);
            if (has_attention(m, l)) meet(heads, out, "down", l, b);
            kept[n++] = out;
        }
        if (l + 1 < m->channel_mult.n) kept[n++] = now;
    }
    meet(heads, now, "middle", m->channel_mult.n - 1, 0);
    for (int l = m->channel_mult.n - 1; l >= 0; l--) {
        const int64_t out = ddpm_model_level_channels(m, l);
        for (int64_t b = 0; b <= m->num_res_blocks; b++, now = out) {
            meet(norms, now + kept[--n], "up", l, b);
            meet(norms, out, "up", l, b);
            if (has_attention(m, l)) meet(heads, out, "up", l, b);
        }
    }
    meet(norms, now, "output", 0, 0);
}

static int64_t largest_divisor(int64_t of, int64_t at_most)
{
    for (int64_t d = at_most < of ? at_most : of; d > 1; d--)
        if (of % d == 0) return d;
    return 1;
}

static ddpm_status check_side(const char *key, int64_t side, int levels)
{
    const int64_t unit = (int64_t)1 << (levels - 1), below = side / unit * unit;
    if (side % unit == 0) return DDPM_OK;
    if (below == 0)
        return FAIL(CONFIG,
                    "model.%s: %lld cannot be halved %d times by the %d levels of channel_mult; "
                    "%lld can, or "
                    "take fewer levels",
                    key, (long long)side, levels - 1, levels, (long long)unit);
    return FAIL(CONFIG,
                "model.%s: %lld cannot be halved %d times by the %d levels of channel_mult; %lld "
                "and %lld can",
                key, (long long)side, levels - 1, levels, (long long)below,
                (long long)(below + unit));
}

static ddpm_status check_attention(const ddpm_model_config *m)
{
    char heights[160] = "";
    size_t used = 0;
    for (int l = 0; l < m->channel_mult.n; l++)
        used += (size_t)snprintf(heights + used, sizeof heights - used, "%s%lld", l ? ", " : "",
                                 (long long)(m->image_height >> l));
    for (int i = 0; i < m->attention_resolutions.n; i++) {
        const int64_t wanted = m->attention_resolutions.v[i];
        bool is_level = wanted == 0;
        for (int l = 0; l < m->channel_mult.n; l++)
            is_level |= wanted == m->image_height >> l;
        REQUIRE(
            is_level, CONFIG,
            "model.attention_resolutions: no level has %lld rows; the levels have %s; 0 asks for "
            "attention in the middle only",
            (long long)wanted, heights);
    }
    return DDPM_OK;
}

static ddpm_status check_widths(const ddpm_model_config *m)
{
    for (int l = 0; l < m->channel_mult.n; l++) {
        const double width = (double)m->channels * m->channel_mult.v[l];
        REQUIRE(fabs(width - (double)ddpm_model_level_channels(m, l)) < 1e-6, CONFIG,
                "model.channel_mult: %g times %lld channels is %g, no whole number",
                m->channel_mult.v[l], (long long)m->channels, width);
    }
    widths norms = {.divisor = m->norm_groups};
    widths heads = {.divisor = m->head_channels ? m->head_channels : m->num_heads};
    walk_levels(m, &norms, &heads);
    REQUIRE(!norms.misfit, CONFIG,
            "model.norm_groups: %lld does not divide the width %lld (%s); %lld divides all",
            (long long)norms.divisor, (long long)norms.misfit, norms.place,
            (long long)largest_divisor(norms.common, norms.divisor));
    REQUIRE(!heads.misfit, CONFIG,
            "model.%s: %lld does not divide the width %lld of an attention block (%s); %lld "
            "divides all",
            m->head_channels ? "head_channels" : "num_heads", (long long)heads.divisor,
            (long long)heads.misfit, heads.place,
            (long long)largest_divisor(heads.common, heads.divisor));
    return DDPM_OK;
}

/* The frequencies' exponents divide by half - shift. */
static ddpm_status check_embedding(const ddpm_model_config *m)
{
    const int64_t half = m->channels / 2;
    REQUIRE((double)half > m->embedding_shift, CONFIG,
            "model.channels: %lld are too few for a time embedding with "
            "embedding_shift %g; at least 4",
            (long long)m->channels, m->embedding_shift);
    return DDPM_OK;
}

/* One activation of a level must be a size that a machine can address; all later sums stay far from
 * overflow. */
static ddpm_status check_size(const ddpm_config *c)
{
    const ddpm_model_config *m = &c->model;
    const int64_t batch = c->train.micro_batch ? c->train.micro_batch : c->train.batch;
    const int64_t images = batch > c->sample.batch ? batch : c->sample.batch;
    for (int l = 0; l < m->channel_mult.n; l++) {
        const int64_t extent[] = {images, m->image_height >> l, m->image_width >> l,
                                  ddpm_model_level_channels(m, l)};
        size_t bytes = 0;
        const bool fits = checked_product(extent, 4, 2 * sizeof(float), &bytes) && bytes >> 44 == 0;
        REQUIRE(
            fits, CONFIG,
            "model: an activation of level %d would have %lld x %lld x %lld x %lld values; take a "
            "smaller batch, image or width",
            l, (long long)extent[0], (long long)extent[1], (long long)extent[2],
            (long long)extent[3]);
    }
    return DDPM_OK;
}

/* Ranges again: a struct that a program filled in has met no parser. */
static ddpm_status check_ranges(const ddpm_config *c)
{
    for (int i = 0; i < CONFIG_COUNT; i++) {
        const config_item *item = &config_items[i];
        const void *member = config_member(c, item);
        const int64_t *ints = member;
        const double *reals = member;
        int n = 1;
        if (item->kind == CONFIG_INTS || item->kind == CONFIG_REALS) {
            n = *(const int *)member;
            ints = ((const ddpm_int_list *)member)->v;
            reals = ((const ddpm_real_list *)member)->v;
            REQUIRE(n >= 1 && n <= DDPM_LIST_MAX, CONFIG,
                    "%s.%s: %d values; allowed: 1 to %d of them", item->section, item->key, n,
                    DDPM_LIST_MAX);
        }
        for (int k = 0; k < n; k++) {
            bool fits = true;
            if (item->kind == CONFIG_INT || item->kind == CONFIG_INTS)
                fits = ints[k] >= item->int_lo && ints[k] <= item->int_hi;
            if (item->kind == CONFIG_REAL || item->kind == CONFIG_REALS)
                fits = reals[k] >= item->real_lo && reals[k] <= item->real_hi;
            REQUIRE(fits, CONFIG, "%s.%s is out of range; allowed: %s", item->section, item->key,
                    config_allowed(item));
        }
    }
    return DDPM_OK;
}

ddpm_status ddpm_config_check(const ddpm_config *c)
{
    const ddpm_model_config *m = &c->model;
    TRY(check_ranges(c));
    TRY(check_side("image_height", m->image_height, m->channel_mult.n));
    TRY(check_side("image_width", m->image_width, m->channel_mult.n));
    TRY(check_attention(m));
    TRY(check_widths(m));
    TRY(check_embedding(m));
    REQUIRE(c->train.micro_batch == 0 || c->train.batch % c->train.micro_batch == 0, CONFIG,
            "train.micro_batch: %lld does not divide train.batch %lld; %lld does",
            (long long)c->train.micro_batch, (long long)c->train.batch,
            (long long)largest_divisor(c->train.batch, c->train.micro_batch));
    REQUIRE(c->diffusion.schedule != DDPM_SCHEDULE_LINEAR ||
                c->diffusion.beta_start < c->diffusion.beta_end,
            CONFIG, "diffusion.beta_start: %g is not below beta_end %g", c->diffusion.beta_start,
            c->diffusion.beta_end);
    REQUIRE(c->train.ema.n <= MAX_EMA, CONFIG, "train.ema: %d rates; at most %d", c->train.ema.n,
            MAX_EMA);
    return check_size(c);
}

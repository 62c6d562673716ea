/* checkpoint.c - writing and reading the one file of a run's state.
 *
 * Job      arrays in the model's flat layout to named tensors in the layout of files, and back, with all that a run needs to
 *          know about itself in the metadata.
 * Method   one tensor at a time through one buffer of the largest tensor's size. The container sorts by name; "adam_m." <
 *          "adam_v." < "ema.K." < "weights." and no prefix begins another, so the order is: families, then parameters sorted.
 * Safe     commit.h makes the file appear whole or not at all; opening it compares every hash, header included, so a flipped
 *          bit anywhere is found before a number is used. That costs one more pass, from memory as a rule.
 * Rejected a file per array, or an index beside them: then two files can be of two steps. */
#include "checkpoint.h"

#include "checked.h"
#include "fail.h"
#include "text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EMA_MAX = 4, PREFIX_BYTES = 16, NAME_BYTES = 640, FAMILIES_MAX = 3 + EMA_MAX };

/* ---- names ---- */

static int compare_parameters(const void *a, const void *b, void *model)
{
    return strcmp(ddpm_model_parameter(model, *(const int *)a)->name,
                  ddpm_model_parameter(model, *(const int *)b)->name);
}

/* Numbers of the parameters, sorted by name; the caller frees. */
static ddpm_status sorted_parameters(const ddpm_model *model, int **out)
{
    const int n = ddpm_model_parameter_count(model);
    int *order = calloc((size_t)n + 1, sizeof *order);
    REQUIRE(order, NOMEM, "checkpoint: order of %d parameters", n);
    for (int i = 0; i < n; i++)
        order[i] = i;
    qsort_r(order, (size_t)n, sizeof *order, compare_parameters, (void *)model);
    *out = order;
    return DDPM_OK;
}

static int64_t largest_parameter(const ddpm_model *model)
{
    int64_t most = 1;
    for (int i = 0; i < ddpm_model_parameter_count(model); i++) {
        const int64_t n = ddpm_model_parameter(model, i)->count;
        if (n > most) most = n;
    }
    return most;
}

static ddpm_status tensor_buffer(const ddpm_model *model, float **out)
{
    size_t bytes;
    const int64_t n = largest_parameter(model);
    REQUIRE(checked_product(&n, 1, sizeof **out, &bytes), NOMEM, "checkpoint: a tensor of %" PRId64 " elements", n);
    *out = malloc(bytes);
    REQUIRE(*out, NOMEM, "checkpoint: %zu bytes for its largest tensor", bytes);
    return DDPM_OK;
}

/* ---- writing ---- */

typedef struct {
    char prefix[PREFIX_BYTES];
    const float *arena; /* borrowed */
} family;

/* The families in the order of the file; returns their number. `arrays` is weights, adam_m, adam_v, ema.0, ... */
static int families_in_order(int n_ema, const float *const *arrays, family out[FAMILIES_MAX])
{
    int n = 0;
    out[n++] = (family){"adam_m", arrays[1]};
    out[n++] = (family){"adam_v", arrays[2]};
    for (int k = 0; k < n_ema; k++) {
        out[n].arena = arrays[3 + k];
        snprintf(out[n++].prefix, PREFIX_BYTES, "ema.%d", k);
    }
    out[n++] = (family){"weights", arrays[0]};
    return n;
}

static ddpm_status add_integer(st_writer *w, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    return st_add_metadata(w, key, text);
}

static ddpm_status declare_metadata(st_writer *w, const ddpm_config *cfg, const checkpoint_counters *c)
{
    char seed[32], rates[EMA_MAX * (NUMBER_SIZE + 1) + 1] = "", number[NUMBER_SIZE];
    snprintf(seed, sizeof seed, "%" PRIu64, c->seed);
    for (int k = 0; k < c->n_ema; k++) {
        if (k) strcat(rates, ",");
        strcat(rates, number_print(c->ema[k], number));
    }
    TRY(st_add_metadata(w, "ddpm.kind", "checkpoint"));
    TRY(st_add_metadata(w, "ddpm.version", "1"));
    TRY(add_integer(w, "ddpm.step", c->step));
    TRY(add_integer(w, "ddpm.updates", c->updates));
    TRY(add_integer(w, "ddpm.skipped_in_row", c->skipped_in_row));
    TRY(st_add_metadata(w, "ddpm.seed", seed));
    TRY(st_add_metadata(w, "ddpm.dataset", c->dataset));
    TRY(st_add_metadata(w, "ddpm.ema", rates));
    char *yaml;
    TRY(ddpm_config_print(cfg, &yaml));
    const ddpm_status s = st_add_metadata(w, "ddpm.config", yaml);
    free(yaml);
    return s;
}

static ddpm_status declare_tensors(st_writer *w, const ddpm_model *model, const family *f, int n_families)
{
    for (int k = 0; k < n_families; k++)
        for (int i = 0; i < ddpm_model_parameter_count(model); i++) {
            const ddpm_parameter *p = ddpm_model_parameter(model, i);
            char name[NAME_BYTES];
            REQUIRE(snprintf(name, sizeof name, "%s.%s", f[k].prefix, p->name) < (int)sizeof name, BUG,
                    "checkpoint: the name of parameter %d is too long", i);
            TRY(st_add(w, name, ST_F32, p->rank, p->shape));
        }
    return DDPM_OK;
}

static ddpm_status put_tensors(st_writer *w, const ddpm_model *model, const family *f, int n_families,
                               const int *order, float *buffer)
{
    const int n = ddpm_model_parameter_count(model);
    REQUIRE(st_writer_count(w) == n * n_families, BUG, "checkpoint: %d tensors declared, %d to write", st_writer_count(w),
            n * n_families);
    for (int k = 0; k < n_families; k++)
        for (int i = 0; i < n; i++) {
            const ddpm_parameter *p = ddpm_model_parameter(model, order[i]);
            const char *name = st_writer_at(w, k * n + i)->name;
            const size_t at = strlen(f[k].prefix) + 1;
            REQUIRE(strncmp(name, f[k].prefix, at - 1) == 0 && strcmp(name + at, p->name) == 0, BUG,
                    "checkpoint: '%s' where %s.%s was expected", name, f[k].prefix, p->name);
            ddpm_model_to_file_layout(model, order[i], f[k].arena, buffer);
            TRY(st_put(w, buffer, (uint64_t)p->count * sizeof *buffer));
        }
    return DDPM_OK;
}

ddpm_status checkpoint_write(const char *path, const ddpm_config *cfg, const checkpoint_counters *counters,
                             const ddpm_model *model, const float *const *arrays)
{
    ddpm_status s;
    st_writer *w = NULL;
    int *order = NULL;
    float *buffer = NULL;
    family f[FAMILIES_MAX];
    REQUIRE(counters->n_ema >= 0 && counters->n_ema <= EMA_MAX, BUG, "checkpoint: %d EMAs, at most %d", counters->n_ema,
            EMA_MAX);
    const int n_families = families_in_order(counters->n_ema, arrays, f);

    TRY_GOTO(fail, sorted_parameters(model, &order));
    TRY_GOTO(fail, tensor_buffer(model, &buffer));
    TRY_GOTO(fail, st_writer_create(&w));
    TRY_GOTO(fail, declare_metadata(w, cfg, counters));
    TRY_GOTO(fail, declare_tensors(w, model, f, n_families));
    TRY_GOTO(fail, st_begin(w, path));
    TRY_GOTO(fail, put_tensors(w, model, f, n_families, order, buffer));
    s = st_finish(w);
    w = NULL; /* freed in every case */
fail:
    st_writer_abandon(w);
    free(order);
    free(buffer);
    return s;
}

/* ---- opening ---- */

static ddpm_status metadata_text(const st_file *f, const char *key, const char **out)
{
    *out = st_metadata(f, key);
    REQUIRE(*out, FORMAT, "%s: not a whole checkpoint: its metadata has no '%s'", st_path(f), key);
    return DDPM_OK;
}

static ddpm_status metadata_u64(const st_file *f, const char *key, uint64_t most, uint64_t *out)
{
    const char *text;
    TRY(metadata_text(f, key, &text));
    uint64_t v = 0;
    const char *p = text;
    bool fits = *p != '\0';
    for (; *p >= '0' && *p <= '9' && fits; p++)
        fits = !__builtin_mul_overflow(v, (uint64_t)10, &v) && !__builtin_add_overflow(v, (uint64_t)(*p - '0'), &v);
    REQUIRE(fits && !*p && v <= most, FORMAT, "%s: metadata '%s' is \"%.40s\", not a whole number up to %" PRIu64,
            st_path(f), key, text, most);
    *out = v;
    return DDPM_OK;
}

static ddpm_status metadata_count(const st_file *f, const char *key, int64_t *out)
{
    uint64_t v;
    TRY(metadata_u64(f, key, INT64_MAX, &v));
    *out = (int64_t)v;
    return DDPM_OK;
}

static ddpm_status metadata_rates(const st_file *f, checkpoint_counters *c)
{
    const char *text;
    TRY(metadata_text(f, "ddpm.ema", &text));
    for (const char *p = text; *p;) {
        char number[NUMBER_SIZE];
        const size_t n = strcspn(p, ",");
        bool is_rate = c->n_ema < EMA_MAX && n < sizeof number;
        if (is_rate) {
            memcpy(number, p, n);
            number[n] = '\0';
            is_rate = number_read(number, &c->ema[c->n_ema]) && c->ema[c->n_ema] >= 0 && c->ema[c->n_ema] < 1;
        }
        REQUIRE(is_rate, FORMAT, "%s: metadata 'ddpm.ema' is \"%.80s\", not up to %d rates below 1", st_path(f), text,
                EMA_MAX);
        c->n_ema++;
        p += n;
        if (*p == ',') p++;
    }
    return DDPM_OK;
}

static ddpm_status read_counters(const st_file *f, checkpoint_counters *c)
{
    *c = (checkpoint_counters){0};
    const char *dataset;
    TRY(metadata_count(f, "ddpm.step", &c->step));
    TRY(metadata_count(f, "ddpm.updates", &c->updates));
    TRY(metadata_count(f, "ddpm.skipped_in_row", &c->skipped_in_row));
    TRY(metadata_u64(f, "ddpm.seed", UINT64_MAX, &c->seed));
    TRY(metadata_text(f, "ddpm.dataset", &dataset));
    REQUIRE(strlen(dataset) < sizeof c->dataset, FORMAT, "%s: metadata 'ddpm.dataset' is longer than a hash", st_path(f));
    strcpy(c->dataset, dataset);
    return metadata_rates(f, c);
}

static ddpm_status check_kind(const st_file *f)
{
    const char *kind = st_metadata(f, "ddpm.kind"), *version = st_metadata(f, "ddpm.version");
    REQUIRE(kind, FORMAT, "%s: a safetensors file of %d tensors that is no checkpoint of ddpm (no metadata 'ddpm.kind')",
            st_path(f), st_count(f));
    REQUIRE(strcmp(kind, "checkpoint") == 0, FORMAT, "%s: a %.40s, not a checkpoint", st_path(f), kind);
    REQUIRE(version && strcmp(version, "1") == 0, FORMAT, "%s: checkpoint of version %.20s; this program reads version 1",
            st_path(f), version ? version : "unknown");
    REQUIRE(st_has_hashes(f), FORMAT, "%s: checkpoint without its hashes: another program rewrote it", st_path(f));
    return DDPM_OK;
}

static ddpm_status read_config(const st_file *f, ddpm_config *cfg)
{
    const char *yaml;
    TRY(metadata_text(f, "ddpm.config", &yaml));
    const ddpm_status s = ddpm_config_parse(yaml, strlen(yaml), "its configuration", NULL, 0, cfg);
    if (!s) return DDPM_OK;
    /* To who only named a file, its configuration is part of that file. */
    return status_context(s == DDPM_CONFIG ? DDPM_FORMAT : s, "%s", st_path(f));
}

ddpm_status checkpoint_open(const char *path, st_file **file, ddpm_config *cfg, checkpoint_counters *counters)
{
    ddpm_status s;
    st_file *f = NULL;
    checkpoint_counters c;
    TRY(st_open(path, &f));
    TRY_GOTO(fail, check_kind(f));
    TRY_GOTO(fail, st_verify(f));
    TRY_GOTO(fail, read_counters(f, &c));
    TRY_GOTO(fail, read_config(f, cfg));
    *file = f;
    *counters = c;
    return DDPM_OK;
fail:
    st_close(f);
    return s;
}

/* ---- reading ---- */

static void print_shape(text_buffer *t, int rank, const int64_t *shape)
{
    for (int i = 0; i < rank; i++)
        text_add(t, "%s%" PRId64, i ? "x" : "", shape[i]);
    if (rank == 0) text_add(t, "scalar");
}

static bool same_shape(const st_tensor *t, const ddpm_parameter *p)
{
    return t->rank == p->rank && memcmp(t->shape, p->shape, (size_t)p->rank * sizeof *p->shape) == 0;
}

/* Is NAME of "prefix.NAME" a parameter of the model? order: sorted_parameters. */
static bool is_parameter(const ddpm_model *model, const int *order, const char *name)
{
    int lo = 0, hi = ddpm_model_parameter_count(model) - 1;
    while (lo <= hi) {
        const int mid = (lo + hi) / 2, c = strcmp(name, ddpm_model_parameter(model, order[mid])->name);
        if (c == 0) return true;
        if (c < 0) hi = mid - 1;
        else lo = mid + 1;
    }
    return false;
}

/* Every tensor that does not fit, in one list; returns how many. */
static int list_mismatches(st_file *f, const char *prefix, const ddpm_model *model, const int *order, text_buffer *t)
{
    int wrong = 0;
    char name[NAME_BYTES];
    for (int i = 0; i < ddpm_model_parameter_count(model); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(model, i);
        snprintf(name, sizeof name, "%s.%s", prefix, p->name);
        const st_tensor *found = st_find(f, name);
        if (found && found->dtype == ST_F32 && same_shape(found, p)) continue;
        text_add(t, "%s%s ", wrong++ ? ", " : "", name);
        if (!found) {
            text_add(t, "missing");
            continue;
        }
        text_add(t, "is %s ", st_dtype_name(found->dtype));
        print_shape(t, found->rank, found->shape);
        text_add(t, " not F32 ");
        print_shape(t, p->rank, p->shape);
    }
    const size_t length = strlen(prefix);
    for (int i = 0; i < st_count(f); i++) {
        const char *has = st_at(f, i)->name;
        if (strncmp(has, prefix, length) != 0 || has[length] != '.') continue;
        if (!is_parameter(model, order, has + length + 1)) text_add(t, "%s%s unknown", wrong++ ? ", " : "", has);
    }
    return wrong;
}

static ddpm_status check_tensors(st_file *f, const char *prefix, const ddpm_model *model, const int *order)
{
    text_buffer t = {0};
    const int wrong = list_mismatches(f, prefix, model, order, &t);
    ddpm_status s = DDPM_OK;
    if (t.failed)
        s = FAIL(NOMEM, "%s: no memory for the list of %d tensors that do not fit", st_path(f), wrong);
    else if (wrong)
        s = FAIL(FORMAT, "%s: %d tensors of '%s' do not fit the model: %s", st_path(f), wrong, prefix, t.data);
    text_release(&t);
    return s;
}

static ddpm_status read_tensor(st_file *f, const char *prefix, const ddpm_model *model, int i, float *buffer,
                               float *arena)
{
    const ddpm_parameter *p = ddpm_model_parameter(model, i);
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", prefix, p->name);
    TRY(st_read_f32(f, st_find(f, name), buffer));
    for (int64_t k = 0; k < p->count; k++)
        REQUIRE(isfinite(buffer[k]), FORMAT, "%s: element %" PRId64 " of %s is not finite", st_path(f), k, name);
    ddpm_model_from_file_layout(model, i, buffer, arena);
    return DDPM_OK;
}

ddpm_status checkpoint_read(st_file *file, const char *prefix, const ddpm_model *model, float *arena)
{
    ddpm_status s;
    int *order = NULL;
    float *buffer = NULL;
    TRY_GOTO(fail, sorted_parameters(model, &order));
    TRY_GOTO(fail, check_tensors(file, prefix, model, order));
    TRY_GOTO(fail, tensor_buffer(model, &buffer));
    for (int i = 0; i < ddpm_model_parameter_count(model); i++)
        TRY_GOTO(fail, read_tensor(file, prefix, model, i, buffer, arena));
fail:
    free(order);
    free(buffer);
    return s;
}

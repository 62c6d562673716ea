/* info_tensors.c - `ddpm info` on files of arrays: safetensors (checkpoints, packs, other programs'
 * weights) and npz (samples). Their hashes and checksums are proved by the readers themselves; this
 * file only asks and tells. */
#include "info.h"

#include "checkpoint.h"
#include "ddpm/config.h"
#include "fail.h"
#include "npz.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

void info_verified(const info_job *job, const char *how)
{
    if (job->verifies) report_text(job->r, "verified", "%s", how);
}

static void shape_text(const int64_t *shape, int rank, char *dst, size_t size)
{
    size_t used = 0;
    dst[0] = '\0';
    for (int i = 0; i < rank && used + 24 < size; i++)
        used += (size_t)snprintf(dst + used, size - used, "%s%" PRId64, i ? "x" : "", shape[i]);
}

static void list_tensors(report *r, const st_file *f)
{
    for (int i = 0; i < st_count(f); i++) {
        const st_tensor *t = st_at(f, i);
        char shape[200];
        shape_text(t->shape, t->rank, shape, sizeof shape);
        report_row(r, "tensors");
        report_text(r, "name", "%s", t->name);
        report_text(r, "dtype", "%s", st_dtype_name(t->dtype));
        report_text(r, "shape", "%s", shape);
        report_int(r, "data_bytes", (int64_t)t->bytes);
        report_close(r);
    }
}

/* Elements of the tensors whose name begins with `prefix`. */
static int64_t count_elements(const st_file *f, const char *prefix)
{
    int64_t total = 0;
    for (int i = 0; i < st_count(f); i++) {
        const st_tensor *t = st_at(f, i);
        if (strncmp(t->name, prefix, strlen(prefix)) == 0)
            total += (int64_t)(t->bytes / st_dtype_size(t->dtype));
    }
    return total;
}

static void tell_config(report *r, const ddpm_config *c)
{
    static const char *const objectives[] = {"eps", "x0", "v"};
    const ddpm_model_config *m = &c->model;
    report_text(r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, m->image_height, m->image_width,
                m->image_channels);
    report_int(r, "num_classes", m->num_classes);
    report_text(r, "schedule", "%s",
                c->diffusion.schedule == DDPM_SCHEDULE_COSINE ? "cosine" : "linear");
    report_int(r, "steps_of_diffusion", c->diffusion.steps);
    report_text(r, "objective", "%s", objectives[c->diffusion.objective]);
}

static ddpm_status tell_checkpoint(const info_job *job)
{
    st_file *file = NULL;
    ddpm_config cfg = {0};
    checkpoint_counters counters = {0};
    TRY(checkpoint_open(job->path, &file, &cfg, &counters));
    report *r = job->r;
    report_text(r, "kind", "checkpoint");
    report_int(r, "step", counters.step);
    report_int(r, "steps_of_training", cfg.train.steps);
    report_int(r, "updates", counters.updates);
    report_int(r, "parameters", count_elements(file, "weights."));
    for (int k = 0; k < counters.n_ema; k++) {
        char name[16];
        snprintf(name, sizeof name, "ema_%d", k);
        report_real(r, name, counters.ema[k]);
    }
    tell_config(r, &cfg);
    report_text(r, "seed", "%" PRIu64, counters.seed);
    report_text(r, "dataset", "%s", counters.dataset);
    ddpm_config_free(&cfg);
    st_close(file);
    return DDPM_OK;
}

static void tell_classes(report *r, const st_file *f)
{
    const char *text = st_metadata(f, "ddpm.classes");
    json_t *list = text ? json_loads(text, 0, NULL) : NULL;
    const size_t n = json_array_size(list);
    char names[400] = "";
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name || used + strlen(name) + 8 > sizeof names) {
            snprintf(names + used, sizeof names - used, ", ...");
            break;
        }
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", name);
    }
    report_int(r, "classes", (int64_t)n);
    if (n) report_text(r, "class_names", "%s", names);
    json_decref(list);
}

static void tell_pack(const info_job *job, const st_file *f)
{
    report *r = job->r;
    const st_tensor *t = st_find(f, "images");
    const char *shard = st_metadata(f, "ddpm.shard"), *total = st_metadata(f, "ddpm.total");
    const char *source = st_metadata(f, "ddpm.source");
    report_text(r, "kind", "%s", shard && strcmp(shard, "0/1") != 0 ? "shard of a pack" : "pack");
    if (shard) report_text(r, "shard", "%s", shard);
    if (t && t->rank == 4) {
        report_int(r, "images", t->shape[0]);
        report_text(r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, t->shape[1], t->shape[2],
                    t->shape[3]);
    }
    if (total) report_int(r, "images_of_the_pack", atoll(total));
    report_bool(r, "labels", st_find(f, "labels") != NULL);
    tell_classes(r, f);
    if (source) report_text(r, "dataset", "%s", source);
}

static void tell_foreign(const info_job *job, const st_file *f)
{
    report *r = job->r;
    const char *kind = st_metadata(f, "ddpm.kind");
    if (kind)
        report_text(r, "kind", "safetensors of ddpm, \"%s\"", kind);
    else
        report_text(r, "kind", "safetensors of another program");
    report_int(r, "tensor_count", st_count(f));
    report_int(r, "parameters", count_elements(f, ""));
    int64_t by_type[ST_U64 + 1] = {0};
    for (int i = 0; i < st_count(f); i++)
        by_type[st_at(f, i)->dtype]++;
    for (int d = 0; d <= ST_U64; d++) {
        char name[32];
        snprintf(name, sizeof name, "tensors_%s", st_dtype_name((st_dtype)d));
        if (by_type[d]) report_int(r, name, by_type[d]);
    }
    for (int i = 0; i < st_metadata_count(f) && i < 20; i++) {
        const char *key, *value;
        st_metadata_at(f, i, &key, &value);
        if (strncmp(key, "ddpm.xxh3.", 10) == 0) continue;
        report_row(r, "metadata");
        report_text(r, "key", "%s", key);
        report_text(r, "value", "%.100s%s", value, strlen(value) > 100 ? "..." : "");
        report_close(r);
    }
}

ddpm_status info_safetensors(const info_job *job)
{
    st_file *f = NULL;
    TRY(st_open(job->path, &f));
    ddpm_status s = DDPM_OK;
    const char *kind = st_metadata(f, "ddpm.kind");
    if (kind && strcmp(kind, "checkpoint") == 0)
        s = tell_checkpoint(job);
    else if (kind && strcmp(kind, "pack") == 0)
        tell_pack(job, f);
    else
        tell_foreign(job, f);
    report_bool(job->r, "has_hashes", st_has_hashes(f));
    if (!s && job->verifies && st_has_hashes(f)) s = st_verify(f);
    if (!s)
        info_verified(job, st_has_hashes(f) ? "every hash"
                                            : "structure alone: the file carries no hashes");
    if (!s && job->lists_tensors) list_tensors(job->r, f);
    st_close(f);
    return s;
}

/* ---- npz ---- */

/* Reading to the end makes the reader compare the entry's CRC-32. */
static ddpm_status read_all(npz_file *f, const char *name, uint64_t bytes)
{
    enum { PIECE = 1 << 20 };
    char *piece = malloc(PIECE);
    REQUIRE(piece, NOMEM, "%s: %d bytes to read with", name, PIECE);
    ddpm_status s = DDPM_OK;
    for (uint64_t at = 0; at < bytes && !s; at += PIECE)
        s = npz_read(f, name, at, piece, bytes - at < PIECE ? bytes - at : PIECE);
    free(piece);
    return s;
}

static ddpm_status tell_array(const info_job *job, npz_file *f, const char *name, bool *is_there)
{
    npz_array a;
    const ddpm_status found = npz_find(f, name, &a);
    *is_there = found == DDPM_OK;
    if (found == DDPM_NOINPUT) return DDPM_OK;
    TRY(found);
    char shape[200];
    shape_text(a.shape, a.rank, shape, sizeof shape);
    report_row(job->r, "arrays");
    report_text(job->r, "name", "%s", name);
    report_text(job->r, "dtype", "%s", a.dtype);
    report_text(job->r, "shape", "%s", shape);
    report_int(job->r, "data_bytes", (int64_t)a.bytes);
    report_close(job->r);
    return job->verifies ? read_all(f, name, a.bytes) : DDPM_OK;
}

ddpm_status info_npz(const info_job *job)
{
    static const char *const names[] = {"arr_0", "arr_1", "seeds"};
    npz_file *f = NULL;
    TRY(npz_open(job->path, &f));
    npz_array images;
    ddpm_status s = DDPM_OK;
    const bool has_images = npz_find(f, "arr_0", &images) == DDPM_OK && images.rank == 4 &&
                            strcmp(images.dtype, "u1") == 0;
    report_text(job->r, "kind", "%s",
                has_images ? "samples or images (npz)" : "arrays of NumPy (npz)");
    if (has_images) {
        report_int(job->r, "images", images.shape[0]);
        report_text(job->r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, images.shape[1],
                    images.shape[2], images.shape[3]);
    }
    bool any = false;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !s; i++) {
        bool is_there = false;
        s = tell_array(job, f, names[i], &is_there);
        any |= is_there;
    }
    npz_close(f);
    if (!s)
        info_verified(job, any ? "every CRC-32" : "structure alone: no array of a name known here");
    return s;
}

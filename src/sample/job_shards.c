/* job_shards.c - drawing a shard into its file, and proving one that is there.
 *
 * Images go to the file batch by batch as they are drawn; labels and seeds are functions of the sample number and follow in
 * pieces. The file has its name only when it is whole, so one that is there was finished; it is read through all the
 * same, for minutes of reading are cheaper than hours of a run whose result has a damaged image in it. */
#include "job.h"

#include "fail.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Labels (which 1) or seeds (which 2) of samples first .. first+n-1. */
static ddpm_status put_numbers(sample_run *r, npz_writer *w, int which, int64_t first, int64_t n)
{
    TRY(shard_begin_array(w, which, &r->shape, n));
    for (int64_t at = 0; at < n; at += r->batch) {
        const int64_t count = n - at < r->batch ? n - at : r->batch;
        for (int64_t i = 0; i < count; i++) {
            const int64_t index = first + at + i;
            if (which == 1) {
                r->wide[i] = job_label(r, (uint64_t)index);
            } else {
                r->wide[2 * i] = (int64_t)r->args->seed;
                r->wide[2 * i + 1] = index;
            }
        }
        TRY(npz_put(w, r->wide, (uint64_t)(count * which) * sizeof *r->wide));
    }
    return DDPM_OK;
}

static ddpm_status put_all(sample_run *r, npz_writer *w, int64_t first, int64_t n)
{
    uint64_t row;
    shard_array(0, &r->shape, &row);
    TRY(shard_begin_array(w, 0, &r->shape, n));
    for (int64_t at = 0; at < n; at += r->batch) {
        const int count = (int)(n - at < r->batch ? n - at : r->batch);
        TRY(job_draw(r, first + at, count));
        TRY(npz_put(w, r->images, (uint64_t)count * row));
        r->done += count;
        r->report.sampled += count;
        progress_update(&r->shown, r->done, NULL);
    }
    if (r->shape.has_labels) TRY(put_numbers(r, w, 1, first, n));
    return put_numbers(r, w, 2, first, n);
}

static ddpm_status draw(sample_run *r, const char *path, int64_t first, int64_t n)
{
    npz_writer *w;
    TRY(npz_create(path, &w));
    const ddpm_status s = put_all(r, w, first, n);
    if (s) {
        npz_abandon(w);
        return s;
    }
    return npz_finish(w);
}

/* Is it whole, and of this job? FORMAT says what is wrong. */
static ddpm_status prove(const sample_run *r, const char *path, int64_t first, int64_t n)
{
    npz_file *f;
    shard_shape shape;
    int64_t has, seed = (int64_t)r->args->seed;
    bool has_seed = true;
    TRY(shard_open(path, &f, &shape, &has));
    ddpm_status s = DDPM_OK;
    if (has != n || shape.h != r->shape.h || shape.w != r->shape.w || shape.c != r->shape.c ||
        shape.has_labels != r->shape.has_labels)
        s = FAIL(FORMAT, "%s: holds %" PRId64 " images %" PRId64 "x%" PRId64 "x%" PRId64 ", not %" PRId64, path, has,
                 shape.h, shape.w, shape.c, n);
    else
        s = shard_check(f, path, &shape, n, first, &has_seed, &seed);
    npz_close(f);
    return s;
}

ddpm_status job_shard(sample_run *r, int k, bool *was_drawn)
{
    const int64_t first = shard_first(r->args->n, k, r->shards);
    const int64_t n = shard_first(r->args->n, k + 1, r->shards) - first;
    char name[SHARD_NAME_BYTES], *path;
    shard_name(k, r->shards, name);
    TRY(job_path(r, name, &path));
    *was_drawn = false;

    ddpm_status s = prove(r, path, first, n);
    if (!s) {
        r->done += n;
        r->report.skipped += n;
        progress_update(&r->shown, r->done, NULL);
    } else if (s == DDPM_NOINPUT || s == DDPM_FORMAT) {
        if (s == DDPM_FORMAT) log_line(r->args->sink, "drawn again: %s", ddpm_last_error());
        *was_drawn = true;
        s = draw(r, path, first, n);
    }
    free(path);
    return s;
}

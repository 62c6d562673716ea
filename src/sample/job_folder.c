/* job_folder.c - whose folder it is: job.yaml holds all that determines the bytes of the samples, and nothing else.
 *
 * A second run of the same job finds the same text and goes on; another job finds the first line that differs and leaves the
 * folder alone. Batch size, threads and device are not in it: they do not change what a sample is. Many processes may
 * start at once on one folder: each writes the same text, by rename. */
#include "job.h"

#include "commit.h"
#include "fail.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JOB_FILE_BYTES = 16384 };

ddpm_status job_path(const sample_run *r, const char *name, char **out)
{
    const size_t size = strlen(r->args->output) + strlen(name) + 2;
    *out = malloc(size);
    REQUIRE(*out, NOMEM, "%s/%s: no memory for the path", r->args->output, name);
    snprintf(*out, size, "%s/%s", r->args->output, name);
    return DDPM_OK;
}

static void describe(const sample_run *r, text_buffer *t)
{
    const ddpm_sample_config *c = &r->cfg.sample;
    char number[NUMBER_SIZE];
    text_add(t, "# What determines the samples of this folder.\n");
    text_add(t, "version: 1\n");
    text_add(t, "checkpoint: %s\n", r->checkpoint_hash);
    text_add(t, "step: %" PRId64 "\n", r->checkpoint_step);
    if (r->args->ema < 0) text_add(t, "weights: raw\n");
    else text_add(t, "weights: ema.%d\n", r->args->ema);
    text_add(t, "images: %" PRId64 "\n", r->args->n);
    text_add(t, "image_height: %" PRId64 "\nimage_width: %" PRId64 "\nimage_channels: %" PRId64 "\n", r->shape.h,
             r->shape.w, r->shape.c);
    text_add(t, "shards: %d\n", r->shards);
    text_add(t, "seed: %" PRIu64 "\n", r->args->seed);
    if (!r->shape.has_labels) text_add(t, "label: none\n");
    else if (r->args->label < 0) text_add(t, "label: drawn\n");
    else text_add(t, "label: %" PRId64 "\n", r->args->label);
    text_add(t, "sampler: %s\n", c->sampler == DDPM_SAMPLER_DDIM ? "ddim" : "ancestral");
    text_add(t, "spacing: \"%s\"\n", c->spacing ? c->spacing : "");
    text_add(t, "eta: %s\n", number_print(c->eta, number));
    text_add(t, "variance: %s\n", c->variance == DDPM_VARIANCE_LARGE ? "large" : "small");
    text_add(t, "clip: %s\n", c->clip ? "true" : "false");
    if (c->precision == DDPM_PRECISION_BF16) text_add(t, "precision: bf16\n");
    if (c->precision == DDPM_PRECISION_TF32) text_add(t, "precision: tf32\n");
}

/* The first line in which the two texts differ; CANTCREAT names both. */
static ddpm_status compare(const char *output, const char *there, const char *here)
{
    while (*there || *here) {
        const size_t a = strcspn(there, "\n"), b = strcspn(here, "\n");
        REQUIRE(a == b && memcmp(there, here, a) == 0, CANTCREAT,
                "%s: holds the samples of another job: there \"%.*s\", now \"%.*s\"", output, (int)(a < 200 ? a : 200), there,
                (int)(b < 200 ? b : 200), here);
        there += a + (there[a] == '\n');
        here += b + (here[b] == '\n');
    }
    return DDPM_OK;
}

/* *found false where there is no file. */
static ddpm_status read_small(const char *path, char text[JOB_FILE_BYTES], bool *found)
{
    FILE *f = fopen(path, "re");
    *found = f != NULL;
    if (!f && errno == ENOENT) return DDPM_OK;
    if (!f) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    const size_t n = fread(text, 1, JOB_FILE_BYTES - 1, f);
    const bool failed = ferror(f);
    fclose(f);
    REQUIRE(!failed, IO, "%s: cannot be read", path);
    text[n] = '\0';
    return DDPM_OK;
}

static ddpm_status claim(const sample_run *r, const char *path, const text_buffer *t)
{
    char there[JOB_FILE_BYTES];
    bool found;
    TRY(read_small(path, there, &found));
    if (!found) return commit_bytes(path, t->data, t->used);
    return compare(r->args->output, there, t->data);
}

ddpm_status job_claim_folder(const sample_run *r)
{
    ddpm_status s;
    char *path = NULL;
    text_buffer t = {0};
    TRY(make_folder(r->args->output));
    TRY(commit_sweep(r->args->output));
    describe(r, &t);
    if (t.failed) FAIL_GOTO(fail, NOMEM, "%s: no memory for job.yaml", r->args->output);
    TRY_GOTO(fail, job_path(r, "job.yaml", &path));
    s = claim(r, path, &t);
fail:
    text_release(&t);
    free(path);
    return s;
}

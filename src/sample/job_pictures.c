/* job_pictures.c - grid.png and animation.webp of the first images of a job.
 *
 * The grid is read back from the shard that is on the disk. The animation needs x0_hat of many steps, which no file holds:
 * frames are kept while the first images are drawn, at most FRAMES_MAX evenly spaced ones and no more than FRAMES_BYTES; where
 * the shard was there before but the animation not, these images are drawn once more. */
#include "job.h"

#include "fail.h"
#include "picture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FRAMES_MAX = 40, FRAME_MS = 80, LAST_FRAME_MS = 2500 };
static const int64_t FRAMES_BYTES = INT64_C(256) << 20;

static int64_t image_bytes(const sample_run *r)
{
    return r->shape.h * r->shape.w * r->shape.c;
}

ddpm_status job_frames_begin(sample_run *r)
{
    frame_store *f = &r->frames;
    if (!r->args->animation || r->grid == 0) return DDPM_OK;
    const int steps = ddpm_sampler_steps(r->sampler);
    const int64_t affordable = FRAMES_BYTES / (r->grid * image_bytes(r));
    int n = steps < FRAMES_MAX ? steps : FRAMES_MAX;
    if (n > affordable) n = affordable > 1 ? (int)affordable : 1;
    f->step = calloc((size_t)n, sizeof *f->step);
    f->images = calloc((size_t)n, (size_t)(r->grid * image_bytes(r)));
    REQUIRE(f->step && f->images, NOMEM, "animation: %d frames of %d images; use --no-animation", n, r->grid);
    for (int i = 0; i < n; i++) /* from S to 1, both included; a single frame is the last */
        f->step[i] = n > 1 ? steps - (int)lrint((double)i * (steps - 1) / (n - 1)) : 1;
    f->n_frames = n;
    f->n_images = r->grid;
    return DDPM_OK;
}

void job_frames_release(sample_run *r)
{
    free(r->frames.step);
    free(r->frames.images);
    r->frames = (frame_store){0};
}

/* A fault of a picture for its size alone does not end a job: said, and left out. */
static ddpm_status forgive(const sample_run *r, ddpm_status s, const char *name, char **path)
{
    if (!s) return s;
    free(*path);
    *path = NULL;
    if (s != DDPM_SHAPE) return s;
    log_line(r->args->sink, "no %s: %s", name, ddpm_last_error());
    return DDPM_OK;
}

/* The first r->grid images of shard 0. */
static ddpm_status read_first(const sample_run *r, uint8_t *images)
{
    char name[SHARD_NAME_BYTES], *path;
    npz_file *f = NULL;
    shard_name(0, r->shards, name);
    TRY(job_path(r, name, &path));
    ddpm_status s = npz_open(path, &f);
    if (!s) s = npz_read(f, "arr_0", 0, images, (uint64_t)(r->grid * image_bytes(r)));
    npz_close(f);
    free(path);
    return s;
}

static ddpm_status write_grid(sample_run *r)
{
    uint8_t *images = malloc((size_t)(r->grid * image_bytes(r)));
    REQUIRE(images, NOMEM, "grid.png: %d images; use --no-grid", r->grid);
    ddpm_status s = read_first(r, images);
    if (!s)
        s = picture_grid(r->report.grid, images, r->grid, (int)r->shape.h, (int)r->shape.w, (int)r->shape.c, 0);
    free(images);
    return s;
}

/* The frames of images that an earlier run has drawn. */
static ddpm_status draw_again(sample_run *r)
{
    for (int at = 0; at < r->grid; at += r->batch)
        TRY(job_draw(r, at, r->grid - at < r->batch ? r->grid - at : r->batch));
    return DDPM_OK;
}

static ddpm_status add_frames(const sample_run *r, picture_animation *a)
{
    const frame_store *f = &r->frames;
    const size_t bytes = (size_t)(f->n_images * image_bytes(r));
    for (int i = 0; i < f->n_frames; i++)
        TRY(picture_animation_add(a, f->images + (size_t)i * bytes, i + 1 < f->n_frames ? FRAME_MS : LAST_FRAME_MS));
    return DDPM_OK;
}

static ddpm_status write_animation(sample_run *r, bool was_drawn)
{
    picture_animation *a;
    TRY(picture_animation_create(r->report.animation, r->frames.n_images, (int)r->shape.h, (int)r->shape.w,
                                 (int)r->shape.c, 0, &a));
    if (!a) { /* built without libwebp */
        free(r->report.animation);
        r->report.animation = NULL;
        return DDPM_OK;
    }
    ddpm_status s = was_drawn ? DDPM_OK : draw_again(r);
    if (!s) s = add_frames(r, a);
    if (!s) return picture_animation_finish(a);
    picture_animation_abandon(a);
    return s;
}

ddpm_status job_pictures(sample_run *r, bool was_drawn)
{
    if (r->grid == 0) return DDPM_OK;
    TRY(job_path(r, "grid.png", &r->report.grid));
    if (was_drawn || access(r->report.grid, F_OK) != 0)
        TRY(forgive(r, write_grid(r), "grid.png", &r->report.grid));

    if (r->frames.n_frames == 0) return DDPM_OK;
    TRY(job_path(r, "animation.webp", &r->report.animation));
    if (!was_drawn && access(r->report.animation, F_OK) == 0) return DDPM_OK;
    return forgive(r, write_animation(r, was_drawn), "animation.webp", &r->report.animation);
}

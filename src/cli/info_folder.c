/* info_folder.c - `ddpm info` on a folder: a run, a pack in shards, samples, pictures to pack, or
 * another program's model. What it holds decides, not its name. A folder is only read: a run that
 * is being trained is not disturbed. */
#include "info.h"

#include "checkpoint.h"
#include "fail.h"
#include "pack.h"
#include "pack_reader.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* Names of a folder that end (and begin) in a certain way, sorted. */
struct name_list {
    struct dirent **entries;
    int n;
};

static bool name_fits(const char *name, const char *begin, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return *name != '.' && n >= m && strcmp(name + n - m, end) == 0 &&
           strncmp(name, begin, strlen(begin)) == 0;
}

static void list_release(struct name_list *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->entries[i]);
    free(l->entries);
    *l = (struct name_list){0};
}

static ddpm_status list_names(const char *dir, const char *begin, const char *end,
                              struct name_list *out)
{
    *out = (struct name_list){0};
    struct dirent **all;
    const int n = scandir(dir, &all, NULL, alphasort);
    if (n < 0) return FAIL_ERRNO("%s: %s", dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (name_fits(all[i]->d_name, begin, end))
            all[out->n++] = all[i];
        else
            free(all[i]);
    }
    out->entries = all;
    return DDPM_OK;
}

static bool has(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    return snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path &&
           stat(path, &st) == 0;
}

/* Proves each of the files by its own kind's rules, into a report that nobody sees. Every one is
 * looked at, and the first that is damaged becomes the fault. */
static ddpm_status verify_each(const info_job *job, const char *dir, const struct name_list *names,
                               ddpm_status (*tell)(const info_job *))
{
    char first[1024] = "";
    ddpm_status worst = DDPM_OK;
    int bad = 0;
    for (int i = 0; i < names->n; i++) {
        char path[PATH_MAX];
        report unseen;
        const int n = snprintf(path, sizeof path, "%s/%s", dir, names->entries[i]->d_name);
        REQUIRE(n < (int)sizeof path, ARG, "%s: a path of %d bytes is too long", dir, n);
        report_begin(&unseen);
        const info_job one = {.path = path, .verifies = true, .sink = job->sink, .r = &unseen};
        const ddpm_status s = tell(&one);
        report_release(&unseen);
        if (s && !bad++) {
            worst = s;
            status_copy_message(first, sizeof first);
        }
    }
    if (!worst) return DDPM_OK;
    status_set_message(first);
    return status_context(worst, "%d of %d files are damaged, the first", bad, names->n);
}

/* ---- a run ---- */

/* Whether a process holds the run's lock, and what it wrote about itself. */
static void tell_lock(const info_job *job)
{
    char path[PATH_MAX], holder[160] = "";
    if (snprintf(path, sizeof path, "%s/lock", job->path) >= (int)sizeof path) return;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    struct flock want = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    const bool is_held = fcntl(fd, F_OFD_GETLK, &want) == 0 && want.l_type != F_UNLCK;
    const ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
    close(fd);
    holder[n > 0 ? n : 0] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    report_bool(job->r, "in_use", is_held);
    if (is_held) report_text(job->r, "held_by", "%s", holder);
}

static ddpm_status tell_newest(const info_job *job, const char *path)
{
    st_file *file = NULL;
    ddpm_config cfg = {0};
    checkpoint_counters counters = {0};
    TRY(checkpoint_open(path, &file, &cfg, &counters));
    const ddpm_model_config *m = &cfg.model;
    report_text(job->r, "newest_checkpoint", "%s", path);
    report_int(job->r, "step", counters.step);
    report_int(job->r, "steps_of_training", cfg.train.steps);
    report_text(job->r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, m->image_height,
                m->image_width, m->image_channels);
    report_text(job->r, "dataset", "%s", counters.dataset);
    ddpm_config_free(&cfg);
    st_close(file);
    return DDPM_OK;
}

static ddpm_status tell_run(const info_job *job)
{
    char dir[PATH_MAX], metrics[PATH_MAX], *newest = NULL;
    if (snprintf(dir, sizeof dir, "%s/checkpoints", job->path) >= (int)sizeof dir ||
        snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", job->path) >= (int)sizeof metrics)
        return FAIL(ARG, "a path of %zu bytes is too long", strlen(job->path));

    struct name_list names = {0};
    if (has(job->path, "checkpoints")) TRY(list_names(dir, "step-", ".safetensors", &names));
    report_text(job->r, "kind", "run");
    report_int(job->r, "checkpoints", names.n);
    tell_lock(job);
    /* the damaged one is named first where all are to be proved: the search for the newest only
     * warns */
    ddpm_status s = job->verifies ? verify_each(job, dir, &names, info_safetensors) : DDPM_OK;
    if (!s && names.n) s = checkpoint_newest(job->path, job->sink, &newest);
    if (!s && newest) s = tell_newest(job, newest);
    if (!s) s = info_metrics(job, metrics);
    if (!s)
        info_verified(job, names.n ? "every hash of every checkpoint"
                                   : "nothing: there is no checkpoint yet");
    free(newest);
    list_release(&names);
    return s;
}

/* ---- packs, samples, pictures ---- */

static ddpm_status tell_pack_folder(const info_job *job)
{
    pack_reader *p = NULL;
    TRY(pack_reader_open(job->path, &p));
    report_text(job->r, "kind", "pack in shards");
    report_int(job->r, "shards", p->n_shards);
    report_int(job->r, "images", p->n);
    report_text(job->r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, p->height, p->width,
                p->channels);
    report_bool(job->r, "labels", p->labels != NULL);
    report_int(job->r, "classes", p->n_classes);
    report_text(job->r, "dataset", "%s", p->source);
    ddpm_status s = DDPM_OK;
    for (int k = 0; k < p->n_shards && job->verifies && !s; k++)
        s = st_verify(p->shards[k].file);
    if (!s) info_verified(job, "every hash of every shard");
    pack_reader_close(p);
    return s;
}

static ddpm_status tell_samples(const info_job *job, const struct name_list *shards)
{
    int k, of = 0;
    char tail;
    for (int i = 0; i < shards->n; i++)
        if (sscanf(shards->entries[i]->d_name, "samples-%9d-of-%9d.np%c", &k, &of, &tail) == 3)
            break;
    struct name_list whole;
    TRY(list_names(job->path, "samples_", ".npz", &whole));
    report_text(job->r, "kind", "samples");
    report_int(job->r, "shards", shards->n);
    report_int(job->r, "shards_of_the_job", of);
    report_bool(job->r, "is_complete", of > 0 && shards->n == of);
    report_int(job->r, "merged_files", whole.n);
    report_bool(job->r, "grid", has(job->path, "grid.png"));
    report_bool(job->r, "animation", has(job->path, "animation.webp"));
    ddpm_status s = job->verifies ? verify_each(job, job->path, shards, info_npz) : DDPM_OK;
    if (!s && job->verifies) s = verify_each(job, job->path, &whole, info_npz);
    if (!s) info_verified(job, "every CRC-32 of every file");
    list_release(&whole);
    return s;
}

/* The folder's source takes every file there is, so that `ddpm pack` can name what it rejects; here
 * a name decides. */
static int64_t count_pictures(const pack_source *source)
{
    static const char *const ends[] = {".png", ".jpg", ".jpeg"};
    int64_t n = 0;
    for (int64_t i = 0; i < source->n; i++) {
        const char *end = strrchr(source->paths[i], '.');
        for (size_t k = 0; end && k < sizeof ends / sizeof ends[0]; k++)
            n += strcasecmp(end, ends[k]) == 0;
    }
    return n;
}

static bool tell_pictures(const info_job *job)
{
    const pack_options opts = {.labels = PACK_LABELS_FOLDER};
    pack_source source = {0};
    if (source_open_folder(job->path, &opts, &source) != DDPM_OK) return false;
    const int64_t n = count_pictures(&source);
    if (n > 0) {
        report_text(job->r, "kind", "pictures, not yet a pack");
        report_int(job->r, "images", n);
        report_int(job->r, "other_files", source.n - n);
        report_int(job->r, "sub_folders", source.n_classes);
        report_text(job->r, "see", "ddpm pack %s -o PACK", job->path);
        info_verified(job, "nothing yet: `ddpm pack` checks every picture");
    }
    if (source.close) source.close(&source);
    return n > 0;
}

static ddpm_status fail_unknown(const info_job *job)
{
    char some[200] = "";
    size_t used = 0;
    struct name_list all;
    TRY(list_names(job->path, "", "", &all));
    const int n = all.n;
    for (int i = 0; i < n && i < 3; i++)
        used += (size_t)snprintf(some + used, sizeof some - used, "%s%.50s", i ? ", " : "",
                                 all.entries[i]->d_name);
    list_release(&all);
    if (n == 0) return FAIL(FORMAT, "%s: an empty folder", job->path);
    return FAIL(FORMAT, "%s: no run, pack, samples or pictures; it holds %s%s", job->path, some,
                n > 3 ? ", ..." : "");
}

ddpm_status info_folder(const info_job *job)
{
    report_text(job->r, "path", "%s", job->path);
    if (has(job->path, "config.yaml") || has(job->path, "checkpoints")) return tell_run(job);

    struct name_list names;
    TRY(list_names(job->path, "pack-", ".safetensors", &names));
    const bool is_pack = names.n > 0;
    list_release(&names);
    if (is_pack) return tell_pack_folder(job);

    TRY(list_names(job->path, "samples-", ".npz", &names));
    if (names.n > 0 || has(job->path, "job.yaml")) {
        const ddpm_status s = tell_samples(job, &names);
        list_release(&names);
        return s;
    }
    list_release(&names);

    if (has(job->path, "model_index.json") ||
        has(job->path, "diffusion_pytorch_model.safetensors")) {
        report_text(job->r, "kind", "model of diffusers");
        info_verified(job, "nothing: look at its safetensors files one by one");
        return DDPM_OK;
    }
    return tell_pictures(job) ? DDPM_OK : fail_unknown(job);
}

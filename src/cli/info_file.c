/* info_file.c - `ddpm info` on one file: by its first bytes, never by its name alone.
 *
 * One table of kinds, tried in order, each with its test on the head of the file. Nothing foreign
 * is decoded here: of a picture the checks run that `ddpm pack` makes before it decodes. */
#include "info.h"

#include "ddpm/config.h"
#include "fail.h"
#include "image.h"
#include "pack.h"
#include "text.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 256, PICTURE_MAX_BYTES = 1 << 28, TAIL_BYTES = 1 << 16 };

struct head {
    unsigned char bytes[HEAD_BYTES];
    size_t n;
    uint64_t file_bytes;
    const char *name; /* last part of the path */
};

static bool starts(const struct head *h, const char *with, size_t n)
{
    return h->n >= n && memcmp(h->bytes, with, n) == 0;
}

static bool name_ends(const struct head *h, const char *end)
{
    const size_t n = strlen(h->name), m = strlen(end);
    return n >= m && strcmp(h->name + n - m, end) == 0;
}

/* ---- the kinds ---- */

static bool is_zip(const struct head *h)
{
    return starts(h, "PK\3\4", 4) || starts(h, "PK\5\6", 4);
}

static bool is_picture(const struct head *h)
{
    return starts(h, "\x89PNG", 4) || starts(h, "\xff\xd8\xff", 3);
}

static ddpm_status read_whole(const char *path, size_t bytes, unsigned char **out)
{
    *out = malloc(bytes ? bytes : 1);
    REQUIRE(*out, NOMEM, "%s: %zu bytes", path, bytes);
    FILE *f = fopen(path, "rb");
    const size_t got = f ? fread(*out, 1, bytes, f) : 0;
    if (f) fclose(f);
    if (got == bytes) return DDPM_OK;
    free(*out);
    *out = NULL;
    return FAIL(IO, "%s: %zu of %zu bytes could be read", path, got, bytes);
}

static ddpm_status tell_picture(const info_job *job, const struct head *h)
{
    REQUIRE(h->file_bytes <= PICTURE_MAX_BYTES, FORMAT,
            "%s: a picture of %" PRIu64 " bytes; at most %d are taken", job->path, h->file_bytes,
            PICTURE_MAX_BYTES);
    unsigned char *file;
    image_info info;
    TRY(read_whole(job->path, (size_t)h->file_bytes, &file));
    const ddpm_status s = image_check(file, (size_t)h->file_bytes, &info);
    free(file);
    if (s) return status_context(s, "%s", job->path);
    report_text(job->r, "kind", "%s", h->bytes[0] == 0x89 ? "PNG picture" : "JPEG picture");
    report_text(job->r, "image", "%dx%dx%d", info.height, info.width, info.channels);
    info_verified(job, h->bytes[0] == 0x89 ? "every CRC-32"
                                           : "structure alone: JPEG carries no checksums");
    return DDPM_OK;
}

static bool is_webp(const struct head *h)
{
    return starts(h, "RIFF", 4) && h->n >= 30 && memcmp(h->bytes + 8, "WEBP", 4) == 0;
}

/* RIFF size at 4; of the extended format, flags at 20 and 24-bit width - 1 and height - 1 at 24. */
static ddpm_status tell_webp(const info_job *job, const struct head *h)
{
    const unsigned char *b = h->bytes;
    const uint64_t riff = b[4] | (uint64_t)b[5] << 8 | (uint64_t)b[6] << 16 | (uint64_t)b[7] << 24;
    REQUIRE(riff + 8 == h->file_bytes, FORMAT,
            "%s: a WebP picture of %" PRIu64 " bytes in a file of %" PRIu64, job->path, riff + 8,
            h->file_bytes);
    const bool is_extended = memcmp(b + 12, "VP8X", 4) == 0;
    report_text(job->r, "kind", "%s", is_extended && b[20] & 2 ? "WebP animation" : "WebP picture");
    if (is_extended)
        report_text(job->r, "image", "%dx%dx3", (b[27] | b[28] << 8 | b[29] << 16) + 1,
                    (b[24] | b[25] << 8 | b[26] << 16) + 1);
    info_verified(job, "length alone: WebP carries no checksums");
    return DDPM_OK;
}

static bool is_idx(const struct head *h)
{
    return starts(h, "\0\0\x08\x03", 4) || (starts(h, "\x1f\x8b", 2) && name_ends(h, ".gz"));
}

static ddpm_status tell_source(const info_job *job, const char *kind,
                               ddpm_status (*open_source)(const char *, const pack_options *,
                                                          pack_source *))
{
    const pack_options opts = {0};
    pack_source source = {0};
    TRY(open_source(job->path, &opts, &source));
    report_text(job->r, "kind", "%s", kind);
    report_int(job->r, "images", source.n);
    if (source.height)
        report_text(job->r, "image", "%dx%dx%d", source.height, source.width, source.channels);
    report_int(job->r, "classes", source.n_classes);
    report_bool(job->r, "labels", source.labels != NULL);
    if (source.close) source.close(&source);
    info_verified(job, "structure alone: the format carries no hashes");
    return DDPM_OK;
}

static ddpm_status tell_idx(const info_job *job, const struct head *h)
{
    (void)h;
    return tell_source(job, "idx images", source_open_idx);
}

static bool is_idx_labels(const struct head *h)
{
    return starts(h, "\0\0\x08\x01", 4);
}

static ddpm_status tell_idx_labels(const info_job *job, const struct head *h)
{
    const unsigned char *b = h->bytes;
    const uint64_t n =
        h->n < 8 ? 0 : (uint64_t)b[4] << 24 | (uint64_t)b[5] << 16 | (uint64_t)b[6] << 8 | b[7];
    REQUIRE(n + 8 == h->file_bytes, FORMAT,
            "%s: idx labels, %" PRIu64 " by the header, in a file of %" PRIu64 " bytes", job->path,
            n, h->file_bytes);
    report_text(job->r, "kind", "idx labels");
    report_int(job->r, "labels", (int64_t)n);
    info_verified(job, "length alone: the format carries no hashes");
    return DDPM_OK;
}

static bool is_cifar(const struct head *h)
{
    return name_ends(h, ".bin") && h->file_bytes > 0 &&
           (h->file_bytes % 3073 == 0 || h->file_bytes % 3074 == 0);
}

static ddpm_status tell_cifar(const info_job *job, const struct head *h)
{
    (void)h;
    return tell_source(job, "CIFAR binary batch", source_open_cifar);
}

static bool is_events(const struct head *h)
{
    return strstr(h->name, "tfevents") != NULL;
}

static ddpm_status tell_events(const info_job *job, const struct head *h)
{
    (void)h;
    report_text(job->r, "kind", "TensorBoard events");
    info_verified(job, "nothing: TensorBoard checks these records itself");
    return DDPM_OK;
}

/* Eight bytes of length, then the header's brace; or what st_open knows by name and refuses. */
static bool is_safetensors(const struct head *h)
{
    const bool is_pickle = h->n >= 2 && h->bytes[0] == 0x80 && h->bytes[1] >= 2 && h->bytes[1] <= 5;
    return is_pickle || name_ends(h, ".safetensors") ||
           (h->n > 8 && h->bytes[8] == '{' && h->bytes[0] != '{');
}

static ddpm_status tell_safetensors(const info_job *job, const struct head *h)
{
    (void)h;
    return info_safetensors(job);
}

static ddpm_status tell_npz(const info_job *job, const struct head *h)
{
    (void)h;
    return info_npz(job);
}

static bool is_json_lines(const struct head *h)
{
    return starts(h, "{", 1) && (name_ends(h, ".jsonl") || name_ends(h, ".json"));
}

static ddpm_status tell_json_lines(const info_job *job, const struct head *h)
{
    report_text(job->r, "kind", "%s",
                name_ends(h, ".jsonl") ? "metrics of a run (JSON lines)" : "JSON");
    if (name_ends(h, ".jsonl")) TRY(info_metrics(job, job->path));
    info_verified(job, "nothing: the format carries no hashes");
    return DDPM_OK;
}

static bool is_yaml(const struct head *h)
{
    return name_ends(h, ".yaml") || name_ends(h, ".yml");
}

static ddpm_status tell_yaml(const info_job *job, const struct head *h)
{
    if (strcmp(h->name, "job.yaml") == 0) {
        report_text(job->r, "kind", "description of a sampling job");
        info_verified(job, "nothing: the format carries no hashes");
        return DDPM_OK;
    }
    ddpm_config cfg = {0};
    TRY(ddpm_config_load(job->path, NULL, 0, &cfg));
    const ddpm_model_config *m = &cfg.model;
    report_text(job->r, "kind", "configuration");
    report_text(job->r, "image", "%" PRId64 "x%" PRId64 "x%" PRId64, m->image_height,
                m->image_width, m->image_channels);
    report_int(job->r, "num_classes", m->num_classes);
    report_int(job->r, "steps_of_training", cfg.train.steps);
    report_text(job->r, "see", "ddpm plan %s", job->path);
    ddpm_config_free(&cfg);
    info_verified(job, "every key and value; the format carries no hashes");
    return DDPM_OK;
}

static const struct {
    bool (*is)(const struct head *h);
    ddpm_status (*tell)(const info_job *job, const struct head *h);
} kinds[] = {
    {is_zip, tell_npz},
    {is_picture, tell_picture},
    {is_webp, tell_webp},
    {is_events, tell_events},
    {is_idx, tell_idx},
    {is_idx_labels, tell_idx_labels},
    {is_json_lines, tell_json_lines},
    {is_yaml, tell_yaml},
    {is_safetensors, tell_safetensors},
    {is_cifar, tell_cifar},
};

static ddpm_status fail_unknown(const info_job *job, const struct head *h)
{
    REQUIRE(h->n, FORMAT, "%s: an empty file", job->path);
    char hex[3 * 8 + 1] = "", text[64];
    for (size_t i = 0; i < h->n && i < 8; i++)
        snprintf(hex + 3 * i, 4, "%02x ", h->bytes[i]);
    const char *looks = "";
    if (starts(h,
               "\x7f"
               "ELF",
               4))
        looks = ", a program";
    if (starts(h, "GIF8", 4)) looks = ", a GIF picture, which is not read; convert it to PNG";
    if (starts(h, "BM", 2)) looks = ", perhaps a BMP picture, which is not read; convert it to PNG";
    if (starts(h, "\x1f\x8b", 2)) looks = ", something compressed by gzip";
    if (starts(h, "\x93NUMPY", 6)) looks = ", a single array of NumPy; np.savez makes an npz of it";
    if (starts(h, "\x89HDF", 4)) looks = ", HDF5, which is not read; convert it to safetensors";
    text_escape(text, sizeof text, (const char *)h->bytes, h->n < 12 ? h->n : 12);
    return FAIL(FORMAT, "%s: no kind of file that ddpm knows; it begins with %s(\"%s\")%s",
                job->path, hex, text, looks);
}

static ddpm_status read_head(const char *path, const struct stat *st, struct head *h)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    const ssize_t n = pread(fd, h->bytes, HEAD_BYTES, 0);
    const int err = errno;
    close(fd);
    errno = err;
    if (n < 0) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    const char *slash = strrchr(path, '/');
    h->name = slash ? slash + 1 : path;
    h->n = (size_t)n;
    h->file_bytes = (uint64_t)st->st_size;
    return DDPM_OK;
}

ddpm_status info_file(const info_job *job)
{
    struct stat st;
    struct head h = {0};
    if (stat(job->path, &st) != 0) return FAIL_ERRNO("%s: %s", job->path, strerror(errno));
    REQUIRE(S_ISREG(st.st_mode), FORMAT, "%s: neither a file nor a folder but a %s", job->path,
            S_ISFIFO(st.st_mode)   ? "pipe"
            : S_ISSOCK(st.st_mode) ? "socket"
                                   : "device");
    TRY(read_head(job->path, &st, &h));
    report_text(job->r, "path", "%s", job->path);
    report_int(job->r, "file_bytes", st.st_size);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].is(&h)) return kinds[i].tell(job, &h);
    return fail_unknown(job, &h);
}

/* ---- metrics ---- */

static void tell_metrics_line(report *r, const char *line, size_t bytes)
{
    json_t *object = json_loadb(line, bytes, 0, NULL), *value;
    const char *name;
    if (!json_is_object(object)) {
        json_decref(object);
        return;
    }
    report_open(r, "last_metrics");
    json_object_foreach(object, name, value)
    {
        if (json_is_integer(value)) report_int(r, name, json_integer_value(value));
        if (json_is_real(value)) report_real(r, name, json_real_value(value));
    }
    report_close(r);
    json_decref(object);
}

ddpm_status info_metrics(const info_job *job, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) return errno == ENOENT ? DDPM_OK : FAIL_ERRNO("%s: %s", path, strerror(errno));
    char *tail = malloc(TAIL_BYTES);
    if (!tail) {
        fclose(f);
        return FAIL(NOMEM, "%s: %d bytes", path, TAIL_BYTES);
    }
    if (fseek(f, -TAIL_BYTES, SEEK_END) != 0) rewind(f);
    size_t n = fread(tail, 1, TAIL_BYTES, f), begin;
    fclose(f);
    while (n && tail[n - 1] == '\n')
        n--;
    for (begin = n; begin && tail[begin - 1] != '\n'; begin--) {
    }
    if (n) tell_metrics_line(job->r, tail + begin, n - begin);
    free(tail);
    return DDPM_OK;
}

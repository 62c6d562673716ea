/* pack_input.c - what a pack is made from.
 *
 * Job        find out what each source is, by its contents; number all images through; make one
 *            list of classes of all lists; settle height, width and channels; and give it all a
 *            name (two hashes) by which a later run knows that it is the same.
 * Method     classes of folders are joined by name and sorted; classes of idx, CIFAR and npz are
 *            numbers, and the longest list holds.
 * Cost       one stat a file. */
#include "pack_input.h"

#include "fail.h"
#include "fit.h"
#include "image_checks.h"
#include "source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- what kind a source is ---- */

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcasecmp(text + n - k, end);
}

static ddpm_status source_open(const char *path, const pack_options *o, pack_source *out)
{
    struct stat st;
    if (stat(path, &st)) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) return source_open_folder(path, o, out);
    int fd = -1;
    int64_t bytes = 0;
    TRY(source_open_file(path, &fd, &bytes));
    uint8_t p[8] = {0};
    const ddpm_status s = source_read_at(fd, path, 0, p, bytes < 8 ? (size_t)bytes : 8);
    close(fd);
    TRY(s);
    const bool is_image = !memcmp(p, "\x89PNG", 4) || !memcmp(p, "\xFF\xD8\xFF", 3) ||
                          ends_with(path, ".png") || ends_with(path, ".jpg") ||
                          ends_with(path, ".jpeg");
    if (is_image) return source_open_folder(path, o, out);
    if (!memcmp(p, "PK\3\4", 4) || !memcmp(p, "PK\5\6", 4) || ends_with(path, ".npz"))
        return source_open_npz(path, o, out);
    if (ends_with(path, ".bin")) return source_open_cifar(path, o, out);
    if ((p[0] == 0x1F && p[1] == 0x8B) || (p[0] == 0 && p[1] == 0 && p[2] == 8))
        return source_open_idx(path, o, out);
    return FAIL(FORMAT,
                "%s: is neither a folder, a PNG, JPEG, idx or npz file, nor a CIFAR .bin batch",
                path);
}

/* ---- numbers ---- */

static int source_of(const pack_input *in, int64_t i)
{
    int low = 0, high = in->n_sources - 1;
    while (low < high) {
        const int mid = (low + high + 1) / 2;
        if (in->first[mid] <= i)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

const char *pack_input_path(const pack_input *in, int64_t i)
{
    const int k = source_of(in, i);
    return in->sources[k].paths[i - in->first[k]];
}

int64_t pack_input_label(const pack_input *in, int64_t i)
{
    if (!in->has_labels) return -1;
    const int k = source_of(in, i);
    const int64_t own = in->sources[k].labels[i - in->first[k]];
    return own < 0 || !in->class_map[k] ? own : in->class_map[k][own];
}

static ddpm_status sources_compare(const pack_input *in)
{
    const pack_source *a = &in->sources[0];
    for (int k = 1; k < in->n_sources; k++) {
        const pack_source *b = &in->sources[k];
        REQUIRE(a->read == b->read && a->needs_decoder == b->needs_decoder, ARG,
                "%s and %s are of different kinds; make two packs", in->names[0], in->names[k]);
        REQUIRE(!a->labels == !b->labels, ARG, "%s has labels, %s has none",
                in->names[a->labels ? 0 : k], in->names[a->labels ? k : 0]);
    }
    return DDPM_OK;
}

/* ---- classes ---- */

static ddpm_status classes_numbered(pack_input *in)
{
    int longest = 0;
    for (int k = 1; k < in->n_sources; k++)
        if (in->sources[k].n_classes > in->sources[longest].n_classes) longest = k;
    const pack_source *from = &in->sources[longest];
    in->classes = calloc((size_t)from->n_classes, sizeof *in->classes);
    REQUIRE(in->classes, NOMEM, "%d class names", from->n_classes);
    in->n_classes = from->n_classes;
    for (int i = 0; i < in->n_classes; i++) {
        in->classes[i] = strdup(from->classes[i]);
        REQUIRE(in->classes[i], NOMEM, "%d class names", in->n_classes);
    }
    return DDPM_OK;
}

static ddpm_status classes_named(pack_input *in, name_list *all)
{
    for (int k = 0; k < in->n_sources; k++)
        for (int i = 0; i < in->sources[k].n_classes; i++)
            TRY(name_list_add(all, in->sources[k].classes[i], strlen(in->sources[k].classes[i])));
    name_list_unique(all);
    for (int k = 0; k < in->n_sources; k++) {
        const pack_source *s = &in->sources[k];
        in->class_map[k] = calloc((size_t)s->n_classes, sizeof *in->class_map[k]);
        REQUIRE(in->class_map[k], NOMEM, "%d classes", s->n_classes);
        for (int i = 0; i < s->n_classes; i++)
            in->class_map[k][i] = (int)name_list_find(all, s->classes[i], strlen(s->classes[i]));
    }
    in->classes = all->v;
    in->n_classes = (int)all->n;
    *all = (name_list){0};
    return DDPM_OK;
}

static ddpm_status classes_join(pack_input *in)
{
    in->has_labels = in->sources[0].labels != NULL;
    if (!in->has_labels) return DDPM_OK;
    if (!in->needs_decoder) return classes_numbered(in);
    name_list all = {0};
    const ddpm_status s = classes_named(in, &all);
    name_list_release(&all);
    return s;
}

/* ---- the pack's size ---- */

/* The first file that passes the checks tells the size of all. */
static ddpm_status size_look_up(const pack_input *in, image_info *info)
{
    for (int64_t i = 0; i < in->n; i++) {
        const char *path = pack_input_path(in, i);
        int fd = -1;
        int64_t bytes = 0;
        if (source_open_file(path, &fd, &bytes)) continue;
        ddpm_status s = DDPM_FORMAT;
        uint8_t *file = bytes > 0 && bytes <= IMAGE_MAX_FILE ? malloc((size_t)bytes) : NULL;
        if (file) s = source_read_at(fd, path, 0, file, (size_t)bytes);
        if (file && !s) s = image_check(file, (size_t)bytes, info);
        free(file);
        close(fd);
        if (!s) return DDPM_OK;
        REQUIRE(s != DDPM_NOMEM, NOMEM, "%s: no memory to look at it", path);
    }
    return FAIL(FORMAT, "%s: no file is an undamaged PNG or JPEG", in->names[0]);
}

static ddpm_status size_settle(pack_input *in, const pack_options *o)
{
    image_info info = {.height = in->sources[0].height,
                       .width = in->sources[0].width,
                       .channels = in->sources[0].channels};
    if (in->needs_decoder && (!o->height || !o->width || !o->channels))
        TRY(size_look_up(in, &info));
    in->height = o->height ? o->height : info.height;
    in->width = o->width ? o->width : info.width;
    in->channels = o->channels ? o->channels : info.channels < 3 ? 1 : 3;
    return DDPM_OK;
}

/* ---- the names of it all ---- */

static void hash_text(XXH3_state_t *h, const char *text)
{
    XXH3_128bits_update(h, text, strlen(text) + 1);
}

static void hash_number(XXH3_state_t *h, int64_t v)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, v);
    hash_text(h, text);
}

static void hash_print(XXH3_state_t *h, char out[33])
{
    const XXH128_hash_t v = XXH3_128bits_digest(h);
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, (uint64_t)v.high64, (uint64_t)v.low64);
}

/* A file's name below its source, its size; into `dated` its time too. */
static void hash_file(XXH3_state_t *plain, XXH3_state_t *dated, const char *path, size_t root)
{
    struct stat st;
    if (stat(path, &st)) memset(&st, 0, sizeof st);
    XXH3_state_t *const both[2] = {plain, dated};
    for (int i = 0; i < 2; i++) {
        hash_text(both[i], path + root);
        hash_number(both[i], st.st_size);
    }
    hash_number(dated, st.st_mtim.tv_sec);
    hash_number(dated, st.st_mtim.tv_nsec);
}

static void hash_sources(const pack_input *in, XXH3_state_t *plain, XXH3_state_t *dated)
{
    for (int k = 0; k < in->n_sources; k++) {
        const pack_source *s = &in->sources[k];
        const char *name = in->names[k], *slash = strrchr(name, '/');
        if (s->needs_decoder && !(s->n == 1 && !strcmp(s->paths[0], name))) {
            for (int64_t i = 0; i < s->n; i++)
                hash_file(plain, dated, s->paths[i], strlen(name));
        } else {
            hash_file(plain, dated, name, slash ? (size_t)(slash + 1 - name) : 0);
        }
        for (int64_t i = 0; s->labels && i < s->n; i++) {
            const int64_t label = pack_input_label(in, in->first[k] + i);
            XXH3_128bits_update(plain, &label, sizeof label);
            XXH3_128bits_update(dated, &label, sizeof label);
        }
    }
}

static ddpm_status hashes_make(pack_input *in, const pack_options *o)
{
    XXH3_state_t *plain = XXH3_createState(), *dated = XXH3_createState();
    if (!plain || !dated) {
        XXH3_freeState(plain);
        XXH3_freeState(dated);
        return FAIL(NOMEM, "hash states");
    }
    XXH3_128bits_reset(plain);
    XXH3_128bits_reset(dated);
    const int64_t numbers[] = {in->height, in->width, in->channels, o->fit,
                               o->labels,  o->limit,  in->n};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        hash_number(plain, numbers[i]);
        hash_number(dated, numbers[i]);
    }
    for (int i = 0; i < in->n_classes; i++) {
        hash_text(plain, in->classes[i]);
        hash_text(dated, in->classes[i]);
    }
    hash_sources(in, plain, dated);
    hash_print(plain, in->source);
    hash_print(dated, in->identity);
    XXH3_freeState(plain);
    XXH3_freeState(dated);
    return DDPM_OK;
}

/* ---- opening ---- */

static ddpm_status open_all(pack_input *in, int n_sources, const pack_options *o)
{
    in->sources = calloc((size_t)n_sources, sizeof *in->sources);
    in->first = calloc((size_t)n_sources + 1, sizeof *in->first);
    in->class_map = calloc((size_t)n_sources, sizeof *in->class_map);
    REQUIRE(in->sources && in->first && in->class_map, NOMEM, "%d sources", n_sources);
    for (int k = 0; k < n_sources; k++) {
        TRY(source_open(in->names[k], o, &in->sources[k]));
        in->n_sources++;
        in->first[k + 1] = in->first[k] + in->sources[k].n;
    }
    TRY(sources_compare(in));
    in->needs_decoder = in->sources[0].needs_decoder;
    in->n = in->first[n_sources];
    if (o->limit && o->limit < in->n) in->n = o->limit;
    TRY(classes_join(in));
    TRY(size_settle(in, o));
    return hashes_make(in, o);
}

ddpm_status pack_input_open(pack_input *in, const char *const *sources, int n_sources,
                            const pack_options *opts)
{
    *in = (pack_input){.names = sources};
    const ddpm_status s = open_all(in, n_sources, opts);
    if (s) pack_input_close(in);
    return s;
}

void pack_input_close(pack_input *in)
{
    for (int k = 0; k < in->n_sources; k++) {
        if (in->class_map) free(in->class_map[k]);
        in->sources[k].close(&in->sources[k]);
    }
    for (int i = 0; in->classes && i < in->n_classes; i++)
        free(in->classes[i]);
    free(in->classes);
    free(in->class_map);
    free(in->first);
    free(in->sources);
    *in = (pack_input){0};
}

/* ---- reading pixels ---- */

static ddpm_status read_fitted(pack_input *in, pack_source *s, int64_t first, int64_t count,
                               int fit, uint8_t *images, char **reasons)
{
    const int64_t area = (int64_t)s->height * s->width;
    const size_t out = (size_t)in->height * (size_t)in->width * (size_t)in->channels;
    uint8_t *raw = malloc((size_t)area * (size_t)s->channels);
    uint8_t *wide = malloc((size_t)area * (size_t)in->channels);
    ddpm_status st =
        raw && wide ? DDPM_OK : FAIL(NOMEM, "an image of %d x %d", s->height, s->width);
    for (int64_t i = 0; !st && i < count; i++) {
        st = s->read(s, first + i, 1, raw);
        if (st) break;
        fit_channels(raw, s->channels, wide, in->channels, area);
        st = fit_image(wide, s->height, s->width, in->channels, images + (size_t)i * out,
                       in->height, in->width, fit);
        if (st != DDPM_FORMAT) continue;
        reasons[i] = strdup(ddpm_last_error());
        st = reasons[i] ? DDPM_OK : FAIL(NOMEM, "a reason");
    }
    free(raw);
    free(wide);
    return st;
}

ddpm_status pack_input_read(pack_input *in, int64_t first, int64_t count, int fit, uint8_t *images,
                            char **reasons)
{
    const size_t out = (size_t)in->height * (size_t)in->width * (size_t)in->channels;
    while (count > 0) {
        const int k = source_of(in, first);
        pack_source *s = &in->sources[k];
        const int64_t left = in->first[k + 1] - first, n = left < count ? left : count;
        const int64_t own = first - in->first[k];
        if (s->height == in->height && s->width == in->width && s->channels == in->channels)
            TRY(s->read(s, own, n, images));
        else
            TRY(read_fitted(in, s, own, n, fit, images, reasons));
        first += n;
        count -= n;
        images += (size_t)n * out;
        reasons += n;
    }
    return DDPM_OK;
}

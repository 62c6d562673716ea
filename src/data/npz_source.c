/* npz_source.c - an npz of images as a source: arr_0 U8 [N,H,W,C] or [N,H,W], and labels in arr_1
 * where it is there, as guided-diffusion exchanges samples and reference batches. Arrays are read
 * forward, in the pieces asked for. */
#include "pack.h"

#include "fail.h"
#include "npz.h"
#include "source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CLASSES = 1 << 20 };

static ddpm_status read_images(pack_source *s, int64_t first, int64_t count, uint8_t *images)
{
    const uint64_t size = (uint64_t)s->height * (uint64_t)s->width * (uint64_t)s->channels;
    return npz_read(s->state, "arr_0", (uint64_t)first * size, images, (uint64_t)count * size);
}

static void npz_source_close(pack_source *s)
{
    npz_close(s->state);
    source_release(s);
}

static ddpm_status images_find(const char *path, pack_source *src)
{
    npz_array a;
    TRY(npz_find(src->state, "arr_0", &a));
    REQUIRE(!strcmp(a.dtype, "u1") && (a.rank == 3 || a.rank == 4), FORMAT,
            "%s: arr_0 is %s of rank %d; images are u1 [N,H,W,C]", path, a.dtype, a.rank);
    const int64_t channels = a.rank == 4 ? a.shape[3] : 1;
    REQUIRE(a.shape[0] >= 1 && a.shape[1] >= 1 && a.shape[2] >= 1 &&
                a.shape[1] <= SOURCE_MAX_SIDE && a.shape[2] <= SOURCE_MAX_SIDE &&
                (channels == 1 || channels == 3),
            FORMAT,
            "%s: arr_0 is [%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
            "]; sides are 1 .. %d, channels 1 or 3",
            path, a.shape[0], a.shape[1], a.shape[2], channels, SOURCE_MAX_SIDE);
    src->n = a.shape[0];
    src->height = (int)a.shape[1];
    src->width = (int)a.shape[2];
    src->channels = (int)channels;
    return DDPM_OK;
}

/* One little-endian integer of the dtypes that NumPy labels come in. */
static int64_t integer(const uint8_t *p, const char *dtype)
{
    const int bytes = dtype[1] - '0';
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    if (dtype[0] == 'u' || bytes == 8) return (int64_t)v;
    const uint64_t sign = UINT64_C(1) << (8 * bytes - 1);
    return (int64_t)(v ^ sign) - (int64_t)sign;
}

static ddpm_status labels_find(const char *path, pack_source *src)
{
    npz_array a;
    const ddpm_status found = npz_find(src->state, "arr_1", &a);
    if (found == DDPM_NOINPUT) return DDPM_OK;
    TRY(found);
    REQUIRE(a.dtype[0] != 'f' && a.rank == 1 && a.shape[0] == src->n, FORMAT,
            "%s: arr_1 is %s of rank %d with %" PRIu64 " bytes; labels are integers [%" PRId64 "]",
            path, a.dtype, a.rank, a.bytes, src->n);
    src->labels = calloc((size_t)src->n, sizeof *src->labels);
    REQUIRE(src->labels, NOMEM, "%s: %" PRId64 " labels", path, src->n);
    const uint64_t item = (uint64_t)(a.dtype[1] - '0');
    int classes = 1;
    for (int64_t i = 0; i < src->n; i++) {
        uint8_t raw[8];
        TRY(npz_read(src->state, "arr_1", (uint64_t)i * item, raw, item));
        src->labels[i] = integer(raw, a.dtype);
        REQUIRE(src->labels[i] >= 0 && src->labels[i] < MAX_CLASSES, FORMAT,
                "%s: label %" PRId64 " of image %" PRId64 "; labels are 0 .. %d", path,
                src->labels[i], i, MAX_CLASSES - 1);
        if (src->labels[i] >= classes) classes = (int)src->labels[i] + 1;
    }
    return source_number_classes(src, classes);
}

ddpm_status source_open_npz(const char *path, const pack_options *o, pack_source *out)
{
    (void)o;
    ddpm_status s = DDPM_OK;
    pack_source src = {.read = read_images, .close = npz_source_close};
    npz_file *f = NULL;
    TRY_GOTO(fail, npz_open(path, &f));
    src.state = f;
    TRY_GOTO(fail, images_find(path, &src));
    TRY_GOTO(fail, labels_find(path, &src));
    *out = src;
    return DDPM_OK;
fail:
    npz_source_close(&src);
    return s;
}

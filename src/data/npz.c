/* npz.c - reading npz archives: zip_read.h's entries seen as arrays.
 *
 * Job        "arr_0" to dtype, shape and bytes, read forward in pieces.
 * Method     a .npy header is read when its array is first asked for; its extents must account for
 *            every byte of the entry.
 * Cost       what zip_read.c holds; arrays are never in memory whole. */
#include "npz.h"

#include "fail.h"
#include "npy.h"
#include "zip_read.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct npz_file {
    zip_file *zip;
    char *path;
    size_t *header; /* [zip_count]: length of each array's header, 0: not read yet */
};

ddpm_status npz_open(const char *path, npz_file **out)
{
    *out = NULL;
    ddpm_status s = DDPM_OK;
    npz_file *f = calloc(1, sizeof *f);
    REQUIRE(f, NOMEM, "%s: %zu bytes", path, sizeof *f);
    f->path = strdup(path);
    if (!f->path) FAIL_GOTO(fail, NOMEM, "%s: its name", path);
    TRY_GOTO(fail, zip_open(path, &f->zip));
    f->header = calloc((size_t)zip_count(f->zip) + 1, sizeof *f->header);
    if (!f->header) FAIL_GOTO(fail, NOMEM, "%s: %d entries", path, zip_count(f->zip));
    *out = f;
    return DDPM_OK;
fail:
    npz_close(f);
    return s;
}

void npz_close(npz_file *f)
{
    if (!f) return;
    zip_close(f->zip);
    free(f->header);
    free(f->path);
    free(f);
}

static int entry_find(const npz_file *f, const char *name)
{
    const size_t n = strlen(name);
    for (int i = 0; i < zip_count(f->zip); i++) {
        const char *have = zip_at(f->zip, i)->name;
        if (!strncmp(have, name, n) && !strcmp(have + n, ".npy")) return i;
    }
    return -1;
}

/* The array's header, read once; later calls know its length. */
static ddpm_status entry_header(npz_file *f, int entry, const char *name, npz_array *out)
{
    const uint64_t bytes = zip_at(f->zip, entry)->bytes;
    uint8_t prefix[NPY_PREFIX] = {0};
    size_t header = 0;
    REQUIRE(bytes >= NPY_PREFIX, FORMAT, "%s: array %s has %" PRIu64 " bytes: not a .npy array",
            f->path, name, bytes);
    TRY(zip_read(f->zip, entry, 0, prefix, NPY_PREFIX));
    TRY(npy_header_bytes(name, prefix, NPY_PREFIX, &header));
    REQUIRE(header <= bytes, FORMAT, "%s: array %s: header cut short", f->path, name);
    uint8_t *text = malloc(header);
    REQUIRE(text, NOMEM, "%s: header of %zu bytes", f->path, header);
    memcpy(text, prefix, NPY_PREFIX);
    ddpm_status s = zip_read(f->zip, entry, NPY_PREFIX, text + NPY_PREFIX, header - NPY_PREFIX);
    if (!s) s = npy_parse(name, text, header, out);
    free(text);
    if (s) return status_context(s, "%s", f->path);
    REQUIRE(out->bytes == bytes - header, FORMAT,
            "%s: array %s: shape and dtype need %" PRIu64 " bytes, it has %" PRIu64, f->path, name,
            out->bytes, bytes - header);
    f->header[entry] = header;
    return DDPM_OK;
}

ddpm_status npz_find(npz_file *f, const char *name, npz_array *out)
{
    npz_array found = {.rank = 0};
    const int entry = entry_find(f, name);
    REQUIRE(entry >= 0, NOINPUT, "%s: no array %s", f->path, name);
    TRY(entry_header(f, entry, name, &found));
    *out = found;
    return DDPM_OK;
}

ddpm_status npz_read(npz_file *f, const char *name, uint64_t first, void *dst, uint64_t bytes)
{
    npz_array found;
    const int entry = entry_find(f, name);
    REQUIRE(entry >= 0, NOINPUT, "%s: no array %s", f->path, name);
    if (!f->header[entry]) TRY(entry_header(f, entry, name, &found));
    const uint64_t header = f->header[entry], data = zip_at(f->zip, entry)->bytes - header;
    REQUIRE(first <= data && bytes <= data - first, ARG,
            "%s: array %s has %" PRIu64 " bytes, %" PRIu64 " asked for at %" PRIu64, f->path, name,
            data, bytes, first);
    return zip_read(f->zip, entry, header + first, dst, bytes);
}

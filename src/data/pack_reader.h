/* pack_reader.h - a pack as it lies on disk, one file or a folder of shards, image by image. */
#ifndef DATA_PACK_READER_H
#define DATA_PACK_READER_H

#include "safetensors.h"

#include <stddef.h>
#include <stdint.h>

enum { PACK_MAX_SIDE = 16384 };

typedef struct {
    st_file *file;
    const st_tensor *images; /* owned by file */
    int64_t first, n;        /* images first .. first+n-1 of the pack */
} pack_shard;

typedef struct {
    int64_t n, height, width, channels;
    size_t image_bytes;
    pack_shard *shards; /* in order */
    int n_shards;
    int64_t *labels;        /* [n], 0 <= label < n_classes; NULL without */
    char **classes;         /* [n_names]; NULL when unnamed */
    int n_names, n_classes; /* equal, or n_classes = 0 where there are names but no labels */
    char source[33];        /* 32 hex digits */
} pack_reader;

/* Headers and labels only. NOINPUT, PERM, FORMAT (not a pack, a shard missing, shards of different
 * packs, a label without a class), NOMEM, IO. */
ddpm_status pack_reader_open(const char *path, pack_reader **out);
void pack_reader_close(pack_reader *r); /* accepts NULL and half-built ones */

/* One image into dst [H,W,C]; allocates nothing, may be called from several threads. */
ddpm_status pack_reader_image(const pack_reader *r, int64_t index, uint8_t *dst);
/* All images into dst [N,H,W,C], each file's hashes checked first. */
ddpm_status pack_reader_all(const pack_reader *r, uint8_t *dst);

#endif

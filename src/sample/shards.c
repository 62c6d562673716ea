/* shards.c - names, ranges and arrays of shards, in one place for who writes, continues and merges them. */
#include "shards.h"

#include "fail.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 18 };

int64_t shard_first(int64_t n, int k, int shards)
{
    return (int64_t)((__int128)k * n / shards);
}

void shard_name(int k, int shards, char dst[SHARD_NAME_BYTES])
{
    snprintf(dst, SHARD_NAME_BYTES, "samples-%05d-of-%05d.npz", k, shards);
}

bool shard_of_name(const char *name, int *k, int *shards)
{
    char again[SHARD_NAME_BYTES];
    if (sscanf(name, "samples-%5d-of-%5d.npz", k, shards) != 2 || *k < 0 || *k >= *shards) return false;
    shard_name(*k, *shards, again);
    return strcmp(name, again) == 0;
}

void shard_merged_name(int64_t n, const shard_shape *shape, char dst[SHARD_NAME_BYTES])
{
    snprintf(dst, SHARD_NAME_BYTES, "samples_%" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64 ".npz", n, shape->h, shape->w,
             shape->c);
}

const char *shard_array(int which, const shard_shape *shape, uint64_t *row_bytes)
{
    static const char *const names[] = {"arr_0", "arr_1", "seeds"};
    const uint64_t bytes[] = {(uint64_t)(shape->h * shape->w * shape->c), sizeof(int64_t), 2 * sizeof(int64_t)};
    *row_bytes = bytes[which];
    return names[which];
}

ddpm_status shard_begin_array(npz_writer *w, int which, const shard_shape *shape, int64_t n)
{
    static const char *const dtypes[] = {"u1", "i8", "i8"};
    static const int ranks[] = {4, 1, 2};
    const int64_t extents[][4] = {{n, shape->h, shape->w, shape->c}, {n}, {n, 2}};
    uint64_t row_bytes;
    return npz_begin(w, shard_array(which, shape, &row_bytes), dtypes[which], ranks[which], extents[which]);
}

static ddpm_status check_rows(npz_file *f, const char *path, const char *name, int rank, int64_t n, bool *is_there)
{
    npz_array a;
    const ddpm_status s = npz_find(f, name, &a);
    *is_there = !s;
    if (s == DDPM_NOINPUT) return DDPM_OK;
    TRY(s);
    REQUIRE(strcmp(a.dtype, "i8") == 0 && a.rank == rank && a.shape[0] == n && (rank == 1 || a.shape[1] == 2), FORMAT,
            "%s: array %s does not belong to %" PRId64 " samples", path, name, n);
    return DDPM_OK;
}

static ddpm_status read_shape(npz_file *f, const char *path, shard_shape *shape, int64_t *n)
{
    npz_array a;
    bool has_seeds;
    const ddpm_status s = npz_find(f, "arr_0", &a);
    if (s == DDPM_NOINPUT) return FAIL(FORMAT, "%s: no array arr_0: not a file of samples", path);
    TRY(s);
    REQUIRE(strcmp(a.dtype, "u1") == 0 && a.rank == 4, FORMAT, "%s: arr_0 is %s of rank %d, not u1 [n,h,w,c]", path,
            a.dtype, a.rank);
    *n = a.shape[0];
    *shape = (shard_shape){.h = a.shape[1], .w = a.shape[2], .c = a.shape[3]};
    TRY(check_rows(f, path, "arr_1", 1, *n, &shape->has_labels));
    TRY(check_rows(f, path, "seeds", 2, *n, &has_seeds));
    REQUIRE(has_seeds, FORMAT, "%s: no array seeds: not made by `ddpm sample`", path);
    return DDPM_OK;
}

ddpm_status shard_open(const char *path, npz_file **out, shard_shape *shape, int64_t *n)
{
    npz_file *f;
    TRY(npz_open(path, &f));
    const ddpm_status s = read_shape(f, path, shape, n);
    if (s) {
        npz_close(f);
        return s;
    }
    *out = f;
    return DDPM_OK;
}

static ddpm_status check_seeds(const char *path, const int64_t *rows, int64_t count, int64_t first, bool *has_seed,
                               int64_t *seed)
{
    if (count > 0 && !*has_seed) {
        *seed = rows[0];
        *has_seed = true;
    }
    for (int64_t i = 0; i < count; i++) {
        REQUIRE(rows[2 * i + 1] == first + i, FORMAT, "%s: has sample %" PRId64 " where sample %" PRId64 " belongs: it is "
                "of another job", path, rows[2 * i + 1], first + i);
        REQUIRE(rows[2 * i] == *seed, FORMAT, "%s: is drawn with seed %" PRIu64 ", not %" PRIu64 ": it is of another job",
                path, (uint64_t)rows[2 * i], (uint64_t)*seed);
    }
    return DDPM_OK;
}

static ddpm_status check_array(npz_file *f, const char *path, int which, const shard_shape *shape, int64_t n,
                               int64_t first, int64_t *piece, bool *has_seed, int64_t *seed)
{
    uint64_t row;
    const char *name = shard_array(which, shape, &row);
    const uint64_t bytes = row * (uint64_t)n;
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) { /* a multiple of a row of seeds */
        const uint64_t take = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        TRY(npz_read(f, name, at, piece, take));
        if (which == 2)
            TRY(check_seeds(path, piece, (int64_t)(take / row), first + (int64_t)(at / row), has_seed, seed));
    }
    return DDPM_OK;
}

ddpm_status shard_check(npz_file *f, const char *path, const shard_shape *shape, int64_t n, int64_t first, bool *has_seed,
                        int64_t *seed)
{
    int64_t *piece = malloc(PIECE_BYTES);
    REQUIRE(piece, NOMEM, "%s: %d bytes to check it", path, PIECE_BYTES);
    ddpm_status s = DDPM_OK;
    for (int which = 0; which < 3 && !s; which++)
        if (which != 1 || shape->has_labels)
            s = check_array(f, path, which, shape, n, first, piece, has_seed, seed);
    free(piece);
    return s;
}

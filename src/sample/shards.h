/* shards.h - shards of a sampling job: their names, which samples they hold, and reading one back.
 *
 * Shard k of S holds samples k*n/S .. (k+1)*n/S - 1, in three arrays: arr_0 u1 [m,h,w,c], arr_1 i8 [m] of a conditional model,
 * seeds i8 [m,2] = (seed, index). */
#ifndef SAMPLE_SHARDS_H
#define SAMPLE_SHARDS_H

#include "ddpm/status.h"

#include "npz.h"

#include <stdbool.h>
#include <stdint.h>

enum { SHARD_NAME_BYTES = 64, SHARDS_MAX = 99999 };
#define SHARD_SAMPLES_MAX (INT64_C(1) << 40)

typedef struct {
    int64_t h, w, c;
    bool has_labels;
} shard_shape;

int64_t shard_first(int64_t n, int k, int shards);
/* "samples-00000-of-00128.npz"; false where a name is none. */
void shard_name(int k, int shards, char dst[SHARD_NAME_BYTES]);
bool shard_of_name(const char *name, int *k, int *shards);
/* "samples_50000x32x32x3.npz" */
void shard_merged_name(int64_t n, const shard_shape *shape, char dst[SHARD_NAME_BYTES]);

/* Opens and takes the arrays' extents, which must agree with each other: FORMAT. */
ddpm_status shard_open(const char *path, npz_file **out, shard_shape *shape, int64_t *n);
/* All of the file, so that every checksum is compared, and that its samples are (seed, first), (seed, first + 1), ...;
 * *seed is taken from the first row where it is there, else left. */
ddpm_status shard_check(npz_file *f, const char *path, const shard_shape *shape, int64_t n, int64_t first, bool *has_seed,
                        int64_t *seed);
/* Declares the arrays in their order, for n samples: which = 0, 1, 2. */
ddpm_status shard_begin_array(npz_writer *w, int which, const shard_shape *shape, int64_t n);
/* Name and bytes of a row of array `which`. */
const char *shard_array(int which, const shard_shape *shape, uint64_t *row_bytes);

#endif

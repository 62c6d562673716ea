/* npz.h - npz archives of .npy arrays, as NumPy writes and guided-diffusion exchanges them. */
#ifndef DATA_NPZ_H
#define DATA_NPZ_H

#include "ddpm/status.h"

#include <stdint.h>

/* Reader: accepts stored and deflated entries, C order, u1 i1 i2 i4 i8 u2 u4 f4 f8, little-endian; refuses object
 * arrays, encryption, overlapping entries, sizes that disagree with the header, names with '/' or "..". */
typedef struct npz_file npz_file;
typedef struct {
    char dtype[4]; /* "u1", "i8", "f4" */
    int rank;
    int64_t shape[8];
    uint64_t bytes;
} npz_array;

ddpm_status npz_open(const char *path, npz_file **out);
void npz_close(npz_file *f);
ddpm_status npz_find(npz_file *f, const char *name, npz_array *out); /* "arr_0"; NOINPUT when absent */
/* Bytes first .. first+bytes of the array's data; forward reads are cheap. */
ddpm_status npz_read(npz_file *f, const char *name, uint64_t first, void *dst, uint64_t bytes);

/* Writer: stored entries, zip64 where needed, written in order in bounded memory: arr_0 is streamed as the images come,
 * then arr_1. Committed by commit.h. The bytes depend on the contents alone (fixed dates). */
typedef struct npz_writer npz_writer;
ddpm_status npz_create(const char *path, npz_writer **out);
/* shape is known beforehand; data then comes in any pieces by npz_put until complete. dtype "u1", "i8", "f4", "f8". */
ddpm_status npz_begin(npz_writer *w, const char *name, const char *dtype, int rank, const int64_t *shape);
ddpm_status npz_put(npz_writer *w, const void *data, uint64_t bytes);
ddpm_status npz_finish(npz_writer *w); /* frees w in every case */
void npz_abandon(npz_writer *w);       /* accepts NULL */

#endif

/* safetensors.h - the one container: a stricter reader than the reference one, and a writer of a
 * strict subset of the format that any safetensors reader accepts.
 *
 * File: u64 LE header length, JSON header, data. Ours: keys sorted by byte, tensors in that order
 * without holes, header padded with spaces so that the data begins at a multiple of 8; metadata
 * "ddpm.xxh3.NAME" = XXH3-128 (32 hex digits) of each tensor's bytes, "ddpm.header" = XXH3-128 of
 * the header with that value as 32 zeros. Limits, all checked before anything is allocated: header
 * 16 MiB, 100,000 tensors, rank 8, name 512 bytes of valid UTF-8, JSON depth 4. Rejected, with the
 * byte offset: duplicate keys (also by escapes), overlaps, holes, trailing bytes, shape products
 * that overflow or disagree with the range, negative or fractional numbers, unknown dtypes or
 * fields. Reads by pread, never mmap. */
#ifndef CORE_SAFETENSORS_H
#define CORE_SAFETENSORS_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64
} st_dtype;

typedef struct {
    const char *name; /* owned by the file */
    st_dtype dtype;
    int rank;
    int64_t shape[8];
    uint64_t offset, bytes; /* offset from the start of the file */
} st_tensor;

size_t st_dtype_size(st_dtype d);
const char *st_dtype_name(st_dtype d); /* "F32" */

/* ---- reading ---- */
typedef struct st_file st_file;

/* NOINPUT, PERM, FORMAT (not ours to accept), NOMEM, IO. Reads the header only. A pickle or zip
 * file is named as such. */
ddpm_status st_open(const char *path, st_file **out);
void st_close(st_file *f); /* accepts NULL */
const char *st_path(const st_file *f);
int st_count(const st_file *f);
const st_tensor *st_at(const st_file *f, int i);              /* sorted by name */
const st_tensor *st_find(const st_file *f, const char *name); /* NULL when absent */
const char *st_metadata(const st_file *f, const char *key);   /* NULL when absent */
int st_metadata_count(const st_file *f);
void st_metadata_at(const st_file *f, int i, const char **key, const char **value);
bool st_has_hashes(const st_file *f);

/* Raw bytes [begin, begin+bytes) of the tensor. */
ddpm_status st_read(st_file *f, const st_tensor *t, uint64_t begin, void *dst, uint64_t bytes);
/* The whole tensor converted to f32 / f64 / i64; F16 and BF16 are widened. FORMAT on a lossy kind.
 */
ddpm_status st_read_f32(st_file *f, const st_tensor *t, float *dst);
ddpm_status st_read_f64(st_file *f, const st_tensor *t, double *dst);
ddpm_status st_read_i64(st_file *f, const st_tensor *t, int64_t *dst);
/* Every hash the file carries, header included. FORMAT names the first tensor that differs. */
ddpm_status st_verify(st_file *f);

/* ---- writing ---- */
typedef struct st_writer st_writer;

/* Declare all, then st_begin, then the data in any pieces but in the order of the names. */
ddpm_status st_writer_create(st_writer **out);
ddpm_status st_add(st_writer *w, const char *name, st_dtype dtype, int rank, const int64_t *shape);
ddpm_status st_add_metadata(st_writer *w, const char *key, const char *value);
/* Sorts, lays out, opens the temporary file. st_writer_at gives the order in which data must come.
 */
ddpm_status st_begin(st_writer *w, const char *path);
const st_tensor *st_writer_at(const st_writer *w, int i);
int st_writer_count(const st_writer *w);
ddpm_status st_put(st_writer *w, const void *data,
                   uint64_t bytes); /* continues the current tensor */
/* Patches the hashes into the header, verifies what the disk holds, commits. Frees w in every case.
 */
ddpm_status st_finish(st_writer *w);
void st_writer_abandon(st_writer *w); /* accepts NULL */

#endif

/* npy.h - the header of a .npy array. */
#ifndef DATA_NPY_H
#define DATA_NPY_H

#include "npz.h"

#include <stdbool.h>
#include <stddef.h>

enum { NPY_PREFIX = 12, NPY_MAX_HEADER = 1 << 16 };

/* How many bytes the header has, told by its first NPY_PREFIX bytes (fewer than that: FORMAT); at
 * most NPY_MAX_HEADER. */
ddpm_status npy_header_bytes(const char *name, const uint8_t *p, size_t bytes, size_t *header);
/* Reads a whole header. `name` is for the message. FORMAT: another magic, version, key or dtype,
 * Fortran order, object arrays, big-endian, rank above 8, extents that overflow. */
ddpm_status npy_parse(const char *name, const uint8_t *p, size_t header, npz_array *out);
/* Writes a version 1.0 header of a multiple of 64 bytes into dst[512]; tells its length. ARG on a
 * wrong dtype or shape. */
ddpm_status npy_format(const char *dtype, int rank, const int64_t *shape, char dst[512],
                       size_t *bytes);

/* 1, 2, 4, 8; 0 for a dtype that npz.h does not name. */
size_t npy_dtype_bytes(const char *dtype);

#endif

/* safetensors_header.h - the parsed header, between the parser, the reader and the writer of the
 * container. */
#ifndef CORE_SAFETENSORS_HEADER_H
#define CORE_SAFETENSORS_HEADER_H

#include "safetensors.h"

#include <xxhash.h>

enum {
    ST_MAX_HEADER = 16 << 20,
    ST_MAX_TENSORS = 100000,
    ST_MAX_RANK = 8,
    ST_MAX_NAME = 512,
    ST_MAX_KEY = 1024,                        /* of metadata: "ddpm.xxh3." and a name */
    ST_MAX_PAIRS = 2 * ST_MAX_TENSORS + 1000, /* of metadata */
    ST_HASH_DIGITS = 32
};

#define ST_METADATA    "__metadata__"
#define ST_HASH_PREFIX "ddpm.xxh3."
#define ST_SELF_HASH   "ddpm.header"

typedef struct {
    const char *key, *value;
} st_pair;

typedef struct {
    char *text;         /* owned; unescaped strings lie in it */
    st_tensor *tensors; /* owned; sorted by name */
    int n_tensors, tensor_room;
    st_pair *pairs; /* owned; sorted by key */
    int n_pairs, pair_room;
    bool has_hashes;
    size_t self_hash_at; /* byte of the header where the 32 digits of ST_SELF_HASH stand, as read */
} st_header;

/* Parses `bytes` bytes of header, followed in the file by data_bytes of data. Takes over `text`
 * (malloc'd, one byte longer than `bytes`) in every case. Offsets come out from the start of the
 * file. FORMAT, NOMEM. */
ddpm_status st_header_parse(char *text, size_t bytes, uint64_t data_bytes, st_header *out);
void st_header_release(st_header *h);                            /* accepts a half-built one */
const char *st_header_find(const st_header *h, const char *key); /* of metadata; NULL when absent */

/* 32 hex digits, most significant first, and a NUL: as Python's xxhash prints it. */
void st_hash_print(XXH128_hash_t hash, char hex[ST_HASH_DIGITS + 1]);

#endif

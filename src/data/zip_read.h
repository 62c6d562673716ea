/* zip_read.h - the strict part of zip that npz needs: a directory checked whole before use, and
 * entries read front to back with their CRC-32 checked at the end. */
#ifndef DATA_ZIP_READ_H
#define DATA_ZIP_READ_H

#include "ddpm/status.h"

#include <stdint.h>

typedef struct zip_file zip_file;
typedef struct {
    char *name;     /* owned by the file */
    uint64_t bytes; /* inflated */
} zip_entry;

/* Stored and deflated entries, zip64. NOINPUT, PERM, NOMEM, IO; FORMAT: encryption, several disks,
 * overlapping entries, names with '/', "\\", ".." or control characters, duplicate names, more than
 * 4096 entries, a local header that differs from the directory. */
ddpm_status zip_open(const char *path, zip_file **out);
void zip_close(zip_file *z); /* accepts NULL and half-built ones */
int zip_count(const zip_file *z);
const zip_entry *zip_at(const zip_file *z, int i);

/* Bytes first .. first+bytes of entry i, first + bytes <= its size. Going back starts the entry
 * anew. FORMAT where the data does not inflate to its size or its CRC-32 differs, seen when its
 * last byte is read. */
ddpm_status zip_read(zip_file *z, int i, uint64_t first, void *dst, uint64_t bytes);

#endif

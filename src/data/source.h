/* source.h - small things that the kinds of sources share. */
#ifndef DATA_SOURCE_H
#define DATA_SOURCE_H

#include "pack.h"

#include <stddef.h>

enum { SOURCE_MAX_SIDE = 16384 };

/* A growing list of strings, each owned. */
typedef struct {
    char **v;
    size_t n, room;
} name_list;

ddpm_status name_list_add(name_list *l, const char *text, size_t bytes);
void name_list_release(name_list *l);
/* Sorts by byte and drops what stands twice. */
void name_list_unique(name_list *l);
/* Where `text` stands in a sorted list; -1: nowhere. */
int64_t name_list_find(const name_list *l, const char *text, size_t bytes);

/* Opens a regular file for reading: *fd and its size. NOINPUT, PERM; FORMAT for folders, devices
 * and pipes, which are never waited for. Messages name `path`. */
ddpm_status source_open_file(const char *path, int *fd, int64_t *bytes);
/* Reads `bytes` bytes at `at` of a file from source_open_file. */
ddpm_status source_read_at(int fd, const char *path, int64_t at, void *dst, size_t bytes);

/* Class names "0" .. "n-1" into out->classes. */
ddpm_status source_number_classes(pack_source *out, int n);
/* Class names from a text file of one name a line, which must have n of them; leaves `out` alone
 * when there is no such file. */
ddpm_status source_named_classes(pack_source *out, const char *path, int n);
/* What every source's close ends with: frees classes and labels, clears the struct. */
void source_release(pack_source *s);

#endif

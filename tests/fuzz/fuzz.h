/* fuzz.h - what fuzz targets share: a file in memory that is given new contents for each input, and
 * a check that counts as a finding when it fails. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* Path of a file that holds `head` and then `data`. Valid until the next call. */
static inline const char *fuzz_file(const void *head, size_t head_bytes, const uint8_t *data,
                                    size_t bytes)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        FUZZ_CHECK(fd >= 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    FUZZ_CHECK(ftruncate(fd, 0) == 0);
    FUZZ_CHECK(pwrite(fd, head, head_bytes, 0) == (ssize_t)head_bytes);
    FUZZ_CHECK(pwrite(fd, data, bytes, (off_t)head_bytes) == (ssize_t)bytes);
    return path;
}

#endif

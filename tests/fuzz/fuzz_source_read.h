/* fuzz_source_read.h - one source of images from its opening to its last image. */
#ifndef FUZZ_SOURCE_READ_H
#define FUZZ_SOURCE_READ_H

#include "fuzz_source.h"

#include "pack.h"

typedef ddpm_status (*source_opener)(const char *path, const pack_options *o, pack_source *out);

static inline void fuzz_source_read(const uint8_t *data, size_t size, source_opener open_source)
{
    char path[64];
    const pack_options o = {0};
    pack_source s;
    const int fd = fuzz_file(data, size, path);
    if (open_source(path, &o, &s) == DDPM_OK) {
        const size_t bytes = (size_t)s.height * (size_t)s.width * (size_t)s.channels;
        uint8_t *image = bytes <= 1 << 24 ? malloc(bytes) : NULL;
        for (int64_t i = 0; image && i < s.n && i < 64; i++)
            if (s.read(&s, i, 1, image) != DDPM_OK) break;
        if (image) s.read(&s, s.n - 1, 1, image);
        if (image && s.n > 1) s.read(&s, 0, 1, image); /* and back */
        free(image);
        s.close(&s);
    }
    close(fd);
}

#endif

/* fuzz_npz.c - any bytes as an npz archive: its arrays by name, and as a source of images. */
#include "fuzz_source_read.h"

#include "npz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    uint8_t piece[1024];
    npz_file *f = NULL;
    npz_array a;
    const int fd = fuzz_file(data, size, path);
    if (npz_open(path, &f) == DDPM_OK) {
        if (npz_find(f, "arr_0", &a) == DDPM_OK)
            for (uint64_t at = 0; at < a.bytes && at < 1 << 20; at += sizeof piece) {
                const uint64_t left = a.bytes - at;
                if (npz_read(f, "arr_0", at, piece, left < sizeof piece ? left : sizeof piece))
                    break;
            }
        if (npz_find(f, "arr_1", &a) == DDPM_OK && a.bytes <= sizeof piece)
            npz_read(f, "arr_1", 0, piece, a.bytes);
        npz_close(f);
    }
    close(fd);
    fuzz_source_read(data, size, source_open_npz);
    return 0;
}

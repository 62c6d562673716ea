/* fuzz_idx.c - any bytes as an idx file, gzipped or not. */
#include "fuzz_source_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_source_read(data, size, source_open_idx);
    return 0;
}

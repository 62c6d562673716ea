/* fuzz_cifar.c - any bytes as a CIFAR batch: as they are, and repeated to whole records of either
 * kind. */
#include "fuzz_source_read.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t records[2] = {3073, 3074};
    uint8_t batch[3 * 3074];
    fuzz_source_read(data, size, source_open_cifar);
    for (size_t k = 0; size && k < 2; k++) {
        const size_t bytes = (1 + data[0] % 3) * records[k];
        for (size_t at = 0; at < bytes; at += size)
            memcpy(batch + at, data, size < bytes - at ? size : bytes - at);
        fuzz_source_read(batch, bytes, source_open_cifar);
    }
    return 0;
}

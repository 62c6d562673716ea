/* gpu_device.h - a GPU as `ddpm plan` knows it: by name, or by a file of its properties. */
#ifndef CLI_GPU_DEVICE_H
#define CLI_GPU_DEVICE_H

#include "ddpm/status.h"

#include <stdint.h>

struct gpu_device {
    char name[96];
    char *json; /* its properties, as cuDNN has them; owned */
    int64_t memory_bytes;
    double bytes_per_s;                   /* of its memory, by clock and width */
    double bf16_flops, tf32_flops, f32_flops; /* per second, by the maker's rating; 0 where none is known */
};

/* "h100" and the like (devices/, compiled in), or a file written by `ddpm plan --write-properties`. ARG for a name that is
 * neither, NOINPUT, FORMAT with what is missing. */
ddpm_status gpu_device_find(const char *name_or_file, struct gpu_device *out);
void gpu_device_release(struct gpu_device *d);

#endif

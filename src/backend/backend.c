/* backend.c - the device object as callers see it: which device a name means, its memory, and what has been allocated.
 *
 * What a device can do lives behind `struct backend_device` (backend_internal.h), so that another kind of device is
 * another file and no change here but one line in ddpm_backend_create. */
#include "backend_internal.h"

#include "fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "cuda" or "cuda:N" */
static bool is_cuda_name(const char *device)
{
    if (strncmp(device, "cuda", 4) != 0) return false;
    if (device[4] == '\0') return true;
    if (device[4] != ':' || device[5] == '\0' || strlen(device + 5) > 4) return false;
    return strspn(device + 5, "0123456789") == strlen(device + 5);
}

ddpm_status ddpm_backend_create(const char *device, int threads, ddpm_backend **out)
{
    *out = NULL;
    REQUIRE(threads >= 0, ARG, "--threads %d: must be 0 (all) or more", threads);
#ifdef DDPM_CUDA
    if (!device) device = cuda_is_available() ? "cuda" : "cpu";
#endif
    if (!device || strcmp(device, "cpu") == 0) return cpu_backend_create(threads, out);
    REQUIRE(is_cuda_name(device), ARG, "device \"%s\": known are \"cpu\", \"cuda\" and \"cuda:N\"", device);
#ifdef DDPM_CUDA
    return cuda_backend_create(device[4] ? atoi(device + 5) : 0, threads, out); /* at most four digits */
#else
    return FAIL(BACKEND, "device \"%s\": this build has no CUDA backend; use --device cpu", device);
#endif
}

void ddpm_backend_free(ddpm_backend *be)
{
    if (be) be->device->free(be);
}

const char *ddpm_backend_name(const ddpm_backend *be)
{
    return be->name;
}

bool ddpm_backend_is_cpu(const ddpm_backend *be)
{
    return be->is_cpu;
}

bool ddpm_backend_takes_bf16(const ddpm_backend *be)
{
    return be->takes_bf16;
}

int ddpm_backend_threads(const ddpm_backend *be)
{
    return be->threads;
}

double ddpm_backend_rated_flops(const ddpm_backend *be)
{
    return be->device->rated_flops ? be->device->rated_flops(be) : 0;
}

void ddpm_backend_configure(ddpm_backend *be, const ddpm_backend_options *options)
{
    be->options = *options;
}

ddpm_backend_options ddpm_backend_configuration(const ddpm_backend *be)
{
    return be->options;
}

const char *ddpm_backend_notice(const ddpm_backend *be, int i)
{
    return i >= 0 && i < be->n_notices ? be->notices[i] : NULL;
}

void backend_note(ddpm_backend *be, const char *format, ...)
{
    if (be->n_notices == BACKEND_NOTICES) return;
    va_list args;
    va_start(args, format);
    vsnprintf(be->notices[be->n_notices++], sizeof be->notices[0], format, args);
    va_end(args);
}

ddpm_status ddpm_backend_alloc(ddpm_backend *be, size_t bytes, void **out)
{
    *out = NULL;
    return be->device->alloc(be, bytes, out);
}

void ddpm_backend_release(ddpm_backend *be, void *block)
{
    if (block) be->device->release(be, block);
}

ddpm_status ddpm_backend_reserve_uploads(ddpm_backend *be, size_t bytes)
{
    return be->device->reserve_uploads ? be->device->reserve_uploads(be, bytes) : DDPM_OK;
}

ddpm_status ddpm_backend_upload(ddpm_backend *be, void *device, const void *host, size_t bytes)
{
    return bytes ? be->device->upload(be, device, host, bytes) : DDPM_OK;
}

ddpm_status ddpm_backend_download(ddpm_backend *be, void *host, const void *device, size_t bytes)
{
    return bytes ? be->device->download(be, host, device, bytes) : DDPM_OK;
}

ddpm_status ddpm_backend_zero(ddpm_backend *be, void *device, size_t bytes)
{
    return bytes ? be->device->zero(be, device, bytes) : DDPM_OK;
}

ddpm_status ddpm_backend_sync(ddpm_backend *be)
{
    return be->device->sync(be);
}

ddpm_status ddpm_backend_memory_available(ddpm_backend *be, size_t *out)
{
    return be->device->available(be, out);
}

void ddpm_backend_measure(ddpm_backend *be, bool on)
{
    be->is_measuring = on;
}

size_t ddpm_backend_scratch_bytes(const ddpm_backend *be)
{
    return be->scratch_bytes;
}

void ddpm_backend_freeze_weights(ddpm_backend *be, bool on)
{
    be->is_frozen = on;
    be->device->freeze_weights(be, on);
}

size_t ddpm_backend_memory(const ddpm_backend *be)
{
    return be->memory;
}

size_t ddpm_backend_memory_peak(const ddpm_backend *be)
{
    return be->memory_peak;
}

void backend_count(ddpm_backend *be, size_t bytes)
{
    be->memory += bytes;
    if (be->memory > be->memory_peak) be->memory_peak = be->memory;
}

void backend_uncount(ddpm_backend *be, size_t bytes)
{
    be->memory -= bytes;
}

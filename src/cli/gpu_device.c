/* gpu_device.c - properties of GPUs: those compiled in (devices/), and files. */
#include "gpu_device.h"

#include "fail.h"
#include "gpu_devices.h" /* made by CMake from devices */
#include "gpu_rating.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 65536 };

static ddpm_status read_file(const char *path, char **out)
{
    FILE *f = fopen(path, "re");
    if (!f) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    char *text = malloc(FILE_MAX + 1);
    const size_t n = text ? fread(text, 1, FILE_MAX + 1, f) : 0;
    fclose(f);
    REQUIRE(text, NOMEM, "%s: %d bytes to read it", path, FILE_MAX);
    if (n > FILE_MAX) {
        free(text);
        return FAIL(FORMAT, "%s: longer than a GPU's properties can be", path);
    }
    text[n] = '\0';
    *out = text;
    return DDPM_OK;
}

static const char *compiled_in(const char *name)
{
    for (size_t i = 0; i < sizeof gpu_devices / sizeof *gpu_devices; i++)
        if (strcmp(gpu_devices[i].name, name) == 0) return gpu_devices[i].json;
    return NULL;
}

static ddpm_status member(const json_t *all, const char *what, const char *name, double *out)
{
    const json_t *v = json_object_get(all, name);
    REQUIRE(json_is_number(v) && json_number_value(v) > 0, FORMAT, "%s: \"%s\" is missing or not a positive number", what, name);
    *out = json_number_value(v);
    return DDPM_OK;
}

static ddpm_status interpret(const json_t *all, const char *what, struct gpu_device *d)
{
    double sms, version, memory, clock_khz, bits;
    TRY(member(all, what, "multiProcessorCount", &sms));
    TRY(member(all, what, "deviceVer", &version));
    TRY(member(all, what, "totalGlobalMem", &memory));
    TRY(member(all, what, "memClockRateKHz", &clock_khz));
    TRY(member(all, what, "memoryBusWidth", &bits));
    const char *name = json_string_value(json_object_get(all, "deviceName"));
    REQUIRE(name, FORMAT, "%s: \"deviceName\" is missing", what);
    snprintf(d->name, sizeof d->name, "%s", name);
    REQUIRE(memory < 1e15, FORMAT, "%s: \"totalGlobalMem\" is %g bytes", what, memory);
    d->memory_bytes = (int64_t)memory;
    d->bytes_per_s = 2 * clock_khz * 1e3 * bits / 8; /* two transfers a clock */
    struct gpu_rating r;
    if (version < 1e6 && gpu_rating_of((int)version / 100, (int)version % 100 / 10, &r)) {
        d->bf16_flops = sms * r.bf16_per_clock * r.mhz * 1e6;
        d->tf32_flops = d->bf16_flops / 2;
        d->f32_flops = sms * r.f32_per_clock * r.mhz * 1e6;
    }
    return DDPM_OK;
}

ddpm_status gpu_device_find(const char *name, struct gpu_device *out)
{
    const char *known = compiled_in(name);
    struct gpu_device d = {.json = known ? strdup(known) : NULL};
    REQUIRE(!known || d.json, NOMEM, "--gpu %s: no memory for its properties", name);
    REQUIRE(known || strpbrk(name, "./"), ARG, "--gpu %s: known are %s, or a file of a GPU's properties", name, GPU_DEVICE_NAMES);
    if (!known) TRY(read_file(name, &d.json));
    json_error_t e;
    json_t *all = json_loads(d.json, JSON_REJECT_DUPLICATES, &e);
    ddpm_status s = DDPM_OK;
    if (!json_is_object(all))
        s = FAIL(FORMAT, "%s: line %d: %s", name, e.line, all ? "not an object" : e.text);
    else
        s = interpret(all, name, &d);
    json_decref(all);
    if (s)
        gpu_device_release(&d);
    else
        *out = d;
    return s;
}

void gpu_device_release(struct gpu_device *d)
{
    free(d->json);
    d->json = NULL;
}

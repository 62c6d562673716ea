/* context.c - which device, and the object that stands for it.
 *
 * Asked for by name a device that cannot be used is an error that says why: no driver, a driver older than this build's
 * runtime, fewer devices than that, a device older than the kernels. Asked for by nobody (a NULL name) the same things
 * mean that there is no GPU, and the CPU takes over without a word; cuda_is_available answers that.
 *
 * Both streams are non-blocking: the legacy default stream, which a library in the same process may use, must not
 * serialise with them. Waiting spins as CUDA chooses: a step ends within microseconds of when it is waited for. */
#include "cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAPABILITY_MAJOR = 8 }; /* bf16 arithmetic and asynchronous copies begin with compute capability 8.0 */

bool cuda_is_available(void)
{
    int n = 0;
    struct cudaDeviceProp p;
    if (cudaGetDeviceCount(&n) || n < 1 || cudaGetDeviceProperties(&p, 0)) {
        (void)cudaGetLastError();
        return false;
    }
    return p.major >= CAPABILITY_MAJOR;
}

static ddpm_status no_driver(int ordinal)
{
    int driver = 0, runtime = 0;
    if (cudaDriverGetVersion(&driver) || cudaRuntimeGetVersion(&runtime)) (void)cudaGetLastError();
    REQUIRE(driver > 0, BACKEND, "device \"cuda:%d\": no NVIDIA driver is loaded; use --device cpu", ordinal);
    return FAIL(BACKEND,
                "device \"cuda:%d\": the driver is for CUDA %d.%d and older than this build, which needs %d.%d: "
                "update the driver, or use --device cpu",
                ordinal, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

static ddpm_status no_device(int ordinal, int n)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char why[160] = "";
    if (visible) snprintf(why, sizeof why, " (CUDA_VISIBLE_DEVICES=\"%.100s\")", visible);
    REQUIRE(n > 0, BACKEND, "device \"cuda:%d\": there is no GPU that CUDA can see%s; use --device cpu", ordinal, why);
    return FAIL(BACKEND, "device \"cuda:%d\": CUDA sees %d GPU%s%s, numbered from 0; use one of those, or --device cpu",
                ordinal, n, n == 1 ? "" : "s", why);
}

static ddpm_status select_device(struct cuda_backend *be)
{
    int n = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e) (void)cudaGetLastError();
    if (e == cudaErrorInsufficientDriver) return no_driver(be->ordinal);
    if (e == cudaErrorNoDevice || (!e && be->ordinal >= n)) return no_device(be->ordinal, e ? 0 : n);
    TRY(cuda_check(be, "devices", e));

    struct cudaDeviceProp *p = &be->properties;
    TRY(cuda_check(be, "device", cudaGetDeviceProperties(p, be->ordinal)));
    REQUIRE(p->major >= CAPABILITY_MAJOR, BACKEND,
            "device \"cuda:%d\": %.96s has compute capability %d.%d, the kernels need %d.0 or later; use --device cpu",
            be->ordinal, p->name, p->major, p->minor, CAPABILITY_MAJOR);
    return cuda_enter(be);
}

static ddpm_status name_device(struct cuda_backend *be)
{
    int runtime = 0, driver = 0;
    TRY(cuda_check(be, "device", cudaRuntimeGetVersion(&runtime)));
    TRY(cuda_check(be, "device", cudaDriverGetVersion(&driver)));
    const struct cudaDeviceProp *p = &be->properties;
    snprintf(be->base.name, sizeof be->base.name, "cuda:%d %.96s, %d SMs, %.1f GiB, CUDA %d.%d driver %d.%d",
             be->ordinal, p->name, p->multiProcessorCount, (double)p->totalGlobalMem / 0x1p30, runtime / 1000,
             runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
    return DDPM_OK;
}

static void cuda_free(ddpm_backend *base)
{
    struct cuda_backend *be = cuda_of(base);
    cuda_side_free(be);
    products_free(be);
    cuda_scratch_free(be);
    if (be->copy) (void)cudaStreamSynchronize(be->copy); /* nothing may use what goes now */
    if (be->stream) (void)cudaStreamSynchronize(be->stream);
    cuda_staging_free(be);
    if (be->copy) (void)cudaStreamDestroy(be->copy);
    if (be->stream) (void)cudaStreamDestroy(be->stream);
    (void)cudaGetLastError(); /* of all these: nobody is left to tell */
    free(be);
}

static void cuda_freeze(ddpm_backend *be, bool on)
{
    (void)be; /* no packed copies of weights are kept */
    (void)on;
}

static const struct backend_device cuda_device = {
    .free = cuda_free,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .reserve_uploads = cuda_reserve_uploads,
    .upload = cuda_upload,
    .download = cuda_download,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .available = cuda_available,
    .freeze_weights = cuda_freeze,
    .can_record = cuda_can_record,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .record_launch = cuda_record_launch,
    .record_free = cuda_record_free,
    .rated_flops = cuda_rated_flops,
};

ddpm_status cuda_backend_create(int ordinal, int threads, ddpm_backend **out)
{
    ddpm_status s = DDPM_OK;
    struct cuda_backend *be = calloc(1, sizeof *be);
    REQUIRE(be, NOMEM, "CUDA backend: %zu bytes", sizeof *be);
    const char *sync = getenv("DDPM_SYNC");
    be->base.device = &cuda_device;
    be->base.table = &cuda_ops;
    be->base.threads = threads ? threads : 1; /* no op runs on the host */
    be->base.takes_bf16 = true;
    be->ordinal = ordinal;
    be->syncs_each_op = sync && strcmp(sync, "1") == 0;

    TRY_GOTO(fail, select_device(be));
    TRY_GOTO(fail, name_device(be));
    TRY_GOTO(fail, cuda_check(be, "stream", cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking)));
    TRY_GOTO(fail, cuda_check(be, "stream", cudaStreamCreateWithFlags(&be->copy, cudaStreamNonBlocking)));
    TRY_GOTO(fail, cuda_staging_create(be));
    TRY_GOTO(fail, products_create(be));
    *out = &be->base;
    return DDPM_OK;
fail:
    cuda_free(&be->base);
    return s;
}

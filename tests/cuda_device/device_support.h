/* device_support.h - the device on the runtime's stand-in, one of it, with 1 GiB that the host cannot touch. */
#ifndef TESTS_DEVICE_SUPPORT_H
#define TESTS_DEVICE_SUPPORT_H

#include "support.h"

#include "control.h"
#include "cuda_backend.h"

static inline ddpm_backend *create(void)
{
    ddpm_backend *be = NULL;
    assert_ok(ddpm_backend_create("cuda", 0, &be));
    return be;
}

static inline void *taken(ddpm_backend *be, size_t bytes)
{
    void *p = NULL;
    assert_ok(ddpm_backend_alloc(be, bytes, &p));
    assert_non_null(p);
    return p;
}

enum { VALUES = 1000 };

/* y = a + b by the table. */
static inline ddpm_status add(ddpm_backend *be, void *a, void *b, void *y)
{
    const ddpm_tensor ta = ddpm_tensor_1d(a, VALUES), tb = ddpm_tensor_1d(b, VALUES);
    ddpm_tensor ty = ddpm_tensor_1d(y, VALUES);
    return backend_ops(be)->add(be, &(struct add_args){.a = &ta, .b = &tb, .y = &ty});
}

/* After a sticky error: as a new process finds the device. */
static inline void device_heal(void)
{
    cuda_on_cpu_fail_call(0, cudaSuccess, false);
    (void)cudaDeviceReset(); /* gives the error once more */
    (void)cudaGetLastError();
}

static inline int device_begin(void **state)
{
    (void)state;
    cuda_on_cpu_devices(1);
    cuda_on_cpu_memory((size_t)1 << 30);
    cuda_on_cpu_guard(true);
    unsetenv("DDPM_SYNC");
    return 0;
}

/* With a folder for files as *state, and no choices of engines kept from elsewhere. */
static inline int device_begin_with_folder(void **state)
{
    device_begin(state);
    setenv("DDPM_CACHE", "", 1);
    return support_setup(state);
}

#endif

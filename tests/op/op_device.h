/* op_device.h - the device that tests of ops run on: DDPM_TEST_DEVICE, else the CPU. With another device than the CPU its
 * memory must be visible to the host, and DDPM_SYNC=1 must make each op wait. */
#ifndef TESTS_OP_DEVICE_H
#define TESTS_OP_DEVICE_H

#include <stdlib.h>
#include <string.h>

static inline const char *op_device(void)
{
    const char *device = getenv("DDPM_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

/* Numbers of threads are the CPU's matter, and so are all shapes with each: elsewhere two runs of some shapes show that a call
 * gives the same bits again. */
static inline int op_most_threads(void)
{
    return strcmp(op_device(), "cpu") == 0 ? 3 : 2;
}

static inline int op_shape_step(void)
{
    return strcmp(op_device(), "cpu") == 0 ? 1 : 4;
}

#endif

/* op_device.h - the device that tests of ops run on: DDPM_TEST_DEVICE, else the CPU. With another device than the CPU its
 * memory must be visible to the host, and DDPM_SYNC=1 must make each op wait. */
#ifndef TESTS_OP_DEVICE_H
#define TESTS_OP_DEVICE_H

#include <stdlib.h>

static inline const char *op_device(void)
{
    const char *device = getenv("DDPM_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

#endif

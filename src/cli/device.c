/* device.c - the options that train, sample and bench share: which device, and how it may compute. */
#include "cli.h"

bool cli_device_parse(cli_device *d, int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case CLI_KEY_DEVICE:
        d->name = arg;
        return true;
    case CLI_KEY_THREADS:
        d->threads = (int)cli_integer(state, "--threads", arg, 1, 4096);
        return true;
    case CLI_KEY_DETERMINISTIC:
        d->options.is_deterministic = true;
        return true;
    case CLI_KEY_NO_GRAPH:
        d->options.keeps_calls_apart = true;
        return true;
    default:
        return false;
    }
}

ddpm_status cli_device_create(const cli_device *d, ddpm_backend **out)
{
    const ddpm_status s = ddpm_backend_create(d->name, d->threads, out);
    if (!s) ddpm_backend_configure(*out, &d->options);
    return s;
}

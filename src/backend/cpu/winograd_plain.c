/* winograd_plain.c - 4 channels at a time: what every processor's compiler has vectors for. */
#define TARGET
#define LANES 4
#include "winograd_lanes.h"

const struct winograd *winograd_plain(void)
{
    return &transforms;
}

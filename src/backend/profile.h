/* profile.h - how often each op ran, for how long, and how much it computed: the table of `bench`. */
#ifndef BACKEND_PROFILE_H
#define BACKEND_PROFILE_H

#include "ddpm/backend.h"

struct profile_entry {
    const char *name; /* as in OP_LIST; borrowed, lives for ever */
    uint64_t calls;
    double seconds; /* wall time, the device waited for */
    double flops;   /* 2 per multiply-add of the definition (not of the algorithm); 0 for ops without a product */
};

/* on: clears the table and starts to time every op, waiting for the device after each. Off: stops; the table stays. */
void backend_profile(ddpm_backend *be, bool on);
/* The i-th op of OP_LIST; false behind the last. */
bool backend_profile_at(const ddpm_backend *be, int i, struct profile_entry *out);

#endif

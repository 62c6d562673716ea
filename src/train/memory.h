/* memory.h - how much memory this process may still take. */
#ifndef TRAIN_MEMORY_H
#define TRAIN_MEMORY_H

#include <stdint.h>

/* The least of what the machine has free, what RLIMIT_AS leaves and what the control groups leave;
 * *limit names which one that is (a constant string). UINT64_MAX where nothing can be read. */
uint64_t memory_available(const char **limit);

#endif

/* races.h - what the block runner tells the race checker (races.cpp). Nothing happens unless kernels are
 * instrumented. */
#ifndef CUDA_ON_CPU_RACES_H
#define CUDA_ON_CPU_RACES_H

#include <stddef.h>

namespace cuda_on_cpu {

extern bool races_checked; /* some kernel is compiled with -fsanitize=thread */

void races_begin_block();
void races_shared(void *array, size_t bytes, const char *name);
void races_barrier();                                 /* all threads of the block have met */
void races_syncwarp(unsigned warp, unsigned lanes);   /* these lanes have met in __syncwarp */
void races_end_block();
/* An atomic operation of the running thread. */
void races_atomic(const volatile void *p, size_t bytes);

} // namespace cuda_on_cpu

#endif

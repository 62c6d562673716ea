/* poison.h - ASan's marks on memory that nobody may touch; nothing without ASan. */
#ifndef CUDA_ON_CPU_POISON_H
#define CUDA_ON_CPU_POISON_H

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

#endif

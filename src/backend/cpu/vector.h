/* vector.h - how a loop of the CPU backend gets the machine's vectors without asking for more than the machine has.
 *
 * CPU_CLONES before a function makes gcc compile it for AVX-512, AVX2 with FMA, and plain x86-64, and choose when the
 * program is loaded. It belongs on a row function called from a task, never on a function that holds an OpenMP region: the outlined
 * body would lose it. All clones give the same bits: formulas.h spells every fused multiply-add, and sums
 * run over lanes that the code names (CPU_LANES), not over as many as the vector has.
 *
 * ASan and TSan start too late for the resolvers that the choice needs; under them, and on other compilers and
 * processors, the function is compiled once. */
#ifndef BACKEND_CPU_VECTOR_H
#define BACKEND_CPU_VECTOR_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CPU_CLONES                                                                                 \
    __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CPU_CLONES __attribute__((noinline))
#endif

/* Inlined into each clone, so that it is compiled for that clone's processor. */
#define CPU_INLINE static inline __attribute__((always_inline))

/* A reduction keeps this many partial sums, element i in lane i % CPU_LANES, and adds them as a tree. */
#define CPU_LANES 16

CPU_INLINE float cpu_lanes_sum(float *lane)
{
    for (int half = CPU_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

CPU_INLINE double cpu_lanes_sum64(double *lane)
{
    for (int half = CPU_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static inline int64_t cpu_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t cpu_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif

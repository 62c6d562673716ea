/* schedule.cpp - forward, reverse or random, and the generator behind the last (splitmix64: one add and three mixes). */
#include "schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace cuda_on_cpu {

static uint64_t state = 1;

static enum cuda_on_cpu_order order_from_environment()
{
    const char *seed = getenv("CUDA_ON_CPU_SEED"), *name = getenv("CUDA_ON_CPU_SCHEDULE");
    if (seed) state = strtoull(seed, nullptr, 10);
    if (!name || !strcmp(name, "forward")) return CUDA_ON_CPU_FORWARD;
    if (!strcmp(name, "reverse")) return CUDA_ON_CPU_REVERSE;
    if (!strcmp(name, "random")) return CUDA_ON_CPU_RANDOM;
    fprintf(stderr, "cuda_on_cpu: CUDA_ON_CPU_SCHEDULE=%s is none of forward, reverse, random\n", name);
    abort();
}

enum cuda_on_cpu_order current_order = order_from_environment();

uint64_t schedule_draw(uint64_t n)
{
    uint64_t x = state += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return n <= UINT32_MAX ? (x >> 32) * n >> 32 : x % n;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

permutation::permutation(uint64_t count) : n(count), step(1), shift(0), is_down(current_order == CUDA_ON_CPU_REVERSE)
{
    if (current_order != CUDA_ON_CPU_RANDOM || n < 2 || n > UINT32_MAX) return;
    shift = schedule_draw(n);
    do {
        step = 1 + schedule_draw(n - 1);
    } while (common_divisor(step, n) != 1);
}

} // namespace cuda_on_cpu

extern "C" void cuda_on_cpu_schedule(enum cuda_on_cpu_order order, uint64_t seed)
{
    cuda_on_cpu::current_order = order;
    cuda_on_cpu::state = seed;
}

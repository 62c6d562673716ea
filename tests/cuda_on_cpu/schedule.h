/* schedule.h - the order chosen by cuda_on_cpu_schedule or the environment, its random numbers, and permutations by
 * it. */
#ifndef CUDA_ON_CPU_SCHEDULE_H
#define CUDA_ON_CPU_SCHEDULE_H

#include "control.h"

#include <stdint.h>

namespace cuda_on_cpu {

extern enum cuda_on_cpu_order current_order;

static inline enum cuda_on_cpu_order schedule_order()
{
    return current_order;
}

/* Uniform in [0, n), 0 < n < 2^32 (beyond: some number below n). */
uint64_t schedule_draw(uint64_t n);

/* The numbers 0 .. n-1 in the schedule's order, without a table: (step * i + shift) mod n, with step prime to n. */
class permutation
{
  public:
    explicit permutation(uint64_t n);
    uint64_t at(uint64_t i) const
    {
        return is_down ? n - 1 - i : (step * i + shift) % n;
    }

  private:
    uint64_t n, step, shift;
    bool is_down;
};

} // namespace cuda_on_cpu

#endif

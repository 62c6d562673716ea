/* fibers.h - stacks that hand the processor to each other by name. One switch is a dozen instructions on x86-64. */
#ifndef CUDA_ON_CPU_FIBERS_H
#define CUDA_ON_CPU_FIBERS_H

#include <stddef.h>

#if !defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT
#endif

#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

struct fiber {
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer;
#endif
    const void *stack; /* lowest address; of the thread that runs the block, known to ASan builds only */
    size_t stack_bytes;
    void *fake_stack; /* ASan's, while the fiber is off */
};

/* A fiber that begins in entry(), which never returns, at the first switch to it. Aborts where no stack can be had. */
fiber *fiber_create(void (*entry)());
/* In the child of a fork: the fibers there were have no stacks any more. */
void fibers_after_fork();
/* First thing in entry(). */
void fiber_begin();
/* Saves the running fiber in `from` and goes on in `to`. For the stack it was called on, `from` may be all zero. */
void fiber_switch(fiber *from, fiber *to);

} // namespace cuda_on_cpu

#endif

/* fibers.cpp - stack switches: by hand on x86-64, by ucontext elsewhere (or with -DCUDA_ON_CPU_UCONTEXT).
 *
 * swapcontext saves the signal mask, a system call each way, which made a barrier ten times as dear; it is left to
 * CPUs for which nobody has written the other. ASan is told of each switch, or it takes the new stack for an overflow
 * of the old. */
#include "fibers.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

static constexpr size_t STACK_BYTES = 256 << 10; /* reserved, not used: kernels under -O0 and ASan have large frames */
static constexpr size_t GUARD_BYTES = 4096;

static fiber *switched_from;

#ifdef __SANITIZE_ADDRESS__

static void before_switch(fiber *from, fiber *to)
{
    switched_from = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
}

static void after_switch(fiber *self)
{
    const void *stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(self ? self->fake_stack : nullptr, &stack, &bytes);
    switched_from->stack = stack; /* how the bounds of the first stack, which nobody made here, become known */
    switched_from->stack_bytes = bytes;
}

#else

static void before_switch(fiber *from, fiber *)
{
    switched_from = from;
}

static void after_switch(fiber *)
{
}

#endif

void fiber_begin()
{
    after_switch(nullptr);
}

/* Stacks come from slabs, for a thousand mappings make a fork slow; it leaves them out. */
static constexpr size_t SLAB_STACKS = 64;
static unsigned char *slab;
static size_t slab_left;

/* A page that nobody may touch, without a mapping of its own where the kernel (6.13) can do that. */
static bool guard(void *page)
{
    constexpr int GUARD_INSTALL = 102; /* MADV_GUARD_INSTALL, which headers may not have */
    return madvise(page, GUARD_BYTES, GUARD_INSTALL) == 0 || mprotect(page, GUARD_BYTES, PROT_NONE) == 0;
}

static bool slab_create()
{
    const size_t bytes = SLAB_STACKS * STACK_BYTES;
    void *all = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED || madvise(all, bytes, MADV_DONTFORK)) return false;
    slab = static_cast<unsigned char *>(all);
    slab_left = SLAB_STACKS;
    return true;
}

static unsigned char *stack_create()
{
    unsigned char *stack = slab_left || slab_create() ? slab + --slab_left * STACK_BYTES : nullptr;
    if (!stack || !guard(stack)) {
        perror("cuda_on_cpu: no stack for a thread");
        abort();
    }
    return stack;
}

void fibers_after_fork()
{
    slab_left = 0;
}

#ifdef CUDA_ON_CPU_UCONTEXT

fiber *fiber_create(void (*entry)())
{
    fiber *f = new fiber();
    unsigned char *stack = stack_create();
    f->stack = stack;
    f->stack_bytes = STACK_BYTES;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
    return f;
}

void fiber_switch(fiber *from, fiber *to)
{
    before_switch(from, to);
    swapcontext(&from->context, &to->context);
    after_switch(from);
}

#else

/* What the ABI lets a callee keep is pushed on the old stack and popped from the new one. */
extern "C" void cuda_on_cpu_switch(void **save_stack_pointer, void *stack_pointer);
asm(R"(
    .text
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

fiber *fiber_create(void (*entry)())
{
    fiber *f = new fiber();
    unsigned char *stack = stack_create();
    f->stack = stack;
    f->stack_bytes = STACK_BYTES;
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    *--top = nullptr; /* entry()'s return address: none, and the stack aligned as after a call */
    *--top = reinterpret_cast<void *>(entry);
    for (int saved_register = 0; saved_register < 6; saved_register++)
        *--top = nullptr;
    f->stack_pointer = top;
    return f;
}

void fiber_switch(fiber *from, fiber *to)
{
    before_switch(from, to);
    cuda_on_cpu_switch(&from->stack_pointer, to->stack_pointer);
    after_switch(from);
}

#endif

} // namespace cuda_on_cpu

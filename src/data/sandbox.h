/* sandbox.h - what a process gives up before it touches a stranger's bytes. */
#ifndef DATA_SANDBOX_H
#define DATA_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

/* For a forked child whose descriptor 0 is its only way out. Closes all others; no new privileges,
 * no core dump, no tracing; memory_bytes more address space than now, cpu_seconds of CPU, no file
 * may grow, none may be opened; ends with its parent `parent`. Then a system call filter: read and
 * write on descriptor 0, memory, exit; anything else ends the process (SIGSYS). Signals from a
 * terminal are ignored: the parent decides. False where the kernel has no system call filters or
 * the build has a sanitizer: the limits hold then, the filter does not. Async-signal-safe. */
bool sandbox_enter(int parent, uint64_t memory_bytes, unsigned cpu_seconds);

#endif

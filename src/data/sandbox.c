/* sandbox.c - a process that can compute and answer, and nothing else.
 *
 * Job        the image decoder works on files from anywhere; if one of them takes it over, it gets
 *            nothing: no file, no network, no other process, bounded memory and time.
 * Method     resource limits, then a seccomp filter as a small BPF program: the list of calls that
 *            malloc and a read-decode-write loop need; memory may not become executable.
 * Cost       a microsecond for each system call of the child; a decode makes two, and a few for
 *            memory.
 * Rejected   libseccomp: a dependency for forty lines; a filter that returns errors: code that
 *            tries the forbidden should not go on running.
 *
 * Builds with AddressSanitizer or ThreadSanitizer reserve terabytes of address space and use calls
 * of their own (to report, to start their threads), so that there the address space limit and the
 * filter are left out. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif
#ifndef HAS_SANITIZER
#define HAS_SANITIZER 0
#endif

#if defined(__x86_64__)
#define THIS_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCH AUDIT_ARCH_AARCH64
#endif

static void limit(int what, uint64_t value)
{
    const struct rlimit r = {.rlim_cur = value, .rlim_max = value};
    setrlimit(what, &r); /* a lower limit that already holds is as good */
}

/* Address space in use, from /proc/self/statm; 0 when it cannot be known. */
static uint64_t address_space(void)
{
    char text[32] = {0};
    const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    const ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 ? strtoull(text, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static void close_others(void)
{
    if (syscall(SYS_close_range, 1u, ~0u, 0u) == 0) return;
    for (int fd = 1; fd < 65536; fd++) /* kernels before 5.9 */
        close(fd);
}

#define LOAD(field)      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL             BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define UNLESS(value)    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, 1)
#define UNLESS_SET(bits) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1)
#define ALLOW_CALL(name) UNLESS(SYS_##name), ALLOW
/* Allowed with a first argument of 0. */
#define ALLOW_ON_0(name)                                                                           \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(args[0]), UNLESS(0), ALLOW, KILL
/* Allowed where the third argument does not ask for executable memory. */
#define ALLOW_DATA(name)                                                                           \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4), LOAD(args[2]), UNLESS_SET(PROT_EXEC),   \
        KILL, ALLOW

static bool filter_install(void)
{
#ifdef THIS_ARCH
    struct sock_filter code[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCH, 1, 0),
        KILL,
        LOAD(nr),
        ALLOW_ON_0(read),
        ALLOW_ON_0(write),
        ALLOW_DATA(mmap),
        ALLOW_DATA(mprotect),
        ALLOW_CALL(munmap),
        ALLOW_CALL(mremap),
        ALLOW_CALL(madvise),
        ALLOW_CALL(brk),
        ALLOW_CALL(futex),
        ALLOW_CALL(exit),
        ALLOW_CALL(exit_group),
        ALLOW_CALL(rt_sigreturn),
        KILL,
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
#else
    return false;
#endif
}

bool sandbox_enter(int parent, uint64_t memory_bytes, unsigned cpu_seconds)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(0); /* it ended before the line above */
    prctl(PR_SET_DUMPABLE, 0);
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT, SIGTSTP};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    static const int deadly[] = {SIGSEGV, SIGBUS,  SIGILL, SIGFPE,
                                 SIGABRT, SIGPIPE, SIGSYS, SIGXCPU};
    for (size_t i = 0; !HAS_SANITIZER && i < sizeof deadly / sizeof *deadly; i++)
        signal(deadly[i], SIG_DFL);
    const uint64_t used = address_space();
    if (!HAS_SANITIZER) close_others();
    if (!HAS_SANITIZER && used) limit(RLIMIT_AS, used + memory_bytes);
    limit(RLIMIT_CPU, cpu_seconds);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_FSIZE, 0);
    if (!HAS_SANITIZER) limit(RLIMIT_NOFILE, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return false;
    return !HAS_SANITIZER && filter_install();
}

/* device_functions.h - the built-in functions that kernels use: barriers, warp collectives, atomics, loads and stores
 * with hints, bit casts, integer and float arithmetic. Fast approximations (__expf, __fdividef) are the exact
 * function: a kernel that needs their error to be small enough has to be judged on a device.
 *
 * Only __syncwarp orders memory between lanes, as CUDA promises no more; the race checker goes by that. */
#ifndef CUDA_ON_CPU_DEVICE_FUNCTIONS_H
#define CUDA_ON_CPU_DEVICE_FUNCTIONS_H

#include "block.h"
#include "races.h"

#include <cmath>
#include <stdint.h>
#include <string.h>
#include <type_traits>

/* ---- barriers of the block ---- */

static inline void __syncthreads()
{
    cuda_on_cpu::meet_block("__syncthreads", 0);
}

static inline int __syncthreads_or(int predicate)
{
    return cuda_on_cpu::meet_block("__syncthreads_or", predicate).yes != 0;
}

static inline int __syncthreads_and(int predicate)
{
    const cuda_on_cpu::tally t = cuda_on_cpu::meet_block("__syncthreads_and", predicate);
    return t.yes == t.of;
}

static inline int __syncthreads_count(int predicate)
{
    return cuda_on_cpu::meet_block("__syncthreads_count", predicate).yes;
}

static inline void __threadfence_block()
{
}

static inline void __threadfence()
{
}

static inline void __threadfence_system()
{
}

/* ---- warps ---- */

static inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    cuda_on_cpu::meet_warp("__syncwarp", mask, 0, 0);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return (unsigned)cuda_on_cpu::meet_warp("__ballot_sync", mask, predicate != 0, cuda_on_cpu::VOTE);
}

static inline int __any_sync(unsigned mask, int predicate)
{
    return cuda_on_cpu::meet_warp("__any_sync", mask, predicate != 0, cuda_on_cpu::VOTE) != 0;
}

static inline int __all_sync(unsigned mask, int predicate)
{
    return cuda_on_cpu::meet_warp("__all_sync", mask, predicate == 0, cuda_on_cpu::VOTE) == 0;
}

/* The least that CUDA promises: the lane itself. Which others run along is never known. */
static inline unsigned __activemask()
{
    return 1u << cuda_on_cpu::now.linear % 32;
}

namespace cuda_on_cpu {

template <class T> static inline T shuffle(const char *what, unsigned mask, T x, unsigned source)
{
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "what a shuffle can move");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = meet_warp(what, mask, bits, source);
    memcpy(static_cast<void *>(&x), &bits, sizeof x);
    return x;
}

} // namespace cuda_on_cpu

template <class T> static inline T __shfl_sync(unsigned mask, T x, int source, int width = 32)
{
    const unsigned lane = cuda_on_cpu::now.linear % 32, inside = (unsigned)width - 1;
    return cuda_on_cpu::shuffle("__shfl_sync", mask, x, (lane & ~inside) | ((unsigned)source & inside));
}

template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int lane_mask, int width = 32)
{
    const unsigned lane = cuda_on_cpu::now.linear % 32, inside = (unsigned)width - 1;
    const unsigned source = lane ^ (unsigned)lane_mask;
    return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, x, source > (lane | inside) ? lane : source % 32);
}

template <class T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32)
{
    const unsigned lane = cuda_on_cpu::now.linear % 32, inside = (unsigned)width - 1;
    return cuda_on_cpu::shuffle("__shfl_up_sync", mask, x, (lane & inside) >= delta ? lane - delta : lane);
}

template <class T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32)
{
    const unsigned lane = cuda_on_cpu::now.linear % 32, inside = (unsigned)width - 1;
    return cuda_on_cpu::shuffle("__shfl_down_sync", mask, x, (lane & inside) + delta <= inside ? lane + delta : lane);
}

/* ---- atomics: one thread runs at a time, so plain arithmetic; the race checker is told ---- */

#ifdef __SANITIZE_THREAD__
#define CUDA_ON_CPU_ATOMIC static inline __attribute__((no_sanitize("thread")))
#define CUDA_ON_CPU_TELL(p) ::cuda_on_cpu::races_atomic(p, sizeof *(p))
#else
#define CUDA_ON_CPU_ATOMIC static inline
#define CUDA_ON_CPU_TELL(p) (void)0
#endif

namespace cuda_on_cpu {

/* The second argument converts to the first one's type, as with CUDA's overloads. */
template <class T> struct same {
    typedef T type;
};

template <class T> constexpr bool is_integer_word()
{
    return std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8);
}

} // namespace cuda_on_cpu

#define CUDA_ON_CPU_DEFINE_ATOMIC(name, allowed, next)                                                                 \
    template <class T> CUDA_ON_CPU_ATOMIC T name(T *p, typename ::cuda_on_cpu::same<T>::type value)                    \
    {                                                                                                                  \
        static_assert(::cuda_on_cpu::is_integer_word<T>() || (allowed), "CUDA has no such " #name);                    \
        CUDA_ON_CPU_TELL(p);                                                                                           \
        const T old = *p;                                                                                              \
        *p = (next);                                                                                                   \
        return old;                                                                                                    \
    }

CUDA_ON_CPU_DEFINE_ATOMIC(atomicAdd, std::is_floating_point<T>::value, old + value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicExch, (std::is_same<T, float>::value), value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicSub, false, old - value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicMax, false, old < value ? value : old)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicMin, false, value < old ? value : old)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicAnd, false, old & value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicOr, false, old | value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicXor, false, old ^ value)
CUDA_ON_CPU_DEFINE_ATOMIC(atomicInc, false, old >= value ? 0 : old + 1)

template <class T>
CUDA_ON_CPU_ATOMIC T atomicCAS(T *p, typename cuda_on_cpu::same<T>::type expected, typename cuda_on_cpu::same<T>::type value)
{
    static_assert(cuda_on_cpu::is_integer_word<T>() || (std::is_integral<T>::value && sizeof(T) == 2), "CUDA has no such CAS");
    CUDA_ON_CPU_TELL(p);
    const T old = *p;
    if (old == expected) *p = value;
    return old;
}

/* ---- loads and stores with a hint for the caches ---- */

template <class T> static inline T __ldg(const T *p)
{
    return *p;
}

template <class T> static inline T __ldcs(const T *p)
{
    return *p;
}

template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}

template <class T> static inline void __stcs(T *p, typename cuda_on_cpu::same<T>::type x)
{
    *p = x;
}

template <class T> static inline void __stcg(T *p, typename cuda_on_cpu::same<T>::type x)
{
    *p = x;
}

/* ---- bits ---- */

namespace cuda_on_cpu {

template <class To, class From> static inline To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace cuda_on_cpu

static inline unsigned __float_as_uint(float x)
{
    return cuda_on_cpu::bits_as<unsigned>(x);
}

static inline int __float_as_int(float x)
{
    return cuda_on_cpu::bits_as<int>(x);
}

static inline float __uint_as_float(unsigned x)
{
    return cuda_on_cpu::bits_as<float>(x);
}

static inline float __int_as_float(int x)
{
    return cuda_on_cpu::bits_as<float>(x);
}

static inline long long __double_as_longlong(double x)
{
    return cuda_on_cpu::bits_as<long long>(x);
}

static inline double __longlong_as_double(long long x)
{
    return cuda_on_cpu::bits_as<double>(x);
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

/* ---- arithmetic ---- */

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    __extension__ typedef unsigned __int128 wide;
    return (unsigned long long)((wide)a * b >> 64);
}

static inline int __float2int_rn(float x)
{
    return (int)rintf(x);
}

static inline float __saturatef(float x)
{
    return x > 1 ? 1 : x > 0 ? x : 0; /* NaN gives 0 */
}

static inline float __frcp_rn(float x)
{
    return 1 / x;
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float __fdividef(float a, float b)
{
    return a / b;
}

/* Macros, for the C library has functions of these names, some of them only in newer versions. */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define rsqrtf(x) (::cuda_on_cpu::rsqrt_float(x))

namespace cuda_on_cpu {

static inline float rsqrt_float(float x)
{
    return (float)(1 / sqrt((double)x));
}

} // namespace cuda_on_cpu

/* CUDA's min and max for the types kernels use. Of floats, the number where the other is NaN. */
#define CUDA_ON_CPU_DEFINE_MIN_MAX(T)                                                                                  \
    static inline T min(T a, T b)                                                                                      \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    static inline T max(T a, T b)                                                                                      \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
CUDA_ON_CPU_DEFINE_MIN_MAX(int)
CUDA_ON_CPU_DEFINE_MIN_MAX(unsigned)
CUDA_ON_CPU_DEFINE_MIN_MAX(long)
CUDA_ON_CPU_DEFINE_MIN_MAX(unsigned long)
CUDA_ON_CPU_DEFINE_MIN_MAX(long long)
CUDA_ON_CPU_DEFINE_MIN_MAX(unsigned long long)

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline double min(double a, double b)
{
    return fmin(a, b);
}

static inline double max(double a, double b)
{
    return fmax(a, b);
}

#endif

/* gemm_avx512.c - tiles of 12 x 32: 24 sums, 2 right-hand vectors and a broadcast of the 32 registers. */
#include "gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TILE_TARGET __attribute__((target("avx512f")))
#define VEC         __m512
#define WIDTH       16
#define MR          12
#define NV          2
#define LOAD        _mm512_loadu_ps
#define STORE       _mm512_storeu_ps
#define BROADCAST(p) _mm512_set1_ps(*(p))
#define FMA         _mm512_fmadd_ps
#define ADD         _mm512_add_ps
#define ZERO        _mm512_setzero_ps
#include "gemm_tile.h"

static const struct gemm_kernel kernel = {.mr = MR, .nr = NR, .name = "avx512", .run = tile_run};

const struct gemm_kernel *gemm_kernel_avx512(void)
{
    return __builtin_cpu_supports("avx512f") ? &kernel : NULL;
}
#else
const struct gemm_kernel *gemm_kernel_avx512(void)
{
    return NULL;
}
#endif

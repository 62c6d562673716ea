/* gemm_avx2.c - tiles of 6 x 16: 12 sums, 2 right-hand vectors and a broadcast of the 16 registers. */
#include "gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TILE_TARGET __attribute__((target("avx2,fma")))
#define VEC         __m256
#define WIDTH       8
#define MR          6
#define NV          2
#define LOAD        _mm256_loadu_ps
#define STORE       _mm256_storeu_ps
#define BROADCAST   _mm256_broadcast_ss
#define FMA         _mm256_fmadd_ps
#define ADD         _mm256_add_ps
#define ZERO        _mm256_setzero_ps
#include "gemm_tile.h"

static const struct gemm_kernel kernel = {.mr = MR, .nr = NR, .name = "avx2", .run = tile_run};

const struct gemm_kernel *gemm_kernel_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernel : NULL;
}
#else
const struct gemm_kernel *gemm_kernel_avx2(void)
{
    return NULL;
}
#endif

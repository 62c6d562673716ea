/* op_rows.h - one function per op of OP_LIST, which times that op at one level of a network.
 *
 * A function takes its tensors from the bench (op_take: device memory, uniform in (-1, 1)), fills
 * the op's args struct and calls op_time with the work and the traffic that the op's definition
 * needs. Failures are kept in `s`: after the first, the helpers do nothing. */
#ifndef BENCH_OP_ROWS_H
#define BENCH_OP_ROWS_H

#include "bench.h"
#include "ops.h"

enum { OP_BLOCKS = 24 };

typedef struct {
    const bench_job *job;
    ddpm_backend *be;
    bench_peak peak;
    void *blocks[OP_BLOCKS];
    int n_blocks;
    ddpm_status s;
} op_bench;

/* One level of a network: n images of h x w pixels and c channels. */
typedef struct {
    int64_t n, h, w, c;
} op_level;

/* Device memory of `bytes`, for this row alone. `fill`: floats uniform in (-1, 1), else zeros. NULL
 * after a failure. */
void *op_block(op_bench *b, size_t bytes, bool fill);
ddpm_tensor op_take(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c);
ddpm_tensor op_take_2d(op_bench *b, int64_t rows, int64_t columns);
ddpm_tensor op_take_1d(op_bench *b, int64_t n);
/* i32 [n], all `value`; u64 [n] 0..n-1; the state of a first step. */
int32_t *op_take_ints(op_bench *b, int64_t n, int32_t value);
uint64_t *op_take_indices(op_bench *b, int64_t n);
struct step_state *op_take_state(op_bench *b);

typedef ddpm_status (*op_call)(ddpm_backend *be, const void *args);
/* Warm-up and repeats; a row "op, case" with times and rates. flop 0: a rate of traffic alone.
 * `bytes`: what must be read and written at least. */
void op_time(op_bench *b, const char *op, const char *of, op_call call, const void *args,
             double flop, double bytes);

/* One wrapper and one row for each op: an op of the list without a row does not link. */
#define X(op)                                                                                      \
    void op_row_##op(op_bench *b, const op_level *l);                                              \
    ddpm_status op_call_##op(ddpm_backend *be, const void *args);
OP_LIST(X)
#undef X

#define OP_TIME(b, op, of, args, flop, bytes) op_time(b, #op, of, op_call_##op, args, flop, bytes)

#endif

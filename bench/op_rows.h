/* op_rows.h - one function per op of OP_LIST, which makes a typical call of that op at one level of
 * a network.
 *
 * A function takes its tensors from the bench (op_act, op_take: device memory, uniform in (-1, 1)),
 * fills the op's args struct and calls op_time with the work and the traffic that the op's
 * definition needs. `ddpm bench ops` times the call (ops.c); tests/gpu/op_parity.c makes it on two
 * devices and compares what lies in the blocks afterwards. Failures are kept in `s`: after the
 * first, the helpers do nothing. */
#ifndef BENCH_OP_ROWS_H
#define BENCH_OP_ROWS_H

#include "ops.h"

enum { OP_BLOCKS = 24 };

/* What a block holds. OP_BITS: integers or a struct step_state. */
enum op_kind { OP_F32, OP_BF16, OP_U8, OP_F64, OP_BITS };

struct op_taken {
    void *data; /* device */
    size_t bytes;
    enum op_kind kind;
};

typedef struct op_bench {
    ddpm_backend *be;
    ddpm_dtype act;  /* of activations and of the weights of products: DDPM_F32 or DDPM_BF16 */
    bool rounds_act; /* f32 activations begin as numbers that bf16 has */
    struct op_taken blocks[OP_BLOCKS];
    int n_blocks;
    ddpm_status s;
    void *owner; /* of whoever defines op_time */
} op_bench;

/* One level of a network: n images of h x w pixels and c channels. */
typedef struct {
    int64_t n, h, w, c;
} op_level;

/* ---- op_inputs.c ---- */

/* Tensors of device memory for this row alone, filled with numbers that depend on the block's
 * number and nothing else; u8 with all values. After a failure their data are NULL. op_act: of the
 * type of activations, op_take: f32. */
ddpm_tensor op_act(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c);
ddpm_tensor op_act_2d(op_bench *b, int64_t rows, int64_t columns);
ddpm_tensor op_take(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c);
ddpm_tensor op_take_2d(op_bench *b, int64_t rows, int64_t columns);
ddpm_tensor op_take_1d(op_bench *b, int64_t n);
ddpm_tensor op_take_u8(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c);
/* bf16 [n], whatever the type of activations. */
ddpm_tensor op_take_half(op_bench *b, int64_t n);
/* f32 [n], zeros; one f64, zero. */
ddpm_tensor op_take_zeros(op_bench *b, int64_t n);
double *op_take_sum(op_bench *b);
/* Zero bytes that are compared as bits. */
void *op_take_bits(op_bench *b, size_t bytes);
/* i32 [n], all `value`; u64 [n] 0..n-1; the state of a first step. */
int32_t *op_take_ints(op_bench *b, int64_t n, int32_t value);
uint64_t *op_take_indices(op_bench *b, int64_t n);
struct step_state *op_take_state(op_bench *b);
/* Of one activation. */
double op_act_size(const op_bench *b);
void op_release(op_bench *b);

/* ---- whoever makes the calls ---- */

typedef ddpm_status (*op_call)(ddpm_backend *be, const void *args);
/* flop 0: a rate of traffic alone. `bytes`: what must be read and written at least. */
void op_time(op_bench *b, const char *op, const char *of, op_call call, const void *args,
             double flop, double bytes);

/* One wrapper and one row for each op: an op of the list without a row does not link. */
#define X(op)                                                                                      \
    void op_row_##op(op_bench *b, const op_level *l);                                              \
    ddpm_status op_call_##op(ddpm_backend *be, const void *args);
OP_LIST(X)
#undef X

#define OP_TIME(b, op, of, args, flop, bytes) op_time(b, #op, of, op_call_##op, args, flop, bytes)

/* Every row, in the order of OP_LIST. */
struct op_row {
    const char *name;
    void (*run)(op_bench *b, const op_level *l);
};
extern const struct op_row op_rows[];
extern const int op_row_count;

#endif

/* op_inputs.c - the tensors of the rows of `bench ops`, the same numbers on every device, and the
 * list of rows.
 *
 * Zeros were rejected as inputs: they hide what an op does not write, and products of zeros can run
 * faster. */
#include "op_rows.h"

#include "fail.h"
#include "philox.h"

#include <stdlib.h>
#include <string.h>

const struct op_row op_rows[] = {
#define X(op) {#op, op_row_##op},
    OP_LIST(X)
#undef X
};
const int op_row_count = (int)(sizeof op_rows / sizeof *op_rows);

#define X(op)                                                                                      \
    ddpm_status op_call_##op(ddpm_backend *be, const void *args)                                   \
    {                                                                                              \
        return backend_ops(be)->op(be, args);                                                      \
    }
OP_LIST(X)
#undef X

/* ---- blocks ---- */

static void *take_block(op_bench *b, size_t bytes, enum op_kind kind)
{
    void *block = NULL;
    if (b->s) return NULL;
    if (b->n_blocks == OP_BLOCKS) {
        b->s = FAIL(BUG, "a row of the bench takes more than %d blocks", OP_BLOCKS);
        return NULL;
    }
    b->s = ddpm_backend_alloc(b->be, bytes, &block);
    if (!b->s) b->blocks[b->n_blocks++] = (struct op_taken){block, bytes, kind};
    return block;
}

static void *take_copy(op_bench *b, const void *host, size_t bytes, enum op_kind kind)
{
    void *device = take_block(b, bytes, kind);
    if (!b->s) b->s = ddpm_backend_upload(b->be, device, host, bytes);
    return device;
}

void op_release(op_bench *b)
{
    for (int i = 0; i < b->n_blocks; i++)
        ddpm_backend_release(b->be, b->blocks[i].data);
    b->n_blocks = 0;
}

double op_act_size(const op_bench *b)
{
    return (double)ddpm_dtype_size(b->act);
}

/* ---- numbers ---- */

/* The upper half of a float's bits, rounded to nearest even; no NaN comes here. */
static uint16_t half_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float rounded_to_half(float x)
{
    const uint32_t bits = (uint32_t)half_bits(x) << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Uniform in (-1, 1): the first PERIOD elements at most of block `which`; the rest repeats them. A
 * period that no number of channels divides, so that no two pixels of an image are alike, and
 * short, so that the fill does not outlast the bench. */
enum { PERIOD = (1 << 20) - 3 };

static size_t first_uniforms(int which, size_t count, float *x)
{
    const size_t period = count < PERIOD ? count : PERIOD;
    for (size_t i = 0; i < period; i += 4) {
        const philox4 words = philox_draw(0, PHILOX_TEST, (uint32_t)which, 0, (uint32_t)(i / 4));
        for (size_t k = 0; k < 4 && i + k < period; k++)
            x[i + k] = 2 * philox_uniform(words.v[k]) - 1;
    }
    return period;
}

/* Copies the first `period` elements over the rest of `count`. */
static void repeat_first(void *data, size_t period, size_t count, size_t size)
{
    for (size_t at = period; at < count; at += period)
        memcpy((char *)data + at * size, data, (count - at < period ? count - at : period) * size);
}

/* `count` elements of `size` bytes on the host, zeroed; NULL and b->s after a failure. */
static void *host_block(op_bench *b, size_t count, size_t size)
{
    if (b->s) return NULL;
    void *host = calloc(count ? count : 1, size);
    if (!host) b->s = FAIL(NOMEM, "%zu elements of input", count);
    return host;
}

/* How a float of the pattern is stored. */
enum stored { AS_F32, AS_ROUNDED, AS_BF16, AS_U8 };

static void *take_uniform(op_bench *b, int64_t n, enum stored as)
{
    static const struct {
        size_t size;
        enum op_kind kind;
    } of[] = {[AS_F32] = {4, OP_F32},
              [AS_ROUNDED] = {4, OP_F32},
              [AS_BF16] = {2, OP_BF16},
              [AS_U8] = {1, OP_U8}};
    const size_t count = (size_t)n, size = of[as].size;
    float *first = host_block(b, count < PERIOD ? count : PERIOD, sizeof *first);
    void *host = host_block(b, count, size), *device = NULL;
    if (!b->s) {
        const size_t period = first_uniforms(b->n_blocks, count, first);
        for (size_t i = 0; i < period; i++) {
            if (as == AS_BF16)
                ((uint16_t *)host)[i] = half_bits(first[i]);
            else if (as == AS_U8)
                ((uint8_t *)host)[i] = (uint8_t)(int)(127.5f * (first[i] + 1));
            else
                ((float *)host)[i] = as == AS_ROUNDED ? rounded_to_half(first[i]) : first[i];
        }
        repeat_first(host, period, count, size);
        device = take_copy(b, host, count * size, of[as].kind);
    }
    free(first);
    free(host);
    return device;
}

static enum stored act_as(const op_bench *b)
{
    return b->act == DDPM_BF16 ? AS_BF16 : b->rounds_act ? AS_ROUNDED : AS_F32;
}

static ddpm_tensor of_type(ddpm_tensor t, ddpm_dtype dtype)
{
    t.dtype = dtype;
    return t;
}

ddpm_tensor op_act(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return of_type(ddpm_tensor_4d(take_uniform(b, n * h * w * c, act_as(b)), n, h, w, c), b->act);
}

ddpm_tensor op_act_2d(op_bench *b, int64_t rows, int64_t columns)
{
    return of_type(ddpm_tensor_2d(take_uniform(b, rows * columns, act_as(b)), rows, columns),
                   b->act);
}

ddpm_tensor op_take_half(op_bench *b, int64_t n)
{
    return of_type(ddpm_tensor_1d(take_uniform(b, n, AS_BF16), n), DDPM_BF16);
}

ddpm_tensor op_take(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return ddpm_tensor_4d(take_uniform(b, n * h * w * c, AS_F32), n, h, w, c);
}

ddpm_tensor op_take_2d(op_bench *b, int64_t rows, int64_t columns)
{
    return ddpm_tensor_2d(take_uniform(b, rows * columns, AS_F32), rows, columns);
}

ddpm_tensor op_take_1d(op_bench *b, int64_t n)
{
    return ddpm_tensor_1d(take_uniform(b, n, AS_F32), n);
}

ddpm_tensor op_take_u8(op_bench *b, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return of_type(ddpm_tensor_4d(take_uniform(b, n * h * w * c, AS_U8), n, h, w, c), DDPM_U8);
}

ddpm_tensor op_take_zeros(op_bench *b, int64_t n)
{
    return ddpm_tensor_1d(take_block(b, (size_t)n * sizeof(float), OP_F32), n);
}

double *op_take_sum(op_bench *b)
{
    return take_block(b, sizeof(double), OP_F64);
}

void *op_take_bits(op_bench *b, size_t bytes)
{
    return take_block(b, bytes, OP_BITS);
}

int32_t *op_take_ints(op_bench *b, int64_t n, int32_t value)
{
    int32_t *host = host_block(b, (size_t)n, sizeof *host);
    for (int64_t i = 0; host && i < n; i++)
        host[i] = value;
    int32_t *device = take_copy(b, host, (size_t)n * sizeof *host, OP_BITS);
    free(host);
    return device;
}

uint64_t *op_take_indices(op_bench *b, int64_t n)
{
    uint64_t *host = host_block(b, (size_t)n, sizeof *host);
    for (int64_t i = 0; host && i < n; i++)
        host[i] = (uint64_t)i;
    uint64_t *device = take_copy(b, host, (size_t)n * sizeof *host, OP_BITS);
    free(host);
    return device;
}

struct step_state *op_take_state(op_bench *b)
{
    const struct step_state state = {.seed = 1,
                                     .step = 1,
                                     .lr = 1e-4f,
                                     .bias1 = 0.1f,
                                     .bias2 = 0.001f,
                                     .ema_decay = {0.9999f, 0.999f, 0.99f, 0.9f}};
    return take_copy(b, &state, sizeof state, OP_BITS);
}

/* op_parity.c - every op on a device against the CPU backend, on the same numbers.
 *
 *   gpu_op_parity [--device NAME] [--dtype f32|bf16] [--op NAME] [--deterministic] [NxHxWxC]...
 *
 * The calls are the rows of `ddpm bench ops` and those of op_variants.c, at each level given. Outputs begin as other numbers
 * than they end as, the same on both sides, and every block of the call is compared afterwards: what an op leaves unwritten or
 * writes where it should not shows. Each call is made twice on the device: whether the bits agree is told, and with
 * --deterministic demanded.
 *
 * bf16: the device computes in bf16, the CPU in f32 on inputs that bf16 has. Limits are of the largest value of a block.
 *
 *   f32           2e-5    two f32 sums of some thousand terms in different orders, Winograd's transforms on one side
 *   bf16          1/64    the result's own rounding is 1/512; probabilities and sums may be rounded on the way
 *   f32 of bf16   1/256   gradients of weights, which libraries give in bf16 (1/512) before they are added
 *   u8, integers  0       the same arithmetic, rounding by rounding
 *
 * One line a call: verdict, dtype, op, call, its worst error over its limit (1 is the limit), whether twice the same bits.
 * Exit 0 when all are inside, 1 when one is not, 64 for wrong usage, else the status's code. */
#include "op_variants.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 3, LEVELS_MAX = 16, CALLS_MAX = 8 };
enum run { ON_CPU, ON_DEVICE, AGAIN };

/* One call's blocks after each run. */
struct call {
    const char *op;
    char of[96];
    int n;
    struct op_taken on_cpu[OP_BLOCKS], block[OP_BLOCKS]; /* of the runs on the CPU and on the device */
    void *after[RUNS][OP_BLOCKS];     /* host; owned */
};

struct parity {
    ddpm_backend *be[2]; /* the CPU, the device */
    ddpm_dtype dtype;
    const char *only_op;
    bool is_deterministic;
    enum run run;
    struct call call[CALLS_MAX]; /* of the row under way; it may make several, one behind another */
    int n_calls;                 /* so far in this run */
    int calls, failed, differing;
};

/* ---- one call ---- */

static void call_release(struct call *c)
{
    for (int run = 0; run < RUNS; run++)
        for (int i = 0; i < OP_BLOCKS; i++)
            free(c->after[run][i]);
    *c = (struct call){0};
}

static void keep_blocks(const struct parity *p, struct call *c, op_bench *b)
{
    if (p->run != ON_CPU && c->n != b->n_blocks) {
        b->s = FAIL(BUG, "%d blocks on the device, %d on the CPU", b->n_blocks, c->n);
        return;
    }
    c->n = b->n_blocks;
    for (int i = 0; i < b->n_blocks && !b->s; i++) {
        const struct op_taken *block = &b->blocks[i];
        *(p->run == ON_CPU ? &c->on_cpu[i] : &c->block[i]) = *block;
        void *host = c->after[p->run][i] = malloc(block->bytes ? block->bytes : 1);
        if (!host)
            b->s = FAIL(NOMEM, "%zu bytes", block->bytes);
        else
            b->s = ddpm_backend_download(b->be, host, block->data, block->bytes);
    }
}

/* What a row calls: here the call is made once and all that it could have touched is kept. */
void op_time(op_bench *b, const char *op, const char *of, op_call call, const void *args, double flop, double bytes)
{
    struct parity *p = b->owner;
    (void)flop, (void)bytes;
    if (b->s) return;
    if (p->n_calls == CALLS_MAX) {
        b->s = FAIL(BUG, "%s: a row makes more than %d calls", op, CALLS_MAX);
        return;
    }
    struct call *c = &p->call[p->n_calls++];
    c->op = op;
    snprintf(c->of, sizeof c->of, "%s", of);
    b->s = call(b->be, args);
    if (!b->s) b->s = ddpm_backend_sync(b->be);
    if (!b->s) keep_blocks(p, c, b);
    if (b->s) status_context(b->s, "%s, %s", op, of);
}

/* ---- comparison ---- */

static double element(enum op_kind kind, const void *data, size_t i)
{
    if (kind == OP_F64) return ((const double *)data)[i];
    if (kind == OP_F32) return (double)((const float *)data)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static double limit_of(const struct parity *p, enum op_kind kind)
{
    if (kind == OP_F64) return 1e-12;
    if (kind == OP_BF16) return 1.0 / 64;
    return p->dtype == DDPM_BF16 ? 1.0 / 256 : 2e-5;
}

/* The largest error of block i over its limit; infinite for a NaN that the CPU has not. */
static double block_error(const struct parity *p, const struct call *c, int i)
{
    static const size_t size[] = {[OP_F32] = 4, [OP_BF16] = 2, [OP_U8] = 1, [OP_F64] = 8, [OP_BITS] = 1};
    const struct op_taken *block = &c->block[i];
    const void *want = c->after[ON_CPU][i], *got = c->after[ON_DEVICE][i];
    if (block->bytes / size[block->kind] != c->on_cpu[i].bytes / size[c->on_cpu[i].kind]) return INFINITY;
    if (block->kind == OP_BITS || block->kind == OP_U8) return memcmp(want, got, block->bytes) == 0 ? 0 : INFINITY;
    const enum op_kind wanted = c->on_cpu[i].kind; /* an activation is f32 there */
    double worst = 0, largest = 0;
    for (size_t k = 0; k < block->bytes / size[block->kind]; k++) {
        const double w = element(wanted, want, k), d = fabs(element(block->kind, got, k) - w);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
        if (fabs(w) > largest) largest = fabs(w);
    }
    return worst / (largest > 0 ? largest : 1) / limit_of(p, block->kind);
}

static void judge(struct parity *p, const struct call *c)
{
    double worst = 0;
    bool same = true;
    for (int i = 0; i < c->n; i++) {
        const double error = block_error(p, c, i);
        if (error > worst) worst = error;
        same = same && memcmp(c->after[ON_DEVICE][i], c->after[AGAIN][i], c->block[i].bytes) == 0;
    }
    const bool ok = worst <= 1 && (same || !p->is_deterministic);
    p->calls++;
    p->failed += !ok;
    p->differing += !same;
    printf("%s\t%s\t%s\t%s\t%.3g\t%s\n", ok ? "ok" : "FAILED", p->dtype == DDPM_BF16 ? "bf16" : "f32", c->op, c->of, worst,
           same ? "same" : "differ");
    fflush(stdout);
}

/* ---- all calls ---- */

static ddpm_status compare_row(struct parity *p, const struct op_row *row, const op_level *level)
{
    ddpm_status s = DDPM_OK;
    for (int run = 0; run < RUNS && !s; run++) {
        const bool on_cpu = run == ON_CPU;
        op_bench b = {.be = p->be[!on_cpu],
                      .act = on_cpu ? DDPM_F32 : p->dtype,
                      .rounds_act = p->dtype == DDPM_BF16,
                      .owner = p};
        p->run = (enum run)run;
        p->n_calls = 0; /* a row may leave a level out */
        row->run(&b, level);
        op_release(&b);
        s = b.s;
    }
    for (int i = 0; i < CALLS_MAX; i++) {
        if (!s && i < p->n_calls) judge(p, &p->call[i]);
        call_release(&p->call[i]);
    }
    return s;
}

static ddpm_status compare_all(struct parity *p, const op_level *levels, int n_levels)
{
    for (int i = 0; i < op_row_count + op_variant_count; i++) {
        const struct op_row *row = i < op_row_count ? &op_rows[i] : &op_variants[i - op_row_count];
        if (p->only_op && strcmp(p->only_op, row->name) != 0) continue;
        for (int k = 0; k < n_levels; k++)
            TRY(compare_row(p, row, &levels[k]));
    }
    return DDPM_OK;
}

/* ---- the program ---- */

static int usage(void)
{
    fprintf(stderr, "usage: gpu_op_parity [--device NAME] [--dtype f32|bf16] [--op NAME] [--deterministic] [NxHxWxC]...\n");
    return 64;
}

static bool read_level(const char *text, op_level *l)
{
    long long n, h, w, c;
    char rest;
    if (sscanf(text, "%lldx%lldx%lldx%lld%c", &n, &h, &w, &c, &rest) != 4) return false;
    *l = (op_level){n, h, w, c};
    /* 32 groups, heads of half the channels, levels above and below */
    return n > 0 && h > 0 && w > 0 && c > 0 && h % 2 == 0 && w % 2 == 0 && c % 32 == 0;
}

int main(int argc, char **argv)
{
    op_level levels[LEVELS_MAX] = {{2, 8, 8, 64}, {1, 14, 14, 32}, {3, 16, 16, 128}, {5, 4, 4, 256}, {4, 32, 32, 128}};
    int n_levels = 0;
    const char *device = "cuda";
    struct parity p = {.dtype = DDPM_F32};
    for (int i = 1; i < argc; i++) {
        const bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--deterministic") == 0) {
            p.is_deterministic = true;
        } else if (strcmp(argv[i], "--device") == 0 && has_value) {
            device = argv[++i];
        } else if (strcmp(argv[i], "--op") == 0 && has_value) {
            p.only_op = argv[++i];
        } else if (strcmp(argv[i], "--dtype") == 0 && has_value) {
            i++;
            if (strcmp(argv[i], "bf16") != 0 && strcmp(argv[i], "f32") != 0) return usage();
            p.dtype = strcmp(argv[i], "bf16") == 0 ? DDPM_BF16 : DDPM_F32;
        } else if (n_levels == LEVELS_MAX || !read_level(argv[i], &levels[n_levels++])) {
            return usage();
        }
    }
    if (!n_levels) n_levels = 5; /* those above */

    ddpm_status s = ddpm_backend_create("cpu", 0, &p.be[0]);
    if (!s) s = ddpm_backend_create(device, 0, &p.be[1]);
    if (!s) ddpm_backend_configure(p.be[1], &(ddpm_backend_options){.is_deterministic = p.is_deterministic});
    if (!s) s = compare_all(&p, levels, n_levels);
    if (s) fprintf(stderr, "gpu_op_parity: %s\n", ddpm_last_error());
    fprintf(stderr, "%d calls, %d failed, %d not the same bits twice\n", p.calls, p.failed, p.differing);
    ddpm_backend_free(p.be[1]);
    ddpm_backend_free(p.be[0]);
    if (s) return ddpm_status_exit_code(s);
    return p.failed || !p.calls ? 1 : 0;
}

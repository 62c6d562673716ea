/* cudnn_attention.c - attention as graphs, on views of the packed projections, and dense products.
 *
 * Forward is one operation of cuDNN. Backward has no such operation in the versions at hand; it is the list of products
 * and pointwise steps that cuDNN recognises as one kernel (flash attention, backward):
 *
 *   D   = sum over d of dO * O                 one number a query, kept in the workspace
 *   P   = exp(scale Q K^T - LSE)               computed again, never stored
 *   dV  = P^T dO
 *   dS  = scale * P * (dO V^T - D)
 *   dK  = dS^T Q
 *   dQ  = dS K                                 its parts from blocks of keys are added in f32, in order or not
 *
 * The order of these operations is the pattern that the engine matches, so it is not to be tidied. */
#include "cudnn_builder.h"

#include <string.h>

/* [N,T,heads,D] with its own strides as cuDNN's [N,heads,T,D]. */
static struct cudnn_shape shape_heads(const ddpm_tensor *t)
{
    return (struct cudnn_shape){4,
                                {t->dim[0], t->dim[2], t->dim[1], t->dim[3]},
                                {t->stride[0], t->stride[2], t->stride[1], t->stride[3]}};
}

/* The last two dimensions change places. */
static struct cudnn_shape transposed(struct cudnn_shape s)
{
    const int64_t dim = s.dim[2], stride = s.stride[2];
    s.dim[2] = s.dim[3];
    s.stride[2] = s.stride[3];
    s.dim[3] = dim;
    s.stride[3] = stride;
    return s;
}

/* Dense [a,b,c,d]. */
static struct cudnn_shape shape_packed(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return (struct cudnn_shape){4, {a, b, c, d}, {b * c * d, c * d, d, 1}};
}

static ddpm_status expect_heads(const char *what, const ddpm_tensor *q, const ddpm_tensor *const *others, int n)
{
    REQUIRE(q->rank == 4 && q->dtype == DDPM_BF16, SHAPE, "%s: cuDNN takes bf16 [N,T,heads,D]", what);
    for (int i = 0; i < n; i++)
        REQUIRE(others[i]->rank == 4 && others[i]->dtype == q->dtype && memcmp(others[i]->dim, q->dim, sizeof q->dim) == 0,
                SHAPE, "%s: tensor %d has another shape or type than q", what, i + 1);
    return DDPM_OK;
}

static cudnn_descriptor given_heads(struct cudnn_builder *b, const char *name, int64_t uid, bool is_output,
                                    const ddpm_tensor *t)
{
    builder_describe(b, name, t);
    return builder_given(b, uid, is_output, t, shape_heads(t));
}

static cudnn_descriptor given_lse(struct cudnn_builder *b, bool is_output, const ddpm_tensor *q)
{
    const ddpm_tensor lse = {.dtype = DDPM_F32,
                             .rank = 3,
                             .dim = {q->dim[0], q->dim[2], q->dim[1]},
                             .stride = {q->dim[2] * q->dim[1], q->dim[1], 1}};
    return builder_given(b, CUDNN_UID_LSE, is_output, &lse, shape_packed(q->dim[0], q->dim[2], q->dim[1], 1));
}

static double product_of(const ddpm_tensor *q)
{
    return (double)ddpm_tensor_count(q) * (double)q->dim[1];
}

ddpm_status cudnn_graph_attention(const struct cudnn_attention_args *a, struct cudnn_graph **out)
{
    TRY(expect_heads("attention", a->q, (const ddpm_tensor *const[]){a->k, a->v, a->o}, 3));

    struct cudnn_builder b;
    builder_begin(&b, a->q->dtype);
    text_add(&b.name, "attention bf16");
    builder_count_flops(&b, 2 * product_of(a->q));
    cudnn_descriptor op = builder_descriptor(&b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, given_heads(&b, "q", CUDNN_UID_Q, false, a->q));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, given_heads(&b, "k", CUDNN_UID_K, false, a->k));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, given_heads(&b, "v", CUDNN_UID_V, false, a->v));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, given_heads(&b, "o", CUDNN_UID_O, true, a->o));
    builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, builder_constant(&b, CUDNN_UID_FACTOR, a->scale));
    text_add(&b.name, " scale %.9g", (double)a->scale);
    if (a->has_lse) {
        text_add(&b.name, " +lse");
        builder_link(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, given_lse(&b, true, a->q));
    }
    builder_operation(&b, "cuDNN attention", op);
    return builder_finish(&b, out);
}

/* ---- backward ---- */

/* The tensors that several of its steps share. */
struct backward {
    cudnn_descriptor q, k_transposed, v_transposed, d_o;
    cudnn_descriptor dot;    /* D */
    cudnn_descriptor factor; /* scale */
};

static cudnn_descriptor virtual_scores(struct cudnn_builder *b, const ddpm_tensor *q)
{
    return builder_virtual(b, DDPM_F32, shape_packed(q->dim[0], q->dim[2], q->dim[1], q->dim[1]));
}

/* bf16 [T,T] with rows and columns swapped, from f32: an operand of the products that sum over queries. */
static cudnn_descriptor transpose_scores(struct cudnn_builder *b, const ddpm_tensor *q, cudnn_descriptor from)
{
    cudnn_descriptor to =
        builder_virtual(b, DDPM_BF16, transposed(shape_packed(q->dim[0], q->dim[2], q->dim[1], q->dim[1])));
    cudnn_descriptor op = builder_descriptor(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    builder_link(b, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, from);
    builder_link(b, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, to);
    builder_operation(b, "cuDNN transpose", op);
    return to;
}

/* D, kept in the workspace: sum over d of dO * O. */
static void add_dot(struct cudnn_builder *b, const struct cudnn_attention_bwd_args *a, struct backward *t,
                    cudnn_descriptor o)
{
    const int64_t *dim = a->q->dim;
    const struct cudnn_shape row = shape_packed(dim[0], dim[2], dim[1], 1);
    cudnn_descriptor product = builder_virtual(b, DDPM_F32, shape_packed(dim[0], dim[2], dim[1], dim[3]));
    cudnn_descriptor sum = builder_virtual(b, DDPM_F32, row);
    t->dot = builder_kept(b, CUDNN_UID_ROW_SUM, CUDNN_WORKSPACE, row);
    builder_pointwise(b, CUDNN_POINTWISE_MUL, t->d_o, o, product);
    builder_sum(b, product, sum);
    builder_pointwise(b, CUDNN_POINTWISE_MUL, sum, builder_constant(b, CUDNN_UID_ONE, 1), t->dot);
}

/* P from Q, K and LSE. */
static cudnn_descriptor add_probabilities(struct cudnn_builder *b, const ddpm_tensor *q, const struct backward *t)
{
    cudnn_descriptor scores = virtual_scores(b, q), scaled = virtual_scores(b, q), below = virtual_scores(b, q);
    cudnn_descriptor p = virtual_scores(b, q);
    builder_matmul(b, t->q, t->k_transposed, scores);
    builder_pointwise(b, CUDNN_POINTWISE_MUL, scores, t->factor, scaled);
    builder_pointwise(b, CUDNN_POINTWISE_SUB, scaled, given_lse(b, false, q), below);
    builder_pointwise(b, CUDNN_POINTWISE_EXP, below, NULL, p);
    return p;
}

/* dS from dO, V, D and P. */
static cudnn_descriptor add_score_gradient(struct cudnn_builder *b, const ddpm_tensor *q, const struct backward *t,
                                           cudnn_descriptor p)
{
    cudnn_descriptor dp = virtual_scores(b, q), centred = virtual_scores(b, q), weighted = virtual_scores(b, q);
    cudnn_descriptor ds = virtual_scores(b, q);
    builder_matmul(b, t->d_o, t->v_transposed, dp);
    builder_pointwise(b, CUDNN_POINTWISE_SUB, dp, t->dot, centred);
    builder_pointwise(b, CUDNN_POINTWISE_MUL, centred, p, weighted);
    builder_pointwise(b, CUDNN_POINTWISE_MUL, weighted, t->factor, ds);
    return ds;
}

static void add_dq(struct cudnn_builder *b, const struct cudnn_attention_bwd_args *a, const struct backward *t,
                   cudnn_descriptor ds)
{
    const int64_t *dim = a->q->dim;
    cudnn_descriptor k = builder_virtual(b, DDPM_BF16, shape_heads(a->k));
    cudnn_descriptor op = builder_descriptor(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    builder_link(b, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, t->k_transposed);
    builder_link(b, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, k);
    builder_operation(b, "cuDNN transpose", op);
    cudnn_descriptor dq = given_heads(b, "dq", CUDNN_UID_DQ, true, a->dq);
    if (a->deterministic) {
        text_add(&b->name, " deterministic");
        builder_matmul(b, ds, k, dq);
        return;
    }
    if (!b->s) b->g->any_order = true;
    cudnn_descriptor sum =
        builder_kept(b, CUDNN_UID_DQ_SUM, CUDNN_ZEROED, shape_packed(dim[0], dim[2], dim[1], dim[3]));
    builder_matmul(b, ds, k, sum);
    builder_pointwise(b, CUDNN_POINTWISE_IDENTITY, sum, NULL, dq);
}

ddpm_status cudnn_graph_attention_bwd(const struct cudnn_attention_bwd_args *a, struct cudnn_graph **out)
{
    TRY(expect_heads("gradient of attention", a->q,
                     (const ddpm_tensor *const[]){a->k, a->v, a->o, a->d_o, a->dq, a->dk, a->dv}, 7));

    struct cudnn_builder b;
    builder_begin(&b, a->q->dtype);
    text_add(&b.name, "attention_bwd bf16");
    builder_count_flops(&b, 5 * product_of(a->q));
    struct backward t = {.q = given_heads(&b, "q", CUDNN_UID_Q, false, a->q)};
    builder_describe(&b, "k", a->k);
    t.k_transposed = builder_given(&b, CUDNN_UID_K, false, a->k, transposed(shape_heads(a->k)));
    builder_describe(&b, "v", a->v);
    t.v_transposed = builder_given(&b, CUDNN_UID_V, false, a->v, transposed(shape_heads(a->v)));
    cudnn_descriptor o = given_heads(&b, "o", CUDNN_UID_O, false, a->o);
    t.d_o = given_heads(&b, "do", CUDNN_UID_DO, false, a->d_o);
    t.factor = builder_constant(&b, CUDNN_UID_FACTOR, a->scale);
    text_add(&b.name, " scale %.9g", (double)a->scale);

    add_dot(&b, a, &t, o);
    cudnn_descriptor p = add_probabilities(&b, a->q, &t);
    cudnn_descriptor p_transposed = transpose_scores(&b, a->q, p);
    builder_matmul(&b, p_transposed, t.d_o, given_heads(&b, "dv", CUDNN_UID_DV, true, a->dv));
    cudnn_descriptor ds = add_score_gradient(&b, a->q, &t, p);
    cudnn_descriptor ds_transposed = transpose_scores(&b, a->q, ds);
    builder_matmul(&b, ds_transposed, t.q, given_heads(&b, "dk", CUDNN_UID_DK, true, a->dk));
    add_dq(&b, a, &t, ds);
    return builder_finish(&b, out);
}

/* ---- dense products ---- */

static struct cudnn_shape shape_matrix(const ddpm_tensor *t)
{
    return (struct cudnn_shape){3, {1, t->dim[0], t->dim[1]}, {t->dim[0] * t->dim[1], t->stride[0], t->stride[1]}};
}

static ddpm_status expect_matmul(const struct cudnn_matmul_args *a)
{
    const ddpm_tensor *l = a->a, *r = a->b, *c = a->c;
    REQUIRE(l->rank == 2 && r->rank == 2 && c->rank == 2 && l->dim[1] == r->dim[0] && l->dim[0] == c->dim[0] &&
                r->dim[1] == c->dim[1],
            SHAPE, "matmul: %lldx%lld by %lldx%lld is not %lldx%lld", (long long)l->dim[0], (long long)l->dim[1],
            (long long)r->dim[0], (long long)r->dim[1], (long long)c->dim[0], (long long)c->dim[1]);
    REQUIRE(!a->bias || (a->bias->rank == 1 && a->bias->dim[0] == c->dim[1]), SHAPE, "matmul: bias has not %lld elements",
            (long long)c->dim[1]);
    REQUIRE(!a->residual || (a->residual->rank == 2 && memcmp(a->residual->dim, c->dim, 2 * sizeof *c->dim) == 0), SHAPE,
            "matmul: residual is not %lldx%lld", (long long)c->dim[0], (long long)c->dim[1]);
    return DDPM_OK;
}

/* product + operand, into c where it is the last of `left` sums. */
static cudnn_descriptor add_to_product(struct cudnn_builder *b, const ddpm_tensor *c, cudnn_descriptor product,
                                       cudnn_descriptor operand, int left, cudnn_descriptor to)
{
    const ddpm_tensor dense = ddpm_tensor_2d(NULL, c->dim[0], c->dim[1]);
    cudnn_descriptor sum = left == 1 ? to : builder_virtual(b, DDPM_F32, shape_matrix(&dense));
    builder_pointwise(b, CUDNN_POINTWISE_ADD, product, operand, sum);
    return sum;
}

ddpm_status cudnn_graph_matmul(const struct cudnn_matmul_args *a, struct cudnn_graph **out)
{
    TRY(expect_matmul(a));
    const int64_t n = a->c->dim[1];
    int left = (a->bias != NULL) + (a->residual != NULL);

    struct cudnn_builder b;
    builder_begin(&b, a->a->dtype);
    text_add(&b.name, "matmul %s", a->a->dtype == DDPM_BF16 ? "bf16" : "f32");
    builder_describe(&b, "a", a->a);
    builder_describe(&b, "b", a->b);
    builder_describe(&b, "c", a->c);
    builder_count_flops(&b, (double)ddpm_tensor_count(a->a) * (double)n);
    cudnn_descriptor to = builder_given(&b, CUDNN_UID_C, true, a->c, shape_matrix(a->c));
    const ddpm_tensor dense = ddpm_tensor_2d(NULL, a->c->dim[0], n);
    cudnn_descriptor value = left ? builder_virtual(&b, DDPM_F32, shape_matrix(&dense)) : to;
    builder_matmul(&b, builder_given(&b, CUDNN_UID_A, false, a->a, shape_matrix(a->a)),
                   builder_given(&b, CUDNN_UID_B, false, a->b, shape_matrix(a->b)), value);
    if (a->bias) {
        const struct cudnn_shape row = {3, {1, 1, n}, {n, n, 1}};
        builder_describe(&b, "+bias", a->bias);
        value = add_to_product(&b, a->c, value, builder_given(&b, CUDNN_UID_BIAS, false, a->bias, row), left--, to);
    }
    if (a->residual) {
        builder_describe(&b, "+residual", a->residual);
        add_to_product(&b, a->c, value,
                       builder_given(&b, CUDNN_UID_RESIDUAL, false, a->residual, shape_matrix(a->residual)), left, to);
    }
    return builder_finish(&b, out);
}

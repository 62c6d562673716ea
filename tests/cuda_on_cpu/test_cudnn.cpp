/* test_cudnn.cpp - results of cuDNN's stand-in against sums in double. */
#include "test_cudnn.h"

/* ---- convolutions ---- */

/* Every engine's result of a pass; those that are exact to the tolerance, the others to TF32's. */
static void check_pass(pass which, const problem &p, cudnnDataType_t type)
{
    const bool is_float = type == CUDNN_DATA_FLOAT;
    const std::vector<double> &want = which == FORWARD ? p.y : which == DATA ? p.dx : p.dw;
    const std::vector<D> configs = configurations(conv_graph(which, p, type), device());
    assert_in_range(configs.size(), 2, 4);
    for (D config : configs) {
        D plan = plan_of(config);
        void *out = block(want.size() * 4), *const workspace = block((size_t)workspace_of(plan));
        void *x = which == DATA ? out : upload(p.x, type), *w = which == FILTER ? out : upload(p.w, type);
        void *y = which == FORWARD ? out : upload(p.dy, type);
        OK(cudnnBackendExecute(handle, plan, pack_of({1, 2, 3}, {x, w, y}, workspace)));
        /* bf16 inputs are exact; TF32 has the same mantissa and more */
        assert_near(download(out, want.size(), type), want, is_float ? 1e-5 : 5e-3);
    }
}

static void convolutions_are_right(void **)
{
    const int64_t cases[][3] = {{1, 1, 1}, {2, 1, 1}, {2, 0, 1}, {1, 0, 0}};
    for (const int64_t *c : cases) {
        const problem p = solve(c[0], c[1], c[2]);
        for (cudnnDataType_t type : {CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16})
            for (pass which : {FORWARD, DATA, FILTER})
                check_pass(which, p, type);
    }
}

/* conv + bias[K] + emb[N,K] + residual, then silu, in one graph. */
static void epilogues_are_right(void **)
{
    const problem p = solve(1, 1, 1);
    const cudnnDataType_t type = CUDNN_DATA_BFLOAT16, real = CUDNN_DATA_FLOAT;
    const int64_t ho = p.ho, wo = p.wo;
    D x = images(1, type, N_, C_, H_, W_), w = images(2, type, K_, C_, 3, 3), y = images(3, type, N_, K_, ho, wo);
    D bias = images(4, real, 1, K_, 1, 1), emb = images(5, real, N_, K_, 1, 1), more = images(6, type, N_, K_, ho, wo);
    D t[4];
    for (int i = 0; i < 4; i++)
        t[i] = images(10 + i, real, N_, K_, ho, wo, true);
    D g = graph({pointwise(CUDNN_POINTWISE_SWISH_FWD, t[3], nullptr, y), /* in any order */
                 finalized(conv_operation(FORWARD, x, w, t[0], convolution(1, 1, 1))),
                 pointwise(CUDNN_POINTWISE_ADD, t[0], bias, t[1]), pointwise(CUDNN_POINTWISE_ADD, t[1], emb, t[2]),
                 pointwise(CUDNN_POINTWISE_ADD, t[2], more, t[3])});
    const std::vector<D> configs = configurations(g, device());
    assert_int_equal(configs.size(), 1);
    const std::vector<float> b = numbers((size_t)K_, 5), e = numbers((size_t)(N_ * K_), 6), r = numbers(p.y.size(), 7);
    std::vector<double> want;
    for (size_t i = 0; i < p.y.size(); i++) {
        const size_t k = i % (size_t)K_, n = i / (p.y.size() / (size_t)N_);
        const double s = p.y[i] + (double)b[k] + (double)e[n * (size_t)K_ + k] + (double)r[i];
        want.push_back(s / (1 + exp(-s)));
    }
    void *out = upload(r, type); /* the residual is where the result goes */
    OK(cudnnBackendExecute(handle, plan_of(configs[0]),
                           pack_of({1, 2, 3, 4, 5, 6}, {upload(p.x, type), upload(p.w, type), out, upload(b, real), upload(e, real), out},
                                   nullptr)));
    assert_near(download(out, want.size(), type), want, 5e-3);
}

/* ---- attention ---- */

/* As one operation, q, k and v being slices of one packed tensor. */
static void attention_is_right(void **)
{
    const int64_t n = 2, heads = 2, t = 5, d = 8, row = 3 * heads * d;
    const cudnnDataType_t type = CUDNN_DATA_BFLOAT16;
    const extents dim = {n, heads, t, d}, stride = {t * row, d, row, 1}, packed = {t * heads * d, d, heads * d, 1};
    D q = tensor(1, type, dim, stride), k = tensor(2, type, dim, stride), v = tensor(3, type, dim, stride),
      o = tensor(4, type, dim, packed), lse = tensor(5, CUDNN_DATA_FLOAT, {n, heads, t, 1}, {heads * t, t, 1, 1}),
      scale = tensor(6, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
    D op = make(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set(op, A(OPERATION_SDPA_FWD_QDESC), q);
    set(op, A(OPERATION_SDPA_FWD_KDESC), k);
    set(op, A(OPERATION_SDPA_FWD_VDESC), v);
    set(op, A(OPERATION_SDPA_FWD_ODESC), o);
    set(op, A(OPERATION_SDPA_FWD_STATSDESC), lse);
    set(op, A(OPERATION_SDPA_FWD_SCALEDESC), scale);
    D plan = plan_of(configurations(graph({finalized(op)}), device())[0]);
    const std::vector<float> qkv = numbers((size_t)(n * t * row), 9);
    std::vector<double> want_o((size_t)(n * t * heads * d), 0), want_lse;
    const float factor = 0.25f;
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t a = 0; a < t; a++) {
                const auto at = [&](int64_t part, int64_t pixel, int64_t c) {
                    return (double)qkv[(size_t)((i * t + pixel) * row + part * heads * d + h * d + c)];
                };
                std::vector<double> p;
                double sum = 0;
                for (int64_t b = 0; b < t; b++) {
                    double dot = 0;
                    for (int64_t c = 0; c < d; c++)
                        dot += at(0, a, c) * at(1, b, c);
                    p.push_back(exp(dot * (double)factor));
                    sum += p.back();
                }
                want_lse.push_back(log(sum));
                for (int64_t b = 0; b < t; b++)
                    for (int64_t c = 0; c < d; c++)
                        want_o[(size_t)(((i * t + a) * heads + h) * d + c)] += p[(size_t)b] / sum * at(2, b, c);
            }
    uint16_t *in = static_cast<uint16_t *>(upload(qkv, type));
    void *out = block(want_o.size() * 2), *sums = block(want_lse.size() * 4);
    OK(cudnnBackendExecute(handle, plan,
                           pack_of({1, 2, 3, 4, 5, 6}, {in, in + heads * d, in + 2 * heads * d, out, sums, (void *)&factor},
                                   block((size_t)workspace_of(plan)))));
    assert_near(download(out, want_o.size(), type), want_o, 5e-3);
    assert_near(download(sums, want_lse.size(), CUDNN_DATA_FLOAT), want_lse, 1e-5);
}

int main()
{
    const struct CMUnitTest tests[] = {CASE(convolutions_are_right), CASE(epilogues_are_right), CASE(attention_is_right)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

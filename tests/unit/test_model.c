/* test_model.c - the U-Net: the published sizes, names and layouts, its gradient against finite
 * differences, and that an image's result does not depend on the batch it came in. */
#include "support.h"

#include "ddpm/model.h"
#include "ops.h"
#include "philox.h"

#include <math.h>
#include <string.h>

static ddpm_backend *be;

static int create_backend(void **state)
{
    (void)state;
    return ddpm_backend_create("cpu", 2, &be) ? -1 : 0;
}

static int free_backend(void **state)
{
    (void)state;
    ddpm_backend_free(be);
    return 0;
}

static ddpm_model_config cifar10(void)
{
    return (ddpm_model_config){.image_height = 32,
                               .image_width = 32,
                               .image_channels = 3,
                               .channels = 128,
                               .channel_mult = {4, {1, 2, 2, 2}},
                               .num_res_blocks = 2,
                               .attention_resolutions = {1, {16}},
                               .num_heads = 1,
                               .norm_groups = 32,
                               .norm_eps = 1e-6,
                               .embedding_shift = 1};
}

static ddpm_model_config tiny(void)
{
    return (ddpm_model_config){.image_height = 8,
                               .image_width = 12,
                               .image_channels = 1,
                               .channels = 8,
                               .channel_mult = {3, {1, 2, 2}},
                               .num_res_blocks = 1,
                               .attention_resolutions = {1, {4}},
                               .num_heads = 2,
                               .norm_groups = 4,
                               .norm_eps = 1e-6,
                               .embedding_shift = 1};
}

static void published_sizes(void **state)
{
    (void)state;
    ddpm_model *m;
    ddpm_model_config c = cifar10();
    assert_int_equal(ddpm_model_create(be, &c, &m), DDPM_OK);
    assert_int_equal(ddpm_model_parameter_total(m), 35746307); /* Ho 2020: 35.7 M */
    assert_true(fabs(ddpm_model_macs(m) / 1e9 - 6.22) < 0.01);
    double sum = 0;
    int64_t parameters = 0;
    for (int i = 0; i < ddpm_model_layer_count(m); i++) {
        ddpm_layer_report r;
        ddpm_model_layer(m, i, &r);
        sum += r.macs;
        parameters += r.parameters;
    }
    assert_true(sum == ddpm_model_macs(m));
    assert_int_equal(parameters, 35746307);
    ddpm_model_free(m);

    c.image_height = c.image_width = 256;
    c.channel_mult = (ddpm_real_list){6, {1, 1, 2, 2, 4, 4}};
    assert_int_equal(ddpm_model_create(be, &c, &m), DDPM_OK);
    assert_int_equal(ddpm_model_parameter_total(m), 113673219); /* Ho 2020: 114 M */
    ddpm_model_free(m);
}

/* Every element of the file's layout arrives, and comes back to where it was. */
static void layouts_are_inverse(void **state)
{
    (void)state;
    ddpm_model *m;
    const ddpm_model_config c = tiny();
    assert_int_equal(ddpm_model_create(be, &c, &m), DDPM_OK);
    const int64_t n = ddpm_model_arena_count(m);
    float *a = calloc((size_t)n, sizeof *a), *b = calloc((size_t)n, sizeof *b),
          *f = calloc((size_t)n, sizeof *f);
    assert_non_null(a);
    assert_non_null(b);
    assert_non_null(f);
    ddpm_model_init(m, 3, a);
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        ddpm_model_to_file_layout(m, i, a, f);
        ddpm_model_from_file_layout(m, i, f, b);
        if (strcmp(p->name, "down_blocks.0.resnets.0.conv1.weight") == 0) {
            assert_int_equal(p->shape[0], 8);
            assert_int_equal(p->shape[2], 3);
            /* OIHW (o=1, i=2, y=0, x=1) is [out,kh,kw,in] (1, 0, 1, 2) */
            assert_true(f[(1 * 8 + 2) * 9 + 1] == a[p->offset + (1 * 9 + 1) * 8 + 2]);
        }
    }
    assert_memory_equal(a, b, (size_t)n * sizeof *a);
    free(a);
    free(b);
    free(f);
    ddpm_model_free(m);
}

static void initial_weights_as_published(void **state)
{
    (void)state;
    ddpm_model *m;
    ddpm_model_config c = cifar10();
    c.channels = 32;
    assert_int_equal(ddpm_model_create(be, &c, &m), DDPM_OK);
    float *a = calloc((size_t)ddpm_model_arena_count(m), sizeof *a);
    assert_non_null(a);
    ddpm_model_init(m, 7, a);
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        double top = 0, square = 0;
        for (int64_t j = 0; j < p->count; j++) {
            top = fmax(top, fabs(a[p->offset + j]));
            square += (double)a[p->offset + j] * a[p->offset + j];
        }
        if (strcmp(p->name, "down_blocks.1.resnets.0.conv1.weight") == 0) { /* 3x3, 32 -> 64 */
            const double limit = sqrt(6.0 / (9 * 32 + 9 * 64));
            assert_true(top <= limit && top > 0.99 * limit);
            /* variance of U(-l, l) is l^2/3; 18432 draws: 3 % is five sigma */
            assert_true(fabs(square / (double)p->count / (limit * limit / 3) - 1) < 0.03);
        }
        if (strcmp(p->name, "conv_out.weight") == 0) assert_true(top > 0 && top < 1e-5);
        if (strstr(p->name, "conv1.bias")) assert_true(top == 0);
        if (strstr(p->name, "norm1.weight")) assert_true(top == 1 && square == (double)p->count);
    }
    free(a);
    ddpm_model_free(m);
}

/* A model with weights, batch buffers and one pass over them. */
struct rig {
    ddpm_model *m;
    float *w, *g, *x, *out, *dout, *dx, *t;
    int32_t *label;
    uint64_t *index;
    int n;
    int64_t per_image;
    struct step_state *state;
};

static float *device_floats(int64_t n)
{
    void *p;
    assert_int_equal(ddpm_backend_alloc(be, (size_t)n * sizeof(float), &p), DDPM_OK);
    return p;
}

static void fill(float *x, int64_t n, uint64_t index)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = 2 * philox_uniform(philox_draw(11, PHILOX_TEST, 0, index, (uint32_t)i).v[0]) - 1;
}

static void rig_init(struct rig *r, const ddpm_model_config *c, int n)
{
    *r = (struct rig){.n = n, .per_image = c->image_height * c->image_width * c->image_channels};
    assert_int_equal(ddpm_model_create(be, c, &r->m), DDPM_OK);
    assert_int_equal(ddpm_model_reserve(r->m, n, true), DDPM_OK);
    const int64_t count = ddpm_model_arena_count(r->m);
    r->w = device_floats(count);
    r->g = device_floats(count);
    ddpm_model_init(r->m, 5, r->w);
    for (int i = 0; i < ddpm_model_parameter_count(r->m);
         i++) { /* no layer may be nearly zero here */
        const ddpm_parameter *p = ddpm_model_parameter(r->m, i);
        float *x = r->w + p->offset;
        const float limit =
            p->rank == 1 ? 0.2f : sqrtf(3.0f * (float)p->shape[0] / (float)p->count);
        const float base = strstr(p->name, "norm") && strstr(p->name, "weight") ? 1.0f : 0.0f;
        fill(x, p->count, (uint64_t)i + 100);
        for (int64_t j = 0; j < p->count; j++)
            x[j] = base + limit * x[j];
    }
    r->x = device_floats(n * r->per_image);
    r->out = device_floats(n * r->per_image);
    r->dout = device_floats(n * r->per_image);
    r->dx = device_floats(n * r->per_image);
    r->t = device_floats(n);
    r->label = (int32_t *)device_floats(n);
    r->index = (uint64_t *)device_floats(2 * n);
    r->state = (struct step_state *)device_floats(64);
    *r->state = (struct step_state){.seed = 9, .step = 4};
    fill(r->x, n * r->per_image, 1);
    for (int i = 0; i < n; i++) {
        r->t[i] = (float)(37 * i + 5);
        r->label[i] = i % 3;
        r->index[i] = (uint64_t)i;
    }
    ddpm_model_bind(r->m, r->w, r->g);
}

static void rig_release(struct rig *r)
{
    float *blocks[] = {r->w,
                       r->g,
                       r->x,
                       r->out,
                       r->dout,
                       r->dx,
                       r->t,
                       (float *)r->label,
                       (float *)r->index,
                       (float *)r->state};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        ddpm_backend_release(be, blocks[i]);
    ddpm_model_free(r->m);
}

/* Images first .. first+n-1 of the rig's batch. */
static void rig_pass(struct rig *r, int first, int n, bool backward, bool dropout)
{
    const ddpm_model_config *c = ddpm_model_configuration(r->m);
    const int64_t at = first * r->per_image;
    ddpm_tensor x =
        ddpm_tensor_4d(r->x + at, n, c->image_height, c->image_width, c->image_channels);
    ddpm_tensor out = x, dout = x, dx = x, t = ddpm_tensor_1d(r->t + first, n);
    out.data = r->out + at;
    dout.data = r->dout + at;
    dx.data = r->dx + at;
    const ddpm_forward_args a = {.x = &x,
                                 .t = &t,
                                 .out = &out,
                                 .label = c->num_classes ? r->label + first : NULL,
                                 .state = dropout ? r->state : NULL,
                                 .index = r->index + first};
    assert_int_equal(ddpm_model_forward(r->m, &a), DDPM_OK);
    if (backward) assert_int_equal(ddpm_model_backward(r->m, &a, &dout, &dx), DDPM_OK);
    assert_int_equal(ddpm_backend_sync(be), DDPM_OK);
}

/* L = sum(probe * out) in double. */
static double rig_value(struct rig *r, const float *probe, bool dropout)
{
    double sum = 0;
    rig_pass(r, 0, r->n, false, dropout);
    for (int64_t i = 0; i < r->n * r->per_image; i++)
        sum += (double)probe[i] * r->out[i];
    return sum;
}

/* The derivative along a random direction of all weights, and of x, against a central difference.
 */
static void check_gradient(const ddpm_model_config *c, bool dropout)
{
    struct rig r;
    rig_init(&r, c, 3);
    const int64_t count = ddpm_model_arena_count(r.m), pixels = r.n * r.per_image;
    float *probe = calloc((size_t)pixels, sizeof *probe), *way = calloc((size_t)count, sizeof *way);
    float *base = calloc((size_t)(count > pixels ? count : pixels), sizeof *base);
    assert_non_null(probe);
    assert_non_null(way);
    assert_non_null(base);
    fill(probe, pixels, 2);
    memcpy(r.dout, probe, (size_t)pixels * sizeof *probe);
    rig_pass(&r, 0, r.n, true, dropout);
    for (int what = 0; what < 2; what++) {
        float *v = what ? r.x : r.w;
        const float *g = what ? r.dx : r.g;
        const int64_t n = what ? pixels : count;
        memcpy(base, v, (size_t)n * sizeof *base);
        for (uint64_t trial = 0; trial < 4; trial++) {
            fill(way, n, 50 + trial);
            double analytic = 0, value[2], scale = 0;
            const float h = what ? 4e-3f : 1e-3f;
            for (int64_t i = 0; i < n; i++)
                analytic += (double)g[i] * way[i], scale += (double)g[i] * g[i];
            for (int side = 0; side < 2; side++) {
                for (int64_t i = 0; i < n; i++)
                    v[i] = base[i] + (side ? -h : h) * way[i];
                value[side] = rig_value(&r, probe, dropout);
            }
            memcpy(v, base, (size_t)n * sizeof *base);
            const double numeric = (value[0] - value[1]) / (2 * h);
            /* truncation h^2 and rounding 1e-7 |L| / h are both near 1e-3 of a typical directional
             * derivative */
            assert_true(fabs(numeric - analytic) < 1e-2 * sqrt(scale / 3));
        }
    }
    free(probe);
    free(way);
    free(base);
    rig_release(&r);
}

static void gradient_is_the_derivative(void **state)
{
    (void)state;
    ddpm_model_config c = tiny();
    check_gradient(&c, false);
    c.num_classes = 3;
    c.scale_shift = true;
    c.downsample_padding = 1;
    c.image_channels = 3;
    check_gradient(&c, false);
    c.dropout = 0.2;
    check_gradient(&c, true);
}

/* Image by image or three at once, dropout included: the same bits. */
static void batch_does_not_matter(void **state)
{
    (void)state;
    ddpm_model_config c = tiny();
    c.dropout = 0.1;
    struct rig r;
    rig_init(&r, &c, 3);
    rig_pass(&r, 0, 3, false, true);
    const size_t bytes = (size_t)(3 * r.per_image) * sizeof(float);
    float *together = malloc(bytes);
    assert_non_null(together);
    memcpy(together, r.out, bytes);
    memset(r.out, 0, bytes);
    for (int i = 0; i < 3; i++)
        rig_pass(&r, i, 1, false, true);
    assert_memory_equal(together, r.out, bytes);
    free(together);
    rig_release(&r);
}

/* A second step on the same memory gives the same gradient: nothing is left behind in the shared
 * step block. */
static void passes_do_not_leak_into_each_other(void **state)
{
    (void)state;
    const ddpm_model_config c = tiny();
    struct rig r;
    rig_init(&r, &c, 2);
    const size_t bytes = (size_t)ddpm_model_arena_count(r.m) * sizeof(float);
    float *first = malloc(bytes);
    assert_non_null(first);
    for (int pass = 0; pass < 2; pass++) {
        fill(r.dout, r.n * r.per_image, 2);
        memset(r.g, 0, bytes);
        rig_pass(&r, 0, 2, true, false);
        if (pass == 0) memcpy(first, r.g, bytes);
    }
    assert_memory_equal(first, r.g, bytes);
    free(first);
    rig_release(&r);
}

static void inference_needs_less_memory(void **state)
{
    (void)state;
    ddpm_model *m;
    const ddpm_model_config c = cifar10();
    assert_int_equal(ddpm_model_create(be, &c, &m), DDPM_OK);
    ddpm_model_memory train, sample;
    const size_t before = ddpm_backend_memory(be);
    assert_int_equal(ddpm_model_measure(m, 8, true, &train), DDPM_OK);
    assert_int_equal(ddpm_model_measure(m, 8, false, &sample), DDPM_OK);
    assert_int_equal(ddpm_backend_memory(be), before);
    assert_true(sample.activation_bytes * 3 < train.activation_bytes);
    assert_int_equal(train.weights_bytes / 4 - 35746307, ddpm_model_arena_count(m) - 35746307);
    ddpm_model_free(m);
}

static void misuse_is_told(void **state)
{
    (void)state;
    struct rig r;
    const ddpm_model_config c = tiny();
    rig_init(&r, &c, 2);
    ddpm_tensor x = ddpm_tensor_4d(r.x, 2, 12, 8, 1), t = ddpm_tensor_1d(r.t, 2), out = x;
    const ddpm_forward_args a = {.x = &x, .t = &t, .out = &out};
    assert_int_equal(ddpm_model_forward(r.m, &a), DDPM_SHAPE);
    assert_non_null(strstr(ddpm_last_error(), "[2,12,8,1]"));
    x = ddpm_tensor_4d(r.x, 3, 8, 12, 1);
    assert_int_equal(ddpm_model_forward(r.m, &a), DDPM_SHAPE);
    assert_non_null(strstr(ddpm_last_error(), "3 images, reserved for 2"));
    rig_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_sizes),
        cmocka_unit_test(layouts_are_inverse),
        cmocka_unit_test(initial_weights_as_published),
        cmocka_unit_test(gradient_is_the_derivative),
        cmocka_unit_test(batch_does_not_matter),
        cmocka_unit_test(passes_do_not_leak_into_each_other),
        cmocka_unit_test(inference_needs_less_memory),
        cmocka_unit_test(misuse_is_told),
    };
    return cmocka_run_group_tests(tests, create_backend, free_backend);
}

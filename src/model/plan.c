/* plan.c - where each tensor of a pass lies in the step block.
 *
 * The plan is read off the passes themselves: forward and backward run once while the backend
 * measures (no data is touched), model_use notes at which op each slot is first and last used, and
 * slots whose lives do not meet may lie in the same bytes. Largest first, each at the lowest place
 * where it meets nobody: within a few per cent of the largest sum alive at any op, in O(n^2) for a
 * few hundred slots, once per batch size. */
#include "blocks.h"

#include "checked.h"

#include <stdlib.h>

enum { SLOT_ALIGN = 64 };

static bool grow_slots(ddpm_model *m)
{
    if (m->n_slots < m->cap_slots) return true;
    const int wanted = m->cap_slots ? 2 * m->cap_slots : 256;
    struct slot *slots = realloc(m->slots, (size_t)wanted * sizeof *slots);
    if (!slots) return false;
    m->slots = slots;
    int *grad = realloc(m->grad, (size_t)wanted * sizeof *grad);
    if (!grad) return false;
    m->grad = grad;
    bool *started = realloc(m->started, (size_t)wanted * sizeof *started);
    if (!started) return false;
    m->started = started;
    m->cap_slots = wanted;
    return true;
}

static int add_slot(struct builder *b, const struct slot *s)
{
    ddpm_model *m = b->m;
    if (b->s) return 0;
    if (!grow_slots(m)) {
        b->s = FAIL(NOMEM, "model: no memory for its tensor table");
        return 0;
    }
    m->slots[m->n_slots] = *s;
    m->slots[m->n_slots].sum = m->slots[m->n_slots].square = NO_SLOT;
    m->grad[m->n_slots] = NO_SLOT;
    m->started[m->n_slots] = false;
    return m->n_slots++;
}

int build_slot(struct builder *b, int rank, const int64_t *dim)
{
    struct slot s = {.parent = NO_SLOT, .first = -1};
    s.tensor.dtype = DDPM_F32;
    s.tensor.rank = rank;
    int64_t stride = 1;
    for (int i = rank; i-- > 0;) {
        s.tensor.dim[i] = dim[i];
        s.tensor.stride[i] = stride;
        stride *= dim[i];
    }
    return add_slot(b, &s);
}

int build_image(struct builder *b, int64_t h, int64_t w, int64_t c)
{
    return build_slot(b, 4, (int64_t[]){0, h, w, c});
}

int build_activation(struct builder *b, int64_t h, int64_t w, int64_t c)
{
    const int y = build_image(b, h, w, c), dy = build_image(b, h, w, c);
    if (!b->s) b->m->grad[y] = dy;
    build_sums(b, y);
    return y;
}

void build_sums(struct builder *b, int slot)
{
    if (b->s) return;
    const int64_t dim[2] = {0, b->m->slots[slot].tensor.dim[3]};
    const int sum = build_slot(b, 2, dim), square = build_slot(b, 2, dim);
    if (b->s) return;
    b->m->slots[slot].sum = sum;
    b->m->slots[slot].square = square;
}

int build_view(struct builder *b, int parent, int64_t offset, int rank, const int64_t *dim,
               const int64_t *stride)
{
    struct slot s = {.parent = parent, .view_offset = offset, .first = -1};
    s.tensor.dtype = DDPM_F32;
    s.tensor.rank = rank;
    for (int i = 0; i < rank; i++) {
        s.tensor.dim[i] = dim[i];
        s.tensor.stride[i] = stride[i];
    }
    return add_slot(b, &s);
}

ddpm_tensor *model_use(ddpm_model *m, int slot)
{
    if (slot < 0) return NULL;
    struct slot *s = &m->slots[slot];
    struct slot *owner = s->parent < 0 ? s : &m->slots[s->parent];
    if (owner->first < 0) owner->first = m->clock;
    if (owner->last < m->clock) owner->last = m->clock;
    s->tensor.dim[0] = m->batch;
    return &s->tensor;
}

static bool lives_meet(const struct slot *a, const struct slot *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* Insertion sort, stable: the plan must not depend on a library's sort. */
static void sort_largest_first(const ddpm_model *m, int *order, int n)
{
    for (int i = 1; i < n; i++) {
        const int moving = order[i];
        int j = i;
        for (; j > 0 && m->slots[order[j - 1]].bytes < m->slots[moving].bytes; j--)
            order[j] = order[j - 1];
        order[j] = moving;
    }
}

/* The lowest offset at which s meets none of the slots already placed. */
static size_t lowest_place(const ddpm_model *m, const int *order, int n_placed,
                           const struct slot *s)
{
    size_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < n_placed; i++) {
            const struct slot *p = &m->slots[order[i]];
            if (!lives_meet(s, p) || at >= p->offset + p->bytes || at + s->bytes <= p->offset)
                continue;
            at = p->offset + p->bytes;
            moved = true;
        }
    }
    return at;
}

static ddpm_status place_all(ddpm_model *m, int max_batch, size_t *total)
{
    int *order = calloc((size_t)m->n_slots, sizeof *order);
    REQUIRE(order, NOMEM, "model: no memory to plan %d tensors", m->n_slots);
    int n = 0;
    for (int i = 0; i < m->n_slots; i++) {
        struct slot *s = &m->slots[i];
        if (s->parent >= 0 || s->first < 0) continue;
        size_t bytes;
        s->tensor.dim[0] = max_batch;
        if (!checked_product(s->tensor.dim, s->tensor.rank, ddpm_dtype_size(s->tensor.dtype),
                             &bytes) ||
            bytes > SIZE_MAX / 2) {
            free(order);
            return FAIL(CONFIG, "model: an activation of a batch of %d does not fit an address",
                        max_batch);
        }
        s->bytes = (bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
        order[n++] = i;
    }
    sort_largest_first(m, order, n);
    *total = 0;
    for (int i = 0; i < n; i++) {
        struct slot *s = &m->slots[order[i]];
        s->offset = lowest_place(m, order, i, s);
        if (s->offset + s->bytes > *total) *total = s->offset + s->bytes;
    }
    free(order);
    return DDPM_OK;
}

/* Runs the passes with nothing behind them. The pointers are never followed: the backend measures.
 */
static ddpm_status walk(ddpm_model *m, int batch, bool training)
{
    const ddpm_model_config *c = &m->cfg;
    ddpm_tensor x = ddpm_tensor_4d(NULL, batch, c->image_height, c->image_width, c->image_channels);
    ddpm_tensor out = x;
    out.dtype = ddpm_model_activation(m);
    ddpm_tensor dout = out;
    ddpm_tensor t = ddpm_tensor_1d(NULL, batch);
    const struct step_state state = {0};
    const uint64_t index = 0;
    const int32_t label = 0;
    const ddpm_forward_args a = {.x = &x,
                                 .t = &t,
                                 .out = &out,
                                 .label = c->num_classes ? &label : NULL,
                                 .state = training ? &state : NULL,
                                 .index = &index};
    TRY(ddpm_model_forward(m, &a));
    if (training) TRY(ddpm_model_backward(m, &a, &dout, NULL));
    return DDPM_OK;
}

ddpm_status plan_reserve(ddpm_model *m, int max_batch, bool training, size_t *step_bytes)
{
    for (int i = 0; i < m->n_slots; i++) {
        m->slots[i].first = m->slots[i].last = -1;
        m->slots[i].tensor.data = NULL;
    }
    const int old_max = m->max_batch;
    const bool old_training = m->training;
    m->max_batch = max_batch;
    m->training = training;
    m->clock = 0;
    ddpm_backend_measure(m->be, true);
    const ddpm_status s = walk(m, max_batch, training);
    ddpm_backend_measure(m->be, false);
    m->max_batch = old_max;
    m->training = old_training;
    TRY(s);
    return place_all(m, max_batch, step_bytes);
}

void plan_place(ddpm_model *m, unsigned char *base)
{
    for (int i = 0; i < m->n_slots; i++) {
        struct slot *s = &m->slots[i];
        if (s->parent < 0) s->tensor.data = base && s->first >= 0 ? base + s->offset : NULL;
    }
    for (int i = 0; i < m->n_slots; i++) {
        struct slot *s = &m->slots[i];
        if (s->parent < 0) continue;
        unsigned char *of = m->slots[s->parent].tensor.data;
        const size_t skipped = (size_t)s->view_offset * ddpm_dtype_size(s->tensor.dtype);
        s->tensor.data = of ? of + skipped : NULL;
    }
}

/* dataset.c - the endless shuffled stream of training batches, and the images held out from it.
 *
 * Job        batch `step` as a pure function of (pack, options, step), ready before it is asked
 *            for.
 * Method     position p of the stream is image perm(seed, epoch)(p mod n_train) of epoch p /
 *            n_train (order.h), so a batch may cross epochs, or hold the data several times,
 *            without a special case, and resuming needs no saved state. Held-out images are the
 *            first positions of one more permutation under a fixed key. Reading threads fill a
 *            ring of batches ahead of the caller; a step that does not follow the last one empties
 *            the ring and starts it there.
 * Cost       half a microsecond of order and one copy an image; a pack that fits memory_bytes is
 *            read once, hashes checked. Nothing is allocated after the opening.
 * Rejected   a shuffled array of numbers per epoch: memory and a pause at each epoch's start;
 *            dropping the last part of an epoch: with a batch above the data nothing would be
 *            left. */
#include "ddpm/dataset.h"

#include "checked.h"
#include "fail.h"
#include "order.h"
#include "pack_reader.h"
#include "philox.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 256, MESSAGE_BYTES = 1024 };
static const int64_t DEFAULT_MEMORY_BYTES = INT64_C(2) << 30;
/* The validation images are the same for every seed. */
static const uint64_t SPLIT_KEY = UINT64_C(0x64617461736574);
static const uint32_t SPLIT_EPOCH = UINT32_MAX;

enum slot_state { SLOT_FREE, SLOT_FILLING, SLOT_READY };

typedef struct {
    enum slot_state state;
    uint64_t step;
    ddpm_status status; /* of the filling, with its message */
    char message[MESSAGE_BYTES];
    uint8_t *images, *flip;
    int64_t *labels, *number; /* labels NULL without */
} batch_slot;

struct ddpm_dataset {
    pack_reader *pack;
    ddpm_dataset_info info;
    ddpm_dataset_options opts;
    uint8_t *memory; /* the whole pack, or NULL: images are read when needed */

    batch_slot *slots;
    int n_slots;
    pthread_t *threads;
    int n_threads; /* started */
    bool has_locks;
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* a slot became free; a slot became ready */
    bool is_quitting;
    bool is_running;    /* threads may take steps; false until the first batch is asked for */
    uint64_t next_fill; /* the step that the next free thread takes */
    uint64_t last_step; /* the caller's borrowed step */
    bool has_last;
};

/* ---- which image stands where ---- */

static int64_t image_of_train(const ddpm_dataset *ds, uint64_t position)
{
    const uint64_t n = (uint64_t)ds->info.n_train;
    uint64_t i = order_at(ds->opts.seed, (uint32_t)(position / n), n, position % n);
    if (ds->info.n_validation)
        i = order_at(SPLIT_KEY, SPLIT_EPOCH, (uint64_t)ds->info.n,
                     (uint64_t)ds->info.n_validation + i);
    return (int64_t)i;
}

static int64_t image_of_validation(const ddpm_dataset *ds, int64_t i)
{
    return (int64_t)order_at(SPLIT_KEY, SPLIT_EPOCH, (uint64_t)ds->info.n, (uint64_t)i);
}

static ddpm_status image_copy(const ddpm_dataset *ds, int64_t index, uint8_t *dst)
{
    const size_t bytes = ds->pack->image_bytes;
    if (!ds->memory) return pack_reader_image(ds->pack, index, dst);
    memcpy(dst, ds->memory + (size_t)index * bytes, bytes);
    return DDPM_OK;
}

/* ---- filling a slot ---- */

static ddpm_status slot_fill(const ddpm_dataset *ds, batch_slot *slot)
{
    const uint64_t batch = (uint64_t)ds->opts.batch, from = slot->step * batch;
    for (uint64_t i = 0; i < batch; i++) {
        const int64_t index = image_of_train(ds, from + i);
        slot->number[i] = index;
        if (slot->labels) slot->labels[i] = ds->pack->labels[index];
        slot->flip[i] = 0;
        if (ds->opts.flip)
            slot->flip[i] = philox_draw(ds->opts.seed, PHILOX_FLIP, 0, from + i, 0).v[0] >> 31;
        TRY(image_copy(ds, index, slot->images + i * ds->pack->image_bytes));
    }
    return DDPM_OK;
}

static void slot_run(const ddpm_dataset *ds, batch_slot *slot)
{
    slot->status = slot_fill(ds, slot);
    if (slot->status) status_copy_message(slot->message, sizeof slot->message);
}

static void *reader_main(void *user)
{
    ddpm_dataset *ds = user;
    pthread_mutex_lock(&ds->lock);
    while (!ds->is_quitting) {
        batch_slot *slot = &ds->slots[ds->next_fill % (uint64_t)ds->n_slots];
        if (!ds->is_running || slot->state != SLOT_FREE) {
            pthread_cond_wait(&ds->work, &ds->lock);
            continue;
        }
        slot->state = SLOT_FILLING;
        slot->step = ds->next_fill++;
        pthread_mutex_unlock(&ds->lock);
        slot_run(ds, slot);
        pthread_mutex_lock(&ds->lock);
        slot->state = SLOT_READY;
        pthread_cond_broadcast(&ds->done);
    }
    pthread_mutex_unlock(&ds->lock);
    return NULL;
}

/* Empties the ring and starts it at `step`. Called with the lock held. */
static void ring_restart(ddpm_dataset *ds, uint64_t step)
{
    ds->is_running = false;
    for (int i = 0; i < ds->n_slots; i++) {
        while (ds->slots[i].state == SLOT_FILLING)
            pthread_cond_wait(&ds->done, &ds->lock);
        ds->slots[i].state = SLOT_FREE;
    }
    ds->next_fill = step;
    ds->is_running = true;
    pthread_cond_broadcast(&ds->work);
}

/* ---- opening and closing ---- */

static ddpm_status slots_create(ddpm_dataset *ds)
{
    const size_t batch = (size_t)ds->opts.batch;
    size_t image_bytes = 0, number_bytes = 0;
    REQUIRE(checked_mul(batch, ds->pack->image_bytes, &image_bytes) &&
                checked_mul(batch, sizeof(int64_t), &number_bytes),
            NOMEM, "a batch of %zu images does not fit the address space", batch);
    const int n = ds->opts.threads ? ds->opts.threads + 2 : 1; /* one borrowed, one ready */
    ds->slots = calloc((size_t)n, sizeof *ds->slots);
    REQUIRE(ds->slots, NOMEM, "dataset: %d batches ahead", n);
    ds->n_slots = n;
    for (int i = 0; i < n; i++) {
        batch_slot *slot = &ds->slots[i];
        slot->images = malloc(image_bytes);
        slot->flip = malloc(batch);
        slot->number = malloc(number_bytes);
        if (ds->pack->labels) slot->labels = malloc(number_bytes);
        REQUIRE(slot->images && slot->flip && slot->number && (slot->labels || !ds->pack->labels),
                NOMEM, "dataset: %d batches of %zu bytes read ahead; use fewer threads", n,
                image_bytes);
    }
    return DDPM_OK;
}

static ddpm_status threads_start(ddpm_dataset *ds)
{
    if (pthread_mutex_init(&ds->lock, NULL)) return FAIL(NOMEM, "dataset: no mutex");
    if (pthread_cond_init(&ds->work, NULL)) {
        pthread_mutex_destroy(&ds->lock);
        return FAIL(NOMEM, "dataset: no condition variable");
    }
    if (pthread_cond_init(&ds->done, NULL)) {
        pthread_cond_destroy(&ds->work);
        pthread_mutex_destroy(&ds->lock);
        return FAIL(NOMEM, "dataset: no condition variable");
    }
    ds->has_locks = true;
    ds->threads = calloc((size_t)ds->opts.threads, sizeof *ds->threads);
    REQUIRE(ds->threads, NOMEM, "dataset: %d threads", ds->opts.threads);
    /* Signals are the main thread's: it alone decides when to save and stop. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int error = 0;
    while (!error && ds->n_threads < ds->opts.threads) {
        error = pthread_create(&ds->threads[ds->n_threads], NULL, reader_main, ds);
        if (!error) ds->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    REQUIRE(!error, NOMEM, "dataset: thread %d of %d: %s", ds->n_threads + 1, ds->opts.threads,
            strerror(error));
    return DDPM_OK;
}

static ddpm_status open_all(ddpm_dataset *ds, const char *path)
{
    const ddpm_dataset_options *o = &ds->opts;
    REQUIRE(o->validation >= 0 && o->batch >= 0 && o->threads >= 0 && o->threads <= MAX_THREADS,
            ARG,
            "dataset: validation %" PRId64 ", batch %" PRId64 ", threads %d (0 .. %d)",
            o->validation, o->batch, o->threads, MAX_THREADS);
    TRY(pack_reader_open(path, &ds->pack));
    const pack_reader *p = ds->pack;
    REQUIRE(o->validation < p->n, CONFIG,
            "%s: %" PRId64 " images held out for validation leave none of %" PRId64 " to train on",
            path, o->validation, p->n);
    ds->info = (ddpm_dataset_info){
        .n = p->n,
        .height = p->height,
        .width = p->width,
        .channels = p->channels,
        .n_train = p->n - o->validation,
        .n_validation = o->validation,
        .n_classes = p->n_classes,
        .source_hash = p->source,
    };
    const int64_t limit = o->memory_bytes ? o->memory_bytes : DEFAULT_MEMORY_BYTES;
    size_t bytes = 0;
    REQUIRE(checked_mul((size_t)p->n, p->image_bytes, &bytes), FORMAT, "%s: too large", path);
    if (limit > 0 && bytes <= (uint64_t)limit) {
        ds->memory = malloc(bytes);
        REQUIRE(ds->memory, NOMEM, "%s: %zu bytes to hold it in memory", path, bytes);
        TRY(pack_reader_all(p, ds->memory));
    }
    if (o->batch == 0) return DDPM_OK;
    TRY(slots_create(ds));
    return o->threads ? threads_start(ds) : DDPM_OK;
}

ddpm_status ddpm_dataset_open(const char *path, const ddpm_dataset_options *opts,
                              ddpm_dataset **out)
{
    *out = NULL;
    ddpm_dataset *ds = calloc(1, sizeof *ds);
    REQUIRE(ds, NOMEM, "dataset: %zu bytes", sizeof *ds);
    if (opts) ds->opts = *opts;
    const ddpm_status s = open_all(ds, path);
    if (s) {
        ddpm_dataset_close(ds);
        return s;
    }
    *out = ds;
    return DDPM_OK;
}

void ddpm_dataset_close(ddpm_dataset *ds)
{
    if (!ds) return;
    if (ds->has_locks) {
        pthread_mutex_lock(&ds->lock);
        ds->is_quitting = true;
        pthread_cond_broadcast(&ds->work);
        pthread_mutex_unlock(&ds->lock);
        for (int i = 0; i < ds->n_threads; i++)
            pthread_join(ds->threads[i], NULL);
        pthread_cond_destroy(&ds->done);
        pthread_cond_destroy(&ds->work);
        pthread_mutex_destroy(&ds->lock);
    }
    for (int i = 0; i < ds->n_slots; i++) {
        free(ds->slots[i].images);
        free(ds->slots[i].flip);
        free(ds->slots[i].labels);
        free(ds->slots[i].number);
    }
    free(ds->slots);
    free(ds->threads);
    free(ds->memory);
    pack_reader_close(ds->pack);
    free(ds);
}

const uint8_t *ddpm_dataset_memory(const ddpm_dataset *ds, const int64_t **labels)
{
    *labels = ds->pack->labels;
    return ds->memory;
}

const ddpm_dataset_info *ddpm_dataset_describe(const ddpm_dataset *ds)
{
    return &ds->info;
}

const char *ddpm_dataset_class_name(const ddpm_dataset *ds, int label)
{
    if (!ds->pack->classes || label < 0 || label >= ds->pack->n_names) return NULL;
    return ds->pack->classes[label];
}

/* ---- reading ---- */

static batch_slot *slot_wait(ddpm_dataset *ds, uint64_t step)
{
    if (!ds->has_locks) {
        ds->slots[0].step = step;
        slot_run(ds, &ds->slots[0]);
        return &ds->slots[0];
    }
    batch_slot *slot = &ds->slots[step % (uint64_t)ds->n_slots];
    pthread_mutex_lock(&ds->lock);
    if (!ds->has_last || step != ds->last_step + 1) {
        ring_restart(ds, step);
    } else {
        ds->slots[ds->last_step % (uint64_t)ds->n_slots].state = SLOT_FREE;
        pthread_cond_signal(&ds->work);
    }
    ds->has_last = true;
    ds->last_step = step;
    while (slot->state != SLOT_READY || slot->step != step)
        pthread_cond_wait(&ds->done, &ds->lock);
    pthread_mutex_unlock(&ds->lock);
    return slot;
}

ddpm_status ddpm_dataset_next(ddpm_dataset *ds, uint64_t step, ddpm_batch *out)
{
    REQUIRE(ds->opts.batch > 0, ARG, "dataset: opened without a batch size");
    REQUIRE(step < (UINT64_C(1) << 56) / (uint64_t)ds->opts.batch, ARG,
            "dataset: step %" PRIu64 " of batches of %" PRId64 " is beyond 2^56 images", step,
            ds->opts.batch);
    const batch_slot *slot = slot_wait(ds, step);
    if (slot->status) {
        status_set_message(slot->message);
        return slot->status;
    }
    *out = (ddpm_batch){
        .images = slot->images, .flip = slot->flip, .labels = slot->labels, .number = slot->number};
    return DDPM_OK;
}

ddpm_status ddpm_dataset_validation(ddpm_dataset *ds, int64_t first, int64_t count, uint8_t *images,
                                    int64_t *labels)
{
    REQUIRE(first >= 0 && count >= 0 && first <= ds->info.n_validation &&
                count <= ds->info.n_validation - first,
            ARG, "dataset: validation images %" PRId64 " + %" PRId64 ", there are %" PRId64, first,
            count, ds->info.n_validation);
    for (int64_t i = 0; i < count; i++) {
        const int64_t index = image_of_validation(ds, first + i);
        TRY(image_copy(ds, index, images + (size_t)i * ds->pack->image_bytes));
        if (labels && ds->pack->labels) labels[i] = ds->pack->labels[index];
    }
    return DDPM_OK;
}

/* device_pack.c - the whole data set on a GPU, as bytes, where it fits: a step then takes nothing
 * from the host but a list of numbers.
 *
 * Only what the host holds too (data.memory_mib) is placed, and only into a quarter of the memory
 * that is left when all else has been taken: previews and libraries want some. CIFAR-10 is 180 MB.
 */
#include "trainer.h"

#include "arena.h"
#include "fail.h"

#include <stdlib.h>

enum { SHARE = 4, ALIGN = 256 };

static void layout(ddpm_trainer *t, arena *a, size_t images)
{
    t->pack = arena_take(a, images * (size_t)(t->h * t->w * t->c), ALIGN);
    t->pack_labels = t->label ? arena_take(a, images * sizeof *t->pack_labels, ALIGN) : NULL;
    t->number = arena_take(a, (size_t)t->batch * sizeof *t->number, ALIGN);
}

static ddpm_status upload_labels(ddpm_trainer *t, const int64_t *labels, size_t images)
{
    int32_t *narrow = malloc(images * sizeof *narrow);
    REQUIRE(narrow, NOMEM, "trainer: %zu labels", images);
    for (size_t i = 0; i < images; i++)
        narrow[i] = (int32_t)labels[i];
    const ddpm_status s =
        ddpm_backend_upload(t->be, t->pack_labels, narrow, images * sizeof *narrow);
    free(narrow);
    return s;
}

ddpm_status trainer_place_pack(ddpm_trainer *t)
{
    const int64_t *labels;
    const uint8_t *images = ddpm_dataset_memory(t->data, &labels);
    const size_t n = (size_t)ddpm_dataset_describe(t->data)->n;
    size_t available;
    if (ddpm_backend_is_cpu(t->be) || !images || n > INT32_MAX) return DDPM_OK;
    TRY(ddpm_backend_memory_available(t->be, &available));
    arena a = {0};
    layout(t, &a, n);
    t->pack = NULL; /* nothing is there yet */
    if (a.peak > available / SHARE) return DDPM_OK;
    TRY(ddpm_backend_alloc(t->be, a.peak, &t->pack_block));
    a = (arena){.base = t->pack_block, .size = a.peak};
    layout(t, &a, n);
    TRY(ddpm_backend_upload(t->be, t->pack, images, n * (size_t)(t->h * t->w * t->c)));
    return t->pack_labels ? upload_labels(t, labels, n) : DDPM_OK;
}

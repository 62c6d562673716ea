/* packed.c - packed weights that outlive a call.
 *
 * Training packs weights in every call: they change, and packing is a thousandth of the product. Sampling calls the same
 * network a thousand times, often with one image, and promises by ddpm_backend_freeze_weights that nothing changes. A plain
 * list: a network has a few hundred weights, and the search is nothing beside a convolution. */
#include "cpu_backend.h"

ddpm_status packed_place(ddpm_backend *be, const void *weights, int form, size_t bytes, void *transient, void **out,
                         bool *is_ready)
{
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    *out = transient;
    *is_ready = false;
    if (!be->is_frozen) return DDPM_OK;
    for (int i = 0; i < cpu->n_packed; i++) {
        const struct cpu_packed *p = &cpu->packed[i];
        if (p->weights == weights && p->form == form && p->bytes == bytes) {
            *out = p->data;
            *is_ready = true;
            return DDPM_OK;
        }
    }
    if (cpu->n_packed == PACKED_MAX) return DDPM_OK; /* the rest is packed in each call */
    struct cpu_packed *p = &cpu->packed[cpu->n_packed];
    TRY(cpu_alloc(be, bytes, &p->data));
    p->weights = weights;
    p->form = form;
    p->bytes = bytes;
    cpu->n_packed++;
    *out = p->data;
    return DDPM_OK;
}

void packed_clear(ddpm_backend *be)
{
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    for (int i = 0; i < cpu->n_packed; i++)
        cpu_release(be, cpu->packed[i].data);
    cpu->n_packed = 0;
}

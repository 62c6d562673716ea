/* onednn.h - convolutions of oneDNN 2.6 or 3.x, one thread each: the only place that knows the library.
 *
 * A `struct onednn_conv` is one pass of one shape on dense NHWC activations, with the weights in whatever blocked layout
 * the library likes. It is made once per shape and kept; running it allocates nothing of ours. */
#ifndef CPU_ONEDNN_H
#define CPU_ONEDNN_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum onednn_pass { ONEDNN_FORWARD, ONEDNN_DATA };

/* Ints alone, so that two keys are the same when their bytes are. */
struct onednn_key {
    int32_t pass, n, h, w, c, k, kh, kw, stride, pad_top, pad_left, pad_bottom, pad_right;
    int32_t has_bias; /* forward alone */
    int32_t adds;     /* forward alone: to what stands in y */
};

struct onednn;
struct onednn_conv;

/* threads: the largest `thread` of onednn_run, plus one. */
ddpm_status onednn_create(int threads, struct onednn **out);
void onednn_free(struct onednn *o); /* accepts NULL */
const char *onednn_version(void);   /* "2.6.3" */

/* The convolution of a key, made when it is asked for the first time. Borrowed; lives as long as o. */
ddpm_status onednn_conv(struct onednn *o, const struct onednn_key *key, struct onednn_conv **out);
/* Bytes of the blocked weights (64-byte aligned), and of the scratch of one running thread. */
size_t onednn_packed_bytes(const struct onednn_conv *c);
size_t onednn_scratch_bytes(const struct onednn_conv *c);
/* Do two convolutions read the same packed weights? */
bool onednn_same_weights(const struct onednn_conv *a, const struct onednn_conv *b);
/* From plain [K,kh,kw,C]. Called on one thread at a time. */
ddpm_status onednn_pack(struct onednn *o, struct onednn_conv *c, const float *w, void *packed);

/* forward: y from x, w, bias.   data: x from y, w.   w packed. */
struct onednn_run {
    float *x, *w, *y;
    const float *bias;
    void *scratch;
};
/* From within a task of cpu_run. False when the library failed. */
bool onednn_run(struct onednn *o, struct onednn_conv *c, int thread, const struct onednn_run *r);

#endif

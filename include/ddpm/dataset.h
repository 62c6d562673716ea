/* dataset.h - packs: images and labels as the GPU job reads them, and the endless shuffled stream
 * of batches. */
#ifndef DDPM_DATASET_H
#define DDPM_DATASET_H

#include "ddpm/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ddpm_dataset ddpm_dataset;

typedef struct {
    int64_t n, height, width, channels; /* of the whole pack */
    int64_t n_train, n_validation;
    int n_classes;           /* 0 without labels */
    const char *source_hash; /* 32 hex digits: the pack's identity; owned by the dataset */
} ddpm_dataset_info;

/* Zero means default. */
typedef struct {
    int64_t validation;   /* images held out: chosen by a fixed key, the same for every seed */
    int64_t memory_bytes; /* packs up to this size are held whole in memory, larger ones are read by
                             pread; less than 0: all of them are */
    int threads;          /* reading ahead; 0: the calling thread reads */
    int64_t batch; /* images per batch of the training stream; required by ddpm_dataset_next */
    uint64_t seed; /* of order and flips */
    bool flip;
} ddpm_dataset_options;

/* path: a pack file or a folder of shards. NOINPUT, PERM, FORMAT, NOMEM; CONFIG when validation
 * leaves no image to train on. */
ddpm_status ddpm_dataset_open(const char *path, const ddpm_dataset_options *opts,
                              ddpm_dataset **out);
void ddpm_dataset_close(ddpm_dataset *ds); /* joins its threads; accepts NULL */
/* All images of the pack [n,h,w,c], by the numbers that batches give, and labels [n] or NULL; NULL where
 * the pack is not held in memory. Borrowed. */
const uint8_t *ddpm_dataset_memory(const ddpm_dataset *ds, const int64_t **labels);
const ddpm_dataset_info *ddpm_dataset_describe(const ddpm_dataset *ds);
const char *ddpm_dataset_class_name(const ddpm_dataset *ds, int label); /* NULL when unnamed */

/* A batch of the training stream. Borrowed: valid until the next call of ddpm_dataset_next. */
typedef struct {
    const uint8_t *images; /* [batch, H, W, C] */
    const uint8_t *flip;   /* [batch], 1: mirror left and right */
    const int64_t *labels; /* [batch]; NULL without labels */
    const int64_t *number; /* [batch] which image of the pack */
} ddpm_batch;

/* Batch `step` (0, 1, ...) of the stream: position p = step * batch + i lies in epoch p / n_train
 * and is image perm(seed, epoch)(p % n_train), every image exactly once per epoch, also where a
 * batch crosses epochs or is larger than the data. A pure function of (pack, options, step); steps
 * in order are prefetched. IO, FORMAT. */
ddpm_status ddpm_dataset_next(ddpm_dataset *ds, uint64_t step, ddpm_batch *out);

/* Validation images first .. first+count-1 (0 <= first, first+count <= n_validation) into images
 * [count,H,W,C] and labels [count] (may be NULL). Unflipped, in a fixed order. */
ddpm_status ddpm_dataset_validation(ddpm_dataset *ds, int64_t first, int64_t count, uint8_t *images,
                                    int64_t *labels);

#ifdef __cplusplus
}
#endif
#endif

/* pack_input.h - all sources of a pack as one list of images. */
#ifndef DATA_PACK_INPUT_H
#define DATA_PACK_INPUT_H

#include "pack.h"

typedef struct {
    const char *const *names; /* as given; borrowed */
    pack_source *sources;
    int64_t *first; /* [n_sources + 1]: number of each source's first image */
    int n_sources;  /* opened */
    int64_t n;      /* images, opts->limit applied */
    bool needs_decoder, has_labels;
    int height, width, channels; /* of the pack */
    char **classes;              /* NULL without labels; owned */
    int n_classes;
    int **class_map;   /* [n_sources]: a source's class to the pack's; NULL: the same */
    char source[33];   /* hash of names, sizes, options: "ddpm.source" */
    char identity[33]; /* the same and the files' times: whether parts of an earlier run may be used
                        */
} pack_input;

/* Opens and compares the sources and settles the pack's size. NOINPUT, PERM, FORMAT, NOMEM, IO,
 * ARG. */
ddpm_status pack_input_open(pack_input *in, const char *const *sources, int n_sources,
                            const pack_options *opts);
void pack_input_close(pack_input *in); /* accepts half-opened ones */

/* needs_decoder: the path of image i. */
const char *pack_input_path(const pack_input *in, int64_t i);
/* -1: none is known. */
int64_t pack_input_label(const pack_input *in, int64_t i);
/* Not needs_decoder: images first .. first+count-1, fitted, into images [count, height, width,
 * channels]. reasons[i] is set (malloc'd) where image i is rejected. */
ddpm_status pack_input_read(pack_input *in, int64_t first, int64_t count, int fit, uint8_t *images,
                            char **reasons);

#endif

/* pack.h - `ddpm pack`: sources to a pack.
 *
 * A pack is one or more safetensors files: images U8 [N,H,W,C], labels I64 [N] (absent where the sources have none);
 * metadata "ddpm.kind" = "pack", "ddpm.classes" = JSON array of names, "ddpm.source" = XXH3-128 over the list of sources
 * (names, sizes, options), "ddpm.shard" = "k/n", "ddpm.total". A pack above shard_bytes is a folder of
 * pack-00000-of-00004.safetensors; else a single file. */
#ifndef DATA_PACK_H
#define DATA_PACK_H

#include "ddpm/status.h"
#include "progress.h"

#include <stdbool.h>
#include <stdint.h>

enum pack_fit { PACK_FIT_REFUSE, PACK_FIT_CROP, PACK_FIT_PAD };
enum pack_labels { PACK_LABELS_NONE, PACK_LABELS_FOLDER, PACK_LABELS_PREFIX, PACK_LABELS_CSV };

typedef struct {
    int height, width;  /* 0: the size of the first image, which all must have */
    int channels;       /* 0: what the first image has (1 or 3); alpha is composed on black, grey and RGB convert */
    enum pack_fit fit;  /* when a size differs. CROP: halve by box while both sides are >= 2x, bicubic to cover, centre
                         * crop, as guided-diffusion does; PAD: shrink to fit, centre on black; REFUSE: reject */
    enum pack_labels labels; /* FOLDER: first sub-folder's name; PREFIX: the name before the first '_' */
    const char *csv;    /* "file,label" lines, for PACK_LABELS_CSV */
    int threads;        /* decoding processes; 0: all cores */
    bool skip_bad;      /* leave damaged files out and go on; otherwise they are listed and the status is FORMAT */
    uint64_t shard_bytes; /* 0: 2 GiB */
    int64_t limit;      /* take only the first so many images; 0: all */
} pack_options;

typedef struct {
    int64_t packed, rejected, height, width, channels;
    int n_classes;
    uint64_t bytes;
    double seconds;
} pack_report;

/* sources: folders, single .png/.jpg/.jpeg files, idx files (images-idx3-ubyte[.gz]; the labels file beside it is found by
 * its name), CIFAR-10/100 binary batches (.bin), .npz with arr_0 U8 [N,H,W,C] and optionally arr_1 labels. Several
 * sources of one kind are concatenated. Order: sources as given, files within a folder sorted by byte.
 * Each rejected file is written as one line "reason<TAB>path" to `OUTPUT.rejected.txt` and the first ten to the sink. Run
 * again, it takes up where it was stopped (decoded shards stay in OUTPUT.part/) ; `*stop` (may be NULL), set by a signal
 * handler, ends it with STOPPED. Nothing is committed to `output` unless all of it is.
 * FORMAT (rejections without skip_bad, or no image left), NOINPUT, PERM, CANTCREAT, IO, NOMEM, ARG. */
ddpm_status pack_run(const char *const *sources, int n_sources, const char *output,
                     const pack_options *opts, const log_sink *sink, const volatile int *stop,
                     pack_report *report);

/* ---- what each kind of source gives; one file per kind implements it ---- */
typedef struct pack_source pack_source;
struct pack_source {
    int64_t n;               /* images */
    int height, width, channels; /* of every image; 0 where each file has its own */
    bool needs_decoder;      /* files for the sandboxed child (image.h); else `read` gives pixels */
    const char *const *paths;    /* needs_decoder: [n], owned */
    int64_t *labels;         /* [n] or NULL, owned */
    char **classes;          /* names or NULL, owned */
    int n_classes;
    ddpm_status (*read)(pack_source *s, int64_t first, int64_t count, uint8_t *images);
    void (*close)(pack_source *s);
    void *state;
};
ddpm_status source_open_folder(const char *path, const pack_options *o, pack_source *out);
ddpm_status source_open_idx(const char *path, const pack_options *o, pack_source *out);
ddpm_status source_open_cifar(const char *path, const pack_options *o, pack_source *out);
ddpm_status source_open_npz(const char *path, const pack_options *o, pack_source *out);

#endif

/* products.h - convolutions, dense layers and attention by cuDNN and cuBLASLt instead of kernels/.
 *
 * products.c       the table: one entry for each distinct call, found by its signature; runs the chosen way
 * product_kinds.c  which tensors and numbers a call has, its graphs and matrices
 * tune.c           candidates of an entry, built in threads, timed on the device
 * tune_cache.c     what was chosen, on disk
 * matmul.c         cuBLASLt
 *
 * An entry is made when its call is first seen: while measuring, or before a step is captured. Its candidates are timed at
 * the first call that is not measured (or never, where the options ask for determinism), so that nothing is built,
 * allocated or waited for in a step. A call that is new while its stream is captured is left to kernels/.
 *
 * The environment variable DDPM_LIBRARIES=0 leaves everything to kernels/. */
#ifndef BACKEND_CUDA_PRODUCTS_H
#define BACKEND_CUDA_PRODUCTS_H

#include "cuda_backend.h"
#include "cudnn_forms.h"
#include "matmul.h"

/* ---- kinds of calls ---- */

enum product_kind_name {
    PRODUCT_CONV,
    PRODUCT_CONV_DATA,
    PRODUCT_CONV_FILTER,
    PRODUCT_LINEAR,
    PRODUCT_LINEAR_DATA, /* the two halves of linear_bwd */
    PRODUCT_LINEAR_WEIGHTS,
    PRODUCT_ATTENTION,
    PRODUCT_ATTENTION_BWD,
    PRODUCT_KINDS
};

enum { PRODUCT_TENSORS = 11, PRODUCT_UIDS = 3, PRODUCT_NUMBERS = 7 };

/* A tensor of the arguments: where its pointer stands, and what graphs call it (0: no more names). */
struct product_field {
    size_t at;
    bool is_output;
    int64_t uid[PRODUCT_UIDS];
};

/* A number of the arguments that belongs to a call's signature. */
struct product_number {
    size_t at;
    size_t bytes; /* of an int, a float or a bool */
};

struct product_kind {
    const char *op;
    size_t args_bytes;
    int n_fields, n_numbers;
    struct product_field field[PRODUCT_TENSORS];
    struct product_number number[PRODUCT_NUMBERS];
    ddpm_status (*forms)(const void *args, const struct cudnn_plan_rules *rules, struct cudnn_forms *out);
    /* Whether the call is one product of matrices, and which; `left` of cudnn_left. */
    bool (*matrices)(const void *args, struct matmul_shape *out, unsigned *left);
    /* The same by kernels/. */
    size_t (*own_scratch)(const void *args);
    cudaError_t (*own)(cudaStream_t stream, const void *args, void *scratch);
};

extern const struct product_kind product_kinds[PRODUCT_KINDS];

/* NULL where the field is. */
const ddpm_tensor *product_tensor(const struct product_kind *k, const void *args, int field);
/* All pointers of a call by uid, each tensor once a name; the number written, at most PRODUCT_TENSORS * PRODUCT_UIDS. */
int product_pointers(const struct product_kind *k, const void *args, struct cudnn_pointer *out);

/* ---- the table ---- */

/* One way to compute a call. */
struct product_way {
    const char *form;        /* "fused", "plain", "matmul", "cublaslt", "own", ...; static */
    unsigned left;           /* of cudnn_left */
    struct cudnn_plan *plan; /* or */
    struct matmul *matmul;   /* or neither: kernels/ */
    float milliseconds; /* 0: not timed */
};

enum { PRODUCT_WAYS = 32, PRODUCT_KEY_NUMBERS = 104 };

struct product {
    enum product_kind_name kind;
    bool adds_to_y; /* conv2d: residual is y */
    int n_key;
    int64_t key[PRODUCT_KEY_NUMBERS];
    struct product *next; /* with the same hash */
    /* The arguments with their tensors, without data: for candidates that are made later. */
    void *args;
    ddpm_tensor tensors[PRODUCT_TENSORS];
    struct cudnn_forms forms;
    int n_ways;
    struct product_way way[PRODUCT_WAYS];
    int chosen;    /* -1: there is none, the op is left to kernels/ */
    bool is_tuned; /* or needs not to be */
    size_t scratch_bytes; /* of the chosen way */
};

enum { PRODUCT_BUCKETS = 256 };

struct products {
    struct cuda_backend *be; /* borrowed */
    cudnnHandle_t cudnn;
    struct matmul_library *matmuls; /* NULL: built without cuBLASLt */
    struct cudnn_device *device;
    struct product *bucket[PRODUCT_BUCKETS];
    struct tune_cache *cache; /* NULL: none */
    int n_untuned;
};

/* Runs one way on `stream` with all its remainders; scratch: product_scratch bytes of it. For tune.c too. */
ddpm_status product_run(struct products *all, const struct product *p, const struct product_way *way, const void *args,
                        cudaStream_t stream, void *scratch);
/* Whether this way of a convolution writes its sum and square, or one of its gradient g with sum and product. */
bool product_gives_sums(const struct product_way *way);
size_t product_scratch(const struct product *p, const struct product_way *way);
/* Whether every pointer of the call lies as the way wants it. */
bool product_fits(const struct product *p, const struct product_way *way, const void *args);
struct cudnn_plan_rules product_rules(const struct products *all);

/* ---- tune.c ---- */

/* The first way of a new entry that can be built, or what the cache has. */
ddpm_status tune_first(struct products *all, struct product *p);
/* Times the ways of every entry that has not been. */
ddpm_status tune_all(struct products *all);
/* A way may want so much more scratch than the entry's first. What is measured promises it, until all is timed. */
#define TUNE_MORE_SCRATCH ((size_t)32 << 20)

/* ---- tune_cache.c ---- */

/* The file of this GPU and these versions; a damaged one is ignored with a notice. */
ddpm_status tune_cache_open(struct products *all, struct tune_cache **out);
void tune_cache_free(struct tune_cache *c); /* accepts NULL */
/* The way chosen before: its form, and its plan's or algorithm's text; NULL where there is none. Borrowed. */
const char *tune_cache_find(const struct tune_cache *c, const char *key, const char **form);
ddpm_status tune_cache_put(struct tune_cache *c, const char *key, const char *form, const char *text);
/* Written where something was put; a failure is a notice. */
void tune_cache_save(struct products *all, struct tune_cache *c);

#endif

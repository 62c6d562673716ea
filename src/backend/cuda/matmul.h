/* matmul.h - products of matrices by cuBLASLt, chosen once for a shape. */
#ifndef BACKEND_CUDA_MATMUL_H
#define BACKEND_CUDA_MATMUL_H

#include "cuda_backend.h"

/* c = a b (+ bias over rows) (+ residual). a [M,K], b [K,N], c [M,N]: views with one stride of 1; bias f32 [N], where c is
 * f32, or NULL; residual with the strides of c, or c itself. uid: as cudnn_graph.h names them in a call. */
struct matmul_shape {
    ddpm_tensor a, b, c;
    int64_t a_uid, b_uid, c_uid, bias_uid, residual_uid; /* 0: none */
};

struct matmul_library; /* opaque */
struct matmul;

ddpm_status matmul_library_create(struct cuda_backend *be, struct matmul_library **out);
void matmul_library_free(struct matmul_library *l); /* accepts NULL */
size_t matmul_library_version(void);

enum { MATMUL_ALGORITHMS = 8 };
/* The algorithms that cuBLASLt offers, best first; at most MATMUL_ALGORITHMS, none where it has none. */
ddpm_status matmul_list(struct matmul_library *l, const struct matmul_shape *s, bool uses_tf32, struct matmul **out, int *n);
void matmul_free(struct matmul *m); /* accepts NULL */
size_t matmul_workspace(const struct matmul *m);
/* The least alignment of the pointer of that uid; 1 for uids it does not read. */
int matmul_alignment(const struct matmul *m, int64_t uid);
/* data: by uid, as find gives it. */
ddpm_status matmul_run(struct matmul_library *l, const struct matmul *m, void *(*find)(const void *from, int64_t uid),
                       const void *from, void *workspace, cudaStream_t stream);
/* An algorithm as text of hexadecimal digits (the caller frees), and back: NULL where the text is none. */
ddpm_status matmul_to_text(const struct matmul *m, char **out);
ddpm_status matmul_from_text(struct matmul_library *l, const struct matmul_shape *s, bool uses_tf32, const char *text,
                             struct matmul **out);

#endif

/* far.h - kernels at the far end of tensors of more than 2^32 elements that are never there as a
 * whole.
 *
 * A tensor is address space without memory (zeros where it is read), of which only the last rows
 * get values. A launch runs only the blocks at the ends of its grid (control.h); extents are chosen
 * so that the last ones own those rows. The same op, all blocks, over the rows alone must then give
 * the same bits: what it gives there, other tests hold against float64; what is left to be wrong
 * here is where it reads and writes. */
#ifndef TESTS_KERNELS_FAR_H
#define TESTS_KERNELS_FAR_H

#include "control.h"
#include "halves.h"
#include "launch.h"

#include <sys/mman.h>

#define FAR_ELEMENTS ((int64_t)1 << 32)
enum { FAR_GRID = 65535 }; /* blocks that most kernels stop at, grid_for */

static struct {
    void *data;
    size_t bytes;
} far_maps[64];
static int far_count;

/* Zeros, page-aligned. A system that counts address space as memory skips the test. */
static inline void *far_take(int64_t bytes)
{
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        print_message("no address space for %lld bytes\n", (long long)bytes);
        skip();
    }
    assert_true(far_count < (int)(sizeof far_maps / sizeof *far_maps));
    far_maps[far_count].data = p;
    far_maps[far_count++].bytes = (size_t)bytes;
    return p;
}

static inline int far_teardown(void **state)
{
    cuda_on_cpu_only_ends(0);
    while (far_count > 0) {
        far_count--;
        munmap(far_maps[far_count].data, far_maps[far_count].bytes);
    }
    return op_teardown(state);
}

/* Offsets do not depend on the order of threads: one schedule is enough. */
static inline bool far_is_wanted(void)
{
    const char *schedule = getenv("CUDA_ON_CPU_SCHEDULE");
    return !schedule || strcmp(schedule, "forward") == 0;
}

#define FAR_TEST(f) cmocka_unit_test_teardown(f, far_teardown)

/* A far tensor, its last `rows` rows (of dim[0]) as a tensor of its own, and where in `all` those
 * begin. What is read is shared; what is written, the tail has for itself. */
struct far {
    ddpm_tensor all, tail;
    struct values at;
};

static inline int64_t far_size(const ddpm_tensor *t)
{
    return t->dim[0] * t->stride[0];
}

/* shape without data; askew: elements off alignment. which 0: all zero, else random. */
static inline struct far far_input(ddpm_tensor shape, ddpm_dtype dtype, int64_t rows, int askew,
                                   uint64_t which)
{
    struct far f = {.all = shape, .tail = shape};
    const int64_t size = (int64_t)ddpm_dtype_size(dtype),
                  first = far_size(&shape) - rows * shape.stride[0];
    f.at.n = rows * shape.stride[0];
    f.at.dtype = dtype;
    f.all.dtype = f.tail.dtype = dtype;
    f.all.data = (char *)far_take((far_size(&shape) + askew) * size) + askew * size;
    f.at.data = f.tail.data = (char *)f.all.data + first * size;
    f.tail.dim[0] = rows;
    if (which)
        memcpy(f.at.data, random_values(f.at.n, dtype, 0, which, -1, 1).data,
               (size_t)(f.at.n * size));
    return f;
}

/* Written, or with `which` read and written. */
static inline struct far far_output(ddpm_tensor shape, ddpm_dtype dtype, int64_t rows, int askew,
                                    uint64_t which)
{
    struct far f = far_input(shape, dtype, rows, askew, which);
    f.tail.data = copy_of_values(f.at, askew).data;
    return f;
}

/* The bits of the far tensor's last elements, `count` of them or all, are those of the tail; and
 * they are not all zero. */
#define far_check(f, count) far_same(__FILE__, __LINE__, #f, f, count)
static inline void far_same(const char *file, int line, const char *what, struct far f,
                            int64_t count)
{
    const size_t size = ddpm_dtype_size(f.at.dtype);
    const struct values tail = {f.tail.data, f.at.n, f.at.dtype};
    bool is_zero = true;
    for (int64_t i = f.at.n - (count ? count : f.at.n); i < f.at.n; i++) {
        is_zero = is_zero && value_at(tail, i) == 0;
        if (memcmp((char *)f.at.data + (size_t)i * size, (char *)f.tail.data + (size_t)i * size,
                   size) != 0)
            fail_msg("%s:%d: %s: element %lld of the tail is %.9g, alone %.9g", file, line, what,
                     (long long)i, value_at(f.at, i), value_at(tail, i));
    }
    if (is_zero) fail_msg("%s:%d: %s: nothing was written", file, line, what);
}

static inline void far_launched(cudaError_t e)
{
    assert_int_equal(e, cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

/* launch_OP over `far`, `blocks` at either end of each grid, then over `tail`, all blocks. */
#define FAR_LAUNCH(op, blocks, far, tail)                                                          \
    do {                                                                                           \
        const struct op##_args far_args_ = far, tail_args_ = tail;                                 \
        void *far_scratch_ = far_take((int64_t)scratch_##op(&far_args_) + 256);                    \
        void *tail_scratch_ = far_take((int64_t)scratch_##op(&tail_args_) + 256);                  \
        cuda_on_cpu_only_ends(blocks);                                                             \
        far_launched(launch_##op(NULL, &far_args_, far_scratch_));                                 \
        cuda_on_cpu_only_ends(0);                                                                  \
        far_launched(launch_##op(NULL, &tail_args_, tail_scratch_));                               \
    } while (0)
#define FAR_ARGS(...)                                                                              \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* Rows of `width` elements that make up more than FAR_ELEMENTS, a multiple of FAR_GRID * per_block.
 */
static inline int64_t far_rows(int64_t width, int64_t per_block)
{
    const int64_t step = FAR_GRID * per_block;
    return (FAR_ELEMENTS / (width * step) + 1) * step;
}

#endif

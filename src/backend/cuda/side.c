/* side.c - the gradient of a convolution's weights beside the gradient of its input.
 *
 * Both read dy; at small resolutions neither fills the device. The first is queued on a stream of its own, forked from the
 * main one by an event and joined by another before anything else is queued, but for the gradient of an input that writes
 * nothing the first reads. So at most one call runs beside another, every sum has one place in the order, and the bits are
 * those of one stream. Events are captured like kernels: a recorded step has the fork in it.
 *
 * The side's scratch is a block of its own. */
#include "cuda_backend.h"

#include <stdlib.h>

enum { READS = 2, WRITES = 3 };

/* Memory from the first to behind the last element of a view. */
struct range {
    const unsigned char *begin, *end;
};

struct cuda_side {
    cudaStream_t stream;
    cudaEvent_t forked, done;
    bool is_pending; /* something is queued there that the main stream has not waited for */
    struct range reads[READS], writes[WRITES];
    void *scratch;
    size_t scratch_size;
};

static struct range range_of(const ddpm_tensor *t)
{
    if (!t) return (struct range){NULL, NULL};
    int64_t last = 1;
    for (int i = 0; i < t->rank; i++)
        last += (t->dim[i] - 1) * t->stride[i];
    const unsigned char *begin = t->data;
    return (struct range){begin, begin + (size_t)last * ddpm_dtype_size(t->dtype)};
}

static bool overlap(struct range a, struct range b)
{
    return a.begin < b.end && b.begin < a.end;
}

static bool meets(struct range a, const struct range *others, int n)
{
    for (int i = 0; i < n; i++)
        if (overlap(a, others[i])) return true;
    return false;
}

ddpm_status cuda_side_create(struct cuda_backend *be)
{
    struct cuda_side *s = be->side = calloc(1, sizeof *s);
    REQUIRE(s, NOMEM, "side stream: %zu bytes", sizeof *s);
    TRY(cuda_check(be, "stream", cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking)));
    TRY(cuda_check(be, "stream", cudaEventCreateWithFlags(&s->forked, cudaEventDisableTiming)));
    return cuda_check(be, "stream", cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming));
}

void cuda_side_free(struct cuda_backend *be)
{
    struct cuda_side *s = be->side;
    if (!s) return;
    if (s->stream) cuda_note(be, "stream", cudaStreamSynchronize(s->stream));
    cuda_give_back(be, s->scratch, s->scratch_size);
    if (s->forked) (void)cudaEventDestroy(s->forked);
    if (s->done) (void)cudaEventDestroy(s->done);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    free(s);
    be->side = NULL;
}

ddpm_status cuda_side_scratch(struct cuda_backend *be, size_t bytes, void **out)
{
    struct cuda_side *s = be->side;
    *out = NULL;
    if (bytes > be->side_wanted) be->side_wanted = bytes;
    cuda_count_scratch(be);
    if (be->base.is_measuring || bytes == 0) return DDPM_OK;
    if (s->scratch_size < bytes) {
        cuda_give_back(be, s->scratch, s->scratch_size);
        s->scratch = NULL;
        s->scratch_size = 0;
        TRY(cuda_take(be, "scratch", be->side_wanted, &s->scratch));
        s->scratch_size = be->side_wanted;
    }
    *out = s->scratch;
    return DDPM_OK;
}

ddpm_status cuda_side_fork(struct cuda_backend *be, cudaStream_t *out)
{
    TRY(cuda_check(be, "fork", cudaEventRecord(be->side->forked, be->stream)));
    TRY(cuda_check(be, "fork", cudaStreamWaitEvent(be->side->stream, be->side->forked, 0)));
    be->side->is_pending = true;
    *out = be->side->stream;
    return DDPM_OK;
}

void cuda_side_keeps(struct cuda_backend *be, const struct conv2d_bwd_filter_args *a)
{
    struct cuda_side *s = be->side;
    s->reads[0] = range_of(a->x);
    s->reads[1] = range_of(a->dy);
    s->writes[0] = range_of(a->dw);
    s->writes[1] = range_of(a->db);
    s->writes[2] = range_of(a->demb);
}

ddpm_status cuda_side_join(struct cuda_backend *be)
{
    struct cuda_side *s = be->side;
    if (!s || !s->is_pending) return DDPM_OK;
    s->is_pending = false;
    TRY(cuda_check(be, "join", cudaEventRecord(s->done, s->stream)));
    return cuda_check(be, "join", cudaStreamWaitEvent(be->stream, s->done, 0));
}

bool cuda_side_lets_pass(const struct cuda_backend *be, const struct conv2d_bwd_data_args *a)
{
    const struct cuda_side *s = be->side;
    if (!s || !s->is_pending) return false;
    const ddpm_tensor *const written[] = {a->dx, a->sum, a->product};
    const ddpm_tensor *const read[] = {a->w, a->dy, a->norm.x, a->norm.gamma, a->norm.beta, a->norm.scale, a->norm.shift,
                                       a->norm.stats};
    bool is_free = true;
    for (size_t i = 0; i < sizeof written / sizeof *written; i++)
        is_free = is_free && !meets(range_of(written[i]), s->reads, READS) && !meets(range_of(written[i]), s->writes, WRITES);
    for (size_t i = 0; i < sizeof read / sizeof *read; i++)
        is_free = is_free && !meets(range_of(read[i]), s->writes, WRITES);
    return is_free;
}

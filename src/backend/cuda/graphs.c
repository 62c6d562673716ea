/* graphs.c - recordings as CUDA graphs: capture of the main stream, an executable graph, its launches.
 *
 * Whatever an op enqueues on the main stream, and on streams that it forks from there and joins again by events, becomes
 * part of the graph. Captured in thread-local mode: threads that build plans meanwhile are not hindered. Nothing may
 * wait, allocate or copy to the host meanwhile; calls of the backend that would are refused by cuda_recording_forbids. */
#include "cuda_backend.h"

bool cuda_can_record(const ddpm_backend *base)
{
    return !((const struct cuda_backend *)base)->syncs_each_op; /* waiting is not for graphs */
}

ddpm_status cuda_record_begin(ddpm_backend *base)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_side_join(be)); /* what is under way there is not part of it */
    TRY(cuda_check(be, "graph", cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeThreadLocal)));
    be->is_recording = true;
    return DDPM_OK;
}

ddpm_status cuda_record_end(ddpm_backend *base, void **out)
{
    struct cuda_backend *be = cuda_of(base);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    *out = NULL;
    be->is_recording = false;
    const ddpm_status joined = cuda_side_join(be); /* a stream that was forked and not joined spoils the graph */
    cudaError_t e = cudaStreamEndCapture(be->stream, &graph);
    if (!e) e = cudaGraphInstantiate(&executable, graph, 0);
    if (graph) cuda_note(be, "graph", cudaGraphDestroy(graph));
    TRY(cuda_check(be, "graph", e));
    *out = executable;
    return joined;
}

ddpm_status cuda_record_launch(ddpm_backend *base, void *graph)
{
    struct cuda_backend *be = cuda_of(base);
    TRY(cuda_enter(be));
    TRY(cuda_side_join(be));
    return cuda_check(be, "graph", cudaGraphLaunch(graph, be->stream));
}

void cuda_record_free(ddpm_backend *base, void *graph)
{
    struct cuda_backend *be = cuda_of(base);
    cuda_note(be, "graph", cudaSetDevice(be->ordinal));
    cuda_note(be, "graph", cudaStreamSynchronize(be->stream)); /* it may be running */
    cuda_note(be, "graph", cudaGraphExecDestroy(graph));
}

ddpm_status cuda_recording_forbids(const struct cuda_backend *be, const char *what)
{
    REQUIRE(!be->is_recording, BUG, "%s: among calls that are recorded", what);
    return DDPM_OK;
}

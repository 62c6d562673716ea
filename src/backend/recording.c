/* recording.c - calls that run again and again, as one graph where the device has graphs.
 *
 * Job        the same calls, the same bits, whether they are made or replayed.
 * Method     run 1 makes the calls: plans are chosen and scratch is taken, which a recording forbids. Run 2 makes them
 *            while the device notes them, and launches; from then on a run is a launch. A block that was released since,
 *            scratch too, may be one that the graph points to: it is made anew, by the same two runs.
 * Failing    calls that cannot be noted (a library that allocates or waits) are made one by one from then on, and a
 *            notice says why. A device that is lost fails either way.
 * Rejected   begin and end around calls: what is to run again would have to be said twice, to the CPU and to a GPU. */
#include "backend_internal.h"

#include "fail.h"

#include <stdlib.h>

struct ddpm_recording {
    ddpm_backend *be; /* borrowed */
    ddpm_calls calls;
    void *user;  /* borrowed */
    void *graph; /* the device's; NULL: none */
    bool was_run, is_refused;
    uint64_t releases; /* of the backend when run 1 had ended */
    int64_t launches;
};

ddpm_status ddpm_recording_create(ddpm_backend *be, ddpm_calls calls, void *user, ddpm_recording **out)
{
    *out = calloc(1, sizeof **out);
    REQUIRE(*out, NOMEM, "recording: %zu bytes", sizeof **out);
    **out = (struct ddpm_recording){.be = be, .calls = calls, .user = user};
    return DDPM_OK;
}

void ddpm_recording_reset(ddpm_recording *r)
{
    if (r->graph) r->be->device->record_free(r->be, r->graph);
    r->graph = NULL;
    r->was_run = false;
}

void ddpm_recording_free(ddpm_recording *r)
{
    if (!r) return;
    ddpm_recording_reset(r);
    free(r);
}

int64_t ddpm_recording_launches(const ddpm_recording *r)
{
    return r->launches;
}

static bool is_recordable(const struct ddpm_recording *r)
{
    const ddpm_backend *be = r->be;
    return be->device->can_record && !r->is_refused && !be->options.keeps_calls_apart && !be->is_profiling &&
           be->device->can_record(be);
}

static ddpm_status record(struct ddpm_recording *r)
{
    const struct backend_device *device = r->be->device;
    TRY(device->record_begin(r->be));
    const ddpm_status s = r->calls(r->user), ended = device->record_end(r->be, &r->graph);
    if (!s && !ended) return DDPM_OK;
    if (r->graph) device->record_free(r->be, r->graph);
    r->graph = NULL;
    return s ? s : ended;
}

ddpm_status ddpm_recording_run(ddpm_recording *r)
{
    if (!is_recordable(r)) return r->calls(r->user);
    if (r->was_run && r->releases != r->be->releases) ddpm_recording_reset(r);
    if (!r->was_run) {
        TRY(r->calls(r->user));
        r->was_run = true;
        r->releases = r->be->releases;
        return DDPM_OK;
    }
    if (!r->graph && record(r) != DDPM_OK) {
        backend_note(r->be, "calls are made one by one instead of as a graph: %.200s", ddpm_last_error());
        r->is_refused = true;
        return r->calls(r->user);
    }
    r->launches++;
    return r->be->device->record_launch(r->be, r->graph);
}

/* errors.c - the one place where a CUDA code becomes a status.
 *
 * A code is sticky when the context is lost: after an illegal address, a launch failure, an ECC fault every later call
 * fails alike, and only a new process gets the device back. Such a device is sick: the first fault's message is kept
 * and every later call of the backend fails with it before it reaches CUDA, so no data of that device gets out.
 *
 * Faults inside kernels arrive late, at whatever call comes next: the name in front is where the fault was seen, which
 * is where it happened only with DDPM_SYNC=1. The message says so. */
#include "cuda_backend.h"

#include <stdio.h>

static bool is_sticky(cudaError_t e)
{
    switch (e) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorPriorLaunchFailure:
    case cudaErrorNoDevice: /* fallen off the bus */
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorSystemNotReady:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
        return true;
    default:
        return false;
    }
}

/* What only a wrong call gives: no other device would take it. */
static bool is_our_bug(cudaError_t e)
{
    switch (e) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidPitchValue:
    case cudaErrorInvalidSymbol:
    case cudaErrorInvalidMemcpyDirection:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorIllegalState:
    case cudaErrorNotPermitted:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureWrongThread:
    case cudaErrorCapturedEvent:
        return true;
    default:
        return false;
    }
}

bool cuda_is_lost(void)
{
    return is_sticky(cudaPeekAtLastError());
}

void cuda_note(struct cuda_backend *be, const char *what, cudaError_t e)
{
    if (!e) return;
    (void)cudaGetLastError(); /* a code that is not sticky must not meet the next call */
    if (!is_sticky(e) || be->is_sick) return;
    be->is_sick = true;
    const bool may_be_late = be->stream && !be->syncs_each_op;
    snprintf(be->first_fault, sizeof be->first_fault, "%s: %s on cuda:%d: %s%s", what, cudaGetErrorName(e), be->ordinal,
             cudaGetErrorString(e), may_be_late ? " (here or in an op before; DDPM_SYNC=1 names it)" : "");
}

ddpm_status cuda_check(struct cuda_backend *be, const char *what, cudaError_t e)
{
    if (!e) return DDPM_OK;
    const char *name = cudaGetErrorName(e), *sentence = cudaGetErrorString(e);
    cuda_note(be, what, e);
    REQUIRE(!be->is_sick, BACKEND, "%s", be->first_fault);
    if (e == cudaErrorMemoryAllocation)
        return FAIL(NOMEM, "%s: out of memory on cuda:%d (%s)", what, be->ordinal, name);
    REQUIRE(!is_our_bug(e), BUG, "%s: %s on cuda:%d: %s", what, name, be->ordinal, sentence);
    return FAIL(BACKEND, "%s: %s on cuda:%d: %s", what, name, be->ordinal, sentence);
}

ddpm_status cuda_fault(struct cuda_backend *be, ddpm_status s)
{
    if (!s) return DDPM_OK;
    cuda_note(be, "library", cudaPeekAtLastError());
    REQUIRE(!be->is_sick, BACKEND, "%s", be->first_fault);
    return s;
}

ddpm_status cuda_no_memory(struct cuda_backend *be, const char *what, size_t bytes)
{
    size_t available = 0, total = 0;
    const cudaError_t e = cudaMemGetInfo(&available, &total);
    if (e) {
        cuda_note(be, "free memory", e);
        REQUIRE(!be->is_sick, BACKEND, "%s", be->first_fault);
        return FAIL(NOMEM, "%s: cuda:%d cannot give %zu bytes (%.2f GiB)", what, be->ordinal, bytes,
                    (double)bytes / 0x1p30);
    }
    return FAIL(NOMEM, "%s: cuda:%d cannot give %zu bytes (%.2f GiB): %zu bytes (%.2f GiB) of %.2f GiB are free", what,
                be->ordinal, bytes, (double)bytes / 0x1p30, available, (double)available / 0x1p30,
                (double)total / 0x1p30);
}

ddpm_status cuda_enter(struct cuda_backend *be)
{
    REQUIRE(!be->is_sick, BACKEND, "%s", be->first_fault);
    TRY(cuda_check(be, "device", cudaSetDevice(be->ordinal)));
    return be->passes_side ? DDPM_OK : cuda_side_join(be);
}

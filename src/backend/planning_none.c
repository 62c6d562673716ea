/* planning_none.c - what builds without CUDA or without cuDNN answer: that they do not know. */
#include "planning.h"

#include "fail.h"

#ifndef DDPM_CUDA
void planning_own_kernels(const struct planning_call *c, struct planning_own *out)
{
    (void)c;
    *out = (struct planning_own){.is_known = false};
}

size_t planning_staging(size_t largest)
{
    (void)largest;
    return 0;
}
#endif

#ifndef DDPM_CUDNN

const char *planning_cudnn_version(void)
{
    return NULL;
}

ddpm_status planning_engines_create(const char *json, const struct planning_engine_options *o, struct planning_engines **out)
{
    (void)json, (void)o;
    *out = NULL;
    return FAIL(BACKEND, "engines: this build has no cuDNN");
}

ddpm_status planning_gpu_properties(int ordinal, char **json)
{
    (void)ordinal;
    *json = NULL;
    return FAIL(BACKEND, "GPU properties: this build has no cuDNN, which describes the device");
}

void planning_engines_free(struct planning_engines *e)
{
    (void)e;
}

size_t planning_spare(const struct planning_engines *e)
{
    (void)e;
    return 0;
}

ddpm_status planning_engines_of(const struct planning_engines *e, const struct planning_call *c,
                                struct planning_engine out[PLANNING_FORMS], int *n)
{
    (void)e, (void)c, (void)out;
    *n = 0;
    return DDPM_OK;
}

#endif

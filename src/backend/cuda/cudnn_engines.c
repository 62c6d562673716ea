/* cudnn_engines.c - the best engine of every form of a noted call, for `ddpm plan --gpu`. */
#include "products.h"

#include "backend_internal.h"
#include "fail.h"
#include "planning.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct planning_engines {
    struct cudnn_device *device;
    struct cudnn_plan_rules rules;
    bool compiles;
};

const char *planning_cudnn_version(void)
{
    static _Thread_local char text[32];
    const size_t v = cudnnGetVersion();
    snprintf(text, sizeof text, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return text;
}

ddpm_status planning_engines_create(const char *json, const struct planning_engine_options *o, struct planning_engines **out)
{
    struct planning_engines *e = calloc(1, sizeof *e);
    REQUIRE(e, NOMEM, "engines: %zu bytes", sizeof *e);
    e->rules = (struct cudnn_plan_rules){.is_deterministic = o->is_deterministic, .uses_tf32 = o->uses_tf32};
    e->compiles = o->compiles;
    const ddpm_status s = cudnn_device_from_json(json, &e->device);
    if (s) {
        free(e);
        return s;
    }
    *out = e;
    return DDPM_OK;
}

void planning_engines_free(struct planning_engines *e)
{
    if (!e) return;
    cudnn_device_free(e->device);
    free(e);
}

/* cuDNN's description has no width of the memory bus; it minds members it does not know as little as their order. */
ddpm_status planning_gpu_properties(int ordinal, char **json)
{
    struct cudnn_device *d;
    char *told = NULL;
    struct cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, ordinal);
    REQUIRE(!e, BACKEND, "GPU properties: %s: %s", cudaGetErrorName(e), cudaGetErrorString(e));
    TRY(cudnn_device_from_gpu(ordinal, &d));
    ddpm_status s = cudnn_device_json(d, &told);
    cudnn_device_free(d);
    TRY(s);
    if (told[0] != '{' || asprintf(json, "{\"memoryBusWidth\":%d,%s", p.memoryBusWidth, told + 1) < 0)
        s = FAIL(BACKEND, "GPU properties: not what was expected of cuDNN: %.100s", told);
    free(told);
    return s;
}

size_t planning_spare(const struct planning_engines *e)
{
    return e->rules.is_deterministic ? 0 : 2 * TUNE_MORE_SCRATCH; /* of the main stream's, and of the side's */
}

static void copy_plan(const struct cudnn_plan *plan, struct planning_engine *out)
{
    out->is_built = true;
    out->engine = plan->engine;
    memcpy(out->kernel, plan->kernel, sizeof out->kernel);
    out->workspace_bytes = plan->workspace_bytes;
    out->is_deterministic = plan->is_deterministic;
    out->is_compiled = plan->is_compiled;
    out->copies_tensor = plan->copies_tensor;
}

static ddpm_status best_engine(const struct planning_engines *e, const struct cudnn_form *form, struct planning_engine *out)
{
    struct cudnn_plan_list list;
    struct cudnn_plan *plan = NULL;
    struct cudnn_engine_notes notes = {0};
    *out = (struct planning_engine){.form = form->name,
                                    .engine = -1,
                                    .leaves_epilogue = form->left & CUDNN_LEFT_EPILOGUE || form->left & CUDNN_LEFT_SUMS,
                                    .leaves_sum = form->left & CUDNN_LEFT_ADD,
                                    .gives_sums = cudnn_form_gives_sums(form->name),
                                    .wants_lines = strcmp(form->name, CUDNN_FORM_GRADIENT) == 0};
    snprintf(out->graph, sizeof out->graph, "%s", form->graph->name);
    TRY(cudnn_plan_list_best(form->graph, e->device, &e->rules, &list));
    out->is_found = list.n > 0;
    ddpm_status s = list.n ? cudnn_plan_list_notes(&list, 0, &notes) : DDPM_OK;
    out->engine = notes.engine;
    out->is_deterministic = notes.is_deterministic && !form->graph->any_order;
    out->is_compiled = notes.is_compiled;
    if (!s && out->is_found && (!notes.is_compiled || e->compiles)) {
        s = cudnn_plan_first(form->graph, &list, &plan);
        out->is_found = plan != NULL;
        if (plan) copy_plan(plan, out);
    }
    cudnn_plan_list_release(&list);
    cudnn_plan_free(plan);
    return s;
}

/* Takes over the forms. */
static ddpm_status add_engines(const struct planning_engines *e, int product, struct cudnn_forms *forms,
                               struct planning_engine out[PLANNING_FORMS], int *n)
{
    ddpm_status s = DDPM_OK;
    for (int i = 0; !s && i < forms->n; i++) {
        s = best_engine(e, &forms->form[i], &out[*n]);
        out[(*n)++].product = product;
    }
    cudnn_forms_release(forms);
    return s;
}

#define ADD(forms_of, op, product)                                                                                   \
    do {                                                                                                             \
        struct cudnn_forms f;                                                                                        \
        TRY(cudnn_forms_##forms_of(&c->args.op, &e->rules, &f));                                                     \
        TRY(add_engines(e, product, &f, out, n));                                                                    \
    } while (0)

ddpm_status planning_engines_of(const struct planning_engines *e, const struct planning_call *c,
                                struct planning_engine out[PLANNING_FORMS], int *n)
{
    *n = 0;
    switch (c->op) {
    case OP_conv2d:
        ADD(conv2d, conv2d, 0);
        break;
    case OP_conv2d_bwd_data:
        ADD(conv2d_bwd_data, conv2d_bwd_data, 0);
        break;
    case OP_conv2d_bwd_filter:
        ADD(conv2d_bwd_filter, conv2d_bwd_filter, 0);
        break;
    case OP_attention:
        ADD(attention, attention, 0);
        break;
    case OP_attention_bwd:
        ADD(attention_bwd, attention_bwd, 0);
        break;
    case OP_linear:
        ADD(linear, linear, 0);
        break;
    case OP_linear_bwd:
        ADD(linear_bwd_data, linear_bwd, 0);
        ADD(linear_bwd_weights, linear_bwd, 1);
        break;
    default:
        break;
    }
    return DDPM_OK;
}

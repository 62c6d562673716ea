/* planning_cuda.c - what a call costs on a CUDA device: own launches by their own code, engines by cuDNN. No GPU is touched. */
#include "planning.h"

#include "backend_internal.h"
#include "fail.h"
#include "launch.h"
#include "launch_count.h"

/* ---- own kernels ---- */

/* Of a library's product: what is added behind it by kernels of ours. */
static void launch_left(const struct planning_call *c)
{
    switch (c->op) {
    case OP_conv2d:
        if (c->args.conv2d.bias || c->args.conv2d.emb || c->args.conv2d.residual)
            (void)launch_conv_epilogue(NULL, &c->args.conv2d);
        break;
    case OP_conv2d_bwd_filter:
        if (c->args.conv2d_bwd_filter.db || c->args.conv2d_bwd_filter.demb)
            (void)launch_conv_sums(NULL, &c->args.conv2d_bwd_filter, NULL);
        break;
    case OP_linear_bwd: {
        const struct linear_bwd_args *l = &c->args.linear_bwd;
        if (!l->db) break;
        ddpm_tensor rows = ddpm_tensor_4d(NULL, 1, 1, l->dy->dim[0], l->dy->dim[1]);
        rows.dtype = l->dy->dtype;
        (void)launch_conv_sums(NULL, &(struct conv2d_bwd_filter_args){.dy = &rows, .db = l->db}, NULL);
        break;
    }
    default:
        break;
    }
}

void planning_own_kernels(const struct planning_call *c, struct planning_own *out)
{
    *out = (struct planning_own){.is_known = true};
    launch_count(&out->launches);
    switch (c->op) {
#define X(op)                                                                                                        \
    case OP_##op:                                                                                                    \
        out->scratch = scratch_##op(&c->args.op);                                                                    \
        (void)launch_##op(NULL, &c->args.op, NULL);                                                                  \
        break;
        OP_LIST(X)
#undef X
    default:
        break;
    }
    launch_count(&out->left);
    launch_left(c);
    launch_count(NULL);
}

/* ---- engines ---- */

#ifdef DDPM_CUDNN

#include "cudnn_forms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct planning_engines {
    struct cudnn_device *device;
    struct cudnn_plan_rules rules;
};

const char *planning_cudnn_version(void)
{
    static _Thread_local char text[32];
    const size_t v = cudnnGetVersion();
    snprintf(text, sizeof text, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return text;
}

ddpm_status planning_engines_create(const char *json, bool is_deterministic, bool uses_tf32, struct planning_engines **out)
{
    struct planning_engines *e = calloc(1, sizeof *e);
    REQUIRE(e, NOMEM, "engines: %zu bytes", sizeof *e);
    e->rules = (struct cudnn_plan_rules){.is_deterministic = is_deterministic, .uses_tf32 = uses_tf32};
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

static ddpm_status best_engine(const struct planning_engines *e, const struct cudnn_form *form, struct planning_engine *out)
{
    struct cudnn_plan_list list;
    struct cudnn_plan *plan = NULL;
    *out = (struct planning_engine){.form = form->name, .left = form->left, .engine = -1};
    snprintf(out->graph, sizeof out->graph, "%s", form->graph->name);
    TRY(cudnn_plan_list(form->graph, e->device, &e->rules, &list));
    const ddpm_status s = cudnn_plan_first(form->graph, &list, &plan);
    cudnn_plan_list_release(&list);
    TRY(s);
    if (!plan) return DDPM_OK;
    out->is_found = true;
    out->engine = plan->engine;
    memcpy(out->kernel, plan->kernel, sizeof out->kernel);
    out->workspace_bytes = plan->workspace_bytes;
    out->is_deterministic = plan->is_deterministic;
    out->is_compiled = plan->is_compiled;
    out->copies_tensor = plan->copies_tensor;
    cudnn_plan_free(plan);
    return DDPM_OK;
}

/* Takes over the forms. */
static ddpm_status add_engines(const struct planning_engines *e, struct cudnn_forms *forms,
                               struct planning_engine out[PLANNING_FORMS], int *n)
{
    ddpm_status s = DDPM_OK;
    for (int i = 0; !s && i < forms->n; i++)
        s = best_engine(e, &forms->form[i], &out[(*n)++]);
    cudnn_forms_release(forms);
    return s;
}

#define ADD(forms_of, op)                                                                                            \
    do {                                                                                                             \
        struct cudnn_forms f;                                                                                        \
        TRY(cudnn_forms_##forms_of(&c->args.op, &e->rules, &f));                                                     \
        TRY(add_engines(e, &f, out, n));                                                                             \
    } while (0)

ddpm_status planning_engines_of(const struct planning_engines *e, const struct planning_call *c,
                                struct planning_engine out[PLANNING_FORMS], int *n)
{
    *n = 0;
    switch (c->op) {
    case OP_conv2d:
        ADD(conv2d, conv2d);
        break;
    case OP_conv2d_bwd_data:
        ADD(conv2d_bwd_data, conv2d_bwd_data);
        break;
    case OP_conv2d_bwd_filter:
        ADD(conv2d_bwd_filter, conv2d_bwd_filter);
        break;
    case OP_attention:
        ADD(attention, attention);
        break;
    case OP_attention_bwd:
        ADD(attention_bwd, attention_bwd);
        break;
    case OP_linear:
        ADD(linear, linear);
        break;
    case OP_linear_bwd:
        ADD(linear_bwd_data, linear_bwd);
        ADD(linear_bwd_weights, linear_bwd);
        break;
    default:
        break;
    }
    return DDPM_OK;
}

#endif

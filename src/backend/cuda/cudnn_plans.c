/* cudnn_plans.c - engines for a graph, plans from engines, and their run.
 *
 * A device is always described (CUDNN_BACKEND_DEVICEPROP), on a GPU too: heuristics that are not told one would take what
 * they find, and a plan is the same whether it was made with or without the GPU at hand. What a graph keeps in memory of
 * its own (a plan's inner tensors) lies in front of cuDNN's workspace, each on 256 bytes. */
#include "cudnn_plans.h"

#include "fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_ALIGN = 256 };

struct cudnn_device {
    cudnnBackendDescriptor_t properties;
};

static size_t align_up(size_t n)
{
    return (n + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
}

static void destroy(cudnnBackendDescriptor_t d)
{
    if (d) (void)cudnnBackendDestroyDescriptor(d);
}

static ddpm_status set(const char *what, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                       cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    return cudnn_check(what, cudnnBackendSetAttribute(d, name, type, n, values));
}

/* A JSON attribute, NUL-terminated; the caller frees. */
static ddpm_status text_of(const char *what, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, char **out)
{
    int64_t n = 0;
    TRY(cudnn_check(what, cudnnBackendGetAttribute(d, name, CUDNN_TYPE_CHAR, 0, &n, NULL)));
    REQUIRE(n >= 0, BACKEND, "%s: cuDNN tells a length of %lld", what, (long long)n);
    char *text = calloc((size_t)n + 1, 1);
    REQUIRE(text, NOMEM, "%s: %lld bytes of text", what, (long long)n);
    const ddpm_status s = cudnn_check(what, cudnnBackendGetAttribute(d, name, CUDNN_TYPE_CHAR, n, &n, text));
    if (s) {
        free(text);
        return s;
    }
    *out = text;
    return DDPM_OK;
}

/* ---- devices ---- */

/* json or ordinal. */
static ddpm_status device_create(const char *json, int ordinal, struct cudnn_device **out)
{
    const char *what = "GPU properties";
    ddpm_status s = DDPM_OK;
    struct cudnn_device *d = calloc(1, sizeof *d);
    REQUIRE(d, NOMEM, "%s: %zu bytes", what, sizeof *d);
    const int32_t id = ordinal;
    TRY_GOTO(fail, cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d->properties)));
    if (json) {
        size_t n = strlen(json);
        while (n && (unsigned char)json[n - 1] <= ' ') /* a file's last line end is not JSON to cuDNN */
            n--;
        TRY_GOTO(fail, set(what, d->properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)n, json));
    } else {
        TRY_GOTO(fail, set(what, d->properties, CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32, 1, &id));
    }
    TRY_GOTO(fail, cudnn_check(what, cudnnBackendFinalize(d->properties)));
    *out = d;
    return DDPM_OK;
fail:
    cudnn_device_free(d);
    return s;
}

ddpm_status cudnn_device_from_json(const char *json, struct cudnn_device **out)
{
    const ddpm_status s = device_create(json, 0, out);
    return s == DDPM_BACKEND ? status_context(DDPM_FORMAT, "not a GPU's properties") : s;
}

ddpm_status cudnn_device_from_gpu(int ordinal, struct cudnn_device **out)
{
    return device_create(NULL, ordinal, out);
}

void cudnn_device_free(struct cudnn_device *d)
{
    if (!d) return;
    destroy(d->properties);
    free(d);
}

ddpm_status cudnn_device_json(const struct cudnn_device *d, char **out)
{
    return text_of("GPU properties", d->properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, out);
}

/* ---- engines ---- */

enum { NOTES = CUDNN_NUMERICAL_NOTE_TYPE_COUNT + CUDNN_BEHAVIOR_NOTE_TYPE_COUNT };

static ddpm_status read_notes(cudnnBackendDescriptor_t engine, struct cudnn_engine_notes *out)
{
    const char *what = "cuDNN engine";
    int64_t n = 0;
    TRY(cudnn_check(what, cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &out->engine)));

    cudnnBackendNumericalNote_t numerical[NOTES];
    TRY(cudnn_check(what, cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES,
                                                   &n, numerical)));
    out->is_deterministic = true;
    for (int64_t i = 0; i < n && i < NOTES; i++) {
        if (numerical[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) out->is_deterministic = false;
        if (numerical[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE) out->uses_tensor_cores = true;
        if (numerical[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS) out->rounds_inputs = true;
        if (numerical[i] == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) out->rounds_sums = true;
    }

    cudnnBackendBehaviorNote_t behaviour[NOTES];
    TRY(cudnn_check(what, cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, NOTES, &n,
                                                   behaviour)));
    for (int64_t i = 0; i < n && i < NOTES; i++)
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) out->is_compiled = true;
    return DDPM_OK;
}

static ddpm_status notes_of(cudnnBackendDescriptor_t config, struct cudnn_engine_notes *out)
{
    const char *what = "cuDNN engine";
    cudnnBackendDescriptor_t engine = NULL;
    *out = (struct cudnn_engine_notes){.engine = -1};
    TRY(cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine)));
    int64_t n = 0;
    ddpm_status s = cudnn_check(what, cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine));
    if (!s) s = read_notes(engine, out);
    destroy(engine);
    return s;
}

/* May an engine with these notes compute the graph under these rules? */
static bool rules_allow(const struct cudnn_plan_rules *rules, const struct cudnn_graph *g, const struct cudnn_engine_notes *n)
{
    if (rules->is_deterministic && (!n->is_deterministic || g->any_order)) return false;
    if (n->rounds_sums) return false;
    if (g->dtype != DDPM_F32) return true;
    return rules->uses_tf32 || (!n->uses_tensor_cores && !n->rounds_inputs);
}

/* Takes over `config`. */
static ddpm_status offer(const struct cudnn_graph *g, const struct cudnn_plan_rules *rules, cudnnBackendDescriptor_t config,
                         struct cudnn_plan_list *list)
{
    struct cudnn_engine_notes notes;
    const ddpm_status s = notes_of(config, &notes);
    const bool is_allowed = !s && rules_allow(rules, g, &notes);
    if (!s && !is_allowed) list->n_refused++;
    if (is_allowed && list->n < CUDNN_PLANS_MAX)
        list->config[list->n++] = config;
    else
        destroy(config);
    return s;
}

/* The results of finalised heuristics. */
static ddpm_status collect(const struct cudnn_graph *g, const struct cudnn_plan_rules *rules, cudnnBackendDescriptor_t heuristics,
                           struct cudnn_plan_list *list)
{
    const char *what = "cuDNN heuristics";
    const cudnnBackendAttributeName_t results = CUDNN_ATTR_ENGINEHEUR_RESULTS;
    cudnnBackendDescriptor_t found[CUDNN_PLANS_MAX] = {NULL};
    int64_t room = 0, n = 0;
    ddpm_status s = cudnn_check(what, cudnnBackendGetAttribute(heuristics, results, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &room, NULL));
    if (room > CUDNN_PLANS_MAX) room = CUDNN_PLANS_MAX;
    for (int i = 0; !s && i < room; i++)
        s = cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &found[i]));
    if (!s && room)
        s = cudnn_check(what, cudnnBackendGetAttribute(heuristics, results, CUDNN_TYPE_BACKEND_DESCRIPTOR, room, &n, found));
    for (int i = 0; i < room; i++)
        if (!s && i < n)
            s = offer(g, rules, found[i], list);
        else
            destroy(found[i]);
    return s;
}

static bool is_unsupported(cudnnStatus_t e)
{
    return CUDNN_STATUS_CATEGORY(e) == CUDNN_STATUS_NOT_SUPPORTED;
}

static ddpm_status ask(const struct cudnn_graph *g, const struct cudnn_device *d, cudnnBackendHeurMode_t mode,
                       const struct cudnn_plan_rules *rules, struct cudnn_plan_list *list)
{
    const char *what = "cuDNN heuristics";
    cudnnBackendDescriptor_t h = NULL;
    ddpm_status s = cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &h));
    if (!s) s = set(what, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->operations);
    if (!s) s = set(what, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (!s) s = set(what, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &d->properties);
    if (!s) {
        const cudnnStatus_t e = cudnnBackendFinalize(h);
        if (!is_unsupported(e)) s = cudnn_check(what, e);
        if (!e) s = collect(g, rules, h, list);
    }
    destroy(h);
    return s;
}

ddpm_status cudnn_plan_list(const struct cudnn_graph *g, const struct cudnn_device *d, const struct cudnn_plan_rules *rules,
                            struct cudnn_plan_list *out)
{
    *out = (struct cudnn_plan_list){0};
    ddpm_status s = ask(g, d, CUDNN_HEUR_MODE_A, rules, out);
    if (!s) s = ask(g, d, CUDNN_HEUR_MODE_FALLBACK, rules, out);
    if (s) cudnn_plan_list_release(out);
    return s;
}

ddpm_status cudnn_plan_list_best(const struct cudnn_graph *g, const struct cudnn_device *d, const struct cudnn_plan_rules *rules,
                                 struct cudnn_plan_list *out)
{
    *out = (struct cudnn_plan_list){0};
    ddpm_status s = ask(g, d, CUDNN_HEUR_MODE_A, rules, out);
    if (!s && !out->n) s = ask(g, d, CUDNN_HEUR_MODE_FALLBACK, rules, out);
    if (s) cudnn_plan_list_release(out);
    return s;
}

ddpm_status cudnn_plan_list_notes(const struct cudnn_plan_list *list, int i, struct cudnn_engine_notes *out)
{
    return notes_of(list->config[i], out);
}

void cudnn_plan_list_release(struct cudnn_plan_list *list)
{
    for (int i = 0; i < list->n; i++)
        destroy(list->config[i]);
    *list = (struct cudnn_plan_list){0};
}

/* ---- plans ---- */

/* The value behind "key": in cuDNN's text, up to `end`; empty where it is not there. */
static void copy_value(char *dst, size_t size, const char *json, const char *key, const char *begin, const char *end)
{
    dst[0] = '\0';
    const char *at = strstr(json, key);
    if (at) at = strstr(at, begin);
    if (!at) return;
    at += strlen(begin);
    const size_t n = strcspn(at, end);
    snprintf(dst, size, "%.*s", (int)(n < size ? n : size - 1), at);
}

/* The name of the compiled kernel, else what was chosen among the engine's ways, "TILE_SIZE=0 TILEK=1": precompiled kernels have
 * no names in a plan. */
static void name_kernel(struct cudnn_plan *p, const char *json)
{
    static const char prefix[] = "CUDNN_KNOB_TYPE_";
    copy_value(p->kernel, sizeof p->kernel, json, "\"kernelName\"", ":\"", "\"");
    if (p->kernel[0]) return;
    char knobs[1024];
    copy_value(knobs, sizeof knobs, json, "\"knobChoices\"", "{", "}");
    size_t used = 0;
    for (const char *at = knobs; *at && used + 1 < sizeof p->kernel;) {
        if (strncmp(at, prefix, sizeof prefix - 1) == 0) at += sizeof prefix - 1;
        if (*at == '"' || *at == '\0') {
            if (*at) at++;
            continue;
        }
        p->kernel[used++] = (char)(*at == ':' ? '=' : *at == ',' ? ' ' : *at);
        p->kernel[used] = '\0';
        at++;
    }
}

/* All that is to be known of a finalised plan. */
static ddpm_status read_plan(const struct cudnn_graph *g, struct cudnn_plan *p, const struct cudnn_engine_notes *notes)
{
    const char *what = "cuDNN plan";
    int64_t n = 0, workspace = 0;
    char *json = NULL;
    TRY(cudnn_check(what, cudnnBackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                                                   &workspace)));
    TRY(text_of(what, p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, &json));
    name_kernel(p, json);
    free(json);

    p->engine = notes->engine;
    p->is_deterministic = notes->is_deterministic && !g->any_order;
    p->uses_tensor_cores = notes->uses_tensor_cores;
    p->rounds_inputs = notes->rounds_inputs;
    p->is_compiled = notes->is_compiled;
    p->n_tensors = g->n_tensors;
    memcpy(p->tensor, g->tensor, sizeof p->tensor);
    for (int i = 0; i < p->n_tensors; i++)
        if (p->tensor[i].place >= CUDNN_WORKSPACE) p->inner_bytes += align_up(p->tensor[i].bytes);
    p->workspace_bytes = p->inner_bytes + align_up((size_t)workspace);
    p->copies_tensor = g->is_plain_conv && (double)workspace > 0.9 * (double)g->largest;
    return DDPM_OK;
}

static ddpm_status plan_create(struct cudnn_plan **out)
{
    struct cudnn_plan *p = calloc(1, sizeof *p);
    REQUIRE(p, NOMEM, "cuDNN plan: %zu bytes", sizeof *p);
    const ddpm_status s =
        cudnn_check("cuDNN plan", cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan));
    if (s) {
        cudnn_plan_free(p);
        return s;
    }
    *out = p;
    return DDPM_OK;
}

ddpm_status cudnn_plan_build(const struct cudnn_graph *g, const struct cudnn_plan_list *list, int i, struct cudnn_plan **out)
{
    ddpm_status s = DDPM_OK;
    struct cudnn_plan *p = NULL;
    struct cudnn_engine_notes notes;
    TRY(notes_of(list->config[i], &notes));
    TRY(plan_create(&p));
    TRY_GOTO(fail, set("cuDNN plan", p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                       &list->config[i]));
    TRY_GOTO(fail, cudnn_check("cuDNN plan", cudnnBackendFinalize(p->plan)));
    TRY_GOTO(fail, read_plan(g, p, &notes));
    *out = p;
    return DDPM_OK;
fail:
    cudnn_plan_free(p);
    return s;
}

ddpm_status cudnn_plan_first(const struct cudnn_graph *g, const struct cudnn_plan_list *list, struct cudnn_plan **out)
{
    *out = NULL;
    for (int i = 0; i < list->n; i++) {
        const ddpm_status s = cudnn_plan_build(g, list, i, out);
        if (s != DDPM_BACKEND) return s;
    }
    return DDPM_OK;
}

ddpm_status cudnn_plan_to_json(const struct cudnn_plan *p, char **json)
{
    return text_of("cuDNN plan", p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, json);
}

/* The engine of a plan that was read back. */
static ddpm_status recall_notes(const struct cudnn_plan *p, struct cudnn_engine_notes *notes)
{
    const char *what = "cuDNN plan";
    cudnnBackendDescriptor_t config = NULL;
    int64_t n = 0;
    TRY(cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config)));
    ddpm_status s = cudnn_check(what, cudnnBackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &config));
    if (!s) s = notes_of(config, notes);
    destroy(config);
    return s;
}

ddpm_status cudnn_plan_from_json(const struct cudnn_graph *g, const struct cudnn_device *d, const char *json,
                                 struct cudnn_plan **out)
{
    ddpm_status s = DDPM_OK;
    struct cudnn_plan *p = NULL;
    struct cudnn_engine_notes notes;
    TRY(plan_create(&p));
    TRY_GOTO(fail, set("cuDNN plan", p->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                       &d->properties));
    TRY_GOTO(fail, set("cuDNN plan", p->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                       (int64_t)strlen(json), json));
    TRY_GOTO(fail, cudnn_check("cuDNN plan", cudnnBackendFinalize(p->plan)));
    TRY_GOTO(fail, recall_notes(p, &notes));
    TRY_GOTO(fail, read_plan(g, p, &notes));
    *out = p;
    return DDPM_OK;
fail:
    cudnn_plan_free(p);
    return s == DDPM_BACKEND ? status_context(DDPM_FORMAT, "not a plan of this cuDNN for this GPU") : s;
}

void cudnn_plan_free(struct cudnn_plan *p)
{
    if (!p) return;
    destroy(p->plan);
    free(p);
}

/* ---- running ---- */

/* uids and pointers of everything the plan reads and writes. */
struct pack {
    int64_t uid[CUDNN_GRAPH_TENSORS];
    void *data[CUDNN_GRAPH_TENSORS];
    unsigned char *own; /* cuDNN's part of the workspace */
};

static ddpm_status find_pointer(const struct cudnn_graph_tensor *t, const struct cudnn_pointer *pointers, int n, void **out)
{
    int i = 0;
    while (i < n && pointers[i].uid != t->uid)
        i++;
    REQUIRE(i < n && pointers[i].data, BUG, "cuDNN run: no pointer for tensor %lld", (long long)t->uid);
    REQUIRE((uintptr_t)pointers[i].data % (uintptr_t)t->alignment == 0, BUG,
            "cuDNN run: tensor %lld is not aligned to %d bytes", (long long)t->uid, t->alignment);
    *out = pointers[i].data;
    return DDPM_OK;
}

static ddpm_status fill_pack(const struct cudnn_plan *p, cudaStream_t stream, const struct cudnn_pointer *pointers, int n,
                             void *workspace, struct pack *pack)
{
    unsigned char *inner = workspace;
    for (int i = 0; i < p->n_tensors; i++) {
        const struct cudnn_graph_tensor *t = &p->tensor[i];
        pack->uid[i] = t->uid;
        if (t->place == CUDNN_GIVEN) {
            TRY(find_pointer(t, pointers, n, &pack->data[i]));
        } else if (t->place == CUDNN_BY_VALUE) {
            pack->data[i] = (void *)(uintptr_t)&t->value; /* read by cuDNN during the call alone */
        } else {
            pack->data[i] = inner;
            inner += align_up(t->bytes);
            if (t->place != CUDNN_ZEROED) continue;
            const cudaError_t e = cudaMemsetAsync(pack->data[i], 0, t->bytes, stream);
            REQUIRE(e != cudaErrorMemoryAllocation, NOMEM, "cuDNN run: %s", cudaGetErrorName(e));
            REQUIRE(!e, BACKEND, "cuDNN run: %s: %s", cudaGetErrorName(e), cudaGetErrorString(e));
        }
    }
    pack->own = inner;
    return DDPM_OK;
}

static ddpm_status execute(const struct cudnn_plan *p, cudnnHandle_t handle, const struct pack *pack)
{
    const char *what = "cuDNN run";
    cudnnBackendDescriptor_t d = NULL;
    void *own = pack->own;
    ddpm_status s = cudnn_check(what, cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &d));
    if (!s) s = set(what, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, p->n_tensors, pack->uid);
    if (!s) s = set(what, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, p->n_tensors, pack->data);
    if (!s) s = set(what, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &own);
    if (!s) s = cudnn_check(what, cudnnBackendFinalize(d));
    if (!s) s = cudnn_check(what, cudnnBackendExecute(handle, p->plan, d));
    destroy(d);
    return s;
}

ddpm_status cudnn_plan_run(const struct cudnn_plan *p, cudnnHandle_t handle, cudaStream_t stream,
                           const struct cudnn_pointer *pointers, int n, void *workspace)
{
    struct pack pack;
    REQUIRE(workspace || !p->workspace_bytes, BUG, "cuDNN run: no workspace of %zu bytes", p->workspace_bytes);
    TRY(fill_pack(p, stream, pointers, n, workspace, &pack));
    return execute(p, handle, &pack);
}

/* cudnn_engines.cpp - which graphs have engines, what each of them is like, plans and their text, execution.
 *
 * What is offered follows what cuDNN 9.19 and 9.26 were seen to offer for sm_80 and sm_90: no sums per image before 9.26,
 * no f32 gradient of weights from bf16 before it, no attention in f32, none backward above 128 channels on sm_80. Of the
 * engines for a graph the one that a careless caller would take comes first: it rounds to TF32, or adds in another order
 * on every run. One asks for a workspace of a tensor's size. Workspaces are filled with NaN before and behind a run, so
 * that whoever else had data there notices.
 *
 * Stricter than the library: the heuristics want a device or a graph with a handle, where the library would guess. */
#include "cudnn_parts.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>

namespace cuda_on_cpu {

#define A(name) CUDNN_ATTR_##name
#define OP(name) CUDNN_BACKEND_OPERATION_##name##_DESCRIPTOR

static constexpr int GRAPH_HANDLE = 800, PLAN_HANDLE = 400; /* deprecated names */
static constexpr int64_t THIS_DEVICE = 900, WORKSPACE_ALIGNMENT = 256;
static constexpr int64_t FIRST_ENGINE = 60; /* any: real ones have two digits too */

static int version = number_from_environment("CUDA_ON_CPU_CUDNN", CUDNN_VERSION);
static long runs;

int cudnn_version()
{
    return version;
}

struct plan {
    graph g;
    engine e;
};

/* ---- what a graph is ---- */

struct census {
    int convolutions, matmuls, attentions, pointwise, reductions, reshapes;
    const operation *main;
};

static census count_operations(const graph &g)
{
    census n = {};
    for (const operation &o : g.operations) {
        switch ((int)o.d->type) {
        case OP(CONVOLUTION_FORWARD):
        case OP(CONVOLUTION_BACKWARD_DATA):
        case OP(CONVOLUTION_BACKWARD_FILTER):
            n.convolutions++;
            n.main = &o;
            break;
        case OP(MATMUL):
            n.matmuls++;
            n.main = &o;
            break;
        case OP(SDPA_FWD):
            n.attentions++;
            n.main = &o;
            break;
        case OP(POINTWISE):
            n.pointwise++;
            break;
        case OP(REDUCTION):
            n.reductions++;
            break;
        default:
            n.reshapes++;
        }
    }
    return n;
}

static const tensor &tensor_at(const graph &g, const operation &o, int name)
{
    return g.tensors.at(g.uid(o, name));
}

static bool is_half(const tensor &t)
{
    return size_of_type(t.type) == 2;
}

static int64_t bytes_of(const tensor &t)
{
    return count_of(t) * (int64_t)size_of_type(t.type);
}

static int64_t largest_of(const graph &g)
{
    int64_t most = 0;
    for (const auto &entry : g.tensors)
        if (!entry.second.is_virtual) most = std::max(most, bytes_of(entry.second));
    return most;
}

/* Contiguous but for a tensor's own order of extents. */
static bool is_packed(const tensor &t)
{
    int64_t span = 1;
    for (size_t i = 0; i < t.dim.size(); i++)
        span += (t.dim[i] - 1) * t.stride[i];
    return span == count_of(t);
}

/* Whether an operation before the main one scales each image by itself. */
static bool has_image_prologue(const graph &g, const operation &main)
{
    std::vector<int64_t> needed;
    for (int name : main.reads)
        needed.push_back(g.uid(main, name));
    for (size_t i = 0; i < needed.size(); i++)
        for (const operation &o : g.operations) {
            if (g.uid(o, o.writes[0]) != needed[i]) continue;
            for (int name : o.reads) {
                const tensor &t = tensor_at(g, o, name);
                if (t.dim.size() == 4 && t.dim[0] > 1 && t.dim[2] * t.dim[3] == 1) return true;
                needed.push_back(t.uid);
            }
        }
    return false;
}

static bool has_prologue(const graph &g, const operation &main)
{
    return std::any_of(main.reads.begin(), main.reads.end(),
                       [&](int name) { return tensor_at(g, main, name).is_virtual; });
}

static bool has_image_sums(const graph &g)
{
    for (const operation &o : g.operations) {
        if (o.d->type != OP(REDUCTION)) continue;
        const tensor &x = tensor_at(g, o, o.reads[0]), &y = tensor_at(g, o, o.writes[0]);
        if (x.dim[0] > 1 && y.dim[0] == x.dim[0]) return true;
    }
    return false;
}

/* ---- engines ---- */

static engine make_engine(int64_t i, int64_t workspace, bool is_compiled, bool uses_tf32, bool is_deterministic)
{
    return {FIRST_ENGINE + i, workspace, is_compiled, uses_tf32, is_deterministic};
}

static std::vector<engine> plain_convolutions(const graph &g, const operation &main)
{
    const bool is_f32 = tensor_at(g, main, main.reads[0]).type == CUDNN_DATA_FLOAT;
    bool copies = false; /* what the engines cannot read or write in place they repack */
    for (const auto &entry : g.tensors)
        copies = copies || !is_packed(entry.second) || (!is_f32 && entry.second.dim[1] % 8 != 0);
    const int64_t least = copies ? largest_of(g) : 131;
    std::vector<engine> all;
    if (is_f32) all.push_back(make_engine(0, least, false, true, true));
    if (main.d->type != OP(CONVOLUTION_FORWARD)) all.push_back(make_engine(1, least, false, false, false));
    all.push_back(make_engine(2, least, false, false, true));
    all.push_back(make_engine(3, largest_of(g) + 1024, false, false, true));
    return all;
}

static std::vector<engine> convolutions(const graph &g, const census &n, int64_t capability)
{
    const operation &main = *n.main;
    const bool is_filter = main.d->type == OP(CONVOLUTION_BACKWARD_FILTER);
    const bool has_new_forms = version >= 92600 && capability >= 900;
    if (is_filter && g.operations.size() > 1) return {};
    if (is_filter && is_half(tensor_at(g, main, main.reads[0])) && !is_half(tensor_at(g, main, main.writes[0])) &&
        !has_new_forms)
        return {};
    if (n.reshapes || has_image_prologue(g, main) || (has_image_sums(g) && !has_new_forms)) return {};
    if (g.operations.size() == 1) return plain_convolutions(g, main);
    std::vector<engine> all;
    if (n.reductions) return {make_engine(10, 0, true, false, false)};
    if (tensor_at(g, main, main.reads[0]).type == CUDNN_DATA_FLOAT) all.push_back(make_engine(11, 0, true, true, true));
    all.push_back(make_engine(12, 0, true, false, true));
    return all;
}

static std::vector<engine> attentions(const graph &g, const census &n, int64_t capability)
{
    const tensor &q = tensor_at(g, *n.main, A(OPERATION_SDPA_FWD_QDESC));
    if (g.operations.size() != 1 || !is_half(q) || q.dim[3] % 8 || q.dim[3] > 512) return {};
    return {make_engine(20, capability >= 900 ? 256 : 0, true, false, true)};
}

/* The backward pass of attention, spelled in products: dS, dQ, dK, dV and S again. */
static std::vector<engine> attentions_backward(const graph &g, const census &n, int64_t capability)
{
    int64_t depth = 0;
    bool adds_as_it_comes = false; /* dq in float, before it is rounded */
    for (const operation &o : g.operations) {
        if (o.d->type != OP(MATMUL)) continue;
        const tensor &a = tensor_at(g, o, A(OPERATION_MATMUL_ADESC)), &c = tensor_at(g, o, A(OPERATION_MATMUL_CDESC));
        if (!a.is_virtual && !is_half(a)) return {};
        if (!a.is_virtual) depth = std::max(depth, a.dim.back());
        if (!c.is_virtual && c.type == CUDNN_DATA_FLOAT) adds_as_it_comes = true;
    }
    if (n.matmuls != 5 || depth % 8 || depth > (capability >= 900 ? 256 : 128)) return {};
    return {make_engine(21, adds_as_it_comes ? 256 : 4096, true, false, !adds_as_it_comes)};
}

std::vector<engine> engines_for(const graph &g, int64_t capability)
{
    if (!engines_exist()) return {};
    const census n = count_operations(g);
    if (n.convolutions == 1 && !n.matmuls && !n.attentions) {
        if (n.main->d->type != OP(CONVOLUTION_FORWARD) && has_prologue(g, *n.main)) return {};
        return convolutions(g, n, capability);
    }
    if (n.convolutions) return {};
    if (n.attentions == 1 && !n.matmuls) return attentions(g, n, capability);
    if (n.matmuls > 1) return attentions_backward(g, n, capability);
    if (n.attentions || n.reshapes) return {};
    if (n.matmuls) {
        if (tensor_at(g, *n.main, n.main->reads[0]).type == CUDNN_DATA_FLOAT)
            return {make_engine(30, 0, true, true, true), make_engine(31, 0, true, false, true)};
        return {make_engine(31, 0, true, false, true)};
    }
    return {make_engine(32, 0, true, false, true)};
}

/* ---- devices ---- */

/* The compute capability, 900 for 9.0; 0 where the text has none. */
static int64_t capability_of(const descriptor &device)
{
    const auto found = device.attributes.find(A(DEVICEPROP_JSON_REPRESENTATION));
    if (found == device.attributes.end()) return THIS_DEVICE;
    const char *member = strstr(found->second.bytes.c_str(), "\"deviceVer\":");
    return member ? atoll(member + strlen("\"deviceVer\":")) : 0;
}

static cudnnStatus_t check_device(descriptor *d)
{
    const bool has_text = d->attributes.count(A(DEVICEPROP_JSON_REPRESENTATION));
    const cudnnHandle_t handle = value_of<cudnnHandle_t>(*d, A(DEVICEPROP_HANDLE), nullptr);
    if (!has_text) {
        const int32_t ordinal = value_of<int32_t>(*d, A(DEVICEPROP_DEVICE_ID), -1);
        if (!is_handle(handle) && (ordinal < 0 || ordinal >= device_count()))
            return refuse(CUDNN_STATUS_BAD_PARAM, "device: no handle, no device of this machine, no description");
        const char text[] = "{\"deviceVer\":900,\"deviceName\":\"CPU stand-in\",\"multiProcessorCount\":132}";
        give(d, A(DEVICEPROP_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, text, sizeof text - 1, sizeof text - 1);
    }
    return capability_of(*d) ? CUDNN_STATUS_SUCCESS
                             : refuse(CUDNN_STATUS_BAD_PARAM, "device: !json_object.HasMember(\"deviceVer\")");
}

/* The device that a descriptor is for: its own, or the graph's handle's. None: 0. */
static int64_t device_for(const descriptor &d, int name, const descriptor &operation_graph)
{
    const part device = part_of(d, name);
    if (device) return capability_of(*device);
    return is_handle(value_of<cudnnHandle_t>(operation_graph, GRAPH_HANDLE, nullptr)) ? THIS_DEVICE : 0;
}

/* ---- descriptors of engines ---- */

static void give_notes(descriptor *d, const engine &e)
{
    std::vector<cudnnBackendNumericalNote_t> notes;
    if (e.uses_tf32) {
        notes.push_back(CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
        notes.push_back(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS);
    }
    if (!e.is_deterministic) notes.push_back(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
    const cudnnBackendBehaviorNote_t compiled = CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    give(d, A(ENGINE_NUMERICAL_NOTE), CUDNN_TYPE_NUMERICAL_NOTE, notes.data(), notes.size() * sizeof notes[0],
         (int64_t)notes.size());
    give(d, A(ENGINE_BEHAVIOR_NOTE), CUDNN_TYPE_BEHAVIOR_NOTE, &compiled, e.is_compiled ? sizeof compiled : 0,
         e.is_compiled);
    give_parts(d, A(ENGINE_KNOB_INFO), {});
}

static part make_config(const part &operation_graph, const part &device, const engine &e)
{
    const part d = make_descriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    give_parts(d.get(), A(ENGINE_OPERATION_GRAPH), {operation_graph});
    if (device) give_parts(d.get(), A(ENGINE_DEVICEPROP), {device});
    give(d.get(), A(ENGINE_GLOBAL_INDEX), CUDNN_TYPE_INT64, &e.index, sizeof e.index, 1);
    give_notes(d.get(), e);
    d->is_final = true;
    const part config = make_descriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    give_parts(config.get(), A(ENGINECFG_ENGINE), {d});
    give(config.get(), A(ENGINECFG_WORKSPACE_SIZE), CUDNN_TYPE_INT64, &e.workspace, sizeof e.workspace, 1);
    config->is_final = true;
    return config;
}

static cudnnStatus_t check_heuristics(descriptor *d)
{
    const part of = part_of(*d, A(ENGINEHEUR_OPERATION_GRAPH)), device = part_of(*d, A(ENGINEHEUR_DEVICEPROP));
    const cudnnBackendHeurMode_t mode = value_of(*d, A(ENGINEHEUR_MODE), CUDNN_HEUR_MODE_A);
    if (mode != CUDNN_HEUR_MODE_A && mode != CUDNN_HEUR_MODE_FALLBACK)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "heuristics: mode %d", mode);
    const int64_t capability = device_for(*d, A(ENGINEHEUR_DEVICEPROP), *of);
    if (!capability) return refuse(CUDNN_STATUS_BAD_PARAM, "heuristics: neither a device nor a graph with a handle");
    graph g;
    const cudnnStatus_t s = graph_of(*of, &g);
    if (s) return s;
    std::vector<engine> all = engines_for(g, capability);
    if (mode == CUDNN_HEUR_MODE_FALLBACK) { /* the first without a catch */
        const auto has_a_catch = [](const engine &e) { return e.uses_tf32 || !e.is_deterministic; };
        all.erase(std::remove_if(all.begin(), all.end(), has_a_catch), all.end());
        if (all.size() > 1) all.resize(1);
    }
    std::vector<part> configs;
    for (const engine &e : all)
        configs.push_back(make_config(of, device, e));
    give_parts(d, A(ENGINEHEUR_RESULTS), configs);
    return CUDNN_STATUS_SUCCESS;
}

/* The engine that a descriptor names, by the same rules as the heuristics. */
static cudnnStatus_t find_engine(const descriptor &d, graph *g, engine *out)
{
    const part of = part_of(d, A(ENGINE_OPERATION_GRAPH));
    const int64_t capability = device_for(d, A(ENGINE_DEVICEPROP), *of);
    if (!capability) return refuse(CUDNN_STATUS_BAD_PARAM, "engine: neither a device nor a graph with a handle");
    const cudnnStatus_t s = graph_of(*of, g);
    if (s) return s;
    const int64_t index = value_of<int64_t>(d, A(ENGINE_GLOBAL_INDEX), -1);
    for (const engine &e : engines_for(*g, capability)) {
        if (e.index != index) continue;
        *out = e;
        return CUDNN_STATUS_SUCCESS;
    }
    return refuse(CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN, "engine %ld does not compute this graph", (long)index);
}

static cudnnStatus_t check_engine(descriptor *d)
{
    graph g;
    engine e;
    const cudnnStatus_t s = find_engine(*d, &g, &e);
    if (!s) give_notes(d, e);
    return s;
}

static cudnnStatus_t check_config(descriptor *d)
{
    graph g;
    engine e;
    const cudnnStatus_t s = find_engine(*part_of(*d, A(ENGINECFG_ENGINE)), &g, &e);
    if (!s) give(d, A(ENGINECFG_WORKSPACE_SIZE), CUDNN_TYPE_INT64, &e.workspace, sizeof e.workspace, 1);
    return s;
}

/* ---- plans and their text ---- */

/* A descriptor as words: type, attributes; each by name, type, count and either bytes in hexadecimal or descriptors. */
static void write_part(const descriptor &d, std::string *out)
{
    char text[64];
    std::vector<std::pair<int, const attribute *>> kept;
    for (const auto &entry : d.attributes)
        if (entry.second.type != CUDNN_TYPE_HANDLE) kept.push_back({entry.first, &entry.second});
    snprintf(text, sizeof text, "%d %zu ", d.type, kept.size());
    *out += text;
    for (const auto &entry : kept) {
        const attribute &a = *entry.second;
        snprintf(text, sizeof text, "%d %d %ld ", entry.first, a.type, (long)a.count);
        *out += text;
        if (a.type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
            for (const part &p : a.parts)
                write_part(*p, out);
            continue;
        }
        *out += 'x';
        for (unsigned char c : a.bytes) {
            snprintf(text, sizeof text, "%02x", c);
            *out += text;
        }
        *out += ' ';
    }
}

struct reader {
    const char *at;
    bool is_bad;
    long number()
    {
        char *end;
        const long n = strtol(at, &end, 10);
        is_bad = is_bad || end == at || n < 0 || n > 100000;
        at = end;
        return is_bad ? 0 : n;
    }
    std::string bytes()
    {
        std::string all;
        while (*at == ' ')
            at++;
        is_bad = is_bad || *at != 'x';
        unsigned byte;
        for (at += !is_bad; !is_bad && sscanf(at, "%2x", &byte) == 1 && at[0] != ' ' && at[1] != ' '; at += 2)
            all += (char)byte;
        return all;
    }
};

static part read_part(reader *in, int depth)
{
    const part d = make_descriptor((int)in->number());
    const long n = in->number();
    for (long i = 0; i < n && !in->is_bad; i++) {
        const int name = (int)in->number();
        attribute a = {(int)in->number(), in->number(), {}, {}};
        if (a.type != CUDNN_TYPE_BACKEND_DESCRIPTOR) a.bytes = in->bytes();
        else if (depth > 8) in->is_bad = true;
        for (long j = 0; a.type == CUDNN_TYPE_BACKEND_DESCRIPTOR && j < a.count && !in->is_bad; j++)
            a.parts.push_back(read_part(in, depth + 1));
        d->attributes[name] = a;
    }
    in->is_bad = in->is_bad || finalize_descriptor(d.get());
    return d;
}

static void give_text(descriptor *d, const part &config, const engine &e, int64_t capability)
{
    char head[160];
    snprintf(head, sizeof head, "{\"version\":%d,\"deviceVer\":%ld,\"engine\":%ld,\"kernel\":\"stand_in_%ld\",\"plan\":\"",
             version, (long)capability, (long)e.index, (long)e.index);
    std::string text = head;
    write_part(*config, &text);
    text += "\"}";
    give(d, A(EXECUTION_PLAN_JSON_REPRESENTATION), CUDNN_TYPE_CHAR, text.data(), text.size(), (int64_t)text.size());
}

static cudnnStatus_t config_from_text(const descriptor &d, part *config)
{
    const std::string text = d.attributes.at(A(EXECUTION_PLAN_JSON_REPRESENTATION)).bytes;
    const part device = part_of(d, A(EXECUTION_PLAN_DEVICEPROP));
    const bool has_handle = is_handle(value_of<cudnnHandle_t>(d, PLAN_HANDLE, nullptr));
    if (!device && !has_handle) return refuse(CUDNN_STATUS_BAD_PARAM, "plan: neither a device nor a handle");
    int of_version;
    long capability;
    const size_t begin = text.find("\"plan\":\"");
    if (sscanf(text.c_str(), "{\"version\":%d,\"deviceVer\":%ld,", &of_version, &capability) != 2 || begin == std::string::npos)
        return refuse(CUDNN_STATUS_BAD_PARAM, "plan: the text is no plan");
    if (of_version != version)
        return refuse(CUDNN_STATUS_SERIALIZATION_VERSION_MISMATCH, "plan: of version %d", of_version);
    if (capability != (device ? capability_of(*device) : THIS_DEVICE))
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH, "plan: for %ld", capability);
    reader in = {text.c_str() + begin + strlen("\"plan\":\""), false};
    *config = read_part(&in, 0);
    if (in.is_bad || (*config)->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR || !part_of(**config, A(ENGINECFG_ENGINE)) ||
        !part_of(*part_of(**config, A(ENGINECFG_ENGINE)), A(ENGINE_OPERATION_GRAPH)))
        return refuse(CUDNN_STATUS_BAD_PARAM, "plan: the text is damaged");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_plan(descriptor *d)
{
    part config = part_of(*d, A(EXECUTION_PLAN_ENGINE_CONFIG));
    cudnnStatus_t s = CUDNN_STATUS_SUCCESS;
    if (!config && !d->attributes.count(A(EXECUTION_PLAN_JSON_REPRESENTATION)))
        return refuse(CUDNN_STATUS_BAD_PARAM, "plan: neither an engine's configuration nor a text");
    if (!config) s = config_from_text(*d, &config);
    if (s) return s;
    const part from = part_of(*config, A(ENGINECFG_ENGINE));
    const std::shared_ptr<plan> p = std::make_shared<plan>();
    s = find_engine(*from, &p->g, &p->e);
    if (s) return s;
    const int64_t capability = device_for(*from, A(ENGINE_DEVICEPROP), *part_of(*from, A(ENGINE_OPERATION_GRAPH)));
    give(d, A(EXECUTION_PLAN_WORKSPACE_SIZE), CUDNN_TYPE_INT64, &p->e.workspace, sizeof p->e.workspace, 1);
    give_parts(d, A(EXECUTION_PLAN_ENGINE_CONFIG), {config});
    give_text(d, config, p->e, capability);
    d->plan = p;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize_engine_part(descriptor *d)
{
    switch ((int)d->type) {
    case CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR:
        return check_device(d);
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        return check_heuristics(d);
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
        return check_engine(d);
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
        return check_config(d);
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        return check_plan(d);
    default:
        return CUDNN_STATUS_SUCCESS; /* descriptions that have nothing to disagree about */
    }
}

/* ---- execution ---- */

static bool is_aligned(const void *p, int64_t to)
{
    return (uintptr_t)p % (uintptr_t)to == 0;
}

static float read_scalar(const tensor &t, const void *p)
{
    if (t.type == CUDNN_DATA_FLOAT) return *static_cast<const float *>(p);
    return t.type == CUDNN_DATA_DOUBLE ? (float)*static_cast<const double *>(p) : 0;
}

static cudnnStatus_t collect_pointers(const plan &p, const descriptor &pack, places *at, scalars *values)
{
    const std::vector<int64_t> uids = values_of<int64_t>(pack, A(VARIANT_PACK_UNIQUE_IDS));
    const std::vector<void *> pointers = values_of<void *>(pack, A(VARIANT_PACK_DATA_POINTERS));
    for (const auto &entry : p.g.tensors) {
        const tensor &t = entry.second;
        if (t.is_virtual) continue;
        const auto found = std::find(uids.begin(), uids.end(), t.uid);
        if (found == uids.end()) return refuse(CUDNN_STATUS_BAD_PARAM, "execute: no pointer for %ld", (long)t.uid);
        void *const data = pointers[(size_t)(found - uids.begin())];
        if (!data) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "execute: %ld is NULL", (long)t.uid);
        if (!t.is_by_value && !is_aligned(data, t.alignment))
            return refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "execute: %ld is not aligned to %ld bytes",
                          (long)t.uid, (long)t.alignment);
        if (t.is_by_value) (*values)[t.uid] = read_scalar(t, data);
        else (*at)[t.uid] = data;
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t execute(cudnnHandle_t handle, const descriptor *d, const descriptor *pack)
{
    if (!is_handle(handle)) return refuse(CUDNN_STATUS_BAD_PARAM, "execute: no such handle");
    if (!d || !pack) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "execute: no plan or no variant pack");
    if (d->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR || pack->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
        return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "execute: descriptors of other types");
    if (!d->is_final || !pack->is_final) return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "execute: not final");
    const std::shared_ptr<const plan> p = d->plan;
    void *const workspace = value_of<void *>(*pack, A(VARIANT_PACK_WORKSPACE), nullptr);
    if (p->e.workspace && !workspace) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "execute: no workspace");
    if (p->e.workspace && !is_aligned(workspace, WORKSPACE_ALIGNMENT))
        return refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "execute: the workspace is not aligned");
    places at;
    scalars values;
    const cudnnStatus_t s = collect_pointers(*p, *pack, &at, &values);
    if (s) return s;
    const cudaError_t e = stream_submit(handle->stream, WORK_KERNEL, [=] {
        runs++;
        charge_library();
        if (p->e.workspace) memset(workspace, 0xFF, (size_t)p->e.workspace);
        run_graph(p->g, p->e, at, values);
        if (p->e.workspace) memset(workspace, 0xFF, (size_t)p->e.workspace);
    });
    return e ? refuse(CUDNN_STATUS_EXECUTION_FAILED_CUDART, "execute: %s", cudaGetErrorName(e)) : CUDNN_STATUS_SUCCESS;
}

} // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t d, cudnnBackendDescriptor_t pack)
{
    return cudnn_enter(ORDINARY, [&] { return execute(handle, descriptor_of(d), descriptor_of(pack)); });
}

void cuda_on_cpu_cudnn_version(int v)
{
    version = v;
}

long cuda_on_cpu_graph_runs(void)
{
    return runs;
}

} /* extern "C" */

/* cudnn_parts.h - what the files of cuDNN's stand-in share. NVIDIA's own headers; the library itself is not linked.
 *
 * cudnn_descriptors.cpp   descriptors: create, set, get, finalize, destroy
 * cudnn_checks.cpp        what a descriptor must be to be final
 * cudnn_engines.cpp       which engines a graph has, plans, their text, execution
 * cudnn_run.cpp           a graph by plain loops (cudnn_values.h) */
#ifndef CUDA_ON_CPU_CUDNN_PARTS_H
#define CUDA_ON_CPU_CUDNN_PARTS_H

#include "runtime.h"

#include <map>
#include <string.h>
#include <string>

#include <cudnn.h>

struct cudnnContext {
    cudaStream_t stream;
};

namespace cuda_on_cpu {

/* ---- descriptors ---- */

struct descriptor;
typedef std::shared_ptr<descriptor> part;

struct attribute {
    int type; /* of cudnnBackendAttributeType_t, or what a damaged text has */
    int64_t count;
    std::string bytes;       /* or, for descriptors, */
    std::vector<part> parts;
};

struct plan; /* cudnn_engines.cpp */

struct descriptor {
    int type; /* of cudnnBackendDescriptorType_t, likewise */
    bool is_final;
    std::map<int, attribute> attributes; /* by name */
    std::shared_ptr<const struct plan> plan; /* of an execution plan */
};

template <class T> T value_of(const descriptor &d, int name, T otherwise)
{
    const auto found = d.attributes.find(name);
    if (found == d.attributes.end() || found->second.bytes.size() < sizeof(T)) return otherwise;
    T x;
    memcpy(&x, found->second.bytes.data(), sizeof x);
    return x;
}

template <class T> std::vector<T> values_of(const descriptor &d, int name)
{
    const auto found = d.attributes.find(name);
    if (found == d.attributes.end()) return {};
    std::vector<T> all(found->second.bytes.size() / sizeof(T));
    if (!all.empty()) memcpy(all.data(), found->second.bytes.data(), all.size() * sizeof(T));
    return all;
}

std::vector<part> parts_of(const descriptor &d, int name);
part part_of(const descriptor &d, int name); /* none where it is not set */
/* An attribute that the library gives. */
void give(descriptor *d, int name, int type, const void *bytes, size_t size, int64_t count);
void give_parts(descriptor *d, int name, const std::vector<part> &parts);
part make_descriptor(int type);
/* Final, or why not: what is set, what has to be, and what check_descriptor says. */
cudnnStatus_t finalize_descriptor(descriptor *d);

/* Of a handle; none for a bad one. */
const descriptor *descriptor_of(cudnnBackendDescriptor_t handle);

/* The status, with a message for cudnnGetLastErrorString. */
cudnnStatus_t refuse(cudnnStatus_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The way into every call. */
cudnnStatus_t cudnn_enter(entry_kind kind, const std::function<cudnnStatus_t()> &body);
bool is_handle(cudnnHandle_t handle);

/* ---- graphs ---- */

struct tensor {
    int64_t uid, alignment;
    cudnnDataType_t type;
    std::vector<int64_t> dim, stride;
    bool is_virtual, is_by_value;
};

tensor tensor_of(const descriptor &d);
size_t size_of_type(cudnnDataType_t type);
int64_t count_of(const tensor &t);

struct operation {
    part d;
    std::vector<int> reads, writes; /* names of the attributes that hold tensors, those that are set */
};

/* Names of the tensor attributes of an operation's type that are set, in the order of the library's documentation. */
operation operation_of(const part &d);

struct graph {
    std::vector<operation> operations; /* each behind what it reads */
    std::map<int64_t, tensor> tensors;
    int64_t uid(const operation &o, int attribute) const;
};

/* BAD_PARAM where operations disagree about a tensor, write one twice, or read what is written by none. */
cudnnStatus_t graph_of(const descriptor &operation_graph, graph *out);

/* For cudnnBackendFinalize: whether the parts of a descriptor fit together; gives what the library derives. */
cudnnStatus_t check_descriptor(descriptor *d);

/* ---- engines ---- */

struct engine {
    int64_t index;
    int64_t workspace;
    bool is_compiled, uses_tf32, is_deterministic;
};

/* The version that is played, as CUDNN_VERSION writes it. */
int cudnn_version();
/* The engines for a graph on a device of that compute capability (900), the one the heuristics prefer first. */
std::vector<engine> engines_for(const graph &g, int64_t capability);

cudnnStatus_t finalize_engine_part(descriptor *d);

/* ---- running ---- */

/* Where the data of each uid lies. */
typedef std::map<int64_t, void *> places;
/* Values that are passed by value, read when the graph is executed and not when it runs. */
typedef std::map<int64_t, float> scalars;
void run_graph(const graph &g, const engine &e, const places &at, const scalars &values);

} // namespace cuda_on_cpu

#endif

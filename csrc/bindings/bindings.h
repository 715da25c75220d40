// One register function for each file of bindings. `testing` is gemlet._core.testing, which only tests and benchmarks
// use.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>

#include "engine/kv_record.h"
#include "kernels/registry.h"
#include "model/adapter.h"
#include "model/model.h"

namespace gemlet::bindings {

LogitsWanted logits_wanted(const std::string& name);  // "none", "last" or "all"

void register_audio(pybind11::module_& m, pybind11::module_& testing);
void register_facts(pybind11::module_& m);
void register_config(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_sampler(pybind11::module_& m);
void register_engine(pybind11::module_& m);
void register_requests(pybind11::module_& m);
void register_prefix_cache(pybind11::module_& m);
void register_system(pybind11::module_& m, pybind11::module_& testing);
void register_pieces(pybind11::module_& m);
void register_measure(pybind11::module_& m, pybind11::module_& testing);
void register_kernels(pybind11::module_& testing);
void register_testing(pybind11::module_& testing);
void register_batch(pybind11::module_& testing);
void register_drafts(pybind11::module_& testing);
void register_scheduler(pybind11::module_& testing);
void register_vision(pybind11::module_& m, pybind11::module_& testing);

using OptionalAdapter = std::optional<std::shared_ptr<Adapter>>;
// Returns the weight format of this name. Throws kInvalidRequest with all names if there is none.
Format weight_format(const std::string& name);
// Returns null if there is no adapter. Throws kInvalidRequest for an adapter of another model.
const Adapter* adapter_of(const OptionalAdapter& adapter, const Model& model);

// Returns the digest of 32 bytes, or zeros if there are no bytes.
Digest digest_of(const pybind11::bytes& bytes, const char* name);

// Whether later models get guarded memory (backend/guarded.h). The GIL protects this variable.
bool& guarded_memory();

// The kernels of a tier and a matmul operation, by name. They throw if the machine lacks the tier, or if there is no
// such operation.
kernels::KernelTable kernel_table(const std::string& tier);
const kernels::MatmulOperation& matmul_operation(const std::string& name);

}  // namespace gemlet::bindings

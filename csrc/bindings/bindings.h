// One register function per file of bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "kernels/registry.h"
#include "model/model.h"

namespace gemlet::bindings {

LogitsWanted logits_wanted(const std::string& name);  // "none", "last" or "all"

void register_config(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_engine(pybind11::module_& m);
void register_system(pybind11::module_& m);
void register_measure(pybind11::module_& m);
void register_kernels(pybind11::module_& m);

// The kernels of a tier that this machine has, and a matmul operation, by name; an error names what is unknown.
kernels::KernelTable kernel_table(const std::string& tier);
const kernels::MatmulOperation& matmul_operation(const std::string& name);

}  // namespace gemlet::bindings

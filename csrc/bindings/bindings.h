// One register function per file of bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "model/model.h"

namespace gemlet::bindings {

LogitsWanted logits_wanted(const std::string& name);  // "none", "last" or "all"

void register_config(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_engine(pybind11::module_& m);
void register_system(pybind11::module_& m);
void register_kernels(pybind11::module_& m);

}  // namespace gemlet::bindings

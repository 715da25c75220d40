#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/sequence.h"

namespace py = pybind11;

namespace gemlet::bindings {

void register_testing(py::module_& testing) {
  testing.def(
      "limit_kv_cache", [](Model& model, int64_t bytes) { model.kv().set_limit(bytes); }, py::arg("model"),
      py::arg("bytes"), "From now on the caches of all contexts together take no memory that would exceed this.");
  testing.def(
      "prefix", [](const Sequence& sequence, int64_t blocks) { return sequence.prefix(blocks); }, py::arg("sequence"),
      py::arg("blocks"), py::call_guard<GilRelease>(),
      "Another context with the first blocks * 64 tokens, which shares the cache of them.");
}

}  // namespace gemlet::bindings

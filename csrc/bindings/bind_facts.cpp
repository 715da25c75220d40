// What the core knows about itself, so that Python need not repeat it.
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "formats/formats.h"
#include "formats/repack.h"
#include "formats/source_types.h"
#include "model/config.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

template <typename Value>
std::map<std::string, std::pair<Value, Value>> ranges(std::span<const Limits<Value>> limits) {
  std::map<std::string, std::pair<Value, Value>> result;
  for (const Limits<Value>& one : limits) result[std::string(one.field)] = {one.low, one.high};
  return result;
}

using SourceFacts = std::tuple<int64_t, int64_t, std::optional<std::string>>;

std::map<std::string, SourceFacts> source_types() {
  std::map<std::string, SourceFacts> result;
  const auto add = [&](SourceType type) {
    const std::optional<Format> format = exact_format(type);
    result[std::string(source_type_name(type))] = {
        source_block_values(type), source_block_bytes(type),
        format ? std::optional<std::string>(format_name(*format)) : std::nullopt};
  };
#define GEMLET_ADD_SOURCE_TYPE(id, name, values, bytes) add(SourceType::k##id);
  GEMLET_SOURCE_TYPES(GEMLET_ADD_SOURCE_TYPE)
#undef GEMLET_ADD_SOURCE_TYPE
  return result;
}

}  // namespace

void register_facts(py::module_& m) {
  m.attr("LAYOUT_VERSION") = kLayoutVersion;  // of the packed form of weights
  m.attr("MAX_THREADS") = kMaxThreads;
  m.def("source_types", &source_types,
        "The types in which files may store tensors: name -> (values of a block, bytes of a block, the smallest format "
        "of weights that can hold every value of the type, or None).");
  m.def(
      "size_limits", [] { return ranges(size_limits()); },
      "(least, largest) value of the integer fields of LayerConfig and ModelConfig; 'layers' is their number.");
  m.def(
      "number_limits", [] { return ranges(number_limits()); },
      "(least, largest) value of the real fields of LayerConfig and ModelConfig.");
}

}  // namespace gemlet::bindings

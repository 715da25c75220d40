// Facts that the core knows about itself, so that Python need not repeat them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/tokens.h"
#include "engine/step_times.h"
#include "formats/formats.h"
#include "formats/repack.h"
#include "formats/source_rows.h"
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

// Rows of blocks [rows, bytes] as float32 [rows, values].
py::array_t<float> widened(const py::array_t<uint8_t, py::array::c_style>& data, const std::string& dtype) {
  const auto type = source_type_from_name(dtype);
  if (!type || has_own_scales(*type)) {
    std::string names;
    for (const auto& [name, facts] : source_types()) {
      if (!has_own_scales(*source_type_from_name(name))) names += (names.empty() ? "" : ", ") + name;
    }
    fail(ErrorCode::kInvalidRequest, "dtype is '", dtype, "', expected a type without separate scales: ", names);
  }
  if (data.ndim() != 2 || data.shape(1) % source_block_bytes(*type) != 0) {
    fail(ErrorCode::kInvalidRequest, "data is ", array_text(data), ", expected uint8 [rows, bytes] with a multiple of ",
         source_block_bytes(*type), " bytes, which are a block of ", dtype);
  }
  const int64_t cols = data.shape(1) / source_block_bytes(*type) * source_block_values(*type);
  py::array_t<float> out({static_cast<int64_t>(data.shape(0)), cols});
  float* const to = out.mutable_data();
  const uint8_t* const from = data.data();
  const int64_t values = data.shape(0) * cols;
  const GilRelease release;
  widen(from, *type, 0, values, to);
  return out;
}

}  // namespace

void register_facts(py::module_& m) {
  m.attr("LAYOUT_VERSION") = kLayoutVersion;  // the version of the packed form of weights
  m.attr("MAX_THREADS") = kMaxThreads;
  m.attr("MAX_DRAFT_TOKENS") = StepTimes::kMostRows - 1;
  m.def("source_types", &source_types,
        "The types in which files may store tensors: name -> (values of a block, bytes of a block, the smallest format "
        "of weights that can hold every value of the type, or None).");
  m.def("widen", &widened, py::arg("data"), py::arg("dtype"),
        "Rows of a file's blocks, uint8 [rows, bytes], as float32 [rows, values].");
  m.def(
      "size_limits", [] { return ranges(size_limits()); },
      "(least, largest) value of the integer fields of LayerConfig and ModelConfig; 'layers' is their number.");
  m.def(
      "number_limits", [] { return ranges(number_limits()); },
      "(least, largest) value of the real fields of LayerConfig and ModelConfig.");
}

}  // namespace gemlet::bindings

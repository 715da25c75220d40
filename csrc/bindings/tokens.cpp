#include "bindings/tokens.h"

#include <optional>
#include <string_view>

#include "base/error.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// The ids in a contiguous row of int32, such as array("i"), for which NumPy need not be imported.
std::optional<std::vector<int32_t>> row_of_int32(const py::object& ids) {
  Py_buffer row;
  if (!PyObject_CheckBuffer(ids.ptr())) return std::nullopt;
  if (PyObject_GetBuffer(ids.ptr(), &row, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  std::optional<std::vector<int32_t>> result;
  if (row.ndim == 1 && row.itemsize == sizeof(int32_t) && std::string_view(row.format) == "i") {
    const auto* const data = static_cast<const int32_t*>(row.buf);
    result.emplace(data, data + row.shape[0]);
  }
  PyBuffer_Release(&row);
  return result;
}

}  // namespace

std::vector<int32_t> token_ids(const py::object& ids) {
  if (auto row = row_of_int32(ids)) return *std::move(row);
  const py::array array = in_python([&] { return py::array::ensure(ids); });
  if (!array) fail(ErrorCode::kInvalidRequest, "token ids must be a one-dimensional array of integers");
  if (array.size() == 0) return {};
  const char kind = array.dtype().kind();
  if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
    fail(ErrorCode::kInvalidRequest, "token ids must be a one-dimensional array of integers, got ", array_text(array));
  }
  const auto wide =
      in_python([&] { return py::array_t < int64_t, py::array::c_style | py::array::forcecast > ::ensure(array); });
  if (!wide) fail(ErrorCode::kInvalidRequest, "token ids must be integers of at most 64 bits");
  std::vector<int32_t> result(static_cast<size_t>(wide.size()));
  for (size_t i = 0; i < result.size(); ++i) {
    const int64_t id = wide.data()[i];
    if (id < INT32_MIN || id > INT32_MAX) {
      fail(ErrorCode::kInvalidRequest, "token id ", id, " at position ", i,
           " is out of range: the ids of a vocabulary have at most 31 bits");
    }
    result[i] = static_cast<int32_t>(id);
  }
  return result;
}

std::string array_text(const py::array& array) {
  return py::str(static_cast<const py::object&>(array.dtype())).cast<std::string>() + " " +
         py::str(array.attr("shape")).cast<std::string>();
}

void check_rows(const py::array& array, int64_t hidden_size) {
  constexpr int kFlags = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  const bool floats = array.dtype().is(py::dtype::of<float>()) && (~array.flags() & kFlags) == 0;
  if (!floats || array.ndim() != 2 || array.shape(1) != hidden_size) {
    fail(ErrorCode::kInvalidRequest, "soft rows must be a C-contiguous float32 array [rows, ", hidden_size, "], got ",
         array_text(array));
  }
}

std::vector<PlacedMedia> placed(const MediaPairs& pairs) {
  std::vector<PlacedMedia> media;
  for (const auto& [first, one] : pairs) {
    if (!one) fail(ErrorCode::kInvalidRequest, "a medium of the prompt is None, expected a Media");
    media.push_back({first, one});
  }
  return media;
}

Tokens::Tokens(const py::object& ids, SoftArrays soft_rows, const Spans& spans, int64_t hidden_size)
    : ids_(token_ids(ids)), arrays_(std::move(soft_rows)) {
  for (const auto& [first, array] : arrays_) {
    check_rows(array, hidden_size);
    soft_rows_.push_back({first, array.shape(0), static_cast<const float*>(array.data())});
  }
  for (const auto& [begin, end] : spans) spans_.push_back({begin, end});
}

}  // namespace gemlet::bindings

// Reads tokens and media from Python objects.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <utility>
#include <vector>

#include "engine/media.h"
#include "model/batch.h"

namespace gemlet::bindings {

// the type in Python signatures: everything that NumPy can convert to an array
using TokenIds = pybind11::typing::Union<pybind11::array, pybind11::buffer, pybind11::typing::List<pybind11::int_>>;

// Token ids from a one-dimensional array (or list) of integers. Nothing is rounded, wrapped around or flattened.
std::vector<int32_t> token_ids(const pybind11::object& ids);

// The type and shape of an array, for messages: "float32 (3, 4)".
std::string array_text(const pybind11::array& array);

// Throws kInvalidRequest unless `array` is a C-contiguous float32 array [rows, hidden_size].
void check_rows(const pybind11::array& array, int64_t hidden_size);

// media of a prompt, as pairs (first token, media)
using MediaPairs = std::vector<std::pair<int64_t, std::shared_ptr<Media>>>;
std::vector<PlacedMedia> placed(const MediaPairs& pairs);

// Token ids, soft rows as (first token, float32 [rows, hidden]), and spans as (begin, end). Throws kInvalidRequest for
// arrays of another type or shape. TokenRun checks everything else.
class Tokens {
 public:
  using SoftArrays = std::vector<std::pair<int64_t, pybind11::array>>;
  using Spans = std::vector<std::pair<int64_t, int64_t>>;

  Tokens(const pybind11::object& ids, SoftArrays soft_rows, const Spans& spans, int64_t hidden_size);

  TokenRun run() const { return {ids_, soft_rows_, spans_}; }

 private:
  std::vector<int32_t> ids_;
  SoftArrays arrays_;  // own what soft_rows_ points to
  std::vector<SoftRows> soft_rows_;
  std::vector<TokenSpan> spans_;
};

}  // namespace gemlet::bindings

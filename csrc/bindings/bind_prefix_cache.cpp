#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/tokens.h"
#include "engine/prefix_cache.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using OptionalAdapter = std::optional<std::shared_ptr<Adapter>>;

PrefixCache::Root root_of(const OptionalAdapter& adapter, uint64_t cache_salt) {
  return {adapter.value_or(nullptr), cache_salt};
}

}  // namespace

Digest digest_of(const py::bytes& bytes, const char* name) {
  const std::string_view given = bytes;
  Digest digest = {};
  if (!given.empty() && given.size() != digest.size()) {
    fail(ErrorCode::kInvalidRequest, name, " has ", given.size(), " bytes, expected ", digest.size(), " or none");
  }
  std::copy(given.begin(), given.end(), digest.begin());
  return digest;
}

void register_prefix_cache(py::module_& m) {
  py::class_<PrefixCache, std::shared_ptr<PrefixCache>>(m, "PrefixCache", py::is_final(),
                                                        "Keys and values of texts that have ended.")
      .def(
          "nearest",
          [](PrefixCache& cache, const TokenIds& ids, const OptionalAdapter& adapter, uint64_t cache_salt) {
            const std::vector<int32_t> text = token_ids(ids);
            const GilRelease release;
            PrefixCache::Nearest nearest = cache.nearest(root_of(adapter, cache_salt), text);
            return std::make_tuple(nearest.common, nearest.usable, std::move(nearest.next));
          },
          py::arg("ids"), py::kw_only(), py::arg("adapter") = py::none(), py::arg("cache_salt") = 0,
          "Of the kept text that has the most first tokens in common with `ids`: how many that are, how many of them a "
          "text can begin with, and the tokens that the kept text goes on with, a few.")
      .def(
          "save",
          [](PrefixCache& cache, const TokenIds& ids, int descriptor, const OptionalAdapter& adapter,
             uint64_t cache_salt) {
            const std::vector<int32_t> text = token_ids(ids);
            const GilRelease release;
            return cache.save(root_of(adapter, cache_salt), text, descriptor);
          },
          py::arg("ids"), py::arg("descriptor"), py::kw_only(), py::arg("adapter") = py::none(),
          py::arg("cache_salt") = 0, "Appends what is kept of a text to an open file. Returns of how many tokens.")
      .def(
          "load",
          [](PrefixCache& cache, const TokenIds& ids, int descriptor, int64_t at, const OptionalAdapter& adapter,
             uint64_t cache_salt) {
            const std::vector<int32_t> text = token_ids(ids);
            const GilRelease release;
            return cache.load(root_of(adapter, cache_salt), text, descriptor, at);
          },
          py::arg("ids"), py::arg("descriptor"), py::arg("at"), py::kw_only(), py::arg("adapter") = py::none(),
          py::arg("cache_salt") = 0,
          "Keeps what save() has written from byte `at` to the end of the file. Returns of how many tokens.");
}

}  // namespace gemlet::bindings

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

PrefixCache::Root root_of(const OptionalAdapter& adapter, uint64_t cache_salt) {
  return {adapter.value_or(nullptr), cache_salt};
}

TextKey key_of(const TokenIds& ids, const MediaPairs& media) { return TextKey(token_ids(ids), placed(media)); }

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
  py::class_<Media, std::shared_ptr<Media>>(
      m, "Media", py::is_final(),
      "Ready-made embeddings, as a tower makes them of an image or a sound. They take the place of tokens of a prompt.")
      .def(py::init([](const py::array& rows, const py::bytes& digest, bool sees_itself) {
             if (rows.ndim() != 2 || rows.size() == 0) {
               fail(ErrorCode::kInvalidRequest, "rows has ", rows.ndim(), " dimensions and ", rows.size(),
                    " numbers, expected float32 [rows, hidden]");
             }
             check_rows(rows, rows.shape(1));
             const Digest own = digest_of(digest, "digest");
             if (own == Digest()) fail(ErrorCode::kInvalidRequest, "digest is empty, expected 32 bytes");
             const auto* const values = static_cast<const float*>(rows.data());
             return std::make_shared<Media>(Media{std::vector<float>(values, values + rows.size()), rows.shape(0),
                                                  rows.shape(1), own, sees_itself});
           }),
           py::arg("rows"), py::kw_only(), py::arg("digest"), py::arg("sees_itself"),
           "`rows`: float32 [n, hidden]. `digest`: 32 bytes of all that the rows depend on, by which the prefix cache "
           "knows them. `sees_itself`: each of the tokens sees all of them, in the layers that look ahead; they go "
           "through one pass.")
      .def("__len__", [](const Media& media) { return media.count; });

  py::class_<PrefixCache, std::shared_ptr<PrefixCache>>(m, "PrefixCache", py::is_final(),
                                                        "Keys and values of texts that have ended.")
      .def(
          "nearest",
          [](PrefixCache& cache, const TokenIds& ids, const MediaPairs& media, const OptionalAdapter& adapter,
             uint64_t cache_salt) {
            const TextKey text = key_of(ids, media);
            const GilRelease release;
            PrefixCache::Nearest nearest = cache.nearest(root_of(adapter, cache_salt), text);
            return std::make_tuple(nearest.common, nearest.usable, std::move(nearest.next));
          },
          py::arg("ids"), py::kw_only(), py::arg("media") = MediaPairs(), py::arg("adapter") = py::none(),
          py::arg("cache_salt") = 0,
          "About the kept text with the longest beginning in common with `ids`: its tokens in common, how many of them "
          "a text can begin with, and a few tokens that follow them in the kept text.")
      .def(
          "save",
          [](PrefixCache& cache, const TokenIds& ids, int descriptor, const MediaPairs& media,
             const OptionalAdapter& adapter, uint64_t cache_salt) {
            const TextKey text = key_of(ids, media);
            const GilRelease release;
            return cache.save(root_of(adapter, cache_salt), text, descriptor);
          },
          py::arg("ids"), py::arg("descriptor"), py::kw_only(), py::arg("media") = MediaPairs(),
          py::arg("adapter") = py::none(), py::arg("cache_salt") = 0,
          "Appends what is kept of a text to an open file. Returns the number of its tokens.")
      .def(
          "load",
          [](PrefixCache& cache, const TokenIds& ids, int descriptor, int64_t at, const MediaPairs& media,
             const OptionalAdapter& adapter, uint64_t cache_salt) {
            const TextKey text = key_of(ids, media);
            const GilRelease release;
            return cache.load(root_of(adapter, cache_salt), text, descriptor, at);
          },
          py::arg("ids"), py::arg("descriptor"), py::arg("at"), py::kw_only(), py::arg("media") = MediaPairs(),
          py::arg("adapter") = py::none(), py::arg("cache_salt") = 0,
          "Keeps what save() has written from byte `at` to the end of the file. Returns the number of its tokens.");
}

}  // namespace gemlet::bindings

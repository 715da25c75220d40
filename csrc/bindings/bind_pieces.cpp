#include <pybind11/stl.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "base/piece_encoder.h"
#include "base/piece_records.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// An encoder and the file that its pieces are in.
struct HeldEncoder {
  py::bytes model;
  std::unique_ptr<const PieceEncoder> encoder;
};

std::unique_ptr<HeldEncoder> piece_encoder(py::bytes model) {
  const std::string_view view = model;
  std::unique_ptr<const PieceEncoder> encoder;
  {
    const GilRelease release;
    encoder = PieceEncoder::of(view);
  }
  if (!encoder) return nullptr;
  return std::make_unique<HeldEncoder>(HeldEncoder{std::move(model), std::move(encoder)});
}

std::vector<int32_t> encode(const HeldEncoder& held, std::string_view text) {
  const GilRelease release;
  return held.encoder->encode(text);
}

}  // namespace

void register_pieces(py::module_& m) {
  py::class_<HeldEncoder>(m, "PieceEncoder", py::is_final(), "Text to pieces, as SentencePiece does it.")
      .def("encode", &encode, py::arg("text"), "The ids of `text`.")
      .def("__len__", [](const HeldEncoder& held) { return held.encoder->size(); });
  m.def(
      "piece_encoder", &piece_encoder, py::arg("model"),
      "The encoder of a SentencePiece model. None if SentencePiece refuses the model, or if the model is anything but "
      "byte-pair encoding of unchanged text.");
  m.def(
      "after_pieces", [](const py::bytes& data, size_t at) { return after_pieces(data, at); }, py::arg("data"),
      py::arg("at"), "The end of the run of pieces that begins at `at` in `data`, a file of SentencePiece.");
  m.def(
      "rises_to", [](const py::bytes& data, size_t last) { return rises_to(data, last); }, py::arg("data"),
      py::arg("last"), "Whether the little-endian numbers of 32 bits in `data` never fall, and end with `last`.");
}

}  // namespace gemlet::bindings

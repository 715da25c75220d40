// Sound: from samples to what the models take.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "audio/log_mel.h"
#include "audio/sound.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

py::array_t<float> floats(const std::vector<float>& values, std::vector<py::ssize_t> shape) {
  py::array_t<float> out(std::move(shape));
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

py::array_t<float> mono(const py::array& samples, int64_t rate, int64_t most) {
  const bool int16 = samples.dtype().equal(py::dtype::of<int16_t>());
  if ((!int16 && !samples.dtype().equal(py::dtype::of<float>())) || !(samples.flags() & py::array::c_style) ||
      samples.ndim() < 1 || samples.ndim() > 2) {
    fail(ErrorCode::kInvalidRequest,
         "sound: expected a C-contiguous array of float32 or int16, [frames] or [frames, channels]");
  }
  const Samples source = {samples.data(), int16, samples.shape(0), samples.ndim() == 2 ? samples.shape(1) : 1, rate};
  std::vector<float> values;
  {
    const GilRelease release;
    values = to_mono(source, std::max<int64_t>(most, 0));
  }
  return floats(values, {static_cast<py::ssize_t>(values.size())});
}

std::span<const float> span_of(const py::array_t<float, py::array::c_style>& samples) {
  if (samples.ndim() != 1) fail(ErrorCode::kInvalidRequest, "sound: expected float32 [samples]");
  return {samples.data(), static_cast<size_t>(samples.shape(0))};
}

}  // namespace

void register_audio(py::module_& m) {
  m.attr("SOUND_RATE") = kSoundRate;
  m.attr("MOST_SOUND_SECONDS") = kMostSoundSeconds;
  m.def("mono", &mono, py::arg("samples"), py::kw_only(), py::arg("rate"), py::arg("most"),
        "float32 [n]: the mean of the channels of samples [frames] or [frames, channels], float32 or int16, at 16 kHz; "
        "at most the first `most`.");
  py::class_<LogMelExtractor>(m, "LogMel", py::is_final(), "Logarithms of mel spectra of sounds.")
      .def(py::init([](int64_t frame_length, int64_t hop_length, int64_t fft_length, int64_t bins, double min_frequency,
                       double max_frequency, double floor, double preemphasis, bool centred) {
             return LogMelExtractor({frame_length, hop_length, fft_length, bins, min_frequency, max_frequency, floor,
                                     preemphasis, centred});
           }),
           py::kw_only(), py::arg("frame_length"), py::arg("hop_length"), py::arg("fft_length"), py::arg("bins"),
           py::arg("min_frequency"), py::arg("max_frequency"), py::arg("floor"), py::arg("preemphasis"),
           py::arg("centred"))
      .def(
          "extract",
          [](const LogMelExtractor& extractor, const py::array_t<float, py::array::c_style>& samples) {
            const std::span<const float> values = span_of(samples);
            LogMel mel;
            {
              const GilRelease release;
              mel = extractor.extract(values);
            }
            const auto bins = mel.frames > 0 ? static_cast<py::ssize_t>(mel.values.size()) / mel.frames : 0;
            return std::make_pair(floats(mel.values, {mel.frames, bins}), mel.valid);
          },
          py::arg("samples"), "Of mono samples at 16 kHz: float32 [frames, bins], and how many frames count.")
      .def(
          "count",
          [](const LogMelExtractor& extractor, int64_t samples) {
            const LogMel mel = extractor.count(samples);
            return std::make_pair(mel.frames, mel.valid);
          },
          py::arg("samples"), "How many frames so many samples have, and how many of them count.");
}

}  // namespace gemlet::bindings

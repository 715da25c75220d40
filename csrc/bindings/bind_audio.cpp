// Sound: from samples to what the models take.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "audio/conformer.h"
#include "audio/log_mel.h"
#include "audio/sound.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/interruptible.h"
#include "bindings/tokens.h"
#include "model/modality.h"

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
         "sound: expected a C-contiguous array of float32 or int16, [frames] or [frames, channels], got ",
         array_text(samples));
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
  if (samples.ndim() != 1)
    fail(ErrorCode::kInvalidRequest, "sound: expected float32 [samples], got ", array_text(samples));
  return {samples.data(), static_cast<size_t>(samples.shape(0))};
}

using audio::Conformer;
using audio::ConformerConfig;
using Features = py::array_t<float, py::array::c_style>;

int64_t frames_of(const Conformer& tower, const Features& features) {
  if (features.ndim() != 2 || features.shape(1) != tower.config().bins) {
    fail(ErrorCode::kInvalidRequest, "features must be a float32 array [frames, ", tower.config().bins, "], got ",
         array_text(features));
  }
  return features.shape(0);
}

py::array_t<float> encode_sound(const Conformer& tower, const Features& features, int64_t valid,
                                const OptionalAdapter& adapter) {
  const Adapter* const adapted = adapter_of(adapter, tower.model());
  const int64_t frames = frames_of(tower, features);
  py::array_t<float> out({tower.config().tokens(frames, valid), tower.hidden_size()});
  float* const to = out.mutable_data();
  std::atomic<bool> cancel{false};
  run_interruptibly([&] { tower.encode(features.data(), frames, valid, to, adapted, &cancel); },
                    [&] { cancel = true; });
  return out;
}

using SoundTaps = py::typing::Dict<py::str, py::array_t<float>>;

SoundTaps sound_taps(const Conformer& tower, const Features& features, int64_t valid) {
  const int64_t frames = frames_of(tower, features);
  SoundTaps result;
  std::vector<float> out(static_cast<size_t>(tower.config().tokens(frames, valid) * tower.hidden_size()));
  const TapSink keep = [&](const std::string& name, const float* data, int64_t rows, int64_t dim) {
    result[py::str(name)] = py::array_t<float>({rows, dim}, data);
  };
  tower.encode(features.data(), frames, valid, out.data(), nullptr, nullptr, &keep);
  return result;
}

audio::Family family_of(const std::string& name) {
  if (name == "gemma3n") return audio::Family::kGemma3n;
  if (name == "gemma4") return audio::Family::kGemma4;
  fail(ErrorCode::kInvalidRequest, "family is '", name, "', expected 'gemma3n' or 'gemma4'");
}

void register_conformer(py::module_& m, py::module_& testing) {
  py::class_<ConformerConfig>(m, "ConformerConfig", py::is_final(), "The sizes of an audio encoder.")
      .def(py::init([](const std::string& family, int64_t bins, int64_t first_channels, int64_t second_channels,
                       int64_t hidden_size, int64_t num_layers, int64_t num_heads, int64_t conv_taps, int64_t keys,
                       int64_t output_size, int64_t reduction, double logit_cap, double residual_weight,
                       double rms_norm_eps, double group_norm_eps, bool clipped) {
             const ConformerConfig config = {
                 family_of(family), bins,         first_channels, second_channels, hidden_size, num_layers,
                 num_heads,         conv_taps,    keys,           output_size,     reduction,   logit_cap,
                 residual_weight,   rms_norm_eps, group_norm_eps, clipped};
             config.validate();
             return config;
           }),
           py::kw_only(), py::arg("family"), py::arg("bins"), py::arg("first_channels"), py::arg("second_channels"),
           py::arg("hidden_size"), py::arg("num_layers"), py::arg("num_heads"), py::arg("conv_taps"), py::arg("keys"),
           py::arg("output_size"), py::arg("reduction"), py::arg("logit_cap"), py::arg("residual_weight"),
           py::arg("rms_norm_eps"), py::arg("group_norm_eps"), py::arg("clipped"))
      .def("tokens", &ConformerConfig::tokens, py::arg("frames"), py::arg("valid"),
           "Soft tokens of a sound with this many frames, of which the first `valid` count.")
      .def(
          "activation_bytes",
          [](const ConformerConfig& config, int64_t frames, int64_t hidden_size, const std::string& weights) {
            return Conformer::activation_bytes(config, frames, hidden_size, weight_format(weights),
                                               *make_cpu_backend({}));
          },
          py::arg("frames"), py::arg("hidden_size"), py::arg("weights"),
          "Bytes of memory that encoding a sound takes, in a model of this hidden size with weights of that format.");
  py::class_<Conformer>(m, "Conformer", py::is_final(), "An audio encoder and its projection, in a loaded model.")
      .def(py::init<std::shared_ptr<Model>, const ConformerConfig&>(), py::arg("model").none(false), py::arg("config"))
      .def(
          "encode", &encode_sound, py::arg("features"), py::arg("valid"), py::arg("adapter") = py::none(),
          "From log-mel spectra, float32 [frames, bins], to soft tokens, float32 [tokens, hidden_size]. Ctrl-C ends it "
          "at the next layer.");
  testing.def("conformer_taps", &sound_taps, py::arg("tower"), py::arg("features"), py::arg("valid"),
              "Intermediate activations of a sound in the encoder by name, float32 [rows, dim].");
}

void register_modality(py::module_& m) {
  py::class_<Modality>(m, "Modality", py::is_final(),
                       "The projection of \"vision\" or \"audio\" into a loaded model, and a Gemma 3n's table of it.")
      .def(py::init<std::shared_ptr<Model>, const std::string&, int64_t, int64_t, double>(),
           py::arg("model").none(false), py::arg("name"), py::kw_only(), py::arg("width"), py::arg("table_rows"),
           py::arg("eps"))
      .def(
          "project",
          [](const Modality& modality, const Features& rows, const OptionalAdapter& adapter) {
            const Adapter* const adapted = adapter_of(adapter, modality.model());
            if (rows.ndim() != 2 || rows.shape(1) != modality.width()) {
              fail(ErrorCode::kInvalidRequest, "rows must be a float32 array [n, ", modality.width(), "], got ",
                   array_text(rows));
            }
            py::array_t<float> out({static_cast<int64_t>(rows.shape(0)), modality.hidden_size()});
            float* const to = out.mutable_data();
            const float* const from = rows.data();
            const int64_t count = rows.shape(0);
            const GilRelease release;
            modality.project(from, count, to, adapted);
            return out;
          },
          py::arg("rows"), py::arg("adapter") = py::none(),
          "Soft tokens, float32 [n, hidden_size], of float32 [n, width].")
      .def(
          "embed",
          [](const Modality& modality, const std::vector<int32_t>& indices, const OptionalAdapter& adapter) {
            const Adapter* const adapted = adapter_of(adapter, modality.model());
            py::array_t<float> out({static_cast<int64_t>(indices.size()), modality.hidden_size()});
            float* const to = out.mutable_data();
            const GilRelease release;
            modality.embed(indices, to, adapted);
            return out;
          },
          py::arg("indices"), py::arg("adapter") = py::none(),
          "Rows of the table as the text model takes them, float32 [n, hidden_size].");
}

}  // namespace

void register_audio(py::module_& m, py::module_& testing) {
  register_conformer(m, testing);
  register_modality(m);
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
          py::arg("samples"),
          "The features of mono samples at 16 kHz, float32 [frames, bins], and how many frames count.")
      .def(
          "count",
          [](const LogMelExtractor& extractor, int64_t samples) {
            const LogMel mel = extractor.count(samples);
            return std::make_pair(mel.frames, mel.valid);
          },
          py::arg("samples"), "How many frames a sound of this many samples has, and how many of them count.");
}

}  // namespace gemlet::bindings

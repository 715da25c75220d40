#include "audio/log_mel.h"

#include <algorithm>
#include <cmath>
#include <complex>

#include "audio/fft.h"
#include "audio/sound.h"
#include "base/error.h"

namespace gemlet {
namespace {

constexpr int64_t kMultiple = 128;  // the number of samples is a multiple of this
constexpr int64_t kMostLength = 1 << 16;

double mel_of(double frequency) { return 2595.0 * std::log10(1.0 + frequency / 700.0); }
double frequency_of(double mel) { return 700.0 * (std::pow(10.0, mel / 2595.0) - 1.0); }

}  // namespace

void LogMelConfig::validate() const {
  check_range("log-mel features: ", "frame_length", static_cast<double>(frame_length), 2, kMostLength);
  check_range("log-mel features: ", "hop_length", static_cast<double>(hop_length), 1, kMostLength);
  check_range("log-mel features: ", "fft_length", static_cast<double>(fft_length),
              static_cast<double>(std::max<int64_t>(frame_length, 4)), kMostLength);
  check_range("log-mel features: ", "feature_size", static_cast<double>(bins), 1, 1024);
  check_range("log-mel features: ", "max_frequency", max_frequency, 1, kSoundRate / 2);
  check_range("log-mel features: ", "min_frequency", min_frequency, 0, max_frequency - 1);
  check_range("log-mel features: ", "mel_floor", floor, 1e-30, 1e30);
  check_range("log-mel features: ", "preemphasis", preemphasis, 0, 1);
  if ((fft_length & (fft_length - 1)) != 0) {
    fail(ErrorCode::kConfig, "log-mel features: fft_length is ", fft_length, ", expected a power of two");
  }
}

LogMelExtractor::LogMelExtractor(const LogMelConfig& config) : config_(config) {
  config.validate();
  window_.resize(static_cast<size_t>(config.frame_length));
  for (int64_t i = 0; i < config.frame_length; ++i) {
    const double angle = 2 * 3.14159265358979323846 * static_cast<double>(i) / static_cast<double>(config.frame_length);
    window_[static_cast<size_t>(i)] = static_cast<float>(0.5 - 0.5 * std::cos(angle));
  }
  std::vector<double> points(static_cast<size_t>(config.bins + 2));  // the triangles' corners, in Hz
  const double low = mel_of(config.min_frequency), high = mel_of(config.max_frequency);
  for (size_t i = 0; i < points.size(); ++i) {
    points[i] = frequency_of(low + (high - low) * static_cast<double>(i) / static_cast<double>(config.bins + 1));
  }
  const double width = static_cast<double>(kSoundRate) / static_cast<double>(config.fft_length);
  filters_.resize(static_cast<size_t>(config.bins));
  for (size_t b = 0; b < filters_.size(); ++b) {
    Filter& filter = filters_[b];
    filter.first = 0;
    for (int64_t j = 0; j <= config.fft_length / 2; ++j) {
      const double f = width * static_cast<double>(j);
      const double up = (f - points[b]) / (points[b + 1] - points[b]);
      const double down = (points[b + 2] - f) / (points[b + 2] - points[b + 1]);
      const double weight = std::max(0.0, std::min(up, down));
      if (weight <= 0) continue;
      if (filter.weights.empty()) filter.first = j;
      filter.weights.push_back(weight);
    }
  }
}

LogMel LogMelExtractor::count(int64_t samples) const {
  const int64_t hop = config_.hop_length;
  const int64_t padded = (samples + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t silence = config_.centred ? config_.frame_length / 2 : 0;
  const int64_t room = padded + silence - config_.frame_length - 1;  // the last sample is used by no frame
  LogMel result;
  result.frames = room < 0 ? 0 : room / hop + 1;
  // In a centred configuration a frame counts if its last sample exists, otherwise if its first sample exists.
  const int64_t needed = config_.centred ? config_.frame_length - silence : 0;
  const int64_t whole = samples <= needed ? 0 : (samples - needed - 1) / hop + 1;
  result.valid = std::min(whole, result.frames);
  return result;
}

LogMel LogMelExtractor::extract(std::span<const float> samples) const {
  LogMel result = count(static_cast<int64_t>(samples.size()));
  result.values.resize(static_cast<size_t>(result.frames * config_.bins));
  const int64_t silence = config_.centred ? config_.frame_length / 2 : 0;
  const auto sample = [&](int64_t place) {
    const int64_t i = place - silence;
    return i < 0 || i >= static_cast<int64_t>(samples.size()) ? 0.0f : samples[static_cast<size_t>(i)];
  };
  // These steps are in float32, as in the reference.
  const auto emphasis = static_cast<float>(config_.preemphasis);
  const auto first_factor = static_cast<float>(1.0 - config_.preemphasis);
  RealFft fft(config_.fft_length);
  std::vector<double> frame(static_cast<size_t>(config_.fft_length));
  std::vector<std::complex<double>> spectrum(static_cast<size_t>(config_.fft_length / 2 + 1));
  std::vector<double> magnitudes(spectrum.size());
  const int64_t frames = config_.centred ? result.valid : result.frames;
  for (int64_t t = 0; t < frames; ++t) {
    const int64_t begin = t * config_.hop_length;
    for (int64_t i = 0; i < config_.frame_length; ++i) {
      float value = sample(begin + i);
      if (config_.preemphasis > 0) {
        value = i == 0 ? value * first_factor : value - emphasis * sample(begin + i - 1);
      }
      frame[static_cast<size_t>(i)] = static_cast<double>(value * window_[static_cast<size_t>(i)]);
    }
    fft.transform(frame.data(), spectrum.data());
    for (size_t j = 0; j < spectrum.size(); ++j) {
      magnitudes[j] = std::sqrt(spectrum[j].real() * spectrum[j].real() + spectrum[j].imag() * spectrum[j].imag());
    }
    for (size_t b = 0; b < filters_.size(); ++b) {
      double sum = 0;
      for (size_t j = 0; j < filters_[b].weights.size(); ++j) {
        sum += filters_[b].weights[j] * magnitudes[static_cast<size_t>(filters_[b].first) + j];
      }
      const double mel = config_.centred ? sum + config_.floor : std::max(sum, config_.floor);
      result.values[static_cast<size_t>(t * config_.bins) + b] = static_cast<float>(std::log(mel));
    }
  }
  return result;
}

}  // namespace gemlet

// Logarithms of mel spectra, the input of the audio encoders of Gemma 3n and Gemma 4.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemlet {

struct LogMelConfig {
  int64_t frame_length = 0;  // samples of a frame
  int64_t hop_length = 0;    // samples from one frame to the next
  int64_t fft_length = 0;    // a power of two, at least frame_length
  int64_t bins = 0;
  double min_frequency = 0, max_frequency = 0;  // Hz
  double floor = 0;
  double preemphasis = 0;  // 0: none
  // Gemma 4: half a frame of silence comes first, the floor is added, and a frame counts if all its samples are there.
  // Otherwise, as in Gemma 3n, the floor is the least value, and a frame counts if its first sample is there.
  bool centred = false;

  // Throws kConfig, with the name of the field, if a value is out of range.
  void validate() const;
};

struct LogMel {
  int64_t frames = 0;
  int64_t valid = 0;          // frames that count; they come first
  std::vector<float> values;  // [frames, bins]
};

// Computes the features of sounds.
class LogMelExtractor {
 public:
  explicit LogMelExtractor(const LogMelConfig& config);  // throws kConfig

  // Computes the features of mono samples at 16 kHz, which it first pads with silence to a multiple of 128. In a
  // centred configuration, frames that do not count are zero.
  LogMel extract(std::span<const float> samples) const;
  // Computes only `frames` and `valid` of the result, without the values.
  LogMel count(int64_t samples) const;

 private:
  struct Filter {  // the weights of the frequencies in one bin
    int64_t first;
    std::vector<double> weights;
  };
  LogMelConfig config_;
  std::vector<float> window_;
  std::vector<Filter> filters_;
};

}  // namespace gemlet

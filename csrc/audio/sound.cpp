#include "audio/sound.h"

#include <algorithm>
#include <cmath>

#include "audio/resample.h"
#include "base/error.h"

namespace gemlet {
namespace {

// Loud recordings in float exceed 1 a little. Integers that were not divided exceed it by far.
constexpr float kLoudest = 256;

void check(const Samples& samples) {
  if (samples.rate < kLeastRate || samples.rate > kMostRate) {
    fail(ErrorCode::kInvalidRequest, "sound: a rate of ", samples.rate, " samples per second, expected ", kLeastRate,
         " to ", kMostRate);
  }
  if (samples.channels < 1 || samples.channels > kMostChannels) {
    fail(ErrorCode::kInvalidRequest, "sound: ", samples.channels, " channels, expected 1 to ", kMostChannels,
         "; samples are [frames] or [frames, channels]");
  }
  if (samples.frames < 1) fail(ErrorCode::kInvalidRequest, "sound: no samples, expected at least one");
  if (samples.frames > kMostSoundSeconds * samples.rate) {
    fail(ErrorCode::kInvalidRequest, "sound: ", samples.frames / samples.rate, " seconds, expected at most ",
         kMostSoundSeconds, "; cut the sound into pieces");
  }
}

}  // namespace

std::vector<float> to_mono(const Samples& samples, int64_t most) {
  check(samples);
  std::vector<float> mono(static_cast<size_t>(samples.frames));
  const auto channels = static_cast<double>(samples.channels);
  for (int64_t frame = 0; frame < samples.frames; ++frame) {
    double sum = 0;
    for (int64_t i = frame * samples.channels; i < (frame + 1) * samples.channels; ++i) {
      if (samples.int16) {
        sum += static_cast<double>(static_cast<const int16_t*>(samples.data)[i]) / 32768.0;
        continue;
      }
      const float value = static_cast<const float*>(samples.data)[i];
      if (!(std::abs(value) <= kLoudest)) {
        fail(ErrorCode::kInvalidRequest, "sound: sample ", frame, " is ", value,
             ", expected a number from -1 to 1; divide integers by their largest value, 32768 for 16 bits");
      }
      sum += static_cast<double>(value);
    }
    mono[static_cast<size_t>(frame)] = static_cast<float>(sum / channels);
  }
  return resample(mono, samples.rate, kSoundRate, most);
}

}  // namespace gemlet

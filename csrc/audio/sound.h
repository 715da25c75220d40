// Converts sound from the form in which a client gives it to the form that the models take: one channel of float32 at
// 16 kHz.
#pragma once

#include <cstdint>
#include <vector>

namespace gemlet {

inline constexpr int64_t kSoundRate = 16000;
inline constexpr int64_t kLeastRate = 1000, kMostRate = 768000;  // samples per second
inline constexpr int64_t kMostChannels = 64;
inline constexpr int64_t kMostSoundSeconds = 3600;

// Samples [frames, channels] in the host's memory: float32 in [-1, 1], or int16, which are divided by 32768.
struct Samples {
  const void* data;
  bool int16;
  int64_t frames, channels;
  int64_t rate;
};

// Returns the mean of the channels, at 16 kHz. The sound becomes ceil(frames * 16000 / rate) samples, and at most the
// first `most` of these are computed. Throws kInvalidRequest for a rate, a number of channels or a length out of range,
// for samples that are not finite, and for samples far outside of -1 to 1.
std::vector<float> to_mono(const Samples& samples, int64_t most);

}  // namespace gemlet

// Converts sound from any sampling rate to any other.
#pragma once

#include <cstdint>
#include <vector>

namespace gemlet {

// The number of samples that `count` samples become: ceil(count * to / from).
int64_t resampled_count(int64_t count, int64_t from, int64_t to);

// The first `most` samples of x after resampling, or all if there are fewer. The low-pass filter is that of soxr's
// quality HQ: linear phase, flat up to 91 % of the lower Nyquist frequency, at least 125 dB down above that frequency.
// Outside of x there is silence. The reference rounds the number of samples that it computes. So the last sample is
// silent if less than half of it lies inside x. Equal rates change nothing.
std::vector<float> resample(const std::vector<float>& x, int64_t from, int64_t to, int64_t most);

}  // namespace gemlet

// Checks hostile sizes of images, sounds and towers. For any size that a caller or a file may name, the code must
// return finite results and stay inside its buffers, or throw a typed error. The sizes are mostly small, and sometimes
// any number.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "audio/conformer.h"
#include "audio/log_mel.h"
#include "audio/sound.h"
#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "check/check.h"
#include "vision/gemma4.h"
#include "vision/mobilenet.h"
#include "vision/resize.h"
#include "vision/siglip.h"

namespace gemlet::check {
namespace {

// The most bytes in a plan for one image or sound. The plan of Gemma 4 with all sizes at their limits has about 2^46.
constexpr int64_t kMostBytes = int64_t{1} << 48;
constexpr std::array<int64_t, 8> kRates = {8000, 16000, 24000, 32000, 48000, 999, 0, -16000};
constexpr std::array<double, 8> kNumbers = {0,    -1,      1e-6,     0.5,
                                            1e30, -1e-300, HUGE_VAL, std::numeric_limits<double>::quiet_NaN()};

class Chance {
 public:
  explicit Chance(uint64_t seed) : random_(seed) {}
  bool one_in(int64_t count) { return random_.below(count) == 0; }
  int64_t below(int64_t end) { return random_.below(end); }
  // A size that a file or a caller may name: mostly `usual`, sometimes any number.
  int64_t size(int64_t usual) {
    if (!one_in(12)) return usual;
    if (!one_in(3)) return random_.below(70) - 3;
    return static_cast<int64_t>(random_.bits()) >> random_.below(64);
  }
  double number(double usual) {
    if (!one_in(12)) return usual;
    return one_in(2) ? kNumbers[static_cast<size_t>(below(kNumbers.size()))] : std::bit_cast<double>(random_.bits());
  }
  // Returns `count` random bytes that end at an unreadable page.
  GuardedBytes bytes(int64_t count) {
    GuardedBytes made(std::max<int64_t>(count, 1));
    for (int64_t i = 0; i < count; i += 8) {
      const uint64_t bits = random_.bits();
      std::memcpy(made.data() + i, &bits, static_cast<size_t>(std::min<int64_t>(8, count - i)));
    }
    return made;
  }

 private:
  Random random_;
};

void expect(bool good, const char* what) {
  if (!good) failed(what);
}

void resize_image(Chance& chance) {
  const int64_t height = chance.below(40) + 1, width = chance.below(40) + 1;
  const int64_t rows = chance.size(chance.below(30) + 1), cols = chance.size(chance.below(30) + 1);
  if (rows > 0 && cols > 0 && rows <= vision::kMostPixels / cols && rows * cols > 1 << 16) return;  // only slow
  const GuardedBytes levels = chance.bytes(height * width * 3);
  const auto filter = chance.one_in(2) ? vision::Filter::kBilinear : vision::Filter::kBicubic;
  const vision::Image image = vision::resize(levels.data(), height, width, rows, cols, filter);
  expect(image.height == rows && image.width == cols, "another size");
  expect(static_cast<int64_t>(image.levels.size()) == rows * cols * 3, "another number of levels");
}

void resample(Chance& chance) {
  const bool int16 = chance.one_in(2);
  const int64_t frames = chance.below(300) + 1, channels = chance.size(chance.below(3) + 1);
  // Other rates need a table that takes milliseconds.
  const int64_t rate =
      chance.one_in(500) ? chance.below(kMostRate) : kRates[static_cast<size_t>(chance.below(kRates.size()))];
  if (channels > 100) return;
  const int64_t count = frames * std::max<int64_t>(channels, 1);
  GuardedBytes samples = chance.bytes(count * (int16 ? 2 : 4));
  if (!int16 && !chance.one_in(4)) {  // otherwise most floats would not be a sound
    for (int64_t i = 0; i < count; ++i) samples.as<float>()[i] = static_cast<float>(chance.below(200) - 100) / 100;
  }
  const int64_t most = chance.size(500);
  const std::vector<float> mono = to_mono({samples.data(), int16, frames, channels, rate}, std::max<int64_t>(most, 0));
  expect(static_cast<int64_t>(mono.size()) <= std::max<int64_t>(most, 0), "too many samples");
  for (const float sample : mono) expect(std::isfinite(sample), "a sample is not finite");
}

void extract_features(Chance& chance) {
  LogMelConfig config = {320, 160, 512, 128, 0, 8000, 1e-3, 0, true};
  if (chance.one_in(2)) config = {512, 160, 1024, 128, 125, 7600, 1e-5, 0.97, false};
  for (int64_t* const size : {&config.frame_length, &config.hop_length, &config.fft_length, &config.bins}) {
    *size = chance.size(*size);
  }
  for (double* const number : {&config.min_frequency, &config.max_frequency, &config.floor, &config.preemphasis}) {
    *number = chance.number(*number);
  }
  const int64_t count = chance.below(700);
  const GuardedBytes bytes = chance.bytes(count * 4);
  float* const samples = bytes.as<float>();
  for (int64_t i = 0; i < count; ++i) samples[i] = static_cast<float>(chance.below(200) - 100) / 100;
  const LogMelExtractor extractor(config);
  if (config.hop_length < 10 || config.fft_length > 4096) return;  // only slow
  const LogMel found = extractor.extract({samples, static_cast<size_t>(count)}), counted = extractor.count(count);
  expect(found.frames == counted.frames && found.valid == counted.valid, "frames and their count differ");
  expect(found.valid >= 0 && found.valid <= found.frames, "more frames count than there are");
  expect(static_cast<int64_t>(found.values.size()) == found.frames * config.bins, "another number of features");
  for (const float value : found.values) expect(std::isfinite(value), "a feature is not finite");
}

void check_bytes(int64_t bytes) { expect(bytes >= 0 && bytes < kMostBytes, "a plan says what no machine has"); }

void plan_siglip(Chance& chance, const Backend& backend) {
  vision::SiglipConfig c = {896, 14, 1152, 4304, 27, 16, 1e-6, 16};
  for (int64_t* const size : {&c.image_size, &c.patch_size, &c.hidden_size, &c.intermediate_size, &c.num_layers,
                              &c.num_heads, &c.tokens_per_side}) {
    *size = chance.size(*size);
  }
  c.layer_norm_eps = chance.number(c.layer_norm_eps);
  c.validate();
  expect(c.tokens() > 0 && c.patches() >= c.tokens() && c.head_dim() > 0, "impossible sizes");
  check_bytes(vision::Siglip::activation_bytes(c, 2560, Format::kBf16, backend));
}

void plan_gemma4(Chance& chance, const Backend& backend) {
  vision::Gemma4Config c = {16, 768, 3072, 16, 12, 12, 64, 3, 10240, true, false, 100, 1e-6};
  for (int64_t* const size : {&c.patch_size, &c.hidden_size, &c.intermediate_size, &c.num_layers, &c.num_heads,
                              &c.num_kv_heads, &c.head_dim, &c.pool, &c.positions}) {
    *size = chance.size(*size);
  }
  c.rope_theta = chance.number(c.rope_theta);
  c.rms_norm_eps = chance.number(c.rms_norm_eps);
  c.validate();
  check_bytes(vision::Gemma4Tower::activation_bytes(c, 1120, 2560, Format::kBf16, backend));
}

void plan_conformer(Chance& chance, const Backend& backend) {
  audio::ConformerConfig c;
  c.family = chance.one_in(2) ? audio::Family::kGemma3n : audio::Family::kGemma4;
  const bool is_3n = c.family == audio::Family::kGemma3n;
  c.bins = chance.size(128), c.first_channels = chance.size(128), c.second_channels = chance.size(32);
  c.hidden_size = chance.size(is_3n ? 1536 : 1024), c.num_layers = chance.size(12), c.num_heads = chance.size(8);
  c.conv_taps = chance.size(5), c.keys = chance.size(is_3n ? 13 : 12), c.output_size = chance.size(1536);
  c.reduction = chance.size(is_3n ? 4 : 1);
  c.logit_cap = chance.number(50), c.residual_weight = chance.number(0.5);
  c.rms_norm_eps = chance.number(1e-6), c.group_norm_eps = chance.number(1e-3);
  c.validate();
  const int64_t frames = chance.below(audio::Conformer::kMostFrames) + 1, valid = chance.below(frames + 1);
  const int64_t tokens = c.tokens(frames, valid);
  expect(tokens >= 0 && tokens <= frames && tokens <= c.block_rows(frames, valid), "impossible numbers of tokens");
  check_bytes(audio::Conformer::activation_bytes(c, frames, 2048, Format::kBf16, backend));
}

void plan_mobilenet(Chance& chance) {
  using Kind = vision::MobileNetBlock::Kind;
  vision::MobileNetConfig c = {768, 768, 64, {}, 1920, 2048, 16, 1e-6};
  c.height = chance.size(c.height), c.width = chance.size(c.width), c.stem_channels = chance.size(c.stem_channels);
  int64_t channels = c.stem_channels;
  for (int stage = 0; stage < 4; ++stage) {
    std::vector<vision::MobileNetBlock> blocks;
    for (int64_t i = 0; i < 2; ++i) {
      vision::MobileNetBlock b;
      b.kind = stage == 0 ? Kind::kEdge : stage == 3 && i == 1 ? Kind::kAttention : Kind::kInverted;
      b.in_channels = chance.size(channels), b.out_channels = chance.size(i ? channels : 64 << stage);
      channels = b.out_channels;
      b.inner = chance.size(256 << stage), b.start_kernel = chance.size(b.attends() ? 0 : 3);
      b.middle_kernel = chance.size(b.attends() || stage ? 5 : 0), b.stride = chance.size(i ? 1 : 2);
      if (b.attends()) b.num_heads = chance.size(8), b.head_dim = chance.size(64), b.inner = 0;
      blocks.push_back(b);
    }
    c.stages.push_back(blocks);
  }
  c.fused_inner = chance.size(c.fused_inner), c.hidden_size = chance.size(c.hidden_size);
  c.tokens_per_side = chance.size(c.tokens_per_side), c.rms_norm_eps = chance.number(c.rms_norm_eps);
  c.validate();
  expect(c.tokens() > 0, "no tokens");
  check_bytes(vision::MobileNetPlan(c).floats() * 4);
}

void one_input(int64_t kind, Chance& chance, const Backend& backend) {
  switch (kind) {
    case 0:
      return resize_image(chance);
    case 1:
      return resample(chance);
    case 2:
      return extract_features(chance);
    case 3:
      return plan_siglip(chance, backend);
    case 4:
      return plan_gemma4(chance, backend);
    case 5:
      return plan_conformer(chance, backend);
    default:
      return plan_mobilenet(chance);
  }
}

}  // namespace

void check_media(Tier tier, int64_t inputs, uint64_t seed) {
  constexpr int64_t kWorks = 7;
  const CpuBackend backend(tier, {});
  std::array<int64_t, kWorks> done = {};
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t kind = i % kWorks;
    begin_case("media", tier, shape_text("seed", static_cast<int64_t>(seed), "input", i));
    Chance chance(seed * 1'000'003 + static_cast<uint64_t>(i));
    try {
      one_input(kind, chance, backend);
      ++done[static_cast<size_t>(kind)];
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kConfig && error.code() != ErrorCode::kInvalidRequest) failed(error.what());
    }
  }
  int64_t taken = 0;
  for (const int64_t count : done) {
    expect(inputs < 1000 || (count > 0 && count < inputs / kWorks), "one kind of input is always taken or refused");
    taken += count;
  }
  std::printf("media: %lld inputs, %lld taken\n", static_cast<long long>(inputs), static_cast<long long>(taken));
}

}  // namespace gemlet::check

// Checks forward passes of small random models.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "backend/cpu/cpu_backend.h"
#include "check/check.h"
#include "engine/sequence.h"
#include "model/builder.h"

namespace gemlet::check {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = kSmallVocab;
  config.hidden_size = 96;
  config.max_context = 256;
  config.rms_norm_eps = 1e-6;
  config.embedding_scale = std::sqrt(96.0);
  config.final_softcap = 30;
  config.norm_offset = 1;
  for (int i = 0; i < 3; ++i) {
    LayerConfig layer;
    layer.num_heads = i == 2 ? 2 : 4;
    layer.num_kv_heads = layer.num_heads / 2;
    layer.head_dim = i == 2 ? 264 : 40;  // 264: the keys and values of each token are a separate task
    layer.intermediate_size = 176;
    layer.query_scale = 1 / std::sqrt(static_cast<double>(layer.head_dim));
    layer.rope_theta = 10000;
    layer.sliding_window = i == 1 ? 0 : 24;
    layer.attention_softcap = i == 0 ? 50 : 0;
    layer.qk_norm = i > 0;
    layer.post_norms = true;
    config.layers.push_back(layer);
  }
  return config;
}

// Returns the logits of all 66 tokens of a prompt, which needs more than one block of the cache, and of 3 decoded
// tokens.
std::vector<float> logits(Tier tier, Format weights, KvFormat kv, int threads) {
  Sequence sequence(small_model(tier, weights, kv, threads));
  Random random(12);
  std::vector<int32_t> ids;
  for (int i = 0; i < 69; ++i) ids.push_back(static_cast<int32_t>(random.below(kSmallVocab)));
  sequence.extend({std::span(ids).first(66)}, LogitsWanted::kAll);
  std::vector<float> result = sequence.logits();
  for (size_t i = 66; i < 69; ++i) {
    sequence.extend({std::span(ids).subspan(i, 1)}, LogitsWanted::kLast);
    const std::vector<float> row = sequence.logits();
    result.insert(result.end(), row.begin(), row.end());
  }
  return result;
}

struct Case {
  Format weights;
  KvFormat kv;
  // The bound of the error of a logit. Logits are up to 30. Where numbers are rounded during the pass (the cache or
  // activations to bf16, activations to int8), a number at a tie may be rounded the other way.
  double bound;
};
constexpr Case kCases[] = {
    {Format::kF32, KvFormat::kF32, 1e-4}, {Format::kBf16, KvFormat::kF32, 0.2}, {Format::kBf16, KvFormat::kBf16, 0.2},
    {Format::kF32, KvFormat::kInt8, 0.1}, {Format::kF32, KvFormat::kInt4, 0.5}, {Format::kQ8, KvFormat::kBf16, 0.5},
    {Format::kQ4, KvFormat::kBf16, 0.5},  {Format::kQ6k, KvFormat::kBf16, 0.5}, {Format::kQ5k, KvFormat::kBf16, 0.5},
    {Format::kQ4k, KvFormat::kBf16, 0.5}, {Format::kQ5, KvFormat::kBf16, 0.5},  {Format::kR8, KvFormat::kBf16, 0.2},
    {Format::kR4, KvFormat::kBf16, 0.2},  {Format::kR2, KvFormat::kBf16, 0.2},  {Format::kW4a16, KvFormat::kF32, 1e-4},
};

}  // namespace

std::shared_ptr<Model> small_model(Tier tier, Format weights, KvFormat kv, int threads) {
  ModelBuilder builder(small_config(), weights, weights, kv,
                       std::make_unique<CpuBackend>(tier, BackendOptions{threads, threads}));
  builder.add_random(11);
  return builder.finish();
}

void check_model(Tier tier) {
  std::printf("model, worst logit:");
  for (const Case& c : kCases) {
    begin_case("model", tier, std::string(format_name(c.weights)));
    const std::vector<float> expected = logits(Tier::kScalar, c.weights, c.kv, 1);
    const std::vector<float> got = logits(tier, c.weights, c.kv, 1);
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
      if (!(error <= worst)) worst = error;
    }
    std::printf(" %s %.1e", std::string(format_name(c.weights)).c_str(), worst);
    if (!(worst <= c.bound))
      failed("a logit is off by " + std::to_string(worst) + ", more than " + std::to_string(c.bound));
    const std::vector<float> threaded = logits(tier, c.weights, c.kv, 3);
    expect_same_bits(threaded.data(), got.data(), static_cast<int64_t>(got.size()), "with one thread");
  }
  std::printf("\n");
}

}  // namespace gemlet::check

// Generates tokens with random weights. arm_instructions.py builds and runs this program to count the instructions of a
// token. The program calls getppid() before the first token and after each token, as a mark for the counter. It uses
// one thread.
//   arm_instructions LAYERS HIDDEN INTERMEDIATE HEADS TOKENS
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <memory>

#include "backend/cpu/cpu_backend.h"
#include "engine/sequence.h"
#include "model/builder.h"

int main(int count, char** values) {
  using namespace gemlet;
  if (count != 6) return 2;
  const auto number = [&](int at) { return std::atoi(values[at]); };
  ModelConfig config;
  config.vocab_size = 262144;
  config.hidden_size = number(2);
  config.max_context = 512;
  config.rms_norm_eps = 1e-6;
  config.embedding_scale = std::sqrt(number(2));
  config.norm_offset = 1;
  for (int i = 0; i < number(1); ++i) {
    LayerConfig layer;
    layer.num_heads = number(4);
    layer.num_kv_heads = 1;
    layer.head_dim = 256;
    layer.intermediate_size = number(3);
    layer.query_scale = 1 / 16.0;
    layer.rope_theta = 10000;
    layer.qk_norm = layer.post_norms = true;
    config.layers.push_back(layer);
  }
  const TierChoice choice = choose_tier(detect_cpu(), std::getenv("GEMLET_CPU"));
  ModelBuilder builder(config, Format::kQ4, Format::kQ8, KvFormat::kBf16,
                       std::make_unique<CpuBackend>(choice.tier, BackendOptions{1, 1}));
  builder.add_random(11);
  Sequence sequence(builder.finish());
  const int32_t ids[] = {2, 818, 2003, 9, 14, 100, 7000, 31};
  sequence.extend({std::span(ids)}, LogitsWanted::kLast);
  getppid();
  for (int i = 0; i < number(5); ++i) {
    sequence.extend({std::span(ids).subspan(i % 8, 1)}, LogitsWanted::kLast);
    getppid();
  }
}

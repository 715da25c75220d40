#include "engine/sampler_config.h"

#include <cmath>

#include "base/error.h"

namespace gemlet {

void check_sampler_config(const SamplerConfig& config) {
  const auto check = [](bool good, const char* name, double value, const char* expected) {
    if (!good) fail(ErrorCode::kInvalidRequest, name, " is ", value, ", expected ", expected);
  };
  const auto check_count = [&check](const char* name, int64_t value, int64_t least = 0) {
    check(value >= least, name, static_cast<double>(value), least == 0 ? "0 or more" : "1 or more");
  };
  check(std::isfinite(config.temperature) && config.temperature >= 0, "temperature", config.temperature,
        "a number >= 0");
  check(config.top_k >= 0, "top_k", static_cast<double>(config.top_k), "0 (all) or more");
  check(config.top_p > 0 && config.top_p <= 1, "top_p", config.top_p, "a number in (0, 1]");
  check(config.min_p >= 0 && config.min_p < 1, "min_p", config.min_p, "a number in [0, 1)");
  check(config.typical_p > 0 && config.typical_p <= 1, "typical_p", config.typical_p, "a number in (0, 1]");
  check(std::isfinite(config.repetition_penalty) && config.repetition_penalty > 0, "repetition_penalty",
        config.repetition_penalty, "a number > 0");
  check(std::isfinite(config.frequency_penalty), "frequency_penalty", config.frequency_penalty, "a finite number");
  check(std::isfinite(config.presence_penalty), "presence_penalty", config.presence_penalty, "a finite number");
  check(std::isfinite(config.dry.multiplier) && config.dry.multiplier >= 0, "dry_multiplier", config.dry.multiplier,
        "a number >= 0");
  check(std::isfinite(config.dry.base) && config.dry.base >= 1, "dry_base", config.dry.base, "a number >= 1");
  check_count("dry_allowed_length", config.dry.allowed_length, 1);
  check_count("no_repeat_ngram", config.no_repeat_ngram);
  check_count("min_tokens", config.min_tokens);
  check_count("prompt_tokens", config.prompt_tokens);
  check_count("vocab_limit", config.vocab_limit);
  for (const int32_t id : config.suppressed) check_count("a suppressed id", id);
  for (const int32_t id : config.end_ids) check_count("an end id", id);
  for (const auto& [id, bias] : config.logit_bias) {
    check_count("an id of logit_bias", id);
    check(std::isfinite(bias), "a value of logit_bias", bias, "a finite number");
  }
}

}  // namespace gemlet

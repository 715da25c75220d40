// gemlet_check [TIER [PART [INPUTS [SEED]]]]: checks every kernel that this machine can run, and a forward pass,
// against their definitions. TIER is the tier that must be in use: the machine's highest, or the one that GEMLET_CPU
// forces. PART leaves out checks that take minutes on an emulated processor: "kernels" checks kernels alone, and
// "model" also the forward pass, but not the engine. "media" only checks hostile sizes of images and sounds, as many as
// INPUTS says.
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/cpu_features.h"
#include "check/check.h"
#include "kernels/registry.h"

namespace gemlet::check {
namespace {

// Reports a read past a buffer, or an instruction that the machine lacks.
void on_signal(int number) {
  const char* const what = number == SIGILL ? ": illegal instruction\n" : ": access outside of a buffer\n";
  const char* const parts[] = {"FAILED ", current_case(), what};
  for (const char* part : parts) {
    if (write(STDOUT_FILENO, part, strlen(part)) < 0) break;
  }
  _exit(1);
}

void check_operation(std::string_view operation, const Tiers& tiers) {
  begin_case(operation, tiers.front(), "no case");
  if (operation == "quantize_i8") {
    check_quantize_i8(tiers);
  } else if (operation == "round_bf16") {
    check_round_bf16(tiers);
  } else if (operation == "quantize_s8" || operation == "round_s8") {
    check_round_s8(operation, tiers);
  } else if (operation.starts_with("matmul_")) {
    check_matmul(operation, tiers);
  } else if (operation.starts_with("kv_store_")) {
    check_kv_store(operation, tiers);
  } else if (operation.starts_with("attention_")) {
    check_attention(operation, tiers);
  } else if (operation.starts_with("peak_")) {
    return;  // loops for benchmarks, which compute nothing that could be wrong
  } else {
    check_rowwise(operation, tiers);
  }
}

void run(const char* expected, std::string_view part, int64_t inputs, uint64_t seed) {
  const CpuFacts facts = detect_cpu();
  const TierChoice choice = choose_tier(facts, std::getenv("GEMLET_CPU"));
  std::printf("tier %s: %s\n", std::string(tier_name(choice.tier)).c_str(), choice.reason.c_str());
  begin_case("the tier", choice.tier, "as chosen");
  if (expected && tier_name(choice.tier) != expected) failed(std::string("expected ") + expected);

  if (part == "media") return check_media(choice.tier, inputs, seed);
  std::vector<std::string_view> operations;
  for (const kernels::KernelEntry& entry : kernels::kernel_entries()) {
    if (std::find(operations.begin(), operations.end(), entry.operation) == operations.end()) {
      operations.push_back(entry.operation);
    }
  }
  for (const std::string_view operation : operations) {
    Tiers tiers;
    std::string names;
    for (const kernels::KernelEntry& entry : kernels::kernel_entries()) {
      if (entry.operation != operation || !tier_includes(choice.tier, entry.tier)) continue;
      tiers.push_back(entry.tier);
      names.append(" ").append(tier_name(entry.tier));
    }
    check_operation(operation, tiers);
    std::printf("%s:%s\n", std::string(operation).c_str(), names.c_str());
  }
  if (part == "kernels") return;
  check_media(choice.tier, 3000, 1);
  check_model(choice.tier);
  if (part == "model") return;
  check_engine(choice.tier);
}

}  // namespace
}  // namespace gemlet::check

int main(int count, char** arguments) {
  for (const int number : {SIGSEGV, SIGBUS, SIGILL}) signal(number, gemlet::check::on_signal);
  const std::string_view part = count > 2 ? arguments[2] : "all";
  if (part != "all" && part != "kernels" && part != "model" && part != "media") {
    std::printf("there is no part %s; there are: all kernels model media\n", arguments[2]);
    return 2;
  }
  try {
    const int64_t inputs = count > 3 ? std::strtoll(arguments[3], nullptr, 10) : 1'000'000;
    const uint64_t seed = count > 4 ? std::strtoull(arguments[4], nullptr, 10) : 1;
    gemlet::check::run(count > 1 ? arguments[1] : nullptr, part, inputs, seed);
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  return 0;
}

#include "base/cpu_features.h"

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace gemlet {
namespace {

constexpr uint64_t kXcr0Avx = 0x6;      // SSE and AVX registers
constexpr uint64_t kXcr0Avx512 = 0xe6;  // this adds the mask registers and the upper halves of ZMM registers
constexpr uint64_t kXcr0Amx = 0x60000;  // tile configuration and tile data

#if defined(GEMLET_NO_AMX)
constexpr bool kAmxKernels = false;  // the compiler does not know AMX
#else
constexpr bool kAmxKernels = true;
#endif

struct TierEntry {
  Tier tier;
  std::string_view name;
  Tier contained;
};
constexpr TierEntry kTiers[] = {
#define GEMLET_TIER_ENTRY(id, name, contained) {Tier::k##id, #name, Tier::k##contained},
    GEMLET_TIERS(GEMLET_TIER_ENTRY)
#undef GEMLET_TIER_ENTRY
};
constexpr const TierEntry& entry_of(Tier tier) { return kTiers[static_cast<size_t>(tier)]; }

#if defined(__x86_64__)
// Linux lets a process use the tile registers (8 KB) only after it has asked (Documentation/arch/x86/xstate.rst).
bool request_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

CpuFacts detect_cpu() {
  CpuFacts facts;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) {
    facts.sse2 = d & (1u << 26);
    facts.fma = c & (1u << 12);
    facts.osxsave = c & (1u << 27);
    facts.avx = c & (1u << 28);
    facts.f16c = c & (1u << 29);
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    facts.avx2 = b & (1u << 5);
    facts.avx512f = b & (1u << 16);
    facts.avx512dq = b & (1u << 17);
    facts.avx512bw = b & (1u << 30);
    facts.avx512vl = b & (1u << 31);
    facts.avx512vnni = c & (1u << 11);
    facts.amx_bf16 = d & (1u << 22);
    facts.amx_tile = d & (1u << 24);
    facts.amx_int8 = d & (1u << 25);
    unsigned max_subleaf = a;
    if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
      facts.avxvnni = a & (1u << 4);
      facts.avx512bf16 = a & (1u << 5);
    }
  }
  if (facts.osxsave) {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    facts.xcr0 = (static_cast<uint64_t>(high) << 32) | low;
  }
  facts.amx_granted = facts.amx_tile && (facts.xcr0 & kXcr0Amx) == kXcr0Amx && request_amx();
#elif defined(__aarch64__)
  // Linux reports what all cores have and what it supports itself.
  facts.asimd = getauxval(AT_HWCAP) & HWCAP_ASIMD;
  facts.asimddp = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  facts.i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#endif
#if defined(GEMLET_EMULATE_AVXVNNI)
  facts.avxvnni = true;
#endif
#if defined(GEMLET_EMULATE_AMX)
  facts.amx_emulated = true;
#endif
  return facts;
}

bool tier_supported(const CpuFacts& facts, Tier tier) {
  const auto saved = [&](uint64_t state) { return facts.osxsave && (facts.xcr0 & state) == state; };
  const auto contained = [&] { return tier_supported(facts, entry_of(tier).contained); };
  switch (tier) {
    case Tier::kScalar:
      return true;
    case Tier::kAmxEmulated:
      return facts.amx_emulated;
    case Tier::kAvx2:
      return contained() && saved(kXcr0Avx) && facts.avx && facts.avx2 && facts.fma && facts.f16c;
    case Tier::kAvxVnni:
      return contained() && facts.avxvnni;
    case Tier::kAvx512:
      return contained() && saved(kXcr0Avx512) && facts.avx512f && facts.avx512bw && facts.avx512vl && facts.avx512dq;
    case Tier::kAvx512Vnni:
      return contained() && facts.avx512vnni;
    case Tier::kAvx512Bf16:
      return contained() && facts.avx512bf16;
    case Tier::kAmx:
      return kAmxKernels && contained() && saved(kXcr0Amx) && facts.amx_granted && facts.amx_tile && facts.amx_int8 &&
             facts.amx_bf16;
    case Tier::kNeon:
      return contained() && facts.asimd;
    case Tier::kDotprod:
      return contained() && facts.asimddp;
    case Tier::kI8mm:
      return contained() && facts.i8mm;
  }
  return false;
}

bool tier_includes(Tier tier, Tier other) {
  while (tier != other && tier != Tier::kScalar) tier = entry_of(tier).contained;
  return tier == other;
}

std::vector<Tier> supported_tiers(const CpuFacts& facts) {
  std::vector<Tier> tiers;
  for (const TierEntry& entry : kTiers) {
    if (tier_supported(facts, entry.tier)) tiers.push_back(entry.tier);
  }
  return tiers;
}

std::string_view tier_name(Tier tier) { return entry_of(tier).name; }

std::optional<Tier> tier_from_name(std::string_view name) {
  for (const TierEntry& entry : kTiers) {
    if (entry.name == name) return entry.tier;
  }
  return std::nullopt;
}

TierChoice choose_tier(const CpuFacts& facts, const char* forced) {
  const std::vector<Tier> tiers = supported_tiers(facts);
  if (forced == nullptr || *forced == '\0') {
    return {tiers.back(), "the highest tier that the CPU has and the operating system supports"};
  }
  std::string names;
  for (const Tier tier : tiers) {
    if (!names.empty()) names += ", ";
    names += tier_name(tier);
  }
  const std::optional<Tier> tier = tier_from_name(forced);
  if (!tier) {
    fail(ErrorCode::kUnsupported, "GEMLET_CPU='", forced, "' is not a tier; this machine has: ", names);
  }
  if (!tier_supported(facts, *tier)) {
    fail(ErrorCode::kUnsupported, "GEMLET_CPU='", forced,
         "' needs instructions that this machine lacks; it has: ", names);
  }
  return {*tier, "forced by GEMLET_CPU"};
}

}  // namespace gemlet

// Which instruction sets this process may use: what the CPU has (CPUID, HWCAP), what the operating system saves (XCR0)
// and what it grants (AMX tile data). A CPU flag without the operating system's support counts as absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gemlet {

// Kernel tiers in rising order within an architecture. A kernel missing in a tier falls through to the next lower one.
enum class Tier { kScalar, kAvx2, kAvx512Vnni };

// Raw facts, injectable by tests.
struct CpuFacts {
  bool sse2 = false, avx = false, f16c = false, fma = false, avx2 = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512vnni = false, avx512bf16 = false;
  bool avxvnni = false, amx_tile = false, amx_int8 = false, amx_bf16 = false;
  bool osxsave = false;
  uint64_t xcr0 = 0;  // state components the operating system saves: bits 1,2 = SSE, AVX; 5..7 = AVX-512; 17,18 = AMX
};

CpuFacts detect_cpu();

// True if `facts` allow the kernels of `tier` to run.
bool tier_supported(const CpuFacts& facts, Tier tier);

// Tiers that `facts` allow, lowest first; kScalar is always there.
std::vector<Tier> supported_tiers(const CpuFacts& facts);

std::string_view tier_name(Tier tier);
std::optional<Tier> tier_from_name(std::string_view name);

struct TierChoice {
  Tier tier;
  std::string reason;
};

// The highest supported tier, or the one that GEMLET_CPU names. Throws kUnsupported when GEMLET_CPU names an unknown
// tier or one this machine lacks: a forced tier is the one that runs, never silently another.
TierChoice choose_tier(const CpuFacts& facts, const char* forced);

}  // namespace gemlet

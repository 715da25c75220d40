// Which instruction sets this process may use: what the CPU has (CPUID, HWCAP), what the operating system saves (XCR0)
// and what it grants (AMX tile data). A CPU flag without the operating system's support counts as absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gemlet {

// Kernel tiers: X(identifier, name, the tier it contains). A machine that has a tier has those it contains, all down to
// scalar, and a kernel missing in a tier comes from the nearest of these. The highest tier that a machine has is the
// last of its tiers in this list. Not one chain: AVX-512 machines need not have AVX-VNNI, nor the other way round.
// amx_emulated is for tests of builds with GEMLET_EMULATE_AMX: AMX in plain C++.
#define GEMLET_TIERS(X)                 \
  X(Scalar, scalar, Scalar)             \
  X(AmxEmulated, amx_emulated, Scalar)  \
  X(Avx2, avx2, Scalar)                 \
  X(AvxVnni, avxvnni, Avx2)             \
  X(Avx512, avx512, Avx2)               \
  X(Avx512Vnni, avx512vnni, Avx512)     \
  X(Avx512Bf16, avx512bf16, Avx512Vnni) \
  X(Amx, amx, Avx512Bf16)               \
  X(Neon, neon, Scalar)                 \
  X(Dotprod, dotprod, Neon)             \
  X(I8mm, i8mm, Dotprod)

enum class Tier {
#define GEMLET_DECLARE_TIER(id, name, contained) k##id,
  GEMLET_TIERS(GEMLET_DECLARE_TIER)
#undef GEMLET_DECLARE_TIER
};

// Raw facts, injectable by tests.
struct CpuFacts {
  bool sse2 = false, avx = false, f16c = false, fma = false, avx2 = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512vnni = false, avx512bf16 = false;
  bool avxvnni = false, amx_tile = false, amx_int8 = false, amx_bf16 = false;
  bool amx_granted = false;                           // the operating system lets this process use the tile registers
  bool amx_emulated = false;                          // the library has it
  bool asimd = false, asimddp = false, i8mm = false;  // Arm: NEON; sdot and udot; smmla and usdot
  bool osxsave = false;
  uint64_t xcr0 = 0;  // state components the operating system saves: bits 1,2 = SSE, AVX; 5..7 = AVX-512; 17,18 = AMX
};

CpuFacts detect_cpu();

// True if `facts` allow the kernels of `tier` to run.
bool tier_supported(const CpuFacts& facts, Tier tier);

// True if a machine with `tier` has `other` too: they are the same, or `tier` contains it.
bool tier_includes(Tier tier, Tier other);

// Tiers that `facts` allow, in the order of GEMLET_TIERS; kScalar is always there.
std::vector<Tier> supported_tiers(const CpuFacts& facts);

std::string_view tier_name(Tier tier);
std::optional<Tier> tier_from_name(std::string_view name);

struct TierChoice {
  Tier tier;
  std::string reason;
};

// The last supported tier, or the one that GEMLET_CPU names. Throws kUnsupported when GEMLET_CPU names an unknown
// tier or one this machine lacks: a forced tier is the one that runs, never silently another.
TierChoice choose_tier(const CpuFacts& facts, const char* forced);

}  // namespace gemlet

// Finds the instruction sets that this process may use. They depend on the CPU (CPUID, HWCAP), on the registers that
// the operating system saves (XCR0), and on what it grants (AMX tile data). A CPU feature that the operating system
// does not support counts as absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gemlet {

// Kernel tiers: X(identifier, name, the tier it contains). A machine that has a tier also has the tier that it
// contains, and so on down to scalar. A kernel that a tier lacks comes from the nearest of these. The highest tier of a
// machine is the last of its tiers in this list. The tiers are not one chain: a machine with AVX-512 need not have
// AVX-VNNI, and the reverse. amx_emulated is AMX in plain C++, for tests of builds with GEMLET_EMULATE_AMX.
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

// The facts that the CPU and the operating system report. Tests make up their own.
struct CpuFacts {
  bool sse2 = false, avx = false, f16c = false, fma = false, avx2 = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512vnni = false, avx512bf16 = false;
  bool avxvnni = false, amx_tile = false, amx_int8 = false, amx_bf16 = false;
  bool amx_granted = false;                           // the operating system lets this process use tile registers
  bool amx_emulated = false;                          // this build has the tier amx_emulated
  bool asimd = false, asimddp = false, i8mm = false;  // 64-bit Arm: NEON; sdot and udot; smmla and usdot
  bool osxsave = false;
  uint64_t xcr0 = 0;  // registers that the operating system saves; bits 1-2: SSE, AVX; 5-7: AVX-512; 17-18: AMX
};

CpuFacts detect_cpu();

// Whether a machine with these `facts` can run the kernels of `tier`.
bool tier_supported(const CpuFacts& facts, Tier tier);

// Whether a machine with `tier` also has `other`: they are the same, or `tier` contains it.
bool tier_includes(Tier tier, Tier other);

// The tiers that a machine with these `facts` can run, in the order of GEMLET_TIERS. kScalar is always among them.
std::vector<Tier> supported_tiers(const CpuFacts& facts);

std::string_view tier_name(Tier tier);
std::optional<Tier> tier_from_name(std::string_view name);

struct TierChoice {
  Tier tier;
  std::string reason;
};

// Returns the tier that `forced` (the value of GEMLET_CPU) names, or the highest one if it is null or empty. Throws
// kUnsupported if the machine lacks that tier or if there is none of that name: a forced tier never becomes another.
TierChoice choose_tier(const CpuFacts& facts, const char* forced);

}  // namespace gemlet

// Intel AMX: eight tile registers of up to 16 rows x 64 bytes, and a unit that multiplies them: 16 x 32 by 32 x 16
// numbers of bf16 in 16 cycles. Vector code around it uses AVX-512 with BF16.
//
// This is inline assembly because gcc's intrinsics do not declare that they read and write memory. A compiler may then
// move a store behind the load of a tile that needs the stored data, or remove the store. gcc 12 removes the tile
// configuration.
#pragma once

#define GEMLET_TIER amx

#include "kernels/simd/amx_config.h"
#include "kernels/simd/avx512.h"

namespace gemlet::kernels {
namespace {

// The tile registers, from the first configure() to the end of the scope. amx_emulated.h has the same class in
// software.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

  void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  template <int kTile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // The rows of the tile lie `stride` bytes apart.
  template <int kTile>
  void load(const void* rows, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* rows, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  // sums[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]: products of bf16, sums in f32.
  template <int kSums, int kA, int kB>
  void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
  // sums[m][n] += sum over k and i < 4 of a[m][4k + i] b[k][4n + i]: products of signed by unsigned bytes, sums in
  // int32.
  template <int kSums, int kA, int kB>
  void dot_i8() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
};

// Lane i of the result has low[i] as bf16 in its low half and high[i] as bf16 in its high half. Rounds to nearest, ties
// to even. Subnormal numbers become zero.
inline VI bf16_pairs(VF low, VF high) {
  const __m512i places = (__m512i)(VI){0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                       0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
  return (VI)_mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
// Lane i of the result is table[index[i] % 16].
inline VF look_up(VF table, VI index) { return (VF)_mm512_permutexvar_ps((__m512i)index, (__m512)table); }

}  // namespace
}  // namespace gemlet::kernels

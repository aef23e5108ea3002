// AMX's tile instructions: the only inline assembly among the kernels. The compiler's own wrappers
// will not do: g++ 12's let it drop stores to what a tile is loaded from. Tiles are named by number
// and are always whole, 16 rows of 64 bytes; ragged edges are zeros in memory.
//
// The twin that runs these where the processor cannot: csrc/test/amx_trap.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ops/cpu/vec.h"

#if defined(__AMX_BF16__)

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kTileRows = 16, kTileRowBytes = 64;

// What LDTILECFG reads.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

// All eight tiles whole, in this thread, while it lives. A thread that keeps them longer pays 8 KiB
// at each switch of context; coming and going takes well below a microsecond.
class TileScope {
 public:
  __attribute__((always_inline)) TileScope() {
    static constexpr TileConfiguration kWhole;
    asm volatile("ldtilecfg %0" ::"m"(kWhole));
  }
  __attribute__((always_inline)) ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
LR_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Rows lie `stride` bytes apart.
template <int kTile>
LR_INLINE void tile_load(const void* rows, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// The same for what is read once while other data should stay in L1.
template <int kTile>
LR_INLINE void tile_stream(const void* rows, size_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
LR_INLINE void tile_store(void* rows, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// kSums[m][n] += Σ_k kLeft[m][k] · kRight[k][n], 16 × 16 sums of fp32 over 32 k of bf16; kRight
// holds pairs along k. 16 cycles. Denormals are zeros, whatever MXCSR says.
template <int kSums, int kLeft, int kRight>
LR_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
}

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AMX_BF16__

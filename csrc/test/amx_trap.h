// Runs AMX's tile instructions on machines that lack them, so that the kernels compiled for AMX are
// tested as they ship: an unknown instruction raises SIGILL, whose handler decodes it, does its
// work on tiles of the thread's own, and goes on behind it. x86-64 Linux only.
//
// What real hardware refuses ends the program here too, with the reason: tiles used before they are
// configured, a configuration that is not valid, operands whose shapes do not fit. Some
// microseconds an instruction.      Intel Software Developer's Manual, volume 1 chapter 18 and
// volume 2
#pragma once

#include "core/cpu_level.h"

#if defined(__x86_64__) && defined(__linux__)
#define LR_AMX_TRAP 1

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lowrank::test {

constexpr size_t kTiles = 8, kTileRows = 16, kTileRowBytes = 64, kPairsOfRow = 16;

// Threads whose tiles are configured at this moment, and products that were run here so far.
inline std::atomic<int> configured_threads{0};
inline std::atomic<uint64_t> trapped_products{0};

// One thread's tiles.
struct TileState {
  struct Shape {
    size_t rows, row_bytes;
  };
  bool configured = false;
  Shape shapes[kTiles] = {};
  alignas(64) unsigned char data[kTiles][kTileRows][kTileRowBytes] = {};

  // Each returns null, or why the processor would refuse.
  const char* configure(const unsigned char* bytes);
  const char* release();
  const char* zero(size_t tile);
  const char* load(size_t tile, const unsigned char* from, size_t stride);
  const char* store(size_t tile, unsigned char* to, size_t stride) const;
  const char* multiply(size_t sums, size_t left, size_t right);

 private:
  const char* check(size_t tile) const {
    if (!configured) return "tiles are not configured";
    return shapes[tile].rows == 0 ? "the tile has no shape" : nullptr;
  }
};

inline const char* TileState::configure(const unsigned char* bytes) {
  const auto all_zero = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      if (bytes[i] != 0) return false;
    }
    return true;
  };
  if (bytes[0] == 0) return release();
  if (bytes[0] != 1) return "the configuration's palette is unknown";
  // Bytes per row of 16 tiles from byte 16 on, rows from byte 48 on; only eight tiles exist.
  if (!all_zero(1, 16) || !all_zero(32, 48) || !all_zero(56, 64))
    return "reserved bytes of the configuration are set, or loads resume amid a tile";
  for (size_t tile = 0; tile < kTiles; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, sizeof row_bytes);
    const size_t rows = bytes[48 + tile];
    if (rows > kTileRows || row_bytes > kTileRowBytes) return "a tile is configured too large";
    if ((rows == 0) != (row_bytes == 0)) return "a tile is configured in one direction only";
    shapes[tile] = {rows, row_bytes};
  }
  if (!configured) configured_threads.fetch_add(1);
  configured = true;
  std::memset(data, 0, sizeof data);
  return nullptr;
}

inline const char* TileState::release() {
  if (configured) configured_threads.fetch_sub(1);
  configured = false;
  return nullptr;
}

inline const char* TileState::zero(size_t tile) {
  if (const char* refused = check(tile)) return refused;
  std::memset(data[tile], 0, sizeof data[tile]);
  return nullptr;
}

inline const char* TileState::load(size_t tile, const unsigned char* from, size_t stride) {
  if (const char* refused = zero(tile)) return refused;
  for (size_t row = 0; row < shapes[tile].rows; ++row)
    std::memcpy(data[tile][row], from + row * stride, shapes[tile].row_bytes);
  return nullptr;
}

inline const char* TileState::store(size_t tile, unsigned char* to, size_t stride) const {
  if (const char* refused = check(tile)) return refused;
  for (size_t row = 0; row < shapes[tile].rows; ++row)
    std::memcpy(to + row * stride, data[tile][row], shapes[tile].row_bytes);
  return nullptr;
}

// sums[m][n] += Σ_k left[m][2k] · right[k][2n] + Σ_k left[m][2k + 1] · right[k][2n + 1], each sum a
// chain of FMA from 0, over pairs of bf16 that are widened exactly. Under MXCSR's FTZ and DAZ,
// which is how the instruction treats denormals. Never inlined, so that no arithmetic precedes
// their setting.
__attribute__((noinline, target("avx512f"))) inline void add_products(
    float (*sums)[kPairsOfRow], const uint32_t (*left)[kPairsOfRow],
    const uint32_t (*right)[kPairsOfRow], size_t rows, size_t pairs) {
  constexpr uint32_t kHigh = 0xffff0000;
  for (size_t m = 0; m < rows; ++m) {
    float even[kPairsOfRow] = {}, odd[kPairsOfRow] = {};
    for (size_t k = 0; k < pairs; ++k) {
      const float a_even = std::bit_cast<float>(left[m][k] << 16);
      const float a_odd = std::bit_cast<float>(left[m][k] & kHigh);
      for (size_t n = 0; n < kPairsOfRow; ++n) {
        even[n] = __builtin_fmaf(a_even, std::bit_cast<float>(right[k][n] << 16), even[n]);
        odd[n] = __builtin_fmaf(a_odd, std::bit_cast<float>(right[k][n] & kHigh), odd[n]);
      }
    }
    for (size_t n = 0; n < kPairsOfRow; ++n) sums[m][n] += even[n] + odd[n];
  }
}

inline const char* TileState::multiply(size_t sums, size_t left, size_t right) {
  for (size_t tile : {sums, left, right}) {
    if (const char* refused = check(tile)) return refused;
  }
  if (sums == left || sums == right || left == right) return "a product names a tile twice";
  const Shape &c = shapes[sums], &a = shapes[left], &b = shapes[right];
  if (c.row_bytes % 4 != 0 || a.row_bytes % 4 != 0 || b.row_bytes % 4 != 0)
    return "a product's tile has rows of no whole elements";
  if (c.rows != a.rows || c.row_bytes != b.row_bytes || a.row_bytes / 4 != b.rows)
    return "a product's tiles do not fit one another";
  trapped_products.fetch_add(1, std::memory_order_relaxed);
  _mm_setcsr(0x9fc0);  // FTZ and DAZ; the interrupted code's mode comes back by itself
  add_products(reinterpret_cast<float(*)[kPairsOfRow]>(data[sums]),
               reinterpret_cast<const uint32_t(*)[kPairsOfRow]>(data[left]),
               reinterpret_cast<const uint32_t(*)[kPairsOfRow]>(data[right]), c.rows, b.rows);
  return nullptr;
}

// An instruction of the shape that all of AMX's have: VEX with three bytes, map 0F38, W and L zero.
struct TileInstruction {
  enum Prefix { kNone, k66, kF3, kF2 };
  uint8_t opcode;
  Prefix prefix;
  size_t reg, rm, second;  // ModRM's fields, and the register that VEX names
  bool memory, indexed;    // whether rm is memory, addressed with a base and an index
  unsigned char* address;
  size_t stride;           // the index register, scaled
  size_t length;
};

constexpr uint8_t kConfigureOpcode = 0x49, kMoveOpcode = 0x4b, kMultiplyOpcode = 0x5c;

// False where it is another instruction.
inline bool decode(const unsigned char* code, const greg_t* registers, TileInstruction* out) {
  // In the order of their encodings.
  static constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                         REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                         REG_R12, REG_R13, REG_R14, REG_R15};
  constexpr uint8_t kVex3 = 0xc4, kMap0f38 = 2;
  if (code[0] != kVex3 || (code[1] & 31) != kMap0f38 || (code[2] & 0x84) != 0) return false;
  if (code[3] != kConfigureOpcode && code[3] != kMoveOpcode && code[3] != kMultiplyOpcode)
    return false;
  const size_t r = code[1] & 0x80 ? 0 : 8, x = code[1] & 0x40 ? 0 : 8, b = code[1] & 0x20 ? 0 : 8;
  const uint8_t modrm = code[4], mod = modrm >> 6;
  *out = {};
  out->prefix = static_cast<TileInstruction::Prefix>(code[2] & 3);
  out->second = ~code[2] >> 3 & 15;
  out->opcode = code[3];
  out->reg = (modrm >> 3 & 7) | r;
  out->rm = (modrm & 7) | b;
  out->memory = mod != 3;
  size_t length = 5;
  if (out->memory) {
    const bool has_sib = (modrm & 7) == 4;
    const uint8_t sib = has_sib ? code[length++] : 0;
    const size_t base = has_sib ? (sib & 7) | b : out->rm;
    const bool bare = mod == 0 && (base & 7) == 5;  // a displacement without a base register
    const size_t displacement_bytes = mod == 1 ? 1 : mod == 2 || bare ? 4 : 0;
    int32_t displacement = 0;
    if (displacement_bytes == 1) displacement = static_cast<int8_t>(code[length]);
    if (displacement_bytes == 4) std::memcpy(&displacement, code + length, 4);
    length += displacement_bytes;
    int64_t address = bare ? 0 : registers[kRegisters[base]];
    if (bare && !has_sib) address = reinterpret_cast<int64_t>(code + length);
    address += displacement;
    if (has_sib) {
      const size_t index = (sib >> 3 & 7) | x;
      if (index != 4) out->stride = static_cast<size_t>(registers[kRegisters[index]]) << (sib >> 6);
    }
    out->indexed = has_sib;
    out->address = reinterpret_cast<unsigned char*>(address);
  }
  out->length = length;
  return true;
}

// Null, or why the processor would refuse.
inline const char* execute(const TileInstruction& i, TileState& tiles) {
  using enum TileInstruction::Prefix;
  constexpr const char* kUnknown = "not an instruction that is known here";
  if (i.reg >= kTiles || (!i.memory && i.rm >= kTiles)) return "there are eight tiles";
  if (i.opcode == kMultiplyOpcode) {
    if (i.prefix != kF3 || i.memory) return kUnknown;
    return i.second < kTiles ? tiles.multiply(i.reg, i.rm, i.second) : "there are eight tiles";
  }
  if (i.second != 0) return "a second register is named";
  if (i.opcode == kConfigureOpcode && i.prefix == kNone && i.reg == 0) {
    if (i.memory) return tiles.configure(i.address);
    return i.rm == 0 ? tiles.release() : kUnknown;
  }
  if (i.opcode == kConfigureOpcode && i.prefix == kF2 && !i.memory && i.rm == 0)
    return tiles.zero(i.reg);
  if (i.opcode == kMoveOpcode && i.memory) {
    if (!i.indexed) return "a tile's address has no index";
    if (i.prefix == kF3) return tiles.store(i.reg, i.address, i.stride);
    if (i.prefix == kF2 || i.prefix == k66) return tiles.load(i.reg, i.address, i.stride);
  }
  return kUnknown;
}

inline TileState& tiles_of_thread() {
  static constinit thread_local TileState tiles;
  return tiles;
}

inline void on_unknown_instruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const char* refused = "not a tile instruction";
  // One tile instruction often follows another, and a signal costs more than what it does.
  TileInstruction instruction;
  const auto code = [&] { return reinterpret_cast<const unsigned char*>(registers[REG_RIP]); };
  while (decode(code(), registers, &instruction)) {
    refused = execute(instruction, tiles_of_thread());
    if (refused != nullptr) break;
    registers[REG_RIP] += static_cast<greg_t>(instruction.length);
  }
  if (refused == nullptr) return;
  for (const char* text : {"illegal instruction: ", refused, "\n"}) {
    if (write(STDERR_FILENO, text, std::strlen(text)) < 0) break;  // the signal says it too
  }
  signal(SIGILL, SIG_DFL);  // raised once more when the handler returns to the instruction
}

// Threads whose tiles are configured at this moment.
inline int threads_with_tiles() { return configured_threads.load(); }

// Lets the level amx run here, if this machine has all that it needs but the tiles. False if it
// cannot, or if it does by itself.
inline bool trap_tile_instructions() {
  if (available_levels().back() != CpuLevel::kAvx512Bf16) return false;
  struct sigaction action = {};
  action.sa_sigaction = on_unknown_instruction;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace lowrank::test

#else

namespace lowrank::test {
inline int threads_with_tiles() { return 0; }
inline bool trap_tile_instructions() { return false; }
}  // namespace lowrank::test

#endif

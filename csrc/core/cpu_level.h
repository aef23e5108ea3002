// Instruction-set levels: kernels are compiled once for each, and one is picked at load.
#pragma once

#include <vector>

#include "core/status.h"

namespace lowrank {

// In order of preference within an architecture. Each x86 level includes those before it.
enum class CpuLevel { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx, kNeon };

constexpr const char* level_name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kGeneric: return "generic";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAvx512Bf16: return "avx512_bf16";
    case CpuLevel::kAmx: return "amx";
    case CpuLevel::kNeon: return "neon";
  }
  return "generic";
}

// The levels that this machine and operating system can run, worst first.
std::vector<CpuLevel> available_levels();

// Whether products of bf16 outrun fp32's at this level on this machine: with AMX, and where VDPBF16PS runs at full rate,
// twice that of an FMA, as on AMD's cores. Intel's run it at half rate.
bool bf16_is_fast(CpuLevel level);

// LOWRANK_ISA where set (kInvalidOption where it is unknown or cannot run here), else the best available.
Result<CpuLevel> chosen_level();

}  // namespace lowrank

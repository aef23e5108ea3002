#include "core/cpu_level.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lowrank {
namespace {

#if defined(__x86_64__)
uint64_t xgetbv() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tiles need leave from the kernel, once a process; containers and old kernels refuse it.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<CpuLevel> available_levels() {
  std::vector<CpuLevel> levels{CpuLevel::kGeneric};
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return levels;
  const bool osxsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1, avx = (c >> 28) & 1;
  if (!osxsave || !avx) return levels;
  const uint64_t enabled = xgetbv();
  uint32_t b7, c7, d7;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return levels;
  const bool avx2 = (b7 >> 5) & 1;
  if (!avx2 || !fma || !f16c || (enabled & 0x6) != 0x6) return levels;
  levels.push_back(CpuLevel::kAvx2);

  const bool f = (b7 >> 16) & 1, dq = (b7 >> 17) & 1, bw = (b7 >> 30) & 1, vl = (b7 >> 31) & 1;
  if (!f || !dq || !bw || !vl || (enabled & 0xe6) != 0xe6) return levels;
  levels.push_back(CpuLevel::kAvx512);

  uint32_t a71 = 0, b71, c71, d71;
  if (!__get_cpuid_count(7, 1, &a71, &b71, &c71, &d71) || !((a71 >> 5) & 1)) return levels;
  levels.push_back(CpuLevel::kAvx512Bf16);

  const bool amx_bf16 = (d7 >> 22) & 1, amx_tile = (d7 >> 24) & 1;
  if (amx_bf16 && amx_tile && (enabled & 0x60000) == 0x60000 && request_tiles()) levels.push_back(CpuLevel::kAmx);
#elif defined(__aarch64__)
  levels.push_back(CpuLevel::kNeon);
#endif
  return levels;
}

bool bf16_is_fast(CpuLevel level) {
#if defined(__x86_64__)
  if (level == CpuLevel::kAmx) return true;
  if (level != CpuLevel::kAvx512Bf16) return false;
  uint32_t highest, vendor[3];
  if (!__get_cpuid(0, &highest, &vendor[0], &vendor[2], &vendor[1])) return false;
  return std::memcmp(vendor, "AuthenticAMD", sizeof vendor) == 0;
#else
  (void)level;
  return false;
#endif
}

Result<CpuLevel> chosen_level() {
  const std::vector<CpuLevel> levels = available_levels();
  const char* wanted = std::getenv("LOWRANK_ISA");
  if (wanted == nullptr || *wanted == '\0') return levels.back();
  std::string names;
  for (CpuLevel level : levels) {
    if (std::string(wanted) == level_name(level)) return level;
    names += std::string(names.empty() ? "" : ", ") + level_name(level);
  }
  return error(Code::kInvalidOption, "LOWRANK_ISA is '%s', but this machine runs %s", wanted, names.c_str());
}

}  // namespace lowrank

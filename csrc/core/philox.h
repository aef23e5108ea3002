// Philox4x32-10, a counter-based generator: the number at an index is a function of (seed, stream, index), so
// any thread, a recompute or a resumed run draws the same.    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
#pragma once

#include <array>
#include <cstdint>

namespace lowrank {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint64_t key) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// Uniform in [0, 1) with 24 bits, for (seed, stream, index).
inline float philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = philox4x32({static_cast<uint32_t>(index >> 2), static_cast<uint32_t>(index >> 34),
                                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}, seed);
  return static_cast<float>(words[index & 3] >> 8) * 0x1p-24f;
}

}  // namespace lowrank

// 16 random bits for each element of a long array, ten rounds of Philox for 128 bits of them: about a tenth of what generating words one
// by one costs. Included only by *_kernels.cpp.
#pragma once

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kCounters = 64;  // of a block: enough to fill any vector, few enough to stay in L1
constexpr size_t kElementsPerCounter = 8;  // 16 bits each
constexpr size_t kBlockElements = kCounters * kElementsPerCounter;

// Lanes of 64 bits: a 32-bit word sits in the lower half of each, and what is above it is ignored.
using Words = uint64_t __attribute__((vector_size(4 * V::kWidth)));
constexpr size_t kWordLanes = V::kWidth / 2;

// The product of the lower halves.
LR_INLINE Words widening_multiply(Words a, Words b) {
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (Words)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#endif
}

// core/philox.h's philox4x32 for kCounters consecutive counters: 128 bits each, first word lowest.
void philox_block(uint64_t counter, uint64_t seed, uint64_t stream, uint64_t* bits) {
  constexpr int kRounds = 10;
  Words keys0[kRounds], keys1[kRounds];
  for (uint32_t round = 0; round < kRounds; ++round) {
    keys0[round] = Words{} + (static_cast<uint32_t>(seed) + round * 0x9E3779B9u);
    keys1[round] = Words{} + (static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u);
  }
  const Words multiplier0 = Words{} + uint64_t{0xD2511F53u},
              multiplier1 = Words{} + uint64_t{0xCD9E8D57u};
  Words lanes;
  for (size_t lane = 0; lane < kWordLanes; ++lane) lanes[lane] = lane;
  alignas(64) uint64_t low[kCounters], high[kCounters];
  for (size_t j = 0; j < kCounters; j += kWordLanes) {
    const Words counters = lanes + (counter + j);
    Words word0 = counters, word1 = counters >> 32, word2 = Words{} + stream, word3 = word2 >> 32;
#pragma GCC unroll 10
    for (int round = 0; round < kRounds; ++round) {
      const Words product0 = widening_multiply(word0, multiplier0),
                  product1 = widening_multiply(word2, multiplier1);
      word0 = (product1 >> 32) ^ word1 ^ keys0[round];
      word1 = product1;
      word2 = (product0 >> 32) ^ word3 ^ keys1[round];
      word3 = product0;
    }
    const Words low_words = (word0 & 0xFFFFFFFFu) | (word1 << 32),
                high_words = (word2 & 0xFFFFFFFFu) | (word3 << 32);
    memcpy(low + j, &low_words, sizeof low_words);
    memcpy(high + j, &high_words, sizeof high_words);
  }
  for (size_t j = 0; j < kCounters; ++j) {
    bits[2 * j] = low[j];
    bits[2 * j + 1] = high[j];
  }
}

// body(begin, count, bits) for pieces of [0, n) in order: element i of the piece has bits[i], and element `first + j` of the stream always
// the same ones, however the stream is cut.
template <class Body>
LR_INLINE void for_each_random_piece(uint64_t first, size_t n, uint64_t seed, uint64_t stream, const Body& body) {
  alignas(64) uint64_t words[kCounters * 2];
  alignas(64) uint16_t bits[kBlockElements];
  // Elements of the first counter that come before `first`.
  size_t skipped = first % kElementsPerCounter;
  size_t begin = 0;
  for (uint64_t counter = first / kElementsPerCounter; begin < n; counter += kCounters) {
    philox_block(counter, seed, stream, words);
    memcpy(bits, words, sizeof bits);  // little-endian: low half first
    const size_t room = kBlockElements - skipped, count = n - begin < room ? n - begin : room;
    body(begin, count, bits + skipped);
    begin += count;
    skipped = 0;
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

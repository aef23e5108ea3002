// Packed blocks with bf16 operands and fp32 sums: VDPBF16PS multiplies a pair (k, k + 1) in every
// 32-bit lane, twice the flop of an FMA where it runs at full rate (Zen 4 and 5). Rows of A in bf16
// are broadcast pair by pair from where they lie; others are rounded strip by strip into L1, a
// fiftieth of the product's time. A segment of odd k ends with a pair whose odd half is zero. Part
// of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_micro.h"
#include "ops/cpu/gemm_pairs.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kPairMr = kMr, kPairNr = kNr, kPairUnit = 2;
constexpr size_t kPairMaxK = 1664;  // the longest k of a block
constexpr size_t kPairPackRows = 24;
// Pairs of a row of A over all segments, each of which may end with half a pair.
constexpr size_t kStripPairs = kPairMaxK / 2 + kGemmMaxSegments;
constexpr size_t kStripInts = kMr * kStripPairs + kW;
// Rows whose pairs are made together where they are columns in memory: a cache line of bf16.
constexpr size_t kColumnStrips = 4, kColumnRows = kColumnStrips * kMr;

// A's pairs of one segment: pair p of row i at a + i * row + p * col, in bytes.
struct PairSegment {
  const char* a;
  size_t row, col;
  size_t pairs;
};

struct PairTile {
  const PairSegment* segments;
  size_t segment_count;
  const float* b;
  size_t b_step;  // pairs from one row of B's pairs to the next
  TileOutput out;
};

template <size_t MR, size_t NV>
void pair_micro(const PairTile& tile) {
  V::T acc[MR][NV];
#pragma GCC unroll 8
  for (size_t i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (size_t j = 0; j < NV; ++j) acc[i][j] = V::zero();
  }
  prefetch_output<MR, NV>(tile.out.to);
  const float* b = tile.b;
  const size_t b_step = tile.b_step;
  for (size_t s = 0; s < tile.segment_count; ++s) {
    const size_t row = tile.segments[s].row, col = tile.segments[s].col;
    const char* a = tile.segments[s].a;
    for (size_t p = tile.segments[s].pairs; p > 0; --p, a += col) {
      __m512bh bv[NV];
#pragma GCC unroll 4
      for (size_t j = 0; j < NV; ++j) bv[j] = (__m512bh)V::load(b + j * kW);
      const char* ahead = (const char*)(b + kPrefetchSteps * b_step);
#pragma GCC unroll 4
      for (size_t byte = 0; byte < NV * kW * sizeof(float); byte += kCacheLine)
        __builtin_prefetch(ahead + byte);
      b += b_step;
#pragma GCC unroll 8
      for (size_t i = 0; i < MR; ++i) {
        int32_t pair;
        memcpy(&pair, a + i * row, sizeof pair);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (size_t j = 0; j < NV; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, bv[j]);
      }
    }
  }
  write_output(acc, tile.out);
}

using PairMicro = void (*)(const PairTile&);

template <size_t MR>
constexpr PairMicro kPairMicro[kNv] = {pair_micro<MR, 1>, pair_micro<MR, 2>, pair_micro<MR, 3>};

template <size_t MR = kMr>
LR_INLINE PairMicro pair_micro_for(size_t rows, size_t vectors) {
  if constexpr (MR > 1) {
    if (rows < MR) return pair_micro_for<MR - 1>(rows, vectors);
  }
  return kPairMicro<MR>[vectors - 1];
}

// Stores of the two functions below write whole vectors: what goes past the end of a row is
// overwritten by what comes next, or lies in the strip's slack.

// `rows` rows of a segment whose k are adjacent, as [rows][pairs].
template <DType kType>
LR_INLINE PairSegment round_rows(const GemmSegment& segment, size_t first, size_t rows,
                                 int32_t* strip) {
  constexpr size_t kElement = kType == DType::kBF16 ? sizeof(uint16_t) : sizeof(float);
  const size_t pairs = (segment.k + 1) / 2;
  for (size_t i = 0; i < rows; ++i) {
    const uint8_t* row = (const uint8_t*)segment.a + (first + i) * segment.row * kElement;
    float* out = (float*)(strip + i * pairs);
    for (size_t p = 0; p < segment.k; p += kPairWeights) {
      const size_t n = segment.k - p < kPairWeights ? segment.k - p : kPairWeights;
      V::store(out + p / 2, pairs_along<kType>(row, p, n));
    }
  }
  return {(const char*)strip, pairs * sizeof(int32_t), sizeof(int32_t), pairs};
}

// `rows` adjacent columns of a matrix whose rows are k, as [pairs][kMr] in each of several strips.
template <DType kType>
LR_INLINE void pair_columns(const GemmSegment& segment, size_t first, size_t rows,
                            int32_t* strips) {
  constexpr size_t kElement = kType == DType::kBF16 ? sizeof(uint16_t) : sizeof(float);
  static_assert(kW == 2 * kMr);  // a vector of pairs is one row of two strips
  const size_t pairs = (segment.k + 1) / 2, step = segment.col * kElement;
  const uint8_t* even = (const uint8_t*)segment.a + first * kElement;
  for (size_t p = 0; p < pairs; ++p, even += 2 * step) {
    const uint8_t* odd = 2 * p + 1 < segment.k ? even + step : nullptr;
    int32_t* out = strips + p * kMr;
    for (size_t c = 0; c < rows; c += kW, out += 2 * kStripInts) {
      const size_t n = rows - c < kW ? rows - c : kW;
      const __m512i both = _mm512_castps_si512(pairs_across<kType>(even, odd, c, n));
      _mm256_storeu_si256((__m256i*)out, _mm512_castsi512_si256(both));
      if (n > kMr) _mm256_storeu_si256((__m256i*)(out + kStripInts), _mm512_extracti64x4_epi64(both, 1));
    }
  }
}

// The pairs of rows [first, first + rows) whose k are adjacent; where they are not there to read,
// they go to the strip.
LR_INLINE PairSegment pairs_of(const GemmSegment& segment, size_t first, size_t rows,
                               int32_t* strip) {
  if (!segment.bf16) return round_rows<DType::kF32>(segment, first, rows, strip);
  if (segment.k % 2 != 0) return round_rows<DType::kBF16>(segment, first, rows, strip);
  const size_t row_bytes = segment.row * sizeof(uint16_t);
  return {(const char*)segment.a + first * row_bytes, row_bytes, sizeof(int32_t), segment.k / 2};
}

void pair_block(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
                size_t n, const BlockOutput& out) {
  size_t pairs = 0;
  for (size_t s = 0; s < segment_count; ++s) pairs += (segments[s].k + 1) / 2;
  alignas(64) int32_t strip[kStripInts], columns_strips[kColumnStrips][kStripInts];
  PairSegment of_strip[kGemmMaxSegments];
  for (size_t i = 0; i < m; i += kMr) {
    const size_t rows = m - i < kMr ? m - i : kMr;
    const size_t column_strip = i % kColumnRows / kMr;
    int32_t* at = strip;
    int32_t* column_at = columns_strips[column_strip];
    for (size_t s = 0; s < segment_count; ++s) {
      const GemmSegment& segment = segments[s];
      if (segment.col != 1) {
        if (column_strip == 0) {
          const size_t together = m - i < kColumnRows ? m - i : kColumnRows;
          segment.bf16 ? pair_columns<DType::kBF16>(segment, i, together, column_at)
                       : pair_columns<DType::kF32>(segment, i, together, column_at);
        }
        const size_t segment_pairs = (segment.k + 1) / 2;
        of_strip[s] = {(const char*)column_at, sizeof(int32_t), kMr * sizeof(int32_t), segment_pairs};
        column_at += kMr * segment_pairs;
        continue;
      }
      of_strip[s] = pairs_of(segment, i, rows, at);
      if (of_strip[s].a == (const char*)at) at += kMr * of_strip[s].pairs;
    }
    for (size_t j = 0; j < n; j += kNr) {
      const size_t columns = n - j < kNr ? n - j : kNr;
      const size_t vectors = (columns + kW - 1) / kW;
      pair_micro_for(rows, vectors)({of_strip, segment_count, panels + j * pairs, vectors * kW,
                                     {out.at(i, j), columns}});
    }
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

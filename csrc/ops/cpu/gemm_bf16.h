// Packed blocks with bf16 operands and fp32 sums: VDPBF16PS multiplies a pair (k, k + 1) in every
// 32-bit lane, twice the flop of an FMA where it runs at full rate (Zen 4 and 5). Panels are those
// of gemm_pack.h with a pair in place of a float. Rows of A in bf16 are broadcast pair by pair from
// where they lie; others are rounded strip by strip into L1, a fiftieth of the product's time. A
// segment of odd k ends with a pair whose odd half is zero. Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_micro.h"
#include "ops/cpu/gemm_pack.h"

#if defined(__AVX512BF16__)

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kPairWeights = 2 * kW;  // that a vector of pairs holds
constexpr size_t kMaxPairK = 1664;            // the longest k of a block
// Pairs of a row of A over all segments, each of which may end with half a pair.
constexpr size_t kStripPairs = kMaxPairK / 2 + kGemmMaxSegments;

// ── packing ──
LR_INLINE V::T as_floats(__m512i bits) { return _mm512_castsi512_ps(bits); }

// Weights [c, c + n) of a row as pairs along it, rounded to nearest even; zeros after them.
template <DType kType>
LR_INLINE V::T pairs_along(const uint8_t* row, size_t c, size_t n) {
  if constexpr (kType == DType::kBF16) {
    if (n == kPairWeights) return V::load((const float*)(row + 2 * c));
    return as_floats(_mm512_maskz_loadu_epi16((1u << n) - 1, row + 2 * c));
  } else {
    V::T low, high;
    if (n == kPairWeights) {
      low = Source<kType>::vector(row, c);
      high = Source<kType>::vector(row, c + kW);
    } else {
      low = Source<kType>::vector_n(row, c, n < kW ? n : kW);
      high = n > kW ? Source<kType>::vector_n(row, c + kW, n - kW) : V::zero();
    }
    return as_floats((__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

// Weights [c, c + n) of two rows as pairs across them; `odd` is null after an odd number of rows.
template <DType kType>
LR_INLINE V::T pairs_across(const uint8_t* even, const uint8_t* odd, size_t c, size_t n) {
  __m512i halves;
  if constexpr (kType == DType::kBF16) {
    const __mmask16 mask = V::mask(n);
    const __m256i low = _mm256_maskz_loadu_epi16(mask, even + 2 * c);
    const __m256i high =
        odd == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(mask, odd + 2 * c);
    halves = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  } else {
    const auto load = [&](const uint8_t* row) __attribute__((always_inline)) {
      if (row == nullptr) return V::zero();
      return n == kW ? Source<kType>::vector(row, c) : Source<kType>::vector_n(row, c, n);
    };
    halves = (__m512i)_mm512_cvtne2ps_pbh(load(odd), load(even));
  }
  // Word i of the low half, then word i of the high half.
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return as_floats(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), halves));
}

// Columns [c, c + k) of kWidth rows of a scalar type; rows past `valid` become zeros.
template <DType kType>
LR_INLINE void transpose_pairs(const uint8_t* const rows[kW], size_t valid, size_t c, size_t k,
                               PanelColumn to) {
  for (size_t p = 0; p < k; p += kPairWeights) {
    const size_t n = k - p < kPairWeights ? k - p : kPairWeights;
    float* out = to.out + p / 2 * to.step;
    V::T r[kW];
    if (n == kPairWeights && valid == kW) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kW; ++i) r[i] = pairs_along<kType>(rows[i], c + p, kPairWeights);
    } else {
      for (size_t i = 0; i < kW; ++i)
        r[i] = i < valid ? pairs_along<kType>(rows[i], c + p, n) : V::zero();
    }
    transpose(r);
    for (size_t i = 0; i < (n + 1) / 2; ++i) V::store(out + i * to.step, r[i]);
  }
}

// The same for a block type, by way of a strip in L1.
template <DType kType>
LR_INLINE void transpose_block_pairs(const uint8_t* const rows[kW], size_t valid, size_t c,
                                     size_t k, PanelColumn to) {
  constexpr size_t kStrip = 128;
  alignas(64) float strip[kW][kStrip];
  const uint8_t* strip_rows[kW];
  for (size_t i = 0; i < kW; ++i) strip_rows[i] = (const uint8_t*)strip[i];
  // Cut so that strips begin on a pair, and all but the first on a unit where that can be.
  for (size_t p = 0; p < k;) {
    const size_t room = (kStrip - (c + p) % kUnit) & ~size_t{1}, n = k - p < room ? k - p : room;
    for (size_t i = 0; i < valid; ++i) unpack_range<kType>(rows[i], c + p, n, strip[i]);
    transpose_pairs<DType::kF32>(strip_rows, valid, 0, n, {to.out + p / 2 * to.step, to.step});
    p += n;
  }
}

// B[kk][nn] = b[nn][kk]
template <DType kType>
void pack_pairs_transposed(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                           float* panels, size_t block_depth, size_t at) {
  for (size_t j = 0; j < n; j += kW) {
    const size_t panel = j / kNr, left = n - panel * kNr;
    const size_t step = left >= kNr ? kNr : (left + kW - 1) / kW * kW;
    const PanelColumn to{panels + panel * kNr * block_depth + at * step + j % kNr, step};
    const size_t valid = n - j < kW ? n - j : kW;
    const uint8_t* rows[kW];
    for (size_t i = 0; i < kW; ++i) {
      rows[i] =
          static_cast<const uint8_t*>(b.data) + (n_begin + j + (i < valid ? i : 0)) * b.stride;
    }
    if constexpr (kIsScalar<kType>) {
      transpose_pairs<kType>(rows, valid, k_begin, k, to);
    } else {
      transpose_block_pairs<kType>(rows, valid, k_begin, k, to);
    }
  }
}

// Like spread_rows: panels outermost, pairs of rows of a scalar type within them.
template <DType kType>
LR_INLINE void spread_pairs(const uint8_t* source, size_t stride, size_t rows, size_t c, size_t n,
                            float* panels, size_t block_depth, size_t at) {
  for (size_t j = 0; j < n; j += kNr) {
    const size_t columns = n - j < kNr ? n - j : kNr;
    const size_t step = (columns + kW - 1) / kW * kW;
    float* out = panels + j * block_depth + at * step;
    for (size_t p = 0; p < rows; p += 2, out += step) {
      const uint8_t* even = source + p * stride;
      const uint8_t* odd = p + 1 < rows ? even + stride : nullptr;
      if (columns == kNr && odd != nullptr) {
#pragma GCC unroll 4
        for (size_t v = 0; v < kNr; v += kW)
          V::store(out + v, pairs_across<kType>(even, odd, c + j + v, kW));
        continue;
      }
      for (size_t v = 0; v < columns; v += kW) {
        const size_t lanes = columns - v < kW ? columns - v : kW;
        V::store(out + v, pairs_across<kType>(even, odd, c + j + v, lanes));
      }
    }
  }
}

// B[kk][nn] = b[kk][nn]
template <DType kType>
void pack_pairs_straight(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                         float* panels, size_t block_depth, size_t at) {
  constexpr size_t kRows = 16;    // what is read of them stays in L1
  constexpr size_t kPiece = 288;  // columns at a time: whole panels and whole units
  static_assert(kPiece % kNr == 0 && kPiece % kUnit == 0 && kRows % 2 == 0);
  for (size_t j = 0; j < n; j += kPiece) {
    const size_t columns = n - j < kPiece ? n - j : kPiece;
    float* piece = panels + j * block_depth;
    for (size_t p = 0; p < k; p += kRows) {
      const size_t rows = k - p < kRows ? k - p : kRows;
      const uint8_t* source = static_cast<const uint8_t*>(b.data) + (k_begin + p) * b.stride;
      if constexpr (kIsScalar<kType>) {
        spread_pairs<kType>(source, b.stride, rows, n_begin + j, columns, piece, block_depth,
                            at + p / 2);
      } else {
        alignas(64) float strip[kRows][kPiece];
        for (size_t i = 0; i < rows; ++i)
          unpack_range<kType>(source + i * b.stride, n_begin + j, columns, strip[i]);
        spread_pairs<DType::kF32>((const uint8_t*)strip, sizeof strip[0], rows, 0, columns, piece,
                                  block_depth, at + p / 2);
      }
    }
  }
}

// ── the product ──
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

// `rows` adjacent columns of a matrix whose rows are k, as [pairs][kMr].
template <DType kType>
LR_INLINE PairSegment pair_columns(const GemmSegment& segment, size_t first, size_t rows,
                                   int32_t* strip) {
  constexpr size_t kElement = kType == DType::kBF16 ? sizeof(uint16_t) : sizeof(float);
  const size_t pairs = (segment.k + 1) / 2, step = segment.col * kElement;
  const uint8_t* even = (const uint8_t*)segment.a + first * kElement;
  for (size_t p = 0; p < pairs; ++p, even += 2 * step) {
    const uint8_t* odd = 2 * p + 1 < segment.k ? even + step : nullptr;
    V::store((float*)(strip + p * kMr), pairs_across<kType>(even, odd, 0, rows));
  }
  return {(const char*)strip, sizeof(int32_t), kMr * sizeof(int32_t), pairs};
}

// The pairs of rows [first, first + rows); where they are not there to read, they go to the strip.
LR_INLINE PairSegment pairs_of(const GemmSegment& segment, size_t first, size_t rows,
                               int32_t* strip) {
  if (segment.col != 1) {
    return segment.bf16 ? pair_columns<DType::kBF16>(segment, first, rows, strip)
                        : pair_columns<DType::kF32>(segment, first, rows, strip);
  }
  if (!segment.bf16) return round_rows<DType::kF32>(segment, first, rows, strip);
  if (segment.k % 2 != 0) return round_rows<DType::kBF16>(segment, first, rows, strip);
  const size_t row_bytes = segment.row * sizeof(uint16_t);
  return {(const char*)segment.a + first * row_bytes, row_bytes, sizeof(int32_t), segment.k / 2};
}

void pair_block(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
                size_t n, const BlockOutput& out) {
  size_t pairs = 0;
  for (size_t s = 0; s < segment_count; ++s) pairs += (segments[s].k + 1) / 2;
  alignas(64) int32_t strip[kMr * kStripPairs + kW];
  PairSegment of_strip[kGemmMaxSegments];
  for (size_t i = 0; i < m; i += kMr) {
    const size_t rows = m - i < kMr ? m - i : kMr;
    int32_t* at = strip;
    for (size_t s = 0; s < segment_count; ++s) {
      of_strip[s] = pairs_of(segments[s], i, rows, at);
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

double round_and_sum(const float* x, size_t n, uint16_t* out) {
  V::T sum = V::zero();
  for (size_t i = 0; i < n; i += kW) {
    const size_t lanes = n - i < kW ? n - i : kW;
    const __m256i halves = V::to_bf16(V::load_n(x + i, lanes));
    _mm256_mask_storeu_epi16(out + i, V::mask(lanes), halves);
    sum = V::add(sum, V::from_bf16(halves));
  }
  return static_cast<double>(V::sum(sum));
}

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AVX512BF16__

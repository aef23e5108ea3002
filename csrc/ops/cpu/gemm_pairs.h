// Packing and rounding for products of bf16: the panels of gemm_pack.h with a pair (k, k + 1) in
// every 32-bit element, as VDPBF16PS and AMX's tiles take them. Bound as those of fp32 are. Part of
// gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_pack.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kPairWeights = 2 * kW;  // that a vector of pairs holds

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

constexpr size_t kRowsAhead = 192;  // weights fetched ahead along a row while it is packed

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
      for (size_t i = 0; i < kW; ++i) {
        r[i] = pairs_along<kType>(rows[i], c + p, kPairWeights);
        __builtin_prefetch(rows[i] + (c + p + kRowsAhead) * (kType == DType::kF32 ? 4 : 2));
      }
    } else {
      for (size_t i = 0; i < kW; ++i)
        r[i] = i < valid ? pairs_along<kType>(rows[i], c + p, n) : V::zero();
    }
    transpose(r);
    for (size_t i = 0; i < (n + 1) / 2; ++i) V::store(out + i * to.step, r[i]);
  }
}

template <DType kType, size_t kPanel>
void pack_pairs_transposed(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                           float* panels, size_t block_depth, size_t at) {
  for_each_panel_column<kType, kPanel, 2>(
      b, k_begin, k, n_begin, n, panels, block_depth, at,
      []<DType kRow>(const uint8_t* const* rows, size_t valid, size_t c, size_t columns,
                     PanelColumn to) { transpose_pairs<kRow>(rows, valid, c, columns, to); });
}

// Like spread_rows: panels outermost, pairs of rows of a scalar type within them.
template <DType kType, size_t kPanel>
LR_INLINE void spread_pairs(const uint8_t* source, size_t stride, size_t rows, size_t c, size_t n,
                            float* panels, size_t block_depth, size_t at) {
  for (size_t j = 0; j < n; j += kPanel) {
    const size_t columns = n - j < kPanel ? n - j : kPanel;
    const size_t step = (columns + kW - 1) / kW * kW;
    float* out = panels + j * block_depth + at * step;
    for (size_t p = 0; p < rows; p += 2, out += step) {
      const uint8_t* even = source + p * stride;
      const uint8_t* odd = p + 1 < rows ? even + stride : nullptr;
      if (columns == kPanel && odd != nullptr) {
#pragma GCC unroll 4
        for (size_t v = 0; v < kPanel; v += kW)
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
template <DType kType, size_t kPanel>
void pack_pairs_straight(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                         float* panels, size_t block_depth, size_t at) {
  for_each_piece<kType, kPanel>(
      b, k_begin, k, n_begin, n,
      [&]<DType kRow>(const uint8_t* source, size_t stride, size_t rows, size_t c, size_t j,
                      size_t columns, size_t p) {
        spread_pairs<kRow, kPanel>(source, stride, rows, c, columns, panels + j * block_depth,
                                   block_depth, at + p / 2);
      });
}

// The pairs [begin, end) of a block's panels become zeros.
template <size_t kPanel>
void clear_pairs(size_t n, float* panels, size_t block_depth, size_t begin, size_t end) {
  for (size_t j = 0; j < n; j += kPanel) {
    const size_t columns = n - j < kPanel ? n - j : kPanel;
    const size_t step = (columns + kW - 1) / kW * kW;
    for (size_t i = begin * step; i < end * step; i += kW)
      V::store(panels + j * block_depth + i, V::zero());
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

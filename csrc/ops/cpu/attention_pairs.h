// Rows of fp32 or bf16 as operands of VDPBF16PS, which adds the product of two numbers to each fp32 sum: an element of a panel holds a
// pair of bf16 that are consecutive along the dimension summed over, the lower in the lower half. bf16 rows are taken as they are, fp32
// ones rounded to nearest even.
#pragma once

#include "ops/cpu/attention_tile.h"

#if defined(__AVX512BF16__)

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kPairNumbers = 2 * V::kWidth;  // that a vector of pairs holds

LR_INLINE size_t pairs_of(size_t numbers) { return (numbers + 1) / 2; }
// Row length of panels of keys whose pairs run along head_dim; like key_stride.
LR_INLINE size_t pair_key_stride(size_t head_dim) { return (round_up_to(head_dim, kPairNumbers) / kPairNumbers | 1) * V::kWidth; }

LR_INLINE V::T as_floats(__m512i bits) { return _mm512_castsi512_ps(bits); }

// Numbers [d, d + n) of a row, zeros after them.
LR_INLINE __m512i load_pairs(const void* row, bool bf16, size_t d, size_t n) {
  if (bf16) {
    const uint16_t* from = static_cast<const uint16_t*>(row) + d;
    return n == kPairNumbers ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((1u << n) - 1, from);
  }
  const float* from = static_cast<const float*>(row) + d;
  const V::T low = V::load_n(from, smaller(n, V::kWidth));
  const V::T high = n > V::kWidth ? V::load_n(from + V::kWidth, n - V::kWidth) : V::zero();
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// Words 0, 16, 1, 17, …: from two vectors of bf16 side by side to pairs across them.
LR_INLINE __m512i interleaved(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[kPairNumbers] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                                8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

// Pairs (even[i], odd[i]).
LR_INLINE V::T pairs_across(V::T even, V::T odd) { return as_floats(interleaved((__m512i)_mm512_cvtne2ps_pbh(odd, even))); }

// Pairs (even[i], odd[i]) for i in [d, d + n), zeros after them. A null row is one of zeros.
LR_INLINE V::T interleave_rows(const void* even, const void* odd, bool bf16, size_t d, size_t n) {
  const auto load = [&](const void* row) __attribute__((always_inline)) {
    if (row == nullptr) return _mm256_setzero_si256();
    if (bf16) return _mm256_maskz_loadu_epi16(V::mask(n), static_cast<const uint16_t*>(row) + d);
    return V::to_bf16(V::load_n(static_cast<const float*>(row) + d, n));
  };
  return as_floats(interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(load(even)), load(odd), 1)));
}

// out[d] = (even[d], odd[d]) for d < length, zeros up to `padded_length`.
LR_INLINE void interleave_row_pair(const void* even, const void* odd, bool bf16, size_t length, float* out, size_t padded_length) {
  for (size_t d = 0; d < padded_length; d += V::kWidth) {
    V::store(out + d, interleave_rows(even, odd, bf16, d, d < length ? smaller(V::kWidth, length - d) : 0));
  }
}

// One row as pairs along it, with zeros up to `stride` pairs.
LR_INLINE void copy_pairs(const void* row, bool bf16, size_t length, float* out, size_t stride) {
  for (size_t p = 0; p < stride; p += V::kWidth) {
    const size_t d = 2 * p, n = d < length ? smaller(kPairNumbers, length - d) : 0;
    V::store(out + p, n > 0 ? as_floats(load_pairs(row, bf16, d, n)) : V::zero());
  }
}

// out[p * out_stride + lane] = numbers 2p and 2p + 1 of rows[lane], for p < `pairs` and the kWidth lanes of a vector, zeros past `length`;
// `flip` is XORed into each pair.
inline void pairs_to_lanes(const char* const* rows, bool bf16, size_t length, uint32_t flip, size_t pairs, float* out, size_t out_stride) {
  const __m512i signs = _mm512_set1_epi32(static_cast<int>(flip));
  for (size_t d = 0; d < length; d += kPairNumbers) {
    const size_t n = smaller(kPairNumbers, length - d);
    V::T block[V::kWidth];
#pragma GCC unroll 16
    for (size_t i = 0; i < V::kWidth; ++i) block[i] = as_floats(_mm512_xor_si512(load_pairs(rows[i], bf16, d, n), signs));
    transpose(block);
#pragma GCC unroll 16
    for (size_t p = 0; p < V::kWidth; ++p) {
      if (d / 2 + p >= pairs) break;
      V::store(out + (d / 2 + p) * out_stride, block[p]);
    }
  }
}

// Keys or values [begin, end) as pairs along head_dim, into a panel of pair_key_stride; those past `available` are zeros.
inline void copy_pair_keys(const ConstRows& from, size_t head_dim, size_t begin, size_t end, size_t available, float* to) {
  const size_t stride = pair_key_stride(head_dim);
  for (size_t key = begin; key < end; ++key, to += stride) {
    if (key < available) {
      copy_pairs(from.at(key, 0).data, from.bf16(), head_dim, to, stride);
    } else {
      zero_row(to, stride);
    }
  }
}

// Pointers of the lanes' rows of a tensor of either type.
template <size_t kVectors>
LR_INLINE void byte_pointers(const AttentionGroup& g, const TileOf<kVectors>& tile, const ConstRows& x, const char** rows) {
  const size_t bytes = x.element_bytes();
  row_pointers(g, tile, static_cast<const char*>(x.data), x.stride * bytes, g.head_dim * bytes, rows);
}

template <size_t kVectors>
LR_INLINE void byte_pointers(const AttentionGroup& g, const TileOf<kVectors>& tile, const Rows& x, char** rows) {
  const size_t bytes = x.element_bytes();
  row_pointers(g, tile, static_cast<char*>(x.data), x.stride * bytes, g.head_dim * bytes, rows);
}

LR_INLINE void store_numbers(char* row, bool bf16, size_t d, size_t n, V::T x) {
  if (bf16) {
    V::store_bf16_n(reinterpret_cast<uint16_t*>(row) + d, x, n);
  } else {
    V::store_n(reinterpret_cast<float*>(row) + d, x, n);
  }
}

// 2^x with a relative error below 8e-5, a 50th of what rounding to bf16 adds; 0 where it underflows. NaN stays NaN.
LR_INLINE V::T exp2_to_round(V::T x) {
  const V::T f = V::sub(x, V::round(x));
  V::T p = V::set(0.0551716685295105f);
  p = V::fma(p, f, V::set(0.2426111251115799f));
  p = V::fma(p, f, V::set(0.6932609677314758f));
  p = V::fma(p, f, V::set(0.9999280571937561f));
  return V::scale2(p, V::round(x));
}

// The rows at `position` that see `key`.
LR_INLINE __mmask16 sees(V::T position, size_t key, size_t window) {
  const __mmask16 reached = _mm512_cmp_ps_mask(position, V::set(static_cast<float>(key)), _CMP_GE_OQ);
  if (window == 0) return reached;
  return _mm512_mask_cmp_ps_mask(reached, position, V::set(static_cast<float>(key + window)), _CMP_LT_OQ);
}

// Scores are products of the operands as they are, so that bf16 ones are exact; their scale comes after, and its sign with q.
LR_INLINE float score_factor(const AttentionGroup& g) { return __builtin_fabsf(g.scale) * kLog2E; }
LR_INLINE uint32_t score_sign(const AttentionGroup& g) { return g.scale < 0 ? 0x80008000u : 0u; }

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AVX512BF16__

// Row-wise dot products with bf16 operands and fp32 sums: as gemm_dot.h, with a unit of 32 weights as
// one vector of pairs for VDPBF16PS. Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_dot.h"
#include "ops/cpu/gemm_pairs.h"

namespace lowrank::LR_ISA {
namespace {

// Weights [32·index, 32·index + 32) of a row, rounded to nearest even.
template <DType kType>
LR_INLINE V::T pair_unit_at(const uint8_t* row, size_t index) {
  if constexpr (kIsScalar<kType>) {
    return pairs_along<kType>(row, index * kUnit, kUnit);
  } else {
    const Unit u = unit_at<kType>(row, index);
    return as_floats((__m512i)_mm512_cvtne2ps_pbh(u.v[1], u.v[0]));
  }
}

// x[(unit * M + i) * kUnit + j] = a[i][unit * kUnit + j] in bf16, zero past k and for i past m.
template <size_t M>
LR_INLINE void copy_pair_units(const DotArgs& args, size_t m, float* x) {
  for (size_t k = 0; k < args.k; k += kUnit) {
    for (size_t i = 0; i < M; ++i, x += V::kWidth) {
      const size_t n = i < m ? smaller(kUnit, args.k - k) : 0;
      const uint8_t* row = (const uint8_t*)(args.a + i * args.lda);
      V::store(x, n > 0 ? pairs_along<DType::kF32>(row, k, n) : V::zero());
    }
  }
}

template <DType kType, size_t R, size_t M>
LR_INLINE void pair_dot_tile(const uint8_t* first, size_t stride, size_t k, const float* x,
                             float* sums) {
  V::T acc[R * M];
  const uint8_t* rows[R];
#pragma GCC unroll 16
  for (size_t i = 0; i < R * M; ++i) acc[i] = V::zero();
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) rows[r] = first + r * stride;

  const auto multiply = [&](const V::T* w) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (size_t j = 0; j < M; ++j) {
      V::T a = V::load(x + j * V::kWidth);
      keep(a);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        acc[r * M + j] = _mm512_dpbf16_ps(acc[r * M + j], (__m512bh)a, (__m512bh)w[r]);
      }
    }
    x += M * V::kWidth;
  };
  const size_t units = k / kUnit;
  const uint8_t* ahead = first + kDotPrefetchBytes;
  V::T w[R], next[R];
  if (units > 0) {
    for (size_t r = 0; r < R; ++r) next[r] = pair_unit_at<kType>(rows[r], 0);
  }
  for (size_t unit = 0; unit < units; ++unit) {
    prefetch_bytes(ahead, R * kUnitBytes<kType>);
    ahead += R * kUnitBytes<kType>;
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      w[r] = next[r];
      next[r] = pair_unit_at<kType>(rows[r], smaller(unit + 1, units - 1));
    }
    multiply(w);
  }
  if constexpr (kIsScalar<kType>) {
    if (const size_t c = units * kUnit; c < k) {
      for (size_t r = 0; r < R; ++r) w[r] = pairs_along<kType>(rows[r], c, k - c);
      multiply(w);
    }
  }
  store_sums<R, M>(acc, sums);
}

struct PairDots {
  static constexpr size_t kOperandBytes = sizeof(uint16_t);
  template <size_t M>
  LR_INLINE void copy(const DotArgs& args, size_t m, float* x) {
    copy_pair_units<M>(args, m, x);
  }
  template <DType kType, size_t R, size_t M>
  LR_INLINE void tile(const uint8_t* first, size_t stride, size_t k, const float* x, float* sums) {
    pair_dot_tile<kType, R, M>(first, stride, k, x, sums);
  }
};

}  // namespace
}  // namespace lowrank::LR_ISA

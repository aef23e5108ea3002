// Row-wise dot products with bf16 operands and fp32 sums: those of gemm_dot.h, with a unit of 32
// weights as one vector of pairs for VDPBF16PS. Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_dot.h"
#include "ops/cpu/gemm_pairs.h"

namespace lowrank::LR_ISA {
namespace {

struct PairDots {
  static constexpr size_t kOperandBytes = sizeof(uint16_t);
  static constexpr size_t kVectors = 1;
  static constexpr size_t kVectorWeights = kUnit;
  struct Weights {
    V::T v[1];
  };

  // Rounded to nearest even, and so are those below.
  template <DType kType>
  LR_INLINE Weights unit(const uint8_t* row, size_t index) {
    if constexpr (kIsScalar<kType>) {
      return {{pairs_along<kType>(row, index * kUnit, kUnit)}};
    } else {
      const Unit u = unit_at<kType>(row, index);
      return {{as_floats((__m512i)_mm512_cvtne2ps_pbh(u.v[1], u.v[0]))}};
    }
  }
  template <DType kType>
  LR_INLINE V::T part(const uint8_t* row, size_t c, size_t n) {
    return pairs_along<kType>(row, c, n);
  }
  LR_INLINE V::T operand(const float* row, size_t c, size_t n) {
    return pairs_along<DType::kF32>((const uint8_t*)row, c, n);
  }
  LR_INLINE V::T multiply_add(V::T a, V::T w, V::T sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)w);
  }
};

}  // namespace
}  // namespace lowrank::LR_ISA

// Products of very few rows (decoding): one pass over the weight, unpacked in registers, no
// packing. Bound by reading the weight: 4 rows of it are read at a time, each against all rows of
// A. Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/gemm_unpack.h"

namespace lowrank::LR_ISA {
namespace {

struct DotArgs {
  const uint8_t* rows;  // the first row of w
  size_t stride, k;
  const float* a;
  size_t lda;
  float* c;
  size_t ldc;
  const float* bias;
  bool accumulate;
};

template <DType kType>
constexpr size_t kUnitBytes =
    kUnit * dtype_info(kType).block_bytes / dtype_info(kType).block_elements;

// R rows of w against M rows of a. Each sum is one chain along k, so neither R nor M is part of the
// result.
template <DType kType, size_t R, size_t M>
LR_INLINE void dot_tile(const DotArgs& args) {
  V::T acc[R][M];
  const uint8_t* rows[R];
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
    rows[r] = args.rows + r * args.stride;
#pragma GCC unroll 4
    for (size_t m = 0; m < M; ++m) acc[r][m] = V::zero();
  }
  if constexpr (kIsScalar<kType>) {
    size_t p = 0;
    for (; p + V::kWidth <= args.k; p += V::kWidth) {
      V::T x[M];
#pragma GCC unroll 4
      for (size_t m = 0; m < M; ++m) x[m] = V::load(args.a + m * args.lda + p);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const V::T w = Source<kType>::vector(rows[r], p);
#pragma GCC unroll 4
        for (size_t m = 0; m < M; ++m) acc[r][m] = V::fma(x[m], w, acc[r][m]);
      }
    }
    if (const size_t n = args.k - p; n > 0) {
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const V::T w = Source<kType>::vector_n(rows[r], p, n);
#pragma GCC unroll 4
        for (size_t m = 0; m < M; ++m)
          acc[r][m] = V::fma(V::load_n(args.a + m * args.lda + p, n), w, acc[r][m]);
      }
    }
  } else {
    for (size_t unit = 0; unit < args.k / kUnit; ++unit) {
      const float* x = args.a + unit * kUnit;
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const Unit w = unit_at<kType>(rows[r], unit);
        // The rows after these: streams this short do not start the processor's own prefetching.
        __builtin_prefetch(rows[r] + R * args.stride + unit * kUnitBytes<kType>, 0, 2);
#pragma GCC unroll 8
        for (size_t i = 0; i < kUnitVectors; ++i) {
#pragma GCC unroll 4
          for (size_t m = 0; m < M; ++m) {
            acc[r][m] = V::fma(V::load(x + m * args.lda + i * V::kWidth), w.v[i], acc[r][m]);
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (size_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      float* c = args.c + m * args.ldc + r;
      float sum = V::sum(acc[r][m]);
      if (args.accumulate) sum = *c + sum;
      *c = args.bias == nullptr ? sum : sum + args.bias[r];
    }
  }
}

template <DType kType, size_t M>
void dot_rows(DotArgs args, size_t rows) {
  constexpr size_t kRows = M <= 2 || V::kWidth == 16 ? 4 : 2;  // by registers
  const auto advance = [&](size_t count) {
    args.rows += count * args.stride;
    args.c += count;
    if (args.bias != nullptr) args.bias += count;
    rows -= count;
  };
  while (rows >= kRows) {
    dot_tile<kType, kRows, M>(args);
    advance(kRows);
  }
  while (rows > 0) {
    dot_tile<kType, 1, M>(args);
    advance(1);
  }
}

template <DType kType>
void dot_typed(const DotArgs& args, size_t rows, size_t m) {
  switch (m) {
    case 1:
      return dot_rows<kType, 1>(args, rows);
    case 2:
      return dot_rows<kType, 2>(args, rows);
    case 3:
      return dot_rows<kType, 3>(args, rows);
    case 4:
      return dot_rows<kType, 4>(args, rows);
    default:
      return;
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

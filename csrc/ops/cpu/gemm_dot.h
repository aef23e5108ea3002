// Products of few rows (decoding): row-wise dot products, one pass over the weight, which is unpacked
// in registers. Part of gemm_kernels.cpp.
//
// For one row reading the weight bounds the product, for eight or more the FMAs do. Rows of a weight
// follow one another in memory, so what comes next is asked for ahead of time, which the hardware does
// not do across pages. Rows of A are copied unit by unit before, so that a unit of a weight meets all
// of theirs in a few consecutive lines of L1.
//
// Measured on Zen 5 per thread, Q4_1 in L2, of the registers' peak: AVX-512 75 Gflop/s for one row,
// 220 to 235 of 285 for 8 and more; AVX2 32 and 100 of 136.
#pragma once

#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/gemm_pack.h"
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

// Rows of A that are multiplied at a time.
constexpr size_t kDotTileRows = V::kWidth < 8 ? V::kWidth : 8;
// What a unit of theirs is read from for each row of the weight: L1. Of longer rows fewer are taken.
constexpr size_t kDotTileBytes = size_t{48} << 10;
// Rows of a weight that are multiplied with M of A at a time: as many as their sums leave registers for.
template <size_t M>
constexpr size_t kDotRows = V::kWidth < 16 ? (M > 2 ? 8 / M : 4) : (M > 4 ? 2 : 4);
// Where registers allow, a unit is unpacked before the one in hand is multiplied: its latency would
// hold the FMAs up.
constexpr bool kUnpacksAhead = V::kWidth == 16;
// How far ahead of its use a weight is asked for.
constexpr size_t kDotPrefetchBytes = 8192;

LR_INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Keeps x in a register: GCC would load it anew for each use.
LR_INLINE void keep(V::T& x) {
#if defined(__aarch64__)
  asm("" : "+w"(x));
#elif defined(__AVX512F__)
  asm("" : "+v"(x));
#else
  asm("" : "+x"(x));
#endif
}

LR_INLINE void prefetch_bytes(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

#if defined(__AVX512F__)
// sums[i] = V::sum(x[i]) of 16 vectors, added in the same order.
LR_INLINE void sum_lanes(const V::T* x, float* sums) {
  V::T pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const V::T a = x[4 * (2 * i % 4) + i / 2], b = x[4 * ((2 * i + 1) % 4) + i / 2];
    pairs[i] = V::add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    const V::T a = pairs[2 * i], b = pairs[2 * i + 1];
    fours[i] = V::add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
#pragma GCC unroll 2
  for (size_t i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
    eights[i] = V::add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  V::store(sums, V::add(_mm512_shuffle_ps(eights[0], eights[1], 0x88),
                        _mm512_shuffle_ps(eights[0], eights[1], 0xdd)));
}
#endif

// sums[r * V::kWidth + i] = the lanes of acc[r * M + i], added up.
template <size_t R, size_t M>
LR_INLINE void store_sums(const V::T* acc, float* sums) {
#if defined(__AVX512F__)
  if constexpr (R * M > 4) {
    V::T x[16];
    float packed[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; ++i) x[i] = i < R * M ? acc[i] : V::zero();
    sum_lanes(x, packed);
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) memcpy(sums + r * V::kWidth, packed + r * M, M * sizeof(float));
    return;
  }
#endif
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (size_t i = 0; i < M; ++i) sums[r * V::kWidth + i] = V::sum(acc[r * M + i]);
  }
}

// The number format of a product: what a unit of 32 weights is in it (kVectors vectors) and a unit
// of a row of A beside it.
struct FloatDots {
  static constexpr size_t kOperandBytes = sizeof(float);
  static constexpr size_t kVectors = kUnitVectors;
  static constexpr size_t kVectorWeights = V::kWidth;  // that a vector holds
  using Weights = Unit;

  template <DType kType>
  LR_INLINE Weights unit(const uint8_t* row, size_t index) {
    return unit_at<kType>(row, index);
  }
  // Weights [c, c + n) of a row of a scalar type, n at most kVectorWeights, and zeros.
  template <DType kType>
  LR_INLINE V::T part(const uint8_t* row, size_t c, size_t n) {
    return Source<kType>::vector_n(row, c, n);
  }
  // The same of a row of A.
  LR_INLINE V::T operand(const float* row, size_t c, size_t n) {
    return n == V::kWidth ? V::load(row + c) : V::load_n(row + c, n);
  }
  LR_INLINE V::T multiply_add(V::T a, V::T w, V::T sum) { return V::fma(a, w, sum); }
};

// Units of M rows of A, zero past k and for i past m: vector v of unit u of row i lies at
// x[((u * M + i) * kVectors + v) * V::kWidth].
template <class Form, size_t M>
LR_INLINE void copy_units(const DotArgs& args, size_t m, float* x) {
  for (size_t k = 0; k < args.k; k += kUnit) {
    for (size_t i = 0; i < M; ++i) {
      const float* a = args.a + i * args.lda;
      for (size_t c = k; c < k + kUnit; c += Form::kVectorWeights, x += V::kWidth) {
        const size_t left = i < m && c < args.k ? args.k - c : 0;
        V::store(x, left > 0 ? Form::operand(a, c, smaller(left, Form::kVectorWeights)) : V::zero());
      }
    }
  }
}

// Each lane of a sum is one chain along k, so neither R nor M is part of the result.
template <class Form, DType kType, size_t R, size_t M>
LR_INLINE void dot_tile(const uint8_t* first, size_t stride, size_t k, const float* x, float* sums) {
  constexpr size_t kRowFloats = Form::kVectors * V::kWidth;  // of a unit of a row of A
  V::T acc[R * M];
  const uint8_t* rows[R];
#pragma GCC unroll 16
  for (size_t i = 0; i < R * M; ++i) acc[i] = V::zero();
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) rows[r] = first + r * stride;

  const size_t units = k / kUnit;
  const uint8_t* ahead = first + kDotPrefetchBytes;
  typename Form::Weights next[R];
  if (kUnpacksAhead && units > 0) {
    for (size_t r = 0; r < R; ++r) next[r] = Form::template unit<kType>(rows[r], 0);
  }
  for (size_t unit = 0; unit < units; ++unit, x += M * kRowFloats) {
    prefetch_bytes(ahead, R * kUnitBytes<kType>);
    ahead += R * kUnitBytes<kType>;
    typename Form::Weights w[R];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      w[r] = kUnpacksAhead ? next[r] : Form::template unit<kType>(rows[r], unit);
      if (kUnpacksAhead)
        next[r] = Form::template unit<kType>(rows[r], smaller(unit + 1, units - 1));
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < Form::kVectors; ++i) {
#pragma GCC unroll 16
      for (size_t j = 0; j < M; ++j) {
        V::T a = V::load(x + j * kRowFloats + i * V::kWidth);
        if (R > 1) keep(a);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r)
          acc[r * M + j] = Form::multiply_add(a, w[r].v[i], acc[r * M + j]);
      }
    }
  }
  if constexpr (kIsScalar<kType>) {
    for (size_t c = units * kUnit; c < k; c += Form::kVectorWeights, x += V::kWidth) {
      const size_t n = smaller(Form::kVectorWeights, k - c);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const V::T w = Form::template part<kType>(rows[r], c, n);
#pragma GCC unroll 16
        for (size_t j = 0; j < M; ++j)
          acc[r * M + j] = Form::multiply_add(V::load(x + j * kRowFloats), w, acc[r * M + j]);
      }
    }
  }
  store_sums<R, M>(acc, sums);
}

// C of a row of A: its sums with `rows` of the weight.
LR_INLINE void store_row(const DotArgs& args, size_t row, size_t i, size_t rows, V::T sums) {
  float* c = args.c + i * args.ldc + row;
  if (args.accumulate) sums = V::add(V::load_n(c, rows), sums);
  if (args.bias != nullptr) sums = V::add(sums, V::load_n(args.bias + row, rows));
  V::store_n(c, sums, rows);
}

// m rows of A, at most M, against all rows of the weight, kWidth of them at a time.
template <class Form, DType kType, size_t M>
void dot_rows(const DotArgs& args, size_t rows, size_t m, float* x) {
  constexpr size_t R = kDotRows<M>;
  copy_units<Form, M>(args, m, x);
  alignas(64) float sums[V::kWidth * V::kWidth] = {};
  for (size_t row = 0; row < rows; row += V::kWidth) {
    const size_t count = smaller(V::kWidth, rows - row);
    const uint8_t* first = args.rows + row * args.stride;
    size_t r = 0;
    for (; r + R <= count; r += R) {
      dot_tile<Form, kType, R, M>(first + r * args.stride, args.stride, args.k, x,
                                  sums + r * V::kWidth);
    }
    if constexpr (R > 1) {
      for (; r < count; ++r) {
        dot_tile<Form, kType, 1, M>(first + r * args.stride, args.stride, args.k, x,
                                    sums + r * V::kWidth);
      }
    }
    V::T tile[V::kWidth];
    for (size_t i = 0; i < V::kWidth; ++i) tile[i] = V::load(sums + i * V::kWidth);
    transpose(tile);
    for (size_t i = 0; i < m; ++i) store_row(args, row, i, count, tile[i]);
  }
}

template <class Form, DType kType>
void dot_typed(DotArgs args, size_t rows, size_t m, float* scratch) {
  size_t tile = kDotTileRows;
  while (tile > 4 && tile * args.k * Form::kOperandBytes > kDotTileBytes) tile /= 2;
  for (size_t n; m > 0; m -= n) {
    n = smaller(m, tile);
    if (n == 1) {
      dot_rows<Form, kType, 1>(args, rows, n, scratch);
    } else if (n == 2) {
      dot_rows<Form, kType, 2>(args, rows, n, scratch);
    } else if (n <= 4) {
      dot_rows<Form, kType, 4>(args, rows, n, scratch);
    } else {
      dot_rows<Form, kType, kDotTileRows>(args, rows, n, scratch);
    }
    args.a += n * args.lda;
    args.c += n * args.ldc;
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

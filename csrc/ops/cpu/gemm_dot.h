// Products of few rows (decoding): row-wise dot products, one pass over the weight, no transposed
// packing. Part of gemm_kernels.cpp.
//
// For up to kDirectDots rows of A a weight is unpacked in registers, and reading it bounds the
// product: the rows of a weight follow one another in memory, so what comes next is asked for ahead
// of time, which the hardware does not do across pages. For more rows a few rows of the weight are
// unpacked to L1, and the FMAs bound it.
// Measured on Zen 5 with AVX-512 and Q4_1, per thread: 35 G weights/s (22 GB/s) from L2 for one
// row; with two threads from memory 21 GB/s, where reading alone takes 42 GB/s.
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

// Rows of A that take a weight from registers.
constexpr size_t kDirectDots = 4;
// Rows of a weight that are multiplied at a time: as many as their sums leave registers for.
template <size_t M>
constexpr size_t kDotRows = M <= 2 || V::kWidth == 16 ? 4 : 2;
// k of a block of unpacked weights, which stays in L1 beside the rows of A.
constexpr size_t kDotBlock = 768;
// How far ahead of its use a weight is asked for.
constexpr size_t kDotPrefetchBytes = 8192;

LR_INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

LR_INLINE void prefetch_bytes(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

#if defined(__AVX512F__)
// sums[4 * j + i] = V::sum(x[4 * i + j]), added in the same order.
LR_INLINE void transposed_sums(const V::T* x, float* sums) {
  V::T pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const V::T a = x[2 * i], b = x[2 * i + 1];
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

// C of R rows of w by M rows of A from the lanes of their sums, acc[r][m].
template <size_t R, size_t M>
LR_INLINE void store_sums(const DotArgs& args, const V::T* acc) {
  float sums[M * R];
#if defined(__AVX512F__)
  if constexpr (R == 4 && M == 4) {
    transposed_sums(acc, sums);
  } else
#endif
  {
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (size_t m = 0; m < M; ++m) sums[m * R + r] = V::sum(acc[r * M + m]);
    }
  }
#pragma GCC unroll 4
  for (size_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      float* c = args.c + m * args.ldc + r;
      const float sum = args.accumulate ? *c + sums[m * R + r] : sums[m * R + r];
      *c = args.bias == nullptr ? sum : sum + args.bias[r];
    }
  }
}

// ── a weight for few rows of A, unpacked in registers ──
// Each lane of a sum is one chain along k, so neither R nor M is part of the result, nor whether or in
// which blocks the weight was unpacked to memory.
template <DType kType, size_t R, size_t M>
LR_INLINE void direct_tile(const DotArgs& args) {
  V::T acc[R * M];
  const uint8_t* rows[R];
#pragma GCC unroll 16
  for (size_t i = 0; i < R * M; ++i) acc[i] = V::zero();
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) rows[r] = args.rows + r * args.stride;

  const size_t units = args.k / kUnit;
  const uint8_t* ahead = args.rows + kDotPrefetchBytes;
  for (size_t unit = 0; unit < units; ++unit) {
    prefetch_bytes(ahead, R * kUnitBytes<kType>);
    ahead += R * kUnitBytes<kType>;
    const float* a = args.a + unit * kUnit;
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      const Unit w = unit_at<kType>(rows[r], unit);
#pragma GCC unroll 8
      for (size_t i = 0; i < kUnitVectors; ++i) {
#pragma GCC unroll 4
        for (size_t m = 0; m < M; ++m) {
          const V::T x = V::load(a + m * args.lda + i * V::kWidth);
          acc[r * M + m] = V::fma(x, w.v[i], acc[r * M + m]);
        }
      }
    }
  }
  if constexpr (kIsScalar<kType>) {
    for (size_t k = units * kUnit; k < args.k; k += V::kWidth) {
      const size_t n = smaller(V::kWidth, args.k - k);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const V::T w = Source<kType>::vector_n(rows[r], k, n);
#pragma GCC unroll 4
        for (size_t m = 0; m < M; ++m) {
          const V::T x = V::load_n(args.a + m * args.lda + k, n);
          acc[r * M + m] = V::fma(x, w, acc[r * M + m]);
        }
      }
    }
  }
  store_sums<R, M>(args, acc);
}

LR_INLINE DotArgs from_row(DotArgs args, size_t row) {
  args.rows += row * args.stride;
  args.c += row;
  if (args.bias != nullptr) args.bias += row;
  return args;
}

template <DType kType, size_t M>
void direct_rows(const DotArgs& args, size_t rows) {
  size_t row = 0;
  for (; row + kDotRows<M> <= rows; row += kDotRows<M>) {
    direct_tile<kType, kDotRows<M>, M>(from_row(args, row));
  }
  for (; row < rows; ++row) direct_tile<kType, 1, M>(from_row(args, row));
}

template <DType kType>
void direct_dots(const DotArgs& args, size_t rows, size_t m) {
  switch (m) {
    case 1:
      return direct_rows<kType, 1>(args, rows);
    case 2:
      return direct_rows<kType, 2>(args, rows);
    case 3:
      return direct_rows<kType, 3>(args, rows);
    case 4:
      return direct_rows<kType, 4>(args, rows);
    default:
      return;
  }
}

// ── a weight for more rows of A, a few rows of it unpacked to L1 ──
using UnpackRow = void (*)(const uint8_t* row, size_t c, size_t n, float* out);

// acc[r][m] += w[r] · a[m] over n of k; rows of w lie kDotBlock apart, zero-padded to whole vectors.
template <size_t R, size_t M>
LR_INLINE void block_tile(const float* w, const float* a, size_t lda, size_t n, V::T* acc) {
  V::T sum[R * M];
#pragma GCC unroll 16
  for (size_t i = 0; i < R * M; ++i) sum[i] = acc[i];
  size_t k = 0;
  for (; k + V::kWidth <= n; k += V::kWidth) {
    V::T weights[R];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) weights[r] = V::load(w + r * kDotBlock + k);
#pragma GCC unroll 4
    for (size_t m = 0; m < M; ++m) {
      const V::T x = V::load(a + m * lda + k);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) sum[r * M + m] = V::fma(x, weights[r], sum[r * M + m]);
    }
  }
  if (k < n) {
#pragma GCC unroll 4
    for (size_t m = 0; m < M; ++m) {
      const V::T x = V::load_n(a + m * lda + k, n - k);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        sum[r * M + m] = V::fma(x, V::load(w + r * kDotBlock + k), sum[r * M + m]);
      }
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < R * M; ++i) acc[i] = sum[i];
}

// f.run<M>(i) for tiles of M rows from row i on, M at most kDirectDots.
template <class F>
LR_INLINE void for_tiles(size_t m, const F& f) {
  size_t i = 0;
  for (; i + kDirectDots <= m; i += kDirectDots) f.template run<kDirectDots>(i);
  switch (m - i) {
    case 1:
      return f.template run<1>(i);
    case 2:
      return f.template run<2>(i);
    case 3:
      return f.template run<3>(i);
    default:
      return;
  }
}

template <size_t R>
struct MultiplyTiles {
  const float *w, *a;
  size_t lda, n;
  V::T* acc;  // of tile i at acc + i * R
  template <size_t M>
  void run(size_t i) const {
    block_tile<R, M>(w, a + i * lda, lda, n, acc + i * R);
  }
};

template <size_t R>
struct StoreTiles {
  const DotArgs& args;
  const V::T* acc;
  template <size_t M>
  void run(size_t i) const {
    DotArgs tile = args;
    tile.c += i * args.ldc;
    store_sums<R, M>(tile, acc + i * R);
  }
};

template <size_t R>
LR_INLINE void unpacked_tile(UnpackRow unpack, const DotArgs& args, size_t m) {
  alignas(64) float w[R * kDotBlock];
  V::T acc[kGemmMaxDotRows * R];
  for (size_t i = 0; i < m * R; ++i) acc[i] = V::zero();
  for (size_t k = 0; k < args.k; k += kDotBlock) {
    const size_t n = smaller(kDotBlock, args.k - k);
    for (size_t r = 0; r < R; ++r) {
      float* row = w + r * kDotBlock;
      unpack(args.rows + r * args.stride, k, n, row);
      for (size_t i = n; i % V::kWidth != 0; ++i) row[i] = 0;
    }
    for_tiles(m, MultiplyTiles<R>{w, args.a + k, args.lda, n, acc});
  }
  for_tiles(m, StoreTiles<R>{args, acc});
}

// For m from kDirectDots + 1 to kGemmMaxDotRows.
void unpacked_dots(UnpackRow unpack, const DotArgs& args, size_t rows, size_t m) {
  constexpr size_t kRows = kDotRows<kDirectDots>;
  size_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    const DotArgs tile = from_row(args, row);
    prefetch_bytes(tile.rows + kDotPrefetchBytes, kRows * tile.stride);
    unpacked_tile<kRows>(unpack, tile, m);
  }
  for (; row < rows; ++row) unpacked_tile<1>(unpack, from_row(args, row), m);
}

}  // namespace
}  // namespace lowrank::LR_ISA

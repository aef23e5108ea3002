// Packing of a weight of any storage type into the panels that the micro-kernel reads. Part of
// gemm_kernels.cpp. Bound by shuffles (transposed) and by L2 (not transposed): 5 to 10 G weights/s
// on a 4 GHz core, about the time of 12 rows of the product itself.
#pragma once

#include "ops/cpu/gemm_unpack.h"
#include "ops/matrix.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kW = V::kWidth;

// Transposes a kWidth × kWidth tile in place.
LR_INLINE void transpose(V::T r[kW]) {
#if defined(__AVX512F__)
  __m512i s[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) s[i] = _mm512_castps_si512(r[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(s[2 * i], s[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(s[2 * i], s[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    s[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    s[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    s[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    s[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(s[i], s[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(s[i], s[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(s[i + 8], s[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(s[i + 8], s[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    r[i + 8] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    r[i + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    r[i + 12] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
#elif defined(__AVX2__)
  __m256 t[8], s[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
  }
#else
  const V::T a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
             b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const V::T c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7),
             d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
#endif
}

#if defined(__AVX512F__)
LR_INLINE V::T even_bf16(V::T pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16));
}
LR_INLINE V::T odd_bf16(V::T pairs) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(~0xffff)));
}
#elif defined(__AVX2__)
LR_INLINE V::T even_bf16(V::T pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
}
LR_INLINE V::T odd_bf16(V::T pairs) {
  return _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(~0xffff)));
}
#else
LR_INLINE V::T even_bf16(V::T pairs) { return (V::T)((V::I)pairs << 16); }
LR_INLINE V::T odd_bf16(V::T pairs) { return (V::T)((V::I)pairs & ~0xffff); }
#endif

// Where a panel's vector of columns goes: row p of the block at out + p * step.
struct PanelColumn {
  float* out;
  size_t step;
};

// kWidth rows of bf16: pairs along k are transposed as 32-bit lanes and split, half the shuffles.
LR_INLINE size_t transpose_bf16_pairs(const uint8_t* const rows[kW], size_t c, size_t k,
                                      PanelColumn to) {
  size_t p = 0;
  for (; p + 2 * kW <= k; p += 2 * kW) {
    V::T r[kW];
#pragma GCC unroll 16
    for (size_t i = 0; i < kW; ++i) r[i] = V::load((const float*)(rows[i] + 2 * (c + p)));
    transpose(r);
#pragma GCC unroll 16
    for (size_t i = 0; i < kW; ++i) {
      V::store(to.out + (p + 2 * i) * to.step, even_bf16(r[i]));
      V::store(to.out + (p + 2 * i + 1) * to.step, odd_bf16(r[i]));
    }
  }
  return p;
}

// Columns [c, c + k) of kWidth rows of a scalar type; rows past `valid` become zeros.
template <DType kType>
LR_INLINE void transpose_scalar(const uint8_t* const rows[kW], size_t valid, size_t c, size_t k,
                                PanelColumn to) {
  size_t p = 0;
  if (kType == DType::kBF16 && valid == kW) p = transpose_bf16_pairs(rows, c, k, to);
  for (; p < k; p += kW) {
    const size_t n = k - p < kW ? k - p : kW;
    V::T r[kW];
    if (n == kW && valid == kW) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kW; ++i) r[i] = Source<kType>::vector(rows[i], c + p);
    } else {
      for (size_t i = 0; i < kW; ++i)
        r[i] = i < valid ? Source<kType>::vector_n(rows[i], c + p, n) : V::zero();
    }
    transpose(r);
    for (size_t i = 0; i < n; ++i) V::store(to.out + (p + i) * to.step, r[i]);
  }
}

// Columns [c, c + k) of kWidth rows of a block type, unpacked strip by strip in L1:
// transpose(rows of fp32, columns, where the panel's vector of them goes). kStep is the k of an
// element of a panel.
template <DType kType, size_t kStep, class Transpose>
LR_INLINE void transpose_strips(const uint8_t* const rows[kW], size_t valid, size_t c, size_t k,
                                PanelColumn to, const Transpose& transpose) {
  constexpr size_t kStrip = 128;
  alignas(64) float strip[kW][kStrip];
  const uint8_t* strip_rows[kW];
  for (size_t i = 0; i < kW; ++i) strip_rows[i] = (const uint8_t*)strip[i];
  // Cut so that strips begin on an element, and all but the first on a unit where that can be.
  for (size_t p = 0; p < k;) {
    const size_t room = (kStrip - (c + p) % kUnit) / kStep * kStep, n = k - p < room ? k - p : room;
    for (size_t i = 0; i < valid; ++i) unpack_range<kType>(rows[i], c + p, n, strip[i]);
    transpose(strip_rows, n, PanelColumn{to.out + p / kStep * to.step, to.step});
    p += n;
  }
}

// B[kk][nn] = b[nn][kk], kWidth rows of b at a time, which become a vector of columns of a panel:
// transpose<type>(rows of a scalar type, how many of them are there, first column, columns, where the
// vector goes).
template <DType kType, size_t kPanel, size_t kStep, class Transpose>
LR_INLINE void for_each_panel_column(const Matrix& b, size_t k_begin, size_t k, size_t n_begin,
                                     size_t n, float* panels, size_t block_depth, size_t at,
                                     const Transpose& transpose) {
  for (size_t j = 0; j < n; j += kW) {
    const size_t panel = j / kPanel, left = n - panel * kPanel;
    const size_t step = left >= kPanel ? kPanel : (left + kW - 1) / kW * kW;
    const size_t valid = n - j < kW ? n - j : kW;
    const uint8_t* rows[kW];
    for (size_t i = 0; i < kW; ++i) {
      rows[i] =
          static_cast<const uint8_t*>(b.data) + (n_begin + j + (i < valid ? i : 0)) * b.stride;
    }
    const PanelColumn to{panels + panel * kPanel * block_depth + at * step + j % kPanel, step};
    if constexpr (kIsScalar<kType>) {
      transpose.template operator()<kType>(rows, valid, k_begin, k, to);
    } else {
      transpose_strips<kType, kStep>(
          rows, valid, k_begin, k, to,
          [&](const uint8_t* const* strip, size_t columns, PanelColumn part) {
            transpose.template operator()<DType::kF32>(strip, valid, 0, columns, part);
          });
    }
  }
}

template <DType kType, size_t kNr>
void pack_transposed(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                     float* panels, size_t block_k, size_t at) {
  for_each_panel_column<kType, kNr, 1>(
      b, k_begin, k, n_begin, n, panels, block_k, at,
      []<DType kRow>(const uint8_t* const* rows, size_t valid, size_t c, size_t columns,
                     PanelColumn to) { transpose_scalar<kRow>(rows, valid, c, columns, to); });
}

// `rows` rows of B go to rows `at`… of each panel: n columns from source column c of a scalar type.
// Panels outermost: theirs lie a multiple of 4 KiB apart, so that writing a row across all of them
// would fight for one set of the cache.
template <DType kType, size_t kNr>
LR_INLINE void spread_rows(const uint8_t* source, size_t stride, size_t rows, size_t c, size_t n,
                           float* panels, size_t block_k, size_t at) {
  constexpr size_t kNv = kNr / kW;
  size_t j = 0;
  for (; j + kNr <= n; j += kNr) {
    float* out = panels + j * block_k + at * kNr;
    const uint8_t* row = source;
    for (size_t p = 0; p < rows; ++p, row += stride, out += kNr) {
#pragma GCC unroll 4
      for (size_t v = 0; v < kNv; ++v)
        V::store(out + v * kW, Source<kType>::vector(row, c + j + v * kW));
    }
  }
  if (j == n) return;
  const size_t step = (n - j + kW - 1) / kW * kW;
  float* out = panels + j * block_k + at * step;
  const uint8_t* row = source;
  for (size_t p = 0; p < rows; ++p, row += stride, out += step) {
    size_t i = j;
    for (; i + kW <= n; i += kW) V::store(out + i - j, Source<kType>::vector(row, c + i));
    if (i < n) V::store(out + i - j, Source<kType>::vector_n(row, c + i, n - i));
  }
}

// b's rows [k_begin, k_begin + k) by its columns [n_begin, n_begin + n), a piece at a time, unpacked in
// L1 where they are of a block type: spread<type>(rows of that type, their stride and number, their
// first column, where that is in the block, number of columns, where the first row is in the block).
template <DType kType, size_t kPanel, class Spread>
LR_INLINE void for_each_piece(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                              const Spread& spread) {
  constexpr size_t kRows = 16;    // what is read of them stays in L1
  constexpr size_t kPiece = 288;  // columns at a time: whole panels and whole units at every level
  static_assert(kPiece % kPanel == 0 && kPiece % kUnit == 0 && kRows % 2 == 0);
  for (size_t j = 0; j < n; j += kPiece) {
    const size_t columns = n - j < kPiece ? n - j : kPiece;
    for (size_t p = 0; p < k; p += kRows) {
      const size_t rows = k - p < kRows ? k - p : kRows;
      const uint8_t* source = static_cast<const uint8_t*>(b.data) + (k_begin + p) * b.stride;
      if constexpr (kIsScalar<kType>) {
        spread.template operator()<kType>(source, b.stride, rows, n_begin + j, j, columns, p);
      } else {
        alignas(64) float strip[kRows][kPiece];
        for (size_t i = 0; i < rows; ++i)
          unpack_range<kType>(source + i * b.stride, n_begin + j, columns, strip[i]);
        spread.template operator()<DType::kF32>((const uint8_t*)strip, sizeof strip[0], rows, 0, j,
                                                columns, p);
      }
    }
  }
}

// B[kk][nn] = b[kk][nn]: rows are copied, cut into panels.
template <DType kType, size_t kNr>
void pack_straight(const Matrix& b, size_t k_begin, size_t k, size_t n_begin, size_t n,
                   float* panels, size_t block_k, size_t at) {
  for_each_piece<kType, kNr>(
      b, k_begin, k, n_begin, n,
      [&]<DType kRow>(const uint8_t* source, size_t stride, size_t rows, size_t c, size_t j,
                      size_t columns, size_t p) {
        spread_rows<kRow, kNr>(source, stride, rows, c, columns, panels + j * block_k, block_k,
                               at + p);
      });
}

}  // namespace
}  // namespace lowrank::LR_ISA

// Rows of a head into lanes and back: blocks of kWidth x kWidth are transposed in registers.
#pragma once

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

// r[i][j] <-> r[j][i].
#if defined(__AVX512F__)
LR_INLINE __m512 unpack_pairs_low(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
LR_INLINE __m512 unpack_pairs_high(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
LR_INLINE void transpose(__m512 (&r)[16]) {
  // 4 x 4 blocks within each 128-bit quarter, then the quarters.
#pragma GCC unroll 4
  for (size_t g = 0; g < 16; g += 4) {
    const __m512 low01 = _mm512_unpacklo_ps(r[g], r[g + 1]), high01 = _mm512_unpackhi_ps(r[g], r[g + 1]);
    const __m512 low23 = _mm512_unpacklo_ps(r[g + 2], r[g + 3]), high23 = _mm512_unpackhi_ps(r[g + 2], r[g + 3]);
    r[g] = unpack_pairs_low(low01, low23);
    r[g + 1] = unpack_pairs_high(low01, low23);
    r[g + 2] = unpack_pairs_low(high01, high23);
    r[g + 3] = unpack_pairs_high(high01, high23);
  }
#pragma GCC unroll 4
  for (size_t c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88), odd_low = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
    r[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[c + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[c + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[c + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}
#elif defined(__AVX2__)
LR_INLINE __m256 unpack_pairs_low(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
LR_INLINE __m256 unpack_pairs_high(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
LR_INLINE void transpose(__m256 (&r)[8]) {
#pragma GCC unroll 2
  for (size_t g = 0; g < 8; g += 4) {
    const __m256 low01 = _mm256_unpacklo_ps(r[g], r[g + 1]), high01 = _mm256_unpackhi_ps(r[g], r[g + 1]);
    const __m256 low23 = _mm256_unpacklo_ps(r[g + 2], r[g + 3]), high23 = _mm256_unpackhi_ps(r[g + 2], r[g + 3]);
    r[g] = unpack_pairs_low(low01, low23);
    r[g + 1] = unpack_pairs_high(low01, low23);
    r[g + 2] = unpack_pairs_low(high01, high23);
    r[g + 3] = unpack_pairs_high(high01, high23);
  }
#pragma GCC unroll 4
  for (size_t c = 0; c < 4; ++c) {
    const __m256 low = r[c], high = r[c + 4];
    r[c] = _mm256_permute2f128_ps(low, high, 0x20);
    r[c + 4] = _mm256_permute2f128_ps(low, high, 0x31);
  }
}
#else
LR_INLINE void transpose(V::T (&r)[4]) {
  const V::T a = r[0], b = r[1], c = r[2], d = r[3];
  r[0] = V::T{a[0], b[0], c[0], d[0]};
  r[1] = V::T{a[1], b[1], c[1], d[1]};
  r[2] = V::T{a[2], b[2], c[2], d[2]};
  r[3] = V::T{a[3], b[3], c[3], d[3]};
}
#endif

// out[d * out_stride + lane] = scale · rows[lane][d] for d below `length` rounded up to whole vectors (zeros past the end) and
// the kWidth lanes of a vector.
inline void rows_to_lanes(const float* const* rows, size_t length, float scale, float* out, size_t out_stride) {
  const V::T factor = V::set(scale);
  for (size_t d = 0; d < length; d += V::kWidth) {
    const size_t n = length - d < V::kWidth ? length - d : V::kWidth;
    V::T block[V::kWidth];
#pragma GCC unroll 16
    for (size_t i = 0; i < V::kWidth; ++i) {
      block[i] = n == V::kWidth ? V::load(rows[i] + d) : V::load_n(rows[i] + d, n);
    }
    transpose(block);
#pragma GCC unroll 16
    for (size_t i = 0; i < V::kWidth; ++i) V::store(out + (d + i) * out_stride, V::mul(block[i], factor));
  }
}

// write(lane, d, n, x): x holds elements [d, d + n) of in[d * in_stride + lane] · scale[lane], for the first `lanes` lanes.
template <class Write>
LR_INLINE void lanes_to_rows(const float* in, size_t in_stride, const float* scale, size_t length, size_t lanes, const Write& write) {
  const V::T factor = V::load(scale);
  for (size_t d = 0; d < length; d += V::kWidth) {
    const size_t n = length - d < V::kWidth ? length - d : V::kWidth;
    V::T block[V::kWidth];
#pragma GCC unroll 16
    for (size_t i = 0; i < V::kWidth; ++i) block[i] = V::mul(V::load(in + (d + i) * in_stride), factor);
    transpose(block);
#pragma GCC unroll 16
    for (size_t i = 0; i < V::kWidth; ++i) {
      if (i >= lanes) break;
      write(i, d, n, block[i]);
    }
  }
}

// rows[lane][d] (+)= in[d * in_stride + lane] · scale[lane], likewise.
template <bool kAdd>
void write_lanes(const float* in, size_t in_stride, const float* scale, size_t length, float* const* rows, size_t lanes) {
  lanes_to_rows(in, in_stride, scale, length, lanes, [&](size_t lane, size_t d, size_t n, V::T x) __attribute__((always_inline)) {
    V::store_n(rows[lane] + d, kAdd ? V::add(V::load_n(rows[lane] + d, n), x) : x, n);
  });
}

}  // namespace
}  // namespace lowrank::LR_ISA

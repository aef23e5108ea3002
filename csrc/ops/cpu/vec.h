// One vector type per instruction-set level, so that a kernel is written once. Included only by *_kernels.cpp, which are
// compiled with -DLR_ISA=<level> and that level's flags; everything here is static and in the level's namespace.
//   V::kWidth lanes of fp32 in V::T. load_n/store_n touch only the first n lanes (n <= kWidth; others read as 0).
//   store_bf16 rounds to nearest even and keeps NaN; where the level has an instruction for it, denormals become zero.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define LR_INLINE static inline __attribute__((always_inline))

namespace lowrank::LR_ISA {
namespace {

#if defined(__AVX512F__)
struct V {
  using T = __m512;
  static constexpr size_t kWidth = 16;
  LR_INLINE __mmask16 mask(size_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  LR_INLINE T zero() { return _mm512_setzero_ps(); }
  LR_INLINE T set(float x) { return _mm512_set1_ps(x); }
  LR_INLINE T load(const float* p) { return _mm512_loadu_ps(p); }
  LR_INLINE T load_n(const float* p, size_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  LR_INLINE void store(float* p, T x) { _mm512_storeu_ps(p, x); }
  LR_INLINE void store_n(float* p, T x, size_t n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  LR_INLINE T add(T a, T b) { return _mm512_add_ps(a, b); }
  LR_INLINE T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  LR_INLINE T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  LR_INLINE T div(T a, T b) { return _mm512_div_ps(a, b); }
  LR_INLINE T max(T a, T b) { return _mm512_max_ps(a, b); }
  LR_INLINE T min(T a, T b) { return _mm512_min_ps(a, b); }
  LR_INLINE T sqrt(T a) { return _mm512_sqrt_ps(a); }
  LR_INLINE T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }     // a*b + c
  LR_INLINE T fnma(T a, T b, T c) { return _mm512_fnmadd_ps(a, b, c); }   // c - a*b
  LR_INLINE T round(T a) { return _mm512_roundscale_ps(a, 8); }
  LR_INLINE T scale2(T a, T n) { return _mm512_scalef_ps(a, n); }         // a * 2^n, n integral
  LR_INLINE float sum(T a) { return _mm512_reduce_add_ps(a); }
  LR_INLINE float hmax(T a) { return _mm512_reduce_max_ps(a); }
  LR_INLINE T load_bf16(const uint16_t* p) {
    return from_bf16(_mm256_loadu_si256((const __m256i*)p));
  }
  LR_INLINE T load_bf16_n(const uint16_t* p, size_t n) { return from_bf16(_mm256_maskz_loadu_epi16(mask(n), p)); }
  LR_INLINE void store_bf16(uint16_t* p, T x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }
  LR_INLINE void store_bf16_n(uint16_t* p, T x, size_t n) { _mm256_mask_storeu_epi16(p, mask(n), to_bf16(x)); }
  LR_INLINE T from_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  LR_INLINE __m256i to_bf16(T x) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
#endif
  }
  LR_INLINE T load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
};
#elif defined(__AVX2__)
struct V {
  using T = __m256;
  static constexpr size_t kWidth = 8;
  LR_INLINE __m256i mask(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  LR_INLINE T zero() { return _mm256_setzero_ps(); }
  LR_INLINE T set(float x) { return _mm256_set1_ps(x); }
  LR_INLINE T load(const float* p) { return _mm256_loadu_ps(p); }
  LR_INLINE T load_n(const float* p, size_t n) { return _mm256_maskload_ps(p, mask(n)); }
  LR_INLINE void store(float* p, T x) { _mm256_storeu_ps(p, x); }
  LR_INLINE void store_n(float* p, T x, size_t n) { _mm256_maskstore_ps(p, mask(n), x); }
  LR_INLINE T add(T a, T b) { return _mm256_add_ps(a, b); }
  LR_INLINE T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  LR_INLINE T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  LR_INLINE T div(T a, T b) { return _mm256_div_ps(a, b); }
  LR_INLINE T max(T a, T b) { return _mm256_max_ps(a, b); }
  LR_INLINE T min(T a, T b) { return _mm256_min_ps(a, b); }
  LR_INLINE T sqrt(T a) { return _mm256_sqrt_ps(a); }
  LR_INLINE T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  LR_INLINE T fnma(T a, T b, T c) { return _mm256_fnmadd_ps(a, b, c); }
  LR_INLINE T round(T a) { return _mm256_round_ps(a, 8); }
  LR_INLINE T scale2(T a, T n) {
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(e));
  }
  LR_INLINE float sum(T a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  LR_INLINE float hmax(T a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  LR_INLINE T load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  LR_INLINE T load_bf16_n(const uint16_t* p, size_t n) {
    uint16_t lanes[kWidth] = {};
    for (size_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load_bf16(lanes);
  }
  LR_INLINE void store_bf16(uint16_t* p, T x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256 rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))));
    const __m256 quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    const __m256 chosen = _mm256_blendv_ps(rounded, quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srai_epi32(_mm256_castps_si256(chosen), 16);  // signed: packing does not saturate
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }
  LR_INLINE void store_bf16_n(uint16_t* p, T x, size_t n) {
    uint16_t lanes[kWidth];
    store_bf16(lanes, x);
    for (size_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  LR_INLINE T load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
};
#else
// Four lanes in the compiler's own vectors: SSE2 on any x86-64, NEON on arm64.
struct V {
  using T = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using U = uint32_t __attribute__((vector_size(16)));
  static constexpr size_t kWidth = 4;
  LR_INLINE T zero() { return T{}; }
  LR_INLINE T set(float x) { return T{x, x, x, x}; }
  LR_INLINE T load(const float* p) { T x; memcpy(&x, p, sizeof x); return x; }
  LR_INLINE T load_n(const float* p, size_t n) { T x{}; for (size_t i = 0; i < n; ++i) x[i] = p[i]; return x; }
  LR_INLINE void store(float* p, T x) { memcpy(p, &x, sizeof x); }
  LR_INLINE void store_n(float* p, T x, size_t n) { for (size_t i = 0; i < n; ++i) p[i] = x[i]; }
  LR_INLINE T add(T a, T b) { return a + b; }
  LR_INLINE T sub(T a, T b) { return a - b; }
  LR_INLINE T mul(T a, T b) { return a * b; }
  LR_INLINE T div(T a, T b) { return a / b; }
#if defined(__aarch64__)
  LR_INLINE T max(T a, T b) { return (T)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
  LR_INLINE T min(T a, T b) { return (T)vminq_f32((float32x4_t)a, (float32x4_t)b); }
  LR_INLINE T sqrt(T a) { return (T)vsqrtq_f32((float32x4_t)a); }
  LR_INLINE T fma(T a, T b, T c) { return (T)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
  LR_INLINE T fnma(T a, T b, T c) { return (T)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
  LR_INLINE T round(T a) { return (T)vrndnq_f32((float32x4_t)a); }
  LR_INLINE I to_int(T a) { return (I)vcvtnq_s32_f32((float32x4_t)a); }
#elif defined(__SSE2__)
  LR_INLINE T max(T a, T b) { return _mm_max_ps(a, b); }
  LR_INLINE T min(T a, T b) { return _mm_min_ps(a, b); }
  LR_INLINE T sqrt(T a) { return _mm_sqrt_ps(a); }
  LR_INLINE T fma(T a, T b, T c) { return a * b + c; }
  LR_INLINE T fnma(T a, T b, T c) { return c - a * b; }
  LR_INLINE T round(T a) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(a)); }   // |a| < 2^31
  LR_INLINE I to_int(T a) { return (I)_mm_cvtps_epi32(a); }
#else
#error "the baseline needs SSE2 or NEON"
#endif
  LR_INLINE T scale2(T a, T n) { return a * (T)((to_int(n) + 127) << 23); }
  LR_INLINE float sum(T a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  LR_INLINE float hmax(T a) {
    const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
  }
  LR_INLINE T load_bf16(const uint16_t* p) {
#if defined(__SSE2__)
    return (T)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i*)p));
#else
    I x;
    for (size_t i = 0; i < 4; ++i) x[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    return (T)x;
#endif
  }
  LR_INLINE T load_bf16_n(const uint16_t* p, size_t n) {
    uint16_t lanes[kWidth] = {};
    for (size_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load_bf16(lanes);
  }
  LR_INLINE void store_bf16(uint16_t* p, T x) {
    const U bits = (U)x, nan = (U)(x != x);
    const U rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const I high = (I)((nan & (bits | 0x400000)) | (~nan & rounded)) >> 16;
#if defined(__SSE2__)
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi32((__m128i)high, (__m128i)high));  // signed: packing does not saturate
#else
    for (size_t i = 0; i < 4; ++i) p[i] = static_cast<uint16_t>(high[i]);
#endif
  }
  LR_INLINE void store_bf16_n(uint16_t* p, T x, size_t n) {
    uint16_t lanes[kWidth];
    store_bf16(lanes, x);
    for (size_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  LR_INLINE T load_f16(const uint16_t* p) {
    T x;
    for (size_t i = 0; i < 4; ++i) {   // scalar: the baseline has no F16C
      const uint32_t sign = static_cast<uint32_t>(p[i] & 0x8000u) << 16, e = (p[i] >> 10) & 0x1f, m = p[i] & 0x3ffu;
      uint32_t u;
      if (e == 0) {
        const float f = static_cast<float>(m) * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
      } else {
        u = e == 31 ? sign | 0x7f800000u | (m << 13) : sign | ((e + 112) << 23) | (m << 13);
      }
      float f;
      memcpy(&f, &u, 4);
      x[i] = f;
    }
    return x;
  }
};
#endif

// A vector of either storage: fp32, or bf16 as uint16_t.
LR_INLINE V::T load(const float* p) { return V::load(p); }
LR_INLINE V::T load(const uint16_t* p) { return V::load_bf16(p); }
LR_INLINE V::T load_n(const float* p, size_t n) { return V::load_n(p, n); }
LR_INLINE V::T load_n(const uint16_t* p, size_t n) { return V::load_bf16_n(p, n); }
LR_INLINE void store(float* p, V::T x) { V::store(p, x); }
LR_INLINE void store(uint16_t* p, V::T x) { V::store_bf16(p, x); }
LR_INLINE void store_n(float* p, V::T x, size_t n) { V::store_n(p, x, n); }
LR_INLINE void store_n(uint16_t* p, V::T x, size_t n) { V::store_bf16_n(p, x, n); }

// exp(x), relative error below 3e-7 on [-87.3, 88]; outside, the value at the nearer end (1.2e-38 or 1.6e38).
// NaN stays NaN.
// Range reduction by two-part ln 2, then the degree-6 minimax polynomial of Cephes' expf.
LR_INLINE V::T vexp(V::T x) {
  x = V::max(V::set(-87.3f), V::min(V::set(88.0f), x));  // x86 returns the second operand where one is NaN
  const V::T n = V::round(V::mul(x, V::set(1.44269504088896341f)));
  V::T r = V::fnma(n, V::set(0.693359375f), x);
  r = V::fnma(n, V::set(-2.12194440e-4f), r);
  V::T p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(V::mul(p, r), r, V::add(r, V::set(1.0f)));
  return V::scale2(p, n);
}

}  // namespace
}  // namespace lowrank::LR_ISA

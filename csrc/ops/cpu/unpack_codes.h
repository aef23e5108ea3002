// Codes of a few bits to units of 32 fp32 weights, in registers: what the block types of gemm_unpack.h
// are made of. Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kUnit = 32;  // weights that a block type yields at a time
constexpr size_t kUnitVectors = kUnit / V::kWidth;

struct Unit {
  V::T v[kUnitVectors];
};

using U8x16 = uint8_t __attribute__((vector_size(16)));

LR_INLINE U8x16 load_bytes(const uint8_t* p) {
  U8x16 x;
  memcpy(&x, p, sizeof x);
  return x;
}

LR_INLINE U8x16 splat(uint8_t x) { return U8x16{} + x; }

LR_INLINE float half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, sizeof h);
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif defined(__aarch64__)
  __fp16 x;
  memcpy(&x, &h, sizeof x);
  return static_cast<float>(x);
#else
  const uint16_t four[4] = {h, h, h, h};
  return V::load_f16(four)[0];
#endif
}

// Two that lie side by side.
struct Halves {
  float first, second;
};
LR_INLINE Halves halves_at(const uint8_t* p) {
#if defined(__F16C__)
  int both;
  memcpy(&both, p, sizeof both);
  const __m128 x = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
  return {x[0], x[1]};
#else
  return {half_at(p), half_at(p + 2)};
#endif
}

// 16 signed bytes to fp32, in 16 / kWidth vectors.
LR_INLINE void widen(U8x16 q, V::T* v) {
#if defined(__AVX512F__)
  v[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q));
#elif defined(__AVX2__)
  const __m128i x = (__m128i)q;
  v[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
  v[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
#elif defined(__aarch64__)
  const int16x8_t low = vmovl_s8(vget_low_s8((int8x16_t)q)),
                  high = vmovl_s8(vget_high_s8((int8x16_t)q));
  v[0] = (V::T)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  v[1] = (V::T)vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
  v[2] = (V::T)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  v[3] = (V::T)vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
#else
  const __m128i x = (__m128i)
      q;  // a byte in both halves of a word, then the word in both halves: shift the copy out
  const __m128i low = _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8),
                high = _mm_srai_epi16(_mm_unpackhi_epi8(x, x), 8);
  v[0] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(low, low), 16));
  v[1] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(low, low), 16));
  v[2] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(high, high), 16));
  v[3] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(high, high), 16));
#endif
}

// weight = d · q, with a scale for each half of the unit.
LR_INLINE Unit scaled(U8x16 low, U8x16 high, float d_low, float d_high) {
  Unit u;
  widen(low, u.v);
  widen(high, u.v + kUnitVectors / 2);
  for (size_t i = 0; i < kUnitVectors; ++i)
    u.v[i] = V::mul(V::set(i < kUnitVectors / 2 ? d_low : d_high), u.v[i]);
  return u;
}

// weight = d · q + m, likewise.
LR_INLINE Unit affine(U8x16 low, U8x16 high, float d_low, float d_high, float m_low, float m_high) {
  Unit u = scaled(low, high, d_low, d_high);
  for (size_t i = 0; i < kUnitVectors; ++i)
    u.v[i] = V::add(u.v[i], V::set(i < kUnitVectors / 2 ? m_low : m_high));
  return u;
}

// The non-linear 4-bit codes of IQ4_NL and IQ4_XS.
alignas(16) constexpr int8_t kIq4Codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                              1,    13,   25,  38,  53,  69,  89,  113};
LR_INLINE U8x16 iq4_codes(U8x16 q) {
#if defined(__SSSE3__)
  return (U8x16)_mm_shuffle_epi8(_mm_load_si128((const __m128i*)kIq4Codes), (__m128i)q);
#elif defined(__aarch64__)
  return (U8x16)vqtbl1q_s8(vld1q_s8(kIq4Codes), (uint8x16_t)q);
#else
  U8x16 codes;
  for (size_t i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(kIq4Codes[q[i]]);
  return codes;
#endif
}

// (x >> shift) & mask in each byte; mask keeps at most 8 - shift bits.
LR_INLINE U8x16 bits_of(U8x16 x, size_t shift, uint8_t mask) {
#if defined(__SSE2__)
  // There is no shift of bytes: what comes in from the next one is masked away.
  const __m128i words = _mm_srl_epi16((__m128i)x, _mm_cvtsi32_si128(static_cast<int>(shift)));
  return (U8x16)words & splat(mask);
#elif defined(__aarch64__)
  return (U8x16)vshlq_u8((uint8x16_t)x, vdupq_n_s8(static_cast<int8_t>(-static_cast<int>(shift)))) &
         splat(mask);
#else
  return (x >> static_cast<uint8_t>(shift)) & splat(mask);
#endif
}

// Byte i is `value` where bit i of `bits` is set, else 0.
LR_INLINE U8x16 spread_bits(uint16_t bits, uint8_t value) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (U8x16)_mm_maskz_set1_epi8(bits, static_cast<char>(value));
#else
  const U8x16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
#if defined(__SSSE3__)
  const __m128i kByte = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const U8x16 bytes = (U8x16)_mm_shuffle_epi8(_mm_cvtsi32_si128(bits), kByte);
#else
  const uint64_t low = (bits & 0xffu) * 0x0101010101010101u,
                 high = (bits >> 8) * 0x0101010101010101u;
  using U64x2 = uint64_t __attribute__((vector_size(16)));
  const U8x16 bytes = (U8x16)U64x2{low, high};
#endif
  return (U8x16)((bytes & kBit) == kBit) & splat(value);
#endif
}

// What a nibble stands for before its block's scale.
struct PlainCode {
  LR_INLINE U8x16 of(U8x16 q) { return q; }
  LR_INLINE float value(int q) { return static_cast<float>(q); }
};
struct CentredCode {
  LR_INLINE U8x16 of(U8x16 q) { return q - 8; }
  LR_INLINE float value(int q) { return static_cast<float>(q - 8); }
};
struct Iq4Code {
  LR_INLINE U8x16 of(U8x16 q) { return iq4_codes(q); }
  LR_INLINE float value(int q) { return static_cast<float>(kIq4Codes[q]); }
};

#if defined(__AVX512F__)
// A register holds the weights of all sixteen codes, so a weight is looked up by one instruction,
// which reads the lowest four bits of each lane.
template <class Code>
LR_INLINE V::T all_codes() {
  return V::T{Code::value(0),  Code::value(1),  Code::value(2),  Code::value(3),
              Code::value(4),  Code::value(5),  Code::value(6),  Code::value(7),
              Code::value(8),  Code::value(9),  Code::value(10), Code::value(11),
              Code::value(12), Code::value(13), Code::value(14), Code::value(15)};
}
LR_INLINE __m512i lanes_of(U8x16 q) { return _mm512_cvtepu8_epi32((__m128i)q); }
LR_INLINE Unit nibbles_of(U8x16 q, V::T weights) {
  const __m512i low = lanes_of(q), high = _mm512_srli_epi32(low, 4);
  return {{_mm512_permutexvar_ps(low, weights), _mm512_permutexvar_ps(high, weights)}};
}
#endif

// weight = d · code, the low nibbles before the high ones.
template <class Code>
LR_INLINE Unit scaled_nibbles(U8x16 q, float d) {
#if defined(__AVX512F__)
  return nibbles_of(q, V::mul(V::set(d), all_codes<Code>()));
#else
  return scaled(Code::of(q & 15), Code::of(bits_of(q, 4, 15)), d, d);
#endif
}

// weight = d · code + m, likewise.
LR_INLINE Unit affine_nibbles(U8x16 q, float d, float m) {
#if defined(__AVX512F__)
  return nibbles_of(q, V::add(V::mul(V::set(d), all_codes<PlainCode>()), V::set(m)));
#else
  return affine(q & 15, bits_of(q, 4, 15), d, d, m, m);
#endif
}

// weight = d · code + m of the nibbles of 32 bytes that begin at bit `shift`, 0 or 4.
LR_INLINE Unit affine_nibbles_at(const uint8_t* q, size_t shift, float d, float m) {
  const U8x16 low = load_bytes(q), high = load_bytes(q + 16);
#if defined(__AVX512F__)
  const V::T weights = V::add(V::mul(V::set(d), all_codes<PlainCode>()), V::set(m));
  const __m128i count = _mm_cvtsi32_si128(static_cast<int>(shift));
  return {{_mm512_permutexvar_ps(_mm512_srl_epi32(lanes_of(low), count), weights),
           _mm512_permutexvar_ps(_mm512_srl_epi32(lanes_of(high), count), weights)}};
#else
  return affine(bits_of(low, shift, 15), bits_of(high, shift, 15), d, d, m, m);
#endif
}

// The 6-bit scale and minimum of sub-block j of Q4_K and Q5_K, packed in 12 bytes.
struct ScaleMin {
  uint8_t scale, min;
};
LR_INLINE ScaleMin k4_scale_min(const uint8_t* s, size_t j) {
  if (j < 4) return {static_cast<uint8_t>(s[j] & 63), static_cast<uint8_t>(s[j + 4] & 63)};
  return {static_cast<uint8_t>((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4)),
          static_cast<uint8_t>((s[j + 4] >> 4) | ((s[j] >> 6) << 4))};
}

// weight = d · code of 32 neighbouring weights, the even ones in the high nibbles.
LR_INLINE Unit looked_up(U8x16 q, const float* codes, float d) {
#if defined(__AVX2__)
  // Words are shifted: what a byte gets from its neighbour lies above the bits that a look-up reads.
  const __m128i odd = (__m128i)q, even = _mm_srli_epi16(odd, 4);
  const __m128i bytes[2] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
  Unit u;
#if defined(__AVX512F__)
  const V::T weights = V::mul(V::set(d), V::load(codes));
  for (size_t i = 0; i < 2; ++i)
    u.v[i] = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(bytes[i]), weights);
#else
  const V::T low = V::mul(V::set(d), V::load(codes)), high = V::mul(V::set(d), V::load(codes + 8));
  for (size_t i = 0; i < 4; ++i) {
    const __m256i lanes =
        _mm256_cvtepu8_epi32(i % 2 == 0 ? bytes[i / 2] : _mm_srli_si128(bytes[i / 2], 8));
    u.v[i] = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, lanes),
                              _mm256_permutevar8x32_ps(high, lanes),
                              _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28)));
  }
#endif
  return u;
#else
  float scaled[16], weights[kUnit];
  for (size_t i = 0; i < 16; ++i) scaled[i] = d * codes[i];
  for (size_t i = 0; i < 16; ++i) {
    weights[2 * i] = scaled[q[i] >> 4];
    weights[2 * i + 1] = scaled[q[i] & 15];
  }
  Unit u;
  for (size_t i = 0; i < kUnitVectors; ++i) u.v[i] = V::load(weights + i * V::kWidth);
  return u;
#endif
}

LR_INLINE float float_at(const uint8_t* p) {
  float x;
  memcpy(&x, p, sizeof x);
  return x;
}

}  // namespace
}  // namespace lowrank::LR_ISA

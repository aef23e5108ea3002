// Storage types in registers: each Source<type> turns a row's bytes into fp32 vectors, exactly as
// ggml's dequantize_row_* and the gguf package do (fp32, a product and then a sum, no FMA). Part of
// gemm_kernels.cpp.
//
// Block types are read by units of 32 weights. Their layouts are ggml-common.h's; nibbles hold
// weight i low and i + 16 high in the 32-blocks, and weight i low and i + 32 high in the K types.
// Frantar et al. and Kawrakow's llama.cpp PR 1684 (K types). In NF4 and FP4, as in bitsandbytes,
// they hold weight 2i high and 2i + 1 low.
#pragma once

#include "core/codes_4bit.h"
#include "core/dtype.h"
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

// unit(block, sub): weights [32·sub, 32·sub + 32) of a block.
template <DType>
struct Source;

template <>
struct Source<DType::kNF4> {  // absmax f32, nibbles[32]
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    return looked_up(load_bytes(b + 4 + 16 * sub), kNf4Codes, float_at(b));
  }
};

template <>
struct Source<DType::kFP4> {  // absmax f32, nibbles[32]
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    return looked_up(load_bytes(b + 4 + 16 * sub), kFp4Codes, float_at(b));
  }
};

template <>
struct Source<DType::kQ8_0> {  // d f16, q i8[32]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    const float d = half_at(b);
    return scaled(load_bytes(b + 2), load_bytes(b + 18), d, d);
  }
};

template <>
struct Source<DType::kQ4_0> {  // d f16, nibbles[16]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    return scaled_nibbles<CentredCode>(load_bytes(b + 2), half_at(b));
  }
};

template <>
struct Source<DType::kQ4_1> {  // d f16, m f16, nibbles[16]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    const Halves scale = halves_at(b);
    return affine_nibbles(load_bytes(b + 4), scale.first, scale.second);
  }
};

template <>
struct Source<DType::kQ5_0> {  // d f16, high bits u32, nibbles[16]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    const float d = half_at(b);
    const U8x16 q = load_bytes(b + 6);
    uint16_t low, high;
    memcpy(&low, b + 2, 2);
    memcpy(&high, b + 4, 2);
    return scaled(((q & 15) | spread_bits(low, 16)) - 16,
                  (bits_of(q, 4, 15) | spread_bits(high, 16)) - 16, d, d);
  }
};

template <>
struct Source<DType::kQ5_1> {  // d f16, m f16, high bits u32, nibbles[16]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    const float d = half_at(b), m = half_at(b + 2);
    const U8x16 q = load_bytes(b + 8);
    uint16_t low, high;
    memcpy(&low, b + 4, 2);
    memcpy(&high, b + 6, 2);
    return affine((q & 15) | spread_bits(low, 16), bits_of(q, 4, 15) | spread_bits(high, 16), d, d,
                  m, m);
  }
};

template <>
struct Source<DType::kIQ4_NL> {  // d f16, nibbles[16]
  LR_INLINE Unit unit(const uint8_t* b, size_t) {
    return scaled_nibbles<Iq4Code>(load_bytes(b + 2), half_at(b));
  }
};

template <>
struct Source<DType::kIQ4_XS> {  // d f16, high scale bits u16, low scale nibbles[4], nibbles[128]
                                 // by 32
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const int low = (b[4 + sub / 2] >> (4 * (sub & 1))) & 15;
    const int high = (b[2 + sub / 4] >> (2 * (sub & 3))) & 3;
    const float d = half_at(b) * static_cast<float>((low | (high << 4)) - 32);
    return scaled_nibbles<Iq4Code>(load_bytes(b + 8 + 16 * sub), d);
  }
};

template <>
struct Source<DType::kQ2_K> {  // scale | min nibbles[16], 2-bit[64], d f16, dmin f16
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    const uint8_t s0 = b[2 * sub], s1 = b[2 * sub + 1];
    const uint8_t* q = b + 16 + 32 * (sub / 4);
    const size_t shift = 2 * (sub & 3);
    return affine(bits_of(load_bytes(q), shift, 3), bits_of(load_bytes(q + 16), shift, 3),
                  d * static_cast<float>(s0 & 15), d * static_cast<float>(s1 & 15),
                  -(dmin * static_cast<float>(s0 >> 4)), -(dmin * static_cast<float>(s1 >> 4)));
  }
};

template <>
struct Source<DType::kQ3_K> {  // high bits[32], 2-bit[64], 6-bit scales[12], d f16
  LR_INLINE float scale(const uint8_t* s, size_t j) {
    const int low = (s[j & 7] >> (4 * (j >> 3))) & 15,
              high = (s[8 + (j & 3)] >> (2 * (j >> 2))) & 3;
    return static_cast<float>((low | (high << 4)) - 32);
  }
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const float d = half_at(b + 108);
    const uint8_t* q = b + 32 + 32 * (sub / 4);
    const size_t shift = 2 * (sub & 3);
    const U8x16 bit = splat(static_cast<uint8_t>(1u << sub));
    // A clear high bit means minus 4.
    const U8x16 less0 = (U8x16)((load_bytes(b) & bit) == 0) & 4,
                less1 = (U8x16)((load_bytes(b + 16) & bit) == 0) & 4;
    return scaled(bits_of(load_bytes(q), shift, 3) - less0,
                  bits_of(load_bytes(q + 16), shift, 3) - less1, d * scale(b + 96, 2 * sub),
                  d * scale(b + 96, 2 * sub + 1));
  }
};

template <>
struct Source<DType::kQ4_K> {  // d f16, dmin f16, scales[12], nibbles[128]
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const ScaleMin s = k4_scale_min(b + 4, sub);
    const Halves scale = halves_at(b);
    return affine_nibbles_at(b + 16 + 32 * (sub / 2), 4 * (sub & 1),
                             scale.first * static_cast<float>(s.scale),
                             -(scale.second * static_cast<float>(s.min)));
  }
};

template <>
struct Source<DType::kQ5_K> {  // d f16, dmin f16, scales[12], high bits[32], nibbles[128]
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const ScaleMin s = k4_scale_min(b + 4, sub);
    const float d = half_at(b) * static_cast<float>(s.scale),
                m = -(half_at(b + 2) * static_cast<float>(s.min));
    const uint8_t* q = b + 48 + 32 * (sub / 2);
    const size_t shift = 4 * (sub & 1);
    const U8x16 high0 = bits_of(load_bytes(b + 16), sub, 1) << 4,
                high1 = bits_of(load_bytes(b + 32), sub, 1) << 4;
    return affine(bits_of(load_bytes(q), shift, 15) | high0,
                  bits_of(load_bytes(q + 16), shift, 15) | high1, d, d, m, m);
  }
};

template <>
struct Source<DType::kQ6_K> {  // low nibbles[128], high 2-bit[64], scales i8[16], d f16
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const float d = half_at(b + 208);
    const size_t half = sub / 4, quarter = sub & 3;
    const uint8_t* low = b + 64 * half + 32 * (quarter & 1);
    const uint8_t* high = b + 128 + 32 * half;
    const size_t nibble = quarter < 2 ? 0 : 4, pair = 2 * quarter;
    const U8x16 q0 =
        bits_of(load_bytes(low), nibble, 15) | (bits_of(load_bytes(high), pair, 3) << 4);
    const U8x16 q1 =
        bits_of(load_bytes(low + 16), nibble, 15) | (bits_of(load_bytes(high + 16), pair, 3) << 4);
    const float s0 = static_cast<float>(static_cast<int8_t>(b[192 + 2 * sub]));
    const float s1 = static_cast<float>(static_cast<int8_t>(b[192 + 2 * sub + 1]));
    return scaled(q0 - 32, q1 - 32, d * s0, d * s1);
  }
};

// vector(row, c): weights [c, c + kWidth); vector_n: only the first n of them.
template <>
struct Source<DType::kF32> {
  LR_INLINE V::T vector(const uint8_t* row, size_t c) { return V::load((const float*)row + c); }
  LR_INLINE V::T vector_n(const uint8_t* row, size_t c, size_t n) {
    return V::load_n((const float*)row + c, n);
  }
};

template <>
struct Source<DType::kBF16> {
  LR_INLINE V::T vector(const uint8_t* row, size_t c) {
    return V::load_bf16((const uint16_t*)row + c);
  }
  LR_INLINE V::T vector_n(const uint8_t* row, size_t c, size_t n) {
    uint16_t h[V::kWidth] = {};
    memcpy(h, row + 2 * c, 2 * n);
    return V::load_bf16(h);
  }
};

template <>
struct Source<DType::kF16> {
  LR_INLINE V::T vector(const uint8_t* row, size_t c) {
    return V::load_f16((const uint16_t*)row + c);
  }
  LR_INLINE V::T vector_n(const uint8_t* row, size_t c, size_t n) {
    uint16_t h[V::kWidth] = {};
    memcpy(h, row + 2 * c, 2 * n);
    return V::load_f16(h);
  }
};

template <DType kType>
constexpr bool kIsScalar = kDTypes[static_cast<size_t>(kType)].block_elements == 1;

// Bytes that a unit takes of a row, rounded down.
template <DType kType>
constexpr size_t kUnitBytes = kDTypes[static_cast<size_t>(kType)].block_bytes * kUnit /
                              kDTypes[static_cast<size_t>(kType)].block_elements;

// Weights [32·index, 32·index + 32) of a row.
template <DType kType>
LR_INLINE Unit unit_at(const uint8_t* row, size_t index) {
  if constexpr (kIsScalar<kType>) {
    Unit u;
    for (size_t i = 0; i < kUnitVectors; ++i)
      u.v[i] = Source<kType>::vector(row, index * kUnit + i * V::kWidth);
    return u;
  } else {
    constexpr DTypeInfo kInfo = kDTypes[static_cast<size_t>(kType)];
    constexpr size_t kUnitsPerBlock = kInfo.block_elements / kUnit;
    return Source<kType>::unit(row + index / kUnitsPerBlock * kInfo.block_bytes,
                               index % kUnitsPerBlock);
  }
}

LR_INLINE void store_unit(float* out, const Unit& u) {
  for (size_t i = 0; i < kUnitVectors; ++i) V::store(out + i * V::kWidth, u.v[i]);
}

// out[i] = weight c + i of the row, for i < n; any cut.
template <DType kType>
void unpack_range(const uint8_t* row, size_t c, size_t n, float* out) {
  if constexpr (kIsScalar<kType>) {
    size_t i = 0;
    for (; i + V::kWidth <= n; i += V::kWidth) V::store(out + i, Source<kType>::vector(row, c + i));
    if (i < n) V::store_n(out + i, Source<kType>::vector_n(row, c + i, n - i), n - i);
  } else {
    float partial[kUnit];
    size_t i = 0;
    while (i < n) {
      const size_t skip = (c + i) % kUnit, left = n - i;
      const Unit u = unit_at<kType>(row, (c + i) / kUnit);
      if (skip == 0 && left >= kUnit) {
        store_unit(out + i, u);
        i += kUnit;
        continue;
      }
      const size_t take = kUnit - skip < left ? kUnit - skip : left;
      store_unit(partial, u);
      memcpy(out + i, partial + skip, take * sizeof(float));
      i += take;
    }
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

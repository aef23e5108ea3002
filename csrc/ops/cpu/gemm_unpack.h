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
#include "ops/cpu/unpack_codes.h"

namespace lowrank::LR_ISA {
namespace {

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
struct Source<DType::kInt8> {  // absmax f32 of the row, q i8[64]
  LR_INLINE Unit unit(const uint8_t* b, size_t sub) {
    const float d = float_at(b) * (1.0f / 127.0f);
    const uint8_t* q = b + 4 + 32 * sub;
    return scaled(load_bytes(q), load_bytes(q + 16), d, d);
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

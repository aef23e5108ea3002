#include "formats/scalars.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"

namespace lowrank {
namespace {

// E4M3 of Micikevicius et al. 2022, arXiv:2209.05433 ("fn"): bias 7, no infinities, only S.1111.111
// is NaN.
float e4m3_to_f32(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if (exponent == 15 && mantissa == 7) magnitude = std::numeric_limits<float>::quiet_NaN();
  return std::copysign(magnitude, bits & 0x80 ? -1.0f : 1.0f);
}

// E5M2 is the upper byte of fp16.
float e5m2_to_f32(uint8_t bits) { return f16_to_f32(static_cast<uint16_t>(bits << 8)); }

template <class Stored, class Convert>
void convert(const unsigned char* data, size_t count, float* out, Convert to_f32) {
  for (size_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, data + i * sizeof stored, sizeof stored);
    out[i] = to_f32(stored);
  }
}

}  // namespace

bool is_scalar_float(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kF64:
    case DType::kF8E4M3:
    case DType::kF8E5M2: return true;
    default: return false;
  }
}

void scalars_to_f32(DType type, const unsigned char* data, size_t count, float* out) {
  switch (type) {
    case DType::kF32: return convert<float>(data, count, out, [](float value) { return value; });
    case DType::kF16: return convert<uint16_t>(data, count, out, f16_to_f32);
    case DType::kBF16: return convert<uint16_t>(data, count, out, bf16_to_f32);
    case DType::kF64:
      return convert<double>(data, count, out,
                             [](double value) { return static_cast<float>(value); });
    case DType::kF8E4M3: return convert<uint8_t>(data, count, out, e4m3_to_f32);
    case DType::kF8E5M2: return convert<uint8_t>(data, count, out, e5m2_to_f32);
    default: return;
  }
}

}  // namespace lowrank

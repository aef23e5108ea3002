#include "ops/quantize_blockwise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/denormals.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

constexpr size_t kPlaces = 65536;  // from -1 to 1

// The code of the table's value that is nearest to each place.
std::vector<uint8_t> nearest_codes(const float* code) {
  std::vector<uint8_t> nearest(kPlaces);
  size_t at = 0;
  for (size_t i = 0; i < kPlaces; ++i) {
    const float value = -1.0f + 2.0f * static_cast<float>(i) / static_cast<float>(kPlaces - 1);
    while (at + 1 < kByteCodes && 0.5f * (code[at] + code[at + 1]) < value) ++at;
    nearest[i] = static_cast<uint8_t>(at);
  }
  return nearest;
}

size_t place_of(float value) {
  if (std::isnan(value)) return 0;
  return static_cast<size_t>((std::clamp(value, -1.0f, 1.0f) + 1.0f) * 0.5f * static_cast<float>(kPlaces - 1) + 0.5f);
}

float quantize_block(const float* x, size_t n, const uint8_t* nearest, uint8_t* out) {
  float absmax = 0;
  for (size_t i = 0; i < n; ++i) absmax = std::max(absmax, std::fabs(x[i]));  // which passes NaN over
  if (absmax == 0) {
    std::fill_n(out, n, uint8_t{0});
    return absmax;
  }
  const float inverse = 1.0f / absmax;
  for (size_t i = 0; i < n; ++i) out[i] = nearest[place_of(x[i] * inverse)];
  return absmax;
}

Status check_block(const char* op, size_t block) {
  if (block > 0) return {};
  return error(Code::kInvalidOption, "%s: the block size is 0", op);
}

}  // namespace

Status quantize_blockwise(Context& context, const float* x, size_t n, size_t block, const float* code, uint8_t* out, float* absmax) {
  LR_RETURN_IF_ERROR(check_block("quantize_blockwise", block));
  if (n == 0) return {};
  const std::vector<uint8_t> nearest = nearest_codes(code);
  for_row_chunks(context, ceil_div(n, block), block, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t i = begin; i < end; ++i) {
      const size_t first = i * block;
      absmax[i] = quantize_block(x + first, std::min(block, n - first), nearest.data(), out + first);
    }
  });
  return {};
}

Status dequantize_blockwise(Context& context, const uint8_t* codes, size_t n, size_t block, const float* code, const float* absmax,
                            float* out) {
  LR_RETURN_IF_ERROR(check_block("dequantize_blockwise", block));
  for_row_chunks(context, ceil_div(n, block), block, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t i = begin * block; i < std::min(n, end * block); ++i) out[i] = code[codes[i]] * absmax[i / block];
  });
  return {};
}

}  // namespace lowrank

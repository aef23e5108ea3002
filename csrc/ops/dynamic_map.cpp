#include "ops/dynamic_map.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace lowrank {
namespace {

constexpr float kDecades[] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};

// torch.linspace(0.1, 1, count): fp32, each half counted from its own end, with fused products.
float evenly_spaced(size_t index, size_t count) {
  constexpr float kFirst = 0.1f, kLast = 1.0f;
  const float step = (kLast - kFirst) / static_cast<float>(count - 1);
  return index < count / 2 ? std::fma(step, static_cast<float>(index), kFirst)
                           : std::fma(-step, static_cast<float>(count - 1 - index), kLast);
}

std::unique_ptr<const CodeMap> make_dynamic_code_map(bool is_signed) {
  float values[CodeMap::kCodes];
  dynamic_map(is_signed, values);
  auto map = std::make_unique<CodeMap>();
  make_code_map(values, map.get());
  return map;
}

}  // namespace

void dynamic_map(bool is_signed, float* values) {
  size_t count = 0;
  values[count++] = 0.0f;
  values[count++] = 1.0f;
  size_t intervals = is_signed ? 1 : 2;
  for (const float decade : kDecades) {
    for (size_t i = 0; i < intervals; ++i) {
      const float middle = (evenly_spaced(i, intervals + 1) + evenly_spaced(i + 1, intervals + 1)) / 2.0f;
      values[count++] = decade * middle;
      if (is_signed) values[count++] = -decade * middle;
    }
    intervals *= 2;
  }
  std::sort(values, values + count);
}

const CodeMap& dynamic_code_map(bool is_signed) {
  static const std::unique_ptr<const CodeMap> signed_map = make_dynamic_code_map(true), unsigned_map = make_dynamic_code_map(false);
  return is_signed ? *signed_map : *unsigned_map;
}

}  // namespace lowrank

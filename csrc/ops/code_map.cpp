#include "ops/code_map.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace lowrank {
namespace {

constexpr uint32_t kBins = 1u << 16;
constexpr uint32_t kSign = kBins >> 1;

double value_of(uint32_t bits) { return static_cast<double>(std::bit_cast<float>(bits)); }

// The smallest and the largest number whose upper bits are `bin`, each moved outwards by what rounding a quotient to fp32 may add.
struct Range {
  double low, high;
};
Range range_of(uint32_t bin) {
  constexpr double kRounding = 0x1p-23;
  const double near_zero = value_of(bin << 16), far = value_of(bin << 16 | 0xffff);
  if (bin < kSign) return {near_zero * (1 - kRounding), far * (1 + kRounding)};
  return {far * (1 + kRounding), near_zero * (1 - kRounding)};
}

// Node i of a level of `width` nodes, which begins at node `width`.
void lay_out_tree(CodeMap* map) {
  map->tree[0] = 0;
  for (size_t width = 1, step = CodeMap::kCodes; width < CodeMap::kCodes; width *= 2, step /= 2) {
    for (size_t i = 0; i < width; ++i) map->tree[width + i] = static_cast<float>(map->midpoints[i * step + step / 2 - 1]);
  }
}

}  // namespace

void make_code_map(const float values[CodeMap::kCodes], CodeMap* map) {
  for (size_t i = 0; i < CodeMap::kCodes; ++i) {
    map->values[i] = values[i];
    map->midpoints[i] = i + 1 < CodeMap::kCodes
                            ? (static_cast<double>(values[i]) + static_cast<double>(values[i + 1])) / 2
                            : std::numeric_limits<double>::infinity();
  }
  lay_out_tree(map);
  const double* const begin = map->midpoints;
  const double* const end = begin + CodeMap::kCodes - 1;
  const auto code_of = [&](double value) { return std::lower_bound(begin, end, value) - begin; };
  map->steps = 0;
  constexpr uint32_t kFirstNotFinite = 0x7f80;
  for (uint32_t bin = 0; bin < kBins; ++bin) {
    const bool finite = (bin & (kSign - 1)) < kFirstNotFinite;
    if (!finite) {
      map->first[bin] = static_cast<uint8_t>(code_of(0));
      continue;
    }
    const auto [low, high] = range_of(bin);
    map->first[bin] = static_cast<uint8_t>(code_of(low));
    map->steps = std::max(map->steps, static_cast<int>(code_of(high) - code_of(low)));
  }
}

}  // namespace lowrank

// A map of 256 codes to ascending values in [-1, 1], and the nearest code to a value.
//
// Finding it takes no search: the upper 16 bits of a float (sign, exponent, seven bits of mantissa) lead to the nearest code of the
// smallest number that has them, and from there `steps` comparisons with the midpoints to the next codes (one for bitsandbytes'
// dynamic maps, whose codes lie farther apart than such numbers) lead to the value's own. A comparison multiplies the midpoint, a
// double, by absmax: 26 bits by 24 make an exact product, so that the code is the nearest of the exact quotient; a tie goes to the
// smaller value.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace lowrank {

struct CodeMap {
  static constexpr size_t kCodes = 256;

  float values[kCodes];
  double midpoints[kCodes];  // [i]: between values[i] and values[i + 1]; the last is infinity
  uint8_t first[size_t{1} << 16];
  int steps;
  float tree[kCodes];  // the midpoints rounded to fp32, for a binary search: those after tree[i] (i from 1) are tree[2 i] and tree[2 i + 1]
};

// Fills `map` for ascending values; equal neighbours are allowed, the first of them is used.
void make_code_map(const float values[CodeMap::kCodes], CodeMap* map);

}  // namespace lowrank

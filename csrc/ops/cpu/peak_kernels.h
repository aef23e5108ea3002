// What the machine can do at one level, measured by loops that do nothing else: the floors that benchmarks compare with.
#pragma once

#include <stddef.h>

namespace lowrank {

struct PeakKernels {
  // Independent FMA chains in registers; returns the flop done (an FMA is two).
  double (*multiply_add)(size_t iterations);
  // The same with the level's instruction for products of bf16 (VDPBF16PS, TDPBF16PS); null where it has none.
  double (*multiply_add_bf16)(size_t iterations);
  // One pass over n floats, a multiple of 64: their sum; all set; one added to each.
  float (*read)(const float* data, size_t n);
  void (*write)(float* data, size_t n);
  void (*update)(float* data, size_t n);
};

}  // namespace lowrank

// What the machine can do at one level, measured by loops that do nothing else: the floors that benchmarks compare with.
#pragma once

#include <stddef.h>

namespace lowrank {

struct PeakKernels {
  // Independent FMA chains in registers; returns the flop done (an FMA is two).
  double (*multiply_add)(size_t iterations);
  // Reads n floats (a multiple of 64) once and returns their sum, so that nothing is left out.
  float (*read)(const float* data, size_t n);
};

}  // namespace lowrank

// Adafactor as Transformers' Trainer uses it: without momentum, learning rates as they are given (no relative step, no scaling by the
// parameter), β2 = 1 - step^-0.8, updates clipped to a root mean square of 1.                  Shazeer & Stern 2018, arXiv:1804.04235
//   matrices [rows, columns]:  R = β2·R + (1-β2)·mean over columns of (g² + 1e-30);  C likewise over rows
//                              u = g / sqrt(R / mean(R) · C)
//   vectors:                   V = β2·V + (1-β2)·(g² + 1e-30);  u = g / sqrt(V)
//   p -= lr·wd·p + lr · u / max(1, rms(u))
// Means and sums are in double, in one order; a parameter is updated by one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/stored_floats.h"

namespace lowrank {

struct AdafactorConfig {
  double lr, weight_decay;
  uint64_t step;     // 1 for the first update
  float grad_scale;  // multiplies g first: clipping
};

// g, p [rows, columns]; row_squares R [rows], column_squares C [columns].
void adafactor_update_matrix(const AdafactorConfig&, size_t rows, size_t columns, const StoredFloats& g, const StoredFloats& p, float* row_squares,
                             float* column_squares);
// g, p, squares V [n].
void adafactor_update_vector(const AdafactorConfig&, size_t n, const StoredFloats& g, const StoredFloats& p, float* squares);

}  // namespace lowrank

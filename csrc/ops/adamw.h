// AdamW with decoupled weight decay and bias correction, and the global gradient norm.
//                                                       Loshchilov & Hutter 2017, arXiv:1711.05101
//   m = β1·m + (1-β1)·g;  v = β2·v + (1-β2)·g²;  p -= lr · (m̂ / (√v̂ + eps) + wd·p),  as torch.optim.AdamW orders it
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "core/dtype.h"
#include "ops/cpu/optimizer_kernels.h"

namespace lowrank {

struct AdamWConfig {
  double lr, beta1, beta2, eps, weight_decay;   // double: 1 - 0.999f is off by 1e-5
  uint64_t step;        // 1 for the first update
  float grad_scale;     // multiplies g first: clipping
};

// What the kernels of an update multiply by; step is at least 1.
AdamWFactors adamw_factors(const AdamWConfig&);

// All [n] fp32.
Status adamw_update(Context&, const AdamWConfig&, size_t n, const float* g, float* p, float* m, float* v);

// A gradient: n elements, fp32 or bf16.
struct GradientSpan {
  const void* data;
  size_t n;
  DType type;

  GradientSpan(const void* data, size_t n, DType type) : data(data), n(n), type(type) {}
  GradientSpan(std::span<const float> floats)  // NOLINT(google-explicit-constructor)
      : GradientSpan(floats.data(), floats.size(), DType::kF32) {}
};

// Σ g² over all of them, in double over fixed blocks in order.
Status grad_norm_squared(Context&, std::span<const GradientSpan> gradients, double* sum);

}  // namespace lowrank

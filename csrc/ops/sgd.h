// Stochastic gradient descent with momentum, as torch.optim.SGD does it without dampening: weight decay is added to the gradient.
//   g += wd·p;  m = μ·m + g;  p -= lr·m
#pragma once

#include "ops/cpu/optimizer_kernels.h"

namespace lowrank {

inline SgdFactors sgd_factors(double lr, double momentum, double weight_decay, float grad_scale) {
  return {
      .grad_scale = grad_scale,
      .weight_decay = static_cast<float>(weight_decay),
      .momentum = static_cast<float>(momentum),
      .lr = static_cast<float>(lr),
  };
}

}  // namespace lowrank

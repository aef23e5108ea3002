// Lion with decoupled weight decay.                                                       Chen et al. 2023, arXiv:2302.06675
//   p = p · (1 - lr·wd) - lr · sign(β1·m + (1-β1)·g);  m = β2·m + (1-β2)·g,  as bitsandbytes orders it
// sign(0) is 0: a parameter whose gradient has always been zero does not move.
#pragma once

#include "ops/cpu/optimizer_kernels.h"

namespace lowrank {

struct LionConfig {
  double lr, beta1, beta2, weight_decay;
  float grad_scale;  // multiplies g first: clipping
};

inline LionFactors lion_factors(const LionConfig& config) {
  return {
      .grad_scale = config.grad_scale,
      .decay = static_cast<float>(1.0 - config.lr * config.weight_decay),
      .one_minus_beta1 = static_cast<float>(1.0 - config.beta1),
      .one_minus_beta2 = static_cast<float>(1.0 - config.beta2),
      .lr = static_cast<float>(config.lr),
  };
}

}  // namespace lowrank

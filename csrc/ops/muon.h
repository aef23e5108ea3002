// Muon: momentum whose singular values are all pushed towards 1 by Newton-Schulz's iteration before it moves a matrix. Jordan et al. 2024,
// kellerjordan.github.io/posts/muon; as torch.optim.Muon orders it, with Nesterov's momentum:
//   M = μ·M + (1-μ)·g;   X = μ·M + (1-μ)·g;   X /= max(‖X‖, 1e-7)
//   five times:  A = X·Xᵀ;   X = a·X + (b·A + c·A²)·X           a, b, c = 3.4445, -4.775, 2.0315
//   p = (1 - lr·wd)·p - lr·ratio·X
// What comes of it lies between 0.7 and 1.2 times U·Vᵀ of X's singular value decomposition. A tall X is multiplied from the right, which is the
// same on its transpose. Products have the operands that the context computes with, fp32 or bf16; what lies between them is fp32.
#pragma once

#include <cstddef>

#include "core/buffer.h"
#include "core/context.h"
#include "ops/stored_floats.h"

namespace lowrank {

// What the learning rate is multiplied by for a matrix [rows, columns]; torch's adjust_lr_fn.
enum class MuonRatio {
  kOriginal,           // sqrt(max(1, rows / columns))
  kMatchRmsAdamW,      // 0.2 · sqrt(max(rows, columns)): steps as large as AdamW's          Liu et al. 2025, arXiv:2502.16982
  kSpectralUnclamped,  // sqrt(rows / columns)
};

struct MuonConfig {
  double lr, weight_decay, momentum;
  MuonRatio ratio;
  float grad_scale;  // multiplies g first: clipping
};

// Memory that an update works in, for matrices of up to so many elements and so many rows or columns, whichever are fewer.
class MuonScratch {
 public:
  Status reserve(size_t elements, size_t side);
  static size_t bytes(size_t elements, size_t side);

  Buffer x, product;           // [rows, columns]
  Buffer gram, polynomial;     // [side, side]
};

// g, p, momentum M: [rows, columns]; not empty.
Status muon_update(Context&, const MuonConfig&, size_t rows, size_t columns, const StoredFloats& g, const StoredFloats& p, float* momentum,
                   MuonScratch*);

}  // namespace lowrank

// The language-model head, softmax cross-entropy and the gradient of its input in one pass over the vocabulary: attention with
// K = V = W, online softmax over blocks of vocabulary rows. No [n, V] logits exist, at most a block of them.
//   nll[i] = logsumexp_v(h[i]·w[v]) - h[i]·w[target[i]]
//   dh[i]  = grad_scale · (Σ_v softmax_v · w[v] - w[target[i]])
// With a trained head (grad_w set) a second pass over vocabulary blocks recomputes their logits:
//   dw[v] += grad_scale · Σ_i (softmax_v[i] - [v = target[i]]) · h[i]
// Rows are the supervised ones only: the caller drops rows labelled -100.   cf. Wijmans et al. 2024, arXiv:2411.09009
#pragma once

#include <cstdint>

#include "core/context.h"
#include "ops/matrix.h"
#include "ops/rows.h"

namespace lowrank {

struct HeadLoss {
  double nll_sum = 0;   // in row order
  size_t correct = 0;   // rows whose largest logit (the first of equals) is the target
};

// h: [n, C], fp32 or (where the context computes in bf16) bf16; w: [V, C]; targets: [n] in [0, V), else kShapeMismatch. dh (null: loss only): [n, C], written (=).
// grad_w (null data: frozen): [V, C], fp32 or bf16, accumulated.
Status linear_cross_entropy(Context&, ConstRows h, const Matrix& w, const int32_t* targets, size_t n, float grad_scale,
                            float* dh, Rows grad_w, HeadLoss* loss);

// Bytes of memory that the call takes beside its arguments: the packed vocabulary rows and what each worker has of the logits.
size_t linear_cross_entropy_memory(Context&, const Matrix& w, size_t n, bool with_dh, bool with_grad_w);

}  // namespace lowrank

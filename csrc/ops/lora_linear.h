// Linear projections of one input with their LoRA attachments, fused:      Hu et al. 2021, arXiv:2106.09685
//   y_p = x·W_pᵀ + bias_p + Σ_l scale_l · drop_l(x)·A_lᵀ·B_lᵀ      run as  [x | s]·[W | B]ᵀ,  s = scale · drop(x)·Aᵀ
//   dx  = Σ_p dy_p·W_p + drop'(ds·A),  ds = scale · dy·B           run as  [dy | ds]·[W ; A]
//   dA += dsᵀ·drop(x),  dB += dyᵀ·s,  dbias += Σ_t dy,  dW += dyᵀ·x        (each only where its gradient pointer is set)
// Without dropout all A of the group are read in one pass over x. Gradients are accumulated (+=).
// Where the context computes in bf16, x, y, dy and dx may be bf16; s, biases, LoRA's weights and all gradients of weights are fp32, but for dW, which may be bf16.
// Dropout: element (t, c) of module `module` is kept where philox(seed, module, t * in + c) says so; see dropout.h.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "ops/matrix.h"
#include "ops/rows.h"

namespace lowrank {

struct LoraAttachment {
  const float* a;      // [r, in]
  const float* b;      // [out, r]
  size_t r;
  float scale;         // alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)
  float dropout = 0;   // probability of dropping an input element; 0 outside training
  uint64_t module = 0; // Philox stream of its mask
  float* grad_a = nullptr;   // [r, in]; null: frozen
  float* grad_b = nullptr;   // [out, r]
};

struct Projection {
  Matrix weight;             // [out, in]
  const float* bias = nullptr;
  std::span<const LoraAttachment> loras;
  Rows grad_weight = {};     // [out, in], fp32 or bf16; null data: frozen
  float* grad_bias = nullptr;
};

// s holds [T, Σ r] over all attachments of the group, in order; the backward reads it.
size_t lora_rank_sum(std::span<const Projection> group);

// Bytes that the ops below keep in the pool between their products, for the groups that were added.
struct LoraMemory {
  size_t stacked = 0, dropped = 0, ds = 0;

  void add(std::span<const Projection> group, size_t in, size_t tokens);
  size_t total() const;
};

struct LinearArgs {
  size_t tokens, in;
  ConstRows x;               // [T, in]
  std::span<const Projection> group;
  float* s;                  // [T, lora_rank_sum(group)]
  uint64_t seed = 0;         // of this step's dropout masks
};

// s alone: what a recompute needs where the backward will not read y.
Status lora_inner_forward(Context&, const LinearArgs&);

// y: [T, out] of each projection. `add` (none, or one for each projection): fp32 rows to which the result is added, as
// a residual is; they may be an fp32 y itself.
Status lora_linear_forward(Context&, const LinearArgs&, std::span<const Rows> y, std::span<const ConstRows> add = {});

// dx (its data may be null where nothing below is trained): [T, in]; = or, in fp32, += by accumulate_dx.
Status lora_linear_backward(Context&, const LinearArgs&, std::span<const ConstRows> dy, Rows dx, bool accumulate_dx);

}  // namespace lowrank

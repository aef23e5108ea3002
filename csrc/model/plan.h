// What a forward (and backward) of a model computes with right now, resolved to pointers: base values or overrides, the
// active adapters' LoRA, and where each gradient goes. Made once, remade when the model's revision moves.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "model/model.h"
#include "ops/lora_linear.h"

namespace lowrank {

// Projections of one input, run together.
struct GroupPlan {
  GroupPlan() = default;
  GroupPlan(GroupPlan&&) = default;                // moving keeps the inner vectors' memory, which the spans point into
  GroupPlan& operator=(GroupPlan&&) = default;

  size_t in = 0;
  std::vector<Projection> projections;
  std::vector<std::vector<LoraAttachment>> loras;  // of each projection; the spans in `projections` point here
  size_t rank_sum = 0;
  bool trained = false;                            // some gradient is wanted
};

struct LayerPlan {
  const float* input_norm = nullptr;
  const float* post_norm = nullptr;
  float* grad_input_norm = nullptr;
  float* grad_post_norm = nullptr;
  GroupPlan qkv, output, gate_up, down;
  size_t window = 0;
};

// Most bytes of an embedding that is looked up in its file that stay in memory: a page that is read brings up to 2 MiB with it.
constexpr size_t kLookUpRows = 16, kLookUpBytes = kLookUpRows * (size_t{2} << 20);

struct ModelPlan {
  std::vector<LayerPlan> layers;
  Matrix embedding, head;
  ReleasePages release_embedding;   // of a table in a file that is looked up and nothing else, and larger than kLookUpBytes
  const float* norm = nullptr;
  Rows grad_embedding, grad_head;  // null data: frozen; with a tied head, the same
  float* grad_norm = nullptr;
  size_t max_rank_sum = 0;
  // The backward stops below this layer: nothing there is trained. layers.size(): only head or final norm.
  size_t lowest_trained_layer = 0;
  uint64_t revision = 0;
};

// Where the gradient of a parameter goes, in the parameter's type; null: frozen.
using GradientOf = std::function<void*(const Parameter&)>;

// `training` switches dropout on.
ModelPlan make_plan(const Model&, bool training, const GradientOf& gradient_of);

}  // namespace lowrank

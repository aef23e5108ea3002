#include "model/plan.h"

#include <algorithm>

namespace lowrank {
namespace {

struct Planner {
  const Model& model;
  bool training;
  const GradientOf& gradient_of;

  // Adapters' matrices and all vectors are fp32.
  float* floats_of(const Parameter& parameter) const { return static_cast<float*>(gradient_of(parameter)); }

  float* vector_gradient(size_t slot) const {
    if (slot == Model::kNone) return nullptr;
    const Parameter* const parameter = model.parameter_of(slot);
    return parameter != nullptr ? floats_of(*parameter) : nullptr;
  }

  Rows matrix_gradient(size_t slot) const {
    const Parameter* const parameter = model.parameter_of(slot);
    return parameter != nullptr ? Rows{gradient_of(*parameter), parameter->shape[1], parameter->type} : Rows{};
  }

  const float* vector(size_t slot) const {
    return slot == Model::kNone ? nullptr : static_cast<const float*>(model.value(slot).data);
  }

  GroupPlan group(size_t layer, std::span<const Linear> linears) const {
    GroupPlan plan;
    plan.in = linear_shape(model.config(), linears[0]).in;
    for (Linear linear : linears) {
      std::vector<LoraAttachment> attachments;
      size_t active = 0;
      for (const auto& adapter : model.adapters()) {
        if (!adapter->active) continue;
        // The mask's stream names the module and the adapter's place, so that a resumed run draws the same.
        const uint64_t stream = uint64_t{active++} << 32 | (layer * kLinears + linear);
        for (const LoraModule& lora : adapter->loras) {
          if (lora.layer != layer || lora.linear != linear) continue;
          LoraAttachment attachment{lora.a.data(), lora.b.data(), lora.r, lora.scale};
          attachment.dropout = training ? lora.dropout : 0.0f;
          attachment.module = stream;
          attachment.grad_a = floats_of(lora.a);
          attachment.grad_b = floats_of(lora.b);
          plan.trained |= attachment.grad_a != nullptr || attachment.grad_b != nullptr;
          plan.rank_sum += lora.r;
          attachments.push_back(attachment);
        }
      }
      Projection projection;
      projection.weight = model.value(model.weight_slot(layer, linear));
      projection.bias = vector(model.bias_slot(layer, linear));
      projection.grad_weight = matrix_gradient(model.weight_slot(layer, linear));
      projection.grad_bias = vector_gradient(model.bias_slot(layer, linear));
      plan.trained |= projection.grad_weight.data != nullptr || projection.grad_bias != nullptr;
      plan.projections.push_back(projection);
      plan.loras.push_back(std::move(attachments));
    }
    // The heap blocks of the inner vectors stay put when the plan is moved.
    for (size_t i = 0; i < linears.size(); ++i) plan.projections[i].loras = plan.loras[i];
    return plan;
  }

  LayerPlan layer(size_t index) const {
    static constexpr Linear kQkv[] = {kQuery, kKey, kValue}, kOut[] = {kOutput}, kGateUp[] = {kGate, kUp}, kDownOnly[] = {kDown};
    LayerPlan plan;
    plan.input_norm = vector(model.input_norm_slot(index));
    plan.post_norm = vector(model.post_norm_slot(index));
    plan.grad_input_norm = vector_gradient(model.input_norm_slot(index));
    plan.grad_post_norm = vector_gradient(model.post_norm_slot(index));
    plan.qkv = group(index, kQkv);
    plan.output = group(index, kOut);
    plan.gate_up = group(index, kGateUp);
    plan.down = group(index, kDownOnly);
    plan.window = model.config().windows[index];
    return plan;
  }
};

bool trained(const LayerPlan& layer) {
  return layer.grad_input_norm != nullptr || layer.grad_post_norm != nullptr || layer.qkv.trained ||
         layer.output.trained || layer.gate_up.trained || layer.down.trained;
}

}  // namespace

ModelPlan make_plan(const Model& model, bool training, const GradientOf& gradient_of) {
  const Planner planner{model, training, gradient_of};
  ModelPlan plan;
  plan.embedding = model.value(model.embedding_slot());
  plan.head = model.value(model.head_slot());
  const Slot& table = model.slots()[model.embedding_slot()];
  const bool is_head = model.config().tied_head && model.active_override(model.head_slot()) == nullptr;
  const bool is_large = table.value.rows * table.value.stride > kLookUpBytes;
  if (!is_head && is_large && model.active_override(model.embedding_slot()) == nullptr) plan.release_embedding = table.release;
  plan.norm = planner.vector(model.norm_slot());
  plan.grad_embedding = planner.matrix_gradient(model.embedding_slot());
  plan.grad_norm = planner.vector_gradient(model.norm_slot());
  plan.grad_head = planner.matrix_gradient(model.head_slot());
  for (size_t layer = 0; layer < model.config().layers; ++layer) {
    plan.layers.push_back(planner.layer(layer));
    const LayerPlan& made = plan.layers.back();
    for (const GroupPlan* group : {&made.qkv, &made.output, &made.gate_up, &made.down}) {
      plan.max_rank_sum = std::max(plan.max_rank_sum, group->rank_sum);
    }
  }
  while (plan.grad_embedding.data == nullptr && plan.lowest_trained_layer < plan.layers.size() &&
         !trained(plan.layers[plan.lowest_trained_layer])) {
    ++plan.lowest_trained_layer;
  }
  plan.revision = model.revision();
  return plan;
}

}  // namespace lowrank

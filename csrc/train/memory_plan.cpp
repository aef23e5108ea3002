#include "train/memory_plan.h"

#include <algorithm>

#include "model/generator.h"
#include "ops/cpu/kernels.h"
#include "ops/gemm.h"
#include "ops/linear_cross_entropy.h"

namespace lowrank {
namespace {

// `is_generating`: one token at a time is looked up, and the embedding's pages stay.
void add_model(const Model& model, const ModelPlan& plan, bool is_generating, MemoryComponents* components) {
  size_t& weights = (*components)["weights"];
  for (const Slot& slot : model.slots()) {
    const size_t bytes = slot.value.rows * slot.value.stride;
    const bool is_looked_up = &slot == &model.slots()[model.embedding_slot()] && plan.release_embedding && !is_generating;
    weights += is_looked_up ? kLookUpBytes : slot.release ? bytes : Buffer::held(bytes);
  }
  size_t& adapters = (*components)["adapters"];
  for (const Parameter* parameter : model.adapter_parameters()) adapters += Buffer::held(parameter->elements() * parameter->element_bytes());
}

Context computing(Context& context, const Model& model) { return {context.pool, context.kernels, model.compute()}; }

// The workspace, and what ops take of the pool beside it.
void add_forward(Context& context, const Model& model, const ModelPlan& plan, const Retention& keep, DType type, size_t tokens,
                 MemoryComponents* components) {
  for (const auto& [name, bytes] : Workspace::estimate(model.config(), plan, keep, type, tokens)) (*components)[name] += bytes;
  LoraMemory lora;
  for (const LayerPlan& layer : plan.layers) {
    for (const GroupPlan* group : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) lora.add(group->projections, group->in, tokens);
  }
  (*components)["workspace"] += lora.total() + context.pool.threads() * kGemmScratch;
}

}  // namespace

MemoryComponents plan_training(Context& context, const Model& model, const SessionOptions& options) {
  MemoryComponents components;
  // With every trained parameter given some gradient the plan has the shape of the real one.
  float placeholder = 0;
  const ModelPlan plan = make_plan(model, true, [&](const Parameter& p) -> void* { return p.trainable ? &placeholder : nullptr; });
  add_model(model, plan, false, &components);
  components["gradients"] = Buffer::held(Session::gradient_bytes(model));
  const std::vector<Parameter*> trained = model.trained();
  components["optimizer"] = Optimizer::estimate(options.optimizer, std::vector<const Parameter*>(trained.begin(), trained.end()));
  if (options.max_tokens == 0) return components;
  Context on = computing(context, model);
  add_forward(on, model, plan, options.keep, activation_type(on), options.max_tokens, &components);
  components["head"] = linear_cross_entropy_memory(on, plan.head, options.max_tokens, true, plan.grad_head.data != nullptr);
  return components;
}

MemoryComponents plan_evaluation(Context& context, const Model& model, size_t tokens) {
  MemoryComponents components;
  const ModelPlan plan = make_plan(model, false, [](const Parameter&) -> void* { return nullptr; });
  add_model(model, plan, false, &components);
  Context on = computing(context, model);
  add_forward(on, model, plan, keep_nothing(), activation_type(on), tokens, &components);
  components["head"] = linear_cross_entropy_memory(on, plan.head, tokens, false, false);
  return components;
}

MemoryComponents plan_generation(Context& context, const Model& model, const GenerationShape& shape) {
  MemoryComponents components;
  const ModelPlan plan = make_plan(model, false, [](const Parameter&) -> void* { return nullptr; });
  add_model(model, plan, true, &components);
  Context on = computing(context, model);
  add_forward(on, model, plan, keep_nothing(), DType::kF32, shape.tokens, &components);
  components["head"] = Buffer::held(shape.rows * model.config().vocab * sizeof(float));
  components["cache"] = Buffer::held(KvCache::bytes(model.config(), shape.rows, shape.capacity));
  return components;
}

}  // namespace lowrank

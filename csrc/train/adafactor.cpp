#include "train/adafactor.h"

#include <cstring>

#include "core/op_profile.h"
#include "ops/adafactor.h"

namespace lowrank {

size_t Adafactor::state_bytes(const Parameter& parameter) {
  const std::vector<size_t>& shape = parameter.shape;
  return sizeof(float) * (shape.size() == 1 ? shape[0] : shape[0] + shape[1]);
}

Status Adafactor::initialize(std::span<const Trained> trained) {
  trained_.assign(trained.begin(), trained.end());
  size_t bytes = 0;
  for (const Trained& one : trained_) bytes += state_bytes(*one.parameter);
  LR_RETURN_IF_ERROR(memory_.allocate(bytes, "optimizer state"));
  size_t offset = 0;
  for (const Trained& one : trained_) {
    values_.push_back(memory_.as<float>() + offset / sizeof(float));
    offset += state_bytes(*one.parameter);
  }
  return {};
}

std::vector<StateTensor> Adafactor::states(size_t parameter) const {
  const std::vector<size_t>& shape = trained_[parameter].parameter->shape;
  if (shape.size() == 1) return {{"v", DType::kF32, shape}};
  return {{"v_row", DType::kF32, {shape[0]}}, {"v_col", DType::kF32, {shape[1]}}};
}

float* Adafactor::state(size_t parameter, size_t state) const {
  return values_[parameter] + (state == 0 ? 0 : trained_[parameter].parameter->shape[0]);
}

void Adafactor::read_state(size_t parameter, size_t index, void* to) const {
  std::memcpy(to, state(parameter, index), states(parameter)[index].bytes());
}

void Adafactor::write_state(size_t parameter, size_t index, const void* from) {
  std::memcpy(state(parameter, index), from, states(parameter)[index].bytes());
}

Status Adafactor::update(Context& context, const UpdateOptions& options, double grad_scale, uint64_t step, uint64_t seed) {
  const OpTimer timer(context, OpKind::kOptimizer);
  context.pool.parallel(trained_.size(), [&](size_t index, size_t) {
    const Trained& one = trained_[index];
    const AdafactorConfig config{options.learning_rate, one.decay ? options.weight_decay : 0.0, step, static_cast<float>(grad_scale)};
    const std::vector<size_t>& shape = one.parameter->shape;
    const StoredFloats gradient(context.kernels, one.type, one.gradient);
    const StoredFloats values(context.kernels, one.type, one.parameter->value.as<>(), seed, index);
    if (shape.size() == 1) {
      adafactor_update_vector(config, shape[0], gradient, values, state(index, 0));
    } else {
      adafactor_update_matrix(config, shape[0], shape[1], gradient, values, state(index, 0), state(index, 1));
    }
  });
  return {};
}

}  // namespace lowrank

#include "train/muon.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "train/elementwise_optimizers.h"

namespace lowrank {
namespace {

constexpr size_t kAlignment = 64;

size_t momentum_bytes(const Parameter& parameter) { return round_up(parameter.elements() * sizeof(float), kAlignment); }

// The largest matrix, and the largest of the shorter sides.
struct Extent {
  size_t elements = 0, side = 0;

  void take(const Parameter& parameter) {
    elements = std::max(elements, parameter.elements());
    side = std::max(side, std::min(parameter.shape[0], parameter.shape[1]));
  }
};

}  // namespace

size_t Muon::bytes(std::span<const Parameter* const> parameters) {
  size_t bytes = 0;
  Extent extent;
  for (const Parameter* parameter : parameters) {
    if (parameter->hidden) {
      bytes += momentum_bytes(*parameter);
      extent.take(*parameter);
    } else {
      bytes += SegmentedOptimizer::state_bytes(adamw_states(), false, parameter->elements());
    }
  }
  return bytes + MuonScratch::bytes(extent.elements, extent.side);
}

Status Muon::initialize(const OptimizerOptions& options, std::span<const Trained> trained) {
  ratio_ = options.muon_ratio;
  trained_.assign(trained.begin(), trained.end());
  std::vector<Trained> others;
  size_t bytes = 0;
  Extent extent;
  for (const Trained& one : trained_) {
    if (!one.parameter->hidden) continue;
    bytes += momentum_bytes(*one.parameter);
    extent.take(*one.parameter);
  }
  LR_RETURN_IF_ERROR(momentum_.allocate(bytes, "optimizer state"));
  LR_RETURN_IF_ERROR(scratch_.reserve(extent.elements, extent.side));
  size_t offset = 0;
  for (const Trained& one : trained_) {
    if (one.parameter->hidden) {
      places_.push_back({momentum_.as<float>() + offset / sizeof(float), 0});
      offset += momentum_bytes(*one.parameter);
    } else {
      places_.push_back({nullptr, others.size()});
      others.push_back(one);
    }
  }
  adamw_ = make_adamw();
  return adamw_->initialize(options, others);
}

std::vector<StateTensor> Muon::states(size_t parameter) const {
  const Place& place = places_[parameter];
  if (place.momentum == nullptr) return adamw_->states(place.other);
  return {{"momentum", DType::kF32, trained_[parameter].parameter->shape}};
}

void Muon::read_state(size_t parameter, size_t state, void* to) const {
  const Place& place = places_[parameter];
  if (place.momentum == nullptr) return adamw_->read_state(place.other, state, to);
  std::memcpy(to, place.momentum, trained_[parameter].parameter->elements() * sizeof(float));
}

void Muon::write_state(size_t parameter, size_t state, const void* from) {
  const Place& place = places_[parameter];
  if (place.momentum == nullptr) return adamw_->write_state(place.other, state, from);
  std::memcpy(place.momentum, from, trained_[parameter].parameter->elements() * sizeof(float));
}

Status Muon::update(Context& context, const UpdateOptions& options, double grad_scale, uint64_t step, uint64_t seed) {
  LR_RETURN_IF_ERROR(adamw_->update(context, options, grad_scale, step, seed));
  for (size_t index = 0; index < trained_.size(); ++index) {
    if (places_[index].momentum == nullptr) continue;
    const Trained& one = trained_[index];
    const MuonConfig config{options.learning_rate, one.decay ? options.weight_decay : 0.0, options.momentum, ratio_,
                            static_cast<float>(grad_scale)};
    const uint64_t stream = trained_.size() + index;  // AdamW's draws have the lower ones
    const StoredFloats gradient(context.kernels, one.type, one.gradient);
    const StoredFloats values(context.kernels, one.type, one.parameter->value.as<>(), seed, stream);
    LR_RETURN_IF_ERROR(muon_update(context, config, one.parameter->shape[0], one.parameter->shape[1], gradient, values,
                                   places_[index].momentum, &scratch_));
  }
  return {};
}

}  // namespace lowrank

#include "train/optimizer.h"

#include <algorithm>

#include "train/adafactor.h"
#include "train/elementwise_optimizers.h"
#include "train/muon.h"

namespace lowrank {
namespace {

std::span<const ElementState> element_states(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdamW: return adamw_states();
    case OptimizerKind::kLion: return lion_states();
    case OptimizerKind::kSgd: return sgd_states();
    case OptimizerKind::kAdafactor:
    case OptimizerKind::kMuon: break;
  }
  return {};
}

std::unique_ptr<SegmentedOptimizer> make_segmented(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdamW: return make_adamw();
    case OptimizerKind::kLion: return make_lion();
    case OptimizerKind::kSgd: return make_sgd();
    case OptimizerKind::kAdafactor:
    case OptimizerKind::kMuon: break;
  }
  return nullptr;
}

Status check(const OptimizerOptions& options) {
  const bool has_codes = options.kind == OptimizerKind::kAdamW || options.kind == OptimizerKind::kLion;
  if (options.coded && !has_codes) return error(Code::kInvalidOption, "only AdamW and Lion have states of 8 bits");
  if (options.window < kSmallestWindow) {
    return error(Code::kInvalidOption, "the optimizer's window is %zu bytes; expected at least %zu", options.window, kSmallestWindow);
  }
  return {};
}

}  // namespace

size_t StateTensor::bytes() const {
  size_t elements = 1;
  for (size_t size : shape) elements *= size;
  return elements * (type == DType::kU8 ? 1 : sizeof(float));
}

Result<std::unique_ptr<Optimizer>> Optimizer::create(const OptimizerOptions& options, std::span<const Trained> trained) {
  LR_RETURN_IF_ERROR(check(options));
  if (options.kind == OptimizerKind::kAdafactor) {
    auto adafactor = std::make_unique<Adafactor>();
    LR_RETURN_IF_ERROR(adafactor->initialize(trained));
    return std::unique_ptr<Optimizer>(std::move(adafactor));
  }
  if (options.kind == OptimizerKind::kMuon) {
    auto muon = std::make_unique<Muon>();
    LR_RETURN_IF_ERROR(muon->initialize(options, trained));
    return std::unique_ptr<Optimizer>(std::move(muon));
  }
  std::unique_ptr<SegmentedOptimizer> optimizer = make_segmented(options.kind);
  LR_RETURN_IF_ERROR(optimizer->initialize(options, trained));
  return std::unique_ptr<Optimizer>(std::move(optimizer));
}

size_t Optimizer::estimate(const OptimizerOptions& options, std::span<const Parameter* const> parameters) {
  if (options.kind == OptimizerKind::kMuon) return Muon::bytes(parameters);
  size_t bytes = 0;
  for (const Parameter* parameter : parameters) {
    bytes += options.kind == OptimizerKind::kAdafactor
                 ? Adafactor::state_bytes(*parameter)
                 : SegmentedOptimizer::state_bytes(element_states(options.kind), options.coded, parameter->elements());
  }
  return std::min(bytes, options.window);
}

}  // namespace lowrank

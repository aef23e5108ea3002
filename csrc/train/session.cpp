#include "train/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/philox.h"
#include "ops/cpu/kernels.h"
#include "ops/adamw.h"  // grad_norm_squared

namespace lowrank {
namespace {

constexpr size_t kAlignment = 128;
constexpr double kClipEpsilon = 1e-6;  // as torch.nn.utils.clip_grad_norm_

size_t padded_gradient_bytes(const Parameter& parameter) {
  return round_up(parameter.elements() * parameter.element_bytes(), kAlignment);
}

// One key per micro-batch, so that no two draw the same dropout masks; and one for the rounding of a step.
constexpr uint64_t kRounding = UINT64_MAX;
uint64_t micro_batch_key(uint64_t seed, uint64_t step, uint64_t micro) {
  const auto words = philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), static_cast<uint32_t>(micro),
                                 static_cast<uint32_t>(micro >> 32)}, seed);
  return uint64_t{words[1]} << 32 | words[0];
}

}  // namespace

Session::Session(Context& context, std::shared_ptr<Model> model, SessionOptions options)
    : context_{context.pool, context.kernels, model->compute(), context.profile},
      model_(std::move(model)),
      options_(std::move(options)),
      decoder_(context_, model_->config()) {}

Result<std::shared_ptr<Session>> Session::create(Context& context, std::shared_ptr<Model> model, SessionOptions options) {
  LR_RETURN_IF_ERROR(model->ready());
  const std::vector<Parameter*> trained = model->trained();
  if (trained.empty()) return error(Code::kInvalidOption, "nothing is trainable, neither in an active adapter nor of the model itself");
  std::shared_ptr<Session> session(new Session(context, model, std::move(options)));
  Session& s = *session;

  LR_RETURN_IF_ERROR(s.gradients_.allocate(gradient_bytes(*model), "gradients"));
  size_t offset = 0;
  for (const Parameter* parameter : trained) {
    const auto& no_decay = s.options_.no_decay;
    const bool decay = std::find(no_decay.begin(), no_decay.end(), parameter->name) == no_decay.end();
    s.trained_.push_back({parameter, parameter->type, s.gradients_.as<unsigned char>() + offset, decay});
    offset += padded_gradient_bytes(*parameter);
    s.gradient_by_id_.resize(std::max(s.gradient_by_id_.size(), parameter->id + 1));
    s.gradient_by_id_[parameter->id] = s.trained_.back().gradient;
  }
  Result<std::unique_ptr<Optimizer>> optimizer = Optimizer::create(s.options_.optimizer, s.trained_);
  LR_RETURN_IF_ERROR(optimizer.status());
  s.optimizer_ = std::move(optimizer.value());
  s.name_states();
  return session;
}

size_t Session::gradient_bytes(const Model& model) {
  size_t bytes = 0;
  for (const Parameter* parameter : model.trained()) bytes += padded_gradient_bytes(*parameter);
  return bytes;
}

void Session::name_states() {
  for (size_t parameter = 0; parameter < trained_.size(); ++parameter) {
    const std::vector<StateTensor> tensors = optimizer_->states(parameter);
    for (size_t state = 0; state < tensors.size(); ++state) {
      optimizer_states_.push_back({tensors[state].name + ("." + trained_[parameter].parameter->name), parameter, state, tensors[state]});
    }
  }
}

void* Session::gradient_of(const Parameter& parameter) const {
  return parameter.id < gradient_by_id_.size() ? gradient_by_id_[parameter.id] : nullptr;
}

Status Session::check_trained() const {
  const std::vector<Parameter*> trained = model_->trained();
  const bool same = trained.size() == trained_.size() &&
                    std::equal(trained.begin(), trained.end(), trained_.begin(),
                               [](const Parameter* now, const Trained& then) { return now == then.parameter && now->type == then.type; });
  return same ? Status() : error(Code::kInvalidOption, "the model's trainable parameters changed since this session was made");
}

Status Session::accumulate(const Batch& batch, std::span<const int32_t> targets, float grad_scale, uint64_t seed, uint64_t step,
                           uint64_t micro, Loss* loss) {
  LR_RETURN_IF_ERROR(check_batch(model_->config(), batch));
  if (plan_.revision != model_->revision()) {
    LR_RETURN_IF_ERROR(check_trained());
    plan_ = make_plan(*model_, true, [this](const Parameter& p) { return gradient_of(p); });
  }
  const uint64_t key = micro_batch_key(seed, step, micro);
  LR_RETURN_IF_ERROR(workspace_.prepare(model_->config(), plan_, options_.keep, activation_type(context_), std::max(options_.max_tokens, batch.ids.size())));
  LR_RETURN_IF_ERROR(decoder_.forward(plan_, batch, options_.keep, key, &workspace_));
  return decoder_.loss(plan_, batch, targets, grad_scale, key, &workspace_, loss);
}

Status Session::evaluate(const Batch& batch, std::span<const int32_t> targets, Loss* loss) {
  LR_RETURN_IF_ERROR(check_batch(model_->config(), batch));
  const ModelPlan plan = make_plan(*model_, false, [](const Parameter&) -> void* { return nullptr; });
  LR_RETURN_IF_ERROR(decoder_.forward(plan, batch, keep_nothing(), 0, &workspace_));
  return decoder_.loss(plan, batch, targets, 1.0f, 0, &workspace_, loss);
}

Status Session::update(const UpdateOptions& options, UpdateResult* result) {
  LR_RETURN_IF_ERROR(check_trained());
  std::vector<GradientSpan> gradients;
  for (const Trained& one : trained_) gradients.emplace_back(one.gradient, one.parameter->elements(), one.type);
  double squared = 0;
  LR_RETURN_IF_ERROR(grad_norm_squared(context_, gradients, &squared));
  result->grad_norm = std::sqrt(squared);
  result->skipped = !std::isfinite(result->grad_norm);
  if (!result->skipped) {
    ++optimizer_step_;
    const double clip = options.max_grad_norm > 0 ? std::min(1.0, options.max_grad_norm / (result->grad_norm + kClipEpsilon)) : 1.0;
    LR_RETURN_IF_ERROR(optimizer_->update(context_, options, clip, optimizer_step_, micro_batch_key(options_.seed, optimizer_step_, kRounding)));
  }
  zero_gradients();
  return {};
}

void Session::zero_gradients() { std::memset(gradients_.as<>(), 0, gradients_.bytes()); }

Result<const Trained*> Session::find(const std::string& name) const {
  for (const Trained& one : trained_) {
    if (one.parameter->name == name) return &one;
  }
  return error(Code::kInvalidOption, "parameter %s is not trained in this session", name.c_str());
}

Result<const Session::NamedState*> Session::find_state(const std::string& name) const {
  for (const NamedState& state : optimizer_states_) {
    if (state.name == name) return &state;
  }
  return error(Code::kInvalidOption, "the optimizer of this session has no state %s", name.c_str());
}

}  // namespace lowrank

#include "train/memory_plan.h"
#include "train/session.h"

#include <algorithm>

#include "addon/files.h"
#include "addon/model_object.h"
#include "addon/module.h"
#include "core/heap.h"
#include "formats/safetensors_writer.h"
#include "formats/tensor_file.h"
#include "ops/dequantize.h"

namespace lowrank::addon {
namespace {

class SessionObject final : public Napi::ObjectWrap<SessionObject> {
 public:
  explicit SessionObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SessionObject>(info) {}

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeSession",
                       {InstanceMethod("accumulate", &SessionObject::accumulate), InstanceMethod("update", &SessionObject::update),
                        InstanceMethod("zeroGradients", &SessionObject::zero_gradients),
                        InstanceMethod("readGradient", &SessionObject::read_gradient),
                        InstanceAccessor("optimizerStep", &SessionObject::optimizer_step, &SessionObject::set_optimizer_step),
                        InstanceMethod("optimizerStates", &SessionObject::optimizer_states),
                        InstanceMethod("saveOptimizer", &SessionObject::save_optimizer),
                        InstanceMethod("loadOptimizer", &SessionObject::load_optimizer), InstanceMethod("evaluate", &SessionObject::evaluate),
                        InstanceMethod("dispose", &SessionObject::dispose)});
  }
  void set(std::shared_ptr<ModelState> state, std::shared_ptr<Session> session) {
    state_ = std::move(state);
    session_ = std::move(session);
  }

 private:
  bool alive(Napi::Env env) const {
    if (session_ == nullptr) throw_status(env, error(Code::kInvalidOption, "the session has been disposed of"));
    return session_ != nullptr;
  }
  // The optimizer's state that the first argument names, for a call that must not run beside a step; null after throwing.
  const Session::NamedState* state_of(const Napi::CallbackInfo& info) const {
    std::string name;
    if (!idle(info.Env()) || !get_string(info[0], "name", &name)) return nullptr;
    const Result<const Session::NamedState*> state = session_->find_state(name);
    if (state.ok()) return state.value();
    throw_status(info.Env(), state.status());
    return nullptr;
  }
  bool idle(Napi::Env env) const {
    if (!alive(env)) return false;
    if (state_->running == 0) return true;
    throw_status(env, error(Code::kInvalidOption, "the session is in use by a call that has not finished; await it first"));
    return false;
  }

  Napi::Value accumulate(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  Napi::Value update(const Napi::CallbackInfo& info);
  Napi::Value zero_gradients(const Napi::CallbackInfo& info) {
    if (!idle(info.Env())) return info.Env().Undefined();
    return run_async(
        info.Env(),
        [running = std::make_shared<Running>(state_), session = session_] {
          session->zero_gradients();
          return Status();
        },
        [](Napi::Env done) { return done.Undefined(); }, Value());
  }
  Napi::Value read_gradient(const Napi::CallbackInfo& info) {
    std::string name;
    if (!idle(info.Env()) || !get_string(info[0], "name", &name)) return info.Env().Undefined();
    const Result<const Trained*> trained = session_->find(name);
    if (!trained.ok()) return throw_status(info.Env(), trained.status()), info.Env().Undefined();
    const Trained* const one = trained.value();
    const size_t elements = one->parameter->elements();
    Napi::Float32Array copy = Napi::Float32Array::New(info.Env(), elements);
    return run_async(
        info.Env(),
        [running = std::make_shared<Running>(state_), session = session_, to = copy.Data(), from = matrix(one->gradient, one->type, 1, elements)] {
          const std::lock_guard lock(addon_mutex());
          return dequantize(addon_context(), from, to);
        },
        copy);
  }
  Napi::Value optimizer_step(const Napi::CallbackInfo& info) {
    return alive(info.Env()) ? Napi::Number::New(info.Env(), static_cast<double>(session_->optimizer_step())) : info.Env().Undefined();
  }
  void set_optimizer_step(const Napi::CallbackInfo& info, const Napi::Value& value) {
    size_t step = 0;
    if (idle(info.Env()) && get_size(value, "optimizerStep", &step)) session_->set_optimizer_step(step);
  }
  Napi::Value optimizer_states(const Napi::CallbackInfo& info);
  Napi::Value save_optimizer(const Napi::CallbackInfo& info);
  Napi::Value load_optimizer(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    session_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<ModelState> state_;
  std::shared_ptr<Session> session_;
};

Napi::Value SessionObject::accumulate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto job = std::make_shared<LossJob>();
  if (!alive(env) || !get_batch(info[0], true, &job->batch)) return env.Undefined();
  if (!info[1].IsObject()) return throw_status(env, error(Code::kInvalidOption, "options is not an object")), env.Undefined();
  const Napi::Object options = info[1].As<Napi::Object>();
  double grad_scale = 0;
  size_t seed = 0, step = 0, micro = 0;
  if (!get_double(options.Get("gradScale"), "gradScale", &grad_scale) || !get_size(options.Get("seed"), "seed", &seed) ||
      !get_size(options.Get("step"), "step", &step) || !get_size(options.Get("micro"), "micro", &micro)) {
    return env.Undefined();
  }
  return loss_async(env, state_, job, [session = session_, grad_scale, seed, step, micro](LossJob& of) {
    return session->accumulate(of.batch.view(), of.batch.targets, static_cast<float>(grad_scale), seed, step, micro, &of.loss);
  }, Value());
}

Napi::Value SessionObject::evaluate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto job = std::make_shared<LossJob>();
  if (!alive(env) || !get_batch(info[0], true, &job->batch)) return env.Undefined();
  return loss_async(env, state_, job,
                    [session = session_](LossJob& of) { return session->evaluate(of.batch.view(), of.batch.targets, &of.loss); },
                    Value());
}

Napi::Value SessionObject::update(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!alive(env)) return env.Undefined();
  if (!info[0].IsObject()) return throw_status(env, error(Code::kInvalidOption, "options is not an object")), env.Undefined();
  const Napi::Object object = info[0].As<Napi::Object>();
  UpdateOptions options{};
  const std::pair<const char*, double*> fields[] = {{"learningRate", &options.learning_rate}, {"beta1", &options.beta1},
                                                    {"beta2", &options.beta2}, {"epsilon", &options.epsilon},
                                                    {"weightDecay", &options.weight_decay}, {"maxGradNorm", &options.max_grad_norm}};
  for (const auto& [name, to] : fields) {
    if (!get_double(object.Get(name), name, to)) return env.Undefined();
  }
  if (object.Has("momentum") && !get_double(object.Get("momentum"), "momentum", &options.momentum)) return env.Undefined();
  auto result = std::make_shared<UpdateResult>();
  auto running = std::make_shared<Running>(state_);
  return run_async(
      env,
      [result, running, session = session_, options] {
        const std::lock_guard lock(addon_mutex());
        return session->update(options, result.get());
      },
      [result](Napi::Env result_env) -> Napi::Value {
        Napi::Object object = Napi::Object::New(result_env);
        object.Set("gradNorm", result->grad_norm);
        object.Set("skipped", result->skipped);
        return object;
      },
      Value());
}

Napi::Value SessionObject::optimizer_states(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!alive(env)) return env.Undefined();
  Napi::Array list = Napi::Array::New(env, session_->optimizer_states().size());
  uint32_t place = 0;
  for (const Session::NamedState& state : session_->optimizer_states()) {
    const Napi::HandleScope scope(env);
    Napi::Array shape = Napi::Array::New(env, state.tensor.shape.size());
    for (size_t i = 0; i < state.tensor.shape.size(); ++i) shape.Set(static_cast<uint32_t>(i), static_cast<double>(state.tensor.shape[i]));
    Napi::Object item = Napi::Object::New(env);
    item.Set("name", state.name);
    item.Set("dtype", dtype_info(state.tensor.type).name);
    item.Set("shape", shape);
    list.Set(place++, item);
  }
  return list;
}

Napi::Value SessionObject::save_optimizer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string path;
  MetadataStrings metadata;
  if (!idle(env) || !get_string(info[0], "path", &path) || !get_metadata(env, info[1], &metadata)) return env.Undefined();
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), session = session_, path, metadata] {
        std::vector<TensorToWrite> tensors;
        for (const Session::NamedState& state : session->optimizer_states()) {
          tensors.push_back({.name = state.name, .dtype = state.tensor.type, .shape = state.tensor.shape, .bytes = state.tensor.bytes(),
                             .make = [&session, &state](void* to) {
                               session->read_state(state, to);
                               return Status();
                             }});
        }
        return write_safetensors(path, std::move(tensors), metadata);
      },
      [](Napi::Env done) { return done.Undefined(); }, Napi::Object::New(env));
}

Napi::Value SessionObject::load_optimizer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Session::NamedState* state = state_of(info);
  if (state == nullptr) return env.Undefined();
  const std::shared_ptr<TensorFile> file = unwrap_file(info[1]);
  if (file == nullptr) return env.Undefined();
  const Result<const TensorInfo*> found = file->tensor(state->name);
  if (!found.ok()) return throw_status(env, found.status()), env.Undefined();
  const TensorInfo* const tensor = found.value();
  if (tensor->bytes != state->tensor.bytes()) {
    throw_status(env, error(Code::kShapeMismatch, "%s: optimizer state %s has %zu bytes; expected %zu", file->path().c_str(), state->name.c_str(),
                            tensor->bytes, state->tensor.bytes()));
    return env.Undefined();
  }
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), session = session_, state, file, tensor] {
        session->write_state(*state, tensor->data);
        file->release(*tensor);
        return file->check_unchanged();
      },
      [](Napi::Env done) { return done.Undefined(); }, Napi::Object::New(env));
}

bool get_muon_ratio(const Napi::Value& value, MuonRatio* out) {
  static constexpr std::pair<const char*, MuonRatio> kRatios[] = {{"original", MuonRatio::kOriginal},
                                                                  {"match_rms_adamw", MuonRatio::kMatchRmsAdamW},
                                                                  {"spectral_unclamped", MuonRatio::kSpectralUnclamped}};
  std::string name;
  if (!get_string(value, "optimizer.adjustLr", &name)) return false;
  for (const auto& [known, ratio] : kRatios) {
    if (name == known) return *out = ratio, true;
  }
  throw_status(value.Env(), error(Code::kInvalidOption, "optimizer.adjustLr is '%s'; expected original, match_rms_adamw or spectral_unclamped",
                                  name.c_str()));
  return false;
}

// { kind, bits, window?, folder?, adjustLr? }; left out: AdamW.
bool get_optimizer_options(const Napi::Value& value, OptimizerOptions* out) {
  if (value.IsUndefined()) return true;
  if (!value.IsObject()) return throw_status(value.Env(), error(Code::kInvalidOption, "optimizer is not an object")), false;
  const Napi::Object object = value.As<Napi::Object>();
  std::string kind;
  size_t bits = 0;
  if (!get_string(object.Get("kind"), "optimizer.kind", &kind) || !get_size(object.Get("bits"), "optimizer.bits", &bits)) return false;
  static constexpr std::pair<const char*, OptimizerKind> kKinds[] = {{"adamw", OptimizerKind::kAdamW}, {"lion", OptimizerKind::kLion},
                                                                     {"sgd", OptimizerKind::kSgd}, {"adafactor", OptimizerKind::kAdafactor},
                                                                     {"muon", OptimizerKind::kMuon}};
  const auto* const found = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const auto& known) { return kind == known.first; });
  if (found == std::end(kKinds) || (bits != 8 && bits != 32)) {
    return throw_status(value.Env(), error(Code::kInvalidOption, "there is no optimizer %s of %zu bits", kind.c_str(), bits)), false;
  }
  out->kind = found->second;
  out->coded = bits == 8;
  if (object.Has("adjustLr") && !get_muon_ratio(object.Get("adjustLr"), &out->muon_ratio)) return false;
  const Napi::Value window = object.Get("window");
  if (window.IsUndefined()) return true;
  return get_size(window, "optimizer.window", &out->window) && get_string(object.Get("folder"), "optimizer.folder", &out->folder);
}

// { mode, every } or { mode: 'mixed', all, selective }, and a folder where inputs are parked.
bool get_retention(const Napi::Value& value, Retention* out) {
  std::string mode;
  const Napi::Object fields = (value.IsObject() ? value : Napi::Object::New(value.Env())).As<Napi::Object>();
  if (!get_string(fields.Get("mode"), "keep.mode", &mode)) return false;
  *out = {.training = true};
  const Napi::Value folder = fields.Get("folder");
  if (!folder.IsUndefined() && !get_string(folder, "keep.folder", &out->folder)) return false;
  if (mode == "mixed") {
    return get_size(fields.Get("all"), "keep.all", &out->all) && get_size(fields.Get("selective"), "keep.selective", &out->selective);
  }
  if (!get_size(fields.Get("every"), "keep.every", &out->every)) return false;
  if (mode == "all") out->all = SIZE_MAX;
  if (mode == "selective") out->selective = SIZE_MAX;
  const bool is_known = mode == "all" || mode == "selective" || mode == "inputs";
  if (is_known && out->every > 0 && (out->every == 1 || (mode == "inputs" && out->folder.empty()))) return true;
  throw_status(value.Env(), error(Code::kInvalidOption, "keep is '%s' every %zu; expected mixed, all, selective or inputs, and every of 1, or with inputs more",
                                  mode.c_str(), out->every));
  return false;
}

bool get_session_options(const Napi::Value& value, SessionOptions* out) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidOption, "options is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  if (!get_size(object.Get("maxTokens"), "maxTokens", &out->max_tokens) || !get_retention(object.Get("keep"), &out->keep)) return false;
  if (!get_optimizer_options(object.Get("optimizer"), &out->optimizer)) return false;
  size_t seed = 0;
  if (object.Has("seed") && !get_size(object.Get("seed"), "seed", &seed)) return false;
  out->seed = seed;
  const Napi::Value no_decay = object.Get("noDecay");
  return no_decay.IsUndefined() || get_strings(no_decay, "noDecay", &out->no_decay);
}

}  // namespace

void register_session(Napi::Env env, Napi::Object exports) {
  auto session_class = std::make_shared<Napi::FunctionReference>(Napi::Persistent(SessionObject::define(env)));
  exports.Set("createSession", Napi::Function::New(env, [session_class](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
    SessionOptions options;
    if (state == nullptr || !get_session_options(info[1], &options)) return info.Env().Undefined();
    trim_heap();
    Result<std::shared_ptr<Session>> session = Session::create(addon_context(), state->model, std::move(options));
    if (!session.ok()) return throw_status(info.Env(), session.status()), info.Env().Undefined();
    Napi::Object object = session_class->New({});
    SessionObject::Unwrap(object)->set(state, session.value());
    return object;
  }));
  exports.Set("planSession", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
    SessionOptions options;
    if (state == nullptr || !get_session_options(info[1], &options)) return info.Env().Undefined();
    return bytes_object(info.Env(), plan_training(addon_context(), *state->model, options));
  }));
  exports.Set("planEvaluation", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
    size_t tokens = 0;
    if (state == nullptr || !get_size(info[1], "tokens", &tokens)) return info.Env().Undefined();
    return bytes_object(info.Env(), plan_evaluation(addon_context(), *state->model, tokens));
  }));
  exports.Set("planGeneration", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
    GenerationShape shape{};
    if (state == nullptr || !get_size(info[1], "rows", &shape.rows) || !get_size(info[2], "capacity", &shape.capacity) ||
        !get_size(info[3], "tokens", &shape.tokens)) {
      return info.Env().Undefined();
    }
    return bytes_object(info.Env(), plan_generation(addon_context(), *state->model, shape));
  }));
}

}  // namespace lowrank::addon

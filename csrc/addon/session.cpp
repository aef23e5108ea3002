#include "train/session.h"

#include <cstring>

#include "addon/model_object.h"
#include "addon/module.h"

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
                        InstanceMethod("readOptimizer", &SessionObject::read_optimizer),
                        InstanceMethod("writeOptimizer", &SessionObject::write_optimizer), InstanceMethod("plan", &SessionObject::plan),
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
  // Of a parameter's state, for a call that must not run beside a step; null after throwing.
  const Session::State* state_of(const Napi::CallbackInfo& info) const {
    std::string name;
    if (!idle(info.Env()) || !get_string(info[0], "name", &name)) return nullptr;
    const Result<const Session::State*> state = session_->find(name);
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
    const Session::State* state = state_of(info);
    if (state == nullptr) return info.Env().Undefined();
    const size_t elements = state->parameter->elements();
    Napi::Float32Array gradient = Napi::Float32Array::New(info.Env(), elements);
    return run_async(info.Env(), copying({{gradient.Data(), state->gradient, elements}}), gradient);
  }
  Napi::Value optimizer_step(const Napi::CallbackInfo& info) {
    return alive(info.Env()) ? Napi::Number::New(info.Env(), static_cast<double>(session_->optimizer_step())) : info.Env().Undefined();
  }
  void set_optimizer_step(const Napi::CallbackInfo& info, const Napi::Value& value) {
    size_t step = 0;
    if (idle(info.Env()) && get_size(value, "optimizerStep", &step)) session_->set_optimizer_step(step);
  }
  Napi::Value read_optimizer(const Napi::CallbackInfo& info);
  Napi::Value write_optimizer(const Napi::CallbackInfo& info);
  Napi::Value plan(const Napi::CallbackInfo& info) {
    return alive(info.Env()) ? bytes_object(info.Env(), session_->plan()) : info.Env().Undefined();
  }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    session_.reset();
    return info.Env().Undefined();
  }

  struct Copy {
    float* to;
    const float* from;
    size_t elements;
  };
  // Work that copies between the session's memory and JavaScript's arrays.
  std::function<Status()> copying(std::vector<Copy> copies) const {
    return [running = std::make_shared<Running>(state_), session = session_, copies = std::move(copies)] {
      for (const auto& [to, from, elements] : copies) std::memcpy(to, from, elements * sizeof(float));
      return Status();
    };
  }

  std::shared_ptr<ModelState> state_;
  std::shared_ptr<Session> session_;
};

Napi::Value SessionObject::accumulate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  struct Job {
    OwnedBatch batch;
    Loss loss;
  };
  auto job = std::make_shared<Job>();
  if (!alive(env) || !get_batch(info[0], true, &job->batch)) return env.Undefined();
  if (!info[1].IsObject()) return throw_status(env, error(Code::kInvalidOption, "options is not an object")), env.Undefined();
  const Napi::Object options = info[1].As<Napi::Object>();
  double grad_scale = 0;
  size_t seed = 0, step = 0, micro = 0;
  if (!get_double(options.Get("gradScale"), "gradScale", &grad_scale) || !get_size(options.Get("seed"), "seed", &seed) ||
      !get_size(options.Get("step"), "step", &step) || !get_size(options.Get("micro"), "micro", &micro)) {
    return env.Undefined();
  }
  auto running = std::make_shared<Running>(state_);
  return run_async(
      env,
      [job, running, session = session_, grad_scale, seed, step, micro] {
        const std::lock_guard lock(addon_mutex());
        return session->accumulate(job->batch.view(), job->batch.targets, static_cast<float>(grad_scale), seed, step, micro, &job->loss);
      },
      [job](Napi::Env result_env) { return loss_object(result_env, job->loss); }, Value());
}

Napi::Value SessionObject::update(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!alive(env)) return env.Undefined();
  if (!info[0].IsObject()) return throw_status(env, error(Code::kInvalidOption, "options is not an object")), env.Undefined();
  const Napi::Object object = info[0].As<Napi::Object>();
  UpdateOptions options{};
  const std::pair<const char*, float*> fields[] = {{"learningRate", &options.learning_rate}, {"beta1", &options.beta1},
                                                   {"beta2", &options.beta2}, {"epsilon", &options.epsilon},
                                                   {"weightDecay", &options.weight_decay}, {"maxGradNorm", &options.max_grad_norm}};
  for (const auto& [name, to] : fields) {
    double number = 0;
    if (!get_double(object.Get(name), name, &number)) return env.Undefined();
    *to = static_cast<float>(number);
  }
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

Napi::Value SessionObject::read_optimizer(const Napi::CallbackInfo& info) {
  const Session::State* state = state_of(info);
  if (state == nullptr) return info.Env().Undefined();
  const size_t elements = state->parameter->elements();
  Napi::Object result = Napi::Object::New(info.Env());
  Napi::Float32Array m = Napi::Float32Array::New(info.Env(), elements), v = Napi::Float32Array::New(info.Env(), elements);
  result.Set("m", m);
  result.Set("v", v);
  return run_async(info.Env(), copying({{m.Data(), state->m, elements}, {v.Data(), state->v, elements}}), result);
}

Napi::Value SessionObject::write_optimizer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Session::State* state = state_of(info);
  ArrayView<float> m, v;
  if (state == nullptr || !get_floats(info[1], "m", &m) || !get_floats(info[2], "v", &v)) return env.Undefined();
  const size_t elements = state->parameter->elements();
  if (m.length != elements || v.length != elements) {
    throw_status(env, error(Code::kShapeMismatch, "optimizer state of %s got %zu and %zu values; expected %zu", state->parameter->name.c_str(),
                            m.length, v.length, elements));
    return env.Undefined();
  }
  const Napi::Array keep = Napi::Array::New(env);
  keep.Set(uint32_t{0}, info[1]);
  keep.Set(uint32_t{1}, info[2]);
  return run_async(env, copying({{state->m, m.data, elements}, {state->v, v.data, elements}}), [](Napi::Env done) { return done.Undefined(); },
                   keep);
}

bool get_retention(const Napi::Value& value, Retention* out) {
  static constexpr std::pair<const char*, Mode> kModes[] = {
      {"all", Mode::kTrain}, {"selective", Mode::kSelective}, {"inputs", Mode::kCheckpointed}};
  std::string name;
  const Napi::Value fields = value.IsObject() ? value : Napi::Object::New(value.Env());
  if (!get_string(fields.As<Napi::Object>().Get("mode"), "keep.mode", &name)) return false;
  if (!get_size(fields.As<Napi::Object>().Get("every"), "keep.every", &out->every)) return false;
  for (const auto& [known, mode] : kModes) {
    if (name != known || out->every == 0) continue;
    out->mode = mode;
    return true;
  }
  throw_status(value.Env(), error(Code::kInvalidOption, "keep is '%s' every %zu; expected all, selective or inputs, and every of 1 or more",
                                  name.c_str(), out->every));
  return false;
}

bool get_session_options(const Napi::Value& value, SessionOptions* out) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidOption, "options is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  if (!get_size(object.Get("maxTokens"), "maxTokens", &out->max_tokens) || !get_retention(object.Get("keep"), &out->keep)) return false;
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
    return bytes_object(info.Env(), Session::estimate(addon_context(), *state->model, options.max_tokens, options.keep));
  }));
}

}  // namespace lowrank::addon

#include "model/generator.h"

#include <algorithm>

#include "addon/model_object.h"
#include "addon/module.h"

namespace lowrank::addon {
namespace {

class GeneratorObject final : public Napi::ObjectWrap<GeneratorObject> {
 public:
  explicit GeneratorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<GeneratorObject>(info) {}

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeCache", {InstanceMethod("decode", &GeneratorObject::decode), InstanceMethod("dispose", &GeneratorObject::dispose)});
  }
  void set(std::shared_ptr<ModelState> state, std::shared_ptr<Generator> generator) {
    state_ = std::move(state);
    generator_ = std::move(generator);
  }

 private:
  Napi::Value decode(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    generator_.reset();
    state_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<ModelState> state_;
  std::shared_ptr<Generator> generator_;
};

bool get_sampling(const Napi::Value& value, SamplingConfig* out, uint64_t* seed) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidOption, "sampling is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  size_t seed_number = 0;
  if (!get_double(object.Get("temperature"), "temperature", &out->temperature) || !get_size(object.Get("topK"), "topK", &out->top_k) ||
      !get_double(object.Get("topP"), "topP", &out->top_p) || !get_double(object.Get("minP"), "minP", &out->min_p) ||
      !get_double(object.Get("repetitionPenalty"), "repetitionPenalty", &out->repetition_penalty) ||
      !get_size(object.Get("seed"), "seed", &seed_number)) {
    return false;
  }
  *seed = seed_number;
  return true;
}

Napi::Value GeneratorObject::decode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (generator_ == nullptr) return throw_status(env, error(Code::kInvalidOption, "the cache has been disposed of")), env.Undefined();
  ArrayView<int32_t> ids, starts;
  SamplingConfig sampling;
  uint64_t seed = 0;
  size_t step = 0;
  if (!get_ints(info[0], "ids", &ids) || !get_ints(info[1], "starts", &starts) || !get_sampling(info[2], &sampling, &seed) ||
      !get_size(info[3], "step", &step)) {
    return env.Undefined();
  }
  struct Job {
    std::vector<int32_t> ids, starts;
    DrawnTokens drawn;
  };
  auto job = std::make_shared<Job>(Job{{ids.data, ids.data + ids.length}, {starts.data, starts.data + starts.length}, {}});
  auto running = std::make_shared<Running>(state_);
  return run_async(
      env,
      [job, running, generator = generator_, sampling, seed, step] {
        const std::lock_guard lock(addon_mutex());
        return generator->decode(job->ids, job->starts, sampling, seed, step, &job->drawn);
      },
      [job](Napi::Env result_env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(result_env);
        Napi::Int32Array drawn = Napi::Int32Array::New(result_env, job->drawn.ids.size());
        std::copy(job->drawn.ids.begin(), job->drawn.ids.end(), drawn.Data());
        result.Set("ids", drawn);
        result.Set("logprobs", make_floats(result_env, job->drawn.logprobs.data(), job->drawn.logprobs.size()));
        return result;
      },
      Value());
}

}  // namespace

Napi::Function define_generator(Napi::Env env) { return GeneratorObject::define(env); }

Napi::Value create_generator(Napi::FunctionReference& generator_class, const std::shared_ptr<ModelState>& state, size_t rows, size_t capacity) {
  const Napi::Env env = generator_class.Env();
  Result<std::shared_ptr<Generator>> generator = Generator::create(addon_context(), state->model, rows, capacity);
  if (!generator.ok()) return throw_status(env, generator.status()), env.Undefined();
  const Napi::Object object = generator_class.New({});
  GeneratorObject::Unwrap(object)->set(state, generator.value());
  return object;
}

}  // namespace lowrank::addon

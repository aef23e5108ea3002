// The JavaScript objects over Model and Generator, and what the session's binding needs of them.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "addon/bridge.h"
#include "model/decoder.h"
#include "model/model.h"

namespace lowrank::addon {

// A model and the count of native calls now running on it. lib/ runs a model's calls one after another; a call that would
// change it under a running one is refused.
struct ModelState {
  std::shared_ptr<Model> model;
  std::atomic<int> running{0};
  // One of those calls gives a slot its tensor: the slots must not even be listed.
  std::atomic<bool> binding{false};
};

class Running {
 public:
  explicit Running(std::shared_ptr<ModelState> state) : state_(std::move(state)) { ++state_->running; }
  ~Running() { --state_->running; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  std::shared_ptr<ModelState> state_;
};

class Binding {
 public:
  explicit Binding(std::shared_ptr<ModelState> state) : state_(state), running_(state) { state_->binding = true; }
  ~Binding() { state_->binding = false; }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

 private:
  std::shared_ptr<ModelState> state_;
  Running running_;
};

// The state behind a NativeModel; null after throwing where `value` is none, or is disposed of.
std::shared_ptr<ModelState> unwrap_model(const Napi::Value& value);

// The model behind a NativeModel for a call that gives it a tensor; null after throwing, also where another call runs on it.
std::shared_ptr<ModelState> unwrap_idle_model(const Napi::Value& value);
// Runs `work` on another thread while the model may not be used otherwise. `keep` lives until then.
Napi::Value bind_async(Napi::Env env, const std::shared_ptr<ModelState>& state, std::function<Status(Model&)> work, Napi::Object keep);

// A batch with arrays of its own, so that JavaScript may reuse its own meanwhile.
struct OwnedBatch {
  std::vector<int32_t> ids, positions, starts, targets;
  Batch view() const { return {ids, positions, starts}; }
};
bool get_batch(const Napi::Value& value, bool with_targets, OwnedBatch* out);

// The loss of a batch, computed by `work` on another thread, under the addon's mutex, while the model is in use. `keep` lives until then.
struct LossJob {
  OwnedBatch batch;
  Loss loss;
};
Napi::Value loss_async(Napi::Env env, const std::shared_ptr<ModelState>& state, std::shared_ptr<LossJob> job,
                       std::function<Status(LossJob&)> work, Napi::Object keep);
Napi::Value bytes_object(Napi::Env env, const std::map<std::string, size_t>& components);
bool get_strings(const Napi::Value& value, const char* what, std::vector<std::string>* out);
// F32, BF16 or F16; F32 where it is left out.
bool get_float_type(const Napi::Value& value, DType* out);

// A parameter, or a base tensor in its storage type.
struct ParameterValues {
  std::span<const size_t> shape;
  Matrix matrix;
};
Result<ParameterValues> find_values(const Model& model, const std::string& name);

// NativeCache, the object over a Generator. create_generator gives undefined after throwing.
Napi::Function define_generator(Napi::Env env);
Napi::Value create_generator(Napi::FunctionReference& generator_class, const std::shared_ptr<ModelState>& state, size_t rows, size_t capacity);

void register_session(Napi::Env env, Napi::Object exports);
void register_save(Napi::Env env, Napi::Object exports);
void register_quantize(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

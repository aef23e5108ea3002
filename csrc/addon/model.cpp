#include "addon/model.h"

#include <algorithm>
#include <cstring>

#include "addon/arguments.h"
#include "addon/files.h"
#include "addon/model_config.h"
#include "addon/model_object.h"
#include "addon/module.h"
#include "core/half.h"
#include "formats/tensor_file.h"
#include "ops/cpu/kernels.h"
#include "ops/dequantize.h"
#include "train/session.h"

namespace lowrank::addon {
namespace {

constexpr napi_type_tag kModelTag = {0x6c6f7772616e6b01, 0x9b5f0d3c2e7a4411};

Status disposed() { return error(Code::kInvalidOption, "the model has been disposed of"); }
Status in_use() { return error(Code::kInvalidOption, "the model is in use by a call that has not finished; await it first"); }

template <class T>
Status take(Result<T> result, T* out) {
  if (!result.ok()) return result.status();
  *out = std::move(result.value());
  return {};
}

Napi::Array shape_array(Napi::Env env, std::span<const size_t> shape) {
  Napi::Array array = Napi::Array::New(env, shape.size());
  for (size_t i = 0; i < shape.size(); ++i) array.Set(static_cast<uint32_t>(i), static_cast<double>(shape[i]));
  return array;
}

class ModelObject final : public Napi::ObjectWrap<ModelObject> {
 public:
  explicit ModelObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelObject>(info) {}

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeModel",
                       {InstanceAccessor("config", &ModelObject::config, nullptr), InstanceMethod("slots", &ModelObject::slots),
                        InstanceMethod("bind", &ModelObject::bind), InstanceMethod("setTensor", &ModelObject::set_tensor),
                        InstanceMethod("convert", &ModelObject::convert), InstanceMethod("describe", &ModelObject::describe),
                        InstanceMethod("ready", &ModelObject::ready), InstanceMethod("addAdapter", &ModelObject::add_adapter),
                        InstanceMethod("addOverride", &ModelObject::add_override),
                        InstanceMethod("removeAdapter", &ModelObject::remove_adapter),
                        InstanceMethod("setActiveAdapters", &ModelObject::set_active),
                        InstanceMethod("setTrainable", &ModelObject::set_trainable),
                        InstanceMethod("trainBase", &ModelObject::train_base),
                        InstanceMethod("setCompute", &ModelObject::set_compute),
                        InstanceMethod("parameters", &ModelObject::parameters),
                        InstanceMethod("readParameter", &ModelObject::read_parameter),
                        InstanceMethod("readBytes", &ModelObject::read_bytes),
                        InstanceMethod("writeParameter", &ModelObject::write_parameter),
                        InstanceMethod("loadParameter", &ModelObject::load_parameter),
                        InstanceMethod("logits", &ModelObject::logits), InstanceMethod("evaluate", &ModelObject::evaluate),
                        InstanceMethod("createCache", &ModelObject::create_cache), InstanceMethod("dispose", &ModelObject::dispose)});
  }

  void set(std::shared_ptr<Model> model, Napi::Object config, std::shared_ptr<Napi::FunctionReference> cache_class) {
    state_ = std::make_shared<ModelState>();
    state_->model = std::move(model);
    config_ = Napi::Persistent(config);
    cache_class_ = std::move(cache_class);
  }
  const std::shared_ptr<ModelState>& state() const { return state_; }

 private:
  // The model for a call that only reads (or null after throwing).
  Model* reading(Napi::Env env) const {
    if (state_ == nullptr) return throw_status(env, disposed()), nullptr;
    if (!state_->binding) return state_->model.get();
    throw_status(env, in_use());
    return nullptr;
  }
  // The model for a call that changes it: refused while another runs.
  Model* changing(Napi::Env env) const {
    Model* model = reading(env);
    if (model == nullptr || state_->running == 0) return model;
    throw_status(env, in_use());
    return nullptr;
  }
  static Napi::Value finish(Napi::Env env, const Status& status) {
    if (!status.ok()) throw_status(env, status);
    return env.Undefined();
  }

  Napi::Value config(const Napi::CallbackInfo&) { return config_.Value(); }
  Napi::Value slots(const Napi::CallbackInfo& info);
  Napi::Value bind(const Napi::CallbackInfo& info);
  Napi::Value set_tensor(const Napi::CallbackInfo& info);
  Napi::Value convert(const Napi::CallbackInfo& info);
  Napi::Value describe(const Napi::CallbackInfo& info);
  Napi::Value ready(const Napi::CallbackInfo& info) {
    const Model* model = reading(info.Env());
    return model == nullptr ? info.Env().Undefined() : finish(info.Env(), model->ready());
  }
  Napi::Value add_adapter(const Napi::CallbackInfo& info);
  Napi::Value add_override(const Napi::CallbackInfo& info);
  Napi::Value remove_adapter(const Napi::CallbackInfo& info);
  Napi::Value set_active(const Napi::CallbackInfo& info) { return with_names(info, "adapters", &Model::set_active); }
  Napi::Value set_trainable(const Napi::CallbackInfo& info) { return with_names(info, "names", &Model::set_trainable); }
  Napi::Value with_names(const Napi::CallbackInfo& info, const char* what, Status (Model::*apply)(std::span<const std::string>));
  Napi::Value train_base(const Napi::CallbackInfo& info);
  Napi::Value set_compute(const Napi::CallbackInfo& info);
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value read_parameter(const Napi::CallbackInfo& info);
  Napi::Value read_bytes(const Napi::CallbackInfo& info);
  Napi::Value write_parameter(const Napi::CallbackInfo& info);
  Napi::Value load_parameter(const Napi::CallbackInfo& info);
  Napi::Value logits(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  Napi::Value create_cache(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    state_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<ModelState> state_;
  Napi::ObjectReference config_;
  std::shared_ptr<Napi::FunctionReference> cache_class_;
};

Napi::Value ModelObject::slots(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Model* model = reading(env);
  if (model == nullptr) return env.Undefined();
  Napi::Array result = Napi::Array::New(env);
  for (const Slot& slot : model->slots()) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", slot.name);
    entry.Set("shape", shape_array(env, slot.shape));
    result.Set(result.Length(), entry);
  }
  return result;
}

Napi::Value ModelObject::bind(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot, tensor;
  size_t heads = 0;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "slot", &slot)) return env.Undefined();
  const std::shared_ptr<TensorFile> file = unwrap_file(info[1]);
  if (file == nullptr || !get_string(info[2], "tensor", &tensor)) return env.Undefined();
  if (!info[3].IsUndefined() && !get_size(info[3], "unpermuteHeads", &heads)) return env.Undefined();
  const TensorInfo* found = file->find(tensor);
  if (found == nullptr) {
    return finish(env, error(Code::kInvalidConfig, "%s has no tensor named %s", file->path().c_str(), tensor.c_str()));
  }
  const Result<Matrix> value = file->matrix(tensor);
  if (!value.ok()) return finish(env, value.status());
  return bind_async(
      env, state_,
      [slot, value = value.value(), found, file, heads](Model& bound) {
        const std::lock_guard lock(addon_mutex());
        const auto release = [mapped = file.get()](const void* data, size_t bytes) { mapped->release(data, bytes); };
        return bound.bind(addon_context(), slot, value, found->shape, file, heads, release);
      },
      Value());
}

Napi::Value ModelObject::set_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot;
  ArrayView<float> data;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "slot", &slot) || !get_floats(info[1], "data", &data)) return env.Undefined();
  DType dtype = DType::kF32;
  if (!get_float_type(info[2], &dtype)) return env.Undefined();
  const std::span<const float> values(data.data, data.length);
  return bind_async(
      env, state_, [slot, values, dtype](Model& bound) { return bound.set_tensor(slot, values, dtype); }, info[1].As<Napi::Object>());
}

Napi::Value ModelObject::convert(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot;
  DType dtype = DType::kF32;
  const Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "slot", &slot) || !get_float_type(info[1], &dtype)) return env.Undefined();
  const Result<ParameterValues> found = find_values(*model, slot);
  if (!found.ok()) return finish(env, found.status());
  const Matrix source = found.value().matrix;
  return bind_async(
      env, state_,
      [slot, source, dtype](Model& bound) -> Status {
        const size_t elements = source.rows * source.cols;
        Buffer values;
        LR_RETURN_IF_ERROR(values.allocate(elements * sizeof(float), slot.c_str()));
        const std::lock_guard lock(addon_mutex());
        LR_RETURN_IF_ERROR(dequantize(addon_context(), source, values.as<float>()));
        return bound.set_tensor(slot, {values.as<float>(), elements}, dtype);
      },
      Value());
}

Napi::Value ModelObject::describe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot, name;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "slot", &slot) || !get_string(info[1], "dtype", &name)) return env.Undefined();
  bool in_file = false;
  if (!get_bool(info[2], "inFile", &in_file)) return env.Undefined();
  const Result<DType> type = weight_type(name);
  return finish(env, type.ok() ? model->describe(slot, type.value(), in_file) : type.status());
}

Napi::Value ModelObject::add_adapter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "adapter", &name)) return env.Undefined();
  if (!info[1].IsArray()) return finish(env, error(Code::kInvalidOption, "modules is not an array"));
  const Napi::Array list = info[1].As<Napi::Array>();
  std::vector<LoraModuleConfig> modules;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value item = list.Get(i);
    if (!item.IsObject()) return finish(env, error(Code::kInvalidOption, "modules[%u] is not an object", i));
    const Napi::Object object = item.As<Napi::Object>();
    LoraModuleConfig module;
    double scale = 0, dropout = 0;
    if (!get_string(object.Get("module"), "modules[].module", &module.module) || !get_size(object.Get("r"), "modules[].r", &module.r) ||
        !get_double(object.Get("scale"), "modules[].scale", &scale) || !get_double(object.Get("dropout"), "modules[].dropout", &dropout)) {
      return env.Undefined();
    }
    module.scale = static_cast<float>(scale);
    module.dropout = static_cast<float>(dropout);
    modules.push_back(std::move(module));
  }
  auto made = std::make_shared<std::shared_ptr<Adapter>>();
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), model, name, modules = std::move(modules), made] {
        return take(model->make_adapter(name, modules), made.get());
      },
      [state = state_, made](Napi::Env done) {
        state->model->attach(std::move(*made));
        return done.Undefined();
      },
      Value());
}

Napi::Value ModelObject::add_override(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string adapter, slot;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "adapter", &adapter) || !get_string(info[1], "slot", &slot)) return env.Undefined();
  auto made = std::make_shared<std::shared_ptr<Override>>();
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), model, adapter, slot, made] {
        const std::lock_guard lock(addon_mutex());
        return take(model->make_override(addon_context(), adapter, slot), made.get());
      },
      [state = state_, adapter, made](Napi::Env done) {
        state->model->attach(adapter, std::move(**made));
        return done.Undefined();
      },
      Value());
}

Napi::Value ModelObject::remove_adapter(const Napi::CallbackInfo& info) {
  std::string adapter;
  Model* model = changing(info.Env());
  if (model == nullptr || !get_string(info[0], "adapter", &adapter)) return info.Env().Undefined();
  return finish(info.Env(), model->remove_adapter(adapter));
}

Napi::Value ModelObject::with_names(const Napi::CallbackInfo& info, const char* what, Status (Model::*apply)(std::span<const std::string>)) {
  std::vector<std::string> names;
  Model* model = changing(info.Env());
  if (model == nullptr || !get_strings(info[0], what, &names)) return info.Env().Undefined();
  return finish(info.Env(), (model->*apply)(names));
}

Napi::Value ModelObject::train_base(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::vector<std::string> names;
  DType dtype = DType::kF32;
  if (changing(env) == nullptr || !get_strings(info[0], "names", &names) || !get_float_type(info[1], &dtype)) return env.Undefined();
  return bind_async(
      env, state_,
      [names = std::move(names), dtype](Model& model) {
        const std::lock_guard lock(addon_mutex());
        return model.train_base(addon_context(), names, dtype);
      },
      Value());
}

Napi::Value ModelObject::set_compute(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "compute", &name)) return env.Undefined();
  if (name != "f32" && name != "bf16") {
    return finish(env, error(Code::kInvalidOption, "compute is '%.40s'; expected f32 or bf16", name.c_str()));
  }
  if (name == "bf16" && addon_context().kernels.gemm.bf16 == nullptr) {
    return finish(env, error(Code::kInvalidOption, "compute is 'bf16', but %s has no bf16 products", level_name(addon_context().kernels.level)));
  }
  model->set_compute(name == "bf16" ? ComputeType::kBf16 : ComputeType::kF32);
  return env.Undefined();
}

Napi::Value ModelObject::parameters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Model* model = reading(env);
  if (model == nullptr) return env.Undefined();
  Napi::Array result = Napi::Array::New(env);
  const auto add = [&](const std::string& name, std::span<const size_t> shape, const char* dtype, bool trainable, bool in_file) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", name);
    entry.Set("shape", shape_array(env, shape));
    entry.Set("dtype", dtype);
    entry.Set("trainable", trainable);
    entry.Set("inFile", in_file);
    result.Set(result.Length(), entry);
  };
  for (const Slot& slot : model->slots()) {
    const bool trainable = slot.parameter != nullptr && slot.parameter->trainable;
    if (slot.owner != nullptr) add(slot.name, slot.shape, dtype_info(slot.value.type).name, trainable, slot.release != nullptr);
  }
  for (const Parameter* parameter : model->adapter_parameters()) add(parameter->name, parameter->shape, "F32", parameter->trainable, false);
  return result;
}

Napi::Value ModelObject::read_parameter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  const Model* model = reading(env);
  if (model == nullptr || !get_string(info[0], "name", &name)) return env.Undefined();
  const Result<ParameterValues> found = find_values(*model, name);
  if (!found.ok()) return finish(env, found.status());
  const Matrix source = found.value().matrix;
  Napi::Float32Array values = Napi::Float32Array::New(env, source.rows * source.cols);
  return run_async(env, [running = std::make_shared<Running>(state_), source, out = values.Data()] {
    const std::lock_guard lock(addon_mutex());
    return dequantize(addon_context(), source, out);
  }, values);
}

Napi::Value ModelObject::read_bytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  size_t begin = 0, end = 0;
  const Model* model = reading(env);
  if (model == nullptr || !get_string(info[0], "name", &name) || !get_size(info[1], "begin", &begin) || !get_size(info[2], "end", &end)) {
    return env.Undefined();
  }
  const Result<ParameterValues> found = find_values(*model, name);
  if (!found.ok()) return finish(env, found.status());
  const Matrix source = found.value().matrix;
  end = std::min(end, source.rows * source.stride);
  begin = std::min(begin, end);
  Napi::Uint8Array bytes = Napi::Uint8Array::New(env, end - begin);
  if (end > begin) std::memcpy(bytes.Data(), static_cast<const uint8_t*>(source.data) + begin, end - begin);
  return bytes;
}

Napi::Value ModelObject::write_parameter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  ArrayView<float> data;
  const Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "name", &name) || !get_floats(info[1], "data", &data)) return env.Undefined();
  const Parameter* parameter = model->find_parameter(name);
  if (parameter == nullptr) return finish(env, error(Code::kInvalidOption, "no adapter has a parameter named %s, and the model itself is not trained there", name.c_str()));
  if (data.length != parameter->elements()) {
    return finish(env, error(Code::kShapeMismatch, "parameter %s got %zu values; expected %zu", name.c_str(), data.length, parameter->elements()));
  }
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), parameter, data] {
        if (parameter->type == DType::kBF16) {
          std::transform(data.data, data.data + data.length, parameter->value.as<uint16_t>(), f32_to_bf16);
        } else {
          std::memcpy(parameter->data(), data.data, data.length * sizeof(float));
        }
        return Status();
      },
      [](Napi::Env done) { return done.Undefined(); }, info[1].As<Napi::Object>());
}

Napi::Value ModelObject::load_parameter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name, tensor;
  Model* model = changing(env);
  if (model == nullptr || !get_string(info[0], "name", &name)) return env.Undefined();
  const std::shared_ptr<TensorFile> file = unwrap_file(info[1]);
  if (file == nullptr || !get_string(info[2], "tensor", &tensor)) return env.Undefined();
  const Result<const TensorInfo*> found = file->tensor(tensor);
  if (!found.ok()) return finish(env, found.status());
  const Result<Matrix> source = file->rows(*found.value());
  if (!source.ok()) return finish(env, source.status());
  return run_async(
      env,
      [running = std::make_shared<Running>(state_), model, name, file, info = found.value(), source = source.value()]() -> Status {
        const std::lock_guard lock(addon_mutex());
        const auto release = [&file](const void* data, size_t bytes) { file->release(data, bytes); };
        LR_RETURN_IF_ERROR(model->load(addon_context(), name, source, info->shape, release));
        return file->check_unchanged();
      },
      [](Napi::Env done) { return done.Undefined(); }, Napi::Object::New(env));
}

ModelPlan inference_plan(const Model& model) {
  return make_plan(model, false, [](const Parameter&) -> void* { return nullptr; });
}

// then(decoder, plan, workspace) after a forward that keeps nothing. Under the addon's mutex.
template <class Then>
Status run_forward(const Model& model, const OwnedBatch& batch, const Then& then) {
  LR_RETURN_IF_ERROR(model.ready());
  LR_RETURN_IF_ERROR(check_batch(model.config(), batch.view()));
  Context context{addon_context().pool, addon_context().kernels, model.compute()};
  const Decoder decoder(context, model.config());
  const ModelPlan plan = inference_plan(model);
  Workspace workspace;
  LR_RETURN_IF_ERROR(decoder.forward(plan, batch.view(), keep_nothing(), 0, &workspace));
  return then(decoder, plan, &workspace);
}

Napi::Value ModelObject::logits(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (reading(env) == nullptr) return env.Undefined();
  auto batch = std::make_shared<OwnedBatch>();
  if (!get_batch(info[0], false, batch.get())) return env.Undefined();
  auto running = std::make_shared<Running>(state_);
  Napi::Float32Array logits = Napi::Float32Array::New(env, batch->ids.size() * state_->model->config().vocab);
  if (env.IsExceptionPending()) return env.Undefined();
  return run_async(
      env,
      [batch, running, state = state_, out = logits.Data()]() -> Status {
        const std::lock_guard lock(addon_mutex());
        return run_forward(*state->model, *batch, [&](const Decoder& decoder, const ModelPlan& plan, Workspace* workspace) {
          std::vector<size_t> rows(batch->ids.size());
          for (size_t t = 0; t < rows.size(); ++t) rows[t] = t;
          return decoder.logits(plan, rows, workspace, out);
        });
      },
      logits);
}

Napi::Value ModelObject::evaluate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (reading(env) == nullptr) return env.Undefined();
  auto job = std::make_shared<LossJob>();
  if (!get_batch(info[0], true, &job->batch)) return env.Undefined();
  return loss_async(env, state_, job, [state = state_](LossJob& of) {
    return run_forward(*state->model, of.batch, [&](const Decoder& decoder, const ModelPlan& plan, Workspace* workspace) {
      return decoder.loss(plan, of.batch.view(), of.batch.targets, 1.0f, 0, workspace, &of.loss);
    });
  }, Value());
}

Napi::Value ModelObject::create_cache(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  size_t rows = 0, capacity = 0;
  if (reading(env) == nullptr || !get_size(info[0], "rows", &rows) || !get_size(info[1], "capacity", &capacity)) return env.Undefined();
  return create_generator(*cache_class_, state_, rows, capacity);
}

}  // namespace

std::shared_ptr<ModelState> unwrap_model(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kModelTag)) {
    throw_status(value.Env(), error(Code::kInvalidOption, "the value is not a native model"));
    return nullptr;
  }
  std::shared_ptr<ModelState> state = ModelObject::Unwrap(value.As<Napi::Object>())->state();
  if (state == nullptr) throw_status(value.Env(), disposed());
  return state;
}

Napi::Value bind_async(Napi::Env env, const std::shared_ptr<ModelState>& state, std::function<Status(Model&)> work, Napi::Object keep) {
  return run_async(
      env,
      [model = state->model, binding = std::make_shared<Binding>(state), work = std::move(work)] { return work(*model); },
      [](Napi::Env done) { return done.Undefined(); }, keep);
}

std::shared_ptr<ModelState> unwrap_idle_model(const Napi::Value& value) {
  std::shared_ptr<ModelState> state = unwrap_model(value);
  if (state == nullptr || (!state->binding && state->running == 0)) return state;
  throw_status(value.Env(), in_use());
  return nullptr;
}

void register_model(Napi::Env env, Napi::Object exports) {
  auto model_class = std::make_shared<Napi::FunctionReference>(Napi::Persistent(ModelObject::define(env)));
  auto cache_class = std::make_shared<Napi::FunctionReference>(Napi::Persistent(define_generator(env)));
  exports.Set("createModel", Napi::Function::New(env, [model_class, cache_class](const Napi::CallbackInfo& info) -> Napi::Value {
    DecoderConfig config;
    bool for_planning = false;
    if (!get_config(info[0], &config)) return info.Env().Undefined();
    if (!info[1].IsUndefined() && !get_bool(info[1], "forPlanning", &for_planning)) return info.Env().Undefined();
    Result<std::shared_ptr<Model>> model =
        Model::create(std::move(config), for_planning ? Model::Purpose::kPlanning : Model::Purpose::kUse);
    if (!model.ok()) return throw_status(info.Env(), model.status()), info.Env().Undefined();
    Napi::Object object = model_class->New({});
    object.TypeTag(&kModelTag);
    ModelObject::Unwrap(object)->set(model.value(), info[0].As<Napi::Object>(), cache_class);
    return object;
  }));
  register_session(env, exports);
  register_save(env, exports);
  register_quantize(env, exports);
}

}  // namespace lowrank::addon

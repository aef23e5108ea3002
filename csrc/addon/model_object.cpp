// What the bindings of models, generation and sessions share: values from JavaScript, and results for it.
#include "addon/model_object.h"

#include "addon/module.h"

namespace lowrank::addon {
namespace {

Napi::Value loss_object(Napi::Env env, const Loss& loss) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("nllSum", loss.nll_sum);
  result.Set("tokens", static_cast<double>(loss.tokens));
  result.Set("correct", static_cast<double>(loss.correct));
  return result;
}

}  // namespace

bool get_float_type(const Napi::Value& value, DType* out) {
  std::string name = "F32";
  if (!value.IsUndefined() && !get_string(value, "dtype", &name)) return false;
  *out = name == "F32" ? DType::kF32 : name == "BF16" ? DType::kBF16 : name == "F16" ? DType::kF16 : DType::kCount;
  if (*out != DType::kCount) return true;
  throw_status(value.Env(), error(Code::kInvalidOption, "dtype is '%s'; expected F32, BF16 or F16", name.c_str()));
  return false;
}

Result<ParameterValues> find_values(const Model& model, const std::string& name) {
  if (const Parameter* parameter = model.find_parameter(name)) {
    return ParameterValues{parameter->shape, parameter->matrix()};
  }
  const Slot* slot = model.find_slot(name);
  if (slot != nullptr && slot->owner != nullptr) return ParameterValues{slot->shape, slot->value};
  return error(Code::kInvalidOption, "the model has no parameter named %s", name.c_str());
}

bool get_batch(const Napi::Value& value, bool with_targets, OwnedBatch* out) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidOption, "batch is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  const auto read = [&](const char* key, std::vector<int32_t>* to) {
    ArrayView<int32_t> array;
    if (!get_ints(object.Get(key), key, &array)) return false;
    to->assign(array.data, array.data + array.length);
    return true;
  };
  return read("ids", &out->ids) && read("positions", &out->positions) && read("starts", &out->starts) &&
         (!with_targets || read("targets", &out->targets));
}

Napi::Value loss_async(Napi::Env env, const std::shared_ptr<ModelState>& state, std::shared_ptr<LossJob> job,
                       std::function<Status(LossJob&)> work, Napi::Object keep) {
  return run_async(
      env,
      [job, running = std::make_shared<Running>(state), work = std::move(work)] {
        const std::lock_guard lock(addon_mutex());
        return work(*job);
      },
      [job](Napi::Env result_env) { return loss_object(result_env, job->loss); }, keep);
}

Napi::Value bytes_object(Napi::Env env, const std::map<std::string, size_t>& components) {
  Napi::Object result = Napi::Object::New(env);
  for (const auto& [name, bytes] : components) result.Set(name, static_cast<double>(bytes));
  return result;
}

bool get_strings(const Napi::Value& value, const char* what, std::vector<std::string>* out) {
  if (!value.IsArray()) {
    throw_status(value.Env(), error(Code::kInvalidOption, "%s is not an array of strings", what));
    return false;
  }
  const Napi::Array list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    std::string item;
    if (!get_string(list.Get(i), what, &item)) return false;
    out->push_back(std::move(item));
  }
  return true;
}

}  // namespace lowrank::addon

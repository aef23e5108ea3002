// writeParameters of lib/native.ts: a model's parameters straight into a file, without an array of JavaScript's for each.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "addon/files.h"
#include "addon/model_object.h"
#include "addon/module.h"
#include "core/half.h"
#include "formats/safetensors_writer.h"
#include "ops/dequantize.h"

namespace lowrank::addon {
namespace {

struct ParameterToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<size_t> shape;
  Matrix source;
};

// False after throwing.
bool get_parameter(const Napi::Value& value, const Model& model, ParameterToWrite* out) {
  const Napi::Env env = value.Env();
  if (!value.IsObject()) return throw_status(env, error(Code::kInvalidOption, "a parameter to write is not an object")), false;
  const Napi::Object object = value.As<Napi::Object>();
  std::string parameter;
  if (!get_string(object.Get("name"), "a tensor's name", &out->name) || !get_string(object.Get("parameter"), "a parameter's name", &parameter) ||
      !get_float_type(object.Get("dtype"), &out->dtype)) {
    return false;
  }
  const Result<ParameterValues> found = find_values(model, parameter);
  if (!found.ok()) return throw_status(env, found.status()), false;
  out->shape.assign(found.value().shape.begin(), found.value().shape.end());
  out->source = found.value().matrix;
  return true;
}

// The values in the type asked for.
Status convert(const Matrix& source, DType dtype, const char* name, void* to) {
  const size_t elements = source.rows * source.cols;
  const std::lock_guard lock(addon_mutex());
  if (dtype == DType::kF32) return dequantize(addon_context(), source, static_cast<float*>(to));
  Buffer wide;
  LR_RETURN_IF_ERROR(wide.allocate(elements * sizeof(float), name));
  LR_RETURN_IF_ERROR(dequantize(addon_context(), source, wide.as<float>()));
  std::transform(wide.as<float>(), wide.as<float>() + elements, static_cast<uint16_t*>(to), dtype == DType::kBF16 ? f32_to_bf16 : f32_to_f16);
  return {};
}

Status write(const std::string& path, const std::vector<ParameterToWrite>& parameters, const MetadataStrings& metadata,
             std::vector<TensorToWrite> tensors) {
  for (const ParameterToWrite& parameter : parameters) {
    const Matrix& source = parameter.source;
    const size_t bytes = source.rows * source.cols * dtype_info(parameter.dtype).block_bytes;
    TensorToWrite tensor{.name = parameter.name, .dtype = parameter.dtype, .shape = parameter.shape, .data = source.data, .bytes = bytes};
    if (source.type != parameter.dtype) {
      tensor.make = [&parameter](void* to) { return convert(parameter.source, parameter.dtype, parameter.name.c_str(), to); };
    }
    tensors.push_back(std::move(tensor));
  }
  return write_safetensors(path, std::move(tensors), metadata);
}

// False after throwing.
bool get_tensors(const Napi::Value& value, std::vector<TensorToWrite>* out, Napi::Array keep) {
  const Napi::Env env = value.Env();
  if (!value.IsArray()) return throw_status(env, error(Code::kInvalidOption, "tensors is not an array")), false;
  const Napi::Array list = value.As<Napi::Array>();
  out->resize(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::HandleScope scope(env);
    if (!get_tensor(env, list.Get(i), &(*out)[i], keep)) return false;
  }
  return true;
}

Napi::Value write_parameters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
  std::string path;
  MetadataStrings metadata;
  if (state == nullptr || !get_string(info[1], "path", &path) || !get_metadata(env, info[3], &metadata)) return env.Undefined();
  if (!info[2].IsArray()) return throw_status(env, error(Code::kInvalidOption, "parameters is not an array")), env.Undefined();
  const Napi::Array list = info[2].As<Napi::Array>();
  std::vector<ParameterToWrite> parameters(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::HandleScope scope(env);
    if (!get_parameter(list.Get(i), *state->model, &parameters[i])) return env.Undefined();
  }
  Napi::Array keep = Napi::Array::New(env);
  std::vector<TensorToWrite> others;
  if (!info[4].IsUndefined() && !get_tensors(info[4], &others, keep)) return env.Undefined();
  return run_async(
      env,
      [running = std::make_shared<Running>(state), path, parameters = std::move(parameters), metadata, others = std::move(others)] {
        return write(path, parameters, metadata, others);
      },
      [](Napi::Env done) { return done.Undefined(); }, keep);
}

}  // namespace

void register_save(Napi::Env env, Napi::Object exports) { exports.Set("writeParameters", Napi::Function::New(env, write_parameters)); }

}  // namespace lowrank::addon

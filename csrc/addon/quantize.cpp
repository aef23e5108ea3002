// quantizeTensor and setQuantizedTensor of lib/native.ts: weights of a model as 4-bit block types.

#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/files.h"
#include "addon/model_object.h"
#include "addon/module.h"
#include "formats/tensor_file.h"

namespace lowrank::addon {
namespace {

// False after throwing.
bool get_options(const Napi::Value& value, QuantizeOptions* out) {
  const Napi::Env env = value.Env();
  if (!value.IsObject()) return throw_status(env, error(Code::kInvalidOption, "options is not an object")), false;
  const Napi::Object object = value.As<Napi::Object>();
  std::string type;
  if (!get_string(object.Get("type"), "type", &type) || !get_size(object.Get("blockSize"), "blockSize", &out->block) ||
      !get_bool(object.Get("nested"), "nested", &out->nested) || !get_float_type(object.Get("source"), &out->source)) {
    return false;
  }
  const Result<DType> found = weight_type(type);
  if (!found.ok()) return throw_status(env, found.status()), false;
  out->type = found.value();
  return true;
}

// model, slot, file, tensor, unpermuteHeads, options
Napi::Value quantize_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot, tensor;
  size_t heads = 0;
  QuantizeOptions options;
  const std::shared_ptr<ModelState> state = unwrap_idle_model(info[0]);
  if (state == nullptr || !get_string(info[1], "slot", &slot)) return env.Undefined();
  const std::shared_ptr<TensorFile> file = unwrap_file(info[2]);
  if (file == nullptr || !get_string(info[3], "tensor", &tensor) || !get_size(info[4], "unpermuteHeads", &heads) ||
      !get_options(info[5], &options)) {
    return env.Undefined();
  }
  const TensorInfo* const found = file->find(tensor);
  if (found == nullptr) {
    throw_status(env, error(Code::kInvalidConfig, "%s has no tensor named %s", file->path().c_str(), tensor.c_str()));
    return env.Undefined();
  }
  const Result<Matrix> source = file->matrix(tensor);
  if (!source.ok()) return throw_status(env, source.status()), env.Undefined();
  return bind_async(
      env, state,
      [slot, source = source.value(), found, file, heads, options](Model& model) -> Status {
        const std::lock_guard lock(addon_mutex());
        LR_RETURN_IF_ERROR(model.bind(addon_context(), slot, source, found->shape, file, heads));
        LR_RETURN_IF_ERROR(model.quantize(addon_context(), slot, options));
        file->release(*found);
        return file->check_unchanged();
      },
      info[2].As<Napi::Object>());
}

// model, slot, type, blockSize, packed, absmax
Napi::Value set_quantized_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot, type;
  size_t block = 0;
  ArrayView<float> absmax;
  const std::shared_ptr<ModelState> state = unwrap_idle_model(info[0]);
  if (state == nullptr || !get_string(info[1], "slot", &slot) || !get_string(info[2], "type", &type) ||
      !get_size(info[3], "blockSize", &block)) {
    return env.Undefined();
  }
  if (!info[4].IsTypedArray() || info[4].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    return throw_status(env, error(Code::kInvalidOption, "packed is not a Uint8Array")), env.Undefined();
  }
  const Napi::Uint8Array packed = info[4].As<Napi::Uint8Array>();
  if (!get_floats(info[5], "absmax", &absmax)) return env.Undefined();
  const Result<DType> found = weight_type(type);
  if (!found.ok()) return throw_status(env, found.status()), env.Undefined();
  Napi::Array keep = Napi::Array::New(env);
  keep.Set(0u, info[4]);
  keep.Set(1u, info[5]);
  const std::span<const uint8_t> codes(packed.Data(), packed.ElementLength());
  const std::span<const float> magnitudes(absmax.data, absmax.length);
  return bind_async(
      env, state,
      [slot, codes, magnitudes, block, type = found.value()](Model& model) {
        const std::lock_guard lock(addon_mutex());
        return model.set_4bit(addon_context(), slot, codes, magnitudes, block, type);
      },
      keep);
}

}  // namespace

void register_quantize(Napi::Env env, Napi::Object exports) {
  exports.Set("quantizeTensor", Napi::Function::New(env, quantize_tensor, "quantizeTensor"));
  exports.Set("setQuantizedTensor", Napi::Function::New(env, set_quantized_tensor, "setQuantizedTensor"));
}

}  // namespace lowrank::addon

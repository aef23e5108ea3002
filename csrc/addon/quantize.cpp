// quantizeTensor, setQuantizedTensor and readQuantizedTensor of lib/native.ts: weights of a model in bitsandbytes' types.

#include <algorithm>
#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/files.h"
#include "addon/model_object.h"
#include "addon/module.h"
#include "core/checked.h"
#include "formats/tensor_file.h"
#include "ops/quantize_blockwise.h"
#include "ops/quantize_int8.h"

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
        const auto release = [mapped = file.get()](const void* data, size_t bytes) { mapped->release(data, bytes); };
        LR_RETURN_IF_ERROR(model.bind(addon_context(), slot, source, found->shape, file, heads, release));
        LR_RETURN_IF_ERROR(model.quantize(addon_context(), slot, options));
        file->release(*found);
        return file->check_unchanged();
      },
      info[2].As<Napi::Object>());
}

bool get_bytes(const Napi::Value& value, const char* what, ArrayView<uint8_t>* out) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw_status(value.Env(), error(Code::kInvalidOption, "%s is not a Uint8Array", what));
    return false;
  }
  Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  *out = {array.Data(), array.ElementLength()};
  return true;
}

// Copies: it stays with the model. False after throwing.
bool get_nested(const Napi::Value& value, std::shared_ptr<const NestedAbsmax>* out) {
  if (!value.IsObject()) return throw_status(value.Env(), error(Code::kInvalidOption, "nested is not an object")), false;
  const Napi::Object object = value.As<Napi::Object>();
  auto nested = std::make_shared<NestedAbsmax>();
  ArrayView<uint8_t> codes;
  ArrayView<float> absmax, map;
  double offset = 0;
  if (!get_bytes(object.Get("codes"), "codes", &codes) || !get_floats(object.Get("absmax"), "absmax", &absmax) ||
      !get_floats(object.Get("map"), "map", &map) || !get_size(object.Get("blockSize"), "blockSize", &nested->block) ||
      !get_double(object.Get("offset"), "offset", &offset)) {
    return false;
  }
  if (nested->block == 0 || absmax.length != ceil_div(codes.length, nested->block) || map.length != kByteCodes) {
    const Status status = error(Code::kShapeMismatch, "%zu nested magnitudes and a map of %zu do not fit %zu codes in blocks of %zu",
                                absmax.length, map.length, codes.length, nested->block);
    return throw_status(value.Env(), status), false;
  }
  nested->codes.assign(codes.data, codes.data + codes.length);
  nested->absmax.assign(absmax.data, absmax.data + absmax.length);
  nested->map.assign(map.data, map.data + map.length);
  nested->offset = static_cast<float>(offset);
  *out = std::move(nested);
  return true;
}

// Codes that lie in a file, and the file; or in an array, and null. False after throwing.
bool get_codes(const Napi::Value& value, std::span<const uint8_t>* out, std::shared_ptr<TensorFile>* file, const TensorInfo** tensor) {
  if (value.IsTypedArray()) {
    ArrayView<uint8_t> bytes;
    if (!get_bytes(value, "codes", &bytes)) return false;
    *out = {bytes.data, bytes.length};
    return true;
  }
  if (!value.IsObject()) return throw_status(value.Env(), error(Code::kInvalidOption, "codes is neither an array nor a tensor")), false;
  std::string name;
  const Napi::Object object = value.As<Napi::Object>();
  *file = unwrap_file(object.Get("file"));
  if (*file == nullptr || !get_string(object.Get("tensor"), "tensor", &name)) return false;
  const Result<const TensorInfo*> found = (*file)->tensor(name);
  if (!found.ok()) return throw_status(value.Env(), found.status()), false;
  *tensor = found.value();
  *out = {static_cast<const uint8_t*>(found.value()->data), found.value()->bytes};
  return true;
}

// All but the codes. False after throwing.
bool get_quantized(const Napi::Object& object, QuantizedWeight* out) {
  std::string type;
  ArrayView<float> absmax;
  if (!get_string(object.Get("type"), "type", &type) || !get_size(object.Get("blockSize"), "blockSize", &out->block)) return false;
  const Napi::Value nested = object.Get("nested");
  if (nested.IsUndefined() ? !get_floats(object.Get("absmax"), "absmax", &absmax) : !get_nested(nested, &out->nested)) return false;
  const Result<DType> found = weight_type(type);
  if (!found.ok()) return throw_status(object.Env(), found.status()), false;
  out->type = found.value();
  out->absmax = {absmax.data, absmax.length};
  return true;
}

// model, slot, weight
Napi::Value set_quantized_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string slot;
  QuantizedWeight weight;
  const std::shared_ptr<ModelState> state = unwrap_idle_model(info[0]);
  if (state == nullptr || !get_string(info[1], "slot", &slot)) return env.Undefined();
  if (!info[2].IsObject()) return throw_status(env, error(Code::kInvalidOption, "weight is not an object")), env.Undefined();
  const Napi::Object object = info[2].As<Napi::Object>();
  std::shared_ptr<TensorFile> file;
  const TensorInfo* tensor = nullptr;
  if (!get_quantized(object, &weight) || !get_codes(object.Get("codes"), &weight.codes, &file, &tensor)) return env.Undefined();
  return bind_async(
      env, state,
      [slot, weight, file, tensor](Model& model) -> Status {
        const std::lock_guard lock(addon_mutex());
        LR_RETURN_IF_ERROR(model.set_quantized(addon_context(), slot, weight));
        if (file == nullptr) return {};
        file->release(*tensor);
        return file->check_unchanged();
      },
      object);
}

Napi::Object nested_object(Napi::Env env, const NestedAbsmax& nested) {
  Napi::Object object = Napi::Object::New(env);
  Napi::Uint8Array codes = Napi::Uint8Array::New(env, nested.codes.size());
  std::copy(nested.codes.begin(), nested.codes.end(), codes.Data());
  object.Set("codes", codes);
  object.Set("absmax", make_floats(env, nested.absmax.data(), nested.absmax.size()));
  object.Set("map", make_floats(env, nested.map.data(), nested.map.size()));
  object.Set("blockSize", static_cast<double>(nested.block));
  object.Set("offset", nested.offset);
  return object;
}

// model, slot
Napi::Value read_quantized_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string name;
  const std::shared_ptr<ModelState> state = unwrap_model(info[0]);
  if (state == nullptr || !get_string(info[1], "slot", &name)) return env.Undefined();
  const Slot* const slot = state->model->find_slot(name);
  const bool bytes = slot != nullptr && slot->value.type == DType::kInt8;
  if (slot == nullptr || !(bytes || is_4bit(slot->value.type))) {
    return throw_status(env, error(Code::kInvalidOption, "the model has no quantised tensor named %s", name.c_str())), env.Undefined();
  }
  const size_t weights = slot->elements(), block = slot->quantized_block;
  Napi::Object result = Napi::Object::New(env);
  Napi::Uint8Array codes = Napi::Uint8Array::New(env, bytes ? weights : weights / 2);
  Napi::Float32Array absmax = Napi::Float32Array::New(env, bytes ? slot->value.rows : ceil_div(weights, block));
  result.Set("type", dtype_info(slot->value.type).name);
  result.Set("blockSize", static_cast<double>(bytes ? slot->value.cols : block));
  result.Set("codes", codes);
  result.Set("absmax", absmax);
  if (slot->nested != nullptr) result.Set("nested", nested_object(env, *slot->nested));
  return run_async(
      env,
      [running = std::make_shared<Running>(state), source = slot->value, bytes, block, to = codes.Data(), magnitudes = absmax.Data()] {
        const std::lock_guard lock(addon_mutex());
        if (bytes) {
          load_int8(addon_context(), source, reinterpret_cast<int8_t*>(to), magnitudes);
        } else {
          load_4bit(addon_context(), source, block, to, magnitudes);
        }
        return Status{};
      },
      result);
}

}  // namespace

void register_quantize(Napi::Env env, Napi::Object exports) {
  exports.Set("quantizeTensor", Napi::Function::New(env, quantize_tensor, "quantizeTensor"));
  exports.Set("setQuantizedTensor", Napi::Function::New(env, set_quantized_tensor, "setQuantizedTensor"));
  exports.Set("readQuantizedTensor", Napi::Function::New(env, read_quantized_tensor, "readQuantizedTensor"));
}

}  // namespace lowrank::addon

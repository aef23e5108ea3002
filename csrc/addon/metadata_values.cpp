#include "addon/metadata_values.h"

#include <algorithm>

namespace lowrank::addon {
namespace {

constexpr size_t kHandlesPerScope =
    1024;  // a vocabulary's worth of handles must not pile up, nor each need a scope
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

struct Converter {
  Napi::Env env;

  Napi::Value operator()(bool value) const { return Napi::Boolean::New(env, value); }
  Napi::Value operator()(double value) const { return Napi::Number::New(env, value); }
  Napi::Value operator()(uint64_t value) const {
    if (value <= static_cast<uint64_t>(kMaxSafeInteger))
      return Napi::Number::New(env, static_cast<double>(value));
    return Napi::BigInt::New(env, value);
  }
  Napi::Value operator()(int64_t value) const {
    if (value <= kMaxSafeInteger && value >= -kMaxSafeInteger)
      return Napi::Number::New(env, static_cast<double>(value));
    return Napi::BigInt::New(env, value);
  }
  Napi::Value operator()(const std::string& value) const { return Napi::String::New(env, value); }
  Napi::Value operator()(const MetadataValue::Array& values) const {
    Napi::Array array = Napi::Array::New(env, values.size());
    for (size_t begin = 0; begin < values.size(); begin += kHandlesPerScope) {
      const Napi::HandleScope scope(env);
      const size_t end = std::min(values.size(), begin + kHandlesPerScope);
      for (size_t i = begin; i < end; ++i)
        napi_set_element(env, array, static_cast<uint32_t>(i), to_javascript(env, values[i]));
    }
    return array;
  }
};

}  // namespace

Napi::Value to_javascript(Napi::Env env, const MetadataValue& value) {
  return std::visit(Converter{env}, value.value);
}

void define_value(Napi::Object object, std::string_view key, Napi::Value value) {
  const Napi::String name = Napi::String::New(object.Env(), key.data(), key.size());
  object.DefineProperty(Napi::PropertyDescriptor::Value(
      name, value,
      static_cast<napi_property_attributes>(napi_writable | napi_enumerable | napi_configurable)));
}

}  // namespace lowrank::addon

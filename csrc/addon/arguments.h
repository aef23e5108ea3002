// Positional values of a call (or of an array within one), read in order. After the first that does not fit an exception is pending, ok()
// is false and the rest reads as zero.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "addon/bridge.h"
#include "ops/matrix.h"

namespace lowrank::addon {

class Arguments {
 public:
  explicit Arguments(const Napi::CallbackInfo& info) : env_(info.Env()) {
    for (size_t i = 0; i < info.Length(); ++i) values_.push_back(info[i]);
  }
  explicit Arguments(const Napi::Array& array) : env_(array.Env()) {
    for (uint32_t i = 0; i < array.Length(); ++i) values_.push_back(array.Get(i));
  }

  bool ok() const { return ok_; }

  float* floats() { return present(read<ArrayView<float>>(get_floats).data); }
  // Null where the value is undefined or null.
  float* optional_floats() { return missing() ? nullptr : floats(); }
  int32_t* ints() { return present(read<ArrayView<int32_t>>(get_ints).data); }
  double* doubles() { return elements<double>(napi_float64_array, "a Float64Array"); }
  unsigned char* bytes() { return elements<unsigned char>(napi_uint8_array, "a Uint8Array"); }
  size_t size() { return read<size_t>(get_size); }
  double number() { return read<double>(get_double); }
  float number32() { return static_cast<float>(number()); }
  bool flag() { return read<bool>(get_bool); }
  std::string text() { return read<std::string>(get_string); }

  // Bytes, name of the storage type, rows, columns.
  Matrix weight();
  // A list of lists, one of which is read as Arguments each.
  std::vector<Arguments> lists();

 private:
  Napi::Value next() { return place_ < values_.size() ? values_[place_++] : env_.Undefined(); }

  bool missing() {
    if (place_ < values_.size() && !values_[place_].IsUndefined() && !values_[place_].IsNull()) return false;
    ++place_;
    return true;
  }

  // An empty array has no address, and to the ops null is an argument left out.
  template <class T>
  static T* present(T* data) {
    static T nothing{};
    return data == nullptr ? &nothing : data;
  }

  template <class T>
  T read(bool (*get)(const Napi::Value&, const char*, T*)) {
    T value{};
    const Napi::Value argument = next();
    if (ok_) ok_ = get(argument, "a kernel's argument", &value);
    return ok_ ? value : T{};
  }

  template <class T>
  T* elements(napi_typedarray_type type, const char* expected) {
    const Napi::Value argument = next();
    if (!ok_) return nullptr;
    if (!argument.IsTypedArray() || argument.As<Napi::TypedArray>().TypedArrayType() != type) {
      fail(error(Code::kInvalidOption, "a kernel's argument is not %s", expected));
      return nullptr;
    }
    return present(argument.As<Napi::TypedArrayOf<T>>().Data());
  }

  void fail(const Status& status) {
    ok_ = false;
    throw_status(env_, status);
  }

  Napi::Env env_;
  std::vector<Napi::Value> values_;
  size_t place_ = 0;
  bool ok_ = true;
};

// The storage type of a weight by its name (F32, BF16, Q4_K, …); kUnsupportedQuantization names the others.
Result<DType> weight_type(const std::string& name);

}  // namespace lowrank::addon

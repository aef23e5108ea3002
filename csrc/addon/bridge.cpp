#include "addon/bridge.h"

#include <cmath>
#include <cstring>

namespace lowrank::addon {
namespace {

// False while a worker thread is being terminated: JavaScript then runs no more, nothing waits for the promise, and every value
// made would be empty.
bool can_make_values(napi_env env) {
  napi_value global = nullptr;
  bool has = false;
  return napi_get_global(env, &global) == napi_ok && napi_has_named_property(env, global, "Promise", &has) == napi_ok;
}

class Work final : public Napi::AsyncWorker {
 public:
  Work(Napi::Env env, std::function<Status()> work, std::function<Napi::Value(Napi::Env)> resolve, Napi::Object keep)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        resolve_(std::move(resolve)),
        keep_(Napi::Persistent(keep)) {}
  // Resolves with `result`.
  Work(Napi::Env env, std::function<Status()> work, Napi::Object result) : Work(env, std::move(work), nullptr, result) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override { status_ = work_(); }
  void OnOK() override {
    const Napi::HandleScope scope(Env());
    if (!can_make_values(Env())) return;
    if (status_.ok()) {
      deferred_.Resolve(resolve_ ? resolve_(Env()) : keep_.Value());
    } else {
      deferred_.Reject(to_error(Env(), status_).Value());
    }
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::function<Status()> work_;
  std::function<Napi::Value(Napi::Env)> resolve_;
  Napi::ObjectReference keep_;
  Status status_;
};

std::string kind_of(const Napi::Value& value) {
  if (value.IsTypedArray()) return "a typed array of another type";
  if (value.IsArray()) return "an array";
  if (value.IsUndefined()) return "undefined";
  if (value.IsNull()) return "null";
  if (value.IsNumber()) return "the number " + value.ToString().Utf8Value();
  if (value.IsString()) return "a string";
  if (value.IsBoolean()) return "a boolean";
  return "an object";
}

bool refuse(const Napi::Value& value, const char* what, const char* expected) {
  if (value.IsEmpty()) return false;  // a getter threw: its exception is pending
  throw_status(value.Env(), error(Code::kInvalidOption, "%s is %s; expected %s", what, kind_of(value).c_str(), expected));
  return false;
}

}  // namespace

Napi::Error to_error(Napi::Env env, const Status& status) {
  Napi::Error error = Napi::Error::New(env, status.message());
  error.Set("code", Napi::String::New(env, code_name(status.code())));
  error.Set("lowrank", Napi::Boolean::New(env, true));
  return error;
}

Napi::Promise run_async(Napi::Env env, std::function<Status()> work, std::function<Napi::Value(Napi::Env)> resolve,
                        Napi::Object keep) {
  Work* worker = new Work(env, std::move(work), std::move(resolve), keep);  // deletes itself when done
  worker->Queue();
  return worker->promise();
}

Napi::Promise run_async(Napi::Env env, std::function<Status()> work, Napi::Object result) {
  Work* worker = new Work(env, std::move(work), result);  // deletes itself when done
  worker->Queue();
  return worker->promise();
}

bool get_string(const Napi::Value& value, const char* what, std::string* out) {
  if (!value.IsString()) return refuse(value, what, "a string");
  *out = value.As<Napi::String>().Utf8Value();
  return true;
}

bool get_size(const Napi::Value& value, const char* what, size_t* out) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number < 9007199254740992.0) || std::floor(number) != number) {
    return refuse(value, what, "a whole number of at least 0");
  }
  *out = static_cast<size_t>(number);
  return true;
}

bool get_double(const Napi::Value& value, const char* what, double* out) {
  if (!value.IsNumber()) return refuse(value, what, "a number");
  *out = value.As<Napi::Number>().DoubleValue();
  return true;
}

bool get_bool(const Napi::Value& value, const char* what, bool* out) {
  if (!value.IsBoolean()) return refuse(value, what, "true or false");
  *out = value.As<Napi::Boolean>().Value();
  return true;
}

bool get_floats(const Napi::Value& value, const char* what, ArrayView<float>* out) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array) {
    return refuse(value, what, "a Float32Array");
  }
  Napi::Float32Array array = value.As<Napi::Float32Array>();
  *out = {array.Data(), array.ElementLength()};
  return true;
}

bool get_ints(const Napi::Value& value, const char* what, ArrayView<int32_t>* out) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
    return refuse(value, what, "an Int32Array");
  }
  Napi::Int32Array array = value.As<Napi::Int32Array>();
  *out = {array.Data(), array.ElementLength()};
  return true;
}

Napi::Float32Array make_floats(Napi::Env env, const float* data, size_t length) {
  Napi::Float32Array array = Napi::Float32Array::New(env, length);
  // Empty where the thread is being terminated.
  if (length > 0 && !array.IsEmpty()) std::memcpy(array.Data(), data, length * sizeof(float));
  return array;
}

}  // namespace lowrank::addon

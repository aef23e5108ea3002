// From Status to JavaScript errors, from JavaScript values to C++, and long work to a thread of libuv's pool.
#pragma once

#include <napi.h>

#include <functional>
#include <string>
#include <utility>

#include "core/status.h"

namespace lowrank::addon {

// A JavaScript Error with `code` and the mark `lowrank`, which lib/native.ts turns into a LowrankError.
Napi::Error to_error(Napi::Env env, const Status& status);

// Throws into JavaScript; the caller returns at once.
inline void throw_status(Napi::Env env, const Status& status) { to_error(env, status).ThrowAsJavaScriptException(); }

// Runs `work` on another thread, then `resolve` (on the JavaScript thread) makes the promise's value. `keep` holds objects that
// must live until then.
Napi::Promise run_async(Napi::Env env, std::function<Status()> work, std::function<Napi::Value(Napi::Env)> resolve,
                        Napi::Object keep);
// The same where `work` fills `result`, which is made before and lives until then.
Napi::Promise run_async(Napi::Env env, std::function<Status()> work, Napi::Object result);

// Typed arguments. Each returns false after throwing INVALID_OPTION that names `what`.
bool get_string(const Napi::Value& value, const char* what, std::string* out);
bool get_size(const Napi::Value& value, const char* what, size_t* out);      // an integer in [0, 2^53)
bool get_double(const Napi::Value& value, const char* what, double* out);
bool get_bool(const Napi::Value& value, const char* what, bool* out);

// The elements of a typed array, without a copy; valid while the array lives.
template <class T>
struct ArrayView {
  T* data = nullptr;
  size_t length = 0;
};
bool get_floats(const Napi::Value& value, const char* what, ArrayView<float>* out);
bool get_ints(const Napi::Value& value, const char* what, ArrayView<int32_t>* out);

Napi::Float32Array make_floats(Napi::Env env, const float* data, size_t length);

}  // namespace lowrank::addon

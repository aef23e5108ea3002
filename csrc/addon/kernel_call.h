// How an op over typed arrays becomes a function of `exports.kernels`, and the files that hold some of them.
#pragma once

#include <mutex>

#include "addon/arguments.h"
#include "addon/module.h"

namespace lowrank::addon {

// A function that runs an op on the calling thread and throws its error.
template <Status (*run)(Context&, Arguments&)>
Napi::Value call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::lock_guard lock(addon_mutex());
  const Status status = run(addon_context(), arguments);
  if (!status.ok()) throw_status(info.Env(), status);
  return info.Env().Undefined();
}

inline void set_function(Napi::Object to, const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
  to.Set(name, Napi::Function::New(to.Env(), function, name));
}

void register_quantization(Napi::Object kernels);  // kernels_quantize.cpp
void register_optimizers(Napi::Object kernels);    // kernels_optimizer.cpp

}  // namespace lowrank::addon

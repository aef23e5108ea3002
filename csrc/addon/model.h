// JavaScript's view of models, caches and sessions: NativeModel, NativeCache and NativeSession of lib/native.ts.
#pragma once

#include <napi.h>

namespace lowrank::addon {

// Sets createModel, createSession and planSession.
void register_model(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

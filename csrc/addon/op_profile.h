// profileOps of lib/native.ts: seconds by kind of op, for the benchmark.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void register_op_profile(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

// timeOp of lib/native.ts: how long one op takes, for the benchmark.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void register_op_timer(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

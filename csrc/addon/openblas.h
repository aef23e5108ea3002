// timeOpenblas of lib/native.ts: the peer that the GEMM is measured against, where the machine has it.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void register_openblas(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

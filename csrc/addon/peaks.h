// measurePeaks of lib/native.ts: what this machine can do, for the benchmark.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void register_peaks(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

// The ops over typed arrays: `exports.kernels`. lib/kernels/ checks every shape and allocates the results; these read positional
// values, run on the calling thread's pool and write in place.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void register_kernels(Napi::Env env, Napi::Object exports);

}  // namespace lowrank::addon

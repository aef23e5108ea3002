// NativeModelConfig of lib/native.ts as a DecoderConfig, and back.
#pragma once

#include <napi.h>

#include "model/config.h"

namespace lowrank::addon {

bool get_config(const Napi::Value& value, DecoderConfig* out);

}  // namespace lowrank::addon

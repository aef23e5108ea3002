// A file's metadata as JavaScript values.
#pragma once

#include <napi.h>

#include <string_view>

#include "formats/metadata.h"

namespace lowrank::addon {

// Integers beyond 2^53 become bigint; strings that are not UTF-8 get U+FFFD where they break.
Napi::Value to_javascript(Napi::Env env, const MetadataValue& value);

// Defines object[key] rather than setting it: a file may name a key "__proto__".
void define_value(Napi::Object object, std::string_view key, Napi::Value value);

}  // namespace lowrank::addon
